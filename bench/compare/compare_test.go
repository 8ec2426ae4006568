package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"reverser/internal/freeport"
	"reverser/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestParseWrk(t *testing.T) {
	const good = `Running 1s test @ http://127.0.0.1:28080/
  1 threads and 50 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   552.11us  223.22us   4.39ms   91.56%
    Req/Sec    68.01k     4.77k   73.00k    81.82%
  74475 requests in 1.10s, 11.36MB read
`
	const rate = "Requests/sec:  67576.89\nTransfer/sec:     10.31MB\npercentiles 552 1200 4390\nresponses 74475\n"
	for _, c := range []struct {
		name, text string
		rate       float64
		note       string
		err        string
	}{
		{"clean", good + rate, 67576.89, "", ""},
		{"socket errors", good + "  Socket errors: connect 0, read 12, write 0, timeout 3\n" + rate, 67576.89,
			"Socket errors: connect 0, read 12, write 0, timeout 3", ""},
		{"both kinds of errors", good + "  Socket errors: connect 1, read 0, write 0, timeout 0\n  Non-2xx or 3xx responses: 7\n" + rate, 67576.89,
			"Socket errors: connect 1, read 0, write 0, timeout 0, Non-2xx or 3xx responses: 7", ""},
		{"no script", good + "Requests/sec:  67576.89\n", 0, "", "no percentiles"},
		{"no response", "  0 requests in 1.00s, 0.00B read\n  Socket errors: connect 0, read 50, write 0, timeout 0\nRequests/sec:      0.00\n", 0,
			"", "wrk got no response: Socket errors: connect 0, read 50"},
		{"cut short", good, 0, "", "has no Requests/sec"},
		{"not a number", "Requests/sec:  1.2.3\n", 0, "", "1.2.3"},
		{"empty", "", 0, "", "has no Requests/sec"},
		{"refused", "unable to connect to 127.0.0.1:1 Connection refused\n", 0, "", "Connection refused"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := parseWrk([]byte(c.text))
			if r.rate != c.rate || r.errors != c.note {
				t.Errorf("parseWrk = %v, %q; want %v, %q", r.rate, r.errors, c.rate, c.note)
			}
			if want := (wrkResult{c.rate, 74475, 0.552, 1.2, 4.39, c.note}); err == nil && r != want {
				t.Errorf("parseWrk = %+v; want %+v", r, want)
			}
			wantError(t, err, c.err)
		})
	}
}

func TestParseIperf(t *testing.T) {
	for _, c := range []struct {
		name, text string
		gbits      float64
		err        string
	}{
		{"up", `{"start": {}, "intervals": [{"sum": {"bytes": 1000, "omitted": true}}, {"sum": {"bytes": 2000, "seconds": 1.3e-6}}], "end": {
			"sum_sent": {"bytes": 1734082560, "bits_per_second": 13870676973.19, "sender": true},
			"sum_received": {"bytes": 1728315392, "bits_per_second": 13823205566.664, "sender": true}}}`, 13.823205566664, ""},
		{"up, late server", `{"start": {}, "intervals": [{"sum": {"bytes": 1000, "seconds": 1, "omitted": true}}, {"sum": {"bytes": 2000, "seconds": 2e-6}}], "end": {
			"sum_received": {"bits_per_second": 52}}}`, 8, ""},
		{"busy", `{"start": {}, "intervals": [], "end": {}, "error": "error - the server is busy running a test. try again later"}`, 0, "busy"},
		{"busy, far away", `{"end": {}, "error": "error - unable to receive control message: Connection reset by peer"}`, 0, "busy"},
		{"refused", `{"start": {}, "intervals": [], "end": {}, "error": "error - unable to connect to server: Connection refused"}`, 0,
			"iperf3: unable to connect to server: Connection refused"},
		{"no result", `{"start": {}, "intervals": [], "end": {}}`, 0, "no end.sum_received"},
		{"cut short", `{"start": {`, 0, "unexpected end of JSON input"},
		{"not JSON", "iperf3: parameter error", 0, "parameter error"},
		{"empty", "", 0, "unexpected end of JSON input"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := parseIperf([]byte(c.text))
			if math.Abs(r.gbits-c.gbits) > 1e-9 {
				t.Errorf("parseIperf = %v; want %v", r.gbits, c.gbits)
			}
			if err == nil && r.bytes != 3000 {
				t.Errorf("parseIperf = %v bytes; want 3000", r.bytes)
			}
			wantError(t, err, c.err)
			if busy := errors.Is(err, errBusy); busy != strings.HasPrefix(c.name, "busy") {
				t.Errorf("errors.Is(%v, errBusy) = %v", err, busy)
			}
		})
	}
}

