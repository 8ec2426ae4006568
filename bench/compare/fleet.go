package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"reverser/internal/grammar"
	"reverser/internal/state"
)

// A fleet is many bridges of one proxy: what one more of them costs, and how long it takes until all serve, at first and after
// the proxy has been restarted.
//
//  1. returnFleet    starts a proxy and the bridges, restarts the proxy
//  2. weighFleet     starts another proxy and a tenth of the bridges, weighs, starts the others, weighs again
//  3. ownFleet       reverser's: the bridges are in one process (fleetHelper), each with an address of its own
//  4. processFleet   frp's, and that of an earlier reverser: a process for each bridge
//  5. return.go      the bridges that serve over time, as a picture

// fleetSize is a row: so many bridges, in networks of their own or behind one address.
type fleetSize struct {
	bridges int
	oneAddr bool
}

func (s fleetSize) String() string {
	name := fmt.Sprintf("fleet of %d", s.bridges)
	if s.oneAddr {
		name += " behind one address"
	}
	return name
}

// fleets are the sizes of the rows.
func (set settings) fleets() (sizes []fleetSize) {
	for word := range strings.SplitSeq(set.Fleets, ",") {
		if s, err := parseFleet(word); err == nil {
			sizes = append(sizes, s)
		}
	}
	return sizes
}

// parseFleet reads a size: 1000, or 400/1 for 400 bridges behind one address.
func parseFleet(word string) (s fleetSize, err error) {
	word, s.oneAddr = strings.CutSuffix(strings.TrimSpace(word), "/1")
	if s.bridges, err = strconv.Atoi(word); err != nil || s.bridges < 1 || s.bridges > mostBridges {
		return s, fmt.Errorf("-fleets: %q is no size from 1 to %d, such as 1000, or 400/1 for 400 bridges behind one address", word, mostBridges)
	}
	return s, nil
}

// checkFleets refuses what is no size, or drops the sizes for which too few files may be open, unless they were asked for: then it
// refuses them too.
func (set *settings) checkFleets(asked bool) error {
	if set.Fleets == "" {
		return nil
	}
	var kept []string
	for word := range strings.SplitSeq(set.Fleets, ",") {
		s, err := parseFleet(word)
		if err != nil {
			return err
		}
		need := s.files()
		if have := raiseFileLimit(need); have < need {
			err := fmt.Errorf("a fleet of %d bridges needs %d open files in a process, the limit is %d: raise it with `ulimit -n %d`", s.bridges, need, have, need)
			if asked {
				return err
			}
			set.absent = append(set.absent, err.Error())
			continue
		}
		kept = append(kept, strings.TrimSpace(word))
	}
	set.Fleets = strings.Join(kept, ",")
	return nil
}

// files is how many the proxy, and the bridges' process, have open at once.
func (s fleetSize) files() uint64 { return uint64(filesPerBridge*s.bridges + 500) }

// from is the address that bridge i dials from. Each /24 has one bridge.
func (s fleetSize) from(i int) string {
	if s.oneAddr {
		return "127.1.0.1"
	}
	return fmt.Sprintf("127.%d.%d.1", 1+i/250, i%250)
}

const (
	// filesPerBridge is what an idle bridge takes of the proxy's open files: two connections and its public port.
	filesPerBridge = 3
	// mostBridges is for how many there are ports.
	mostBridges = 15_000
	// mostProcesses is how many bridges this runs of which each is a process.
	mostProcesses = 400
	// fleetUsers is through how many of the bridges a user is sent before a figure counts.
	fleetUsers = 50
	// mostWeighed is the largest fleet that is weighed, which takes six minutes: what one more bridge costs is known by then.
	mostWeighed = 1000
)

// weighed reports whether memory and CPU of the idle fleet are measured.
func (s fleetSize) weighed() bool { return !s.oneAddr && s.bridges <= mostWeighed }

// stopPatience is how long a proxy may take to stop: it waits for users as long as its --drain, 30 s, and a machine that is busy with
// thousands of bridges is slow to see the last one leave.
const stopPatience = 45 * time.Second

