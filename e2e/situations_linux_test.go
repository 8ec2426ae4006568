package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf16"

	"golang.org/x/net/dns/dnsmessage"

	"reverser/e2e/netlab"
)

// Machines and networks as people have them: names, addresses, limits, files.

var (
	iptables = program{"iptables", "iptables"}
	unshare  = program{"unshare", "util-linux"}
	prlimit  = program{"prlimit", "util-linux"}
	setpriv  = program{"setpriv", "util-linux"}
)

// needLab skips the test where there are no network namespaces; in CI it fails.
func needLab(t *testing.T) *netlab.Lab {
	t.Helper()
	if err := netlab.Available(); err != nil {
		lacks(t, err.Error())
	}
	lab, err := netlab.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(lab.Close)
	return lab
}

// nameTables are a machine's own /etc/hosts and /etc/resolv.conf.
type nameTables struct {
	t             *testing.T
	hosts, resolv string
}

func newNames(t *testing.T, hosts, resolv string) *nameTables {
	t.Helper()
	need(t, unshare)
	needRoot(t)
	dir := t.TempDir()
	return &nameTables{t, writeFile(t, filepath.Join(dir, "hosts"), hosts), writeFile(t, filepath.Join(dir, "resolv.conf"), resolv)}
}

// bridge starts a bridge where these names hold.
func (n *nameTables) bridge(token string, args ...string) *bridgeProcess {
	n.t.Helper()
	b := &bridgeProcess{state: n.t.TempDir()}
	b.testProcess = start(n.t, "bridge", unshare.path(n.t), nil, append([]string{"--mount", "sh", "-c",
		`mount --bind "$1" /etc/hosts && mount --bind "$2" /etc/resolv.conf && shift 2 && exec "$@"`, "sh", n.hosts, n.resolv,
		reverser(n.t), "bridge", token, "--state", b.state, "--log-format", "json"}, args...)...)
	return b
}

func listenAt(t *testing.T, addr string) (net.Listener, int) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return l, l.Addr().(*net.TCPAddr).Port
}

// answer serves one word to every connection.
func answer(word string) func(*net.TCPConn) {
	return func(c *net.TCPConn) { io.WriteString(c, word) }
}

func ask(t *testing.T, addr string) string {
	t.Helper()
	c := dial(t, addr)
	defer c.Close()
	word, err := io.ReadAll(c)
	if err != nil {
		return err.Error()
	}
	return string(word)
}

// A program that listens at ::1 alone is what localhost means there, whatever else it means.
func TestLocalhostIsIPv6(t *testing.T) {
	t.Parallel()
	n := newNames(t, "127.0.0.1 localhost\n::1 localhost\n", "")
	// A port that nobody listens at on 127.0.0.1 either: localhost leads there, too.
	l, port := listenAt(t, fmt.Sprintf("[::1]:%d", freePort(t)))
	serveOn(t, l, answer("six"))
	p, public := startProxy(t), freePort(t)
	n.bridge(p.defaultToken(), fmt.Sprintf("%d=localhost:%d", public, port)).awaitUp(fmt.Sprintf("tcp/%d", public))
	if got := ask(t, loopback(public)); got != "six" {
		t.Errorf("the answer is %q; want that of ::1", got)
	}
}

// The proxy and the target have names with IPv6 addresses alone.
func TestIPv6OnlyNames(t *testing.T) {
	t.Parallel()
	n := newNames(t, "::1 proxy.example nas.example\n", "")
	l, port := listenAt(t, "[::1]:0")
	serveOn(t, l, answer("six"))
	link, public := freePort(t), freePort(t)
	p := &proxyProcess{state: t.TempDir(), link: link}
	p.testProcess = start(t, "proxy", reverser(t), nil, "proxy", "--listen", fmt.Sprintf("[::1]:%d", link), "--advertise", "proxy.example", "--state", p.state, "--log-format", "json")
	p.awaitReady()
	n.bridge(p.defaultToken(), fmt.Sprintf("tcp/[::1]:%d=nas.example:%d", public, port)).awaitUp(fmt.Sprintf("tcp/[::1]:%d", public))
	if got := ask(t, fmt.Sprintf("[::1]:%d", public)); got != "six" {
		t.Errorf("the answer is %q; want that of ::1", got)
	}
}

