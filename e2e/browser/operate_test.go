package browser

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/chromedp/chromedp"
)

// What an operator does with the page.

type action = chromedp.Action[chromedp.Void]

// click clicks on the first element that a CSS selector finds. A list that is live may put another element in its place before the mouse is
// there, or between its button's way down and up: then that one is clicked on.
func click(what string) action {
	watch := fmt.Sprintf(`window.clickedOn = false; document.addEventListener('click', (e) => { window.clickedOn ||= !!e.target.closest(%s); }, {capture: true}); true`, quote(what))
	return func(ctx context.Context, t *chromedp.Target) (v chromedp.Void, err error) {
		for range 10 {
			if _, err := chromedp.Evaluate[bool](watch)(ctx, t); err != nil {
				return v, err
			}
			_, err := chromedp.Click(what)(ctx, t)
			if err != nil && (strings.Contains(err.Error(), "-32000") || errors.Is(err, chromedp.ErrInvalidDimensions)) { // the element is gone
				continue
			}
			if err != nil {
				return v, err
			}
			if hit, err := chromedp.Evaluate[bool]("window.clickedOn !== false")(ctx, t); err != nil || hit { // another page says nothing of it
				return v, nil
			}
		}
		return v, fmt.Errorf("ten clicks on %s have not met it", what)
	}
}

func keys(text string) action  { return chromedp.KeyEvent(text) }
func press(key string) action  { return chromedp.KeyEvent(key) }
func quote(text string) string { b, _ := json.Marshal(text); return string(b) }
func row(table, has string) string {
	return fmt.Sprintf(`[...document.querySelectorAll('#%s tbody tr')].find((r) => r.textContent.includes(%s))`, table, quote(has))
}

func logIn(p *Page, token string) {
	p.t.Helper()
	typeInto(p, "#token", token)
	p.Do(click("form button"))
	p.Await(`document.querySelector('nav')`)
}

// hears waits until the page has said what came of an order, and its dialog has closed: a closing one gives the focus back.
func hears(p *Page, words string) {
	p.t.Helper()
	p.Await(fmt.Sprintf(`document.querySelector('.said').textContent.includes(%s) && !document.querySelector('dialog')`, quote(words)))
}

// show goes to a view of the page.
func show(p *Page, view string) {
	p.t.Helper()
	p.Script(fmt.Sprintf("location.hash = '#/%s'", view))
	p.Await(fmt.Sprintf(`document.querySelector('main').classList.contains(%q)`, view))
}

// typeInto puts text into a field in the place of what is there, as if it were typed.
func typeInto(p *Page, field, text string) {
	p.t.Helper()
	p.Await(fmt.Sprintf("document.querySelector(%q)", field))
	p.Script(fmt.Sprintf(`const field = document.querySelector(%q); field.focus(); field.select();`, field))
	p.Do(keys(text))
	p.Await(fmt.Sprintf("document.querySelector(%q).value == %q", field, strings.TrimSpace(text)))
}
