package e2e

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
)

// The files of the system that this one replaces run as they are, on two ports. Only
// the port numbers differ here, so that tests can run side by side.
func TestXMLFiles(t *testing.T) {
	t.Parallel()
	for _, form := range []string{"bare", "dotnet"} {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			work, ic, transfer := freePort(t), freePort(t), freePort(t)
			// The bridge goes through a NAT that renumbers ports and counts.
			var control, carried atomic.Int64
			icNAT := forward(t, ic, &control)
			transferNAT := forward(t, transfer, &carried)

			proxyConfig := sourceFile(t, form, "TcpReverser.ProxyServer.dll.config", map[int]int{9000: work, 3010: ic, 3020: transfer})
			bridgeConfig := sourceFile(t, form, "TcpReverser.BridgeServer.dll.config", map[int]int{3010: icNAT, 3020: transferNAT, 9904: serve(t, echo)})

			p := &proxyProcess{state: t.TempDir(), link: ic}
			p.testProcess = startReverser(t, "proxy", nil, "proxy", "--config", proxyConfig, "--state", p.state, "--log-format", "json")
			p.awaitReady()
			b := &bridgeProcess{state: t.TempDir()}
			b.testProcess = startReverser(t, "bridge", []string{"REVERSER_TOKEN=" + p.defaultToken()},
				"bridge", "--config", bridgeConfig, "--state", b.state, "--log-format", "json")
			eventually(t, "the one service is up", func() bool {
				st, err := statusOf(t, b.state)
				return err == nil && len(st.Services) == 1 && st.Services[0].State == "up"
			})

			const n = 1 << 20
			c := dial(t, loopback(work))
			client := c.LocalAddr().String()
			go func() {
				io.Copy(c, newPattern(n))
				c.CloseWrite()
			}()
			if got, err := readPattern(c); got != n || err != nil {
				t.Errorf("read %d bytes, then %s; want %d, then a clean end", got, describe(err), n)
			}
			for _, side := range []*testProcess{p.testProcess, b.testProcess} {
				side.awaitRecord("pair created", "client", client)
				side.awaitRecord("pair released", "client", client, "sent", float64(n), "received", float64(n))
			}
			if carried.Load() < 2*n {
				t.Errorf("%d bytes went over the transfer port; want the data, %d at least", carried.Load(), 2*n)
			}
			if got := control.Load(); got == 0 || got > n/2 {
				t.Errorf("%d bytes went over the IcPort; want the control connection alone", got)
			}
		})
	}
}

// With the source's file the default key may use the WorkPort and nothing else.
func TestXMLKeyIsBoundToTheWorkPort(t *testing.T) {
	t.Parallel()
	work, ic, transfer, other := freePort(t), freePort(t), freePort(t), freePort(t)
	config := sourceFile(t, "bare", "TcpReverser.ProxyServer.dll.config", map[int]int{9000: work, 3010: ic, 3020: transfer})
	p := &proxyProcess{state: t.TempDir(), link: ic}
	p.testProcess = startReverser(t, "proxy", nil, "proxy", "--config", config, "--state", p.state, "--log-format", "json")
	p.awaitReady()
	b := startBridge(t, p.defaultToken(), "--proxy", loopback(ic), fmt.Sprintf("%d=%d", other, serve(t, echo)))
	b.awaitService(fmt.Sprintf("tcp/%d", other), "denied")
}

// sourceFile copies a file of testdata with other port numbers.
func sourceFile(t *testing.T, form, name string, ports map[int]int) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "xml", form, name))
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for from, to := range ports {
		old := fmt.Sprintf(`value="%d"`, from)
		if strings.Count(text, old) != 1 {
			t.Fatalf("%s/%s has %q %d times; want once", form, name, old, strings.Count(text, old))
		}
		text = strings.Replace(text, old, "value=\""+strconv.Itoa(to)+"\"", 1)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// forward passes connections on to port, counts their bytes, and returns its own port.
func forward(t *testing.T, port int, count *atomic.Int64) int {
	return serve(t, func(c *net.TCPConn) { passOn(c, port, count) })
}

// passOn passes a connection on to port and counts its bytes.
func passOn(c *net.TCPConn, port int, count *atomic.Int64) {
	up, err := net.Dial("tcp", loopback(port))
	if err != nil {
		return
	}
	defer up.Close()
	done := make(chan struct{}, 2)
	pass := func(dst, src *net.TCPConn) {
		io.Copy(dst, counting{src, count})
		dst.CloseWrite()
		done <- struct{}{}
	}
	go pass(up.(*net.TCPConn), c)
	go pass(c, up.(*net.TCPConn))
	<-done
	<-done
}

type counting struct {
	r     io.Reader
	count *atomic.Int64
}

func (c counting) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.count.Add(int64(n))
	return n, err
}