// The target's name gets another address while the bridge runs: new users find it there, and a connection that is open goes on.
func TestTargetMoves(t *testing.T) {
	t.Parallel()
	n := newNames(t, "127.0.0.1 nas.example\n", "")
	first, port := listenAt(t, "127.0.0.1:0")
	serveOn(t, first, echo)
	p, public := startProxy(t), freePort(t)
	n.bridge(p.defaultToken(), fmt.Sprintf("%d=nas.example:%d", public, port)).awaitUp(fmt.Sprintf("tcp/%d", public))
	open := dial(t, loopback(public))
	exchange(t, open, "before")
	second, _ := listenAt(t, fmt.Sprintf("127.0.0.3:%d", port))
	serveOn(t, second, answer("moved"))
	writeFile(t, n.hosts, "127.0.0.3 nas.example\n")
	first.Close()
	eventually(t, "new users reach the new address", func() bool {
		c, err := net.DialTimeout("tcp", loopback(public), patience)
		if err != nil {
			return false // reset: the old address refuses
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		c.(*net.TCPConn).CloseWrite()
		word, _ := io.ReadAll(c)
		return string(word) == "moved"
	})
	exchange(t, open, "after")
}

// The machine starts before its name server: the bridge is there as soon as names are.
func TestNoNamesAtBoot(t *testing.T) {
	t.Parallel()
	own := freePort(t) // a number that no other test has, for an address that no other test has
	server := fmt.Sprintf("127.53.%d.%d", own>>8, own&255)
	n := newNames(t, "", "nameserver "+server+"\noptions timeout:1 attempts:1\n")
	p, public := startProxy(t, "--advertise", "proxy.example"), freePort(t)
	b := n.bridge(p.defaultToken(), fmt.Sprintf("%d=%d", public, serve(t, echo)))
	said := b.awaitLogged("proxy.example", server)
	if strings.Contains(said, "wrong") {
		t.Errorf("the bridge blames something else: %s", said)
	}
	startNameServer(t, server, map[string][4]byte{"proxy.example.": {127, 0, 0, 1}})
	b.awaitUp(fmt.Sprintf("tcp/%d", public))
	exchange(t, dial(t, loopback(public)), "hello")
}

// startNameServer answers questions for IPv4 addresses until the end of the test.
func startNameServer(t *testing.T, at string, known map[string][4]byte) {
	t.Helper()
	c, err := net.ListenPacket("udp", net.JoinHostPort(at, "53"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for b := make([]byte, 1500); ; {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(b[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			q := m.Questions[0]
			reply := dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true, RecursionAvailable: true}, Questions: m.Questions}
			ip, ok := known[q.Name.String()]
			switch {
			case !ok:
				reply.RCode = dnsmessage.RCodeNameError
			case q.Type == dnsmessage.TypeA:
				reply.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 1}, Body: &dnsmessage.AResource{A: ip}}}
			}
			if out, err := reply.Pack(); err == nil {
				c.WriteTo(out, from)
			}
		}
	})
	t.Cleanup(func() {
		c.Close()
		wg.Wait()
	})
}

