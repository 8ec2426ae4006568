package registry

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// simMutants lets TestMutants break one rule after the other. Of a flag go test would not remember what passed, and of a variable it knows
// only when a test asks for it.
func simMutants() bool { return os.Getenv("SIM_MUTANTS") != "" }

// mutants are rules of the registry, each with the change of the source that breaks it. The build takes the changed file by
// an overlay: the production code knows nothing of it.
var mutants = []struct{ name, file, from, to string }{
	{"none", "core.go", "", ""},
	{"a retired offer can be opened", "route.go", "o.retired = true", ""},
	{"UNCLAIMED is sent before the offer is retired", "core.go", "\tco.settle() // the offer is retired first\n", ""},
	{"the offer of a claim that went stays", "settle.go", "for _, o := range n.left {", "for _, o := range n.left[:0] {"},
	{"a session that replaces another inherits nothing", "core.go", "co.inherit(s, pub, left[pub])", "_ = pub"},
	{"what is inherited twice is lost", "core.go", "s.heir.session, old.heir.session = s, old", "_ = 0"},
	{"what was inherited is kept for ever", "core.go", "s.round = true\n\tfor _, pub := range sortedNames(s.inherited) {", "s.round = true\n\tfor _, pub := range sortedNames(s.inherited)[:0] {"},
	{"names that overlap are both served", "settle.go", "if co.policy.at(o.public).Overlaps(at) &&", "if o.public == n.public &&"},
	{"an address is opened before one that overlaps is closed", "socket.go", "if co.covered(s) {", "if false {"},
	{"an address is opened before one that it covers is closed", "socket.go", "return of[family4] > 0", "return false"},
	{"a closed socket counts for its port", "socket.go", "co.addBound(s, -1)", "_ = s"},
	{"what waited for a port is forgotten", "socket.go", "for _, o := range again {\n\t\tif _, waits", "for _, o := range again[:0] {\n\t\tif _, waits"},
	{"whoever came first takes a name from who has it", "settle.go", "keep := cmp.Or(same, own, group); keep != nil", "keep := cmp.Or(same, own, group); keep != nil && keep == first"},
	{"any key may join any group", "policy.go", "c.asked.Group != \"\" && !slices", "false && !slices"},
	{"a group takes every key", "settle.go", "group != \"\" && group == h.group", "group == h.group"},
	{"a policy of other offers changes nothing", "core.go", "!slices.Equal(old.Offer, p.Offer) || ", ""},
	{"a policy changes nothing for who is there", "core.go", "if !ports && was.equal(now) {", "if !ports || was.equal(now) {"},
	{"a policy takes every name away for a moment", "core.go", "c.public == public && (c.denied == \"\") == (denied == \"\")", "c.public != public && denied != \"\""},
	{"the session of a removed key stays", "policy.go", "return key != nil && key.Incarnation == s.secret", "return key != nil"},
	{"an older session serves beside its successor", "settle.go", "if len(cs) < 2 {", "if len(cs) < 99 {"},
	{"a successor that is not up takes over", "settle.go", "if c.session.wasUp {", "if true {"},
	{"what a successor does not claim stays with the old session", "settle.go", "return c.session.id >= r.newest &&", "return true &&"},
	{"a session serves a name twice", "index.go", "if s.first[c.public] != nil {", "if false {"},
	{"an answer that was lost is not repeated", "settle.go", "(c.owed || a != c.told)", "a != c.told"},
	{"a change is not told", "settle.go", "(c.owed || a != c.told)", "c.owed"},
	{"who waits is not woken", "core.go", "s.callers.wake()", "_ = 0"},
	{"a route that went comes back for who waits", "route.go", "!st.removed && rt.held", "rt.held"},
	{"who waits for a name that went is not told", "route.go", "func (rt *Route) remove(away bool) { rt.next(&routeState{removed: true, away: away}) }", "func (rt *Route) remove(bool) {}"},
	{"the proxy's own port is served", "policy.go", "case slices.Contains(p.Own, pub.Port):", "case false:"},
	{"a socket is never closed", "socket.go", "rec.state = closing\n\t\treturn closing, rec.attempt", "return 0, 0"},
	{"what failed is not tried again", "socket.go", "for _, at := range keys {\n\t\twaiting", "for _, at := range keys[:0] {\n\t\twaiting"},
	{"a key takes every descriptor", "socket.go", "return co.taken[key]+n <= co.room-n+1", "return true"},
	{"a socket is charged to who had it before", "settle.go", "co.charge(s, n.held.key)", "_ = s"},
	{"what waits for descriptors is not tried again", "socket.go", "if at.short && !co.shareLeft(at.key, n+1) {", "if at.short && n >= 0 {"},
	{"a socket waits for the turns of a key that had it before", "socket.go", "co.removeFailed(s)\n\t\trec.key = key\n\t\tco.addFailed(s)", "_ = key"},
	{"what is to be done for a key is done in another order", "effects.go", "e := list[0]\n\tlist[0] = effect{}", "e := list[len(list)-1]\n\tlist = append([]effect{{}}, list[:len(list)-1]...)"},
	{"a socket that is closed is still charged", "socket.go", "co.addTaken(rec.key, -1)\n\tat :=", "at :="},
	{"the document forgets that descriptors are short", "freeze.go", "e.flags(names[s].short)", "e.flags(false)"},
	{"a limit is not enforced", "index.go", "for r.within > 0 && most > 0 && r.size > most {", "for false {"},
	{"the latest ones have the places below a limit", "settle.go", "return r.rank(r.names[n.public].place) < r.within", "return len(r.order)-1-r.rank(r.names[n.public].place) < r.within"},
	{"a policy of another limit changes nothing", "core.go", "r.fit(co.touch)", "_ = r"},
	{"a place below the limit is not filled again", "index.go", "changed(r.order[r.within].name)\n\t\tr.within++", "r.within++"},
	{"a place in line is not kept", "index.go", "c.place = ws.place", "_ = ws"},
	{"a key takes every name", "crowd.go", "return co.crowding.of[key] < free", "return free > 0"},
	{"a key with a limit takes more names than there is room for", "crowd.go", "return free > 0", "return true"},
	{"who waits for a place is forgotten", "crowd.go", "\tfor cr.freed && cr.waiting > 0 {", "\tfor false {"},
	{"a name that went keeps its place", "settle.go", "co.addPlace(n.public, n.held.key, -1)\n\t\tdelete", "delete"},
	{"a name that passes on within a group is charged to who had it", "settle.go", "co.addPlace(n.public, keep.key, 1)", "co.addPlace(n.public, n.held.key, 1)"},
	{"a hand-over forgets the places", "freeze.go", "co.addPlace(name, n.held.key, 1)", "_ = n"},
	{"who goes still waits for a place", "index.go", "if ws.awaits {", "if false {"},
	{"a crowded name is not said to be so", "crowd.go", "n.all = true // it is an answer of its own", "_ = n"},
	{"another limit gives nobody a place", "core.go", "co.crowding.freed = true        // a key may have another limit", "_ = co"},
	{"effects are done under the lock", "effects.go", "\tact := e.do(&r.core, e)\n\tr.mu.Unlock()", "\tact := e.do(&r.core, e)\n\tdefer r.mu.Unlock()"},
	{"the document forgets that a CLAIM has no answer", "freeze.go", "e.flags(c.asked.Unhealthy, c.asked.Drained, c.owed)", "e.flags(c.asked.Unhealthy, c.asked.Drained, false)"},
	{"the document forgets what was told", "freeze.go", "e.num(uint64(c.told.Status))", "e.num(0)"},
	{"the document forgets who has the port", "freeze.go", "e.num(h.granted)", "e.num(0)"},
	{"the document forgets UNCLAIMs", "freeze.go", "e.num(uint64(len(s.owed)))\n\tfor _, id := range slices.Sorted(maps.Keys(s.owed)) {", "e.num(0)\n\tfor range 0 {\n\t\tid := 0"},
	{"the document forgets that the proxy stops", "freeze.go", "e.num(co.seq); e.flags(co.stopping)", "e.num(co.seq); e.flags(false)"},
	{"a proxy that stops keeps its sockets", "settle.go", "n.granted() && !co.stopping", "n.granted()"},
	{"the second claim for a name does not move up", "index.go", "if len(more) > 0 {", "if len(more) > 99 {"},
	{"what waits for a port keeps its obstacle", "settle.go", "if was != nil && was.granted() && was.held.granted == n.behind {", "if was != nil {"},
	{"the view is not changed", "registry.go", "if len(r.core.changed) > 0 || r.core.forgot {", "if len(r.core.changed) > 1 {"},
	// The bridge's side of claims.
	{"another target is not said", "../claims/claims.go", "if old != nil && old.TargetName() == svc.TargetName() && bytes.Equal(old.options, svc.options) {", "if old != nil && bytes.Equal(old.options, svc.options) {"},
	{"another target, another id", "../claims/claims.go", "\t\tsvc.ID = old.ID\n", "\t\ts.last++\n\t\tsvc.ID = s.last\n"},
	{"ids are used again", "../claims/claims.go", "\t\ts.last++\n\t\tsvc.ID = s.last\n", "\t\tfor svc.ID = 1; s.offered[svc.ID] != nil; svc.ID++ {\n\t\t}\n\t\ts.last = max(s.last, svc.ID)\n"},
	{"a service is dropped when it is removed", "../claims/claims.go", "c.retired[svc.ID] = &retired{Offered: svc, public: k.Public}", "_ = k"},
	{"a service is dropped when it was given back", "../claims/claims.go", "\tif !c.reached(r) {\n", "\tif delete(c.retired, id); false {\n"},
	{"UNCLAIM is not repeated", "../claims/claims.go", "if !r.answered {\n", "if false {\n"},
	{"marks do not count", "../claims/claims.go", "return !r.answered || slices", "return true || slices"},
	{"a slot does not remember what it saw", "../claims/claims.go", "at.stream = stream\n", "_ = at.stream\n"},
	{"the time of one slot counts for all", "../claims/claims.go", "at := c.slots[slot]\n\tat.attached += d\n\tc.slots[slot] = at\n", "for slot, at := range c.slots {\n\t\tat.attached += d\n\t\tc.slots[slot] = at\n\t}\n"},
	{"nothing is waited for below a mark", "../claims/claims.go", "c.slots[m.Slot].attached + RetireAfter", "c.slots[m.Slot].attached"},
	{"what is retired outlives its session", "../claims/claims.go", "\tclear(c.retired)\n", ""},
	{"frames wait while slot 0 is away", "../claims/claims.go", "\tif c.attach {\n\t\tk.said = true\n", "\tif true {\n\t\tk.said = true\n"},
	{"a bad reload changes a part", "../claims/claims.go", "\t\twanted[w.Public] = true\n", "\t\twanted[w.Public] = true\n\t\ts.offer(w, options[i])\n"},
	{"a hand-over forgets the next id", "../claims/freeze.go", "s.last = f.Last", "for _, o := range f.Offered {\n\t\ts.last = max(s.last, o.ID)\n\t}"},
	{"a hand-over forgets what is retired", "../claims/freeze.go", "c.retired[svc.ID] = r\n", ""},
	{"a hand-over forgets what the slots saw", "../claims/freeze.go", "for _, at := range fc.Slots {", "for _, at := range fc.Slots[:0] {"},
	{"a hand-over of a bridge that is given up takes the ids along", "../claims/freeze.go", "f.Last = s.last\n", "f.Last = s.last\n\ts.last++\n"},
	{"a hand-over of a proxy that is given up forgets UNCLAIMs", "freeze.go", "e.num(uint64(id))\n\t}\n}", "e.num(uint64(id))\n\t\tdelete(s.owed, id)\n\t}\n}"},

	// What users are charged to, and what waits.
	{"who was refused by a limit is charged", "../traffic/account.go", "\ta.now--\n\ta.key.now--\n", "\ta.now--\n"},
	{"a place at an offer is not given back when it cannot be opened", "route.go", "\tif err != nil {\n\t\to.users.Add(-1)\n\t}\n", ""},
	{"a place at an offer is given back twice", "route.go", "func (t Taken) Leave() { t.Offer.users.Add(-1) }", "func (t Taken) Leave() { t.Offer.users.Add(-2) }"},
	{"who has ended is refused once more", "../traffic/admit.go", "if a.phase == over || a.phase == but {", "if a.phase == but {"},
	{"a socket is looked at twice", "socket.go", "if _, twice := co.looking[s]; !twice {", "if true {"},
	{"an answer waits twice", "settle.go", "if a := co.answer(c); !c.queued && a", "if a := co.answer(c); a"},
	{"an UNCLAIM is answered as often as it was said", "core.go", "if _, twice := s.owed[cid]; twice {", "if false {"},
	{"an id that was given back may be claimed", "core.go", "case c == nil && s.used.has(cid):", "case false:"},
}

