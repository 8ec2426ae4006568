package e2e

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// What stands between a bridge and its proxy: routers by name, and ports that are shared.

// TestSNIRouter: two proxies stand behind one port of HAProxy, which leads connections by the name in their ClientHello. The tokens
// carry that name.
func TestSNIRouter(t *testing.T) {
	t.Parallel()
	need(t, haproxy)
	front := freePort(t)
	var proxies [2]*proxyProcess
	rules, backends := "", ""
	for i := range proxies {
		name := fmt.Sprintf("proxy%d", i)
		p := startProxy(t, "--sni", name+".example", "--advertise", loopback(front))
		rules += fmt.Sprintf("\tuse_backend %s if { req.ssl_sni -i %[1]s.example }\n", name)
		backends += fmt.Sprintf("backend %s\n\tserver proxy %s\n", name, loopback(p.link))
		proxies[i] = p
	}
	conf := fmt.Sprintf(`defaults
	mode tcp
	timeout connect 10s
	timeout client 1m
	timeout server 1m
frontend links
	bind 127.0.0.1:%d
	tcp-request inspect-delay 5s
	tcp-request content accept if { req.ssl_hello_type 1 }
`, front) + rules + backends
	start(t, "haproxy", haproxy.path(t), nil, "-db", "-f", writeFile(t, filepath.Join(t.TempDir(), "haproxy.cfg"), conf)).awaitListener(front)
	for i, p := range proxies {
		public := freePort(t)
		token := addKey(t, p.state, "nas", fmt.Sprintf("tcp/%d", public))
		startBridge(t, token, fmt.Sprintf("%d=%d", public, serve(t, echo))).awaitUp(fmt.Sprintf("tcp/%d", public))
		exchange(t, dial(t, loopback(public)), "through proxy "+strconv.Itoa(i))
		if st := mustStatus(t, p.state); len(st.Links) != 1 {
			t.Errorf("proxy %d has %d links, want 1", i, len(st.Links))
		}
		// A name leads somewhere, and the pin says who is there.
		lost := startBridge(t, token, strconv.Itoa(public), "--sni", fmt.Sprintf("proxy%d.example", 1-i))
		if r := lost.awaitRecord("no connection to the proxy, trying again"); !strings.Contains(r.Text("err"), "not the proxy that this token was made for") {
			t.Errorf("with the other proxy's name: %s", r.Text("err"))
		}
	}
}
