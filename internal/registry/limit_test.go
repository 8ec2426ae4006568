package registry

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"reverser/internal/wire"
)

// TestLine: of the names in line those within the limit are the earliest that it allows, and whoever moved over the limit or below it
// is settled, nobody else.
func TestLine(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := &tenant{key: &Key{MaxServices: 5}}
		var in map[*name]bool // before the change
		touched := make(map[*name]bool)
		changed := func(n *name) { touched[n] = true }
		places := rapid.Permutation([]uint64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}).Draw(t, "places")
		var mine *name
		t.Repeat(map[string]func(*rapid.T){
			"come": func(t *rapid.T) {
				if len(places) == 0 {
					t.Skip()
				}
				ws := &wish{name: new(name), place: places[0], size: rapid.IntRange(1, 4).Draw(t, "size")}
				places, mine = places[1:], ws.name
				r.queue(ws, changed)
			},
			"go": func(t *rapid.T) {
				if len(r.order) == 0 {
					t.Skip()
				}
				ws := rapid.SampledFrom(r.order).Draw(t, "wish")
				places, mine = append(places, ws.place), ws.name
				r.dequeue(ws, changed)
			},
			"another limit": func(t *rapid.T) {
				r.key = &Key{MaxServices: rapid.IntRange(0, 12).Draw(t, "limit")}
				r.fit(changed)
			},
			"": func(t *rapid.T) {
				if !slices.IsSortedFunc(r.order, func(a, b *wish) int { return cmp.Compare(a.place, b.place) }) {
					t.Fatal("not in order")
				}
				sum, now := 0, make(map[*name]bool)
				for i, ws := range r.order {
					sum += ws.size
					fits := r.key.MaxServices == 0 || sum <= r.key.MaxServices
					if now[ws.name] = fits; fits != (i < r.within) {
						t.Fatalf("%d of %d are within the limit %d, and place %d makes %d", r.within, len(r.order), r.key.MaxServices, i, sum)
					}
				}
				for n, fits := range now {
					if n != mine && fits != in[n] && !touched[n] {
						t.Fatal("a name crossed the limit, and is not settled")
					}
				}
				for n := range touched {
					if n != mine && now[n] == in[n] {
						t.Fatal("a name is settled that did not cross the limit")
					}
				}
				in = now
				mine = nil
				clear(touched)
			},
		})
	})
}

// TestLimitChanges: another limit takes the latest services out or lets the earliest of the others in; those that stay keep their
// route and socket, and the bridge hears the limit that holds now.
func TestLimitChanges(t *testing.T) {
	k := testKey(0, "tcp/9000-9010")
	w := newWorld(t, k)
	s, _ := w.begin(k, 0)
	for i := range 5 {
		w.claim(s, uint32(i+1), fmt.Sprint("tcp/", 9000+i))
	}
	w.do()
	route, opens := w.find("tcp/9000"), 0
	up := func(most, n int) {
		t.Helper()
		k.MaxServices = most
		w.Configure(Policy{Keys: []Key{k}})
		for _, done := range w.do() {
			if done == "open tcp/9000" {
				opens++
			}
		}
		for i := range 5 {
			status, reason := wire.ClaimUp, ""
			if i >= n {
				status = wire.ClaimRetrying
				reason = fmt.Sprintf(`tcp/%d is more than the limit max-services of key "key0", %d`, 9000+i, most)
			}
			w.want(uint32(i+1), status, reason, reason)
		}
		if w.find("tcp/9000") != route {
			t.Errorf("with the limit %d tcp/9000 has another route", most)
		}
	}
	up(2, 2)
	up(1, 1)
	up(3, 3)
	up(0, 5)
	if opens != 0 {
		t.Errorf("tcp/9000 was opened %d times again", opens)
	}
}

