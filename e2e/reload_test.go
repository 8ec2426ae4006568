package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"reverser/internal/admin"
	"reverser/internal/state"
)

// A configured tunnel is a proxy and a bridge that read files, which the test changes while they run.
type configured struct {
	t                     *testing.T
	proxy                 *proxyProcess
	bridge                *bridgeProcess
	proxyFile, bridgeFile string
}

// startConfigured starts a tunnel whose files hold these texts. The proxy's keys are called after their token files, which the
// test has named: each has its secret in NAME.token beside the file. The bridge has the first one.
func startConfigured(t *testing.T, proxyText, bridgeText string, keys ...string) *configured {
	t.Helper()
	dir, dirOfState := t.TempDir(), t.TempDir()
	for _, name := range keys {
		token := addKey(t, dirOfState, name, "tcp/1")
		if err := os.WriteFile(filepath.Join(dir, name+".token"), []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
		runReverser(t, "key", "remove", name, "--state", dirOfState) // the file is to have it alone
	}
	c := &configured{t: t, proxyFile: filepath.Join(dir, "proxy.toml"), bridgeFile: filepath.Join(dir, "bridge.toml")}
	c.write(c.proxyFile, proxyText)
	c.proxy = startProxyAt(t, dirOfState, freePort(t), "--config", c.proxyFile)
	c.write(c.bridgeFile, c.bridgeText(keys[0], bridgeText))
	c.bridge = c.startBridge(c.bridgeFile)
	return c
}

func (c *configured) startBridge(file string) *bridgeProcess {
	c.t.Helper()
	b := &bridgeProcess{state: c.t.TempDir()}
	b.testProcess = start(c.t, "bridge", reverser(c.t), nil, "bridge", "--config", file, "--state", b.state, "--log-format", "json")
	return b
}

func (c *configured) bridgeText(key, text string) string {
	return fmt.Sprintf("token_file = \"%s.token\"\nproxy = %q\n%s", key, loopback(c.proxy.link), text)
}

func (c *configured) write(file, text string) {
	c.t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// reload gives the order that `reverser reload` gives, without starting a process for it, and again when the client has given up waiting.
func reload(dir string) (admin.Reloaded, error) {
	client := admin.NewClient(func(ctx context.Context) (net.Conn, error) { return state.DialAdmin(ctx, dir) })
	defer client.Close()
	late := errors.New("the process does not answer")
	client.Silent = func() error { return late }
	for begin := time.Now(); ; {
		r, err := client.Reload(context.Background())
		if !errors.Is(err, late) || time.Since(begin) > patience {
			return r, err
		}
	}
}

func (c *configured) mustReload(dir string) {
	c.t.Helper()
	if _, err := reload(dir); err != nil {
		c.t.Fatalf("reload: %v", err)
	}
}

func keyTable(name string, allow ...int) string {
	var list []string
	for _, port := range allow {
		list = append(list, fmt.Sprintf("%q", "tcp/"+strconv.Itoa(port)))
	}
	return fmt.Sprintf("[[key]]\nname = %q\nsecret_file = \"%s.token\"\nallow = [%s]\n", name, name, strings.Join(list, ", "))
}

func exposeTable(public, target int) string {
	return fmt.Sprintf("[[expose]]\npublic = %d\ntarget = %d\n", public, target)
}

// socketOf is the inode of the socket that listens on a port, 0 where the system does not tell.
func socketOf(t *testing.T, port int) (inode uint64) {
	t.Helper()
	if runtime.GOOS != "linux" {
		return 0
	}
	// Of this thread: /proc/net is of the main one, which may stand in the network namespace of another test at the moment.
	for _, table := range []string{"/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"} {
		f, err := os.Open(table)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode
			fields := strings.Fields(s.Text())
			if len(fields) > 9 && strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", port)) && fields[3] == "0A" {
				if inode, err = strconv.ParseUint(fields[9], 10, 64); err != nil {
					t.Fatal(err)
				}
				return inode
			}
		}
	}
	t.Fatalf("no socket listens on port %d", port)
	return 0
}

