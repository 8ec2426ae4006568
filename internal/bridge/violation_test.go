package bridge

import (
	"testing"

	"reverser/internal/status"
	"reverser/internal/wire"
)

// TestAnswersThatAreWrong: a proxy that says of claims what it must not ends its own session, and the bridge begins another one.
func TestAnswersThatAreWrong(t *testing.T) {
	up := wire.Claimed{Status: wire.ClaimUp, Public: "tcp/9000"}
	unknown := wire.AppendField(wire.AppendClaimed(nil, 1, up), 200, nil)
	unknown[3] = byte(len(unknown) - wire.HeaderLen)
	for name, c := range map[string]struct {
		say  []byte
		ends bool
	}{
		"an answer to a claim that there never was": {wire.AppendClaimed(nil, 2, up), true},
		"an answer to claim 2^32-1":                 {wire.AppendClaimed(nil, 1<<32-1, up), true},
		"an answer to claim 0":                      {wire.AppendClaimed(nil, 0, up), true},
		"UNCLAIMED of a claim that is kept":         {wire.AppendUnclaimed(nil, 1, nil), true},
		"UNCLAIMED of one that there never was":     {wire.AppendUnclaimed(nil, 2, nil), true},
		"marks of the bridge's own streams":         {wire.AppendUnclaimed(nil, 1, []wire.Mark{{Slot: 1, Stream: 1<<63 | 1<<8 | 1}}), true},
		"marks of another slot":                     {wire.AppendUnclaimed(nil, 1, []wire.Mark{{Slot: 1, Stream: 1<<8 | 2}}), true},
		"marks of a slot that there is not":         {wire.AppendUnclaimed(nil, 1, []wire.Mark{{Slot: 200, Stream: 1<<8 | 200}}), true},
		"CLAIM":                                     {wire.AppendClaim(nil, 1, wire.Claim{Public: "tcp/9000"}), true},
		"UNCLAIM":                                   {wire.AppendUnclaim(nil, 1), true},
		"ROUND":                                     {wire.AppendRound(nil), true},
		"a critical field that is not known":        {unknown, false},
		"a status that is not known":                {wire.AppendClaimed(nil, 1, wire.Claimed{Status: 99, Public: "tcp/9000", Text: "later"}), false},
	} {
		t.Run(name, func(t *testing.T) {
			p := listen(t, "127.0.0.1:0", false)
			b := start(t, Config{Token: tokenFor(p.addr()), Settings: Settings{Services: []Service{{Public: public(t, "9000")}}}})
			p.ready()
			p.mu.Lock()
			l, before := p.link, p.round
			p.mu.Unlock()
			l.Say(7, c.say)
			switch {
			case c.ends:
				eventually(t, "the session ends at the bridge, which begins another one", func() bool {
					p.mu.Lock()
					defer p.mu.Unlock()
					return len(p.ended) == 1 && p.link != l && p.round > before
				})
			case name == "a status that is not known":
				eventually(t, "the service is not up", func() bool {
					st := b.Status().Services[0]
					return st.State == status.ServiceRetrying && st.Reason == "later"
				})
			default:
				eventually(t, "the bridge comes back and claims again", func() bool {
					p.mu.Lock()
					defer p.mu.Unlock()
					return p.round > before && p.link == l
				})
			}
		})
	}
}
