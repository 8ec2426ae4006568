package notify

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"
)

// chats are servers that take what the documents of the chats say, and answer as they do.
var chats = map[string]func(body map[string]any) (code int, answer string){
	"slack": func(b map[string]any) (int, string) { // https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks
		if text, ok := b["text"].(string); !ok || text == "" || len(b) != 1 {
			return 400, "no_text"
		}
		return 200, "ok"
	},
	"wecom": func(b map[string]any) (int, string) {
		text, _ := b["text"].(map[string]any)
		content, _ := text["content"].(string)
		switch {
		case b["msgtype"] != "text" || content == "":
			return 200, `{"errcode":40008,"errmsg":"invalid message type"}`
		case len(content) > 2048:
			return 200, `{"errcode":40058,"errmsg":"content exceed max length"}`
		}
		return 200, `{"errcode":0,"errmsg":"ok"}`
	},
	"dingtalk": func(b map[string]any) (int, string) {
		text, _ := b["text"].(map[string]any)
		content, _ := text["content"].(string)
		switch {
		case b["msgtype"] != "text":
			return 200, `{"errcode":40035,"errmsg":"缺少参数 json"}`
		case !strings.Contains(content, "reverser"): // the keyword that the robot was made with
			return 200, `{"errcode":310000,"errmsg":"keywords not in content"}`
		}
		return 200, `{"errcode":0,"errmsg":"ok"}`
	},
	"feishu": func(b map[string]any) (int, string) {
		content, _ := b["content"].(map[string]any)
		if text, _ := content["text"].(string); b["msg_type"] != "text" || text == "" {
			return 200, `{"code":9499,"msg":"Bad Request","data":{}}`
		}
		return 200, `{"code":0,"data":{},"msg":"success"}`
	},
	"json": func(b map[string]any) (int, string) {
		if events, ok := b["events"].([]any); !ok || b["source"] != "reverser" || b["role"] != "proxy" || b["test"] == false && len(events) == 0 {
			return 422, "no events"
		}
		return 204, ""
	},
}

func many(n int) (events []Event) {
	for i := range n {
		events = append(events, Event{Event: "service-down", Name: fmt.Sprintf("tcp/%d", 9000+i), Reason: "中\x1b[31m <!channel> " + strings.Repeat("x", 300), Since: time.Unix(0, 0)})
	}
	return events
}

// Each format is what its chat documents, for a test, one event, and very many.
func TestFormats(t *testing.T) {
	for _, format := range Formats {
		var last string
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			raw, _ := io.ReadAll(r.Body)
			last = string(raw)
			var body map[string]any
			if err := json.Unmarshal(raw, &body); err != nil || r.Method != "POST" || !strings.HasPrefix(r.Header.Get("Content-Type"), "application/json") {
				t.Errorf("%s: %s %q, %v", format, r.Method, r.Header.Get("Content-Type"), err)
			}
			code, answer := chats[format](body)
			w.WriteHeader(code)
			io.WriteString(w, answer)
		}))
		for name, m := range map[string]message{
			"a test": {role: "proxy", host: "vm", test: true}, "one": {role: "proxy", host: "vm", events: many(1)}, "many": {role: "proxy", host: "vm", events: many(5000)},
		} {
			if err := send(t.Context(), Target{URL: srv.URL + "/secret", Format: format}, m); err != nil {
				t.Errorf("%s, %s: %v", format, name, err)
			}
			if strings.Contains(last, "\x1b") || strings.Contains(last, "<!channel>") && format == "slack" || !utf8.ValidString(last) || len(last) > 200<<10 {
				t.Errorf("%s, %s: %d bytes, with what a terminal or a chat obeys: %.300q", format, name, len(last), last)
			}
			if name == "many" && !strings.Contains(last, " more") {
				t.Errorf("%s does not say how many more there are: %.300q", format, last)
			}
		}
		srv.Close()
	}
}

