package wire

import "encoding/binary"

// Claim asks for a public address.
type Claim struct {
	Public string // canonical PUBLIC
	Target string // for display only

	Weight  uint32 // field 1: share of the connections among those of a group; 0: not said
	Health  Health // field 2
	Drained bool   // field 3: new connections go to others of the group
	Limits  []byte // field 4: limits that the bridge asks for
	Group   string // field 128: those that share the address
	Options []byte // field 129: what the proxy must do for the service beyond that, as JSON

	// Unknown is the first critical field that is not known here: the claim is denied. 0: there is none.
	Unknown uint8
}

// Health is whether a target answers its bridge.
type Health uint8

// The values of Health. One that is not known means HealthUnknown.
const (
	HealthUnknown Health = iota
	HealthGood
	HealthBad
)

const (
	fieldWeight  = 1
	fieldHealth  = 2
	fieldDrained = 3
	fieldLimits  = 4
	fieldGroup   = 128
	fieldOptions = 129

	fieldClaimedDrained = 1
)

// claimHead begins a frame about a claim.
func claimHead(b []byte, t Type, id uint32) []byte { return AppendHeader(b, t, 0, uint64(id), 0) }

// claimID returns the id of the claim that f is about. Ids are from 1.
func claimID(f Frame) (uint32, error) {
	if f.Offset == 0 || f.Offset > 1<<32-1 {
		return 0, malformed(f.Type, "claim id %d", f.Offset)
	}
	return uint32(f.Offset), nil
}

// AppendClaim appends a CLAIM with id.
func AppendClaim(b []byte, id uint32, c Claim) []byte {
	at := len(b)
	b = appendString(appendString(claimHead(b, TypeClaim, id), c.Public), c.Target)
	b = appendUint32Field(b, fieldWeight, c.Weight)
	if c.Health != HealthUnknown {
		b = AppendField(b, fieldHealth, []byte{byte(c.Health)})
	}
	if c.Drained {
		b = AppendField(b, fieldDrained, []byte{1})
	}
	if len(c.Limits) != 0 {
		b = AppendField(b, fieldLimits, c.Limits[:min(len(c.Limits), maxLimits)])
	}
	b = appendTextField(b, fieldGroup, c.Group, MaxText)
	if len(c.Options) != 0 {
		b = AppendField(b, fieldOptions, c.Options)
	}
	return setLength(b, at)
}

// maxLimits and MaxOptions leave the other fields of a CLAIM room.
const (
	maxLimits  = 1024
	MaxOptions = 2560
)

// ParseClaim decodes a CLAIM.
func ParseClaim(f Frame) (id uint32, c Claim, err error) {
	if id, err = claimID(f); err != nil {
		return id, c, err
	}
	var ok bool
	rest := f.Payload
	if c.Public, rest, ok = takeString(rest); ok {
		c.Target, rest, ok = takeString(rest)
	}
	if !ok {
		return id, c, malformed(TypeClaim, "bad text")
	}
	err = parseFields(TypeClaim, rest, func(f Field) (known, ok bool) {
		switch f.Type {
		case fieldWeight:
			return true, f.uint32(&c.Weight)
		case fieldHealth:
			var h uint8
			if !f.uint8(&h) {
				return true, false
			}
			if c.Health = Health(h); c.Health > HealthBad {
				c.Health = HealthUnknown
			}
			return true, true
		case fieldDrained:
			var d uint8
			ok = f.uint8(&d)
			c.Drained = d != 0
			return true, ok
		case fieldLimits:
			c.Limits = append([]byte(nil), f.Value...)
			return true, len(f.Value) <= maxLimits
		case fieldGroup:
			return true, f.text(&c.Group, MaxText)
		case fieldOptions:
			c.Options = append([]byte(nil), f.Value...)
			return true, len(f.Value) <= MaxOptions
		}
		return false, false
	})
	if u, ok := err.(*UnsupportedError); ok {
		c.Unknown, err = u.Field, nil
	}
	return id, c, err
}

// ClaimStatus answers a CLAIM.
type ClaimStatus uint8

