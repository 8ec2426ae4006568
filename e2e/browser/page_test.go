package browser

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"reverser/e2e/process"
)

// The page of a real proxy with a real bridge, as its operator uses it.

// startWatched starts a proxy that serves the page.
func startWatched(t *testing.T, args ...string) (p *process.Process, state string, link int, at, token string) {
	t.Helper()
	port := freePort(t)
	p, state, link = startProxy(t, append([]string{"--admin", loopback(port)}, args...)...)
	b, err := os.ReadFile(filepath.Join(state, "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	return p, state, link, "http://" + loopback(port) + "/", strings.TrimSpace(string(b))
}

// startSource starts a server that sends to whoever connects until they go.
func startSource(t *testing.T, ln net.Listener) {
	t.Helper()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				b := make([]byte, 16<<10)
				rand.Read(b)
				for err == nil {
					_, err = c.Write(b)
				}
			})
		}
	})
	t.Cleanup(wg.Wait)
	t.Cleanup(func() { ln.Close() })
}

func listen(t *testing.T, network, addr string) net.Listener {
	t.Helper()
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func TestPage(t *testing.T) {
	t.Parallel()
	public := freePort(t)
	conf := filepath.Join(t.TempDir(), "proxy.toml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("drain = \"1m\"\n")
	proxy, state, link, at, token := startWatched(t, "--config", conf)
	// What a bridge says of itself may be anything.
	const script = `<script>window.hit=1;<` + `img src=x onerror=window.hit=1>`
	dir, err := os.MkdirTemp("", "page")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	sock := filepath.Join(dir, script)
	startSource(t, listen(t, "unix", sock))
	key := strings.TrimSpace(run(t, "key", "add", "nas", "--state", state, "--allow", fmt.Sprintf("tcp/%d", public)))
	bridge := start(t, "bridge", key, "--proxy", loopback(link), "--state", t.TempDir(), "--log-format", "json", fmt.Sprintf("%d=unix:%s", public, sock))
	said(t, bridge, "service up", "service", fmt.Sprintf("tcp/%d", public))

	browser := Start(t, Config{})
	p := browser.Open(t, at)
	accessible(t, p, "login")
	typeInto(p, "#token", "wrong")
	p.Do(click("form button"))
	p.Await(`document.querySelector('[role=alert]')?.textContent === 'That is not the token of this process.'`)
	p.Forget() // the browser says of each refusal that it was one
	logIn(p, token)
	p.Await(`document.querySelector('.pulse.good')`)
	if stored := Eval[string](p, `return JSON.stringify([{...localStorage}, {...sessionStorage}]) + document.cookie + location.href`); strings.Contains(stored, token) {
		t.Errorf("the browser keeps the token where scripts can read it: %s", stored)
	}

	service := fmt.Sprintf("tcp/%d", public)
	p.Await(`document.body.textContent.includes('Nothing is wrong')`)
	p.Await(fmt.Sprintf(`[...document.querySelectorAll('main tr')].some((r) => r.textContent.includes(%s) && r.textContent.includes(%s) && r.querySelector('.badge.good'))`, quote(service), quote(script)))
	accessible(t, p, "overview")
	p.Picture("overview")

	t.Run("end a connection", func(t *testing.T) {
		user, err := net.Dial("tcp", loopback(public))
		if err != nil {
			t.Fatal(err)
		}
		defer user.Close()
		ended := make(chan error, 1)
		go func() {
			_, err := io.Copy(io.Discard, user)
			ended <- err
		}()
		show(p, "connections")
		me := user.LocalAddr().String()
		mine := row("pairs", me)
		p.Await(mine)
		// Columns: rates each way, then totals each way.
		total := mine + `?.querySelectorAll('td.num:not(.narrow)')[3].textContent`
		before := Eval[string](p, "return "+total)
		p.Await(fmt.Sprintf(`/[1-9].*B\/s/.test(%s?.querySelectorAll('td.num:not(.narrow)')[1].textContent)`, mine))
		p.Await(fmt.Sprintf("%s != %s", total, quote(before)))
		accessible(t, p, "connections")
		p.Picture("connections")

		end := fmt.Sprintf("#pairs button[aria-label*=%s]", quote(me))
		p.Do(click(end))
		p.Await(`document.querySelector('dialog[open]')?.textContent.includes(` + quote(me) + `)`)
		accessible(t, p, "the question before the end")
		p.Do(press(kb.Escape))
		p.Await(`!document.querySelector('dialog')`)
		p.Await(fmt.Sprintf(`document.activeElement == document.querySelector(%s)`, quote(end)))
		select {
		case err := <-ended:
			t.Fatalf("the connection has ended though nobody said so: %v", err)
		default:
		}
		p.Do(click(end))
		p.Do(click("dialog button.danger"))
		if err := <-ended; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the connection ends with %v, want a reset", err)
		}
		hears(p, "was ended")
	})
	if t.Failed() {
		return
	}

	// While somebody is at the list, what has ended stands in it.
	t.Run("a connection that has ended", func(t *testing.T) {
		show(p, "connections")
		var users [2]net.Conn
		for i := range users {
			var err error
			if users[i], err = net.Dial("tcp", loopback(public)); err != nil {
				t.Fatal(err)
			}
			defer users[i].Close()
			p.Await(row("pairs", users[i].LocalAddr().String()))
		}
		p.Script(fmt.Sprintf(`document.querySelector('#pairs button[aria-label*=%s]').focus()`, quote(users[0].LocalAddr().String())))
		p.Await(`document.body.textContent.includes('The order stands still')`)
		users[1].Close()
		p.Await(row("pairs", users[1].LocalAddr().String()) + `?.classList.contains('ended')`)
		accessible(t, p, "a connection that has ended")
		p.Script(`document.activeElement.blur()`)
		p.Await(`!` + row("pairs", users[1].LocalAddr().String()))
	})

	t.Run("end those of a service", func(t *testing.T) {
		show(p, "connections")
		var users []net.Conn
		for range 5 {
			user, err := net.Dial("tcp", loopback(public))
			if err != nil {
				t.Fatal(err)
			}
			defer user.Close()
			users = append(users, user)
		}
		typeInto(p, "#search", "127.0.0.0/8")
		p.Await(`document.querySelector('#end-all')?.textContent.includes('5')`)
		p.Do(click("#end-all"))
		p.Do(click("dialog button.danger"))
		hears(p, "Connections ended: 5")
		for _, user := range users {
			if _, err := io.Copy(io.Discard, user); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("a connection ends with %v, want a reset", err)
			}
		}
	})

	t.Run("keys, with the keyboard alone", func(t *testing.T) {
		show(p, "keys")
		p.Await(row("keys", "nas") + `?.querySelector('.badge.good')`)
		accessible(t, p, "keys")
		other := freePort(t)
		// The first Tab reaches the way past the menu, and Tabs reach everything.
		p.Script(`window.before = true; setTimeout(() => location.reload())`)
		p.Await(`!window.before && document.querySelector('#add-key')`)
		p.Do(press(kb.Tab))
		p.Await(`document.activeElement.classList.contains('skip') && document.activeElement.getBoundingClientRect().top >= 0`)
		p.Do(press(kb.Enter))
		p.Await(`document.activeElement.id == 'content'`)
		p.Do(press(kb.Tab))
		p.Await(`document.activeElement.id == 'add-key' && getComputedStyle(document.activeElement).outlineStyle != 'none'`)
		p.Do(press(kb.Enter))
		p.Await(`document.activeElement.name == 'name'`)
		accessible(t, p, "a new key")
		p.Do(keys("desk"), press(kb.Tab), keys(fmt.Sprintf("tcp/%d", other)))
		p.Do(press(kb.Tab), press(kb.Tab), press(kb.Tab))
		for range 20 { // the focus goes round in the dialog
			p.Do(press(kb.Tab))
			if Eval[bool](p, `return !document.activeElement.closest('dialog')`) {
				t.Fatal("the focus leaves the dialog")
			}
		}
		p.Script(`document.querySelector('dialog [name=name]').focus()`)
		p.Do(press(kb.Enter))
		p.Await(`document.querySelector('#token-text')`)
		accessible(t, p, "a token")
		shown := Eval[string](p, `return document.querySelector('#token-text').textContent`)
		p.Await(`document.activeElement.id == 'copy-token'`)
		p.Do(press(kb.Escape))
		p.Await(`document.activeElement.id == 'add-key' && !document.body.textContent.includes(` + quote(shown) + `)`)

		echo := listen(t, "tcp", "127.0.0.1:0")
		startSource(t, echo)
		b := start(t, "bridge", shown, "--proxy", loopback(link), "--state", t.TempDir(), "--log-format", "json", fmt.Sprintf("%d=%s", other, echo.Addr()))
		said(t, b, "service up", "service", fmt.Sprintf("tcp/%d", other))
		p.Await(row("keys", "desk") + `?.querySelector('.badge.good')`)

		user, err := net.Dial("tcp", loopback(other))
		if err != nil {
			t.Fatal(err)
		}
		defer user.Close()
		if _, err := io.ReadFull(user, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		p.Script(`document.querySelector('#keys button[aria-label="Edit: desk"]').focus()`)
		p.Do(press(kb.Enter))
		p.Await(`document.activeElement.name == 'allow' && document.activeElement.value == ` + quote(fmt.Sprintf("tcp/%d", other)))
		p.Do(press(kb.Tab), keys("3"), press(kb.Tab), press(kb.Tab), keys("2d"), press(kb.Enter))
		hears(p, "desk is changed")
		p.Await(fmt.Sprintf(`/: 3/.test(%[1]s?.textContent) && /in 1d 23h/.test(%[1]s?.textContent)`, row("keys", "desk")))

		// What somebody else changes while the dialog is open stays, unless it is changed there as well.
		run(t, "key", "edit", "desk", "--state", state, "--allow", fmt.Sprintf("tcp/%d", other), "--allow", "tcp/9000-9009")
		p.Await(row("keys", "desk") + `?.textContent.includes('tcp/9000-9009')`)
		p.Do(click(`#keys button[aria-label="Edit: desk"]`))
		p.Await(`document.activeElement.name == 'allow' && document.activeElement.value.endsWith('tcp/9000-9009')`)
		run(t, "key", "edit", "desk", "--state", state, "--allow", fmt.Sprintf("tcp/%d", other))
		p.Do(press(kb.Tab), keys("4"), press(kb.Enter))
		hears(p, "desk is changed")
		p.Await(fmt.Sprintf(`/: 4/.test(%[1]s?.textContent) && !%[1]s?.textContent.includes('tcp/9000-9009')`, row("keys", "desk")))
		p.Do(click(`#keys button[aria-label="Edit: desk"]`))
		p.Await(`document.querySelector('dialog [name=max_services]')?.value == 4`)
		p.Do(click(`dialog button[type=submit]`)) // nothing is different
		hears(p, "desk is changed")
		p.Await(fmt.Sprintf(`/: 4/.test(%[1]s?.textContent) && !%[1]s?.textContent.includes('tcp/9000-9009')`, row("keys", "desk")))

		p.Script(`document.querySelector('#keys button[aria-label="New secret: desk"]').focus()`)
		p.Do(press(kb.Enter))
		p.Await(`document.querySelector('dialog[open]')?.textContent.includes('The old one stays valid')`)
		p.Do(press(kb.Tab))
		p.Await(`document.activeElement.classList.contains('primary')`)
		p.Do(press(kb.Enter))
		p.Await(`document.querySelector('#token-text')`)
		next := Eval[string](p, `return document.querySelector('#token-text').textContent`)
		if next == shown {
			t.Error("the new token is the old one")
		}
		p.Do(press(kb.Escape))
		p.Await(`!document.querySelector('dialog')`)
		if _, err := io.ReadFull(user, make([]byte, 1<<20)); err != nil {
			t.Errorf("a connection, when its key has a new secret: %v", err)
		}
		b.Kill()
		b = start(t, "bridge", next, "--proxy", loopback(link), "--state", t.TempDir(), "--log-format", "json", fmt.Sprintf("%d=%s", other, echo.Addr()))
		said(t, b, "service up", "service", fmt.Sprintf("tcp/%d", other))
		p.Await(row("keys", "desk") + `?.querySelector('.badge.good')`)
		if user, err = net.Dial("tcp", loopback(other)); err != nil {
			t.Fatal(err)
		}
		defer user.Close()
		if _, err := io.ReadFull(user, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}

		remove := `document.querySelector('#keys button[aria-label="Remove: desk"]')`
		p.Await(`document.querySelector('.pulse.good')`)
		p.Script(remove + `.focus()`)
		p.Do(press(kb.Enter))
		p.Await(`/links: 1, services: 1, connections: 1/.test(document.querySelector('dialog[open]')?.textContent)`)
		p.Do(press(kb.Tab))
		p.Await(`document.activeElement.classList.contains('danger')`)
		p.Do(press(kb.Enter))
		hears(p, "desk is removed")
		p.Await(`!` + row("keys", "desk"))
		if _, err := io.Copy(io.Discard, user); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the connection of a removed key ends with %v, want a reset", err)
		}
	})

	t.Run("drain", func(t *testing.T) {
		show(p, "overview")
		user, err := net.Dial("tcp", loopback(public))
		if err != nil {
			t.Fatal(err)
		}
		defer user.Close()
		if _, err := io.ReadFull(user, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		p.Do(click(fmt.Sprintf(`button[aria-label="Drain: %s"]`, service)))
		p.Do(click("dialog button.danger"))
		hears(p, "takes no new users")
		undo := fmt.Sprintf(`button[aria-label="Undo drain: %s"]`, service)
		p.Await(fmt.Sprintf("document.querySelector(%s)", quote(undo)))
		p.Await(`document.querySelector('.wrong')?.textContent.includes('drained by the operator')`)
		if _, err := io.ReadFull(user, make([]byte, 1<<20)); err != nil {
			t.Errorf("a connection of a drained service: %v", err)
		}
		if late, err := net.Dial("tcp", loopback(public)); err == nil {
			if n, err := io.Copy(io.Discard, late); n > 0 || err == nil {
				t.Errorf("a new user of a drained service gets %d bytes, %v; want a reset", n, err)
			}
			late.Close()
		}
		p.Do(click(undo))
		hears(p, "takes users again")
		p.Await(`document.body.textContent.includes('Nothing is wrong')`)
	})

	// Its order is there before its services are, and can be taken back without them.
	t.Run("drain a key that has no bridge", func(t *testing.T) {
		other := freePort(t)
		token := strings.TrimSpace(run(t, "key", "add", "spare", "--state", state, "--allow", fmt.Sprintf("tcp/%d", other)))
		show(p, "keys")
		p.Await(row("keys", "spare") + `?.textContent.includes('not connected')`)
		drain := `#keys button[aria-label="Drain: spare"]`
		undo := `#keys button[aria-label="Undo drain: spare"]`
		isDrained := row("keys", "spare") + `?.querySelector('.badge.warn')?.textContent == 'drained'`
		drained := func() {
			t.Helper()
			p.Script(fmt.Sprintf(`document.querySelector(%s).focus()`, quote(drain)))
			p.Do(press(kb.Enter))
			p.Await(`/services \(0\).*connections \(0\)/.test(document.querySelector('dialog[open]')?.textContent)`)
			p.Do(press(kb.Tab))
			p.Await(`document.activeElement.classList.contains('danger')`)
			p.Do(press(kb.Enter))
			hears(p, "The key spare takes no new users")
			p.Await(isDrained)
			p.Await(fmt.Sprintf(`document.activeElement.matches(%s)`, quote(undo))) // where the focus was
		}
		undone := func() {
			t.Helper()
			p.Do(press(kb.Enter))
			hears(p, "The key spare takes users again")
			p.Await(fmt.Sprintf(`!(%s) && document.activeElement.matches(%s)`, isDrained, quote(drain)))
		}
		drained()
		accessible(t, p, "a drained key")
		p.Picture("drained-key")
		undone()
		drained()
		show(p, "overview")
		p.Await(`document.body.textContent.includes('Nothing is wrong')`)
		show(p, "keys")
		p.Await(isDrained) // as the process says
		p.Script(fmt.Sprintf(`document.querySelector(%s).focus()`, quote(undo)))
		undone()

		echo := listen(t, "tcp", "127.0.0.1:0")
		startSource(t, echo)
		b := start(t, "bridge", token, "--proxy", loopback(link), "--state", t.TempDir(), "--log-format", "json", fmt.Sprintf("%d=%s", other, echo.Addr()))
		said(t, b, "service up", "service", fmt.Sprintf("tcp/%d", other))
		user, err := net.Dial("tcp", loopback(other))
		if err != nil {
			t.Fatal(err)
		}
		defer user.Close()
		if _, err := io.ReadFull(user, make([]byte, 1)); err != nil {
			t.Errorf("a user, behind the undo: %v", err)
		}
		user.Close()
		b.Kill()
		run(t, "key", "remove", "spare", "--state", state)
		p.Await(`!` + row("keys", "spare"))
	})

	t.Run("the charts say what is now", func(t *testing.T) {
		show(p, "overview")
		p.Await(`document.querySelectorAll('.charts > *').length == 2`)
		for range 3 {
			user, err := net.Dial("tcp", loopback(public))
			if err != nil {
				t.Fatal(err)
			}
			defer user.Close()
			if _, err := io.ReadFull(user, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
		said := Eval[[]int](p, `const frame = () => new Promise(requestAnimationFrame);
			const open = () => Number(document.querySelector('.figures dd').firstChild.textContent);
			while (open() < 3) await frame();
			await frame();
			const [, now, most] = /now (\d+), highest (\d+)/.exec(document.querySelectorAll('.charts > *')[1].textContent);
			return [open(), Number(now), Number(most)]`)
		if said[0] != said[1] || said[2] < said[1] { // the history comes every ten seconds
			t.Errorf("%d connections are open, and the chart says that %d are now, and %d were at most", said[0], said[1], said[2])
		}
	})

	t.Run("reload", func(t *testing.T) {
		show(p, "overview")
		write("drain = \"1m\"\nmax_pairs = \"many\"\n")
		p.Await(`document.querySelector('#reload')`)
		p.Do(click("#reload"))
		p.Await(`/proxy\.toml:2/.test(document.querySelector('pre.problem')?.textContent)`)
		p.Await(`document.querySelector('.wrong .bad')?.textContent.includes('reload was refused')`)
		accessible(t, p, "a reload that was refused")
		p.Picture("reload")
		write("drain = \"2m\"\n")
		p.Forget()
		p.Do(click("#reload"))
		p.Await(`document.querySelector('.done')`) // says what has changed, unless the process has seen the file change by itself
		p.Await(`!document.querySelector('.wrong .bad')`)
	})

	t.Run("what peers say is text", func(t *testing.T) {
		for _, view := range []string{"overview", "connections", "events", "usage"} {
			p.Script(fmt.Sprintf("location.hash = '#/%s'", view))
			p.Await(`document.querySelector('main').children.length > 1`)
		}
		if Eval[bool](p, `return 'hit' in window || document.querySelectorAll('main script, main img').length > 0`) {
			t.Error("a target's name became part of the page")
		}
	})

	t.Run("Chinese, dark, on a phone", func(t *testing.T) {
		phone := browser.Tab(t)
		phone.Do(chromedp.EmulateViewport(360, 740, chromedp.EmulateMobile))
		if err := phone.Go(at); err != nil {
			t.Fatal(err)
		}
		logIn(phone, token) // a session is a tab's
		phone.Await(`document.querySelector('nav')`)
		phone.Script(`for (const [i, value] of ['zh', 'dark'].entries()) {
			const choice = document.querySelectorAll('.choices select')[i];
			choice.value = value;
			choice.dispatchEvent(new Event('change', {bubbles: true}));
		}`)
		phone.Await(`document.documentElement.lang == 'zh-CN' && document.querySelector('nav').textContent.includes('概览')`)
		if err := phone.Go(at); err != nil { // it is remembered
			t.Fatal(err)
		}
		phone.Await(`document.documentElement.lang == 'zh-CN' && document.documentElement.dataset.theme == 'dark'`)
		phone.Await(`document.querySelector('main')?.textContent.includes('一切正常')`)
		views := Eval[[]string](phone, `return [...document.querySelectorAll('nav a')].map((a) => a.getAttribute('href').slice(2))`)
		if len(views) < 4 {
			t.Errorf("the views are %v", views)
		}
		for _, view := range views {
			show(phone, view)
			phone.Await(`document.querySelector('main').children.length > 1 && !document.querySelector('main').textContent.includes('正在载入')`)
			if size := Eval[[]float64](phone, `return [document.documentElement.scrollWidth, innerWidth]`); size[0] > size[1] {
				t.Errorf("%s is %v wide on a screen of %v", view, size[0], size[1])
			}
			if words := Eval[string](phone, `return [...document.querySelectorAll('h2, h3, thead th, button, label > span, nav a, .empty')].map((x) => x.textContent).find((x) => /\b[a-z]+\.[a-zA-Z.]+\b/.test(x) && !/example\.com/.test(x)) || ''`); words != "" {
				t.Errorf("%s has the name of a word in the place of the word: %q", view, words)
			}
			if view == "keys" { // columns that have no room are a line below the name
				phone.Await(`[...document.querySelectorAll('#keys tbody th .narrow')].some((x) => x.offsetParent && /^已连接/.test(x.textContent))`)
			}
			accessible(t, phone, "a phone with "+view)
			phone.Picture("phone-" + view)
		}
		phone.Quiet()
	})

	t.Run("another port of the host", func(t *testing.T) {
		sent := make(chan http.Header, 16)
		service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/" {
				sent <- r.Header.Clone()
			}
			w.Header().Set("Content-Type", "text/html")
		}))
		defer service.Close()
		other := browser.Open(t, service.URL) // 127.0.0.1 too, as the page
		req, err := http.NewRequest("GET", at+"api/v1/status", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header = <-sent
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("with what a browser sends to another service of the host the API answers %s: %v", resp.Status, req.Header)
		}
		if kept := Eval[string](other, `return JSON.stringify([{...localStorage}, {...sessionStorage}]) + document.cookie`); kept != "[{},{}]" {
			t.Errorf("another service of the host can read %s", kept)
		}
	})

	t.Run("a process that is silent", func(t *testing.T) {
		show(p, "overview")
		p.Await(`document.querySelector('.pulse.good')`)
		if err := proxy.Cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		p.Await(`document.querySelector('.lost')?.textContent.includes('has not answered since')`)
		if err := proxy.Cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		p.Await(`!document.querySelector('.lost') && document.querySelector('.pulse.good')`)
	})
	p.Forget() // requests that were given up meanwhile

	p.Do(click("header button"))
	p.Await(`document.querySelector('#token')`)
	p.Quiet()
	if bytes.Contains(proxy.Stderr.Bytes(), []byte(token)) {
		t.Error("the log has the token")
	}
}
