package link

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"time"

	"reverser/internal/auth"
	"reverser/internal/record"
	"reverser/internal/wire"
)

// attachTimeout covers the exchange of ATTACH, ATTACHED and their tables.
const attachTimeout = 10 * time.Second

// A bridge that resumes gives the answer less time, and a second more for so many bytes of a table.
const (
	resumeTimeout = 2 * time.Second
	slowTable     = 32 << 10
)

// answerTime is how long a bridge waits for ATTACHED on a connection whose handshake took so long, and with so many bytes of a
// table, which the proxy's answer has about as many of.
func answerTime(handshake time.Duration, table int) time.Duration {
	tables := 2 * time.Second * time.Duration(table/slowTable)
	return min(max(resumeTimeout, 2*handshake)+tables, attachTimeout)
}

// attachScratch has room for an ATTACH, or an ATTACHED, and what may come before it.
const attachScratch = 512

// readFrame reads the next frame that is known here, and nothing behind it. buf is scratch for all but large ones.
func readFrame(r io.Reader, buf []byte) (wire.Frame, error) {
	for range mostSkipped {
		if f, err := readAnyFrame(r, buf); err != nil || f.Type < wire.TypeSkip {
			return f, err
		}
	}
	return wire.Frame{}, misfit(wire.ErrFlood, "%d frames that are not known here, one after the other", mostSkipped)
}

func readAnyFrame(r io.Reader, buf []byte) (wire.Frame, error) {
	if _, err := io.ReadFull(r, buf[:wire.HeaderLen]); err != nil {
		return wire.Frame{}, err
	}
	f, _, err := wire.Parse(buf[:wire.HeaderLen])
	if !errors.Is(err, wire.ErrTruncated) { // the header says it all, or that nothing can be made of it
		return f, asViolation(err)
	}
	size := int(buf[2])<<8 | int(buf[3])
	if len(buf) < wire.HeaderLen+size {
		buf = append(make([]byte, 0, wire.HeaderLen+size), buf[:wire.HeaderLen]...)[:wire.HeaderLen+size]
	}
	if _, err := io.ReadFull(r, buf[wire.HeaderLen:wire.HeaderLen+size]); err != nil {
		return wire.Frame{}, err
	}
	f, _, err = wire.Parse(buf[:wire.HeaderLen+size])
	return f, asViolation(err)
}

// mostSkipped is how many frames that are not known here are skipped while a connection is attached.
const mostSkipped = 64

// complain tells the peer what it did wrong, if err says that it did. What the peer still sends is read for a second at the most.
func complain(conn *auth.Conn, err error) {
	if p, ok := errors.AsType[*violationError](err); ok {
		conn.SetDeadline(time.Now().Add(time.Second))
		conn.Write(wire.AppendErr(nil, wire.Err{Code: p.code, Text: p.text}))
		drain(conn.Conn)
	}
}

// drain reads until the peer ends the connection, or its deadline passes: a close with bytes unread is a reset, which would overtake
// an ERR.
func drain(conn *record.Conn) {
	if sock, ok := conn.Conn.(interface{ CloseWrite() error }); ok && sock.CloseWrite() == nil {
		io.Copy(io.Discard, conn.Conn)
	}
}

// readTable reads the n entries of so many bytes each that an ATTACH or ATTACHED announced. It keeps of each what is known here,
// so that the length of an entry costs no memory. sum is the SHA-256 of all of it.
func readTable(r io.Reader, n, crc uint32, entry uint8, buf []byte) (sum [32]byte, table []wire.StreamState, err error) {
	if err := checkTable(n); err != nil {
		return sum, nil, err
	}
	each, have := int(entry), 0
	if most := wire.HeaderLen + min(each*int(n), wire.MaxPayload); len(buf) < most {
		buf = make([]byte, most)
	}
	hash, check := sha256.New(), uint32(0)
	var known []byte
	for have < int(n) {
		f, err := readFrame(r, buf)
		if err != nil {
			return sum, nil, err
		}
		if f.Type != wire.TypeST || f.Offset != uint64(have) || len(f.Payload)%each != 0 || have+len(f.Payload)/each > int(n) {
			return sum, nil, misfit(wire.ErrFormat, "%s where entry %d of a table of %d was due", f.Type, have, n)
		}
		hash.Write(f.Payload)
		check = crc32.Update(check, castagnoli, f.Payload)
		for b := f.Payload; len(b) > 0; b = b[each:] {
			known = append(known, b[:wire.StreamStateLen]...)
			have++
		}
	}
	if check != crc {
		return sum, nil, misfit(wire.ErrFormat, "table with a wrong checksum")
	}
	table, err = wire.ParseTable(known, wire.StreamStateLen)
	return [32]byte(hash.Sum(nil)), table, asViolation(err)
}

