package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	"reverser/internal/status"
)

// A proxyProcess is a running `reverser proxy`.
type proxyProcess struct {
	*testProcess
	state string // its --state
	link  int    // port of --listen
}

// startProxy starts a proxy with a new state directory.
func startProxy(t *testing.T, args ...string) *proxyProcess {
	t.Helper()
	return startProxyAt(t, t.TempDir(), freePort(t), args...)
}

// startProxyAt starts a proxy and waits until its link port answers.
func startProxyAt(t *testing.T, state string, link int, args ...string) *proxyProcess {
	t.Helper()
	p := &proxyProcess{state: state, link: link}
	args = append([]string{"proxy", "--listen", loopback(link), "--state", state, "--log-format", "json"}, args...)
	p.testProcess = startReverser(t, "proxy", nil, args...)
	p.awaitReady()
	return p
}

func (p *proxyProcess) awaitReady() {
	p.t.Helper()
	eventually(p.t, "the proxy tells its status", func() bool {
		if !p.Running() {
			p.t.Fatalf("the proxy has ended: %v", p.Cmd.ProcessState)
		}
		_, err := statusOf(p.t, p.state)
		return err == nil
	})
}

var tokenPattern = regexp.MustCompile(`rv1_[A-Za-z0-9_-]+`)

// defaultToken is the token of the line that a first start prints.
func (p *proxyProcess) defaultToken() string {
	p.t.Helper()
	p.awaitOutput("reverser bridge rv1_")
	return tokenPattern.FindString(p.Stdout.String())
}

// addKey makes a key and returns its token.
func addKey(t *testing.T, state, name string, allow ...string) string {
	t.Helper()
	args := []string{"key", "add", name, "--state", state}
	for _, a := range allow {
		args = append(args, "--allow", a)
	}
	out := runReverser(t, args...)
	token := strings.TrimSuffix(out, "\n")
	if tokenPattern.FindString(token) != token {
		t.Fatalf("key add printed %d bytes on stdout; want the token alone", len(out))
	}
	return token
}

// A bridgeProcess is a running `reverser bridge`.
type bridgeProcess struct {
	*testProcess
	state string
}

// startBridge starts a bridge; args are what follows the token on the command line.
func startBridge(t *testing.T, token string, args ...string) *bridgeProcess {
	t.Helper()
	b := &bridgeProcess{state: t.TempDir()}
	args = append([]string{"bridge", token, "--state", b.state, "--log-format", "json"}, args...)
	b.testProcess = startReverser(t, "bridge", nil, args...)
	return b
}

// awaitUp waits until the services, in the canonical form of PUBLIC, are up.
func (b *bridgeProcess) awaitUp(services ...string) {
	b.t.Helper()
	for _, s := range services {
		b.awaitService(s, "up")
	}
}

func (b *bridgeProcess) awaitService(public, state string) serviceStatus {
	b.t.Helper()
	var got serviceStatus
	eventually(b.t, fmt.Sprintf("the bridge says that %s is %s", public, state), func() bool {
		if !b.Running() {
			b.t.Fatalf("the bridge has ended: %v", b.Cmd.ProcessState)
		}
		st, err := statusOf(b.t, b.state)
		if err != nil {
			return false
		}
		for _, s := range st.Services {
			if s.Public == public {
				got = s
				return s.State == state
			}
		}
		return false
	})
	return got
}

// A tunnel is a proxy and a bridge with one service.
type tunnel struct {
	proxy   *proxyProcess
	bridge  *bridgeProcess
	token   string
	public  int    // its public port
	service string // the same in canonical form
}

// longDrain is how long connections of a tunnel have to finish. On a busy machine, what a test does meanwhile takes more than the usual 30 seconds.
var longDrain = []string{"--drain", "1h"}

// startTunnel exposes target ("port" or "host:port") and waits until it is up.
func startTunnel(t *testing.T, target string) *tunnel {
	t.Helper()
	tun := &tunnel{proxy: startProxy(t, longDrain...), public: freePort(t)}
	tun.token = tun.proxy.defaultToken()
	tun.service = fmt.Sprintf("tcp/%d", tun.public)
	tun.bridge = startBridge(t, tun.token, append([]string{fmt.Sprintf("%d=%s", tun.public, target)}, longDrain...)...)
	tun.bridge.awaitUp(tun.service)
	return tun
}

// addr is where users connect to.
func (tun *tunnel) addr() string { return loopback(tun.public) }

func (tun *tunnel) dial(t *testing.T) *net.TCPConn {
	t.Helper()
	return dial(t, tun.addr())
}

// dial connects and closes at the end of the test; no call on it takes for ever.
func dial(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(lifetime))
	return c.(*net.TCPConn)
}

// The contract's part of `status --json`.
type (
	statusJSON struct {
		Role          string          `json:"role"`
		Version       string          `json:"version"`
		UptimeSeconds float64         `json:"uptime_seconds"`
		Links         []linkStatus    `json:"links"`
		Services      []serviceStatus `json:"services"`
		Reload        *struct {
			Error string `json:"error"`
		} `json:"reload"`
		AccessLog *struct {
			File    string `json:"file"`
			Written uint64 `json:"written"`
			Lost    uint64 `json:"lost"`
		} `json:"access_log"`
		Pairs        []pairStatus         `json:"pairs"`
		Pressure     []status.Pressure    `json:"pressure"`
		Certificates []status.Certificate `json:"certificates"`
	}
	linkStatus struct {
		Key     string    `json:"key"`
		Bridge  string    `json:"bridge"`
		Remote  string    `json:"remote"`
		State   string    `json:"state"`
		RTT     float64   `json:"rtt_ms"`
		Resumes int       `json:"resumes"`
		Since   time.Time `json:"since"`
	}
	serviceStatus struct {
		Public      string `json:"public"`
		Target      string `json:"target"`
		State       string `json:"state"`
		Connections int    `json:"connections"`
		Total       int    `json:"total"`
		Reason      string `json:"reason"`
	}
	pairStatus struct {
		ID       string    `json:"id"`
		Service  string    `json:"service"`
		Client   string    `json:"client"`
		Target   string    `json:"target"`
		Sent     int64     `json:"sent"`
		Received int64     `json:"received"`
		Since    time.Time `json:"since"`
		State    string    `json:"state"`
	}
)

// statusOf asks the process of a state directory.
func statusOf(t *testing.T, state string) (statusJSON, error) {
	t.Helper()
	p := startReverser(t, "status", nil, "status", "--json", "--state", state)
	p.quiet = true
	if code := p.awaitEnd(); code != 0 {
		return statusJSON{}, fmt.Errorf("reverser status: exit code %d: %s", code, p.Stderr.String())
	}
	var st statusJSON
	if err := json.Unmarshal(p.Stdout.Bytes(), &st); err != nil {
		t.Fatalf("status --json wrote %q: %v", p.Stdout.String(), err)
	}
	return st, nil
}

// mustStatus is statusOf for a process that runs. It asks again when the program has given up waiting, which it does sooner than a very
// busy machine answers.
func mustStatus(t *testing.T, state string) statusJSON {
	t.Helper()
	for begin := time.Now(); ; {
		st, err := statusOf(t, state)
		if err == nil {
			return st
		}
		if !strings.Contains(err.Error(), " does not answer: ") || time.Since(begin) > patience {
			t.Fatal(err)
		}
	}
}
