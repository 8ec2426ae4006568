package openapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
)

const file = "../../internal/admin/openapi.yaml"

// load reads the description. It is then strict: an answer may have no field that is not described.
func load(t *testing.T) *openapi3.T {
	t.Helper()
	loader := openapi3.NewLoader()
	doc, err := loader.LoadFromFile(filepath.FromSlash(file))
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(context.Background()); err != nil {
		t.Fatal(err)
	}
	seen := make(map[*openapi3.Schema]bool)
	for _, s := range doc.Components.Schemas {
		strict(s, seen)
	}
	for _, item := range doc.Paths.Map() {
		for _, op := range item.Operations() {
			for _, r := range op.Responses.Map() {
				for _, media := range r.Value.Content {
					strict(media.Schema, seen)
				}
			}
		}
	}
	return doc
}

func strict(ref *openapi3.SchemaRef, seen map[*openapi3.Schema]bool) {
	if ref == nil || ref.Value == nil || seen[ref.Value] {
		return
	}
	s := ref.Value
	seen[s] = true
	if len(s.Properties) > 0 && s.AdditionalProperties.Has == nil && s.AdditionalProperties.Schema == nil {
		no := false
		s.AdditionalProperties.Has = &no
	}
	strict(s.Items, seen)
	for _, p := range s.Properties {
		strict(p, seen)
	}
}

// call is a request and the statuses of its answers, at a proxy and at a bridge.
type call struct {
	method, path  string // as in the description
	values        []string
	query, body   string
	proxy, bridge int
}

