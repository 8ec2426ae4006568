package link

import (
	"errors"
	"fmt"
	"time"

	"reverser/internal/wire"
)

// What this end decided about its peer, and what the peer told it, are different errors:
//
//	violationError   this end found that the peer broke the protocol, and says so with ERR
//	PeerError        the peer said ERR: by its account this end broke the protocol
//	ownRefusal       this end answers an ATTACH with a status other than OK
//	peerRefusal      the peer answered so

// violationError is what a peer did that the protocol does not allow.
type violationError struct {
	code  wire.ErrCode
	text  string
	fatal bool // ends the session; otherwise only the connection
}

func (e *violationError) Error() string { return "protocol violation by the peer: " + e.text }

// violation is a violationError that ends the session.
func violation(code wire.ErrCode, format string, args ...any) error {
	return &violationError{code, fmt.Sprintf(format, args...), true}
}

// Violation is the error of an Owner about what its peer did that the protocol does not allow. It ends the session.
func Violation(code wire.ErrCode, format string, args ...any) error {
	return violation(code, format, args...)
}

// misfit is a violationError that ends only the connection: the session is not touched by it.
func misfit(code wire.ErrCode, format string, args ...any) error {
	return &violationError{code, fmt.Sprintf(format, args...), false}
}

// asViolation makes what the peer did wrong of the error of a parser.
func asViolation(err error) error {
	_, malformed := errors.AsType[*wire.FormatError](err)
	_, unsupported := errors.AsType[*wire.UnsupportedError](err)
	if malformed || unsupported {
		return misfit(wire.ErrFormat, "%s", err)
	}
	return err
}

// PeerError is an ERR from the peer: it gave the connection up.
type PeerError struct {
	Code wire.ErrCode
	Text string
}

func (e *PeerError) Error() string {
	return fmt.Sprintf("the peer gave the connection up: %s (code %d)", e.Text, e.Code)
}

// peerError is the error of an ERR frame.
func peerError(f wire.Frame) error {
	e := wire.ParseErr(f)
	return &PeerError{e.Code, e.Text}
}

// ownRefusal is the status, other than OK, with which this end answers an ATTACH.
type ownRefusal struct {
	status   wire.Status
	text     string
	comeBack time.Duration // how long the peer is asked to wait; 0: that is left to it
}

func (r *ownRefusal) Error() string { return refusalText(r.status, r.text) }

// peerRefusal is the status, other than OK, with which the peer answered an ATTACH, or would have by what its Welcome says.
type peerRefusal struct {
	status   wire.Status
	text     string
	comeBack time.Duration // how long to wait, by its account; 0: it did not say
}

func (r *peerRefusal) Error() string { return refusalText(r.status, r.text) }

func refusalText(st wire.Status, text string) string {
	return fmt.Sprintf("attach refused (%s): %s", st, text)
}

// ErrDuplicate is what errors.Is finds in the error of Host.Serve, and in what DialerConfig.Failed is told, for a bridge that was refused
// because another live one holds its key.
var ErrDuplicate = errors.New("another live bridge holds the key")

// ErrDenied is what errors.Is finds in what DialerConfig.Failed is told where the key was proven, and may have no session all the same: it
// has expired, or its token was replaced.
var ErrDenied = errors.New("the key may have no session")

// Is implements the interface of errors.Is.
func (r *ownRefusal) Is(target error) bool {
	return target == ErrDuplicate && r.status == wire.StatusDuplicate
}

// Is implements the interface of errors.Is.
func (r *peerRefusal) Is(target error) bool {
	return target == ErrDuplicate && r.status == wire.StatusDuplicate || target == ErrDenied && r.status == wire.StatusDenied
}
