// Package browser runs Debian's Chromium, headless, for tests of what people see: pages of services behind a proxy, and the
// program's own.
//
// Each [Browser] is a process with a new profile, and ends with its test. A [Page] keeps what the browser complains about while it
// shows it. Where Chromium is not installed a test is skipped, and fails with CI=true in the environment. Nothing but this machine is
// reached: names below .example, .example.com and .test lead to 127.0.0.1, all others nowhere.
//
// The folder named by REVERSER_E2E_ARTEFACTS gets the pictures that tests take, and one of every page of a test that failed.
package browser

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/remote"

	"reverser/e2e/process"
)

// artefactsEnv names the folder for pictures.
const artefactsEnv = "REVERSER_E2E_ARTEFACTS"

// patience is how long anything may take. It only bounds a hanging test: every wait ends as soon as its condition holds.
const patience = 90 * time.Second

// lifetime is how long a connection may be there. Many steps of a test share one, and a busy machine takes some time for each.
const lifetime = 4 * patience

// Config says what is special about a browser.
type Config struct {
	Trust []*x509.Certificate // servers that show one of these, or one issued with the key of one of these, are who they say
	Flags []string            // more of Chromium's own
}

// A Browser is a running Chromium.
type Browser struct {
	ctx context.Context // of the connection to it
}

// Start starts a browser, which ends with the test.
func Start(t testing.TB, c Config) *Browser {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("missing: chromium; on Debian: apt install chromium")
		}
		t.Skip("SKIPPED: missing: chromium; on Debian: apt install chromium")
	}
	profile := filepath.Join(t.TempDir(), "profile")
	args := []string{
		"--headless", "--remote-debugging-port=0", "--user-data-dir=" + profile, "--window-size=1280,800",
		// Nobody is asked anything, and nothing is said to anybody.
		"--no-first-run", "--no-default-browser-check", "--disable-background-networking", "--disable-component-update", "--disable-default-apps",
		"--disable-domain-reliability", "--disable-extensions", "--disable-sync", "--metrics-recording-only", "--no-pings", "--no-proxy-server",
		"--disable-breakpad", "--password-store=basic", "--use-mock-keychain", "--disable-features=Translate,OptimizationHints,MediaRouter",
		"--host-resolver-rules=MAP *.example 127.0.0.1,MAP *.example.com 127.0.0.1,MAP *.test 127.0.0.1,MAP * ~NOTFOUND,EXCLUDE 127.0.0.1,EXCLUDE localhost",
		// A tab in the background is not slower than one in front, and a small /dev/shm is enough.
		"--disable-background-timer-throttling", "--disable-backgrounding-occluded-windows", "--disable-renderer-backgrounding",
		"--disable-dev-shm-usage", "--disable-gpu", "--mute-audio", "--autoplay-policy=no-user-gesture-required",
	}
	if os.Getuid() == 0 {
		args = append(args, "--no-sandbox") // its sandbox refuses to be set up by root
	}
	if len(c.Trust) > 0 {
		var keys []string
		for _, cert := range c.Trust {
			sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
			keys = append(keys, base64.StdEncoding.EncodeToString(sum[:]))
		}
		args = append(args, "--ignore-certificate-errors-spki-list="+strings.Join(keys, ","))
	}
	p := process.New("chromium", path, nil, append(append(args, c.Flags...), "about:blank")...)
	if err := p.Start(nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		end(t, p, profile)
		if t.Failed() {
			t.Logf("--- chromium: %s\n%s", p.Cmd.ProcessState, p.Stderr.String())
		}
	})
	var at string
	await(t, "chromium says where it can be spoken to", func() bool {
		if !p.Running() {
			t.Fatalf("chromium has ended: %s\n%s", p.Cmd.ProcessState, p.Stderr.String())
		}
		if m := devTools.FindStringSubmatch(p.Stderr.String()); m != nil {
			at = m[1]
		}
		return at != ""
	})
	ctx, cancel := remote.NewAllocator(context.Background(), at, remote.NoModifyURL)
	t.Cleanup(func() {
		cancel()
		chromedp.FromContext(ctx).Allocator.Wait()
	})
	b := new(Browser)
	b.ctx, _ = chromedp.NewContext(ctx)
	t.Cleanup(func() { _ = chromedp.Cancel(b.ctx) }) // the browser is about to end
	if err := chromedp.Do(b.ctx); err != nil {
		t.Fatalf("speak to chromium: %v", err)
	}
	return b
}

var devTools = regexp.MustCompile(`DevTools listening on (ws://\S+)`)

// end asks a browser to end, ends what is left of it, and removes its profile.
func end(t testing.TB, p *process.Process, profile string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_ = p.Cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	if _, err := p.AwaitEnd(ctx); err != nil {
		p.Kill()
	}
	_ = syscall.Kill(-p.Cmd.Process.Pid, syscall.SIGKILL) // what it started is in its group
	await(t, "the profile can be removed", func() bool { return os.RemoveAll(profile) == nil })
}

// A Page is a tab of a browser.
type Page struct {
	t    testing.TB
	name string
	ctx  context.Context

	mu         sync.Mutex
	complaints []string                     // guarded by mu, as what follows
	urls       map[network.RequestID]string // of requests under way
}

// Open opens a tab with a URL, and waits until it is loaded. It is closed at the end of the test.
func (b *Browser) Open(t testing.TB, url string) *Page {
	t.Helper()
	p := b.Tab(t)
	if err := p.Go(url); err != nil {
		t.Fatal(err)
	}
	return p
}

