package metrics

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"reverser/internal/status"
)

// process is a role with what it counted.
type process struct {
	tallies  []status.Tally
	measures status.Measures
	snap     status.Snapshot
	keys     []Key
}

func (p *process) Tallies(yield func(status.Tally) bool) {
	for _, t := range p.tallies {
		if !yield(t) {
			return
		}
	}
}

func (p *process) Measures() status.Measures { return p.measures }

func (p *process) handler() http.Handler {
	return Handler(p, func() status.Snapshot { return p.snap }, func() []Key { return p.keys })
}

// scrape returns the samples of the program, in order.
func scrape(t *testing.T, h http.Handler) []string {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if w.Body.Len() < 1<<16 { // it takes its time
		if problems, err := promlint.New(strings.NewReader(w.Body.String())).Lint(); err != nil || len(problems) > 0 {
			t.Errorf("promlint: %v, %v", problems, err)
		}
	}
	var samples []string
	for line := range strings.Lines(w.Body.String()) {
		if strings.HasPrefix(line, "reverser_") {
			samples = append(samples, strings.TrimSpace(line))
		}
	}
	return samples
}

func busy() *process {
	since := time.Unix(1_700_000_000, 0)
	return &process{
		tallies: []status.Tally{
			{Service: "tcp/9000", Open: 1, Sent: 10, Received: 20, Ended: map[string]uint64{"eof": 2}, Refused: map[string]uint64{"away": 3}},
			{Service: "http/a.example", Sent: 1},
			{Service: "tcp/9000", Open: 1, Sent: 5, Ended: map[string]uint64{"eof": 1, "ended": 4}}, // of the key that had it before
		},
		measures: status.Measures{
			BudgetUsed: 7, BudgetSize: 100, Resumes: map[string]uint64{"nas": 6},
			Handshakes: &status.Histogram{Bounds: []float64{0.1, 1}, Counts: []uint64{2, 3}, Count: 4, Sum: 12.5},
		},
		snap: status.Snapshot{
			Role: "proxy", Version: "v1.2.3", UptimeSeconds: 60, Stopping: true,
			Links: []status.Link{
				{Key: "nas", State: status.LinkUp, RTTMillis: 20, Resumes: 1, ChecksumErrors: 1},
				{Key: "nas", State: status.LinkDraining, RTTMillis: 30},
				{Key: "old", State: status.LinkDown},
			},
			Services: []status.Service{
				{Public: "tcp/9000", State: status.ServiceUp}, {Public: "tcp/9000", State: status.ServiceAway}, {Public: "tcp/22", State: status.ServiceDenied},
				{Public: "http/a.example", State: status.ServiceUp},
			},
			Pressure: []status.Pressure{{What: "descriptors for users", Used: 90, Limit: 100}, {What: "descriptors for users", Used: 1, Limit: 2}},
			Certificates: []status.Certificate{
				{Host: "a.example", State: status.CertificateValid, NotAfter: since.Add(time.Hour)}, {Host: "b.example", State: status.CertificateFailed},
			},
			AccessLog: &status.AccessLog{Written: 11, Lost: 2},
			Usage:     &status.Usage{Failures: 3, Error: "no space left"},
			Unstored:  &status.Unstored{Removed: []string{"gone"}},
			Faults:    []string{"identity.pem was removed"},
			Reload:    &status.Reload{At: since, Error: "line 3"},
		},
		keys: []Key{{Name: "nas"}, {Name: "spare", Expires: since}},
	}
}

