package claims

import (
	"reverser/internal/grammar"
	"reverser/internal/status"
	"reverser/internal/wire"
)

// sayRoundName names ROUND in the queue of the control connection, beside the ids of claims.
const sayRoundName = 1 << 32

// Name is the same for frames of which a later one takes the place of an earlier one that was not sent.
func (f Say) Name() uint64 {
	if f.Kind == SayRound {
		return sayRoundName
	}
	return uint64(f.ID)
}

// Append appends the frame.
func (f Say) Append(b []byte) []byte {
	switch f.Kind {
	case SayClaim:
		return wire.AppendClaim(b, f.ID, wire.Claim{Public: f.Service.Public.String(), Target: f.Service.TargetName()})
	case SayUnclaim:
		return wire.AppendUnclaim(b, f.ID)
	}
	return wire.AppendRound(b)
}

// states are the states of services by the status that the proxy says. An unknown status means that the service is not up.
var states = map[wire.ClaimStatus]string{wire.ClaimUp: status.ServiceUp, wire.ClaimDenied: status.ServiceDenied}

// AnswerOf is what a CLAIMED says.
func AnswerOf(c wire.Claimed) Answer {
	a := Answer{State: states[c.Status], Reason: c.Text}
	if a.State == "" {
		a.State = status.ServiceRetrying
	}
	if pub, err := grammar.ParsePublic(c.Public); err == nil && pub.Kind != grammar.KindOffered {
		a.Public = pub
	}
	return a
}
