package admin

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"

	"reverser/internal/escape"
	"reverser/internal/inspect"
	"reverser/internal/state"
)

// openapi describes the API. A test compares it with the routes.
//
//go:embed openapi.yaml
var openapi []byte

// api is what one listener answers.
type api struct {
	server    *Server
	mux       *http.ServeMux
	ofService []serviceRoute      // at paths that mux does not understand
	methods   map[string][]string // of a path
	stopping  context.Context     // ends when the server of the listener does
	places    chan struct{}       // of answers that go on, see follow
}

// newAPI makes the API for a listener whose server ends with stopping. So many answers may go on at once: the other connections stay for
// orders.
func (s *Server) newAPI(stopping context.Context, followers int) *api {
	a := &api{server: s, mux: http.NewServeMux(), methods: make(map[string][]string), stopping: stopping, places: make(chan struct{}, followers)}
	a.handle("GET", "/api/v1/openapi.yaml", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/yaml")
		w.Write(openapi)
	})
	a.handle("GET", "/api/v1/status", func(w http.ResponseWriter, r *http.Request) {
		pairs, err := yesNo(r, "pairs", true)
		if err != nil {
			refuse(w, http.StatusBadRequest, err)
			return
		}
		snap := s.Status()
		if !pairs {
			snap.Pairs = nil
		}
		reply(w, http.StatusOK, snap)
	})
	a.handle("GET", "/api/v1/keys", s.withKeys(s.listKeys))
	a.handle("POST", "/api/v1/keys", s.withKeys(s.addKey))
	a.handle("PATCH", "/api/v1/keys/{name}", s.withKeys(s.editKey))
	a.handle("POST", "/api/v1/keys/{name}/rotate", s.withKeys(s.rotateKey))
	a.handle("DELETE", "/api/v1/keys/{name}", s.withKeys(s.removeKey))
	a.handle("POST", "/api/v1/reload", s.reload)
	a.handle("POST", "/api/v1/notify/test", s.testNotices)
	a.handleServices()
	a.handle("POST", "/api/v1/doctor", a.doctor)
	a.handlePairs()
	a.handleEnd()
	a.handleDrain()
	a.handleInspect()
	a.handleEvents()
	a.handleHealth()
	a.handleUsage()
	a.handleMetrics()
	a.handleStream()
	return a
}

// handle has h answer a method at a path, in the words of [http.ServeMux]. openapi.yaml must have it as well.
func (a *api) handle(method, path string, h http.HandlerFunc) {
	a.mux.HandleFunc(method+" "+path, h)
	a.methods[path] = append(a.methods[path], method)
}

// handler returns the handler of all that was registered, which refuses everything else.
func (a *api) handler() http.Handler {
	for path, methods := range a.methods {
		if strings.HasPrefix(path, servicesPath+"/") {
			continue // serveService answers
		}
		a.mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) { notAllowed(w, r, methods) }) // else "/" would take it, with 404
	}
	a.mux.HandleFunc("/api/", missing)
	a.mux.HandleFunc(servicesPath+"/", a.serveService)
	a.mux.HandleFunc(pagePattern, func(w http.ResponseWriter, r *http.Request) {
		switch page := a.server.Page; {
		case page == nil || !page.Has(r.URL.Path):
			missing(w, r)
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			notAllowed(w, r, []string{http.MethodGet})
		default:
			page.ServeHTTP(w, r)
		}
	})
	return a.mux
}

// missing answers where there is nothing.
func missing(w http.ResponseWriter, r *http.Request) {
	refuse(w, http.StatusNotFound, fmt.Errorf("there is no %s", r.URL.Path))
}

// notAllowed answers a request with a method that its path does not take.
func notAllowed(w http.ResponseWriter, r *http.Request, methods []string) {
	allow := strings.Join(methods, ", ")
	w.Header().Set("Allow", allow)
	refuse(w, http.StatusMethodNotAllowed, fmt.Errorf("%s takes %s, not %s", r.URL.Path, allow, r.Method))
}

// pagePattern is of what is no part of the API.
const pagePattern = "/"

// yesNo returns what a query says by true or false.
func yesNo(r *http.Request, word string, usual bool) (bool, error) {
	switch value := r.URL.Query().Get(word); {
	case !r.URL.Query().Has(word):
		return usual, nil
	case value == "true", value == "false":
		return value == "true", nil
	default:
		return false, fmt.Errorf("%s: %.100q is neither true nor false", word, value)
	}
}

// problem is an error as RFC 9457 has it.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"` // of the status
	Status int    `json:"status"`
	Detail string `json:"detail"` // for a person: what was tried, on what, and the remedy
}

// fail answers with an error of what was asked for.
func fail(w http.ResponseWriter, err error) {
	code := http.StatusInternalServerError
	if usage, ok := errors.AsType[*UsageError](err); ok {
		switch code = usage.Code; {
		case code != 0:
		case errors.Is(err, state.ErrNoKey), errors.Is(err, inspect.ErrNoExchange):
			code = http.StatusNotFound
		default:
			code = http.StatusConflict
		}
	}
	refuse(w, code, err)
}

// refuse answers with an error.
func refuse(w http.ResponseWriter, code int, err error) {
	write(w, code, "application/problem+json", problem{"about:blank", http.StatusText(code), code, err.Error()})
}

// reply answers with JSON.
func reply(w http.ResponseWriter, code int, v any) { write(w, code, "application/json", v) }

func write(w http.ResponseWriter, code int, kind string, v any) {
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Cache-Control", "no-store") // an answer may hold a token
	w.WriteHeader(code)
	// Whoever asks with another program than ours may print the answer on a terminal. The reader is gone if this fails; there is nobody to tell.
	out := escape.NewWriter(w)
	if m, ok := v.(json.Marshaler); ok { // an Encoder reads all of its text once more, and a snapshot may have megabytes
		if text, err := m.MarshalJSON(); err == nil {
			_, _ = out.Write(append(text, '\n'))
		}
		return
	}
	_ = json.NewEncoder(out).Encode(v)
}

// wrongType says in JSON's own words what package json says in those of Go.
func wrongType(e *json.UnmarshalTypeError) error {
	want := "another type"
	switch e.Type.Kind() {
	case reflect.String:
		want = "a string"
	case reflect.Bool:
		want = "true or false"
	case reflect.Slice, reflect.Array:
		want = "an array"
	case reflect.Struct, reflect.Map:
		want = "an object"
	case reflect.Int, reflect.Int64, reflect.Uint, reflect.Uint64, reflect.Float64:
		want = "a number"
	}
	what, _, _ := strings.Cut(e.Value, " ") // of a number, its digits follow
	if e.Field == "" {
		return fmt.Errorf("it is of the type %s, and should be %s", what, want)
	}
	return fmt.Errorf("%s is of the type %s, and should be %s", e.Field, what, want)
}

// read reads the JSON of a request into v, or answers why it cannot be read.
func read(w http.ResponseWriter, r *http.Request, v any) bool {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest))
	dec.DisallowUnknownFields()
	err := dec.Decode(v)
	if err == nil {
		if _, err = dec.Token(); errors.Is(err, io.EOF) {
			return true
		}
		if err == nil {
			err = errors.New("there is more after the JSON")
		}
	}
	if errors.Is(err, io.EOF) {
		err = errors.New("it has no body, which should be JSON")
	}
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		err = wrongType(e)
	}
	code := http.StatusBadRequest
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		code = http.StatusRequestEntityTooLarge
	}
	refuse(w, code, fmt.Errorf("read the request: %w", err))
	return false
}