// TestReloadUnderLoad: 200 connections and up to 100 new ones a second go through 200 reloads of either side, and none is lost.
// What stays the same keeps its connections and its socket; a file with a fault changes nothing.
func TestReloadUnderLoad(t *testing.T) {
	t.Parallel()
	const long, reloads, atLeast = 200, 200, 300
	// Users reach two services. The target of the second one changes; a third comes and goes, and so does the right to have it.
	stable, moving, flickering := freePort(t), freePort(t), freePort(t)
	targets := []int{serve(t, echo), serve(t, echo)}
	proxyText := func(i int) string {
		text := "log_level = \"info\"\n" + keyTable("main", stable, moving, flickering) + keyTable("spare", flickering)
		if i%2 == 1 {
			text = "log_level = \"warn\"\ndrain = \"20s\"\n" + keyTable("main", stable, moving)
		}
		return text
	}
	bridgeText := func(i int) string {
		text := exposeTable(stable, targets[0]) + exposeTable(moving, targets[i%2])
		if i%2 == 1 {
			text = exposeTable(flickering, targets[0]) + text
		}
		return text
	}
	bad := []string{"lisen = 3010\n", "log_level = \"loud\"\n", "[[key]]\nname = \"main\"\n", "transfer = 70000\n", "[[expose]]\npublic = \"udp/1\"\n", "listen = "}
	c := startConfigured(t, proxyText(0), bridgeText(0), "main", "spare")
	c.bridge.awaitUp(fmt.Sprintf("tcp/%d", stable), fmt.Sprintf("tcp/%d", moving))
	sockets := [2]uint64{socketOf(t, stable), socketOf(t, moving)}

	var stop atomic.Bool
	var users sync.WaitGroup
	talk := func(c net.Conn, text string) error {
		c.SetDeadline(time.Now().Add(patience))
		if _, err := io.WriteString(c, text); err != nil {
			return err
		}
		got := make([]byte, len(text))
		if _, err := io.ReadFull(c, got); err != nil {
			return err
		}
		if string(got) != text {
			return fmt.Errorf("the echo of %q is %q", text, got)
		}
		return nil
	}
	port := func(i int) int { return []int{stable, moving}[i%2] }
	for i := range long {
		conn := dial(t, loopback(port(i)))
		exchange(t, conn, "hello")
		users.Go(func() {
			for n := 0; !stop.Load(); n++ {
				if err := talk(conn, fmt.Sprintf("connection %d, word %d", i, n)); err != nil {
					t.Errorf("connection %d, open since before the first reload: %v", i, err)
					return
				}
				time.Sleep(200 * time.Millisecond) // paces the load; nothing waits for it
			}
			// It ends as a connection ends.
			conn.CloseWrite()
			if n, err := io.Copy(io.Discard, conn); n != 0 || err != nil {
				t.Errorf("connection %d ended with %d bytes and %s", i, n, describe(err))
			}
		})
	}
	var served atomic.Int64
	users.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		var each sync.WaitGroup
		defer each.Wait()
		room := make(chan struct{}, 50) // a machine that is slow gets no more to do than it can
		for i := 0; !stop.Load(); i++ {
			<-tick.C
			room <- struct{}{}
			each.Go(func() {
				defer func() { <-room }()
				conn, err := net.DialTimeout("tcp", loopback(port(i)), patience)
				if err != nil {
					t.Errorf("new connection %d: %v", i, err)
					return
				}
				defer conn.Close()
				if err := talk(conn, fmt.Sprintf("new connection %d", i)); err != nil {
					t.Errorf("new connection %d to port %d: %v", i, port(i), err)
					return
				}
				served.Add(1)
			})
		}
	})

	var sides sync.WaitGroup
	change := func(name, file, dir string, text func(i int) string) {
		for i := 1; i <= reloads && !t.Failed(); i++ {
			if i%10 == 0 {
				c.write(file, bad[i/10%len(bad)])
				if _, err := reload(dir); err == nil {
					t.Errorf("the %s took a file that holds %q", name, bad[i/10%len(bad)])
				}
				continue
			}
			c.write(file, text(i))
			if _, err := reload(dir); err != nil {
				t.Errorf("reload %d of the %s: %v", i, name, err)
			}
		}
	}
	sides.Go(func() { change("proxy", c.proxyFile, c.proxy.state, proxyText) })
	sides.Go(func() {
		change("bridge", c.bridgeFile, c.bridge.state, func(i int) string { return c.bridgeText("main", bridgeText(i)) })
	})
	sides.Wait()
	for !t.Failed() && served.Load() < atLeast {
		time.Sleep(10 * time.Millisecond)
	}
	if now := [2]uint64{socketOf(t, stable), socketOf(t, moving)}; now != sockets {
		t.Errorf("the sockets are %d; want those from before the reloads, %d", now, sockets)
	}
	counted := long + int(served.Load())
	for name, dir := range map[string]string{"proxy": c.proxy.state, "bridge": c.bridge.state} {
		st := mustStatus(t, dir)
		if len(st.Links) != 1 || st.Links[0].State != "up" || st.Links[0].Resumes != 0 {
			t.Errorf("links of the %s: %+v; want the one of the beginning", name, st.Links)
		}
		total := 0
		for _, s := range st.Services {
			if s.Public == fmt.Sprintf("tcp/%d", stable) || s.Public == fmt.Sprintf("tcp/%d", moving) {
				total += s.Total
			}
		}
		if total < counted {
			t.Errorf("the %s counts %d connections since it started; want at least %d", name, total, counted)
		}
		if len(st.Pairs) < long {
			t.Errorf("the %s has %d pairs; want %d", name, len(st.Pairs), long)
		}
	}
	stop.Store(true)
	users.Wait()
	t.Logf("%d new connections were served", served.Load())
}

