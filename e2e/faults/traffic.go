//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// period is the length of the noise of which all streams are made: a prime, so that it fits no buffer.
const period = 1<<20 + 7

// noise stands twice in a row, so that a chunk from any place is one slice.
var noise = sync.OnceValue(func() []byte {
	b := make([]byte, 2*period)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(b[:period])
	copy(b[period:], b)
	return b
})

const chunk = 64 << 10

// noiseAt is the chunk of n bytes at a position of the stream that seed names.
func noiseAt(seed uint64, at int64, n int) []byte {
	i := (seed*7919 + uint64(at)) % period
	return noise()[i : i+uint64(n)]
}

// A flow is a stream of bytes in one direction, checked at its end byte by byte and by a checksum that both ends make
// for themselves.
type flow struct {
	seed           uint64
	n              int64         // how many bytes; less than 0: until stop
	rate           float64       // bytes a second; 0: as fast as it goes
	stop           chan struct{} // closed to end a flow without n
	sent, received atomic.Int64

	sentSum, receivedSum [sha256.Size]byte
	sendErr, receiveErr  error
}

var seeds atomic.Uint64

func newFlow(n int64) *flow { return &flow{seed: seeds.Add(1), n: n, stop: make(chan struct{})} }

// send writes the flow and then ends the direction.
func (f *flow) send(c *net.TCPConn) {
	h := sha256.New()
	begin := time.Now() // of the next chunk
	for at := int64(0); f.n < 0 || at < f.n; {
		select {
		case <-f.stop:
			f.n = at
			continue
		default:
		}
		n := chunk
		if f.n >= 0 {
			n = int(min(chunk, f.n-at))
		}
		if f.rate > 0 {
			n = min(n, max(1, int(f.rate/50)))
			early := time.Until(begin)
			time.Sleep(early)
			if early < -100*time.Millisecond {
				begin = time.Now() // who was held up does not hurry afterwards
			}
			begin = begin.Add(time.Duration(float64(n) / f.rate * float64(time.Second)))
		}
		m, err := c.Write(noiseAt(f.seed, at, n))
		h.Write(noiseAt(f.seed, at, m))
		at += int64(m)
		f.sent.Store(at)
		if err != nil {
			f.sendErr = err
			return
		}
	}
	h.Sum(f.sentSum[:0])
	f.sendErr = c.CloseWrite()
}

// receive reads until the end of the direction.
func (f *flow) receive(c *net.TCPConn) {
	h := sha256.New()
	buf := make([]byte, chunk)
	for at := int64(0); ; {
		n, err := c.Read(buf)
		if want := noiseAt(f.seed, at, n); !bytes.Equal(buf[:n], want) {
			f.receiveErr = f.locate(at, buf[:n])
			return
		}
		h.Write(buf[:n])
		at += int64(n)
		f.received.Store(at)
		if err == io.EOF {
			h.Sum(f.receivedSum[:0])
			return
		}
		if err != nil {
			f.receiveErr = err
			return
		}
	}
}

// locate says how wrong bytes are wrong.
func (f *flow) locate(at int64, got []byte) error {
	want := noiseAt(f.seed, at, len(got))
	i := 0
	for got[i] == want[i] {
		i++
	}
	at += int64(i)
	if sample := got[i:min(i+16, len(got))]; len(sample) == 16 {
		for shift := int64(1); shift < period/2; shift++ {
			if at >= shift && bytes.Equal(noiseAt(f.seed, at-shift, 16), sample) {
				return fmt.Errorf("at byte %d come bytes from %d before it: doubled", at, shift)
			}
			if bytes.Equal(noiseAt(f.seed, at+shift, 16), sample) {
				return fmt.Errorf("at byte %d come bytes from %d behind it: lost", at, shift)
			}
		}
	}
	return fmt.Errorf("byte %d is wrong", at)
}

// moves waits until bytes arrive that had not by now and returns how long that took.
func (f *flow) moves(ctx context.Context) (time.Duration, error) {
	begin, at := time.Now(), f.received.Load()
	err := await(ctx, "a transfer to go on", func() bool { return f.received.Load() > at })
	return time.Since(begin), err
}

// check says what was wrong with a flow that should have come through whole.
func (f *flow) check() error {
	switch {
	case f.sendErr != nil:
		return fmt.Errorf("send after %d bytes: %w", f.sent.Load(), f.sendErr)
	case f.receiveErr != nil:
		return fmt.Errorf("receive after %d of %d bytes: %w", f.received.Load(), f.sent.Load(), f.receiveErr)
	case f.received.Load() != f.sent.Load():
		return fmt.Errorf("clean end after %d of %d bytes", f.received.Load(), f.sent.Load())
	case f.sentSum != f.receivedSum:
		return errors.New("the checksums differ")
	}
	return nil
}

// duplex moves bytes both ways at once over a line and returns what was wrong.
func (l line) duplex(up, down *flow) error {
	var wg sync.WaitGroup
	wg.Go(func() { up.send(l.user) })
	wg.Go(func() { up.receive(l.lan) })
	wg.Go(func() { down.send(l.lan) })
	wg.Go(func() { down.receive(l.user) })
	wg.Wait()
	var errs []error
	for _, f := range []struct {
		name string
		*flow
	}{{"from the user", up}, {"to the user", down}} {
		if err := f.check(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f.name, err))
		}
	}
	return errors.Join(errs...)
}