// checkTable says what is wrong with the announced length of a table.
func checkTable(n uint32) error {
	if n > wire.MaxTable {
		return misfit(wire.ErrFormat, "table of %d streams, at most %d are possible", n, wire.MaxTable)
	}
	return nil
}

// accept binds a connection to its slot at the proxy: prove, fence, rewind, answer.
func (l *Link) accept(h *Host, conn *auth.Conn, gen uint64, a wire.Attach, sum [32]byte, table []wire.StreamState) (*carrier, error) {
	if a.Mode != wire.ModeNew {
		want := auth.ResumeMAC(l.secret, conn.Exporter, l.sid, a.Slot, gen, sum)
		if !hmac.Equal(want[:], a.MAC[:]) {
			return nil, &ownRefusal{status: wire.StatusGone, text: "the proxy does not hold this session (any more)"}
		}
	}
	sl := l.slots[a.Slot]
	sl.mu.Lock()
	defer sl.mu.Unlock()
	switch {
	case l.Err() != nil:
		return nil, &ownRefusal{status: wire.StatusGone, text: "the session is over"}
	case sl.frozen:
		return nil, ErrFrozen
	}
	mine, crc, events, err := sl.core.accept(gen, conn.Features, table)
	if _, refused := errors.AsType[*ownRefusal](err); refused {
		return nil, err
	}
	sl.fence(errFenced)
	if err != nil {
		return nil, err
	}
	if a.Slot == 0 {
		l.upkeep.agree(conn.Features, keepaliveOf(a.Keepalive))
	}
	msg := wire.AppendAttached(nil, gen, wire.Attached{
		Status: wire.StatusOK, Slot: a.Slot, Carriers: uint8(len(l.slots) - 1),
		Streams: uint32(len(mine) / wire.StreamStateLen), TableCRC: crc,
		Window: floorWindow, MaxStreams: MaxStreams, Transfer: h.cfg.Transfer, Detach: millis(h.cfg.Detach),
	})
	msg = wire.AppendTable(msg, mine)
	c := newCarrier(sl, conn.Conn)
	c.gen, c.greeting = gen, msg // the answer goes out before any frame
	sl.install(c)
	for _, ev := range events {
		sl.handle(ev)
	}
	return c, nil
}

// millis is how a limit of an outage is told to the peer.
func millis(d time.Duration) uint32 { return uint32(min(max(d.Milliseconds(), 1), math.MaxUint32)) }

// shorter returns the limit of an outage for both ends: the shorter one of this end's and the peer's. A peer cannot make it less than a
// second.
func shorter(own time.Duration, peer uint32) time.Duration {
	if peer == 0 {
		return own
	}
	return min(own, max(time.Duration(peer)*time.Millisecond, time.Second))
}

// errOther says that the proxy is not the process that holds the session.
var errOther = errors.New("the proxy was restarted, or another one took its place")