func TestMetrics(t *testing.T) {
	p := busy()
	p.snap.Services = append(p.snap.Services, status.Service{Public: "tcp/23", State: status.ServiceAway, Drained: true})
	got := scrape(t, p.handler())
	for _, want := range []string{
		`reverser_connections{service="tcp/9000"} 2`,
		`reverser_connections{service="http/a.example"} 0`,
		`reverser_connections_total{reason="eof",service="tcp/9000"} 3`,
		`reverser_connections_total{reason="ended",service="tcp/9000"} 4`,
		`reverser_bytes_total{direction="sent",service="tcp/9000"} 15`,
		`reverser_bytes_total{direction="received",service="tcp/9000"} 20`,
		`reverser_refused_total{reason="away",service="tcp/9000"} 3`,
		`reverser_services{state="up"} 2`, `reverser_services{state="away"} 2`, `reverser_services{state="denied"} 1`, `reverser_services{state="retrying"} 0`,
		`reverser_service_up{service="tcp/9000"} 1`, `reverser_service_up{service="tcp/23"} 1`,
		`reverser_links{state="up"} 1`, `reverser_links{state="down"} 1`, `reverser_links{state="draining"} 1`,
		`reverser_link_up{key="nas"} 1`, `reverser_link_up{key="old"} 0`, `reverser_link_up{key="spare"} 0`,
		`reverser_link_rtt_seconds{key="nas"} 0.03`,
		`reverser_link_resumes_total{key="nas"} 6`,
		`reverser_link_checksum_errors 1`,
		`reverser_handshake_seconds_bucket{le="0.1"} 2`, `reverser_handshake_seconds_bucket{le="1"} 3`, `reverser_handshake_seconds_bucket{le="+Inf"} 4`,
		`reverser_handshake_seconds_sum 12.5`, `reverser_handshake_seconds_count 4`,
		`reverser_budget_bytes{state="used"} 7`, `reverser_budget_bytes{state="limit"} 100`,
		`reverser_pressure_used{of="descriptors for users"} 90`, `reverser_pressure_limit{of="descriptors for users"} 100`,
		`reverser_key_expiry_timestamp_seconds{key="spare"} 1.7e+09`,
		`reverser_certificates{state="valid"} 1`, `reverser_certificates{state="failed"} 1`, `reverser_certificates{state="pending"} 0`,
		`reverser_certificate_expiry_timestamp_seconds{host="a.example"} 1.7000036e+09`,
		`reverser_access_log_lines_total 11`, `reverser_access_log_lost_total 2`,
		`reverser_usage_failures_total 3`, `reverser_usage_unsaved 1`, `reverser_orders_unstored 1`, `reverser_state_faults 1`,
		`reverser_reload_failed 1`, `reverser_reload_timestamp_seconds 1.7e+09`, `reverser_uptime_seconds 60`, `reverser_stopping 1`,
	} {
		if !slices.Contains(got, want) {
			t.Errorf("there is no %s in\n%s", want, strings.Join(got, "\n"))
		}
	}
	if !slices.ContainsFunc(got, func(s string) bool {
		return strings.HasPrefix(s, `reverser_build_info{go="go1`) && strings.HasSuffix(s, `,role="proxy",version="v1.2.3"} 1`)
	}) {
		t.Errorf("there is no build_info in\n%s", strings.Join(got, "\n"))
	}
}

// TestBridge: a bridge has neither keys nor handshakes, and its resumes stand in its links.
func TestBridge(t *testing.T) {
	p := &process{snap: status.Snapshot{Role: "bridge", Links: []status.Link{{Key: "0a0b", State: status.LinkUp, Resumes: 4}}}}
	got := scrape(t, Handler(p, func() status.Snapshot { return p.snap }, nil))
	for _, want := range []string{`reverser_link_resumes_total{key="0a0b"} 4`, `reverser_link_up{key="0a0b"} 1`} {
		if !slices.Contains(got, want) {
			t.Errorf("there is no %s in\n%s", want, strings.Join(got, "\n"))
		}
	}
	if slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, "handshake") }) {
		t.Errorf("a bridge has handshakes:\n%s", strings.Join(got, "\n"))
	}
}