// A sample is one answer that a user got.
type sample struct {
	at   time.Time // when it came
	took time.Duration
}

// An echoUser sends a numbered message, waits for it to come back, and goes on after a pause: what somebody at a terminal
// sees. An echo that is wrong or missing ends it with an error.
type echoUser struct {
	line
	every time.Duration
	stop  chan struct{}
	wg    sync.WaitGroup
	err   error

	mu      sync.Mutex
	samples []sample // guarded by mu
}

const echoSize = 32

// echoes sends back what comes to the LAN end, so many bytes at the most. The plain io.Copy would splice, which takes two
// more descriptors.
func (l line) echoes(n int64) error {
	_, err := io.Copy(struct{ io.Writer }{l.lan}, io.LimitReader(l.lan, n))
	return err
}

// echo starts a user of an echo service. The first message waits for a while: users who all speak at once would see the same moments, and
// one moment would count as many.
func (l line) echo(every, wait time.Duration) *echoUser {
	e := &echoUser{line: l, every: every, stop: make(chan struct{})}
	e.wg.Go(func() {
		if l.echoes(math.MaxInt64) == nil {
			l.lan.CloseWrite()
		}
	})
	e.wg.Go(func() { e.err = e.run(time.Now().Add(wait)) })
	return e
}

// run sends the first message at next, and then one in each period, unless the last answer is late.
func (e *echoUser) run(next time.Time) error {
	msg, got := make([]byte, echoSize), make([]byte, echoSize)
	for n := uint64(1); ; n++ {
		t := time.NewTimer(time.Until(next))
		select {
		case <-t.C:
		case <-e.stop:
			t.Stop()
			e.user.CloseWrite()
			if rest, err := io.Copy(io.Discard, e.user); rest != 0 || err != nil {
				return fmt.Errorf("at the end came %d bytes too many, %w", rest, err)
			}
			return nil
		}
		begin := time.Now()
		for i := 0; i < echoSize; i += 8 {
			binary.BigEndian.PutUint64(msg[i:], n*0x9e3779b97f4a7c15+uint64(i))
		}
		if _, err := e.user.Write(msg); err != nil {
			return fmt.Errorf("send message %d: %w", n, err)
		}
		if _, err := io.ReadFull(e.user, got); err != nil {
			return fmt.Errorf("wait for answer %d: %w", n, err)
		}
		if !bytes.Equal(msg, got) {
			return fmt.Errorf("answer %d is wrong: % x; want % x", n, got, msg)
		}
		now := time.Now()
		e.mu.Lock()
		e.samples = append(e.samples, sample{now, now.Sub(begin)})
		e.mu.Unlock()
		late := max(now.Sub(next), 0)
		next = next.Add(late.Truncate(e.every) + e.every)
	}
}

// finish lets the last answer come and returns what was wrong.
func (e *echoUser) finish() error {
	close(e.stop)
	e.wg.Wait()
	return e.err
}

// since is when the first answer after t came, to a message that may be older.
func (e *echoUser) since(t time.Time) (time.Duration, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range e.samples {
		if s.at.After(t) {
			return s.at.Sub(t), true
		}
	}
	return 0, false
}

func (e *echoUser) all() []sample {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]sample(nil), e.samples...)
}

// roundTrips is how long each answer to the users took.
func roundTrips(users []*echoUser) (all []time.Duration) {
	for _, u := range users {
		for _, s := range u.all() {
			all = append(all, s.took)
		}
	}
	return all
}

// echoUsers starts n of them.
func (t *tunnel) echoUsers(ctx context.Context, n int, every time.Duration) ([]*echoUser, error) {
	lines, err := t.connectAll(ctx, n)
	if err != nil {
		return nil, err
	}
	users := make([]*echoUser, n)
	for i, l := range lines {
		users[i] = l.echo(every, time.Duration(i)*every/time.Duration(n))
	}
	return users, nil
}

// stalls waits until every user got an answer after t and returns how long that took for each.
func stalls(ctx context.Context, users []*echoUser, t time.Time) (all []time.Duration, err error) {
	for _, u := range users {
		var d time.Duration
		err = errors.Join(err, await(ctx, "an answer to every user", func() (ok bool) {
			d, ok = u.since(t)
			return ok
		}))
		all = append(all, d)
	}
	return all, err
}

// finishAll ends the users and reports those whose connection was not as it should be.
func (b *bed) finishAll(users []*echoUser) (answers int) {
	for i, u := range users {
		b.failIf(u.finish(), fmt.Sprintf("echo user %d", i))
		answers += len(u.all())
	}
	return answers
}

// How a connection ended, as one end sees it.
const (
	endFIN  = "FIN"
	endRST  = "RST"
	endNone = "still open"
)

// endOf reads until the end of a connection.
func endOf(c *net.TCPConn, limit time.Duration) (end string, n int64) {
	c.SetReadDeadline(time.Now().Add(limit))
	n, err := io.Copy(io.Discard, c)
	var timeout net.Error
	switch {
	case err == nil:
		return endFIN, n
	case errors.As(err, &timeout) && timeout.Timeout():
		return endNone, n
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return endRST, n
	}
	return err.Error(), n
}
