package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"reverser/internal/auth"
	"reverser/internal/grammar"
	"reverser/internal/link"
	"reverser/internal/registry"
	"reverser/internal/status"
	"reverser/internal/sys"
	"reverser/internal/wire"
)

// TestClaimsDenied: each is denied for its own reason, in words for the bridge's operator, and the service beside them is
// up.
func TestClaimsDenied(t *testing.T) {
	k := key(t, "nas", "tcp/1024-65535", "udp/53", "http/*")
	w := start(t, Config{Transfer: "127.0.0.1:0", Settings: Settings{Keys: []Key{k}}})
	addr, good := free(t)
	_, linkPort, _ := net.SplitHostPort(w.p.Addr().String())
	_, transferPort, _ := net.SplitHostPort(w.p.TransferAddr().String())
	claims := []struct {
		public string
		words  []string
	}{
		{good, nil},
		{"tcp/127.0.0.1:80", []string{`tcp/127.0.0.1:80 denied: the policy of key "nas" allows tcp/1024-65535`}},
		{"tcp/" + linkPort, []string{"denied", "the link itself uses this port"}},
		{"tcp/127.0.0.1:" + transferPort, []string{"denied", "the link itself uses this port"}},
		{"udp/53", []string{"udp/53 denied", "serves tcp/, http/, https/ and tls/ only"}},
		{"http/a.example", []string{"denied", "--http ADDR"}},
		{"private/db", []string{"denied", "policy of key"}},
		{"tcp/0", []string{"denied", "not a number from 1 to 65535"}},
		{"tcp/65536", []string{"denied", "not a number from 1 to 65535"}},
		{"tcp/*", []string{"denied"}},
		{"9000\x1b[2J", []string{"denied"}},
		{"", []string{"denied"}},
		{"offered", []string{"denied", "offers no public port"}},
	}
	var publics []string
	for _, c := range claims {
		publics = append(publics, c.public)
	}
	b := w.bridge(k, how{instance: 1}, publics...)
	b.wantClaim(0, wire.ClaimUp)
	for i, c := range claims[1:] {
		b.wantClaim(i+1, wire.ClaimDenied, c.words...)
	}
	w.pair(b, addr)
	for _, s := range w.p.Status().Services {
		want := status.ServiceDenied
		if s.Public == good {
			want = status.ServiceUp
		}
		if s.State != want || (s.Reason == "") != (want == status.ServiceUp) {
			t.Errorf("status of %q: %s, reason %q; want %s", s.Public, s.State, s.Reason, want)
		}
	}
	eventually(t, "lines about those that were denied", func() bool { return w.log.Sum("service denied") == len(claims)-1 })
}

