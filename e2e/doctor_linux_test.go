package e2e

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"reverser/internal/acmetest"
)

// A finding is a check of `doctor --json`.
type finding struct{ Role, Name, State, Found, Hint string }

// doctor runs `reverser doctor` and returns what it found. The exit code is 1 exactly when something failed.
func doctor(t *testing.T, args ...string) []finding {
	t.Helper()
	return doctorBy(t, nil, reverser(t), append([]string{"doctor"}, args...)...)
}

// doctorBy is doctor for a program that runs reverser, with changes to how it is started.
func doctorBy(t *testing.T, change func(*exec.Cmd), path string, args ...string) (all []finding) {
	t.Helper()
	p := prepare(t, "doctor", path, nil, append(args, "--json")...)
	if change != nil {
		change(p.Cmd)
	}
	p.start()
	code := p.awaitEnd()
	if err := json.Unmarshal(p.Stdout.Bytes(), &all); err != nil {
		t.Fatalf("doctor wrote %q, stderr %q: %v", p.Stdout.String(), p.Stderr.String(), err)
	}
	want := 0
	if slices.ContainsFunc(all, func(f finding) bool { return f.State == "fail" }) {
		want = 1
	}
	if code != want {
		t.Errorf("doctor ended with %d, want %d: %+v", code, want, all)
	}
	for _, f := range all {
		if f.Name == "" || f.Found == "" || !slices.Contains([]string{"ok", "warn", "fail", "skip"}, f.State) {
			t.Errorf("doctor found %+v", f)
		}
	}
	return all
}

// wrong are the checks that are not well, each with its state. The machine that the tests run on may have less of something than doctor
// wants; what they make of it themselves fails.
func wrong(all []finding) map[string]string {
	bad := make(map[string]string)
	for _, f := range all {
		switch {
		case slices.Contains([]string{"kernel", "memory"}, f.Name):
		case f.State == "fail":
			bad[f.Name] = "fail"
		case f.State == "warn" && bad[f.Name] == "" && f.Name != "disk" && f.Name != "descriptors":
			bad[f.Name] = "warn"
		}
	}
	return bad
}

// mustFind wants the checks of want, and no other, to be wrong, and the words in what is said about the first of them. It looks again for
// some time, and returns what was found last: doctor gives a check some seconds, and a busy machine may take more for what is well.
func mustFind(t *testing.T, look func() []finding, want map[string]string, check string, words ...string) []finding {
	t.Helper()
	for begin := time.Now(); ; {
		all := look()
		amiss := differs(all, want, check, words)
		if amiss == "" {
			return all
		}
		if time.Since(begin) > patience || t.Failed() {
			t.Error(amiss)
			for _, f := range all {
				t.Logf("%+v", f)
			}
			return all
		}
	}
}

// differs says what is amiss in the findings for mustFind.
func differs(all []finding, want map[string]string, check string, words []string) string {
	if got := wrong(all); !maps.Equal(got, want) {
		return fmt.Sprintf("wrong are %v, want %v", got, want)
	}
	text := ""
	for _, f := range all {
		if f.Name == check && (f.State == "fail" || f.State == "warn") {
			text += f.Found + " → " + f.Hint + "\n"
		}
	}
	for _, word := range words {
		if !strings.Contains(text, word) {
			return fmt.Sprintf("%s does not say %q:\n%s", check, word, text)
		}
	}
	return ""
}

// silent is a port of this machine that answers no SYN: its queue is full. It returns the address.
func silent(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := loopback(at.(*unix.SockaddrInet4).Port)
	for unanswered := 0; unanswered < 3; unanswered++ { // a busy machine may lose a SYN by itself
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil {
			unanswered = 0
			t.Cleanup(func() { c.Close() })
		}
	}
	return addr
}

