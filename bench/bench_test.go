// Package bench measures the whole path in one process: a user's socket, proxy, TLS over loopback, bridge, a real
// server's socket. `go test -bench . ./bench` runs it; bench/compare measures the same from outside, beside HAProxy.
package bench

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"os"
	"runtime"
	"runtime/pprof"
	"strconv"
	"sync"
	"testing"
	"time"

	"reverser/internal/auth"
	"reverser/internal/bridge"
	"reverser/internal/freeport"
	"reverser/internal/grammar"
	"reverser/internal/proxy"
	"reverser/internal/status"
)

// tunnel starts a proxy and a bridge for target and returns the public address.
func tunnel(b testing.TB, target string) string {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, _ := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	leaf, _ := x509.ParseCertificate(der)
	k := proxy.Key{Name: "bench", ID: [16]byte{1}, Secret: [32]byte{2}, Allow: grammar.DefaultPolicy()}
	p := proxy.New(proxy.Config{
		Listen: "127.0.0.1:0", Identity: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, Settings: proxy.Settings{Keys: []proxy.Key{k}},
	})
	if err := p.Listen(); err != nil {
		b.Fatal(err)
	}
	public, err := freeport.Addr()
	if err != nil {
		b.Fatal(err)
	}
	pub, err := grammar.ParsePublic("tcp/" + public)
	if err != nil {
		b.Fatal(err)
	}
	tgt, err := grammar.ParseTarget(target)
	if err != nil {
		b.Fatal(err)
	}
	br, err := bridge.New(bridge.Config{
		Token:   grammar.Token{KeyID: k.ID, Secret: k.Secret, Pin: auth.Pin(leaf.RawSubjectPublicKeyInfo)},
		Proxies: []bridge.Proxy{{Addr: p.Addr().String()}}, Settings: bridge.Settings{Services: []bridge.Service{{Public: pub, Target: tgt}}},
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { p.Run(ctx) })
	wg.Go(func() { br.Run(ctx) })
	b.Cleanup(func() { cancel(); wg.Wait() })
	if st, err := br.Await(ctx, pub); err != nil || st.State != status.ServiceUp {
		b.Fatalf("%s is %s: %v", pub, st.State, err)
	}
	return public
}

// server runs handle for each connection to a loopback port.
func server(b testing.TB, handle func(net.Conn)) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); handle(c) }()
		}
	}()
	return ln.Addr().String()
}

func dial(b testing.TB, addr string) net.Conn {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	return c
}

// BenchmarkBulk moves 1 MiB per iteration over one connection.
func BenchmarkBulk(b *testing.B) {
	got := make(chan int, 1<<20)
	addr := tunnel(b, server(b, func(c net.Conn) {
		buf := make([]byte, 1<<20)
		for {
			if _, err := io.ReadFull(c, buf); err != nil {
				return
			}
			got <- 1
		}
	}))
	c := dial(b, addr)
	defer c.Close()
	buf := make([]byte, 1<<20)
	b.SetBytes(1 << 20)
	b.ReportAllocs()
	sent := 0
	for b.Loop() {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
		sent++
	}
	for range sent {
		<-got
	}
}

func echo(c net.Conn) { io.Copy(c, c) }

// BenchmarkEcho is one small request and answer on a connection that stays.
func BenchmarkEcho(b *testing.B) {
	for _, conns := range []int{1, 50} {
		b.Run("conns="+strconv.Itoa(conns), func(b *testing.B) {
			addr := tunnel(b, server(b, echo))
			b.ReportAllocs()
			b.SetParallelism(max(conns/2, 1))
			b.RunParallel(func(pb *testing.PB) {
				c := dial(b, addr)
				defer c.Close()
				buf := make([]byte, 128)
				for pb.Next() {
					c.Write(buf)
					if _, err := io.ReadFull(c, buf); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// BenchmarkConnection is one small request and answer per connection.
func BenchmarkConnection(b *testing.B) {
	addr := tunnel(b, server(b, echo))
	b.ReportAllocs()
	buf := make([]byte, 128)
	for b.Loop() {
		c := dial(b, addr)
		c.Write(buf)
		c.(*net.TCPConn).CloseWrite()
		if n, err := io.ReadAll(c); len(n) != len(buf) {
			b.Fatal(len(n), err)
		}
		c.Close()
	}
}

// BenchmarkIdle reports what an idle connection holds in the heap and in stacks: proxy, bridge, and the 2 sockets and one
// goroutine that the test itself has for it.
func BenchmarkIdle(b *testing.B) {
	const conns = 1000
	hold := make(chan struct{})
	defer close(hold)
	addr := tunnel(b, server(b, func(c net.Conn) {
		var buf [1]byte
		io.ReadFull(c, buf[:])
		c.Write(buf[:])
		<-hold
	}))
	for b.Loop() {
		before := memory()
		for range conns {
			c := dial(b, addr)
			b.Cleanup(func() { c.Close() })
			var buf [1]byte
			c.Write(buf[:])
			io.ReadFull(c, buf[:])
		}
		time.Sleep(200 * time.Millisecond) // the last ACKs
		after := memory()
		b.ReportMetric(float64(after.HeapInuse-before.HeapInuse)/conns, "heap-B/conn")
		b.ReportMetric(float64(after.StackInuse-before.StackInuse)/conns, "stack-B/conn")
		if os.Getenv("HEAP") != "" {
			f, _ := os.Create(os.Getenv("HEAP"))
			pprof.Lookup("heap").WriteTo(f, 0)
			f.Close()
		}
	}
}

func memory() (m runtime.MemStats) {
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m
}
