package traffic

import "reverser/internal/link"

// Handshakes bounds how many TLS handshakes of users are computed at once. Whoever ends the TLS of strangers has one for all of them.
type Handshakes struct {
	turns chan struct{} // one element for each that is computed now
}

// NewHandshakes returns one for so many processors. Half of them compute handshakes, so that a flood leaves the other half to those who
// are through.
func NewHandshakes(processors int) *Handshakes {
	return &Handshakes{turns: make(chan struct{}, max(processors/2, 1))}
}

// Computing is how many are computed now.
func (hs *Handshakes) Computing() int { return len(hs.turns) }

// Handshake returns one that has no turn yet.
func (hs *Handshakes) Handshake() *Handshake { return &Handshake{of: hs} }

// Handshake is one of them. Only its own goroutine uses it.
type Handshake struct {
	of   *Handshakes
	turn bool
}

// Heard waits for a turn to compute: one of the few for handshakes, then one of the link's, so that a processor stays free for streams.
// Until Waits is called, the handshake must not wait for a socket or a peer.
func (h *Handshake) Heard() {
	h.of.turns <- struct{}{}
	link.TakeTurn(link.ChunkSize)
	h.turn = true
}

// Waits gives the turn back, if it has one: what comes next is up to the client.
func (h *Handshake) Waits() {
	if h.turn {
		h.turn = false
		link.EndTurn(link.ChunkSize)
		<-h.of.turns
	}
}
