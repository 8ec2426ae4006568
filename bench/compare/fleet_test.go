package main

import (
	"bufio"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"reverser/internal/freeport"
	"reverser/internal/proxy"
	"reverser/internal/state"
)

func TestParseFleet(t *testing.T) {
	for word, want := range map[string]fleetSize{"1000": {1000, false}, " 400/1 ": {400, true}} {
		if got, err := parseFleet(word); err != nil || got != want {
			t.Errorf("parseFleet(%q) = %v, %v; want %v", word, got, err, want)
		}
	}
	for _, word := range []string{"", "0", "-1", "x", "400/2", "1e3", "15001"} {
		if got, err := parseFleet(word); err == nil {
			t.Errorf("parseFleet(%q) = %v, want an error", word, got)
		}
	}
	addrs := make(map[string]bool)
	for i := range 5000 {
		addrs[fleetSize{bridges: 5000}.from(i)] = true
	}
	if len(addrs) != 5000 || net.ParseIP(fleetSize{bridges: mostBridges}.from(mostBridges-1)) == nil {
		t.Errorf("5000 bridges have %d addresses, and the last of the largest fleet %s", len(addrs), fleetSize{}.from(mostBridges-1))
	}
}

// TestCheckFleets: what the limit of open files does not allow is left out, or refused where it was asked for, with what to do.
func TestCheckFleets(t *testing.T) {
	most := raiseFileLimit(0)
	if most >= (fleetSize{bridges: mostBridges}).files() {
		t.Skip("every fleet fits")
	}
	set := settings{Fleets: fmt.Sprintf("10,%d,20/1", mostBridges)}
	if err := set.checkFleets(true); err == nil || !strings.Contains(err.Error(), "ulimit -n ") {
		t.Errorf("a fleet that was asked for: %v, want how to raise the limit", err)
	}
	if err := set.checkFleets(false); err != nil || set.Fleets != "10,20/1" || len(set.absent) != 1 {
		t.Errorf("checkFleets = %v, left %q and said %q", err, set.Fleets, set.absent)
	}
	if err := (&settings{Fleets: "ten"}).checkFleets(false); err == nil {
		t.Error("a fleet of ten was taken")
	}
}

// TestFleetPorts: a port that another program has is left out.
func TestFleetPorts(t *testing.T) {
	before, err := fleetPorts(3)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", before[1])
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ports, err := fleetPorts(3)
	if err != nil || len(ports) != 3 || slices.Contains(ports, before[1]) {
		t.Errorf("fleetPorts = %q, %v while another program has %s", ports, err, before[1])
	}
	if _, err := fleetPorts(20_000); err == nil {
		t.Error("20,000 ports were found below those of outgoing connections")
	}
}

func TestServed(t *testing.T) {
	s := served{Times: []float64{1, 2}, Said: map[string]int{"rare": 1, "often": 5}}
	if note := s.note(2, time.Minute); note != "" {
		t.Errorf("all of 2 served, with the note %q", note)
	}
	if note := s.note(3, time.Minute); !strings.Contains(note, "2 of 3") || !strings.Contains(note, "often") {
		t.Errorf("2 of 3 served, with the note %q; want how many, and what the bridges said", note)
	}
}

// TestOneMore: what a proxy needs before its first bridge comes is not what one more costs.
func TestOneMore(t *testing.T) {
	proxy, own := oneMore(weight{50, 20_000 + 50*60, 10_000 + 50*140}, weight{100, 20_000 + 100*60, 10_000 + 100*140})
	if proxy != 60 || own != 140 {
		t.Errorf("oneMore = %v, %v; want 60, 140", proxy, own)
	}
}