// patienceFor bounds the time until all serve. What takes longer counts as so long, with a note.
func (s fleetSize) patienceFor(set settings) time.Duration {
	if set.Size == "quick" {
		return 30 * time.Second
	}
	return max(time.Minute, time.Duration(s.bridges)*20*time.Millisecond)
}

// fleetProbe is the probe of one size. The rows of memory and idleness are the same behind one address, and in a larger fleet.
func fleetProbe(s fleetSize) probe {
	each := 3.0
	p := probe{name: s.String(), once: true, who: []string{reverser}, run: func(ctx context.Context, b *bed, c *contender, set settings) ([]float64, string, error) {
		return runFleet(ctx, b, c.name, s, set)
	}}
	if s.bridges <= mostProcesses {
		p.who = append(p.who, earlier, frp)
	}
	name := s.String() + ": "
	p.kinds = []kind{
		{Name: name + "all serve again after the proxy's restart", Unit: "s", Low: true, Goals: []goal{{"", max(4, float64(s.bridges)/100)}}},
		{Name: name + "proxy's CPU for each that returns", Unit: "ms", Low: true, Goals: []goal{{"", each}}},
		{Name: name + "all serve after the first start", Unit: "s", Low: true},
		{Name: name + "proxy's CPU for each that starts", Unit: "ms", Low: true, Goals: []goal{{"", each}}},
	}
	if s.weighed() {
		p.kinds = append(p.kinds,
			kind{Name: name + "proxy's memory for one more, idle", Unit: "KB", Low: true, Goals: []goal{{"", 64}}},
			kind{Name: name + "bridges' memory for one more, idle", Unit: "KB", Low: true},
			kind{Name: name + "proxy's CPU for 1000 idle ones", Unit: "% of a core", Low: true, Goals: []goal{{"", 1.5}}},
		)
	}
	return p
}

// A returned fleet is drawn: when each of its bridges served again.
type returned struct {
	Fleet     string    `json:"fleet"`
	Bridges   int       `json:"bridges"`
	Contender string    `json:"contender"`
	Limit     float64   `json:"limit"` // seconds that were waited
	Times     []float64 `json:"times"` // seconds from the order to stop the old proxy, in order
}

// fleet is a proxy and its bridges.
type fleet interface {
	// startProxy starts the proxy and returns when it listens.
	startProxy(ctx context.Context) (*process, error)
	// startBridges starts bridges until so many are started.
	startBridges(ctx context.Context, n int) error
	// again says that bridges that served no longer count.
	again() error
	// await waits until all that were started serve, as long as limit, and returns when each did, from the start or the last again on.
	await(ctx context.Context, limit time.Duration) (served, error)
	// resident returns the KB of all bridges together; NaN: they are not in one process.
	resident() float64
	// ports are those of the users of the bridges that were started.
	ports() []string
	stop()
}

// served is what fleetHelper says of its bridges.
type served struct {
	Times []float64      `json:"times"` // seconds, in order
	Said  map[string]int `json:"said"`  // the bridges' warnings, and how often
}

func (s served) note(all int, limit time.Duration) string {
	if len(s.Times) == all {
		return ""
	}
	text := fmt.Sprintf("only %d of %d served after %v, which is the figure then", len(s.Times), all, limit)
	words := slices.SortedFunc(maps.Keys(s.Said), func(a, b string) int { return s.Said[b] - s.Said[a] })
	for _, word := range words[:min(len(words), 3)] {
		text += fmt.Sprintf("; %d times the bridges said: %s", s.Said[word], word)
	}
	return text
}

func runFleet(ctx context.Context, b *bed, name string, size fleetSize, set settings) (figures []float64, note string, err error) {
	figures, note, err = returnFleet(ctx, b, name, size, set)
	if err != nil || !size.weighed() {
		return figures, note, err
	}
	if note != "" { // a fleet of which some do not serve is not weighed
		return append(figures, nothing, nothing, nothing), note, nil
	}
	f, err := b.newFleet(name, size)
	if err != nil {
		return nil, "", err
	}
	defer f.stop()
	idle, note, err := weighFleet(ctx, b, f, size, set)
	return append(figures, idle...), note, err
}