func TestParseResident(t *testing.T) {
	kb, err := parseResident("Name:\treverser\nVmHWM:\t   20000 kB\nVmRSS:\t   13832 kB\nRssAnon:\t    5000 kB\n")
	if kb != 13832 || err != nil {
		t.Errorf("parseResident = %d, %v; want 13832", kb, err)
	}
	_, err = parseResident("Name:\treverser\nState:\tZ (zombie)\n")
	wantError(t, err, "has ended")
}

func TestMissingPackages(t *testing.T) {
	err := missing([]string{"iperf3", "wrk"}, []string{"iperf3", "wrk"})
	wantError(t, err, "not found: iperf3, wrk")
	wantError(t, err, "sudo apt-get install iperf3 wrk\n")
}

func TestUsageErrors(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"-rounds 0", "at least 1"},
		{"-seconds -1", "at least 1"},
		{"-conns -1", "at least 20"},
		{"-rows [", "missing closing"},
		{"-rows nonsense", "matches no row"},
		{"-nonsense", "not defined"},
		{"surplus", `unexpected argument "surplus"`},
	} {
		var stderr bytes.Buffer
		if code := run(strings.Fields(c.args), io.Discard, &stderr); code != 2 || !strings.Contains(stderr.String(), c.want) {
			t.Errorf("compare %s: exit code %d, stderr %q; want 2, %q", c.args, code, stderr.String(), c.want)
		}
	}
}

func TestList(t *testing.T) {
	var all, some, stderr bytes.Buffer
	if code := run([]string{"-list"}, &all, &stderr); code != 0 {
		t.Fatalf("compare -list: exit code %d, %s", code, stderr.String())
	}
	seen := make(map[string]bool)
	for line := range strings.Lines(all.String()) {
		if seen[line] {
			t.Errorf("two rows are called %q: their figures would land in one", line)
		}
		seen[line] = true
	}
	if code := run([]string{"-list", "-rows", "^echo beside bulk"}, &some, &stderr); code != 0 || strings.Count(some.String(), "\n") != 2 {
		t.Errorf("compare -list -rows: exit code %d, rows %q; want the two beside bulk", code, some.String())
	}
}

// Rates are better when they are more, everything else when it is less, and a goal needs the figure that it is beside.
func TestKindsHaveDirections(t *testing.T) {
	for _, p := range probes(settings{Seconds: 1, Conns: 10000}) {
		for _, k := range p.kinds {
			if rate := strings.HasSuffix(k.Unit, "bit/s") || k.Unit == "1000/s"; rate == k.Low {
				t.Errorf("%s in %s: less is better = %v", k.Name, k.Unit, k.Low)
			}
			for _, g := range k.Goals {
				if g.Than != "" && g.Than != frp && !p.wants(g.Than) {
					t.Errorf("%s has a goal beside %s, which it does not measure", k.Name, g.Than)
				}
			}
		}
	}
}