// A router in front of the proxy has other ports than the proxy: the bridge is told both, and the data goes the same way.
func TestNATWithOtherPorts(t *testing.T) {
	need(t, iptables)
	lab := needLab(t)
	for _, ports := range []string{"4010:3010", "4020:3020", "9000:9000"} {
		outside, inside, _ := strings.Cut(ports, ":")
		err := lab.Router.Do(func() error {
			out, err := exec.Command(iptables.path(t), "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", outside, "-j", "DNAT", "--to", netlab.PublicIP+":"+inside).CombinedOutput()
			if err != nil {
				return fmt.Errorf("iptables: %w: %s", err, out)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	proxy := startOn(t, lab.Public, "proxy", "proxy", "--listen", netlab.PublicIP+":3010", "--transfer", netlab.PublicIP+":3020", "--state", t.TempDir(), "--log-format", "json")
	proxy.awaitOutput("reverser bridge rv1_")
	target, err := lab.LAN.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, target, echo)
	const router = "10.2.0.254"
	bridge := startOn(t, lab.LAN, "bridge", "bridge", tokenPattern.FindString(proxy.Stdout.String()), "--proxy", router+":4010", "--proxy-transfer", router+":4020",
		"--state", t.TempDir(), "--log-format", "json", fmt.Sprintf("9000=%s", target.Addr()))
	bridge.awaitRecord("service up", "service", "tcp/9000")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := lab.Public.Dial(ctx, loopback(9000))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const size = 1 << 20
	go func() {
		io.Copy(c, newPattern(size))
		c.CloseWrite()
	}()
	if n, err := readPattern(c); n != size || err != nil {
		t.Errorf("%d bytes came back, %v; want %d", n, err, size)
	}
}

// A port below 1024 is the system's to give: the bridge says what to do, and with the capability it works without root.
func TestPrivilegedPort(t *testing.T) {
	need(t, setpriv)
	lab := needLab(t)
	target, err := lab.Public.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, target, echo)
	// Both ends are on one host of the lab, whose system keeps the low ports, as a system does by default.
	err = lab.Public.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_unprivileged_port_start", []byte("1024"), 0) })
	if err != nil {
		t.Fatal(err)
	}
	for _, capable := range []bool{false, true} {
		dir := publicDir(t)
		state := makeDir(t, filepath.Join(dir, "state"))
		if err := os.Chown(state, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(state, 0o700); err != nil {
			t.Fatal(err)
		}
		bin := publicProgram(t)
		as := []string{"--reuid", "65534", "--regid", "65534", "--clear-groups"}
		if capable {
			as = append(as, "--inh-caps", "+net_bind_service", "--ambient-caps", "+net_bind_service")
		}
		nobody := func(name string, args ...string) *testProcess {
			t.Helper()
			p := prepare(t, name, setpriv.path(t), nil, append(append(as, bin), args...)...)
			if err := p.Start(lab.Public.Start); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(p.cleanup)
			return p
		}
		add := nobody("key add", "key", "add", "web", "--allow", "tcp/443", "--state", state)
		if add.awaitEnd() != 0 {
			t.Fatal(add.Stderr.String())
		}
		proxy := nobody("proxy", "proxy", "--listen", "127.0.0.1:3010", "--state", state, "--log-format", "json")
		proxy.awaitLogged("listen", "3010")
		bridge := startOn(t, lab.Public, "bridge", "bridge", tokenPattern.FindString(add.Stdout.String()), "--proxy", "127.0.0.1:3010", "--state", t.TempDir(), "--log-format", "json",
			"443="+target.Addr().String())
		if capable {
			bridge.awaitRecord("service up", "service", "tcp/443")
		} else {
			bridge.awaitLogged("443", "CAP_NET_BIND_SERVICE")
			proxy.awaitLogged("443", "CAP_NET_BIND_SERVICE", "setcap", "ip_unprivileged_port_start")
			link := nobody("proxy", "proxy", "--listen", ":444", "--state", filepath.Join(state, "other"))
			if code := link.awaitEnd(); code != 2 || !strings.Contains(link.Stderr.String(), "setcap cap_net_bind_service=+ep") {
				t.Errorf("--listen :444 without a right to it: exit code %d, %q", code, link.Stderr.String())
			}
		}
		bridge.Kill()
		proxy.Kill()
	}
}

// One bridge with 300 services: all come up, and each leads to its own target.
func TestManyServices(t *testing.T) {
	heavy(t)
	const n = 300
	var file strings.Builder
	publics, words := make([]int, n), make([]string, n)
	for i := range n {
		publics[i], words[i] = freePort(t), fmt.Sprintf("service %d", i)
		fmt.Fprintf(&file, "[[expose]]\npublic = %d\ntarget = %d\n", publics[i], serve(t, answer(words[i])))
	}
	p := startProxy(t)
	b := startBridge(t, p.defaultToken(), "--config", writeFile(t, filepath.Join(t.TempDir(), "bridge.toml"), file.String()))
	eventually(t, "all services are up", func() bool {
		st, err := statusOf(t, b.state)
		up := 0
		for _, s := range st.Services {
			if s.State == "up" {
				up++
			}
		}
		return err == nil && up == n
	})
	for i, public := range publics {
		if got := ask(t, loopback(public)); got != words[i] {
			t.Errorf("port %d answers %q; want %q", public, got, words[i])
		}
	}
}

// Two bridges with a key each offer one port: the first has it, the second says so, and has it when the first is gone.
func TestServiceOfferedTwice(t *testing.T) {
	t.Parallel()
	p, public := startProxy(t), freePort(t)
	service := fmt.Sprintf("tcp/%d", public)
	one, two := addKey(t, p.state, "one", service), addKey(t, p.state, "two", service)
	addr := []string{"--proxy", loopback(p.link)}
	first := startBridge(t, one, append(addr, fmt.Sprintf("%d=%d", public, serve(t, answer("first"))))...)
	first.awaitUp(service)
	second := startBridge(t, two, append(addr, fmt.Sprintf("%d=%d", public, serve(t, answer("second"))))...)
	eventually(t, "the second bridge says who has the port", func() bool {
		st, err := statusOf(t, second.state)
		return err == nil && len(st.Services) == 1 && st.Services[0].State != "up" && strings.Contains(st.Services[0].Reason, "another key")
	})
	if got := ask(t, loopback(public)); got != "first" {
		t.Errorf("the answer is %q; want that of the first", got)
	}
	if err := first.Cmd.Process.Signal(os.Interrupt); err != nil { // a killed one may come back, and its port waits for it
		t.Fatal(err)
	}
	second.awaitUp(service)
	if got := ask(t, loopback(public)); got != "second" {
		t.Errorf("the answer is %q; want that of the second", got)
	}
}

// Two proxies run on one host. A port that the one has opened is refused to the other's bridge by name of what has it, until it is free.
func TestTwoProxiesOnOneHost(t *testing.T) {
	t.Parallel()
	p, q := startProxy(t), startProxy(t)
	port, other := freePort(t), freePort(t)
	service := fmt.Sprintf("tcp/%d", port)
	first := startBridge(t, p.defaultToken(), fmt.Sprintf("%d=%d", port, serve(t, answer("first"))))
	first.awaitUp(service)
	second := startBridge(t, q.defaultToken(), fmt.Sprintf("%d=%d", port, serve(t, answer("second"))), fmt.Sprintf("%d=%d", other, serve(t, answer("other"))))
	second.awaitUp(fmt.Sprintf("tcp/%d", other))
	eventually(t, "the second bridge says that the port is in use", func() bool {
		st, err := statusOf(t, second.state)
		if err != nil {
			return false
		}
		for _, s := range st.Services {
			if s.Public == service {
				return s.State != "up" && strings.Contains(s.Reason, "in use")
			}
		}
		return false
	})
	for addr, want := range map[string]string{loopback(port): "first", loopback(other): "other"} {
		if got := ask(t, addr); got != want {
			t.Errorf("%s answers %q; want %q", addr, got, want)
		}
	}
	if err := first.Cmd.Process.Signal(os.Interrupt); err != nil { // a killed one may come back, and its port waits for it
		t.Fatal(err)
	}
	second.awaitUp(service)
	if got := ask(t, loopback(port)); got != "second" {
		t.Errorf("the answer is %q; want that of the second", got)
	}
}

// What Notepad saves, as UTF-16 or with a byte-order mark and with its line ends, is read as it is.
func TestNotepadFiles(t *testing.T) {
	t.Parallel()
	p, public := startProxy(t), freePort(t)
	dir := filepath.Join(t.TempDir(), "我的 配置")
	makeDir(t, dir)
	utf16le := func(s string) string {
		b := []byte{0xff, 0xfe}
		for _, u := range utf16.Encode([]rune(s)) {
			b = append(b, byte(u), byte(u>>8))
		}
		return string(b)
	}
	writeFile(t, filepath.Join(dir, "令牌.txt"), "\xef\xbb\xbf"+p.defaultToken()+"\r\n")
	text := fmt.Sprintf("# 识别服务：端口 %[1]d\r\ntoken_file = '令牌.txt'\r\n\r\n[[expose]]\r\npublic = \"%[1]d\"\r\ntarget = \"%d\"\r\n", public, serve(t, echo))
	for name, content := range map[string]string{"UTF-16": utf16le(text), "UTF-8": "\xef\xbb\xbf" + text} {
		b := &bridgeProcess{state: t.TempDir()}
		b.testProcess = start(t, "bridge", reverser(t), nil, "bridge", "--config", writeFile(t, filepath.Join(dir, name+".toml"), content), "--state", b.state, "--log-format", "json")
		b.awaitUp(fmt.Sprintf("tcp/%d", public))
		exchange(t, dial(t, loopback(public)), name)
		b.Kill()
	}
}

// The source system's files in the encoding of a Chinese Windows, with the values of this machine in a file of their own.
func TestXMLFilesInGB2312(t *testing.T) {
	t.Parallel()
	work, ic, transfer := freePort(t), freePort(t), freePort(t)
	const head = "<?xml version=\"1.0\" encoding=\"gb2312\"?>\r\n<configuration>\r\n<!-- \xb9\xa4\xd7\xf7\xb6\xcb\xbf\xda -->\r\n"
	dir := t.TempDir()
	proxyConfig := writeFile(t, filepath.Join(dir, "TcpReverser.ProxyServer.dll.config"), head+fmt.Sprintf(
		"<appSettings>\r\n<add key=\"WorkPort\" value=\"%d\"/>\r\n<add key=\"IcPort\" value=\"%d\"/>\r\n<add key=\"TransferPort\" value=\"%d\"/>\r\n</appSettings>\r\n</configuration>\r\n", work, ic, transfer))
	bridgeConfig := writeFile(t, filepath.Join(dir, "TcpReverser.BridgeServer.dll.config"), head+fmt.Sprintf(
		"<appSettings file=\"local\\real.config\">\r\n<add key=\"ProxyServerIP\" value=\"127.0.0.1\"/>\r\n<add key=\"ProxyIcPort\" value=\"%d\"/>\r\n<add key=\"ProxyTransferPort\" value=\"%d\"/>\r\n"+
			"<add key=\"RealServerIP\" value=\"192.0.2.1\"/>\r\n<add key=\"RealServerPort\" value=\"1\"/>\r\n</appSettings>\r\n</configuration>\r\n", ic, transfer))
	makeDir(t, filepath.Join(dir, "local"))
	real := filepath.Join(dir, "local", "real.config")
	writeReal := func(port int) {
		writeFile(t, real, fmt.Sprintf("<appSettings><add key=\"realserverip\" value=\"127.0.0.1\"/><add key=\"RealServerPort\" value=\"%d\"/></appSettings>", port))
	}
	writeReal(serve(t, answer("real")))
	p := &proxyProcess{state: t.TempDir(), link: ic}
	p.testProcess = start(t, "proxy", reverser(t), nil, "proxy", "--config", proxyConfig, "--state", p.state, "--log-format", "json")
	p.awaitReady()
	b := &bridgeProcess{state: t.TempDir()}
	b.testProcess = start(t, "bridge", reverser(t), []string{"REVERSER_TOKEN=" + p.defaultToken()}, "bridge", "--config", bridgeConfig, "--state", b.state, "--log-format", "json")
	b.awaitUp("tcp/" + strconv.Itoa(work))
	if got := ask(t, loopback(work)); got != "real" {
		t.Errorf("the answer is %q; want that of the server that the other file names", got)
	}
	// The other file is watched as the file itself is.
	writeReal(serve(t, answer("changed")))
	eventually(t, "users reach the new server", func() bool { return ask(t, loopback(work)) == "changed" })
}

// With the 1,024 descriptors that many systems give by default, hundreds of users are served at once.
func TestThousandDescriptors(t *testing.T) {
	need(t, prlimit)
	heavy(t)
	limited := func(name string, args ...string) *testProcess {
		t.Helper()
		return start(t, name, prlimit.path(t), nil, append([]string{"--nofile=1024:1024", reverser(t)}, args...)...)
	}
	p := &proxyProcess{state: t.TempDir(), link: freePort(t)}
	p.testProcess = limited("proxy", "proxy", "--listen", loopback(p.link), "--state", p.state, "--log-format", "json")
	p.awaitReady()
	public := freePort(t)
	b := &bridgeProcess{state: t.TempDir()}
	b.testProcess = limited("bridge", "bridge", p.defaultToken(), "--state", b.state, "--log-format", "json", fmt.Sprintf("%d=%d", public, serve(t, echo)))
	b.awaitUp(fmt.Sprintf("tcp/%d", public))
	// One address may have a quarter of what is free, so the users come from several.
	var conns []*net.TCPConn
	for i := range 300 {
		d := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(i%6+1))}}
		c, err := d.Dial("tcp", loopback(public))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(lifetime))
		exchange(t, c, fmt.Sprintf("user %d", i))
		conns = append(conns, c.(*net.TCPConn))
	}
	for i, c := range conns {
		exchange(t, c, fmt.Sprintf("again %d", i))
	}
}

// An identity that a machine with a wrong clock made, or that is long expired, is as good as any: the pin is the proof.
func TestWrongClocks(t *testing.T) {
	t.Parallel()
	for name, years := range map[string]int{"a century ahead": 100, "a dead battery": -50} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		from := time.Now().AddDate(years, 0, 0)
		template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "reverser"}, NotBefore: from, NotAfter: from.AddDate(0, 1, 0)}
		der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		secret, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		state := t.TempDir()
		if err := os.Chmod(state, 0o700); err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(state, "identity.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}))+
			string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
		p, public := startProxyAt(t, state, freePort(t)), freePort(t)
		b := startBridge(t, p.defaultToken(), fmt.Sprintf("%d=%d", public, serve(t, echo)))
		b.awaitUp(fmt.Sprintf("tcp/%d", public))
		exchange(t, dial(t, loopback(public)), name)
	}
}
