package link

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"reverser/internal/auth"
	"reverser/internal/wire"
)

// Answer is what a proxy would say to a bridge that began a session.
type Answer struct {
	Err  error    // why it would not begin, such as ErrDuplicate; nil: it would
	Text string   // the same in the proxy's own words
	Why  []string // of each name that was asked for, why the key would not get it, "" if it would. Those at the end may be missing
}

// ErrNotAsked says that a proxy does not answer questions: its version is older.
var ErrNotAsked = errors.New("the proxy is of an older version, which cannot be asked")

// Ask asks a proxy over an authenticated connection what it would say to a bridge that claims the names, and closes the connection. Nothing
// begins by it, and nothing ends. Of very many names the first ones are asked for.
func Ask(ctx context.Context, conn *auth.Conn, public []string) (a Answer, err error) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	conn.SetDeadline(time.Now().Add(attachTimeout))
	ask := wire.Attach{Mode: wire.ModeNew}
	rand.Read(ask.Session[:])
	for _, name := range public {
		if len(ask.Ask)+len(name)+1 > wire.MaxAsk {
			break
		}
		ask.Ask += name + "\n"
	}
	if ask.Ask == "" {
		ask.Ask = "\n"
	}
	if _, err := conn.Write(wire.AppendAttach(nil, 1, ask)); err != nil {
		return a, fmt.Errorf("ask the proxy: %w", err)
	}
	f, err := readFrame(conn, make([]byte, attachScratch))
	switch {
	case err != nil:
		return a, fmt.Errorf("wait for the proxy's answer: %w", err)
	case f.Type == wire.TypeErr:
		return a, peerError(f)
	case f.Type != wire.TypeAttached || f.Offset != 1:
		return a, misfit(wire.ErrUnexpected, "%s where ATTACHED was due", f.Type)
	}
	at, err := wire.ParseAttached(f)
	if err != nil {
		return a, asViolation(err)
	}
	if at.Status == wire.StatusUnsupported {
		return a, ErrNotAsked
	}
	if at.Status != wire.StatusOK {
		a.Text = at.Text
		a.Err = &peerRefusal{at.Status, at.Text, time.Duration(at.ComeBack) * time.Millisecond}
	}
	if at.Answers != "" {
		a.Why = strings.Split(strings.TrimSuffix(at.Answers, "\n"), "\n")
		a.Why = a.Why[:min(len(a.Why), len(public))]
	}
	return a, nil
}