// TestDoctorWay: what stands between a bridge and its proxy is named, and nothing else is.
func TestDoctorWay(t *testing.T) {
	t.Parallel()
	proxy := startProxy(t)
	token := proxy.defaultToken()
	target := strconv.Itoa(serve(t, echo))
	other := startProxy(t)
	removed := addKey(t, proxy.state, "removed", "tcp/9000")
	runReverser(t, "key", "remove", "removed", "--state", proxy.state)
	server := strconv.Itoa(serveHTTP(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }))
	overTLS := serve(t, func(c *net.TCPConn) {
		tls.Server(c, &tls.Config{Certificates: []tls.Certificate{selfSigned(t)}}).Handshake()
	})
	ssh := serve(t, func(c *net.TCPConn) {
		io.WriteString(c, "SSH-2.0-OpenSSH_9.9\x1b[31m\r\n")
		io.Copy(io.Discard, c)
	})
	mute := serve(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	barred := serveHTTP(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Proxy-Authenticate", "Basic realm=x")
		w.WriteHeader(http.StatusProxyAuthRequired)
	})
	cases := []struct {
		name  string
		token string
		args  []string
		wrong string // the check that fails; "": none
		words []string
	}{
		{"well", token, nil, "", nil},
		{"no such name", token, []string{"--proxy", "nosuchhost.invalid"}, "name", []string{"nosuchhost.invalid", "is the name right"}},
		{"nothing listens", token, []string{"--proxy", loopback(freePort(t))}, "link port", []string{"refused", "is `reverser proxy` running there"}},
		{"no answer", token, []string{"--proxy", silent(t)}, "link port", []string{"does not answer", "firewall"}},
		{"a web server", token, []string{"--proxy", "127.0.0.1:" + server}, "identity", []string{"a web server", "check host and port"}},
		{"a web server over TLS", token, []string{"--proxy", loopback(overTLS)}, "identity", []string{"a server of TLS 1.3 with a certificate for", "check"}},
		{"an SSH server", token, []string{"--proxy", loopback(ssh)}, "identity", []string{"an SSH server", `"SSH-2.0-OpenSSH_9.9\x1b[31m"`, "check host and port"}},
		{"a mute server", token, []string{"--proxy", loopback(mute)}, "identity", []string{"handshake"}},
		{"another proxy", token, []string{"--proxy", loopback(other.link)}, "identity", []string{"another reverser proxy", "check the address"}},
		{"a removed key", removed, []string{"--proxy", loopback(proxy.link)}, "key", []string{"refused the key", "`reverser key add`"}},
		{"a way out that wants a password", token, []string{"--via", "http://" + loopback(barred), "--proxy", "192.0.2.1:3010"}, "way out", []string{"407", "user and password"}},
		{"a way out of another kind", token, []string{"--via", "socks5://" + loopback(mute), "--proxy", "192.0.2.1:3010"}, "way out", []string{"did not answer", "another kind"}},
		{"a way out that is not there", token, []string{"--via", "socks5://" + loopback(freePort(t)), "--proxy", "192.0.2.1:3010"}, "way out", []string{"refused", "--via none"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			state := filepath.Join(t.TempDir(), "state")
			look := func() []finding {
				return doctor(t, append([]string{"bridge", c.token, "9000=" + target, "--state", state}, c.args...)...)
			}
			want := map[string]string{}
			if c.wrong != "" {
				want[c.wrong] = "fail"
			}
			mustFind(t, look, want, c.wrong, c.words...)
			if _, err := os.Stat(state); err == nil {
				t.Error("doctor made the state directory")
			}
		})
	}
}