// sample figures of two rounds.
func sampleReport() *report {
	r := &report{
		Machine: machine{CPU: "Abacus <1>", Cores: 2, Memory: 8, Kernel: "6.1", Congestion: "cubic", Go: "go1.26", Revision: "abc123",
			Time: time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC), LoadBefore: "0.10", LoadAfter: "2.50",
			Programs: map[string]string{"haproxy": "2.6.12", "iperf3": "3.12"}},
		Settings: settings{Size: "full", Rounds: 2, Seconds: 5, Conns: 4000},
		Columns:  []column{{direct, "direct"}, {haproxy, "2 haproxies"}, {reverser, "reverser"}},
		Rounds:   []roundInfo{{"0.20", 0.01}, {"0.30", 0.5}},
	}
	up := kind{Name: "bulk up", Unit: "Gbit/s", Goals: []goal{{haproxy, 0.8}, {frp, 2.2}}}
	alive := kind{Name: "requests", Unit: "1000/s", Goals: []goal{{haproxy, 0.7}}}
	idle := kind{Name: "memory", Unit: "KB", Low: true, Goals: []goal{{"", 16}, {haproxy, 4}}}
	for i, v := range []float64{1, 2} {
		at := func(v float64) sample { return sample{i + 1, v, 0.1} }
		r.add("up", up, direct, at(10*v), "")
		r.add("up", up, haproxy, at(4*v), "")
		r.add("up", up, reverser, at(3*v), "")
		r.add("alive", alive, direct, at(60), "")
		r.add("alive", alive, haproxy, at(20), "")
		r.add("alive", alive, reverser, sample{i + 1, 14 + v, v / 5}, []string{"", "Non-2xx or 3xx responses: 7"}[i])
		r.add("idle", idle, direct, at(nothing), "")
		r.add("idle", idle, haproxy, at(5), "")
		r.add("idle", idle, reverser, at(15+v), "")
	}
	r.Absent = []string{"frp is not measured: no frps"}
	r.finish()
	return r
}

func TestTable(t *testing.T) {
	r := sampleReport()
	r.fail("bulk down, haproxy, round %d: it broke", 2)
	var out strings.Builder
	if err := r.print(&out); err != nil {
		t.Fatal(err)
	}
	const want = `Abacus <1>, 2 cores, 8 GB, Linux 6.1, TCP cubic, go1.26, 2026-05-04 03:02 UTC
haproxy 2.6.12, iperf3 3.12, reverser abc123
2 rounds of 5 s, up to 4000 connections; median (min-max)
load 0.10 before, 0.20, 0.30 at the beginning of each round, 2.50 after; other processes used 0.01, 0.50 cores meanwhile

                    direct             2 haproxies        reverser           reverser / haproxies   disturbed   goal
bulk up    Gbit/s   15.0 (10.0-20.0)   6.00 (4.00-8.00)   4.50 (3.00-6.00)   0.75 (0.75-0.75)       2 of 2      >= 0.8 x haproxy: missed, 0.75; >= 2.2 x frp: not measured
requests   1000/s   60.0 (60.0-60.0)   20.0 (20.0-20.0)   15.5 (15.0-16.0)   0.78 (0.75-0.80)       1 of 2      >= 0.7 x haproxy: met, 0.78
memory     KB       -                  5.00 (5.00-5.00)   16.5 (16.0-17.0)   3.30 (3.20-3.40)                   <= 16 KB: missed, 16.5; <= 4 x haproxy: met, 3.30

2 of 4 goals met.

Disturbed, so that these figures say less:
  up: round 1: direct is 10.0, its median 15.0. round 2: direct is 20.0, its median 15.0
  alive: round 2: other processes used 0.40 cores

Errors during the measurement, which make its figures doubtful:
  requests, reverser, round 2: Non-2xx or 3xx responses: 7

Failed:
  bulk down, haproxy, round 2: it broke

Left out:
  frp is not measured: no frps
`
	if out.String() != want {
		t.Errorf("the table is\n%s\nwant\n%s", out.String(), want)
	}
}

// TestAbsent: people are told of the peers that are missing, with where to get them, and not of an earlier reverser.
func TestAbsent(t *testing.T) {
	lines := strings.Join(tools{}.absent(), "\n")
	if !strings.Contains(lines, "frp is not measured: no frps") || strings.Contains(lines, earlier) {
		t.Errorf("said of what is missing:\n%s", lines)
	}
}