// mutantSeeds is how many seeds a mutant has to be noticed in. Most are within ten; "the time of one slot counts for all" takes some hundreds.
const mutantSeeds = 2000

// TestMutants breaks each rule and wants the simulation to notice; with no rule broken it must pass. Each mutant is one build, which
// stops at the first seed that notices it; two are tried at a time.
func TestMutants(t *testing.T) {
	if !simMutants() || testing.Short() {
		t.Skip("breaks the rules of the registry one by one, each in a build of its own: SIM_MUTANTS=1 go test -run TestMutants")
	}
	found := regexp.MustCompile(`(seed \d+: .*)`)
	turn := make(chan struct{}, 2)
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			turn <- struct{}{}
			defer func() { <-turn }()
			built := filepath.Join(t.TempDir(), "registry.test")
			build := exec.Command("go", "test", "-c", "-vet=off", "-ldflags=-s -w", "-overlay", overlay(t, m.file, m.from, m.to), "-o", built, ".")
			if out, err := build.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			seeds := mutantSeeds
			if m.from == "" {
				seeds = 40 // TestSimulation has more
			}
			out, err := exec.Command(built, "-test.run", "^TestSimulation$", "-sim.seeds", strconv.Itoa(seeds)).CombinedOutput()
			what := found.Find(out)
			switch {
			case m.from == "" && err != nil:
				t.Fatalf("no rule is broken: %v\n%s", err, out)
			case m.from == "":
			case err == nil:
				t.Errorf("nobody noticed in %d seeds", seeds)
			case what == nil:
				t.Errorf("the simulation failed in another way: %v\n%s", err, out)
			default:
				t.Logf("%s", what)
			}
		})
	}
}

// TestMutantsApply holds that each rule stands in the source as the list says.
func TestMutantsApply(t *testing.T) {
	for _, m := range mutants {
		if src, err := os.ReadFile(m.file); err != nil || m.from != "" && strings.Count(string(src), m.from) != 1 {
			t.Errorf("%s: %q is in %s %d times, want once (%v)", m.name, m.from, m.file, strings.Count(string(src), m.from), err)
		}
	}
}

func overlay(t *testing.T, file, from, to string) string {
	t.Helper()
	path, err := filepath.Abs(file)
	if err != nil {
		t.Fatal(err)
	}
	src, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	broken := filepath.Join(dir, filepath.Base(file))
	if err := os.WriteFile(broken, []byte(strings.Replace(string(src), from, to, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	doc, _ := json.Marshal(map[string]map[string]string{"Replace": {path: broken}})
	list := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(list, doc, 0o600); err != nil {
		t.Fatal(err)
	}
	return list
}