// TestMasked: a server that repeats what it was asked for tells no secret.
func TestMasked(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		w.WriteHeader(404)
		fmt.Fprintf(w, "Cannot POST %s by %s:%s, key %q, path %q, %s; invalid webhook", r.RequestURI, user, password, r.URL.Query().Get("key"), strings.Split(r.URL.Path, "/"), strings.ReplaceAll(r.URL.Path, "/", `\/`))
	}))
	defer srv.Close()
	for _, at := range []string{"/webhook/T0123456/s3cret-0123456789abc", "/webhook/s3cret%2B0123456789abc?key=s3cret+abc", "/webhook?a=b&key=s3cret-0123", "/webhook/s3cret%C3%A40123456789?s3cret"} {
		err := send(t.Context(), Target{URL: strings.Replace(srv.URL, "//", "//s3cret-user:s3cret-password@", 1) + at, Format: "slack"}, message{test: true})
		if err == nil || strings.Contains(err.Error(), "s3cret") || !strings.Contains(err.Error(), "Cannot POST …") || !strings.Contains(err.Error(), "invalid webhook") {
			t.Errorf("%s: %v", at, err)
		}
	}
}

// What goes wrong is told, and no secret.
func TestSendErrors(t *testing.T) {
	answers := map[string]struct {
		format, answer, want string
		code                 int
	}{
		"gone":        {"slack", "no_service", "the answer is 404: no_service", 404},
		"elsewhere":   {"json", "", "it leads elsewhere", 302},
		"wrong key":   {"wecom", `{"errcode":93000,"errmsg":"invalid webhook url"}`, "it was not taken", 200},
		"no keyword":  {"dingtalk", `{"errcode":310000,"errmsg":"keywords not in content"}`, "keywords not in content", 200},
		"bad request": {"feishu", `{"code":19001,"msg":"param invalid"}`, "param invalid", 200},
		"a page":      {"wecom", "<html>\n<b>\x1b[31m" + strings.Repeat("x", 9000), `\u001b[31m`, 200},
	}
	for name, a := range answers {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/secret" {
				t.Errorf("%s: asked for %s", name, r.URL.Path)
			}
			w.Header().Set("Location", "/other")
			w.WriteHeader(a.code)
			io.WriteString(w, a.answer)
		}))
		err := send(t.Context(), Target{URL: srv.URL + "/secret?key=secret", Format: a.format}, message{test: true})
		if err == nil || !strings.Contains(err.Error(), a.want) || strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "\x1b") || len(err.Error()) > 300 {
			t.Errorf("%s: %v; want %q", name, err, a.want)
		}
		srv.Close()
		if err := send(t.Context(), Target{URL: srv.URL + "/secret", Format: a.format}, message{test: true}); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s, nobody listens: %v", name, err)
		}
	}
	if got := (Target{URL: "https://user:pass@hooks.example.com/secret?key=secret", Format: "slack"}).name(); got != "slack at hooks.example.com" {
		t.Errorf("name = %q", got)
	}
}

// TestNoAnswer: of a target that does not answer in time, at once or behind the head of its answer, it is said for how long it did not.
func TestNoAnswer(t *testing.T) {
	for name, transport := range map[string]roundTripper{
		"no answer": func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		},
		"no end of it": func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Body: io.NopCloser(reader(func([]byte) (int, error) {
				<-r.Context().Done()
				return 0, r.Context().Err()
			}))}, nil
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			client.Transport = transport
			defer func() { client.Transport = nil }()
			for limit, want := range map[time.Duration]string{4 * time.Second: "it did not answer within 4 s", time.Hour: "it did not answer within 10 s"} {
				ctx, cancel := context.WithTimeout(t.Context(), limit)
				defer cancel()
				if err := send(ctx, Target{URL: "https://bad/secret", Format: "json"}, message{test: true}); err == nil || err.Error() != want {
					t.Errorf("%s: %v; want %q", name, err, want)
				}
			}
		})
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

type reader func([]byte) (int, error)

func (f reader) Read(p []byte) (int, error) { return f(p) }
