package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"reverser/internal/escape"
	"reverser/internal/status"
)

// Formats are those that a target may have.
var Formats = []string{"json", "slack", "wecom", "dingtalk", "feishu"}

// message is what one target is told at once.
type message struct {
	role, host string
	at         time.Time
	events     []Event
	test       bool
}

const (
	mostLines = 20   // of a text for people; the rest is counted
	mostText  = 1900 // bytes; WeCom takes 2048
	mostReply = 4 << 10

	shortestSecret = 6  // what is shorter is no secret, in userinfo and query
	shortestKey    = 16 // nor is this, as a part of a path
)

// text is the message for people.
func (m message) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "reverser %s on %s", m.role, escape.Text(m.host))
	if m.test {
		b.WriteString(": this is a test. Word of events comes here.")
		return b.String()
	}
	for i, e := range m.events {
		line := "\n" + e.words()
		if i == mostLines || b.Len()+len(line) > mostText {
			fmt.Fprintf(&b, "\nand %d more", len(m.events)-i)
			break
		}
		b.WriteString(line)
	}
	return b.String()
}

const mostReason = 200

func (e Event) words() string {
	const layout = "2006-01-02 15:04:05 MST"
	name := cut(escape.Text(e.Name), mostReason)
	switch {
	case e.Event == keyExpiring:
		return fmt.Sprintf("key %s expires at %s, in %s: %s", name, e.Expires.Format(layout), inWords(e.was), e.Reason)
	case e.Event == certificate:
		return e.ofCertificate(name, layout)
	}
	kind, what, _ := strings.Cut(e.Event, "-")
	line := fmt.Sprintf("%s %s is %s", kind, name, what)
	if what == "up" {
		return line + " again, after " + e.was.Round(time.Second).String()
	}
	line += " since " + e.Since.Format(layout)
	if e.Reason != "" {
		line += ": " + cut(escape.Text(e.Reason), mostReason)
	}
	return line
}

// ofCertificate says what is wrong with a certificate, or that it is well again.
func (e Event) ofCertificate(name, layout string) string {
	until := ""
	if !e.Expires.IsZero() {
		until = " until " + e.Expires.Format(layout)
	}
	line := ""
	switch {
	case e.State == status.CertificateValid:
		return "certificate of " + name + " is well again" + until
	case e.State == stateExpiring:
		line = "certificate of " + name + " was not renewed, and is good" + until
	case e.Expires.IsZero():
		line = "certificate of " + name + " cannot be had"
	case e.Expires.After(e.Since): // one of a file that is not valid yet
		line = "certificate of " + name + " cannot be used"
	default:
		line = "certificate of " + name + " cannot be renewed, and was good" + until
	}
	if e.Reason != "" {
		line += ": " + cut(escape.Text(e.Reason), 2*mostReason)
	}
	return line
}

// inWords is a time of days or hours, as people say it.
func inWords(d time.Duration) string {
	if n := int(d.Round(time.Hour) / (24 * time.Hour)); n > 1 {
		return fmt.Sprintf("%d days", n)
	}
	if n := int(d.Round(time.Hour) / time.Hour); n > 1 {
		return fmt.Sprintf("%d hours", n)
	}
	switch n := int(d.Round(time.Minute) / time.Minute); n {
	case 0:
		return "less than a minute"
	case 1:
		return "1 minute"
	default:
		return fmt.Sprintf("%d minutes", n)
	}
}

// cut is at most n bytes of s, whole characters.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}

// mostEvents is how many events a program is told at once.
const mostEvents = 200

// body is the message as a format has it.
func (m message) body(format string) ([]byte, error) {
	switch format {
	case "slack":
		// Slack's own three characters.
		return json.Marshal(map[string]string{"text": strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(m.text())})
	case "wecom", "dingtalk":
		return json.Marshal(map[string]any{"msgtype": "text", "text": map[string]string{"content": m.text()}})
	case "feishu":
		return json.Marshal(map[string]any{"msg_type": "text", "content": map[string]string{"text": m.text()}})
	}
	events := m.events
	if len(events) > mostEvents {
		events = events[:mostEvents]
	}
	if events == nil {
		events = []Event{}
	}
	return json.Marshal(map[string]any{
		"source": "reverser", "role": m.role, "host": m.host, "at": m.at.UTC().Format(time.RFC3339), "test": m.test, "text": m.text(),
		"events": events, "more": len(m.events) - len(events),
	})
}

