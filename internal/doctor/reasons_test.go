package doctor

import (
	"strings"
	"testing"

	"reverser/internal/config"
	"reverser/internal/status"
)

// TestReasons: each reason for which a service is not up has its own remedy, at the bridge and at the proxy. The reasons are in the words of
// the registry.
func TestReasons(t *testing.T) {
	const (
		denied   = status.ServiceDenied
		retrying = status.ServiceRetrying
		limit    = "`reverser key edit NAME --max-services N` allows the key more"
	)
	for _, c := range []struct {
		public, state, reason string
		bridge, proxy         string // what the line has, from the name on to the beginning of the remedy; proxy "": as at the bridge
	}{
		{"tcp/80", denied, `tcp/80 denied: the policy of key "nas" allows tcp/9000`,
			`the policy of key "nas" allows tcp/9000 → at the proxy, let the key have it`, ""},
		{"WorkPort", denied, `WorkPort denied: the proxy offers no public port: WorkPort in its file does, or the bridge names one that key "nas" is allowed (tcp/1)`,
			`or the bridge names one that key "nas" is allowed (tcp/1) → name a public port`, ""},
		{"tcp/80", denied, "tcp/80 denied: the bridge asks for something that this proxy does not know (field 9 of its claim): update the proxy", "→ update the proxy", ""},
		{"https/a.example", denied, "https/a.example denied: the proxy has no port for names: start it with --https ADDR, such as --https :443",
			"is denied: the proxy has no port for names → at the proxy, start it with --https ADDR", "is denied (key nas): the proxy has no port for names → start it with --https ADDR"},
		{"http/a.example", denied, "http/a.example denied: the proxy has no port for HTTP: start it with --h…", "→ at the proxy, give it that port", ""},
		{"udp/53", denied, "udp/53 denied: this proxy serves tcp/, http/, https/ and tls/ only", "→ ask for a name of a kind that it serves", ""},
		{"https/*.example", denied, "https/*.example denied: no certificate for a wildcard comes by itself: give the proxy one ([[certificate]] in its file), or claim each host",
			"comes by itself → at the proxy, give the proxy one ([[certificate]]", "comes by itself → give the proxy one ([[certificate]]"},
		{"tcp/3010", denied, "tcp/3010 denied: the link itself uses this port", "→ ask for another port", ""},
		{"tcp/80", denied, `tcp/80 denied: key "nas" is not in group "blue"`, "→ at the proxy, put the key into the group", ""},
		{"tcp/80", denied, "tcp/80 denied: something of another version", "→ change at the proxy what stands in the way", ""},

		{"tcp/80", retrying, "the proxy is stopping", "tcp/80 is not served: the proxy is stopping → it comes back when", "tcp/80 is not served (key nas): the proxy is stopping → it comes back when"},
		{"tcp/80", retrying, "tcp/80 is another service of the same bridge already", "→ take one of the two out", ""},
		{"tcp/80", retrying, "tcp/80 leads to 127.0.0.1:1 already, another service of the same bridge", "→ take one of the two out", ""},
		{"tcp/80", retrying, "tcp/80 is held by another key", "→ ask for another name, or have the other bridge", "→ take it out of the settings of the bridge that has it"},
		{"tcp/80", retrying, `tcp/80 is held by key "shop"`, "", `tcp/80 is not served (key nas): tcp/80 is held by key "shop" → take it out of the settings of the bridge that has it`},
		{"tcp/80", retrying, "tcp/80 is held by a key that was removed", "", "→ take it out of the settings"},
		{"tcp/80", retrying, "tcp/80 overlaps tcp/192.0.2.1:80, which is held by another key", "→ ask for another name, or have the other bridge", "→ take it out of the settings of the bridge that has it"},
		{"tcp/80", retrying, "tcp/80 overlaps tcp/192.0.2.1:80, another service of this key", "→ take one of the two out", ""},
		{"tcp/29202", retrying, `tcp/29202 is more than the limit max-services of key "nas", 1`, "→ at the proxy, " + limit, `key "nas", 1 → ` + limit},
		{"tcp/80", retrying, `no descriptor of the proxy's is left for tcp/80: key "nas" has 100 open ports, and may have half of what others leave: raise the limit there (ulimit -n, LimitNOFILE=)`,
			"half of what others leave → at the proxy, raise the limit there (ulimit -n", "half of what others leave → raise the limit there (ulimit -n"},
		{"http/a.example", retrying, "http/a.example has no place: the proxy has memory for 3072 names, and this key has its share", "→ at the proxy, `reverser key edit NAME --max-services N`", ""},
		{"http/a.example", retrying, "http/a.example has no place: the proxy has memory for 3072 names. Key \"nas\" has 1536, and may have half of what others leave: `reverser key edit nas --max-services N` gives it a number of its own, and more memory (MemoryMax=) gives all more",
			"", "half of what others leave → `reverser key edit nas --max-services N` gives it a number of its own, and more memory"},
		{"http/a.example", retrying, "http/a.example has no place: the proxy has memory for 3072 names, and all are taken", "and all are taken → give the proxy more memory", ""},
		{"http/a.example", retrying, "http/a.example has no place: the proxy has memory for 3072 names, and all are taken: give it more (MemoryMax=), or let fewer names be claimed",
			"", "and all are taken → give it more (MemoryMax=), or let fewer names be claimed"},
		{"tcp/80", retrying, "a newer session of the same key took over, without tcp/80", "→ add it to the settings of the bridge that has taken over", ""},
		{"tcp/80", retrying, "listen tcp :80: bind: permission denied", "tcp/80 cannot be opened: listen tcp :80: bind: permission denied → ask for a port from 1024 on", "→ ask for a port from 1024 on"},
		{"tcp/192.0.2.1:80", retrying, "listen tcp 192.0.2.1:80: bind: cannot assign requested address", "→ ask for an address of the proxy's machine", "→ have the bridge ask for an address of this machine"},
		{"tcp/80", retrying, "listen tcp :80: socket: too many open files", "→ raise the limit at the proxy", ""},
		{"tcp/80", retrying, "listen tcp :80: bind: address already in use", "address already in use → the proxy goes on trying; `reverser doctor` there says who has the port",
			"address already in use: port 80 is held by nginx (pid 7) → stop who has the port"},
		{"tcp/80", retrying, "something of another version", "→ the proxy goes on trying, and `reverser doctor` there may say more", "port 80 is held by nginx (pid 7) → stop who has the port"},
	} {
		for _, role := range []string{config.RoleBridge, config.RoleProxy} {
			want := c.bridge
			if role == config.RoleProxy && c.proxy != "" {
				want = c.proxy
			}
			if want == "" { // only the proxy's operator reads it
				continue
			}
			w, p := well(t)
			p.Role = role
			p.Snapshot.Services = []status.Service{{Public: c.public, Key: "nas", State: c.state, Reason: c.reason}}
			line := find(look(t, w, p), "services ")
			if !strings.Contains(line, want) {
				t.Errorf("at the %s, %q: found %q; want %q", role, c.reason, line, want)
			}
			if held := strings.Contains(line, "who has the port") || strings.Contains(line, "nginx"); held && !reasonOf(c.reason, unknownDelay).port {
				t.Errorf("at the %s, %q: %q is about a port that somebody has", role, c.reason, line)
			}
		}
	}
}
