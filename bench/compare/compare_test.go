package main

import (
	"bytes"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

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
	const rate = "Requests/sec:  67576.89\nTransfer/sec:     10.31MB\n"
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
		{"no response", "  0 requests in 1.00s, 0.00B read\n  Socket errors: connect 0, read 50, write 0, timeout 0\nRequests/sec:      0.00\n", 0,
			"", "wrk got no response: Socket errors: connect 0, read 50"},
		{"cut short", good, 0, "", "has no Requests/sec"},
		{"not a number", "Requests/sec:  1.2.3\n", 0, "", "1.2.3"},
		{"empty", "", 0, "", "has no Requests/sec"},
		{"refused", "unable to connect to 127.0.0.1:1 Connection refused\n", 0, "", "Connection refused"},
	} {
		t.Run(c.name, func(t *testing.T) {
			rate, note, err := parseWrk([]byte(c.text))
			if rate != c.rate || note != c.note {
				t.Errorf("parseWrk = %v, %q; want %v, %q", rate, note, c.rate, c.note)
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
		{"up", `{"start": {}, "intervals": [{"sum": {"bits_per_second": 1}}], "end": {
			"sum_sent": {"bytes": 1734082560, "bits_per_second": 13870676973.19, "sender": true},
			"sum_received": {"bytes": 1728315392, "bits_per_second": 13823205566.664, "sender": true}}}`, 13.823205566664, ""},
		{"busy", `{"start": {}, "intervals": [], "end": {}, "error": "error - the server is busy running a test. try again later"}`, 0, "busy"},
		{"refused", `{"start": {}, "intervals": [], "end": {}, "error": "error - unable to connect to server: Connection refused"}`, 0,
			"iperf3: unable to connect to server: Connection refused"},
		{"no result", `{"start": {}, "intervals": [], "end": {}}`, 0, "no end.sum_received"},
		{"cut short", `{"start": {`, 0, "unexpected end of JSON input"},
		{"not JSON", "iperf3: parameter error", 0, "parameter error"},
		{"empty", "", 0, "unexpected end of JSON input"},
	} {
		t.Run(c.name, func(t *testing.T) {
			gbits, err := parseIperf([]byte(c.text))
			if math.Abs(gbits-c.gbits) > 1e-9 {
				t.Errorf("parseIperf = %v; want %v", gbits, c.gbits)
			}
			wantError(t, err, c.err)
			if busy := errors.Is(err, errBusy); busy != (c.name == "busy") {
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
		{"-conns -1", "at least 0"},
		{"-nonsense", "not defined"},
		{"surplus", `unexpected argument "surplus"`},
	} {
		var stderr bytes.Buffer
		if code := run(strings.Fields(c.args), io.Discard, &stderr); code != 2 || !strings.Contains(stderr.String(), c.want) {
			t.Errorf("compare %s: exit code %d, stderr %q; want 2, %q", c.args, code, stderr.String(), c.want)
		}
	}
}

// two rounds of made-up figures.
func sample() *report {
	r := &report{
		Machine: machine{CPU: "Abacus", Cores: 2, Kernel: "6.1", Congestion: "cubic", Go: "go1.26", Revision: "abc123", LoadBefore: "0.10", LoadAfter: "2.50",
			Programs: map[string]string{"haproxy": "2.6.12", "iperf3": "3.12", "nginx": "1.22.1", "wrk": "4.1.0"}},
		Settings: settings{Rounds: 2, Seconds: 5, Conns: 4000},
	}
	up, alive, single := loads[0].kind, loads[2].kind, loads[3].kind
	for round, v := range []float64{1, 2} {
		r.add(up, round, direct, 10*v, "")
		r.add(up, round, haproxy, 4*v, "")
		r.add(up, round, reverser, 3*v, "")
		r.add(alive, round, direct, 60, "")
		r.add(alive, round, haproxy, 20, "")
		r.add(alive, round, reverser, 14+v, "")
		r.add(single, round, direct, 10.04, "")
		r.add(single, round, haproxy, 5, "")
		r.add(single, round, reverser, 4, "")
		r.add(idle, round, haproxy, 5, "")
		r.add(idle, round, reverser, 15+v, "")
	}
	return r
}

func TestTable(t *testing.T) {
	r := sample()
	r.Rows[1].Notes = []string{"requests, kept alive, reverser, round 2: Non-2xx or 3xx responses: 7"}
	var out strings.Builder
	if err := r.print(&out); err != nil {
		t.Fatal(err)
	}
	const want = `Abacus, 2 cores, Linux 6.1, TCP cubic, go1.26, load 0.10 before and 2.50 after
haproxy 2.6.12, iperf3 3.12, nginx 1.22.1, wrk 4.1.0, reverser abc123
2 rounds of 5 s, 4000 idle connections; median (min-max)

                                        direct             2 haproxies        reverser           reverser / haproxies   goal
bulk up                        Gbit/s   15.0 (10.0-20.0)   6.00 (4.00-8.00)   4.50 (3.00-6.00)   0.75 (0.75-0.75)       >= 0.8 x haproxy: missed
requests, kept alive           1000/s   60.0 (60.0-60.0)   20.0 (20.0-20.0)   15.5 (15.0-16.0)   0.78 (0.75-0.80)       >= 0.7 x haproxy: met
requests, one per connection   1000/s   10.0 (10.0-10.0)   5.00 (5.00-5.00)   4.00 (4.00-4.00)   0.80 (0.80-0.80)
memory per idle connection     KB       -                  5.00 (5.00-5.00)   16.5 (16.0-17.0)   3.30 (3.20-3.40)       <= 16 KB: missed

Errors during the measurement, which make its figures doubtful:
  requests, kept alive, reverser, round 2: Non-2xx or 3xx responses: 7
`
	if out.String() != want {
		t.Errorf("the table is\n%s\nwant\n%s", out.String(), want)
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

func TestOutFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "numbers.json")
	in := func() string {
		text, err := os.ReadFile(path)
		if err != nil {
			return err.Error()
		}
		return string(text)
	}
	open := func() *outFile {
		o, err := openOut(path)
		if err != nil {
			t.Fatal(err)
		}
		return o
	}

	open().discard()
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("a run without a result left its -out file: %v", err)
	}
	o := open()
	if err := o.write(sample()); err != nil {
		t.Fatal(err)
	}
	o.discard()
	first := in()
	if !strings.Contains(first, `"name": "bulk up"`) || !strings.Contains(first, `"met": false`) {
		t.Errorf("the file holds %s", first)
	}
	open().discard()
	if in() != first {
		t.Error("a run without a result changed the numbers of the one before")
	}
	o = open()
	if err := o.write(&report{}); err != nil {
		t.Fatal(err)
	}
	o.discard()
	if strings.Contains(in(), "bulk") {
		t.Error("numbers of an earlier run are still in the file")
	}
	if _, err := openOut(filepath.Join(path, "below-a-file")); err == nil {
		t.Error("openOut below a file = nil; want an error before the run")
	}
}

// TestEcho holds what the memory row leans on: connections are proven, and a broken server is an error.
func TestEcho(t *testing.T) {
	e, err := listenEcho()
	if err != nil {
		t.Fatal(err)
	}
	conns, err := dialMany(t.Context(), e.addr(), 100)
	if len(conns) != 100 || err != nil {
		t.Errorf("dialMany = %d connections, %v; want 100", len(conns), err)
	}
	for _, conn := range conns {
		if err := ping(conn); err != nil {
			t.Error(err)
		}
	}
	e.close()
	if err := ping(conns[0]); err == nil {
		t.Error("ping after the end of the server = nil; want an error")
	}
	closeMany(conns)
	if conns, err := dialMany(t.Context(), e.addr(), 3); len(conns) != 0 || err == nil {
		t.Errorf("dialMany without a server = %d connections, %v; want an error", len(conns), err)
	}
}

func wantError(t *testing.T, err error, part string) {
	t.Helper()
	if part == "" && err != nil || part != "" && (err == nil || !strings.Contains(err.Error(), part)) {
		t.Errorf("error is %v; want one with %q", err, part)
	}
}