func TestOffered(t *testing.T) {
	_, one := free(t)
	addr, two := free(t)
	pub := func(s string) grammar.Public {
		p, err := grammar.ParsePublic(s)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	k := key(t, "nas", two)
	w := start(t, Config{Settings: Settings{Keys: []Key{k}, Offer: []grammar.Public{pub(one), pub(two)}}})
	b := w.bridge(k, how{instance: 1}, "offered")
	b.wantClaim(0, wire.ClaimUp)
	if got := b.claim(0).Public; got != two {
		t.Errorf("the bridge was given %s, want %s, which its key allows", got, two)
	}
	w.pair(b, addr)
}

// TestOfferedAndAsked: a bridge that asks for the port that the proxy offers it has it once, and hears why not twice.
func TestOfferedAndAsked(t *testing.T) {
	addr, pub := free(t)
	offer, err := grammar.ParsePublic(pub)
	if err != nil {
		t.Fatal(err)
	}
	k := key(t, "nas", pub)
	w := start(t, Config{Settings: Settings{Keys: []Key{k}, Offer: []grammar.Public{offer}}})
	b := w.bridge(k, how{instance: 1}, "offered", pub)
	b.wantClaim(0, wire.ClaimUp)
	b.wantClaim(1, wire.ClaimRetrying, "leads to 10.0.0.1:80 already")
	if _, s := w.pair(b, addr); s.Open().Service != 1 {
		t.Errorf("the user got to service %d, want the first", s.Open().Service)
	}
	b.unclaim(1)
	w.pair(b, addr) // the port is the other claim's
	b.unclaim(0)
	if !refused(addr) {
		t.Error("the port is open though nobody claims it")
	}
}

// TestOfferedIsNotProbed: a bridge proves no port that the proxy chose, so that no user is taken for its probe.
func TestOfferedIsNotProbed(t *testing.T) {
	addr, pub := free(t)
	offer, err := grammar.ParsePublic(pub)
	if err != nil {
		t.Fatal(err)
	}
	k := key(t, "nas", pub)
	w := start(t, Config{Settings: Settings{Keys: []Key{k}, Offer: []grammar.Public{offer}}})
	b := w.bridge(k, how{instance: 1, silent: true}, "offered")
	if nonce := b.claim(0).Nonce; nonce != [16]byte{} {
		t.Errorf("the bridge was given the nonce %x", nonce)
	}
	if w.p.service(w.route(pub)).probes.Expected() {
		t.Error("the proxy waits for a probe")
	}
	u, s := w.pair(b, addr)
	talk(t, s, u, "the service speaks first")
}

// TestPortTaken: the claim is retried until the port is free, and the service beside it is up from the start.
func TestPortTaken(t *testing.T) {
	t.Parallel()
	taken, public := free(t) // nobody else gets it in the moment between the one and the other
	ln, err := net.Listen("tcp", taken)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	addr, good := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, public, good)
	b.wantClaim(0, wire.ClaimRetrying, "open "+public+" on the proxy", "address already in use")
	b.wantClaim(1, wire.ClaimUp)
	w.pair(b, addr)
	ln.Close()
	b.wantClaim(0, wire.ClaimUp) // by the proxy's own clock
	w.pair(b, taken)
	if n := w.log.Count("service cannot be opened, trying again"); n != 1 {
		t.Errorf("%d lines about a port that is taken, want one however often it is tried", n)
	}
}

// TestHeldByAnotherKey: who comes second waits until the first is gone.
func TestHeldByAnotherKey(t *testing.T) {
	t.Parallel()
	addr, pub := free(t)
	a, z := key(t, "nas", "tcp/1024-65535"), key(t, "desk", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{a, z}}})
	first := w.bridge(a, how{instance: 1}, pub)
	second := w.bridge(z, how{instance: 2}, pub)
	first.wantClaim(0, wire.ClaimUp)
	second.wantClaim(0, wire.ClaimRetrying, pub+" is held by another key")
	if text := second.claim(0).Text; strings.Contains(text, "nas") {
		t.Errorf("the bridge is told %q: whose key it is, is the proxy's to know", text)
	}
	keys := map[string]string{}
	for _, s := range w.p.Status().Services {
		keys[s.Key] = s.Reason
	}
	if want := map[string]string{"nas": "", "desk": pub + ` is held by key "nas"`}; !maps.Equal(keys, want) {
		t.Errorf("status has %q, want %q", keys, want)
	}
	w.pair(first, addr)
	w.setKeys(z)
	second.wantClaim(0, wire.ClaimUp)
	w.pair(second, addr)
}