// returnFleet starts a fleet and restarts its proxy.
func returnFleet(ctx context.Context, b *bed, name string, size fleetSize, set settings) (figures []float64, note string, err error) {
	f, err := b.newFleet(name, size)
	if err != nil {
		return nil, "", err
	}
	defer f.stop()
	var notes []string
	limit, n := size.patienceFor(set), float64(size.bridges)
	// serve waits until all serve, and finds the CPU that the proxy used for each; nothing when not all did.
	serve := func(proxy *process, what string) (all, each float64, times []float64, err error) {
		got, note, err := allServe(ctx, b, f, size.bridges, limit)
		if err != nil {
			return 0, 0, nil, err
		}
		if note != "" {
			notes = append(notes, what+": "+note)
			return limit.Seconds(), nothing, got.Times, nil
		}
		if err := sleep(ctx, 2*time.Second); err != nil { // further connections come when the first ones are there
			return 0, 0, nil, err
		}
		return got.Times[size.bridges-1], cpuOf(proxy).Seconds() * 1e3 / n, got.Times, nil
	}

	proxy, err := f.startProxy(ctx)
	if err != nil {
		return nil, "", err
	}
	if err := sleep(ctx, time.Second); err != nil {
		return nil, "", err
	}
	before := cpuOf(proxy).Seconds() * 1e3 / n
	if err := f.startBridges(ctx, size.bridges); err != nil {
		return nil, "", err
	}
	start, startCPU, _, err := serve(proxy, "first start")
	if err != nil {
		return nil, "", err
	}
	if err := f.again(); err != nil {
		return nil, "", err
	}
	proxy.terminate()
	select {
	case <-proxy.ended:
	case <-time.After(stopPatience):
		return nil, "", fmt.Errorf("%s did not stop within %v of SIGTERM", proxy.name, stopPatience)
	}
	if proxy, err = f.startProxy(ctx); err != nil {
		return nil, "", err
	}
	again, againCPU, times, err := serve(proxy, "restart")
	if err != nil {
		return nil, "", err
	}
	b.returns = append(b.returns, returned{size.String(), size.bridges, name, limit.Seconds(), times})
	return []float64{again, againCPU, start, startCPU - before}, strings.Join(notes, "; "), nil
}

// allServe waits until n bridges serve, and sends users through some of them. note says how many do not.
func allServe(ctx context.Context, b *bed, f fleet, n int, limit time.Duration) (got served, note string, err error) {
	if got, err = f.await(ctx, limit); err != nil {
		return got, "", err
	}
	if note = got.note(n, limit); note != "" {
		return got, note, nil
	}
	return got, "", tryUsers(ctx, b.front, f.ports())
}

// fleetSettle is how long a fleet is idle before it is weighed: bridges stay connected for weeks, so what the garbage collection that Go
// forces every two minutes gives back is not theirs, and PINGs have become rare by then.
const fleetSettle = 150 * time.Second

// weighFleet finds the KB of the proxy and of the bridges for one more that is idle, and the proxy's CPU for a thousand. What one more
// costs is what all others add to the first tenth: a proxy's first bridges bring what all need together. The same proxy with the same bridges
// may hold a megabyte more or less, as its garbage collector happens to stand; so there are as many others as can be.
func weighFleet(ctx context.Context, b *bed, f fleet, size fleetSize, set settings) (figures []float64, note string, err error) {
	rest, watch := fleetSettle, 30*time.Second
	if set.Size == "quick" {
		rest, watch = 2*time.Second, 5*time.Second // one round of PINGs
	}
	proxy, err := f.startProxy(ctx)
	if err != nil {
		return nil, "", err
	}
	var weights []weight
	for _, n := range []int{size.bridges / 10, size.bridges} {
		if n > 0 { // a tenth of a small fleet is none
			if err := f.startBridges(ctx, n); err != nil {
				return nil, "", err
			}
			if _, note, err := allServe(ctx, b, f, n, size.patienceFor(set)); note != "" || err != nil {
				return []float64{nothing, nothing, nothing}, note, err
			}
		}
		if err := sleep(ctx, rest); err != nil {
			return nil, "", err
		}
		kb, err := residentOf(proxy)
		if err != nil {
			return nil, "", err
		}
		weights = append(weights, weight{n, float64(kb), f.resident()})
	}
	before, start := cpuOf(proxy), time.Now()
	if err := sleep(ctx, watch); err != nil {
		return nil, "", err
	}
	busy := (cpuOf(proxy) - before).Seconds() / time.Since(start).Seconds()
	ofProxy, ofBridges := oneMore(weights[0], weights[1])
	return []float64{ofProxy, ofBridges, busy * 100 * 1000 / float64(size.bridges)}, "", nil
}