// name is a target without its secret.
func (t Target) name() string {
	u, err := url.Parse(t.URL)
	if err != nil {
		return t.Format
	}
	return t.Format + " at " + u.Host
}

// masked is a text of the server without what is secret of the URL. Many servers repeat the path of a request in their errors.
func (t Target) masked(text string) string {
	u, err := url.Parse(t.URL)
	if err != nil {
		return ""
	}
	parts := []string{u.EscapedPath(), u.Path, u.RawQuery}
	for _, segment := range append(strings.Split(u.EscapedPath(), "/"), strings.Split(u.Path, "/")...) {
		if len(segment) >= shortestKey { // others are words, such as webhook
			parts = append(parts, segment)
		}
	}
	for _, values := range u.Query() {
		for _, v := range values {
			parts = append(parts, v, url.QueryEscape(v))
		}
	}
	if u.User != nil {
		password, _ := u.User.Password()
		parts = append(parts, u.User.String(), u.User.Username(), password)
	}
	slices.SortFunc(parts, func(a, b string) int { return len(b) - len(a) }) // a part of another one would leave the rest of it
	for _, p := range parts {
		if len(p) >= shortestSecret {
			text = strings.ReplaceAll(text, p, "…")
		}
	}
	return text
}

// send sends a message once. Its error has no secret, and names what to do where that is known.
func send(ctx context.Context, t Target, m message) error {
	body, err := m.body(t.Format)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, sendLimit)
	defer cancel()
	begun := time.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.URL, bytes.NewReader(body))
	if err != nil {
		return errors.New("the url cannot be read")
	}
	req.Header.Set("Content-Type", "application/json; charset=utf-8")
	req.Header.Set("User-Agent", "reverser")
	resp, err := client.Do(req)
	if err != nil && ctx.Err() == context.DeadlineExceeded {
		return silent(ctx, begun)
	}
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // without the url
		}
		return err
	}
	defer resp.Body.Close()
	reply, err := io.ReadAll(io.LimitReader(resp.Body, mostReply))
	if err != nil && ctx.Err() == context.DeadlineExceeded {
		return silent(ctx, begun)
	}
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	said := cut(escape.Text(strings.Join(strings.Fields(t.masked(string(reply))), " ")), mostReason)
	switch {
	case resp.StatusCode/100 == 3:
		return fmt.Errorf("the answer is %d: it leads elsewhere; give the url that it leads to", resp.StatusCode)
	case resp.StatusCode/100 != 2:
		return fmt.Errorf("the answer is %d: %s", resp.StatusCode, said)
	}
	if taken(t.Format, reply) {
		return nil
	}
	return fmt.Errorf("it was not taken: %s", said)
}

// silent is the error of a target that did not answer from begun to the deadline of ctx.
func silent(ctx context.Context, begun time.Time) error {
	end, _ := ctx.Deadline()
	return fmt.Errorf("it did not answer within %d s", int(end.Sub(begun).Round(time.Second)/time.Second))
}

// taken reports whether an answer says that the message was taken: the chats say so in the answer, and 200 in any case.
func taken(format string, reply []byte) bool {
	var code struct {
		Errcode    *int `json:"errcode"`    // WeCom, DingTalk
		Code       *int `json:"code"`       // Feishu
		StatusCode *int `json:"StatusCode"` // Feishu, as it was
	}
	switch format {
	case "wecom", "dingtalk":
		return json.Unmarshal(reply, &code) == nil && code.Errcode != nil && *code.Errcode == 0
	case "feishu":
		if json.Unmarshal(reply, &code) != nil {
			return false
		}
		if code.Code != nil {
			return *code.Code == 0
		}
		return code.StatusCode != nil && *code.StatusCode == 0
	}
	return true
}
