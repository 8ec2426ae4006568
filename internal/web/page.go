package web

import (
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// retryAfter is what a client is told when the bridge is away: it has been waited for already.
const retryAfter = 10

// words are what a page says in one language.
type words struct{ title, text string }

// texts are the pages: what a stranger may know, which is nothing of what stands behind the proxy.
var texts = map[int]map[string]words{
	http.StatusBadRequest: {
		"en": {"Bad request", "This request is not one that can be forwarded safely."},
		"zh": {"请求无效", "无法安全地转发此请求。"},
	},
	http.StatusUnauthorized: {
		"en": {"Password needed", "A name and a password are needed here."},
		"zh": {"需要密码", "访问此处需要用户名和密码。"},
	},
	http.StatusNotFound: {
		"en": {"Nothing here", "No service has this name here. The address may be mistyped, or the service has not been started yet."},
		"zh": {"没有此服务", "这里没有使用该名称的服务。地址可能有误，或者服务尚未启动。"},
	},
	http.StatusMisdirectedRequest: {
		"en": {"Another connection, please", "This connection cannot be used for this address. The browser should open another one."},
		"zh": {"请使用另一个连接", "此连接不能用于该地址，浏览器应另开一个连接。"},
	},
	http.StatusTooManyRequests: {
		"en": {"Too many attempts", "Too many wrong passwords came from your address. Please wait a moment."},
		"zh": {"尝试次数过多", "您的地址多次输入错误密码，请稍候再试。"},
	},
	http.StatusBadGateway: {
		"en": {"The service does not answer", "The tunnel is up, but the service behind it does not take connections, or broke one off. Please try again later."},
		"zh": {"服务没有响应", "隧道正常，但其后的服务拒绝或中断了连接。请稍后重试。"},
	},
	http.StatusServiceUnavailable: {
		"en": {"The service is away", "The machine that provides this service is not connected at present. Please try again in a moment."},
		"zh": {"服务暂时不可用", "提供此服务的计算机目前没有连接，请稍后重试。"},
	},
	http.StatusGatewayTimeout: {
		"en": {"The service is too slow", "The service took the request, but did not answer it in time. Please try again later."},
		"zh": {"服务响应超时", "服务收到了请求，但未能及时响应。请稍后重试。"},
	},
}

// crowded is the page of 503 where there is no room.
var crowded = map[string]words{
	"en": {"Too many connections", "There is no room for another connection to this service at present. Please try again in a moment."},
	"zh": {"连接过多", "此服务目前无法接受更多连接，请稍后重试。"},
}

// manyLogins is the page of 503 where too many passwords wait to be checked.
var manyLogins = map[string]words{
	"en": {"Too many logins", "Too many passwords for this service wait to be checked at present. Please try again in a moment."},
	"zh": {"登录过多", "此服务目前有过多密码等待检查，请稍后重试。"},
}

// shut is the page of 503 where somebody has ordered that no new users are let in, or the proxy stops.
var shut = map[string]words{
	"en": {"No new connections", "This service takes no new connections for the moment. Please try again later."},
	"zh": {"暂不接受新连接", "此服务暂时不接受新的连接，请稍后重试。"},
}

// notTaken is the page of 504 where the target did not even take the request.
var notTaken = map[string]words{
	"en": {"The service is too slow", "The service did not take the whole request in time. Please try again later."},
	"zh": {"服务响应超时", "服务未能及时接收完整的请求，请稍后重试。"},
}

var pageTemplate = template.Must(template.New("page").Parse(`<!doctype html>
<html lang="{{.Lang}}"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<title>{{.Title}}</title><style>
body{font:16px/1.5 system-ui,sans-serif;margin:0;display:grid;place-items:center;min-height:100vh;background:#fff;color:#222}
main{max-width:34rem;padding:2rem}h1{font-size:1.5rem;margin:0 0 .5rem}small{color:#666}code{user-select:all}
@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}small{color:#999}}
</style></head><body><main><h1>{{.Title}}</h1><p>{{.Text}}</p><p><small>{{.Status}} · {{.Label}} <code>{{.ID}}</code></small></p></main></body></html>
`))

// page answers a request in the place of a target, in the form and language that the client asks for. Of err only what is about the
// request itself is said.
func (x *exchange) page(w http.ResponseWriter, r *http.Request, status int, err error) {
	x.paged = true
	if x.server.Failed != nil {
		f := Failure{Site: x.site, Client: x.client, Visit: x.visit, ID: x.id.String(), Status: status, Err: err}
		if up := x.upstream.Load(); up != nil {
			f.Opened = requestID(up.ID).String()
		}
		x.server.Failed(f)
	}
	lang := language(r.Header.Get("Accept-Language"))
	t := texts[status][lang]
	switch {
	case errors.Is(err, ErrLimit):
		t = crowded[lang]
	case errors.Is(err, errCrowd):
		t = manyLogins[lang]
	case errors.Is(err, ErrShut):
		t = shut[lang]
	case errors.Is(err, errNotTaken):
		t = notTaken[lang]
	}
	if status == http.StatusBadRequest && err != nil {
		t.text += " (" + err.Error() + ")"
	}
	h := w.Header()
	for name := range h {
		if name != "Connection" && name != "Retry-After" && name != "Www-Authenticate" {
			delete(h, name)
		}
	}
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Request-Id", x.id.String())
	h.Set("Vary", "Accept, Accept-Language")
	if status == http.StatusServiceUnavailable {
		h.Set("Retry-After", strconv.Itoa(retryAfter))
	}
	var body string
	switch form(r.Header.Get("Accept")) {
	case formHTML:
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
		label := map[string]string{"en": "request", "zh": "请求编号"}[lang]
		var b strings.Builder
		pageTemplate.Execute(&b, map[string]any{"Lang": lang, "Title": t.title, "Text": t.text, "Status": status, "Label": label, "ID": x.id.String()})
		body = b.String()
	case formJSON:
		h.Set("Content-Type", "application/problem+json")
		b, _ := json.Marshal(map[string]any{"type": "about:blank", "title": t.title, "status": status, "detail": t.text, "request": x.id.String()})
		body = string(b) + "\n"
	default:
		h.Set("Content-Type", "text/plain; charset=utf-8")
		body = fmt.Sprintf("%d %s: %s\n%s: %s\n", status, t.title, t.text, "request", x.id)
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	x.own(w, r, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(status)
		if r.Method != http.MethodHead {
			w.Write([]byte(body))
		}
	})
}

// own writes an answer of this server's own, which does not depend on the body of the request. It is sent at once, and the connection ends
// behind it if there is a body: net/http would read that first, and it may never come.
func (x *exchange) own(w http.ResponseWriter, r *http.Request, answer http.HandlerFunc) {
	x.askUnserved()
	if r.ProtoMajor >= 2 {
		http.NewResponseController(w).SetWriteDeadline(time.Now().Add(headerTime)) // a window that stays closed keeps the request
	}
	if r.ProtoMajor >= 2 || r.ContentLength == 0 || x.body != nil {
		answer(w, r)
		return
	}
	rest := http.NewResponseController(w)
	rest.EnableFullDuplex()
	w.Header().Set("Connection", "close")
	answer(w, r)
	x.client.early.Store(true)
	rest.SetReadDeadline(time.Time{}) // for as long as Client allows
}

// askUnserved resets a client that no service has let in and that may not have the answer.
func (x *exchange) askUnserved() {
	c := x.client
	if x.server.Unserved == nil || c.said.Load() || x.server.Unserved(c, x.named || x.site != nil) {
		return
	}
	c.Reset()
	panic(http.ErrAbortHandler)
}

const (
	formText = iota
	formHTML
	formJSON
)

// form is what a client wants: whichever of the known types it names first. One that takes anything, as curl does, gets plain text.
func form(accept string) int {
	for part := range strings.SplitSeq(accept, ",") {
		kind, _, _ := strings.Cut(part, ";")
		switch kind = strings.ToLower(strings.TrimSpace(kind)); {
		case kind == "text/html", kind == "application/xhtml+xml":
			return formHTML
		case kind == "application/json", strings.HasSuffix(kind, "+json"):
			return formJSON
		}
	}
	return formText
}

// language is the one that a client prefers of those that there are.
func language(accept string) string {
	best, weight := "en", 0.0
	for part := range strings.SplitSeq(accept, ",") {
		tag, params, _ := strings.Cut(part, ";")
		q := 1.0
		if v, ok := strings.CutPrefix(strings.TrimSpace(params), "q="); ok {
			q, _ = strconv.ParseFloat(v, 64)
		}
		tag, _, _ = strings.Cut(strings.ToLower(strings.TrimSpace(tag)), "-")
		if (tag == "zh" || tag == "en") && q > weight {
			best, weight = tag, q
		}
	}
	return best
}