// weight is what a proxy and its bridges hold, in KB.
type weight struct {
	bridges    int
	proxy, own float64
}

// oneMore is what each bridge has added that came between two weighings.
func oneMore(few, all weight) (proxy, own float64) {
	n := float64(all.bridges - few.bridges)
	return (all.proxy - few.proxy) / n, (all.own - few.own) / n
}

// tryUsers sends users through some of the bridges.
func tryUsers(ctx context.Context, from host, ports []string) error {
	for i := 0; i < len(ports); i += max(len(ports)/fleetUsers, 1) {
		if err := echoOnce(ctx, from, ports[i]); err != nil {
			return fmt.Errorf("bridge %d of %d is said to serve, and a user gets: %w", i+1, len(ports), err)
		}
	}
	return nil
}

func cpuOf(p *process) time.Duration { return allTasks().cpu(p.cmd.Process.Pid) }

func residentOf(p *process) (int, error) {
	return (&contender{name: p.name, processes: []*process{p}}).resident()
}

func (b *bed) newFleet(name string, size fleetSize) (fleet, error) {
	b.starts++
	dir := filepath.Join(b.dir, fmt.Sprintf("fleet-%d", b.starts))
	ports, err := fleetPorts(size.bridges + 1)
	if err != nil {
		return nil, err
	}
	common := fleetParts{b: b, size: size, dir: dir, link: ports[0], public: ports[1:]}
	switch name {
	case frp:
		return newFrpFleet(common)
	case earlier:
		return newEarlierFleet(common)
	}
	return &ownFleet{fleetParts: common}, nil
}

// fleetPorts returns free ports below those that outgoing connections take. Each is tried: with one that another program has, its bridge
// never serves, and the row waits for it as long as it may.
func fleetPorts(n int) ([]string, error) {
	const first, end = 11000, 30000
	if n > end-first {
		return nil, fmt.Errorf("%d ports are needed, and from %d to %d there are %d", n, first, end-1, end-first)
	}
	var ports []string
	for p := first; p < end && len(ports) < n; p++ {
		addr := fmt.Sprintf("127.0.0.1:%d", p)
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		ln.Close()
		ports = append(ports, addr)
	}
	if len(ports) < n {
		return nil, fmt.Errorf("of the ports from 11000 to 29999 on 127.0.0.1 %d are free, and %d are needed: stop what listens there", len(ports), n)
	}
	return ports, nil
}

// fleetParts is what both kinds have.
type fleetParts struct {
	b       *bed
	size    fleetSize
	dir     string
	link    string
	public  []string // ADDR for the users of each bridge
	proxy   *process
	begun   time.Time
	started int // bridges
}

func (f *fleetParts) ports() []string { return f.public[:f.started] }

func (f *fleetParts) start(ctx context.Context, program string, args ...string) (*process, error) {
	p, err := f.b.start(here{}, "fleet-proxy", nil, f.b.path(program), args...)
	if err != nil {
		return nil, err
	}
	f.proxy = p
	c := &contender{name: "the fleet's proxy", processes: []*process{p}}
	return p, f.b.await(ctx, c, f.link, func() error { return dialOnce(ctx, here{}, f.link) })
}

// ownFleet is reverser's. Its bridges are in a helper, which is told what to do line by line.
type ownFleet struct {
	fleetParts
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	words  *strings.Builder
	tokens []string
}