// TestReloadRemoves: the connections of a removed service finish, those of a removed key are reset, and nobody else's notice.
func TestReloadRemoves(t *testing.T) {
	t.Parallel()
	kept, removed, others := freePort(t), freePort(t), freePort(t)
	target := serve(t, echo)
	const drain = "drain = \"1h\"\n" // what is done before a connection ends may take more than the usual 30 seconds
	c := startConfigured(t, drain+keyTable("main", kept, removed)+keyTable("guest", others), drain+exposeTable(kept, target)+exposeTable(removed, target), "main", "guest")
	guestFile := filepath.Join(filepath.Dir(c.bridgeFile), "guest.toml")
	c.write(guestFile, c.bridgeText("guest", exposeTable(others, target)))
	guest := c.startBridge(guestFile)
	c.bridge.awaitUp(fmt.Sprintf("tcp/%d", kept), fmt.Sprintf("tcp/%d", removed))
	guest.awaitUp(fmt.Sprintf("tcp/%d", others))
	socket := socketOf(t, kept)
	connKept, connRemoved, connOther := dial(t, loopback(kept)), dial(t, loopback(removed)), dial(t, loopback(others))
	for _, conn := range []net.Conn{connKept, connRemoved, connOther} {
		exchange(t, conn, "hello")
	}

	// When the order returns, the port is closed, and its connection goes on to its own end.
	c.write(c.bridgeFile, c.bridgeText("main", drain+exposeTable(kept, target)))
	out := runReverser(t, "reload", "--state", c.bridge.state)
	if want := fmt.Sprintf("service tcp/%d removed\n", removed); out != want && out != "nothing is different\n" {
		t.Errorf("reload said %q; want %q", out, want)
	}
	eventually(t, "the port of the removed service is closed", func() bool {
		_, err := readPattern(tryDial(loopback(removed)))
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	for _, dir := range []string{c.proxy.state, c.bridge.state} {
		eventually(t, "status shows the service no longer", func() bool {
			for _, s := range mustStatus(t, dir).Services {
				if s.Public == fmt.Sprintf("tcp/%d", removed) && s.State != "away" {
					return false
				}
			}
			return true
		})
	}
	exchange(t, connRemoved, "it goes on")
	connRemoved.CloseWrite()
	if n, err := io.Copy(io.Discard, connRemoved); n != 0 || err != nil {
		t.Errorf("the connection of the removed service ended with %d bytes and %s; want a clean end", n, describe(err))
	}

	c.write(c.proxyFile, drain+keyTable("main", kept, removed))
	c.mustReload(c.proxy.state)
	wantReset(t, connOther, 0)
	eventually(t, "the port of the removed key is closed", func() bool {
		_, err := readPattern(tryDial(loopback(others)))
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	c.proxy.awaitLogged(`"pair released"`, `"service-removed"`)
	guest.awaitLogged(`"level":"WARN"`, "refused", "key")

	exchange(t, connKept, "nothing happened here")
	if now := socketOf(t, kept); now != socket {
		t.Errorf("the socket of the service that stayed is %d; want %d", now, socket)
	}
	// It can come back.
	c.write(c.bridgeFile, c.bridgeText("main", drain+exposeTable(kept, target)+exposeTable(removed, target)))
	c.mustReload(c.bridge.state)
	c.bridge.awaitUp(fmt.Sprintf("tcp/%d", removed))
	exchange(t, dial(t, loopback(removed)), "back again")
	exchange(t, connKept, "nor here")
}