// TestAnswers: what a live proxy and a live bridge answer is what openapi.yaml describes, and nothing else is in it.
func TestAnswers(t *testing.T) {
	doc := load(t)
	proxy, bridge := start(t)
	const exchange = "/api/v1/services/{service}/exchanges/{id}"
	calls := []call{
		{"GET", "/healthz", nil, "", "", 200, 200},
		{"GET", "/readyz", nil, "", "", 200, 200},
		{"GET", "/api/v1/openapi.yaml", nil, "", "", 200, 200},
		{"POST", "/api/v1/login", nil, "", `{"token":"wrong"}`, 401, 401},
		{"POST", "/api/v1/login", nil, "", `{"tok":"wrong"}`, 400, 400},
		{"POST", "/api/v1/login", nil, "", `{"token":"TOKEN"}`, 200, 200},
		{"POST", "/api/v1/logout", nil, "", "", 204, 204},
		{"GET", "/api/v1/status", nil, "", "", 200, 200},
		{"GET", "/api/v1/status", nil, "pairs=false", "", 200, 200},
		{"GET", "/api/v1/status", nil, "pairs=maybe", "", 400, 400},
		{"GET", "/api/v1/keys", nil, "", "", 200, 409},
		{"POST", "/api/v1/keys", nil, "", `{"name":"spare","allow":["tcp/1"]}`, 201, 409},
		{"POST", "/api/v1/keys", nil, "", `{"name":"spare","allow":["tcp/1"]}`, 409, 409},
		{"POST", "/api/v1/keys", nil, "", `{"name":"a/b","allow":["tcp/1"]}`, 400, 409},
		{"POST", "/api/v1/keys", nil, "", `{"name":"x","allow":["nonsense/1"]}`, 400, 409},
		{"PATCH", "/api/v1/keys/{name}", []string{"spare"}, "", `{"allow":["tcp/2","http/*"],"max_services":3}`, 200, 409},
		{"PATCH", "/api/v1/keys/{name}", []string{"nobody"}, "", `{"max_services":3}`, 404, 409},
		{"POST", "/api/v1/keys/{name}/rotate", []string{"spare"}, "", "", 200, 409},
		{"POST", "/api/v1/keys/{name}/rotate", []string{"nobody"}, "", "", 404, 409},
		{"POST", "/api/v1/keys/{name}/drain", []string{"spare"}, "", "", 200, 409},
		{"DELETE", "/api/v1/keys/{name}/drain", []string{"spare"}, "", "", 200, 409},
		{"POST", "/api/v1/services/{service}/drain", []string{service}, "", "", 200, 409},
		{"DELETE", "/api/v1/services/{service}/drain", []string{service}, "", "", 200, 409},
		{"GET", "/api/v1/services", nil, "", "", 200, 200},
		{"DELETE", "/api/v1/keys/{name}", []string{"spare"}, "", "", 204, 409},
		{"DELETE", "/api/v1/keys/{name}", []string{"spare"}, "", "", 404, 409},
		{"GET", "/api/v1/pairs", nil, "", "", 200, 200},
		{"GET", "/api/v1/pairs", nil, "client=127.0.0.0/8&limit=1", "", 200, 200},
		{"GET", "/api/v1/pairs", nil, "limit=many", "", 400, 400},
		{"DELETE", "/api/v1/pairs", nil, "", "", 400, 400},
		{"DELETE", "/api/v1/pairs", nil, "client=192.0.2.1", "", 200, 200},
		{"DELETE", "/api/v1/pairs/{id}", []string{"123456789"}, "", "", 404, 404},
		{"POST", "/api/v1/reload", nil, "", "", 200, 200},
		{"POST", "/api/v1/notify/test", nil, "", "", 200, 200},
		{"POST", "/api/v1/doctor", nil, "", "", 200, 200},
		{"GET", "/api/v1/events", nil, "", "", 200, 200},
		{"GET", "/api/v1/events", nil, "since=x", "", 400, 400},
		{"GET", "/api/v1/usage", nil, "", "", 200, 200},
		{"GET", "/api/v1/usage", nil, "by=hour", "", 200, 200},
		{"GET", "/api/v1/usage", nil, "by=year", "", 400, 400},
		{"GET", "/api/v1/history", nil, "", "", 200, 200},
		{"GET", "/api/v1/services/{service}/exchanges", []string{service}, "", "", 200, 409},
		{"GET", "/api/v1/services/{service}/exchanges", []string{"http/other.example.com"}, "", "", 404, 404},
		{"GET", "/api/v1/services/{service}/exchanges", []string{"no/such/thing"}, "", "", 400, 400},
		{"GET", exchange, []string{service, "1"}, "", "", 200, 409},
		{"GET", exchange, []string{service, "999"}, "", "", 404, 409},
		{"POST", exchange + "/replay", []string{service, "1"}, "", "", 200, 409},
	}
	known := map[string]bool{"GET /api/v1/stream": true} // TestStreams
	for _, c := range calls {
		known[c.method+" "+c.path] = true
	}
	// What was not thought of here is asked for all the same.
	for path, item := range doc.Paths.Map() {
		for method := range item.Operations() {
			if method != "GET" && !known[method+" "+path] {
				t.Errorf("nothing asks %s %s", method, path)
			}
		}
		if op := item.Get; op != nil && !known["GET "+path] {
			c := call{method: "GET", path: path}
			for _, p := range op.Parameters {
				if p.Value.In == openapi3.ParameterInPath {
					c.values = append(c.values, map[string]string{"service": service, "public": service, "name": keyName}[p.Value.Name])
				}
			}
			calls = append(calls, c)
		}
	}
	for _, r := range []role{proxy, bridge} {
		for _, c := range calls {
			want := c.proxy
			if r.name == "bridge" {
				want = c.bridge
			}
			if got, err := r.ask(doc, c); err != nil {
				t.Errorf("%s: %s %s %q: %v", r.name, c.method, c.path, c.values, err)
			} else if want != 0 && got != want {
				t.Errorf("%s: %s %s %q ?%s %s = %d, want %d", r.name, c.method, c.path, c.values, c.query, c.body, got, want)
			}
		}
		// Without the token all that is closed says so in the same way.
		open := role{r.name, r.base, "wrong"}
		for path, item := range doc.Paths.Map() {
			for method, op := range item.Operations() {
				if op.Security != nil && len(*op.Security) == 0 {
					continue
				}
				if got, err := open.ask(doc, call{method: method, path: path}); err != nil || got != 401 && got != 429 {
					t.Errorf("%s: %s %s without the token = %d, %v", r.name, method, path, got, err)
				}
			}
		}
	}
}

