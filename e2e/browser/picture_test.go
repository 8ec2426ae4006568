package browser

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// pictureEnv names the file that gets the picture of the page for the READMEs.
const pictureEnv = "REVERSER_PAGE_PICTURE"

// TestPicture takes that picture, of a proxy with two bridges whose users come and go for some minutes:
//
//	REVERSER_PAGE_PICTURE=$PWD/docs/page.png go test -C e2e/browser -run TestPicture .
//
// With pngquant installed, the file gets smaller.
func TestPicture(t *testing.T) {
	file := os.Getenv(pictureEnv)
	if file == "" {
		t.Skip(pictureEnv + " names no file: this test takes minutes and writes the picture of the READMEs, which it does when it is asked to")
	}
	const length = 3 * time.Minute
	_, state, link, at, token := startWatched(t)
	ctx, cancel := context.WithCancel(t.Context())
	var users sync.WaitGroup
	defer users.Wait()
	defer cancel()
	begun := time.Now()
	visit := func(public int, rate, phase float64) { // bytes a second, more and less in turn
		for ctx.Err() == nil {
			c, err := net.Dial("tcp", loopback(public))
			if err != nil {
				t.Error(err)
				return
			}
			stop := context.AfterFunc(ctx, func() { c.Close() })
			for ctx.Err() == nil {
				now := time.Since(begun).Seconds()
				n := int64(rate / 20 * (1.2 + math.Sin(now/17+phase) + 0.2*math.Sin(now/2.3+phase)))
				if _, err := io.CopyN(io.Discard, c, n); err != nil {
					break
				}
				if math.Mod(now+20*phase, 70) < 12 { // gone for a while
					break
				}
				pause(ctx, 50*time.Millisecond)
			}
			stop()
			c.Close()
			pause(ctx, 9*time.Second)
		}
	}
	for i, key := range []string{"office", "studio"} {
		ports := []int{freePort(t), freePort(t)}
		made := strings.TrimSpace(run(t, "key", "add", key, "--state", state, "--allow", fmt.Sprintf("tcp/%d", ports[0]), "--allow", fmt.Sprintf("tcp/%d", ports[1])))
		var exposes []string
		for _, port := range ports {
			ln := listen(t, "tcp", "127.0.0.1:0")
			startPaced(t, ctx, ln)
			exposes = append(exposes, fmt.Sprintf("%d=%s", port, ln.Addr()))
		}
		b := start(t, append([]string{"bridge", made, "--proxy", loopback(link), "--state", t.TempDir(), "--log-format", "json"}, exposes...)...)
		for _, port := range ports {
			said(t, b, "service up", "service", fmt.Sprintf("tcp/%d", port))
		}
		for u := range 5 {
			users.Go(func() { visit(ports[u%2], 4e5*float64(1+u), float64(i*5+u)) })
		}
	}
	p := Start(t, Config{Flags: []string{"--lang=en-US", "--hide-scrollbars"}}).Open(t, at)
	p.Do(chromedp.EmulateViewport(1200, 900))
	logIn(p, token)
	pause(t.Context(), length-time.Since(begun)) // what it shows is what happened in this time
	p.Await(`document.querySelectorAll('.chart canvas').length == 2`)
	png, err := chromedp.Run(p.ctx, chromedp.CaptureScreenshot())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, png, 0o644); err != nil {
		t.Fatal(err)
	}
	if small, err := exec.LookPath("pngquant"); err == nil {
		if out, err := exec.Command(small, "--force", "--ext", ".png", "--speed", "1", "256", file).CombinedOutput(); err != nil {
			t.Errorf("pngquant: %v\n%s", err, out)
		}
	}
	p.Quiet()
}

// startPaced starts a server that sends to whoever connects as fast as they read.
func startPaced(t *testing.T, ctx context.Context, ln net.Listener) {
	t.Helper()
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				stop := context.AfterFunc(ctx, func() { c.Close() })
				defer stop()
				// The buffers between are small, so that what is counted is what users read.
				_ = c.(*net.TCPConn).SetWriteBuffer(16 << 10)
				_, _ = io.Copy(c, rand.Reader) // until the user goes
			})
		}
	})
	t.Cleanup(all.Wait)
	t.Cleanup(func() { ln.Close() })
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