func (f *ownFleet) startProxy(ctx context.Context) (*process, error) {
	if f.tokens == nil {
		if err := f.makeKeys(); err != nil {
			return nil, err
		}
	}
	return f.start(ctx, reverser, "proxy", "--listen", f.link, "--state", f.dir, "--log-level", "warn")
}

// makeKeys fills the proxy's state directory: `reverser key add` for each would take minutes.
func (f *ownFleet) makeKeys() error {
	d, err := state.Open(f.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	cert, _, err := d.Identity()
	if err != nil {
		return err
	}
	var keys []state.Key
	for i, addr := range f.public {
		allow, err := grammar.ParseAllow("tcp/" + addr)
		if err != nil {
			return err
		}
		k, err := state.NewKey(fmt.Sprintf("bridge%d", i), grammar.Policy{allow}, state.Limits{})
		if err != nil {
			return err
		}
		keys = append(keys, k)
		f.tokens = append(f.tokens, grammar.Token{Addrs: []string{f.link}, KeyID: k.ID, Secret: k.Secret, Pin: state.Pin(cert)}.Encode())
	}
	return d.SetKeys(keys)
}

func (f *ownFleet) startBridges(ctx context.Context, n int) error {
	if f.cmd == nil {
		if err := f.startHelper(ctx); err != nil {
			return err
		}
	}
	f.started = n
	_, err := fmt.Fprintf(f.in, "start %d\n", n)
	return f.say(err)
}

func (f *ownFleet) startHelper(ctx context.Context) error {
	f.cmd = command(ctx, f.b.self, "fleet")
	in, err1 := f.cmd.StdinPipe()
	out, err2 := f.cmd.StdoutPipe()
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	f.in, f.out, f.words = in, bufio.NewReader(out), new(strings.Builder)
	f.cmd.Stderr = f.words
	if err := f.cmd.Start(); err != nil {
		return err
	}
	plan := make([]plannedBridge, f.size.bridges)
	for i := range plan {
		plan[i] = plannedBridge{f.tokens[i], f.size.from(i), "tcp/" + f.public[i]}
	}
	return f.say(json.NewEncoder(f.in).Encode(plan))
}

// say adds to an error what the helper said.
func (f *ownFleet) say(err error) error {
	if err != nil && f.words.Len() > 0 {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(f.words.String()))
	}
	return err
}

func (f *ownFleet) again() error {
	_, err := io.WriteString(f.in, "again\n")
	return f.say(err)
}

func (f *ownFleet) await(_ context.Context, limit time.Duration) (s served, err error) {
	if _, err := fmt.Fprintf(f.in, "await %v\n", limit); err != nil {
		return s, f.say(err)
	}
	line, err := f.out.ReadBytes('\n')
	if err != nil {
		return s, f.say(fmt.Errorf("the bridges' process: %w", err))
	}
	return s, json.Unmarshal(line, &s)
}

func (f *ownFleet) resident() float64 {
	if f.cmd == nil { // no bridge was started
		return nothing
	}
	kb, err := residentOf(&process{name: "the bridges", cmd: f.cmd})
	if err != nil {
		return nothing
	}
	return float64(kb)
}

func (f *ownFleet) stop() {
	if f.in != nil {
		f.in.Close()
		_ = f.cmd.Wait() // its last line was read, or it is missed
	}
	if f.proxy != nil {
		f.proxy.stop()
	}
}

// processFleet has a process for each bridge.
type processFleet struct {
	fleetParts
	program string   // of the proxy
	args    []string // of the proxy
	// bridge is the command line of bridge i, and what is added to its environment.
	bridge  func(ctx context.Context, i int) (program string, args, env []string, err error)
	clients []*process
}

func (f *processFleet) startProxy(ctx context.Context) (*process, error) {
	return f.start(ctx, f.program, f.args...)
}