// TestLabelsAreBounded: names beyond the bounds are one series.
func TestLabelsAreBounded(t *testing.T) {
	p := busy()
	for i := range 2 * mostServices {
		p.tallies = append(p.tallies, status.Tally{Service: fmt.Sprintf("http/h%d.example", i), Sent: 1, Ended: map[string]uint64{"eof": 1}})
		p.snap.Services = append(p.snap.Services, status.Service{Public: fmt.Sprintf("http/h%d.example", i), State: status.ServiceUp})
	}
	for i := range mostKeys + 100 {
		p.keys = append(p.keys, Key{Name: fmt.Sprint("k", i)})
		p.measures.Resumes[fmt.Sprint("k", i)] = 1
	}
	for i := range 3 * mostHosts {
		p.snap.Certificates = append(p.snap.Certificates, status.Certificate{Host: fmt.Sprintf("h%d.example", i), State: status.CertificateValid, NotAfter: time.Unix(2_000_000_000, 0)})
	}
	got := scrape(t, p.handler())
	for metric, want := range map[string]int{"reverser_connections": mostServices + 1, "reverser_service_up": mostServices, "reverser_link_up": mostKeys,
		"reverser_certificate_expiry_timestamp_seconds": mostHosts + 1} {
		if got := count(got, metric); got > want || got < want-3 {
			t.Errorf("%d series of %s, want %d", got, metric, want)
		}
	}
	rest := fmt.Sprintf(`reverser_bytes_total{direction="sent",service="other"} %d`, 2*mostServices-(mostServices-2))
	if !slices.Contains(got, rest) {
		t.Errorf("there is no %s", rest)
	}
}

func count(samples []string, metric string) (n int) {
	for _, s := range samples {
		if strings.HasPrefix(s, metric+"{") {
			n++
		}
	}
	return n
}