// Ratios are of the same round, whoever is missing in another one.
func TestRatioOfTheSameRound(t *testing.T) {
	x := &row{Runs: map[string][]sample{
		haproxy:  {{Round: 1, Value: 10}, {Round: 3, Value: 20}, {Round: 4, Value: 0}},
		reverser: {{Round: 2, Value: 1}, {Round: 3, Value: 30}, {Round: 4, Value: 5}},
	}}
	if got := x.ratio(reverser, haproxy); !slices.Equal(got, []float64{1.5}) {
		t.Errorf("ratio = %v; want 1.5 alone", got)
	}
}

func TestDisturbed(t *testing.T) {
	for _, c := range []struct {
		name   string
		low    bool
		direct []float64
		others float64
		want   []int
	}{
		{"steady", false, []float64{10, 11, 9}, 0.1, nil},
		{"one slow", false, []float64{10, 11, 5}, 0.1, []int{3}},
		{"one fast", false, []float64{20, 11, 10}, 0.1, []int{1}},
		{"times vary more", true, []float64{10, 11, 6}, 0.1, nil},
		{"one slow time", true, []float64{10, 30, 9}, 0.1, []int{2}},
		{"a busy machine", false, []float64{10, 10}, 0.5, []int{1, 2}},
		{"no direct way", true, nil, 0.1, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := &row{kind: kind{Low: c.low}, Runs: map[string][]sample{haproxy: {{1, 1, c.others}, {2, 1, c.others}}}}
			for i, v := range c.direct {
				x.Runs[direct] = append(x.Runs[direct], sample{Round: i + 1, Value: v})
			}
			got := x.disturbed()
			if len(got) != len(c.want) {
				t.Fatalf("disturbed = %q; want rounds %v", got, c.want)
			}
			for i, round := range c.want {
				if !strings.HasPrefix(got[i], fmt.Sprintf("round %d: ", round)) {
					t.Errorf("disturbed = %q; want rounds %v", got, c.want)
				}
			}
		})
	}
}

func TestChart(t *testing.T) {
	r := sampleReport()
	r.Columns = append(r.Columns, column{"ssh", "ssh <-R>"})
	for _, rep := range []*report{r, {}} {
		text := rep.chart()
		d := xml.NewDecoder(strings.NewReader(text))
		for {
			if _, err := d.Token(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("the chart is no XML: %v\n%s", err, text)
			}
		}
		if strings.Contains(text, "NaN") || strings.Contains(text, "Inf") {
			t.Errorf("the chart has impossible numbers:\n%s", text)
		}
	}
	if text := r.chart(); !strings.Contains(text, "0.75 ×") || !strings.Contains(text, "ssh &lt;-R&gt;") {
		t.Errorf("the chart lacks what was measured:\n%s", text)
	}
}

func TestPage(t *testing.T) {
	file := filepath.Join(t.TempDir(), "page.md")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("no marks\n")
	p := page{file: file, by: "bench"}
	wantError(t, p.write("x"), "has no lines")
	begin, end := p.marks()
	write("before\n" + begin + "\nold\n" + end + "\nafter\n")
	for range 2 { // the second time it replaces itself
		if err := p.write(sampleReport().markdown()); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"before\n", "\nafter\n", "| bulk up | Gbit/s | 15.0 | 6.00 | 4.50 (3.00-6.00) | 0.75 (0.75-0.75) | 2 of 2 | ≥ 0.8 × haproxy: **missed**"} {
		if strings.Count(string(text), want) != 1 {
			t.Errorf("the page does not have %q once:\n%s", want, text)
		}
	}
	if strings.Contains(string(text), "old") {
		t.Error("the old table is still there")
	}
}

// TestFleetsTable: the table of the fleets has their rows alone, and a column for each contender that was measured in them.
func TestFleetsTable(t *testing.T) {
	r := sampleReport()
	r.add("fleet", kind{Name: "fleet of 100: all serve", Unit: "s", Low: true}, reverser, sample{1, 1.5, 0.1}, "")
	r.finish()
	text := r.fleets()
	if !strings.Contains(text, "| | | reverser | disturbed rounds | goal |\n|---|---|---|---|---|\n| fleet of 100: all serve | s |") || strings.Contains(text, "bulk") {
		t.Errorf("the table of the fleets is\n%s", text)
	}
}