// TestKeyRemoved: everything that the key held ends at once, at both ends, and nothing of the other key.
func TestKeyRemoved(t *testing.T) {
	addr, pub := free(t)
	addr2, pub2 := free(t)
	otherAddr, otherPub := free(t)
	k, other := key(t, "nas", "tcp/1024-65535"), key(t, "desk", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k, other}}})
	b := w.bridge(k, how{instance: 1}, pub, pub2)
	o := w.bridge(other, how{instance: 2}, otherPub)
	u1, s1 := w.pair(b, addr)
	u2, s2 := w.pair(b, addr2)
	ou, os := w.pair(o, otherAddr)

	begin := time.Now()
	w.setKeys(other)
	if d := time.Since(begin); d > limit/2 { // it waits for the bridge to know
		t.Errorf("Apply took %s", d)
	}
	wantReset(t, u1)
	wantReset(t, u2)
	if !refused(addr) || !refused(addr2) {
		t.Error("the public ports are still open")
	}
	// The bridge is told before the link goes: its connections to real servers must not wait for a session to expire.
	wantReset(t, s1)
	wantReset(t, s2)
	eventually(t, "both pairs are released as removed", func() bool { return w.log.Count("pair released", "reason=service-removed") == 2 })
	eventually(t, "the log says whose session ended", func() bool { return w.log.Count("bridge session ended", fmt.Sprintf("key=%x ", k.ID[:4])) == 1 })
	eventually(t, "the key is refused", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.failed) > 0 && errors.Is(b.failed[len(b.failed)-1], auth.ErrRefused)
	})
	talk(t, ou, os, "still here")
	eventually(t, "status shows the other key's link, service and pair, and nothing else", func() bool {
		st := w.p.Status()
		return len(st.Links) == 1 && st.Links[0].Key == "desk" && len(st.Services) == 1 && len(st.Pairs) == 1
	})
}

// codes is a Receiver that keeps the code of the stream's reset.
type codes chan wire.Code

func (c codes) Receive(bufs [][]byte) (n int) {
	for _, b := range bufs {
		n += len(b)
	}
	return n
}
func (c codes) Behind() bool { return false }
func (c codes) Backlogged()  {}
func (c codes) Ended(kind wire.EndKind, code wire.Code) {
	if kind == wire.RST {
		c <- code
	}
}
func (c codes) Abort(code wire.Code) { c <- code }

// TestKeyRemovedIsTheReason: the bridge hears why its connections are reset before the link goes.
func TestKeyRemovedIsTheReason(t *testing.T) {
	addr, pub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, pub)
	var heard []codes
	for range 100 {
		_, s := w.pair(b, addr)
		c := make(codes, 2)
		s.SetReceiver(c)
		heard = append(heard, c)
	}
	w.setKeys()
	for _, c := range heard {
		select {
		case code := <-c:
			if code != wire.CodeService {
				t.Fatalf("a connection was reset with code %v, want %v", code, wire.CodeService)
			}
		case <-time.After(limit):
			t.Fatal("a connection was not reset")
		}
	}
}

// TestKeyReplaced: another secret under the same id is another key.
func TestKeyReplaced(t *testing.T) {
	addr, pub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, pub)
	u, _ := w.pair(b, addr)
	b.stop()
	<-b.done
	b = w.bridge(k, how{instance: 1}, pub)
	wantReset(t, u)
	u, _ = w.pair(b, addr)
	k2 := k
	k2.Secret[0]++
	w.setKeys(k2)
	wantReset(t, u)
	eventually(t, "the old secret is refused", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.failed) > 0 && errors.Is(b.failed[len(b.failed)-1], auth.ErrRefused)
	})
	nb := w.bridge(k2, how{instance: 3}, pub)
	w.pair(nb, addr)
}

// TestPolicyChange: a policy that shrinks closes what it allowed, one that grows opens what was denied.
func TestPolicyChange(t *testing.T) {
	addr, pub := free(t)
	addr2, pub2 := free(t)
	k := key(t, "nas", pub)
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, pub, pub2)
	b.wantClaim(0, wire.ClaimUp)
	b.wantClaim(1, wire.ClaimDenied, "policy of key")
	w.pair(b, addr)
	w.setKeys(key(t, "nas", pub2))
	b.wantClaim(0, wire.ClaimDenied, fmt.Sprintf(`%s denied: the policy of key "nas" allows %s`, pub, pub2))
	b.wantClaim(1, wire.ClaimUp)
	if !refused(addr) {
		t.Error("a port that the policy does not allow any more is open")
	}
	w.pair(b, addr2)
}