// TestDoctorLeavesLinksAlone: a key is tried without a session, so whoever uses it goes on.
func TestDoctorLeavesLinksAlone(t *testing.T) {
	t.Parallel()
	tun := startTunnel(t, strconv.Itoa(serve(t, echo)))
	c := tun.dial(t)
	exchange(t, c, "before")
	for range 3 {
		mustFind(t, func() []finding {
			return doctor(t, "bridge", tun.token, "9000="+strconv.Itoa(serve(t, echo)), "--state", t.TempDir())
		}, map[string]string{"key": "fail"}, "key", "accepted, and in use", "another live bridge", "a key of its own")
	}
	all := mustFind(t, func() []finding {
		return doctor(t, "bridge", tun.token, "9000="+strconv.Itoa(serve(t, echo)), "--state", tun.bridge.state)
	}, map[string]string{}, "")
	if !slices.ContainsFunc(all, func(f finding) bool { return f.Name == "link" && strings.Contains(f.Found, "left alone") }) {
		t.Errorf("nothing says that the link of the running process is left alone: %+v", all)
	}
	mustFind(t, func() []finding { return doctor(t, "--state", tun.bridge.state) }, map[string]string{}, "")
	mustFind(t, func() []finding { return doctor(t, "--state", tun.proxy.state) }, map[string]string{}, "")
	exchange(t, c, "after")
	if st := mustStatus(t, tun.proxy.state); len(st.Links) != 1 || st.Links[0].Resumes != 0 {
		t.Errorf("links behind doctor: %+v; want the one of before", st.Links)
	}
	if n := len(tun.proxy.Records("pair created")); n != 1 {
		t.Errorf("%d pairs; want 1: a look is no user", n)
	}
}

// TestDoctorOfRunning: a process that runs says what is wrong with it.
func TestDoctorOfRunning(t *testing.T) {
	t.Parallel()
	proxy := startProxy(t)
	token := addKey(t, proxy.state, "nas", "tcp/1024-65535")
	holder, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	held := holder.Addr().(*net.TCPAddr).Port
	target := strconv.Itoa(serve(t, echo))

	first := startBridge(t, token, fmt.Sprintf("127.0.0.1:%d=%s", held, target))
	public := fmt.Sprintf("tcp/127.0.0.1:%d", held)
	first.awaitService(public, "retrying")
	t.Run("a port that another program has", func(t *testing.T) {
		mustFind(t, func() []finding { return doctor(t, "--state", first.state) }, map[string]string{"services": "fail"}, "services", public, "address already in use", "says who has the port")
		own := strconv.Itoa(os.Getpid())
		mustFind(t, func() []finding { return doctor(t, "--state", proxy.state) }, map[string]string{"services": "fail"}, "services", public, "(pid "+own+")")
	})
	t.Run("a second bridge with the key", func(t *testing.T) {
		second := startBridge(t, token, "9100="+target)
		eventually(t, "the second bridge is refused", func() bool {
			return strings.Contains(second.Stderr.String(), "another live bridge holds this key")
		})
		all := mustFind(t, func() []finding {
			return slices.DeleteFunc(doctor(t, "--state", second.state), func(f finding) bool { return f.Name == "services" }) // which are away with the link
		}, map[string]string{"link": "fail", "key": "fail"}, "link", "another live bridge holds this key", "give each bridge a key of its own")
		if !slices.ContainsFunc(all, func(f finding) bool { return f.Name == "key" && strings.Contains(f.Found, "accepted, and in use") }) {
			t.Errorf("the key is said to be in use nowhere: %+v", all)
		}
	})
}

// TestDoctorOfPolicies: what a key may not have is named at both ends. The proxy's part of it is well.
func TestDoctorOfPolicies(t *testing.T) {
	t.Parallel()
	proxy := startProxy(t)
	port, target := freePort(t), strconv.Itoa(serve(t, echo))
	token := addKey(t, proxy.state, "narrow", fmt.Sprintf("tcp/%d", port))
	mustFind(t, func() []finding {
		return doctor(t, "bridge", token, fmt.Sprintf("%d=%s", port, target), "80="+target, "--state", t.TempDir())
	}, map[string]string{"services": "fail"}, "services", `tcp/80 denied: the policy of key "narrow" allows`, "key edit")
	b := startBridge(t, token, fmt.Sprintf("%d=%s", port, target), "80="+target)
	b.awaitUp(fmt.Sprintf("tcp/%d", port))
	b.awaitService("tcp/80", "denied")
	mustFind(t, func() []finding { return doctor(t, "--state", b.state) }, map[string]string{"services": "fail"}, "services", "tcp/80 is denied", `the policy of key "narrow"`, "key edit")
	mustFind(t, func() []finding { return doctor(t, "--state", proxy.state) }, map[string]string{"services": "warn"}, "services", "tcp/80 is denied (key narrow)")
	other := addKey(t, proxy.state, "other", "tcp/1024-65535")
	mustFind(t, func() []finding {
		return doctor(t, "bridge", other, fmt.Sprintf("%d=%s", port, target), "--state", t.TempDir())
	}, map[string]string{"services": "fail"}, "services", fmt.Sprintf("tcp/%d is held by another key", port))
}