// TestOneKeyLeavesLabels: a key with very many services has a share of the labels, and none for what it does not get.
func TestOneKeyLeavesLabels(t *testing.T) {
	p := &process{}
	h := p.handler()
	for i := range 2 * mostServices {
		p.snap.Services = append(p.snap.Services,
			status.Service{Public: fmt.Sprintf("tcp/127.0.0.1:%d", i), Key: "greedy", State: status.ServiceDenied},
			status.Service{Public: fmt.Sprintf("tcp/127.0.0.2:%d", i), Key: "greedy", State: status.ServiceRetrying},
			status.Service{Public: fmt.Sprintf("tcp/%d", 10000+i), Key: "greedy", State: status.ServiceUp})
	}
	for range 3 { // it does not take more with time
		if n := count(scrape(t, h), "reverser_service_up"); n != mostServices/5 {
			t.Fatalf("a key has the labels of %d services, want a quarter of what is free, %d", n, mostServices/5)
		}
	}
	for i := range mostServices - mostServices/5 + 1 {
		key := fmt.Sprint("k", i)
		p.snap.Services = append(p.snap.Services, status.Service{Public: "http/" + key, Key: key, State: status.ServiceUp})
	}
	got := scrape(t, h)
	if n := count(got, "reverser_service_up"); n != mostServices {
		t.Errorf("%d services have a label, want %d", n, mostServices)
	}
	if first := `reverser_service_up{service="http/k0"} 1`; !slices.Contains(got, first) {
		t.Errorf("there is no %s", first)
	}
	p.snap.Services = []status.Service{ // what it had and has no more shows it, for alerts
		{Public: "tcp/10000", Key: "greedy", State: status.ServiceDenied}, {Public: "tcp/10001", Key: "greedy", State: status.ServiceRetrying},
		{Public: "tcp/10002", Key: "greedy", State: status.ServiceUp}, {Public: "tcp/10002", Key: "k1", State: status.ServiceDenied}, {Public: "http/k0", Key: "k1", State: status.ServiceDenied},
		{Public: "http/k0", Key: "k0", State: status.ServiceAway},
	}
	got = slices.DeleteFunc(scrape(t, h), func(s string) bool { return !strings.HasPrefix(s, "reverser_service_up") })
	want := []string{`reverser_service_up{service="http/k0"} 0`, `reverser_service_up{service="tcp/10000"} 0`, `reverser_service_up{service="tcp/10001"} 0`, `reverser_service_up{service="tcp/10002"} 1`}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestLabelsAreGivenBack: a service that is gone keeps its series until another needs them. Whatever comes and goes, no counter becomes
// less, and nothing is counted twice.
func TestLabelsAreGivenBack(t *testing.T) {
	p := &process{}
	c := &collector{process: p, snapshot: func() status.Snapshot { return p.snap }, keys: func() []Key { return nil }, services: labels{most: 8}, named: names{most: 8}, hosts: names{most: 8}}
	reg := prometheus.NewRegistry()
	reg.MustRegister(c)
	h := promhttp.HandlerFor(reg, promhttp.HandlerOpts{})
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 24 {
		p.tallies = append(p.tallies, status.Tally{Service: fmt.Sprintf("tcp/%d", i), Ended: map[string]uint64{}, Refused: map[string]uint64{}})
	}
	had := make(map[string]uint64) // values of series, as they were last
	gone, back := 0, 0
	for range 400 {
		p.snap.Services = nil
		for i := range p.tallies {
			if a := &p.tallies[i]; rnd.IntN(3) == 0 {
				a.Sent += uint64(rnd.IntN(10))
				a.Ended["eof"]++
				a.Refused["away"] += uint64(rnd.IntN(2))
			}
			if state := rnd.IntN(8); state < 4 {
				p.snap.Services = append(p.snap.Services, status.Service{
					Public: p.tallies[i].Service, Key: fmt.Sprint("k", i),
					State: []string{status.ServiceUp, status.ServiceUp, status.ServiceDenied, status.ServiceRetrying}[state],
				})
			}
		}
		now := make(map[string]uint64)
		for _, s := range scrape(t, h) {
			if series, value, _ := strings.Cut(s, " "); strings.Contains(series, "_total{") {
				n, err := strconv.ParseFloat(value, 64)
				if err != nil || n < float64(had[series]) {
					t.Fatalf("%s is %s after %d", series, value, had[series])
				}
				if _, there := had[series]; !there {
					back++
				}
				now[series], had[series] = uint64(n), uint64(n)
			}
		}
		var want, all uint64
		for _, a := range p.tallies {
			want += a.Sent
		}
		for series, n := range had { // what is not shown counts as it was last
			if _, there := now[series]; !there {
				gone++
			}
			if strings.Contains(series, `direction="sent"`) {
				all += n
			}
		}
		if n := len(c.services.held); n > 8 || all > want {
			t.Fatalf("%d labels, and %d bytes of %d", n, all, want)
		}
	}
	if gone == 0 || back < 30 {
		t.Errorf("labels went %d times, and came %d times", gone, back)
	}
}

func BenchmarkScrape(b *testing.B) {
	p := &process{}
	for i := range mostServices {
		name := fmt.Sprintf("http/h%d.example", i)
		p.tallies = append(p.tallies, status.Tally{Service: name, Sent: 1, Ended: map[string]uint64{"eof": 1}})
		p.snap.Services = append(p.snap.Services, status.Service{Public: name, Key: fmt.Sprint("k", i), State: status.ServiceUp})
	}
	h := p.handler()
	for b.Loop() {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/metrics", nil))
	}
}

// TestHostileLabels: what a peer says is a value, whatever is in it.
func TestHostileLabels(t *testing.T) {
	p := &process{tallies: []status.Tally{{Service: "http/a\"} 1\nevil_total 7\\"}, {Service: "\xff\x1b[2J"}}}
	for _, s := range scrape(t, p.handler()) {
		if strings.HasPrefix(s, "evil") || strings.ContainsAny(s, "\x1b") {
			t.Errorf("%q", s)
		}
	}
}
