package admin

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"reverser/internal/status"
)

// servicesPath is of the services. What is answered about one of them is below it.
const servicesPath = "/api/v1/services"

type servicesReply struct {
	Services []status.Service `json:"services"`
}

// handleServices adds the list of services. What is answered about one is in drain.go and inspect.go.
func (a *api) handleServices() {
	a.handle("GET", servicesPath, func(w http.ResponseWriter, _ *http.Request) {
		list := a.server.Status().Services
		if list == nil {
			list = []status.Service{}
		}
		reply(w, http.StatusOK, servicesReply{list})
	})
}

// serviceRoute is what is answered about one service, at servicesPath/PUBLIC/WORDS.
type serviceRoute struct {
	method string
	words  []string // of the path after PUBLIC; {id} stands for any
	answer http.HandlerFunc
}

// handleService has h answer a method at the words that follow the name of a service in the path, which h has as the path value "service".
//
// [http.ServeMux] cannot do it: PUBLIC has slashes of its own, which may be written as they are or as %2F. The words at the end say where it
// ends, so that the path of http/app.example.com/drain may end in a word, too. Of two routes that fit, the first one answers.
func (a *api) handleService(method, words string, h http.HandlerFunc) {
	a.ofService = append(a.ofService, serviceRoute{method, strings.Split(words, "/"), h})
	path := servicesPath + "/{service}/" + words
	a.methods[path] = append(a.methods[path], method)
}

// serveService answers what is asked about one service.
func (a *api) serveService(w http.ResponseWriter, r *http.Request) {
	segments := strings.Split(r.URL.EscapedPath(), "/")[strings.Count(servicesPath, "/")+1:]
	for i, s := range segments {
		if plain, err := url.PathUnescape(s); err == nil {
			segments[i] = plain
		}
	}
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	var others []string
	for _, route := range a.ofService {
		n := len(segments) - len(route.words)
		if n < 1 || !route.fits(segments[n:]) {
			continue
		}
		if route.method != method {
			others = append(others, route.method)
			continue
		}
		r.SetPathValue("service", publicOf(strings.Join(segments[:n], "/")))
		for i, word := range route.words {
			if word == anyID {
				r.SetPathValue("id", segments[n+i])
			}
		}
		route.answer(w, r)
		return
	}
	if len(others) == 0 {
		missing(w, r)
		return
	}
	notAllowed(w, r, others)
}

// publicOf returns the PUBLIC that a path, which is unescaped by now, was to name. Characters of a PATH that are not ASCII are written as %XX in
// a PUBLIC, too.
func publicOf(text string) string {
	parts := strings.SplitN(text, "/", 3) // kind, HOST, PATH
	if len(parts) < 3 {
		return text
	}
	var b strings.Builder
	for _, c := range []byte(parts[2]) {
		if c < 0x80 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return parts[0] + "/" + parts[1] + "/" + b.String()
}

const anyID = "{id}"

// fits reports whether the end of a path is that of the route.
func (s serviceRoute) fits(end []string) bool {
	for i, word := range s.words {
		if word != end[i] && (word != anyID || end[i] == "") {
			return false
		}
	}
	return true
}