// TestDoctorOfExpiry: a key whose time is over, or soon will be.
func TestDoctorOfExpiry(t *testing.T) {
	t.Parallel()
	proxy := startProxy(t)
	target := strconv.Itoa(serve(t, echo))
	token := addKey(t, proxy.state, "guest", "tcp/9000")
	b := func() []finding { return doctor(t, "bridge", token, "9000="+target, "--state", t.TempDir()) }
	runReverser(t, "key", "edit", "guest", "--expires", "2d", "--state", proxy.state)
	mustFind(t, b, map[string]string{}, "")
	mustFind(t, func() []finding { return doctor(t, "--state", proxy.state) }, map[string]string{"keys": "warn", "links": "warn"}, "keys", "key guest expires at", "`reverser key edit guest --expires 30d`")
	runReverser(t, "key", "edit", "guest", "--expires", "1s", "--state", proxy.state)
	mustFind(t, b, map[string]string{"key": "fail"}, "key", "the key expired at", "at the proxy, `reverser key edit NAME --expires 30d`")
	mustFind(t, func() []finding { return doctor(t, "--state", proxy.state) }, map[string]string{"keys": "warn", "links": "warn"}, "keys", "key guest expired at", "its bridge is refused")
}

// TestDoctorWayOfRunning: beside a bridge that runs and whose link is down, the way is gone step by step too. The process goes it: doctor
// has no token.
func TestDoctorWayOfRunning(t *testing.T) {
	t.Parallel()
	target := strconv.Itoa(serve(t, echo))
	// steps wants the steps before the one that fails to be well, and those behind it not to be looked at.
	steps := func(t *testing.T, b *bridgeProcess, fails string, words ...string) {
		t.Helper()
		eventually(t, "the link is down", func() bool {
			st := mustStatus(t, b.state)
			return len(st.Links) == 1 && st.Links[0].State == "down"
		})
		all := mustFind(t, func() []finding {
			return slices.DeleteFunc(doctor(t, "--state", b.state), func(f finding) bool { return f.Name == "services" }) // which are away with the link
		}, map[string]string{"link": "fail", fails: "fail"}, fails, words...)
		state := "ok"
		for _, step := range []string{"name", "way out", "route", "link port", "identity", "key"} {
			want := state
			if step == fails {
				want, state = "fail", "skip"
			}
			if !slices.ContainsFunc(all, func(f finding) bool { return f.Name == step && f.State == want }) {
				t.Errorf("%s is not %s: %+v", step, want, all)
			}
		}
		for _, f := range all {
			if strings.Contains(f.Found+f.Hint, "rv1_") {
				t.Errorf("%+v shows a token", f)
			}
		}
	}
	t.Run("a stopped proxy, and another one in its place", func(t *testing.T) {
		t.Parallel()
		proxy := startProxy(t)
		b := startBridge(t, addKey(t, proxy.state, "nas", "tcp/1024-65535"), fmt.Sprintf("%d=%s", freePort(t), target))
		eventually(t, "the link is up", func() bool {
			st, err := statusOf(t, b.state)
			return err == nil && len(st.Links) == 1 && st.Links[0].State == "up"
		})
		proxy.Kill()
		steps(t, b, "link port", "refused", "is `reverser proxy` running there")
		startProxyAt(t, t.TempDir(), proxy.link)
		steps(t, b, "identity", "another reverser proxy", "check the address")
	})
	t.Run("a firewall that drops", func(t *testing.T) {
		t.Parallel()
		proxy := startProxy(t)
		b := startBridge(t, addKey(t, proxy.state, "nas", "tcp/1024-65535"), fmt.Sprintf("%d=%s", freePort(t), target), "--proxy", silent(t))
		eventually(t, "the bridge tells its status", func() bool { _, err := statusOf(t, b.state); return err == nil })
		steps(t, b, "link port", "does not answer", "firewall")
	})
	t.Run("a removed key", func(t *testing.T) {
		t.Parallel()
		proxy := startProxy(t)
		token := addKey(t, proxy.state, "nas", "tcp/1024-65535")
		runReverser(t, "key", "remove", "nas", "--state", proxy.state)
		b := startBridge(t, token, fmt.Sprintf("%d=%s", freePort(t), target))
		eventually(t, "the bridge tells its status", func() bool { _, err := statusOf(t, b.state); return err == nil })
		steps(t, b, "key", "refused the key")
	})
}