// TestNamesTable: the rows about names have a table of their own, and are in no other.
func TestNamesTable(t *testing.T) {
	r := sampleReport()
	r.Columns = append(r.Columns, column{nginxes, "2 nginx"})
	http := kind{Name: "http/, 50 clients", Unit: "1000/s", Goals: []goal{{nginxes, 0.8}}}
	r.add("http", http, reverser, sample{1, 27, 0.1}, "")
	r.add("http", http, nginxes, sample{1, 30, 0.1}, "")
	r.finish()
	if text := r.names(); !strings.Contains(text, "| | | reverser | 2 nginx |") || !strings.Contains(text, "≥ 0.8 × nginx: met, 0.90") || strings.Contains(text, "bulk") {
		t.Errorf("the table of the names is\n%s", text)
	}
	if text := r.bench(); strings.Contains(text, "nginx") || !strings.Contains(text, "bulk") {
		t.Errorf("the table of the others is\n%s", text)
	}
}

func TestParseStat(t *testing.T) {
	const stat = "4711 (a) b (c) S 12 4711 4711 0 -1 4194560 1 2 3 4 100 50 30 20 20 0 7 0 12345 1 2\n"
	pid, got, err := parseStat(stat)
	if want := (task{12, 2 * time.Second}); pid != 4711 || got != want || err != nil {
		t.Errorf("parseStat = %d, %v, %v; want 4711, %v", pid, got, err, want)
	}
	for _, text := range []string{"", "1 (x)", "1 (x) S 1 2 3", "x (x) S 1 4711 4711 0 -1 4194560 1 2 3 4 100 50 30 20 20 0"} {
		if _, _, err := parseStat(text); err == nil {
			t.Errorf("parseStat(%q) = nil; want an error", text)
		}
	}
}

func TestFamily(t *testing.T) {
	all := tasks{1: {0, 1}, 2: {1, 10}, 3: {2, 100}, 4: {1, 1000}, 5: {3, 10000}}
	if got := all.cpu(2); got != 10110 {
		t.Errorf("cpu of 2, 3 and 5 = %d; want 10110", got)
	}
	if got := all.others(2); got != 1001 {
		t.Errorf("cpu of all but 2, 3 and 5 = %d; want 1001", got)
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		v    []float64
		want float64
	}{{[]float64{3}, 3}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 3, 2}, 2.5}} {
		if got := median(c.v); got != c.want {
			t.Errorf("median(%v) = %v; want %v", c.v, got, c.want)
		}
	}
}

func TestSave(t *testing.T) {
	path := filepath.Join(t.TempDir(), "full")
	if err := sampleReport().save(path); err != nil {
		t.Fatal(err)
	}
	for ending, want := range map[string]string{".txt": "2 of 4 goals met", ".json": `"met": false`, ".svg": "<svg"} {
		text, err := os.ReadFile(path + ending)
		if err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s has %q, %v; want %q in it", ending, text, err, want)
		}
	}
	var back report
	text, _ := os.ReadFile(path + ".json")
	if err := json.Unmarshal(text, &back); err != nil || len(back.Rows) != 3 || back.Rows[1].values(reverser)[1] != 16 {
		t.Errorf("the numbers come back as %+v, %v", back, err)
	}
}