// TestUnclaim: a claim that is given back closes its port and is answered with the streams that may still name it. Users who came
// through it go on, and so does all else of the session.
func TestUnclaim(t *testing.T) {
	addr, pub := free(t)
	addr2, pub2 := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, pub, pub2)
	if marks := b.unclaim(6); len(marks) != 4 || marks[0] != (wire.Mark{Slot: 1}) {
		t.Errorf("marks of a claim that there never was, before the first user: %v", marks)
	}
	var last *link.Stream
	u, s := w.pair(b, addr)
	for range 3 {
		_, last = w.pair(b, addr2)
	}
	marks := b.unclaim(0)
	if marks[0].Slot != 1 || marks[0].Stream != last.ID() {
		t.Errorf("marks %v, want %#x, the last stream of the slot", marks, last.ID())
	}
	if !refused(addr) {
		t.Error("the port is open that nobody claims")
	}
	go u.Write([]byte("hello"))
	if _, err := io.ReadFull(s, make([]byte, 5)); err != nil {
		t.Errorf("a user of the claim: %v", err)
	}
	w.pair(b, addr2)
	b.mu.Lock()
	delete(b.given, 0)
	b.mu.Unlock()
	if again := b.unclaim(0); again[0].Stream <= marks[0].Stream {
		t.Errorf("marks %v after %v and another user", again, marks)
	}
}

// TestClaimsThatAreWrong: a bridge that says of claims what it must not ends its own session, and the one beside it goes on.
func TestClaimsThatAreWrong(t *testing.T) {
	_, pub := free(t)
	claim := func(id uint32, c wire.Claim) []byte { return wire.AppendClaim(nil, id, c) }
	many := func(b *bridge, l *link.Link) {
		none := wire.Claim{Public: "none/x"}
		session := b.w.p.sessions.of(b.w.p.port.host.Link(l.KeyID()))
		for id := uint32(2); id <= link.MaxClaims; id++ { // not over the link, which takes so many with pauses that are long on a busy machine
			if err := b.w.p.registry.Claim(session, id, registry.ClaimOf(none)); err != nil {
				t.Errorf("claim %d: %v", id, err)
				return
			}
		}
		l.Say(link.MaxClaims+1, claim(link.MaxClaims+1, none))
	}
	for name, say := range map[string]func(*bridge, *link.Link){
		"another PUBLIC under a known id": func(_ *bridge, l *link.Link) { l.Say(1, claim(1, wire.Claim{Public: "tcp/1"})) },
		"id 0":                            func(_ *bridge, l *link.Link) { l.Say(1, claim(0, wire.Claim{Public: pub})) },
		"UNCLAIM of id 2^32":              func(_ *bridge, l *link.Link) { l.Say(1, wire.AppendEmpty(nil, wire.TypeUnclaim, 0, 1<<32)) },
		"CLAIM without a target": func(_ *bridge, l *link.Link) {
			l.Say(1, append(wire.AppendHeader(nil, wire.TypeClaim, 0, 2, 2), 1, 'a'))
		},
		"CLAIMED": func(_ *bridge, l *link.Link) {
			l.Say(1, wire.AppendClaimed(nil, 1, wire.Claimed{Status: wire.ClaimUp}))
		},
		"UNCLAIMED":              func(_ *bridge, l *link.Link) { l.Say(1, wire.AppendUnclaimed(nil, 1, nil)) },
		"more than there may be": many,
	} {
		t.Run(name, func(t *testing.T) {
			good, evil := key(t, "good", pub), key(t, "evil", "tcp/1024-65535")
			w := start(t, Config{Settings: Settings{Keys: []Key{good, evil}}})
			b := w.bridge(good, how{instance: 1}, pub)
			e := w.bridge(evil, how{instance: 2}, "tcp/1")
			e.mu.Lock()
			l := e.link
			e.mute = true
			e.claims[0].Public = pub // whatever it asks for: the id is not to matter for the good one
			e.mu.Unlock()
			say(e, l)
			if name == "another PUBLIC under a known id" {
				l.Say(1, claim(1, wire.Claim{Public: "tcp/2"}))
			}
			eventually(t, "the session of the bridge that is wrong ends", func() bool { return len(w.p.port.host.Links()) == 1 })
			if got := w.p.port.host.Links()[0].KeyID(); got != good.ID {
				t.Errorf("the session that is left is %x's", got)
			}
			addr, _ := grammar.ParsePublic(pub)
			w.pair(b, addr.ListenAddr())
		})
	}
}