func (f *processFleet) startBridges(ctx context.Context, n int) error {
	type line struct {
		program   string
		args, env []string
	}
	var lines []line
	for i := f.started; i < n; i++ { // all before the first one starts: what is measured is the start
		program, args, env, err := f.bridge(ctx, i)
		if err != nil {
			return err
		}
		lines = append(lines, line{program, args, env})
	}
	f.begun = time.Now()
	for _, l := range lines {
		p, err := f.b.start(here{}, fmt.Sprintf("fleet-%s-%d", filepath.Base(l.program), f.started), l.env, f.b.path(l.program), l.args...)
		if err != nil {
			return err
		}
		f.clients = append(f.clients, p)
		f.started++
	}
	return nil
}

func newFrpFleet(parts fleetParts) (fleet, error) {
	host, link, _ := net.SplitHostPort(parts.link)
	conf, err := parts.b.file("fleet-frps.toml", fmt.Sprintf("bindAddr = %q\nproxyBindAddr = \"127.0.0.1\"\nbindPort = %s\nauth.token = \"measured\"\nlog.level = \"error\"\n", host, link))
	if err != nil {
		return nil, err
	}
	f := &processFleet{fleetParts: parts, program: "frps", args: []string{"-c", conf}}
	f.bridge = func(_ context.Context, i int) (string, []string, []string, error) {
		echoHost, echo, _ := net.SplitHostPort(f.b.servers.echo)
		conf, err := f.b.file(fmt.Sprintf("fleet-frpc-%d.toml", i), fmt.Sprintf(
			"serverAddr = %q\nserverPort = %s\nauth.token = \"measured\"\nloginFailExit = false\nlog.level = \"error\"\ntransport.connectServerLocalIP = %q\n"+
				"[[proxies]]\nname = \"b%d\"\ntype = \"tcp\"\nlocalIP = %q\nlocalPort = %s\nremotePort = %s\n", host, link, f.size.from(i), i, echoHost, echo, port(f.public[i])))
		return "frpc", []string{"-c", conf}, nil, err
	}
	return f, nil
}

// newEarlierFleet is a fleet of an earlier reverser, whose bridges all dial from one address: it may have no way to say another one.
func newEarlierFleet(parts fleetParts) (fleet, error) {
	state := filepath.Join(parts.dir, "proxy")
	f := &processFleet{fleetParts: parts, program: earlierProgram, args: []string{"proxy", "--listen", parts.link, "--state", state}}
	tokens := make([]string, len(parts.public))
	f.bridge = func(ctx context.Context, i int) (_ string, _, _ []string, err error) {
		if tokens[i] == "" {
			if tokens[i], err = newToken(ctx, f.b.path(earlierProgram), state, fmt.Sprintf("bridge%d", i), "tcp/"+f.public[i]); err != nil {
				return "", nil, nil, err
			}
		}
		args := []string{"bridge", "--proxy", f.link, "--state", filepath.Join(f.dir, fmt.Sprintf("bridge%d", i)), "tcp/" + f.public[i] + "=" + f.b.servers.echo}
		return earlierProgram, args, []string{"REVERSER_TOKEN=" + tokens[i]}, nil
	}
	return f, nil
}

func (f *processFleet) again() error {
	f.begun = time.Now()
	return nil
}

// await sends users until one is served by each bridge. Before a bridge is there its port is closed.
func (f *processFleet) await(ctx context.Context, limit time.Duration) (s served, err error) {
	ctx, cancel := context.WithDeadline(ctx, f.begun.Add(limit))
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, addr := range f.ports() {
		wg.Go(func() {
			for echoOnce(ctx, here{}, addr) != nil {
				if sleep(ctx, 50*time.Millisecond) != nil {
					return
				}
			}
			mu.Lock()
			defer mu.Unlock()
			s.Times = append(s.Times, time.Since(f.begun).Seconds())
		})
	}
	wg.Wait()
	slices.Sort(s.Times)
	return s, nil
}

// resident is of processes that share nothing, which compares with nothing.
func (f *processFleet) resident() float64 { return math.NaN() }

func (f *processFleet) stop() {
	for _, p := range f.clients {
		p.terminate()
	}
	for _, p := range f.clients {
		p.stop()
	}
	if f.proxy != nil {
		f.proxy.stop()
	}
}
