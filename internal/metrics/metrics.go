// Package metrics tells Prometheus, when it asks, what a process counts anyway. Nothing is counted for it, and nothing on the path of a byte
// knows it.
//
// Labels are bounded: what has no series of its own is added up as "other". Of keys and names of certificates the first ones that there were
// have series, as long as the process runs; labels.go says which services have. No goroutine is started.
package metrics

import (
	"maps"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"reverser/internal/escape"
	"reverser/internal/status"
)

// How many have series of their own.
const (
	mostServices = 5000
	mostKeys     = 5000
	mostHosts    = 1000
)

// other is the label of those who have no series of their own. It is no PUBLIC, and a key of this name shares it.
const other = "other"

// atOnce is how many scrapes are answered at once: each is a walk over all that is counted.
const atOnce = 2

// Process is a role.
type Process interface {
	// Tallies yields what services counted, those that are gone included, always.
	Tallies(yield func(status.Tally) bool)
	Measures() status.Measures
}

// Key is a key that the process honours.
type Key struct {
	Name    string
	Expires time.Time // zero: never
}

// Handler answers scrapes. keys is nil at a bridge, which has one.
func Handler(p Process, snapshot func() status.Snapshot, keys func() []Key) http.Handler {
	if keys == nil {
		keys = func() []Key { return nil }
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(
		&collector{process: p, snapshot: snapshot, keys: keys, services: labels{most: mostServices}, named: names{most: mostKeys}, hosts: names{most: mostHosts}},
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{MaxRequestsInFlight: atOnce})
}

// names are those with series of their own.
type names struct {
	most int
	all  map[string]bool
}

// label is the label of a name.
func (n *names) label(name string) string {
	name = escape.Text(name)
	if n.all[name] {
		return name
	}
	if len(n.all) >= n.most {
		return other
	}
	if n.all == nil {
		n.all = make(map[string]bool)
	}
	n.all[name] = true
	return name
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("reverser_"+name, help, labels, nil)
}

var (
	buildInfo = desc("build_info", "1; the labels say which program this is.", "version", "go", "role")
	uptime    = desc("uptime_seconds", "Since the process started.")
	stopping  = desc("stopping", "1 if the process was asked to stop.")

	connections      = desc("connections", "Users' connections at present.", "service")
	connectionsTotal = desc("connections_total", "Users' connections that are over, by the reason of their end.", "service", "reason")
	bytesTotal       = desc("bytes_total", "Bytes from clients to targets (sent) and back (received). It moves while a connection lives.", "service", "direction")
	refusedTotal     = desc("refused_total", "Users who were not served, by the reason.", "service", "reason")

	services  = desc("services", "Services, by their state.", "state")
	serviceUp = desc("service_up", "Whether the service serves users, or lets no new ones in by order.", "service")

	links      = desc("links", "Links between bridge and proxy, by their state.", "state")
	linkUp     = desc("link_up", "Whether a link of the key is up. At a proxy, of every key that it honours.", "key")
	linkRTT    = desc("link_rtt_seconds", "There and back on the key's link; of several, the longest.", "key")
	resumes    = desc("link_resumes_total", "How often a broken connection of the key's links went on where it stood.", "key")
	checksums  = desc("link_checksum_errors", "Directions of connections on the present links that did not arrive as they were sent.")
	handshakes = desc("handshake_seconds", "From the connection of a bridge to the proof of its key.")

	budget = desc("budget_bytes", "Memory for bytes in flight: what is used, and what may be.", "state")
	// A label has one of few values: what can run short is known.
	pressureUsed  = desc("pressure_used", "How much is used of what runs short at present. There is no series while nothing does.", "of")
	pressureLimit = desc("pressure_limit", "How much there is of what runs short at present.", "of")

	keyExpiry         = desc("key_expiry_timestamp_seconds", "When the key ends.", "key")
	certificates      = desc("certificates", "Certificates, by their state.", "state")
	certificateExpiry = desc("certificate_expiry_timestamp_seconds", "When the certificate expires.", "host")

	accessLogLines = desc("access_log_lines_total", "Lines of the access log that were written.")
	accessLogLost  = desc("access_log_lost_total", "Lines of the access log for which there was no room.")
	usageFailures  = desc("usage_failures_total", "How often what was counted could not be stored.")
	usageUnsaved   = desc("usage_unsaved", "1 if what was counted cannot be stored at present.")
	unstored       = desc("orders_unstored", "Keys whose removal, or change, is in force and could not be stored.")
	faults         = desc("state_faults", "What became of the state directory behind the process's back; status says what.")
	reloadFailed   = desc("reload_failed", "1 if the last reload was refused.")
	reloadAt       = desc("reload_timestamp_seconds", "When the last reload was.")
)

// collector reads when it is scraped.
type collector struct {
	process  Process
	snapshot func() status.Snapshot
	keys     func() []Key

	mu           sync.Mutex
	services     labels // guarded by mu, as all below
	named, hosts names
}

// Describe says nothing: which series there are depends on what there is.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := sink{ch}
	snap := c.snapshot()
	s.gauge(buildInfo, 1, snap.Version, runtime.Version(), snap.Role)
	s.gauge(uptime, snap.UptimeSeconds)
	s.gauge(stopping, one(snap.Stopping))
	c.ofServices(s, &snap)
	c.states(s, &snap)
	c.measures(s)
	c.stored(s, &snap)
}

// sink makes metrics.
type sink struct{ ch chan<- prometheus.Metric }