// TestClaimsThatAreNotSupported: what a claim needs and this proxy does not know denies this claim, by name, and no other.
func TestClaimsThatAreNotSupported(t *testing.T) {
	addr, pub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, pub, "tcp/2000", "tcp/2001")
	unknown := wire.AppendField(wire.AppendClaim(nil, 4, wire.Claim{Public: "tcp/2002"}), 201, []byte("later"))
	unknown[3] = byte(len(unknown) - wire.HeaderLen)
	b.link.Say(4, unknown)
	b.wantClaim(3, wire.ClaimDenied, "field 201", "update the proxy")
	b.link.Say(5, wire.AppendClaim(nil, 5, wire.Claim{Public: "tcp/2003", Group: "web"}))
	b.wantClaim(4, wire.ClaimDenied, `key "nas" is not in group "web"`)
	b.link.Say(6, wire.AppendClaim(nil, 6, wire.Claim{Public: pub + "x", Weight: 5, Health: wire.HealthBad, Drained: true, Limits: []byte("x")}))
	b.wantClaim(5, wire.ClaimDenied)
	b.wantClaim(0, wire.ClaimUp)
	w.pair(b, addr)
}

// TestTakeover: the same process with a new session has its ports at once; they were never closed.
func TestTakeover(t *testing.T) {
	addr, pub := free(t)
	gone, gonePub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	old := w.bridge(k, how{instance: 1}, pub, gonePub)
	u, _ := w.pair(old, addr)
	old.mu.Lock()
	oldLink := old.link
	old.mute = true // its process goes on as the new one
	old.mu.Unlock()

	ln := w.route(pub)
	next := w.dial(k, how{instance: 1}, pub)
	eventually(t, "the new session is up", func() bool {
		next.mu.Lock()
		defer next.mu.Unlock()
		return next.link != nil && next.up[1] && next.claimed[0].Status == wire.ClaimUp
	})
	wantReset(t, u)
	old.stop()
	<-old.done
	next.settled()
	if w.route(pub) != ln {
		t.Error("the public port was opened anew")
	}
	eventually(t, "the old link is over", func() bool { return oldLink.Err() != nil })
	eventually(t, "a service that the new session does not claim is closed", func() bool { return refused(gone) })
	w.pair(next, addr)
	eventually(t, "the log says that the session ended", func() bool { return w.log.Count("bridge session ended", "took over") == 1 })
	if lost := w.log.Count("bridge lost"); lost != 0 {
		t.Errorf("%d lines say that its connections wait, want none", lost)
	}
}

// TestSecondBridge: another process with the same key is refused while the first one lives, which notices nothing.
func TestSecondBridge(t *testing.T) {
	addr, pub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	first := w.bridge(k, how{instance: 1}, pub)
	u, s := w.pair(first, addr)
	second := w.dial(k, how{instance: 2}, pub)
	eventually(t, "the second bridge is refused again and again", func() bool {
		second.mu.Lock()
		defer second.mu.Unlock()
		for _, err := range second.failed {
			if !strings.Contains(err.Error(), "another live bridge holds this key") || !strings.Contains(err.Error(), "key add") {
				t.Fatalf("refused with %q, want a word that names the remedy", err)
			}
		}
		return len(second.failed) >= 5
	})
	talk(t, u, s, "undisturbed")
	said := func() int {
		return w.log.Count("second bridge with a key that is in use", "key add", "key=nas", "remote=127.0.0.1:", "used_by=127.0.0.1:")
	}
	eventually(t, "the log has the second bridge", func() bool { return said() > 0 })
	if n := said(); n != 1 {
		t.Errorf("%d lines about the second bridge, want 1 within a minute", n)
	}
	first.mu.Lock()
	defer first.mu.Unlock()
	if len(first.ended) != 0 || len(first.failed) != 0 {
		t.Errorf("the first bridge: ended %v, failed %v", first.ended, first.failed)
	}
}

