package proxy

import (
	"log/slog"
	"net/http"
	"strings"
	"sync"

	"reverser/internal/grammar"
	"reverser/internal/inspect"
	"reverser/internal/registry"
	"reverser/internal/traffic"
	"reverser/internal/web"
)

// inspected is the services whose exchanges are kept.
type inspected struct {
	store *inspect.Store

	mu sync.Mutex
	of map[*registry.Route]*inspect.Recorder // guarded by mu
}

// record returns the recorder of a service whose bridge asks for what o says; nil: nothing is kept of it. A change is said once.
func (p *Proxy) record(rt *registry.Route, o *grammar.ProxyOptions) *inspect.Recorder {
	in, service := &p.inspected, rt.Public.String()
	in.mu.Lock()
	defer in.mu.Unlock()
	rec := in.of[rt]
	switch {
	case o == nil: // the bridge is away
	case o.Inspect && rec == nil:
		rec = in.store.Record(service, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.web.server.Again(p.service(rt).site, w, r) }))
		in.of[rt] = rec
		p.say.Say(slog.LevelInfo, rt.Key, "service is inspected: its last exchanges are kept in memory", "service", service, "key", p.logName(rt.Key),
			"hint", "`reverser inspect "+service+"` shows them")
	case !o.Inspect && rec != nil:
		in.store.Forget(rec)
		delete(in.of, rt)
		rec = nil
		p.say.Say(slog.LevelInfo, rt.Key, "service is inspected no longer: its exchanges are forgotten", "service", service, "key", p.logName(rt.Key))
	}
	return rec
}

// Inspected returns what is kept of the exchanges of a service; nil: nothing is.
func (p *Proxy) Inspected(public grammar.Public) *inspect.Recorder {
	if public.Kind != grammar.KindHTTP && public.Kind != grammar.KindHTTPS {
		return nil
	}
	if rt := p.registry.View().Find(public); rt != nil {
		return p.record(rt, rt.Options())
	}
	return nil
}

// inspectedBy returns the keys whose services are inspected, by service.
func (p *Proxy) inspectedBy() map[string]registry.KeyID {
	in := &p.inspected
	in.mu.Lock()
	defer in.mu.Unlock()
	keys := make(map[string]registry.KeyID, len(in.of))
	for rt := range in.of {
		keys[rt.Public.String()] = rt.Key
	}
	return keys
}

// forgetInspected forgets what is kept of services that are gone.
func (p *Proxy) forgetInspected() {
	in := &p.inspected
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(in.of) == 0 {
		return
	}
	view := p.registry.View()
	for rt, rec := range in.of {
		if view.Find(rt.Public) != rt {
			in.store.Forget(rec)
			delete(in.of, rt)
		}
	}
}

// connectionsOnly leaves out those for which tell is told of requests.
func connectionsOnly(tell func(traffic.Over)) func(traffic.Over) {
	if tell == nil {
		return nil
	}
	return func(c traffic.Over) {
		if kind, _, _ := strings.Cut(c.Service, "/"); kind != string(grammar.KindHTTP) && kind != string(grammar.KindHTTPS) {
			tell(c)
		}
	}
}

// Request is what became of a request to a service.
type Request struct {
	web.Request
	Service string // canonical PUBLIC
	Key     string // as people call it
	Target  string
}

// requestOver returns what is told of the requests to a service; nil: nobody wants to hear of them.
func (p *Proxy) requestOver(rt *registry.Route) func(web.Request) {
	tell := p.cfg.Requests
	if tell == nil {
		return nil
	}
	heard := tell()
	if heard == nil {
		return nil
	}
	return func(r web.Request) {
		heard(Request{Request: r, Service: rt.Public.String(), Key: p.logName(rt.Key), Target: rt.Target()})
	}
}