func (s sink) gauge(d *prometheus.Desc, v float64, labels ...string) {
	s.ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func (s sink) counter(d *prometheus.Desc, v uint64, labels ...string) {
	s.ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
}

func one(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

// ofServices is what services counted, and which of them are up.
func (c *collector) ofServices(s sink, snap *status.Snapshot) {
	sums := make(map[string]*status.Tally)
	for t := range c.process.Tallies {
		name := escape.Text(t.Service)
		sum := sums[name]
		if sum == nil {
			sum = new(status.Tally)
			sums[name] = sum
		}
		sum.Open += t.Open
		addTo(sum, &t)
	}
	count := map[string]int{status.ServiceUp: 0, status.ServiceDenied: 0, status.ServiceRetrying: 0, status.ServiceAway: 0}
	for _, svc := range snap.Services {
		count[svc.State]++
	}
	s.counts(services, count)
	ups := c.services.update(snap.Services, sums)
	for service, up := range ups {
		s.gauge(serviceUp, one(up), service)
	}
	for service, t := range c.services.split(sums) {
		s.gauge(connections, float64(t.Open), service)
		s.counter(bytesTotal, t.Sent, service, "sent")
		s.counter(bytesTotal, t.Received, service, "received")
		for reason, n := range t.Ended {
			s.counter(connectionsTotal, n, service, reason)
		}
		for reason, n := range t.Refused {
			s.counter(refusedTotal, n, service, reason)
		}
	}
}

// states is what links and certificates are at present.
func (c *collector) states(s sink, snap *status.Snapshot) {
	type link struct {
		up  bool
		rtt float64
	}
	byKey := make(map[string]link)
	for _, k := range c.keys() {
		label := c.named.label(k.Name)
		if label == other {
			continue
		}
		byKey[label] = link{}
		if !k.Expires.IsZero() {
			s.gauge(keyExpiry, seconds(k.Expires), label)
		}
	}
	count := map[string]int{status.LinkUp: 0, status.LinkDown: 0, status.LinkDraining: 0}
	broken := uint64(0)
	resumed := make(map[string]uint64)
	for _, l := range snap.Links {
		count[l.State]++
		broken += l.ChecksumErrors
		label := c.named.label(l.Key)
		resumed[label] += l.Resumes
		if label == other {
			continue
		}
		k := byKey[label]
		k.up = k.up || l.State != status.LinkDown
		k.rtt = max(k.rtt, l.RTTMillis/1000)
		byKey[label] = k
	}
	s.counts(links, count)
	s.gauge(checksums, float64(broken))
	for key, l := range byKey {
		s.gauge(linkUp, one(l.up), key)
		if l.rtt > 0 {
			s.gauge(linkRTT, l.rtt, key)
		}
	}
	if counted := c.process.Measures().Resumes; counted != nil {
		clear(resumed)
		for _, key := range slices.Sorted(maps.Keys(counted)) {
			resumed[c.named.label(key)] += counted[key]
		}
	}
	for key, n := range resumed {
		s.counter(resumes, n, key)
	}

	short := make(map[string]bool)
	for _, p := range snap.Pressure {
		if !short[p.What] {
			short[p.What] = true
			s.gauge(pressureUsed, float64(p.Used), p.What)
			s.gauge(pressureLimit, float64(p.Limit), p.What)
		}
	}
	count = map[string]int{status.CertificateValid: 0, status.CertificatePending: 0, status.CertificateFailed: 0}
	expiry := make(map[string]time.Time)
	for _, cert := range snap.Certificates {
		count[cert.State]++
		label := c.hosts.label(cert.Host)
		if before := expiry[label]; !cert.NotAfter.IsZero() && (before.IsZero() || cert.NotAfter.Before(before)) {
			expiry[label] = cert.NotAfter // of the others, the first that expires
		}
	}
	s.counts(certificates, count)
	for host, t := range expiry {
		s.gauge(certificateExpiry, seconds(t), host)
	}
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

func (s sink) counts(d *prometheus.Desc, by map[string]int) {
	for state, n := range by {
		s.gauge(d, float64(n), state)
	}
}

func (c *collector) measures(s sink) {
	m := c.process.Measures()
	s.gauge(budget, float64(m.BudgetUsed), "used")
	s.gauge(budget, float64(m.BudgetSize), "limit")
	if h := m.Handshakes; h != nil {
		buckets := make(map[float64]uint64, len(h.Bounds))
		for i, bound := range h.Bounds {
			buckets[bound] = h.Counts[i]
		}
		s.ch <- prometheus.MustNewConstHistogram(handshakes, h.Count, h.Sum, buckets)
	}
}

// stored is what became of files.
func (c *collector) stored(s sink, snap *status.Snapshot) {
	if l := snap.AccessLog; l != nil {
		s.counter(accessLogLines, l.Written)
		s.counter(accessLogLost, l.Lost)
	}
	if u := snap.Usage; u != nil {
		s.counter(usageFailures, u.Failures)
		s.gauge(usageUnsaved, one(u.Error != ""))
	}
	orders := 0
	if u := snap.Unstored; u != nil {
		orders = len(u.Removed) + len(u.Edited)
	}
	s.gauge(unstored, float64(orders))
	s.gauge(faults, float64(len(snap.Faults)))
	if r := snap.Reload; r != nil {
		s.gauge(reloadFailed, one(r.Error != ""))
		s.gauge(reloadAt, seconds(r.At))
	}
}