// TestDoctorOfPublicPorts: the proxy tries its ports at the address that tokens carry. The target hears nothing of it.
func TestDoctorOfPublicPorts(t *testing.T) {
	t.Parallel()
	proxy := startProxy(t)
	port, local, told := freePort(t), freePort(t), make(chan string, 100)
	target := strconv.Itoa(serve(t, func(c *net.TCPConn) {
		told <- c.RemoteAddr().String()
		echo(c)
	}))
	b := startBridge(t, addKey(t, proxy.state, "nas", "tcp/1024-65535"), fmt.Sprintf("%d=%s", port, target), fmt.Sprintf("127.0.0.1:%d=%s", local, target))
	b.awaitUp(fmt.Sprintf("tcp/%d", port), fmt.Sprintf("tcp/127.0.0.1:%d", local))
	for range 3 {
		all := mustFind(t, func() []finding { return doctor(t, "--state", proxy.state) }, map[string]string{}, "")
		for _, want := range []struct{ state, found string }{
			{"ok", "1 of 1 answered when this machine dialled them as users do"}, {"skip", "1 service not tried: it is bound to an address that only this machine reaches"},
		} {
			if !slices.ContainsFunc(all, func(f finding) bool {
				return f.Name == "public ports" && f.State == want.state && strings.Contains(f.Found, want.found)
			}) {
				t.Errorf("nothing says %q: %+v", want.found, all)
			}
		}
	}
	if n := len(proxy.Records("pair created")); n != 0 || len(told) > 0 {
		t.Errorf("%d pairs, %d connections at the target; want none of both", n, len(told))
	}
}