// TestEcho holds what the memory row leans on: connections are proven, and a broken server is an error.
func TestEcho(t *testing.T) {
	addr, err := freeport.Addr() // where nobody else listens when the server has ended
	if err != nil {
		t.Fatal(err)
	}
	e, err := listenEcho(addr)
	if err != nil {
		t.Fatal(err)
	}
	conns, err := dialMany(t.Context(), here{}, e.addr(), 100)
	if len(conns) != 100 || err != nil {
		t.Errorf("dialMany = %d connections, %v; want 100", len(conns), err)
	}
	for _, conn := range conns {
		if err := ping(conn); err != nil {
			t.Error(err)
		}
	}
	poured, err := stall(t.Context(), here{}, e.addr(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.CopyN(io.Discard, poured[0], 1<<20); err != nil {
		t.Errorf("the server sent %d bytes, then %v; want no end", n, err)
	}
	closeMany(poured)
	e.close()
	if err := ping(conns[0]); err == nil {
		t.Error("ping after the end of the server = nil; want an error")
	}
	closeMany(conns)
	if conns, err := dialMany(t.Context(), here{}, e.addr(), 3); len(conns) != 0 || err == nil {
		t.Errorf("dialMany without a server = %d connections, %v; want an error", len(conns), err)
	}
}

// TestHelpers runs what the measurement runs in processes of its own.
func TestHelpers(t *testing.T) {
	e, err := listenEcho("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer e.close()
	for _, args := range [][]string{{"type", e.addr(), "20", "1ms"}, {"knock", e.addr(), "5", "1ms"}} {
		var out bytes.Buffer
		if err := helpers[args[0]](t.Context(), args[1:], nil, &out); err != nil {
			t.Errorf("%s: %v", args[0], err)
		}
		var l latencies
		if err := json.Unmarshal(out.Bytes(), &l); err != nil || l.P50 <= 0 || l.P99 < l.P50 || l.Max < l.P99 {
			t.Errorf("%s printed %q: %+v, %v", args[0], out.String(), l, err)
		}
	}
	var p pumped
	for lasts := 200 * time.Millisecond; p.Echoes == 0; lasts *= 2 { // a busy machine may have no turn for an echo in so short a time
		var out bytes.Buffer
		if err := pumpHelper(t.Context(), []string{e.addr(), "3", "65536", lasts.String()}, strings.NewReader("go\n"), &out); err != nil {
			t.Fatalf("pump: %v", err)
		}
		last, ok := strings.CutPrefix(out.String(), "ready\n")
		if err := json.Unmarshal([]byte(last), &p); !ok || err != nil || p.Echoes == 0 && lasts > time.Minute {
			t.Fatalf("pump printed %q: %+v, %v", out.String(), p, err)
		}
	}
	for name, helper := range helpers {
		if name != "relay" && !errors.Is(helper(t.Context(), []string{"1"}, nil, io.Discard), errArgs) && name != "serve" {
			t.Errorf("%s with an argument too few: want %v", name, errArgs)
		}
	}
}

// TestSplice holds that the bare limit is a relay: half-close passes, both ways.
func TestSplice(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	wg.Go(func() {
		if c, err := ln.Accept(); err == nil {
			splice(c.(*net.TCPConn), server.Addr().String())
		}
	})
	wg.Go(func() {
		if c, err := server.Accept(); err == nil {
			text, _ := io.ReadAll(c)
			fmt.Fprintf(c, "%d bytes", len(text))
			c.Close()
		}
	})
	conn, err := here{}.Dial(t.Context(), ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.Write(make([]byte, 100_000))
	conn.CloseWrite()
	if text, err := io.ReadAll(conn); string(text) != "100000 bytes" || err != nil {
		t.Errorf("the answer behind the half-close is %q, %v; want 100000 bytes", text, err)
	}
}

func wantError(t *testing.T, err error, part string) {
	t.Helper()
	if part == "" && err != nil || part != "" && (err == nil || !strings.Contains(err.Error(), part)) {
		t.Errorf("error is %v; want one with %q", err, part)
	}
}

func TestVersionIn(t *testing.T) {
	for text, want := range map[string]string{
		"1.11.3\n": "1.11.3",
		"HAProxy version 2.6.12-1+deb12u2 2024/06/11 - https://haproxy.org/\n":                       "2.6.12",
		"nginx version: nginx/1.22.1\n":                                                              "1.22.1",
		"OpenSSH_9.2p1 Debian-2, OpenSSL 3.0.11\n":                                                   "9.2p1",
		"rathole \nBuild Timestamp:     2026-11-25T17:28:43.25971244Z\nBuild Version:       0.5.0\n": "0.5.0",
		"wrk debian/4.1.0-3 [epoll] Copyright (C) 2012 Will Glozer\n":                                "4.1.0",
		"no number\n": "",
	} {
		if got := versionIn(text); got != want {
			t.Errorf("the version in %q is %q, want %q", text, got, want)
		}
	}
}
