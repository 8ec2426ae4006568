package e2e

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
)

// TestProxyHasNoPlainText: what users send through a service whose TLS the bridge ends is never in the proxy's memory, nor is the key. To show
// that the test would find it there, the same is said through a tcp/ service.
func TestProxyHasNoPlainText(t *testing.T) {
	t.Parallel()
	needRoot(t) // to read another process's memory
	target := serve(t, func(c *net.TCPConn) {
		io.Copy(c, c)
		c.CloseWrite()
	})
	e := startEnded(t, target, nil, "")
	public := freePort(t)
	plain := startBridge(t, addKey(t, e.proxy.state, "plain", fmt.Sprintf("tcp/%d", public)), fmt.Sprintf("%d=%d", public, target), "--proxy", loopback(e.proxy.link))
	plain.awaitUp(fmt.Sprintf("tcp/%d", public))

	said := func(what string) []byte { return []byte("said through " + what + " by a user of the test") }
	held := []*tls.Conn{e.client(t, tls.VersionTLS12), e.client(t, tls.VersionTLS13)}
	for range 200 { // so that no buffer holds it by accident only
		for _, c := range held {
			exchange(t, c, string(said("TLS")))
		}
	}
	open := dial(t, loopback(public))
	exchange(t, open, string(said("TCP")))

	text, err := os.ReadFile(e.key)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	secret := key.(interface{ Bytes() ([]byte, error) })
	scalar, err := secret.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	proxy, bridge := memory(t, e.proxy.Cmd.Process.Pid), memory(t, e.bridge.Cmd.Process.Pid)
	for what, b := range map[string][]byte{"plain text": said("TLS"), "key": block.Bytes, "scalar of the key": scalar} {
		if proxy(b) {
			t.Errorf("the %s is in the proxy's memory", what)
		}
		if what == "plain text" && !bridge(b) { // what it has of the key is in a form of crypto/ecdsa, and the file is garbage that was read
			t.Errorf("the %s is not even in the bridge's memory: the test finds nothing", what)
		}
	}
	if !proxy(said("TCP")) {
		t.Error("what passes through a tcp/ service is not in the proxy's memory: the test finds nothing")
	}
}

// memory returns a function that reports whether a process has bytes in its memory.
func memory(t *testing.T, pid int) func(b []byte) bool {
	t.Helper()
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer maps.Close()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	var all [][]byte
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var from, to int64
		var mode string
		fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &mode)
		if !strings.HasPrefix(mode, "rw") {
			continue
		}
		// Most of a Go heap's reservation was never touched, and reads as zeros.
		for ; from < to; from += 1 << 20 {
			b := make([]byte, min(to-from, 1<<20))
			n, _ := mem.ReadAt(b, from)
			if b = b[:n]; len(bytes.Trim(b, "\x00")) > 0 {
				all = append(all, b)
			}
		}
	}
	if len(all) == 0 {
		t.Fatalf("nothing of the memory of process %d can be read", pid)
	}
	return func(b []byte) bool {
		for _, part := range all {
			if bytes.Contains(part, b) {
				return true
			}
		}
		return false
	}
}