// TestBridgeLost: the bridge's connections break; users who come meanwhile wait, and those who were there stay.
func TestBridgeLost(t *testing.T) {
	addr, pub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, pub)
	u, s := w.pair(b, addr)
	for range 3 {
		b.cut()
		talk(t, u, s, "through")
		w.pair(b, addr)
	}
	b.settled()
	if st := w.p.Status(); len(st.Links) != 1 || st.Links[0].Resumes == 0 || len(st.Pairs) != 4 {
		t.Errorf("status %+v, want one link that resumed, with 4 pairs", st)
	}
	// What was measured stays when the session is over.
	before := w.p.Measures()
	if before.Resumes["nas"] == 0 || before.Handshakes.Count < 4 || before.BudgetSize == 0 {
		t.Errorf("Measures = %+v, want resumes of nas, and a handshake for each connection", before)
	}
	w.setKeys()
	eventually(t, "the session is over", func() bool { return len(w.p.Status().Links) == 0 })
	w.setKeys(k) // or it would have no name
	if n := w.p.Measures().Resumes["nas"]; n < before.Resumes["nas"] {
		t.Errorf("%d resumes when the session is over, %d before", n, before.Resumes["nas"])
	}
}

// TestKeyRemovedWhileABridgeComes: in whatever moment of its coming the key goes, nothing of the bridge stays.
func TestKeyRemovedWhileABridgeComes(t *testing.T) {
	_, pub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{})
	for range 40 {
		w.setKeys(k)
		b := w.dial(k, how{instance: 1}, pub)
		for len(w.p.port.host.Links()) == 0 { // without a rest: the moments are short
			runtime.Gosched()
		}
		w.setKeys()
		b.mu.Lock()
		b.mute = true
		b.mu.Unlock()
		b.stop()
		<-b.done
		eventually(t, "nothing of it stays", func() bool { return len(w.p.port.host.Links()) == 0 && len(w.p.Status().Links) == 0 })
	}
}

// TestKeyRenamed: a key gets other names while its bridge comes and goes; the log and the status follow.
func TestKeyRenamed(t *testing.T) {
	addr, pub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, pub)
	stop, renamed := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(renamed)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			k := k
			k.Name = fmt.Sprintf("nas%d", i%2)
			w.setKeys(k)
		}
	}()
	for range 10 {
		b.cut()
		w.pair(b, addr)
	}
	close(stop)
	<-renamed
	k.Name = "desk"
	w.setKeys(k)
	if st := w.p.Status(); len(st.Links) != 1 || st.Links[0].Key != "desk" || len(st.Services) != 1 || st.Services[0].Key != "desk" {
		t.Errorf("status %+v, want the key's last name", st)
	}
	b.cut()
	eventually(t, "the log has the last name", func() bool { return w.log.Count("bridge connected", "desk") > 0 })
}

// TestSlowLog: whoever reads the log may be slow, or have stopped. Nobody else waits for that.
func TestSlowLog(t *testing.T) {
	addr, pub := free(t)
	_, nextPub := free(t)
	otherAddr, otherPub := free(t)
	k, other, third := key(t, "nas", "tcp/1024-65535"), key(t, "desk", "tcp/1024-65535"), key(t, "lab", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k, other}}})
	stuck, free := make(chan struct{}), make(chan struct{})
	release := sync.OnceFunc(func() { close(free) })
	once := sync.OnceFunc(func() { close(stuck) })
	hold := func(line string) {
		if strings.Contains(line, "service ") {
			once()
			<-free
		}
	}
	w.log.Hold(hold)
	t.Cleanup(release)                               // before the proxy is stopped
	b := w.bridge(k, how{instance: 1}, pub, nextPub) // its next claim is answered while the line about the first waits
	t.Cleanup(release)                               // before the bridge is
	<-stuck
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.p.Status()
		w.setKeys(k, other, third)
	}()
	select {
	case <-done:
	case <-time.After(limit):
		t.Fatal("status and keys wait for the log")
	}
	w.pair(b, addr)
	o := w.bridge(other, how{instance: 2}, otherPub)
	t.Cleanup(release)
	w.pair(o, otherAddr)
	if n := len(w.p.Status().Pairs); n != 2 {
		t.Errorf("%d pairs, want 2", n)
	}
	release()
	eventually(t, "the lines come", func() bool { return w.log.Count("service up") == 3 })
}