// TestDoctorOfPublicNames: the proxy tries the ports of names at the address that tokens carry, and looks at the certificates that are shown
// there. The targets hear nothing of it.
func TestDoctorOfPublicNames(t *testing.T) {
	t.Parallel()
	dir, web, secure, told := t.TempDir(), freePort(t), freePort(t), make(chan string, 100)
	target := serve(t, func(c *net.TCPConn) {
		told <- c.RemoteAddr().String()
		echo(c)
	})
	chain, key := acmetest.Certificate(t, "localhost")
	roots := writeFile(t, filepath.Join(dir, "chain.pem"), string(chain))
	writeFile(t, filepath.Join(dir, "key.pem"), string(key))
	conf := writeFile(t, filepath.Join(dir, "proxy.toml"), "[[certificate]]\nchain = \"chain.pem\"\nkey = \"key.pem\"\n")
	proxy := &proxyProcess{state: t.TempDir(), link: freePort(t)}
	proxy.testProcess = startReverser(t, "proxy", []string{"SSL_CERT_FILE=" + roots}, "proxy", "--listen", loopback(proxy.link), "--state", proxy.state, "--log-format", "json",
		"--config", conf, "--http", fmt.Sprintf(":%d", web), "--https", fmt.Sprintf(":%d", secure))
	proxy.awaitReady()
	b := startBridge(t, addKey(t, proxy.state, "nas", "http/*", "https/*", "tls/*"), fmt.Sprintf("http/*=%d", target), fmt.Sprintf("https/localhost=%d", target), fmt.Sprintf("tls/*=%d", target))
	b.awaitUp("http/*", "https/localhost", "tls/*")
	all := mustFind(t, func() []finding { return doctor(t, "--state", proxy.state) }, map[string]string{"certificates": "warn"}, "certificates", "expires on") // it is valid for a day
	for _, want := range []finding{
		{"", "public names", "ok", fmt.Sprintf("--http at %s and --https at %s answered", loopback(web), loopback(secure)), ""},
		{"", "public names", "ok", "the certificate that users of localhost are shown is valid until ", ""},
		{"", "names", "ok", "1 name leads to this machine: localhost", ""},
		{"", "names", "skip", "2 services with a * not looked up", ""},
	} {
		if !slices.ContainsFunc(all, func(f finding) bool {
			return f.Name == want.Name && f.State == want.State && strings.Contains(f.Found, want.Found)
		}) {
			t.Errorf("nothing says %q: %+v", want.Found, all)
		}
	}
	if n := len(proxy.Records("pair created")); n != 0 || len(told) > 0 {
		t.Errorf("%d pairs, %d connections at the target; want none of both", n, len(told))
	}
}

// TestDoctorOfAdvertised: tokens carry an address where another proxy is, or nobody.
func TestDoctorOfAdvertised(t *testing.T) {
	t.Parallel()
	other := startProxy(t)
	elsewhere := startProxy(t, "--advertise", loopback(other.link))
	mustFind(t, func() []finding { return doctor(t, "--state", elsewhere.state) }, map[string]string{"advertised": "fail", "links": "warn"}, "advertised",
		loopback(other.link)+" leads to something else", "the TLS server there is not the proxy", "--advertise")
	nowhere := loopback(freePort(t))
	silent := startProxy(t, "--advertise", nowhere)
	mustFind(t, func() []finding { return doctor(t, "--state", silent.state) }, map[string]string{"advertised": "warn", "links": "warn"}, "advertised", nowhere+" does not answer this machine", "is the port open in the firewall?")
}

// TestDoctorOfTargets: targets that do not answer are named, each with what it mostly means.
func TestDoctorOfTargets(t *testing.T) {
	t.Parallel()
	proxy := startProxy(t)
	token := proxy.defaultToken()
	down, far, good := loopback(freePort(t)), silent(t), serve(t, echo)
	all := mustFind(t, func() []finding {
		return doctor(t, "bridge", token, "9000="+down, "9001="+far, fmt.Sprintf("9002=%d", good), "9003=unix:/nowhere/at.all", "--state", t.TempDir())
	}, map[string]string{"targets": "fail"}, "targets",
		down+", where tcp/9000 leads, refused the connection → nothing listens there", far+", where tcp/9001 leads, does not answer → is the machine on",
		"unix:/nowhere/at.all, where tcp/9003 leads, cannot be reached: no such file or directory → is the service running")
	if !slices.ContainsFunc(all, func(f finding) bool {
		return f.Name == "targets" && f.State == "ok" && strings.Contains(f.Found, "1 of 4 answer: "+loopback(good))
	}) {
		t.Errorf("nothing says that one answers: %+v", all)
	}

	args := []string{"bridge", token, "--state", t.TempDir()}
	for i := range 2000 {
		args = append(args, fmt.Sprintf("%d=127.77.%d.%d:%s", 20000+i, i/250, 1+i%250, portOf(down)))
	}
	all = mustFind(t, func() []finding { return doctor(t, args...) }, map[string]string{"targets": "fail"}, "targets", "more targets do not answer")
	// How many were dialled in the time that there is depends on the machine. All are accounted for.
	told, more, left := 0, 0, 0
	for _, f := range all {
		switch {
		case f.Name != "targets":
		case strings.Contains(f.Found, "more targets do not answer"):
			fmt.Sscan(f.Found, &more)
		case f.State == "skip":
			fmt.Sscan(f.Found, &left)
		default:
			told++
		}
	}
	if told != 10 || told+more+left != 2000 {
		t.Errorf("%d targets are named, %d more do not answer, %d were not looked at; want 10, and 2000 together", told, more, left)
	}
}

