package browser

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"reverser/e2e/faultnet"
)

// logs waits until the page of events has an event with the words.
func logs(p *Page, words string) {
	p.t.Helper()
	p.Await(fmt.Sprintf(`document.querySelector('#log')?.textContent.includes(%s)`, quote(words)))
}

// TestTabs opens several tabs, of which a browser has six connections in all to a server without TLS.
func TestTabs(t *testing.T) {
	t.Parallel()
	_, state, _, at, token := startWatched(t)
	browser := Start(t, Config{})
	addKey := func(name string) { run(t, "key", "add", name, "--state", state, "--allow", "tcp/9000") }
	addKey("first")

	var tabs []*Page
	for range 4 {
		p := browser.Open(t, at)
		logIn(p, token)
		show(p, "events")
		logs(p, "first")
		tabs = append(tabs, p)
	}
	last := tabs[3]
	show(last, "overview")
	last.Do(click("#reload"))
	last.Await(`document.body.textContent.includes('nothing is different')`)
	show(last, "events")

	// A tab that nobody sees asks for nothing, and goes on where it was when somebody looks.
	hidden := tabs[0]
	hidden.Script(`
		window.asked = 0;
		const ask = window.fetch;
		window.fetch = (...args) => (window.asked++, ask(...args));
		window.hide = (hidden) => {
			Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });
			document.dispatchEvent(new Event('visibilitychange'));
		}`)
	hidden.Await(`window.asked > 0`)
	hidden.Script(`window.hide(true); window.asked = 0;`)
	for _, name := range []string{"second", "third"} {
		addKey(name)
		for _, p := range tabs[1:] {
			logs(p, name)
		}
	}
	if n := Eval[int](hidden, `return window.asked`); n != 0 {
		t.Errorf("a hidden tab asks %d times", n)
	}
	hidden.Script(`window.hide(false)`)
	logs(hidden, "third")
	if n := Eval[int](hidden, `return [...document.querySelectorAll('#log tbody tr')].filter((r) => r.textContent.includes('first')).length`); n != 1 {
		t.Errorf("the first event is shown %d times", n)
	}
	for _, p := range tabs {
		p.Quiet()
	}
}

// TestEventsOverDeadConnection has the connections of a page carry nothing any more, without an end.
func TestEventsOverDeadConnection(t *testing.T) {
	t.Parallel()
	_, state, _, at, token := startWatched(t)
	way := faultnet.Start(listen(t, "tcp", "127.0.0.1:0"), func() (*net.TCPConn, error) {
		c, err := net.Dial("tcp", strings.Trim(strings.TrimPrefix(at, "http:"), "/"))
		if err != nil {
			return nil, err
		}
		return c.(*net.TCPConn), nil
	}, nil)
	defer way.Close()
	p := Start(t, Config{}).Open(t, "http://"+way.Addr()+"/")
	logIn(p, token)
	show(p, "events")
	logs(p, "proxy listening")
	way.Drop()
	run(t, "key", "add", "late", "--state", state, "--allow", "tcp/9000")
	p.Await(`document.querySelector('.lost, .problem')`) // what is shown is not of now
	logs(p, "late")
	p.Await(`!document.querySelector('.lost, .problem')`)
}