// TestStrangersHoldNothingUp: silent clients, more than there are places, hold them all; a bridge comes through, at once and every
// time, though the proxy has not seen its address yet, and though some of them share it.
func TestStrangersHoldNothingUp(t *testing.T) {
	k := key(t, "nas", "tcp/1024-65535")
	w := prepare(t, Config{Settings: Settings{Keys: []Key{k}}})
	const places = 64
	w.p.port.gate.room = *newRoom(places, 2)
	w.run()
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for i := range 2 * places {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, byte(i%4), 1)}}
		c, err := d.Dial("tcp", w.p.Addr().String())
		if err != nil {
			t.Skipf("this system has no %s: %v", d.LocalAddr, err)
		}
		conns = append(conns, c)
	}
	begin := time.Now()
	addr, pub := free(t)
	b := w.bridge(k, how{instance: 1}, pub)
	w.pair(b, addr)
	d := time.Since(begin)
	w.p.port.gate.mu.Lock()
	defer w.p.port.gate.mu.Unlock()
	silent := w.p.port.gate.room.classes[strangers].places
	if d > auth.Timeout/2 && silent < places/2 {
		t.Errorf("the bridge was up after %s, when %d silent clients were left: it waited for them", d, silent)
	}
	if silent > places*3/4 {
		t.Errorf("%d strangers are held, at most %d", silent, places*3/4)
	}
}

// TestNoiseOnTheLinkPort: what is no bridge is closed without an answer, and logged once.
func TestNoiseOnTheLinkPort(t *testing.T) {
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	for _, noise := range []string{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "SSH-2.0-OpenSSH_9.9\r\n", strings.Repeat("\xff\x00\x5a", 5000)} {
		c := w.user(w.p.Addr().String())
		c.Write([]byte(noise))
		got, _ := io.ReadAll(c)
		if len(got) > 7 || len(got) > 0 && got[0] != 21 { // a TLS alert
			t.Errorf("%.10q was answered with %q", noise, got)
		}
		c.Close()
	}
	wrong := k
	wrong.Secret[5]++
	b := w.dial(wrong, how{instance: 1})
	eventually(t, "the wrong key is refused", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.failed) > 0 && errors.Is(b.failed[0], auth.ErrRefused)
	})
	said := func() int { return w.log.Count("connections to the link port that were no bridge") }
	eventually(t, "the log has the noise", func() bool { return said() > 0 })
	if n := said(); n != 1 {
		t.Errorf("%d lines about noise within a minute, want 1", n)
	}
	// Authenticated, and then nonsense or silence instead of ATTACH.
	c := w.user(w.p.Addr().String())
	ac, err := auth.Client(context.Background(), c, auth.ClientConfig{KeyID: k.ID, Secret: k.Secret, Pin: auth.Pin(identity().Leaf.RawSubjectPublicKeyInfo)})
	if err != nil {
		t.Fatal(err)
	}
	ac.Write(wire.AppendEmpty(nil, wire.TypePing, 0, 7))
	if _, err := ac.Read(make([]byte, 1000)); err != nil {
		t.Errorf("the violation got %v, want an ERR frame", err)
	}
	if _, err := ac.Read(make([]byte, 1)); err == nil {
		t.Error("the connection was not closed")
	}
	var rec tls.RecordHeaderError
	if _, err := tls.Dial("tcp", w.p.Addr().String(), &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}); err == nil || errors.As(err, &rec) {
		t.Errorf("TLS 1.2: %v, want an alert", err)
	}
}

