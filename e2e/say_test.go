package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Both sides say once per connection that a pair was created and released.
func TestPairLines(t *testing.T) {
	t.Parallel()
	port := serve(t, func(c *net.TCPConn) {
		n, _ := io.Copy(io.Discard, c)
		io.Copy(c, newPattern(2*n))
	})
	tun := startTunnel(t, strconv.Itoa(port))
	const conns = 5
	sizes := make(map[string]int64) // client → bytes it sends
	for i := range conns {
		c := tun.dial(t)
		n := int64(1000 * (i + 1))
		sizes[c.LocalAddr().String()] = n
		io.Copy(c, newPattern(n))
		c.CloseWrite()
		if got, err := readPattern(c); got != 2*n || err != nil {
			t.Fatalf("read %d bytes, then %s; want %d, then a clean end", got, describe(err), 2*n)
		}
		c.Close()
	}
	for _, side := range []*testProcess{tun.proxy.testProcess, tun.bridge.testProcess} {
		for client, sent := range sizes {
			created := side.awaitRecord("pair created", "client", client)
			released := side.awaitRecord("pair released", "client", client)
			for _, r := range []record{created, released} {
				if r.Text("service") != tun.service || r.Text("target") != loopback(port) {
					t.Errorf("%s: service %v, target %v; want %s, %s", side.Name, r["service"], r["target"], tun.service, loopback(port))
				}
			}
			if s, r := released.Number("sent"), released.Number("received"); s != float64(sent) || r != float64(2*sent) {
				t.Errorf("%s: sent %v, received %v; want %d, %d", side.Name, released["sent"], released["received"], sent, 2*sent)
			}
			if d := released.Number("duration"); d <= 0 || d > patience.Seconds() {
				t.Errorf("%s: duration %v; want seconds", side.Name, released["duration"])
			}
			if released.Text("reason") == "" || released.Number("resumes") != 0 {
				t.Errorf("%s: reason %v, resumes %v; want a reason and 0", side.Name, released["reason"], released["resumes"])
			}
		}
		for _, msg := range []string{"pair created", "pair released"} {
			if got := len(side.Records(msg)); got != conns {
				t.Errorf("%s said %q %d times; want %d", side.Name, msg, got, conns)
			}
		}
		for line := range bytes.Lines(side.Stderr.Bytes()) {
			if bytes.HasSuffix(line, []byte("\n")) && !json.Valid(line) { // the last one may have come in part
				t.Errorf("%s wrote a line that is not JSON: %s", side.Name, line)
			}
		}
	}
}

// A connection that ends badly is said once too, with another reason.
func TestPairLinesOfFailures(t *testing.T) {
	t.Parallel()
	tun := startTunnel(t, strconv.Itoa(serve(t, func(c *net.TCPConn) {
		io.ReadFull(c, make([]byte, 1))
		c.SetLinger(0)
	})))
	c := tun.dial(t)
	c.Write([]byte("x"))
	wantReset(t, c, 0)
	client := c.LocalAddr().String()
	for _, side := range []*testProcess{tun.proxy.testProcess, tun.bridge.testProcess} {
		reset := side.awaitRecord("pair released", "client", client)
		if side.awaitRecord("pair created", "client", client); len(side.Records("pair created")) != 1 || len(side.Records("pair released")) != 1 {
			t.Errorf("%s said it more than once", side.Name)
		}
		t.Logf("%s: reason %v", side.Name, reset["reason"])
		if reset.Text("reason") == "" {
			t.Errorf("%s gave no reason", side.Name)
		}
	}
}