// TestShares: of the descriptors that are free a key may have half, whoever comes next half of what it leaves, and those that wait get
// what becomes free in the order in which they came.
func TestShares(t *testing.T) {
	a, b := testKey(0, "tcp/1024-65535"), testKey(1, "tcp/1024-65535")
	w := newWorld(t, a, b)
	w.d.room = 12
	one, _ := w.begin(a, 0)
	two, _ := w.begin(b, 0)
	for i := range uint32(20) {
		w.claim(one, i+1, fmt.Sprint("tcp/", 9020-i))
	}
	w.do()
	for i := range uint32(5) {
		w.claim(two, i+101, fmt.Sprint("tcp/", 9100+i))
	}
	w.do()
	short := `no descriptor of the proxy's is left for tcp/%d: key "key%d" has %d open ports, and may have half of what others leave: ` +
		"raise the limit there (ulimit -n, LimitNOFILE=)"
	want := func(id uint32, port, key, has int, up bool) {
		t.Helper()
		if up {
			w.want(id, wire.ClaimUp, "", "")
			return
		}
		text := fmt.Sprintf(short, port, key, has)
		w.want(id, wire.ClaimRetrying, text, text)
	}
	for i := range 20 {
		want(uint32(i+1), 9020-i, 0, 6, i < 6)
	}
	for i := range 5 {
		want(uint32(i+101), 9100+i, 1, 3, i < 3)
	}
	if n := w.Short(); n != 16 {
		t.Errorf("%d sockets wait, want 16", n)
	}
	again := func() (did []string) {
		t.Helper()
		w.change(func(co *core) {
			co.room = w.d.Room()
			co.retry()
		})
		return w.do()
	}
	if did := again(); len(did) != 0 {
		t.Errorf("nothing became free, and %q was done", did)
	}
	w.End(two)
	w.do()
	w.d.room = 18
	again()
	for i := range 20 {
		want(uint32(i+1), 9020-i, 0, 6, i < 9)
	}
	w.End(one)
	w.do()
	if co := &w.core; w.d.open != 0 || len(co.taken) != 0 || co.short != 0 || len(co.sockets) != 0 {
		t.Errorf("something is left: %d open, %v taken, %d short", w.d.open, co.taken, co.short)
	}
}

// TestRetryInTurns: of a key with very many sockets that cannot be opened a few are tried again at once, each in its turn, and those of
// other keys beside them.
func TestRetryInTurns(t *testing.T) {
	a, b := testKey(0, "tcp/9000"), testKey(1, "tcp/9001")
	w := newWorld(t, a, b)
	one, _ := w.begin(a, 0)
	two, _ := w.begin(b, 0)
	const n = 3*retryEach + 10
	for i := range uint32(n) {
		w.d.fails[Socket{"tcp", fmt.Sprintf("198.18.%d.%d", i>>8, i&255), 9000}] = true
		w.claim(one, i+1, fmt.Sprintf("tcp/198.18.%d.%d:9000", i>>8, i&255))
	}
	w.do()
	w.d.fails[Socket{Kind: "tcp", Port: 9001}] = true
	w.claim(two, n+1, "tcp/9001")
	w.do()
	tried := make(map[string]int)
	for range 4 {
		w.change((*core).retry)
		did := w.do()
		if len(did) > retryEach+1 || !slices.Contains(did, "open tcp/9001") {
			t.Errorf("%d sockets are tried at once, want %d and the one of the other key", len(did), retryEach)
		}
		if at := slices.Index(did, "open tcp/9001"); at > 1 {
			t.Errorf("the socket of the other key is tried behind %d", at)
		}
		for _, what := range did {
			tried[what]++
		}
	}
	if len(tried) != n+1 {
		t.Errorf("%d sockets were tried again, want all %d", len(tried), n+1)
	}
	w.End(one)
	w.End(two)
	w.do()
	if co := &w.core; len(co.failed) != 0 || len(co.sockets) != 0 {
		t.Errorf("something is left: %v", co.failed)
	}
}