// TestTransferPort: carriers dial the announced port.
func TestTransferPort(t *testing.T) {
	addr, pub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Transfer: "127.0.0.1:0", Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, pub)
	w.pair(b, addr)
	b.mu.Lock()
	defer b.mu.Unlock()
	carriers := 0
	for _, d := range b.dialled { // there may be more attempts than connections, for either
		want := w.p.Addr()
		if d.carrier {
			carriers, want = carriers+1, w.p.TransferAddr()
		}
		if d.addr != want.String() {
			t.Errorf("an attempt (for a carrier: %t) went to %s, want %s", d.carrier, d.addr, want)
		}
	}
	if carriers == 0 {
		t.Errorf("dialled %v; want %s, and %s for carriers", b.dialled, w.p.Addr(), w.p.TransferAddr())
	}
}

func TestListenErrors(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	taken := ln.Addr().String()
	err = New(Config{Identity: identity(), Listen: taken}).Listen()
	if err == nil || !strings.Contains(err.Error(), "open the link port (listen "+taken+")") {
		t.Errorf("Listen = %v, want an error that names the link port", err)
	}
	addr, _ := free(t)
	err = New(Config{Identity: identity(), Listen: addr, Transfer: taken}).Listen()
	if err == nil || !strings.Contains(err.Error(), "open the transfer port (transfer "+taken+")") {
		t.Errorf("Listen = %v, want an error that names the transfer port", err)
	}
	if !refused(addr) {
		t.Error("the link port stayed open after an error")
	}
}

// TestListenTakesTheAddressLiterally: 0.0.0.0 is IPv4 only, for the link as for users.
func TestListenTakesTheAddressLiterally(t *testing.T) {
	p := New(Config{Identity: identity(), Listen: "0.0.0.0:0", Transfer: "0.0.0.0:0"})
	if err := p.Listen(); err != nil {
		t.Fatal(err)
	}
	defer p.port.ln.Close()
	defer p.port.carrier.Close()
	for _, at := range []net.Addr{p.Addr(), p.TransferAddr()} {
		port := strconv.Itoa(int(portOf(at)))
		if !refused(net.JoinHostPort("::1", port)) {
			t.Errorf("asked for 0.0.0.0, and [::1]:%s answers", port)
		}
		if refused(net.JoinHostPort("127.0.0.1", port)) {
			t.Errorf("asked for 0.0.0.0, and 127.0.0.1:%s does not answer", port)
		}
	}
}

// TestLinkDescriptors: while no descriptor is left for bridges the link port accepts nobody, and says so; each is given back.
func TestLinkDescriptors(t *testing.T) {
	_, pub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	pool := sys.NewPool(256, 0)
	n := 0
	for pool.Take(sys.ForLinks) {
		n++
	}
	w := start(t, Config{Descriptors: pool, Settings: Settings{Keys: []Key{k}}})
	eventually(t, "the log says that descriptors run short", func() bool {
		return w.log.Count("running short, some are refused or wait", "of=descriptors for bridges", "limit="+strconv.Itoa(n)) == 1
	})
	if p := w.p.Status().Pressure; len(p) == 0 || p[0].What != "descriptors for bridges" || p[0].Used < int64(n) {
		t.Errorf("pressure %+v", p)
	}
	pool.Return(sys.ForLinks, n)
	b := w.bridge(k, how{instance: 1}, pub)
	b.settled()
	if n := pool.Taken(sys.ForLinks); n < 2 {
		t.Errorf("%d descriptors are taken, want those of the bridge and one for the next", n)
	}
	b.stop()
	<-b.done
	eventually(t, "the bridge's are given back", func() bool { return pool.Taken(sys.ForLinks) == 1 })
}