func TestStatus(t *testing.T) {
	t.Parallel()
	port := serve(t, echo)
	tun := startTunnel(t, strconv.Itoa(port))
	c := tun.dial(t)
	client := c.LocalAddr().String()
	exchange(t, c, "hello")
	sent := int64(len("hello"))

	for _, side := range []struct{ role, state string }{{"proxy", tun.proxy.state}, {"bridge", tun.bridge.state}} {
		out := runReverser(t, "status", "--json", "--state", side.state)
		wantKeys(t, side.role, out)

		st := mustStatus(t, side.state)
		if st.Role != side.role || st.Version == "" || st.UptimeSeconds <= 0 {
			t.Errorf("role %q, version %q, uptime %v; want role %q", st.Role, st.Version, st.UptimeSeconds, side.role)
		}
		if len(st.Links) != 1 || len(st.Services) != 1 || len(st.Pairs) != 1 {
			t.Fatalf("%s: %d links, %d services, %d pairs; want 1 of each:\n%s", side.role, len(st.Links), len(st.Services), len(st.Pairs), out)
		}
		link, service, pair := st.Links[0], st.Services[0], st.Pairs[0]
		if link.State != "up" || link.Remote == "" || link.Key == "" || link.Since.IsZero() {
			t.Errorf("%s: link %+v", side.role, link)
		}
		if side.role == "proxy" && link.Key != "default" {
			t.Errorf("link of key %q; want default", link.Key)
		}
		if service.Public != tun.service || service.Target != loopback(port) || service.State != "up" || service.Connections != 1 {
			t.Errorf("%s: service %+v; want %s to %s, up, 1 connection", side.role, service, tun.service, loopback(port))
		}
		if pair.ID == "" || pair.Service != tun.service || pair.Client != client || pair.Target != loopback(port) || pair.State != "open" ||
			time.Since(pair.Since).Abs() > 10*time.Minute {
			t.Errorf("%s: pair %+v", side.role, pair)
		}
		exchange(t, c, "more")
		sent += int64(len("more"))
		eventually(t, side.role+" counts while the connection lives", func() bool { // bytes may be on their way before they are counted
			p := mustStatus(t, side.state).Pairs
			return len(p) == 1 && p[0].Sent == sent && p[0].Received == sent
		})
	}

	c.CloseWrite()
	io.Copy(io.Discard, c)
	eventually(t, "the pair is gone from both", func() bool {
		return len(mustStatus(t, tun.proxy.state).Pairs) == 0 && len(mustStatus(t, tun.bridge.state).Pairs) == 0
	})
}

func TestStatusOfHalfClosedPair(t *testing.T) {
	t.Parallel()
	tun := startTunnel(t, strconv.Itoa(serve(t, func(c *net.TCPConn) {
		io.Copy(io.Discard, c)
		io.WriteString(c, "read it all")
		io.ReadFull(c, make([]byte, 1))
		<-t.Context().Done()
	})))
	c := tun.dial(t)
	c.Write([]byte("x"))
	c.CloseWrite()
	if _, err := io.ReadFull(c, make([]byte, len("read it all"))); err != nil {
		t.Fatal(err)
	}
	for _, state := range []string{tun.proxy.state, tun.bridge.state} {
		eventually(t, "the pair is half-closed", func() bool {
			p := mustStatus(t, state).Pairs
			return len(p) == 1 && p[0].State == "half-closed"
		})
	}
}

func TestStatusWithoutProcess(t *testing.T) {
	t.Parallel()
	p := startReverser(t, "status", nil, "status", "--state", t.TempDir())
	if code := p.awaitEnd(); code != 1 {
		t.Errorf("exit code %d; want 1", code)
	}
	if p.Stderr.String() == "" {
		t.Error("status said nothing on stderr")
	}
}

// wantKeys checks that status --json has at least the keys that scripts rely on.
func wantKeys(t *testing.T, role, out string) {
	t.Helper()
	var got map[string]any
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("status --json of the %s: %v\n%s", role, err, out)
	}
	want := func(where string, m map[string]any, keys string) {
		for _, k := range strings.Fields(keys) {
			if _, ok := m[k]; !ok {
				t.Errorf("status --json of the %s: %s has no %q", role, where, k)
			}
		}
	}
	want("the document", got, "role version uptime_seconds links services pairs")
	for list, keys := range map[string]string{
		"links":    "key bridge remote state rtt_ms carriers resumes since",
		"services": "public target state connections",
		"pairs":    "id service client target sent received since state",
	} {
		entries, ok := got[list].([]any)
		if !ok || len(entries) == 0 {
			t.Errorf("status --json of the %s: %s is %v; want a list with one entry", role, list, got[list])
			continue
		}
		for i, e := range entries {
			want(fmt.Sprintf("%s[%d]", list, i), e.(map[string]any), keys)
		}
	}
}