// attach binds an authenticated connection to slot i at the bridge: fence, count, ask, rewind.
func (d *Dialer) attach(ctx context.Context, l *Link, i int, mode wire.Mode, sid [16]byte, conn *auth.Conn) (_ *carrier, at wire.Attached, err error) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer func() {
		stop() // first: Kill ends ctx, and the close would overtake the ERR
		if err != nil {
			if p, bad := errors.AsType[*violationError](err); bad && p.fatal {
				l.Kill(err)
			}
			complain(conn, err)
			conn.Close()
		}
	}()
	conn.SetDeadline(time.Now().Add(attachTimeout)) // a new session may have to wait for an old one's silence
	sl := l.slots[i]
	if mode == wire.ModeNew {
		l.begin(conn, sid)
	} else if conn.Peer != l.peer {
		return nil, at, errOther
	}
	sl.mu.Lock()
	if sl.frozen {
		sl.mu.Unlock()
		return nil, at, ErrFrozen
	}
	over := sl.core.negotiate(conn.Features)
	gen, raw, crc := sl.core.dial()
	sl.fence(errFenced)
	for _, ev := range over {
		sl.handle(ev)
	}
	sl.mu.Unlock()
	a := wire.Attach{
		Mode: mode, Slot: uint8(i), Session: sid,
		Streams: uint32(len(raw) / wire.StreamStateLen), TableCRC: crc,
		Window: floorWindow, MaxStreams: MaxStreams, Name: d.cfg.Name, Detach: millis(d.cfg.Detach),
	}
	if i == 0 && conn.Features&wire.FeatureIdle != 0 {
		a.Keepalive = millis(d.cfg.Keepalive)
	}
	if mode != wire.ModeNew {
		a.WantInstance = l.peer
		a.MAC = auth.ResumeMAC(l.secret, conn.Exporter, sid, uint8(i), gen, sha256.Sum256(raw))
	}
	begin := time.Now()
	if mode != wire.ModeNew {
		// The old connection is fenced: if the path goes silent now, another attempt is better than patience.
		conn.SetDeadline(begin.Add(answerTime(conn.Took, len(raw))))
	}
	if _, err := conn.Write(wire.AppendTable(wire.AppendAttach(nil, gen, a), raw)); err != nil {
		return nil, at, fmt.Errorf("send ATTACH: %w", err)
	}
	buf := make([]byte, attachScratch)
	f, err := readFrame(conn, buf)
	if err != nil {
		return nil, at, fmt.Errorf("wait for ATTACHED: %w", err)
	}
	if f.Type == wire.TypeErr {
		return nil, at, peerError(f)
	}
	if f.Type != wire.TypeAttached || f.Offset != gen {
		return nil, at, misfit(wire.ErrUnexpected, "%s where ATTACHED was due", f.Type)
	}
	if at, err = wire.ParseAttached(f); err != nil {
		return nil, at, asViolation(err)
	}
	if at.Status != wire.StatusOK {
		return nil, at, &peerRefusal{at.Status, at.Text, time.Duration(at.ComeBack) * time.Millisecond}
	}
	if mode == wire.ModeNew {
		l.agree(at.Window, at.MaxStreams)
	}
	rtt := time.Since(begin)
	_, table, err := readTable(conn, at.Streams, at.TableCRC, at.Entry, buf)
	if err != nil {
		return nil, at, fmt.Errorf("read ATTACHED: %w", err)
	}
	if i == 0 {
		l.upkeep.agree(conn.Features, d.cfg.Keepalive)
		if l.upkeep.interval() == 0 {
			l.wake()
		}
	}
	c := newCarrier(sl, conn.Conn)
	c.gen, c.relayed, c.secret = gen, conn.Relayed, conn.Secret
	if err := sl.resume(c, table, rtt); err != nil {
		return nil, at, err
	}
	conn.SetDeadline(time.Time{})
	c.keepKnown()
	return c, at, nil
}

// resume goes on where the proxy's table says, on c.
func (sl *slot) resume(c *carrier, table []wire.StreamState, rtt time.Duration) error {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	if err := sl.link.Err(); err != nil {
		return err
	}
	if sl.frozen {
		return ErrFrozen
	}
	sl.core.measured(rtt, sl.link.now()) // of this path; the old one's says nothing
	events, err := sl.core.resumed(c.gen, table)
	if err != nil {
		return err
	}
	sl.install(c)
	sl.reached = hostOf(c.conn.RemoteAddr())
	for _, ev := range events {
		sl.handle(ev)
	}
	return nil
}