// TestTurns: what is to be done for a key waits for one thing of each other key, however much is to be done for those.
func TestTurns(t *testing.T) {
	a, b := testKey(0, "tcp/1024-65535"), testKey(1, "tcp/9001")
	w := newWorld(t, a, b)
	one, _ := w.begin(a, 0)
	two, _ := w.begin(b, 0)
	for i := range uint32(1000) {
		w.claim(one, i+1, fmt.Sprintf("tcp/%d", 10_000+i))
	}
	w.claim(two, 2000, "tcp/9001")
	for i := 0; w.d.answers[2000].Status != wire.ClaimUp; i++ {
		if i == 4 {
			t.Fatal("a key waits for the claims of another one")
		}
		w.step(w.d)
	}
	w.do()
	w.End(one)
	if err := w.Unclaim(two, 2000); err != nil {
		t.Fatal(err)
	}
	if did := w.do(); slices.Index(did, "unclaimed 2000 [{1 0}]") > 6 {
		t.Errorf("the UNCLAIM of a key waits for the end of another one: %q", did[:10])
	}
}

// TestClaimsOfAKey: a key has as many claims in all its sessions as one session may have. A bridge that takes over from another one is
// refused none, and closes no port for a moment.
func TestClaimsOfAKey(t *testing.T) {
	if raceEnabled {
		t.Skip("very much work, of one goroutine")
	}
	k := testKey(0, "tcp/1024-65535")
	w := newWorld(t, k)
	bounded := func() {
		t.Helper()
		n, names := 0, len(w.core.names)
		for _, s := range w.core.sessions {
			n += len(s.claims) + len(s.inherited)
		}
		if n > MaxClaims || names > MaxClaims {
			t.Fatalf("a key has %d claims for %d names", n, names)
		}
	}
	all := func(s SessionID, from int, public func(i int) string) {
		t.Helper()
		for i := range uint32(MaxClaims) {
			if w.claim(s, i+1, public(int(i)+from)); i%1000 == 0 {
				bounded()
			}
		}
		bounded()
	}
	port := func(i int) string { return fmt.Sprintf("tcp/%d", 1024+i) }
	one, _ := w.begin(k, 0)
	all(one, 0, port)
	w.Round(one)
	w.do()
	route := w.find("tcp/5000")
	w.Leaving(one)
	two, _ := w.begin(k, 0)
	all(two, 0, port)
	w.Round(two)
	if did := w.do(); slices.ContainsFunc(did, func(s string) bool { return strings.HasPrefix(s, "close") || strings.HasPrefix(s, "open") }) || w.find("tcp/5000") != route {
		t.Error("a port was closed while another bridge of its key took over")
	}
	if n := len(w.core.sessions[one].claims); n != 0 {
		t.Errorf("the older session has %d claims of which the newer one has each", n)
	}
	// The older one says its claims again, as it does when its link was cut.
	all(one, 0, port)
	if n := len(w.core.sessions[two].claims); n != MaxClaims {
		t.Errorf("the newer session has %d claims left, because the older one said its own again", n)
	}
	// Other names, and all of them for one name.
	three, _ := w.begin(k, 0)
	all(three, MaxClaims, port)
	four, _ := w.begin(k, 0)
	all(four, 0, func(int) string { return "tcp/9000" })
	five, _ := w.begin(k, 0)
	all(five, 0, func(int) string { return "tcp/80" })
	w.do()
	// Sessions that replace each other, each with other names, and never say that these are all.
	last := five
	for i := range 3 {
		last, _ = w.begin(k, last)
		bounded()
		all(last, i*MaxClaims, port)
		w.do()
	}
	again, err := Thaw(w.Freeze(), Policy{Keys: []Key{k}, Own: []uint16{3010}}, func(SessionID) Way { return newWay() })
	if err != nil || again.core.derived() != w.core.derived() {
		t.Errorf("Thaw = %v, or something else than was frozen", err)
	}
	for _, s := range []SessionID{one, two, three, four, last} {
		w.End(s)
	}
	w.do()
	if co := &w.core; len(co.names)+len(co.sockets)+len(co.tenants) != 0 {
		t.Errorf("something is left: %d names, %d sockets", len(co.names), len(co.sockets))
	}
}