// portOf is the port of an address.
func portOf(addr string) string {
	_, port, _ := net.SplitHostPort(addr)
	return port
}

// publicProgram is reverser where every user can run it. A copy could not be run for as long as another test starts a program.
func publicProgram(t *testing.T) string {
	t.Helper()
	to := filepath.Join(publicDir(t), "reverser")
	if err := os.Link(reverser(t), to); err != nil {
		t.Fatal(err)
	}
	return to
}

// TestDoctorOfSurroundings: what is wrong with settings, state directory, ports, certificates, descriptors and disk.
func TestDoctorOfSurroundings(t *testing.T) {
	t.Parallel()
	proxy := startProxy(t)
	token := proxy.defaultToken()
	target := strconv.Itoa(serve(t, echo))
	bridge := func(state string) []string { return []string{"bridge", token, "9000=" + target, "--state", state} }

	t.Run("settings", func(t *testing.T) {
		file := writeFile(t, filepath.Join(t.TempDir(), "bridge.toml"), "listne = 3\n[[expose]]\npublic = \"9000\"\n")
		mustFind(t, func() []finding { return doctor(t, "bridge", token, "--config", file, "--state", t.TempDir()) }, map[string]string{"settings": "fail"}, "settings", file+":1", "listne")
	})
	t.Run("state directory open to all", func(t *testing.T) {
		dir := makeDir(t, filepath.Join(t.TempDir(), "state"))
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		mustFind(t, func() []finding { return doctor(t, bridge(dir)...) }, map[string]string{"state": "fail"}, "state", "can write it (mode 0777)", "chmod go-w "+dir)
	})
	t.Run("state directory of another user", func(t *testing.T) {
		if os.Geteuid() != 0 {
			lacks(t, "only root makes a directory of another user")
		}
		dir := makeDir(t, filepath.Join(publicDir(t), "state"))
		if err := os.Chown(dir, 12345, 12345); err != nil {
			t.Fatal(err)
		}
		program := publicProgram(t)
		look := func() []finding {
			return doctorBy(t, func(cmd *exec.Cmd) {
				cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 23456, Gid: 23456}
				cmd.Dir = "/"
			}, program, append([]string{"doctor"}, bridge(dir)...)...)
		}
		mustFind(t, look, map[string]string{"state": "fail"}, "state", "belongs to", "12345", "chown")
	})
	t.Run("state directory in use", func(t *testing.T) {
		mustFind(t, func() []finding { return doctor(t, "proxy", "--listen", loopback(freePort(t)), "--state", proxy.state) },
			map[string]string{"links": "warn"}, "links", "no bridge is connected")
	})
	t.Run("a port of the proxy that another program has", func(t *testing.T) {
		addr := loopback(proxy.link)
		mustFind(t, func() []finding { return doctor(t, "proxy", "--listen", addr, "--state", t.TempDir()) }, map[string]string{"ports": "fail"}, "ports", addr, "address already in use",
			fmt.Sprintf("(pid %d)", proxy.Cmd.Process.Pid), "another process has that port")
	})
	t.Run("few descriptors", func(t *testing.T) {
		args := append([]string{"-c", `ulimit -n 40; exec "$@"`, "sh", reverser(t), "doctor"}, bridge(t.TempDir())...)
		mustFind(t, func() []finding { return doctorBy(t, nil, "/bin/sh", args...) }, map[string]string{"descriptors": "fail"}, "descriptors", "may have 40 open", "ulimit -n")
	})
	t.Run("an expired certificate", func(t *testing.T) {
		dir := t.TempDir()
		cert, key, _ := certificateUntil(t, dir, "old.example", time.Now().Add(-time.Hour))
		file := writeFile(t, filepath.Join(dir, "proxy.toml"), fmt.Sprintf("https = %q\n[[certificate]]\nchain = %q\nkey = %q\n", loopback(freePort(t)), cert, key))
		mustFind(t, func() []finding {
			return doctor(t, "proxy", "--config", file, "--listen", loopback(freePort(t)), "--state", filepath.Join(dir, "state"))
		}, map[string]string{"certificates": "fail"}, "certificates", cert, "has expired on", "get a new one")
	})
	t.Run("a full disk", func(t *testing.T) {
		full, root := startProxyOnDisk(t, "64k")
		fillDisk(t, root)
		mustFind(t, func() []finding {
			return doctorBy(t, nil, "nsenter", append([]string{"-t", strconv.Itoa(full.Cmd.Process.Pid), "-U", "-m", "--preserve-credentials", reverser(t), "doctor"}, "--state", strings.TrimPrefix(full.state, fmt.Sprintf("/proc/%d/root", full.Cmd.Process.Pid)))...)
		}, map[string]string{"disk": "fail", "links": "warn"}, "disk", "no space left", "make room")
	})
	t.Run("no network", func(t *testing.T) {
		if out, err := exec.Command("unshare", "-rn", "true").CombinedOutput(); err != nil {
			lacks(t, fmt.Sprintf("no network of its own: %v: %s", err, out))
		}
		socket := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		serveUnix(t, l)
		mustFind(t, func() []finding {
			return doctorBy(t, nil, "unshare", "-rn", reverser(t), "doctor", "bridge", token, "9000=unix:"+socket, "--proxy", "192.0.2.1:3010", "--state", t.TempDir())
		}, map[string]string{"route": "fail"}, "route", "this machine has no way to 192.0.2.1", "ip route")
	})
	t.Run("nothing runs", func(t *testing.T) {
		out, err := exec.Command(reverser(t), "doctor", "--state", t.TempDir()).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "no reverser process is running") || !strings.Contains(string(out), "`reverser doctor bridge TOKEN 9000`") {
			t.Errorf("doctor = %v: %s", err, out)
		}
	})
}