// The statuses of CLAIMED. One that is not known means that the claim is not up.
const (
	ClaimUp       ClaimStatus = 1 + iota // the public address is open
	ClaimDenied                          // the policy of the key does not allow it
	ClaimRetrying                        // it cannot be opened now; the proxy goes on trying
)

// Claimed answers a CLAIM, and tells later changes of it.
type Claimed struct {
	Status ClaimStatus
	Nonce  [16]byte // what the bridge's probe proves to have; zero: do not probe
	Public string   // the public address that is served
	Text   string   // why not

	Drained bool // field 1: it is up, and no new users come, by order of the proxy's operator
}

// AppendClaimed appends a CLAIMED with the id of the claim.
func AppendClaimed(b []byte, id uint32, c Claimed) []byte {
	at := len(b)
	b = append(claimHead(b, TypeClaimed, id), byte(c.Status))
	b = append(b, c.Nonce[:]...)
	b = appendString(appendString(b, c.Public), cutText(c.Text))
	if c.Drained {
		b = AppendField(b, fieldClaimedDrained, []byte{1})
	}
	return setLength(b, at)
}

// ParseClaimed decodes a CLAIMED.
func ParseClaimed(f Frame) (id uint32, c Claimed, err error) {
	if id, err = claimID(f); err != nil {
		return id, c, err
	}
	c.Status = ClaimStatus(f.Payload[0])
	copy(c.Nonce[:], f.Payload[1:])
	rest := f.Payload[17:]
	var ok bool
	if c.Public, rest, ok = takeString(rest); ok {
		c.Text, rest, ok = takeString(rest)
	}
	if !ok || len(c.Text) > MaxText {
		return id, c, malformed(TypeClaimed, "bad text")
	}
	return id, c, parseFields(TypeClaimed, rest, func(f Field) (known, ok bool) {
		if f.Type != fieldClaimedDrained {
			return false, false
		}
		var d uint8
		ok = f.uint8(&d)
		c.Drained = d != 0
		return true, ok
	})
}

// AppendUnclaim appends an UNCLAIM: the bridge gives the claim back.
func AppendUnclaim(b []byte, id uint32) []byte { return claimHead(b, TypeUnclaim, id) }

// ParseUnclaim returns the id of the claim that an UNCLAIM gives back.
func ParseUnclaim(f Frame) (id uint32, err error) { return claimID(f) }

// Mark is the highest id of a stream that the proxy opened in a slot; 0: it opened none there.
type Mark struct {
	Slot   uint8
	Stream uint64
}

const markLen = 1 + 8

// AppendUnclaimed appends an UNCLAIMED: no stream beyond the marks names the claim. The marks are in the order of slots.
func AppendUnclaimed(b []byte, id uint32, marks []Mark) []byte {
	at := len(b)
	b = append(claimHead(b, TypeUnclaimed, id), byte(len(marks)))
	for _, m := range marks {
		b = binary.BigEndian.AppendUint64(append(b, m.Slot), m.Stream)
	}
	return setLength(b, at)
}

// ParseUnclaimed decodes an UNCLAIMED.
func ParseUnclaimed(f Frame) (id uint32, marks []Mark, err error) {
	if id, err = claimID(f); err != nil {
		return id, nil, err
	}
	n, p := int(f.Payload[0]), f.Payload[1:]
	if len(p) < n*markLen {
		return id, nil, malformed(TypeUnclaimed, "%d marks in %d bytes", n, len(p))
	}
	for last := uint8(0); len(marks) < n; p = p[markLen:] {
		m := Mark{p[0], binary.BigEndian.Uint64(p[1:])}
		switch {
		case m.Slot <= last:
			return id, nil, malformed(TypeUnclaimed, "mark of slot %d after slot %d", m.Slot, last)
		case m.Stream != 0 && uint8(m.Stream) != m.Slot:
			return id, nil, malformed(TypeUnclaimed, "stream %#x as the mark of slot %d", m.Stream, m.Slot)
		}
		last = m.Slot
		marks = append(marks, m)
	}
	return id, marks, parseFields(TypeUnclaimed, p, func(Field) (known, ok bool) { return false, false })
}

// AppendRound appends a ROUND: the bridge has said everything that it claims.
func AppendRound(b []byte) []byte { return AppendHeader(b, TypeRound, 0, 0, 0) }
