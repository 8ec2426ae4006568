package browser

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chromedp/chromedp"

	"reverser/internal/state"
	"reverser/internal/status"
	"reverser/internal/usage"
)

// month is a process that carried something every day.
type month struct {
	days uint64
	keys []string
}

func (m *month) Counted(yield func(status.Counted) bool) {
	for i := range m.keys {
		n := m.days * uint64(i+1)
		if !yield(status.Counted{Key: [16]byte{byte(i)}, Service: fmt.Sprintf("tcp/900%d", i), Connections: n, Sent: n * 1e9, Received: n * 1e10}) {
			return
		}
	}
}

func (m *month) KeyName(id [16]byte) string { return m.keys[id[0]] }

// TestPageUsage: what a proxy carried in a month, before this one was started, is shown by day, by month, and for each service and key.
func TestPageUsage(t *testing.T) {
	t.Parallel()
	const days = 31
	dir := t.TempDir()
	run(t, "key", "add", "nas", "--state", dir, "--allow", "tcp/9000") // makes the directory
	today := time.Now().UTC()
	if left := time.Until(time.Date(today.Year(), today.Month(), today.Day()+1, 0, 0, 0, 0, time.UTC)); left < 10*time.Minute {
		t.Skipf("the day ends in %v, and the page would show one that this test does not know of", left)
	}
	now := time.Date(today.Year(), today.Month(), today.Day(), 0, 0, 1, 0, time.UTC)
	synctest.Test(t, func(t *testing.T) { // where a month passes at once
		time.Sleep(time.Until(now.AddDate(0, 0, -days+1)))
		place, err := state.OpenUsage(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer place.Close()
		source := &month{keys: []string{"nas", "desk"}}
		store := usage.New(source, place, nil)
		if err := store.Save(t.Context()); err != nil { // what is counted before is not of a period
			t.Fatal(err)
		}
		for range days {
			source.days++
			if err := store.Save(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(24 * time.Hour)
		}
	})
	port := freePort(t)
	p := start(t, "proxy", "--listen", loopback(freePort(t)), "--state", dir, "--log-format", "json", "--admin", loopback(port))
	said(t, p, "proxy listening")
	token, err := os.ReadFile(filepath.Join(dir, "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	b := Start(t, Config{}).Open(t, "http://"+loopback(port)+"/")
	logIn(b, strings.TrimSpace(string(token)))
	show(b, "usage")
	b.Await(`document.querySelector('.chart canvas')`)
	b.Await(row("usage-parts", "tcp/9001") + `?.textContent.includes('desk')`)
	if rows := Eval[int](b, `return document.querySelectorAll('#usage-times tbody tr').length`); rows != days {
		t.Errorf("the table has %d days, want %d", rows, days)
	}
	// 31 × (1 + 2) GB to the targets, and ten times that back.
	b.Await(`/↑ 93\.0 GB, ↓ 930\.0 GB/.test(document.querySelector('.chart figcaption').textContent)`)
	b.Await(row("usage-parts", "tcp/9000") + `.textContent.includes('31.0 GB310.0 GB31')`)
	drawn := Eval[bool](b, `const c = document.querySelector('.chart canvas');
		const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
		return d.some((v) => v > 0);`)
	if !drawn {
		t.Error("the chart is empty")
	}
	accessible(t, b, "usage")
	b.Picture("usage")
	wrong := Eval[string](b, `const {problems} = await import('/overview.js');
		const list = problems({role: 'proxy', pressure: [], services: [], links: [{state: 'up'}], usage: {file: '/x/usage.db', error: 'no space', put_aside: '/x/aside', damage: 'a bad checksum'}});
		return list.map((p) => [p.bad, p.what, p.why].join(' ')).join('; ');`)
	if want := "true Usage cannot be stored in /x/usage.db, and is kept in memory no space; false The file of usage was damaged, and put aside as /x/aside a bad checksum"; wrong != want {
		t.Errorf("the page says %q, want %q", wrong, want)
	}
	ends := Eval[string](b, `const {problems} = await import('/overview.js');
		const at = (seconds) => new Date(Date.now() + seconds * 1000).toISOString(), day = 86400;
		const list = problems({role: 'proxy', pressure: [], services: [], links: [{state: 'up'}],
			keys: [{key: 'never'}, {key: 'later', expires: at(8 * day)}, {key: 'soon', expires: at(2 * day + 5400)}, {key: 'over', expires: at(-90 * day), expired: true}],
			certificates: [
				{host: 'later', state: 'valid', not_after: at(8 * day)}, {host: 'soon', state: 'valid', not_after: at(3 * day + 5400)},
				{host: 'renews', state: 'valid', not_after: at(5 * day), renew_at: at(day)}, {host: 'busy', state: 'valid', not_after: at(5 * day), renew_at: at(-60)},
				{host: 'late', state: 'valid', not_after: at(5 * day + 5400), renew_at: at(-7200)},
			]});
		return list.map((p) => p.what).join('; ');`)
	if want := "Key over expired 90d 0h ago; Key soon expires in 2d 1h; The certificate of soon expires in 3d 1h; The certificate of late expires in 5d 1h"; ends != want {
		t.Errorf("the page says %q, want %q", ends, want)
	}
	room := Eval[string](b, `const {Chart} = await import('/chart.js');
		const {html, render} = await import('/html.js');
		const {speedOf} = await import('/format.js');
		const box = document.body.appendChild(document.createElement('div'));
		let longest = '';
		const format = (n) => { const text = speedOf(n); if (text.length > longest.length) longest = text; return text; };
		const made = new Promise((done) => new MutationObserver(() => box.querySelector('.u-over') && done()).observe(box, {subtree: true, childList: true}));
		render(html`+"`<${Chart} title=x says=x data=${[[1, 2, 3], [0, 123456789, 654321000]]} format=${format} series=${[{name: 'x', colour: '--up'}]} />`"+`, box);
		await made;
		await new Promise((done) => setTimeout(done));
		const pen = document.createElement('canvas').getContext('2d');
		pen.font = '11px system-ui, sans-serif';
		const wide = pen.measureText(longest).width;
		const left = box.querySelector('.u-over').offsetLeft;
		render(null, box);
		box.remove();
		return left >= wide + 9 ? '' : longest + ' is ' + wide + ' wide, and there is room for ' + left;`)
	if room != "" {
		t.Errorf("a label of a chart is cut: %s", room)
	}
	covered := Eval[string](b, `const box = document.body.appendChild(document.createElement('dialog'));
		box.innerHTML = '<label><span>x</span><input></label><p class="note">hint</p><label><span>x</span><textarea rows="3"></textarea></label><p class="note">hint</p>';
		box.showModal();
		const bad = [];
		for (const field of box.querySelectorAll('input, textarea')) {
			field.focus();
			const look = getComputedStyle(field);
			const end = field.getBoundingClientRect().bottom + parseFloat(look.outlineWidth) + parseFloat(look.outlineOffset);
			const words = document.createRange();
			words.selectNodeContents(field.closest('label').nextElementSibling);
			const begin = words.getBoundingClientRect().top;
			if (look.outlineStyle === 'none' || end > begin) bad.push(field.tagName + ': the ring ends at ' + end + ', the hint begins at ' + begin);
		}
		box.remove();
		return bad.join('; ')`)
	if covered != "" {
		t.Errorf("the focus ring covers the hint: %s", covered)
	}
	choose := func(what, value string) {
		t.Helper()
		b.Script(fmt.Sprintf(`const choice = document.querySelector(%q);
			choice.value = %q;
			choice.dispatchEvent(new Event('change', {bubbles: true}));`, what, value))
	}
	choose("#of", "key desk")
	b.Await(`/↑ 62\.0 GB, ↓ 620\.0 GB/.test(document.querySelector('.chart figcaption').textContent)`)
	choose("#of", "service tcp/9000")
	b.Await(`/↑ 31\.0 GB/.test(document.querySelector('.chart figcaption').textContent)`)
	choose("#of", "")
	choose("#by", "month")
	b.Await(`/↑ 93\.0 GB/.test(document.querySelector('.chart figcaption')?.textContent) && document.querySelectorAll('#usage-times tbody tr').length < 4`)
	b.Do(chromedp.EmulateViewport(360, 740, chromedp.EmulateMobile))
	b.Await(`document.documentElement.scrollWidth <= innerWidth`)
	b.Picture("phone-usage")
	b.Quiet()
}