// ask makes a call and compares the answer with the description.
func (r role) ask(doc *openapi3.T, c call) (status int, err error) {
	req, err := r.request(c)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	item := doc.Paths.Value(c.path)
	if item == nil || item.GetOperation(c.method) == nil {
		return 0, fmt.Errorf("it is not described")
	}
	in := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{
			Request: req,
			Route:   &routers.Route{Spec: doc, Path: c.path, PathItem: item, Method: c.method, Operation: item.GetOperation(c.method)},
		},
		Status: resp.StatusCode, Header: resp.Header,
		Options: &openapi3filter.Options{IncludeResponseStatus: true, MultiError: true},
	}
	in.SetBodyBytes(body)
	if err := openapi3filter.ValidateResponse(context.Background(), in); err != nil {
		return resp.StatusCode, fmt.Errorf("the answer is another one than described: %w\n%.2000s", err, body)
	}
	return resp.StatusCode, nil
}

func (r role) request(c call) (*http.Request, error) {
	target := c.path
	for _, v := range c.values {
		from, to := strings.Index(target, "{"), strings.Index(target, "}")
		target = target[:from] + url.PathEscape(v) + target[to+1:]
	}
	var body io.Reader
	if c.body != "" {
		body = strings.NewReader(strings.ReplaceAll(c.body, "TOKEN", r.token))
	}
	req, err := http.NewRequest(c.method, r.base+target+"?"+c.query, body)
	if err != nil {
		return nil, err
	}
	if c.body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Authorization", "Bearer "+r.token)
	req.Close = true
	return req, nil
}

// TestStreams: the events of answers that go on are those that openapi.yaml describes.
func TestStreams(t *testing.T) {
	doc := load(t)
	proxy, bridge := start(t)
	for _, r := range []role{proxy, bridge} {
		for _, s := range []struct {
			path, query string
			schemas     map[string]string // by the name of the event, each of which has to come
		}{
			{"/api/v1/stream", "pairs=true", map[string]string{"status": "Status", "pairs": "PairChanges"}},
			{"/api/v1/events", "follow=true", map[string]string{"": "Event"}},
		} {
			if err := r.follow(doc, s.path, s.query, s.schemas); err != nil {
				t.Errorf("%s: %s?%s: %v", r.name, s.path, s.query, err)
			}
		}
	}
}

// follow reads events until one of each name has come.
func (r role) follow(doc *openapi3.T, path, query string, schemas map[string]string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	req, err := r.request(call{method: "GET", path: path, query: query})
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req.WithContext(ctx))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if kind := resp.Header.Get("Content-Type"); resp.StatusCode != 200 || kind != "text/event-stream" {
		return fmt.Errorf("%s of %s", resp.Status, kind)
	}
	came := make(map[string]bool)
	lines := bufio.NewReader(resp.Body)
	for name := ""; len(came) < len(schemas); {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return err
		}
		field, value, _ := bytes.Cut(bytes.TrimSpace(line), []byte(": "))
		switch string(field) {
		case "event":
			name = string(value)
		case "":
			name = ""
		case "data":
			schema, ok := schemas[name]
			if !ok {
				return fmt.Errorf("there is an event %q", name)
			}
			var v any
			if err := json.Unmarshal(value, &v); err != nil {
				return err
			}
			if err := doc.Components.Schemas[schema].Value.VisitJSON(v); err != nil {
				return fmt.Errorf("the event %q is no %s: %w", name, schema, err)
			}
			came[name] = true
		}
	}
	return nil
}