// serveUnix accepts connections until the end of the test, and closes them.
func serveUnix(t *testing.T, l net.Listener) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
}

// TestDoctorOfNames: a name whose addresses are not of this machine.
func TestDoctorOfNames(t *testing.T) {
	t.Parallel()
	proxy := startProxy(t, "--http", loopback(freePort(t)), "--https", loopback(freePort(t)), "--acme-directory", "https://"+loopback(freePort(t)), "--advertise", "127.0.0.1")
	b := startBridge(t, addKey(t, proxy.state, "web", "http/*", "https/*"), "http/192.0.2.7="+strconv.Itoa(serve(t, echo)), "http/127.0.0.1="+strconv.Itoa(serve(t, echo)), "https/192.0.2.8=1", "--proxy", loopback(proxy.link))
	b.awaitUp("http/192.0.2.7", "http/127.0.0.1", "https/192.0.2.8")
	all := mustFind(t, func() []finding { return doctor(t, "--state", proxy.state) }, map[string]string{"names": "fail", "certificates": "fail"}, "names",
		"192.0.2.7 leads to 192.0.2.7, which is no address of this machine", "192.0.2.8 leads to 192.0.2.8", "correct its A and AAAA records")
	if !slices.ContainsFunc(all, func(f finding) bool {
		return f.Name == "names" && f.State == "ok" && strings.Contains(f.Found, "127.0.0.1")
	}) {
		t.Errorf("nothing says that a name leads here: %+v", all)
	}
}