// TestFleetHelper: the bridges of the helper serve, and serve again when the proxy was restarted.
func TestFleetHelper(t *testing.T) {
	const n = 5
	var ports []string
	for range n + 1 {
		port, err := freeport.Get()
		if err != nil {
			t.Fatal(err)
		}
		ports = append(ports, fmt.Sprintf("127.0.0.1:%d", port))
	}
	f := &ownFleet{fleetParts: fleetParts{size: fleetSize{bridges: n}, dir: filepath.Join(t.TempDir(), "state"), link: ports[0], public: ports[1:]}}
	if err := f.makeKeys(); err != nil {
		t.Fatal(err)
	}
	startProxy := func() (stop func()) {
		d, err := state.Open(f.dir)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		cert, _, err := d.Identity()
		if err != nil {
			t.Fatal(err)
		}
		stored, err := d.Keys()
		if err != nil {
			t.Fatal(err)
		}
		var keys []proxy.Key
		for _, k := range stored {
			keys = append(keys, proxy.Key{Name: k.Name, ID: k.ID, Secret: k.Secret, Allow: k.Allow})
		}
		p := proxy.New(proxy.Config{Listen: f.link, Identity: cert, Settings: proxy.Settings{Keys: keys}})
		if err := p.Listen(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { p.Run(ctx) })
		return func() { cancel(); wg.Wait() }
	}
	stop := startProxy()
	defer func() { stop() }()

	orders, in := io.Pipe()
	out, answers := io.Pipe()
	var helper sync.WaitGroup
	defer helper.Wait()
	defer in.Close()
	helper.Go(func() {
		answers.CloseWithError(errors.Join(fleetHelper(context.Background(), nil, orders, answers), io.EOF))
	})
	plan := make([]plannedBridge, n)
	for i := range plan {
		plan[i] = plannedBridge{f.tokens[i], f.size.from(i), "tcp/" + f.public[i]}
	}
	if err := json.NewEncoder(in).Encode(plan); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	await := func(limit time.Duration) (s served) {
		t.Helper()
		fmt.Fprintf(in, "await %v\n", limit)
		line, err := lines.ReadBytes('\n')
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(line, &s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	fmt.Fprintln(in, "start 2")
	if s := await(time.Minute); len(s.Times) != 2 {
		t.Fatalf("%d of the 2 that were started serve: %+v", len(s.Times), s)
	}
	fmt.Fprintf(in, "start %d\n", n)
	for range 2 {
		if s := await(time.Minute); len(s.Times) != n || !slices.IsSorted(s.Times) {
			t.Fatalf("%d of %d serve: %+v", len(s.Times), n, s)
		}
		if err := tryUsers(t.Context(), here{}, f.public); err != nil {
			t.Error(err)
		}
		fmt.Fprintln(in, "again")
		stop()
		stop = startProxy()
	}
	if s := await(time.Minute); len(s.Times) != n {
		t.Errorf("%d of %d serve after the second restart: %+v", len(s.Times), n, s)
	}
	stop()
	stop = func() {}
	fmt.Fprintln(in, "again")
	if s := await(time.Millisecond); len(s.Times) != 0 {
		t.Errorf("%d serve without a proxy", len(s.Times))
	}
}

// TestDrawReturns: the picture is XML, and has a line for each fleet of each contender that goes up to all that came back.
func TestDrawReturns(t *testing.T) {
	r := &report{Machine: machine{CPU: "a<b"}}
	for _, f := range []returned{{"fleet of 4", 4, reverser, 60, []float64{.5, 1, 1.5, 2}}, {"fleet of 4", 4, frp, 60, []float64{1, 3}}, {"fleet of 2000", 2000, reverser, 60, nil}} {
		r.Returns = append(r.Returns, f)
	}
	for i := range 2000 {
		r.Returns[2].Times = append(r.Returns[2].Times, float64(i)/100)
	}
	text := r.drawReturns()
	dec := xml.NewDecoder(strings.NewReader(text))
	lines := 0
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		el, ok := tok.(xml.StartElement)
		if !ok {
			continue
		}
		for _, a := range el.Attr {
			if a.Name.Local == "class" && strings.HasPrefix(a.Value, "line ") {
				lines++
			}
			if a.Name.Local == "d" && len(a.Value) > 20_000 {
				t.Errorf("a line of %d characters", len(a.Value))
			}
		}
	}
	if lines != len(r.Returns) {
		t.Errorf("%d lines for %d fleets", lines, len(r.Returns))
	}
}
