package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Whatever else reaches the link port is turned away, says nothing about what listens
// there, and does not disturb the bridge that works.
func TestNoiseOnTheLinkPort(t *testing.T) {
	t.Parallel()
	tun := startTunnel(t, strconv.Itoa(serve(t, echo)))
	c := tun.dial(t)
	exchange(t, c, "before")

	noise := make([]byte, 1<<20)
	rand.Read(noise)
	huge := append([]byte{0x16, 0x03, 0x01, 0xff, 0xff}, noise[:70_000]...) // a TLS record that is too long
	var wg sync.WaitGroup
	for name, text := range map[string]string{
		"HTTP":            "GET / HTTP/1.1\r\nHost: proxy\r\n\r\n",
		"SSH":             "SSH-2.0-OpenSSH_9.2p1\r\n",
		"noise":           string(noise),
		"zeros":           strings.Repeat("\x00", 100_000),
		"long TLS record": string(huge),
		"PROXY protocol":  "PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
		"nothing":         "",
	} {
		for range 3 {
			wg.Go(func() {
				n, err := speak(tun.proxy.link, text)
				// A TLS alert is 7 bytes; nothing else may be said.
				if n > 7 {
					t.Errorf("%s: the proxy answered %d bytes", name, n)
				}
				if nerr, ok := err.(net.Error); ok && nerr.Timeout() {
					t.Errorf("%s: the proxy kept the connection", name)
				}
			})
		}
	}
	wg.Go(func() {
		conn, err := tls.Dial("tcp", loopback(tun.proxy.link), &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12})
		if err == nil {
			conn.Close()
			t.Error("TLS 1.2: the proxy took it")
		}
	})
	wg.Go(func() {
		// TLS 1.3 without a key.
		conn, err := tls.Dial("tcp", loopback(tun.proxy.link), &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
		if err != nil {
			return // it may turn us away as early as that
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(patience))
		conn.Write([]byte("GET / HTTP/1.1\r\nHost: proxy\r\n\r\n"))
		b, err := io.ReadAll(conn)
		if nerr, ok := err.(net.Error); ok && nerr.Timeout() {
			t.Error("TLS 1.3 without a key: the proxy kept the connection")
		}
		if strings.Contains(strings.ToLower(string(b)), "reverser") {
			t.Errorf("TLS 1.3 without a key: the proxy said who it is: %q", b)
		}
	})
	wg.Go(func() {
		for i := range 50 {
			exchange(t, c, fmt.Sprintf("meanwhile %d", i))
		}
	})
	wg.Wait()

	exchange(t, c, "after")
	exchange(t, tun.dial(t), "a new one")
	if !tun.proxy.Running() || !tun.bridge.Running() {
		t.Error("a process has ended")
	}
}

// speak writes text to a port, reads to the end, and returns how many
// bytes were answered.
func speak(port int, text string) (int, error) {
	c, err := net.DialTimeout("tcp", loopback(port), patience)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	var wg sync.WaitGroup
	wg.Go(func() { io.WriteString(c, text) }) // it may be cut off
	b, err := io.ReadAll(c)
	c.Close()
	wg.Wait()
	return len(b), err
}

// A TLS server with another identity than the token's gets nothing from the bridge,
// which goes on looking for its proxy.
func TestTLSServerThatIsNotTheProxy(t *testing.T) {
	t.Parallel()
	state, link, public := t.TempDir(), freePort(t), freePort(t)
	tok := addKey(t, state, "careful", fmt.Sprintf("tcp/%d", public))

	l, err := tls.Listen("tcp", loopback(link), &tls.Config{Certificates: []tls.Certificate{selfSigned(t)}})
	if err != nil {
		t.Fatal(err)
	}
	var got atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.SetDeadline(time.Now().Add(patience))
			n, _ := io.Copy(io.Discard, c)
			got.Add(n)
			c.Close()
		}
	})
	defer wg.Wait()
	defer l.Close()

	b := startBridge(t, tok, fmt.Sprintf("%d=%d", public, serve(t, echo)), "--proxy", loopback(link))
	b.awaitLogged(`"level":"WARN"`, loopback(link), "not the proxy")
	if !b.Running() {
		t.Fatalf("the bridge has ended: %v; want it to try on", b.Cmd.ProcessState)
	}
	l.Close()
	startProxyAt(t, state, link)
	b.awaitUp(fmt.Sprintf("tcp/%d", public))
	exchange(t, dial(t, loopback(public)), "the right one at last")
	if n := got.Load(); n != 0 {
		t.Errorf("the wrong server got %d bytes; want none", n)
	}
}

// A server that is no TLS server is no reason to give up either.
func TestNoisyProxyAddress(t *testing.T) {
	t.Parallel()
	state, link, public := t.TempDir(), freePort(t), freePort(t)
	tok := addKey(t, state, "patient", fmt.Sprintf("tcp/%d", public))
	l, err := net.Listen("tcp", loopback(link))
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, l, func(c *net.TCPConn) { io.WriteString(c, "SSH-2.0-OpenSSH_9.2p1\r\n") })
	b := startBridge(t, tok, fmt.Sprintf("%d=%d", public, serve(t, echo)), "--proxy", loopback(link))
	b.awaitLogged(`"level":"WARN"`, loopback(link))
	l.Close()
	startProxyAt(t, state, link)
	b.awaitUp(fmt.Sprintf("tcp/%d", public))
}

func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "reverser"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
