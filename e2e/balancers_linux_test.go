package e2e

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Balancers in front of the proxy that say whose connection one is, and servers behind the bridge that are told.

// balancerIP is where the balancers of these tests connect from, and nobody else.
const balancerIP = "127.0.0.9"

// dialFrom is dial from another address of this machine.
func dialFrom(t *testing.T, ip, addr string) *net.TCPConn {
	t.Helper()
	d := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
	c, err := d.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

// startHAProxy starts HAProxy with these sections, waits until it listens, and returns its socket for statistics.
func startHAProxy(t *testing.T, port int, sections string) (stats string) {
	t.Helper()
	dir := t.TempDir()
	stats = filepath.Join(dir, "stats")
	conf := writeFile(t, filepath.Join(dir, "haproxy.cfg"), fmt.Sprintf(`global
	stats socket %s mode 600 level admin
defaults
	timeout connect 10s
	timeout client 90s
	timeout server 90s
%s`, stats, sections))
	start(t, "haproxy", haproxy.path(t), nil, "-db", "-f", conf).awaitListener(port)
	return stats
}

// TestBalancersInFront: HAProxy says with both versions of the header whose connection one is, on a port and on a name, and checks the
// port in every way that it has. Who does not come through it is who they are.
func TestBalancersInFront(t *testing.T) {
	t.Parallel()
	need(t, haproxy)
	https, public := freePort(t), freePort(t)
	p := startProxy(t, "--https", loopback(https), "--proxy-protocol-from", balancerIP)
	service := fmt.Sprintf("tcp/%d", public)
	b := startBridge(t, addKey(t, p.state, "nas", service, "tls/*"), fmt.Sprintf("%d=%d", public, serve(t, echo)),
		fmt.Sprintf("tls/a.example=%d", serve(t, func(c *net.TCPConn) { c.Read(make([]byte, 1)) })), "--proxy", loopback(p.link))
	b.awaitUp(service, "tls/a.example")
	front := map[string]int{"send-proxy": freePort(t), "send-proxy-v2": freePort(t), "names": freePort(t)}
	stats := startHAProxy(t, front["names"], fmt.Sprintf(`	mode tcp
	source %[1]s
	default-server inter 50ms fall 1
listen v1
	bind 127.0.0.1:%[4]d
	server tunnel %[2]s send-proxy
listen v2
	bind 127.0.0.1:%[5]d
	server tunnel %[2]s send-proxy-v2 proxy-v2-options crc32c,authority
listen checks
	bind 127.0.0.1:%[7]d
	server bare %[2]s check
	server own %[2]s send-proxy-v2 check
listen talks
	bind 127.0.0.1:%[8]d
	option tcp-check
	tcp-check send PING
	tcp-check expect string PING
	server own %[2]s send-proxy check
listen names
	bind 127.0.0.1:%[6]d
	server tunnel %[3]s send-proxy-v2
`, balancerIP, loopback(public), loopback(https), front["send-proxy"], front["send-proxy-v2"], front["names"], freePort(t), freePort(t)))

	users := make(map[string]bool)
	for how, port := range front {
		for i := range 5 {
			user := dialFrom(t, fmt.Sprintf("127.0.1.%d", i+1), loopback(port))
			name := service
			switch {
			case how == "names":
				name = "tls/a.example"
				go tls.Client(user, &tls.Config{ServerName: "a.example"}).Handshake() // which ends with the connection
			case i > 0: // else one who never says anything
				exchange(t, user, how)
			}
			users[user.LocalAddr().String()] = true
			for _, side := range []*testProcess{p.testProcess, b.testProcess} {
				side.awaitRecord("pair created", "client", user.LocalAddr().String(), "service", name)
			}
			if how == "names" {
				continue
			}
			user.CloseWrite()
			if n, err := io.Copy(io.Discard, user); n != 0 || err != nil {
				t.Errorf("%s: at the end %d bytes more, %v", how, n, err)
			}
		}
	}
	direct := dialFrom(t, "127.0.0.8", loopback(public))
	exchange(t, direct, "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
	users[direct.LocalAddr().String()] = true

	eventually(t, "HAProxy has checked the tunnel by words ten times", func() bool { return len(p.Records("pair released", "client", "", "sent", 4.0, "received", 4.0)) >= 10 })
	text := haproxyStats(t, stats)
	if strings.Count(text, ",UP,") != 3 || strings.Count(text, ",L4OK,") != 2 || strings.Count(text, ",L7OK,") != 1 {
		t.Errorf("HAProxy does not call the tunnel up by all checks:\n%s", text)
	}
	for _, r := range p.Records("pair created") {
		if client := r.Text("client"); client != "" && !users[client] {
			t.Errorf("a pair of %q, who is no user", client)
		}
	}
	for _, r := range p.Records("pair released", "client", "") {
		if r.Number("sent") != 4 {
			t.Errorf("a check that says nothing has become a pair: %v", r)
		}
	}
	for _, said := range []string{"connections from an address of proxy_protocol_from", "client refused"} {
		if n := len(p.Said(said)); n != 0 {
			t.Errorf("%d lines that say %q, want none", n, said)
		}
	}
}

// TestBalancerWithoutHeader: what comes from a balancer's address without a header is reset and told.
func TestBalancerWithoutHeader(t *testing.T) {
	t.Parallel()
	public := freePort(t)
	p := startProxy(t, "--proxy-protocol-from", "127.0.0.0/8") // the bridge's own address, too
	service := fmt.Sprintf("tcp/%d", public)
	b := startBridge(t, addKey(t, p.state, "nas", service), fmt.Sprintf("%d=%d", public, serve(t, echo)), "--proxy", loopback(p.link))
	b.awaitUp(service)
	if r := b.awaitRecord("service up", "service", service); r.Text("public") != loopback(public) {
		t.Errorf("the bridge has not proven its port: %v", r)
	}
	c := dial(t, loopback(public))
	io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
	wantReset(t, c, 0)
	if r := p.awaitRecord("connections from an address of proxy_protocol_from without a header of the PROXY protocol, reset"); !strings.Contains(r.Text("last_err"), `"GET / `) {
		t.Errorf("the line is %v", r)
	}
}