// Tab opens an empty tab.
func (b *Browser) Tab(t testing.TB) *Page {
	t.Helper()
	p := &Page{t: t, name: strings.NewReplacer("/", "-", " ", "-").Replace(t.Name()), urls: make(map[network.RequestID]string)}
	p.ctx, _ = chromedp.NewContext(b.ctx, chromedp.WithListener(p.hear))
	t.Cleanup(func() { _ = chromedp.Cancel(p.ctx) })
	t.Cleanup(func() {
		if t.Failed() {
			for _, c := range p.Complaints() {
				t.Logf("the browser complains: %s", c)
			}
			p.Picture("failed-" + p.name)
		}
	})
	// The first action opens the tab, which lives as long as the context of that: no time limit there.
	if err := chromedp.Do(p.ctx, chromedp.Func(func(ctx context.Context, tab *chromedp.Target) error {
		_, err := cdp.Call(ctx, tab, network.Enable, network.EnableParams{})
		return err
	})); err != nil {
		t.Fatalf("open a tab: %v", err)
	}
	return p
}

// Go goes to a URL, and returns when it is loaded. An error of the server has a page too, and is none here.
func (p *Page) Go(url string) error {
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, chromedp.Navigate(url)); err != nil {
		return fmt.Errorf("go to %s: %w", url, err)
	}
	return nil
}

// hear keeps what is wrong.
func (p *Page) hear(event any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	complain := func(format string, args ...any) { p.complaints = append(p.complaints, fmt.Sprintf(format, args...)) }
	switch e := event.(type) {
	case *runtime.EventConsoleAPICalled:
		if e.Type == runtime.ConsoleAPICalledTypeError || e.Type == runtime.ConsoleAPICalledTypeWarning || e.Type == runtime.ConsoleAPICalledTypeAssert {
			var words []string
			for _, a := range e.Args {
				if a.Description != "" {
					words = append(words, a.Description)
				} else {
					words = append(words, string(a.Value))
				}
			}
			complain("console.%s: %s", e.Type, strings.Join(words, " "))
		}
	case *runtime.EventExceptionThrown:
		text := e.ExceptionDetails.Text
		if x := e.ExceptionDetails.Exception; x != nil {
			text += " " + x.Description
		}
		complain("exception: %s", text)
	case *log.EventEntryAdded:
		if e.Entry.Level == log.EntryLevelError || e.Entry.Level == log.EntryLevelWarning {
			complain("%s %s: %s %s", e.Entry.Source, e.Entry.Level, e.Entry.Text, e.Entry.URL)
		}
	case *network.EventRequestWillBeSent:
		p.urls[e.RequestID] = e.Request.Method + " " + e.Request.URL
	case *network.EventLoadingFinished:
		delete(p.urls, e.RequestID)
	case *network.EventLoadingFailed:
		if !e.Canceled { // by the page itself
			complain("network: %s: %s%s", p.urls[e.RequestID], e.ErrorText, e.BlockedReason)
		}
		delete(p.urls, e.RequestID)
	case *network.EventWebSocketFrameError:
		complain("websocket: %s", e.ErrorMessage)
	}
}

// Complaints are errors and warnings of the console, exceptions that nobody caught, what a policy of the page forbade, and requests
// that failed, as far as the browser has told of them.
func (p *Page) Complaints() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.complaints...)
}

// Forget drops the complaints until now: those that a test expects.
func (p *Page) Forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.complaints = nil
}

// Quiet fails the test for each complaint.
func (p *Page) Quiet() {
	p.t.Helper()
	for _, c := range p.Complaints() {
		p.t.Errorf("the browser complains: %s", c)
	}
}

// Do does something with the page.
func (p *Page) Do(actions ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		p.t.Fatalf("the page: %v", err)
	}
}

// Eval runs the body of an asynchronous function of JavaScript in a page, and returns what that returns.
func Eval[T any](p *Page, body string) T {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T]("(async () => {"+body+"\n})()", chromedp.EvalAwaitPromise))
	if err != nil {
		p.t.Fatalf("the page does not do %.200q: %v", body, err)
	}
	return v
}

// Script is Eval for what returns nothing.
func (p *Page) Script(body string) {
	p.t.Helper()
	Eval[bool](p, body+"\nreturn true")
}

// Await waits until an expression of JavaScript is true in the page, also when that loads another document meanwhile.
func (p *Page) Await(expression string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	await(p.t, expression, func() bool {
		ok, err := chromedp.Run(ctx, chromedp.Evaluate[bool]("!!("+expression+")"))
		return err == nil && ok
	})
}

// Picture takes a picture of what is to be seen, NAME.png, if the environment names a folder for it.
func (p *Page) Picture(name string) {
	p.t.Helper()
	dir := os.Getenv(artefactsEnv)
	if dir == "" {
		return
	}
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	png, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644)
	}
	if err != nil {
		p.t.Errorf("take a picture: %v", err)
	}
}

// await waits until cond holds.
func await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	pause := 5 * time.Millisecond
	for start := time.Now(); !cond(); time.Sleep(pause) {
		if time.Since(start) > patience {
			t.Fatalf("waited %v, without success, for: %s", patience, what)
		}
		pause = min(pause*3/2, 200*time.Millisecond)
	}
}
