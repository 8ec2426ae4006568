package config

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Notify is one [[notify]]: where word goes of what happens.
type Notify struct {
	URL    string // a secret: whoever has it can write there
	Format string // of notifyFormats
	On     []string
	After  time.Duration // how long something has to be so until it is told
}

func (n Notify) equal(o Notify) bool {
	return n.URL == o.URL && n.Format == o.Format && n.After == o.After && slices.Equal(n.On, o.On)
}

var (
	notifyFormats = []string{"json", "slack", "wecom", "dingtalk", "feishu"}
	notifyEvents  = []string{"bridge-down", "bridge-up", "service-down", "service-up", "key-expiring", "certificate"}
	// laterEvents are those of versions to come. A file may have them: they never happen here.
	laterEvents = []string{"quota", "ban"}
)

const (
	defaultNotifyAfter = 30 * time.Second
	mostNotifyAfter    = 24 * time.Hour
	mostNotify         = 20 // each has a goroutine, and looks at every snapshot
)

// notify reads the tables [[notify]]. No error has a URL: it holds a secret.
func (d *doc) notify() (all []Notify) {
	tables := d.tables("notify", "url", "format", "on", "after")
	if len(tables) > mostNotify {
		d.fail(&Error{Line: d.line("notify"), Key: "notify", Text: fmt.Sprintf("%d tables, at most %d are possible", len(tables), mostNotify), Hint: "a program behind one url can tell all others"})
		return nil
	}
	for i, t := range tables {
		at := func(k string) string { return fmt.Sprintf("notify[%d].%s", i, k) }
		fault := func(key, text, hint string) {
			d.fail(&Error{Line: d.line(at(key)), Key: key, Text: text, Hint: hint})
		}
		n := Notify{URL: d.inner(t, at("url"), "url"), Format: "json", On: notifyEvents, After: defaultNotifyAfter}
		if n.URL == "" {
			d.missing(at("url"), "url", "give the address of the chat's webhook, or of a program of yours")
		} else if err := checkNotifyURL(n.URL); err != nil {
			fault("url", err.Error(), `write the whole address: url = "https://HOST/PATH"`)
		}
		if _, ok := t["format"]; ok {
			if n.Format = d.inner(t, at("format"), "format"); !slices.Contains(notifyFormats, n.Format) {
				fault("format", fmt.Sprintf("%.40q is no format", n.Format), "it is "+strings.Join(notifyFormats, ", "))
			}
		}
		if v, ok := t["on"]; ok {
			n.On = nil
			list, isList := v.([]any)
			for _, v := range list {
				event, isText := v.(string)
				switch {
				case !isText:
					isList = false
				case slices.Contains(n.On, event):
				case slices.Contains(laterEvents, event):
					d.warn(d.line(at("on")), "on has %q, of which this version has nothing to tell", event)
					n.On = append(n.On, event)
				case !slices.Contains(notifyEvents, event):
					fault("on", fmt.Sprintf("%.40q is no event", event), "the events are "+strings.Join(notifyEvents, ", "))
				default:
					n.On = append(n.On, event)
				}
			}
			if !isList || len(list) == 0 {
				fault("on", "this is no list of events", `write on = ["bridge-down", "bridge-up"], or leave it out: all are told then`)
			}
		}
		if _, ok := t["after"]; ok {
			var err error
			if n.After, err = durationOption(t["after"], 0, mostNotifyAfter, `"30s" or "5m"`); err != nil {
				fault("after", err.Error(), "")
			}
		}
		all = append(all, n)
	}
	return all
}

func checkNotifyURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "" || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f }):
		return errors.New("this is no address of a web server")
	case u.Scheme != "https" && u.Scheme != "http":
		return errors.New("this does not begin with https:// or http://")
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return errors.New("its port is not between 1 and 65535")
		}
	}
	return nil
}
