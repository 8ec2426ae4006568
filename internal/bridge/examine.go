package bridge

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"reverser/internal/auth"
	"reverser/internal/link"
	"reverser/internal/via"
)

// Examined is what is found on the way to one proxy, step by step, by a bridge that does not run.
type Examined struct {
	Proxy string   // host:port, as it is named
	Way   *via.Way // the way out to it; nil: it is dialled directly
	Addrs []netip.AddrPort
	Err   error // why there are none, or not those of all names; with the remedy
	Tries []Try // one for each of Addrs
}

// Try is what came of one address.
type Try struct {
	Target  string // host:port that it is an address of, or that the way out at this address was asked for
	Addr    netip.AddrPort
	Local   netip.Addr    // of this machine, that the connection came from; the zero value: there was none
	TCP     time.Duration // until TCP was connected; 0: it was not
	Reached bool          // the way out led to the target; true where there is none and TCP was connected
	Proven  time.Duration // until both ends were proven, TCP included; 0: they were not
	Err     error         // why not; with the remedy
	Answer  link.Answer   // to the question which services the key would get, as Config.Settings has them; if AskErr is nil
	AskErr  error         // why there is no answer
}

// examineLimit is how long one address may take.
const examineLimit = 6 * time.Second

// Examine goes the way to each proxy as a bridge with this configuration would, until both ends are proven, asks which
// services the key would get, and ends the connection. No session begins, so a bridge that is connected with the same key notices nothing, and nothing at the proxy changes. All addresses are
// tried at once.
func Examine(ctx context.Context, cfg Config) ([]Examined, error) {
	b, err := New(cfg)
	if err != nil {
		return nil, err
	}
	defer b.wg.Wait()
	defer b.stop()
	all := make([]Examined, len(b.uplinks))
	var examining sync.WaitGroup
	defer examining.Wait()
	for i, u := range b.uplinks {
		examining.Go(func() { all[i] = u.examine(ctx) })
	}
	examining.Wait()
	return all, nil
}

func (u *uplink) examine(ctx context.Context) Examined {
	ctx, cancel := context.WithTimeout(ctx, 2*examineLimit)
	defer cancel()
	e := Examined{Proxy: u.proxy, Way: u.b.wayTo(u.proxy)}
	targets := u.targets(false, 0)
	places, err := u.places(ctx, targets)
	if err != nil {
		e.Err = u.nowhere(targets, err)
	}
	ways := u.paths.order(places)
	e.Tries = make([]Try, len(ways))
	var trying sync.WaitGroup
	defer trying.Wait()
	for i, w := range ways {
		e.Addrs = append(e.Addrs, w.addr)
		trying.Go(func() { e.Tries[i] = u.examineWay(ctx, w) })
	}
	trying.Wait()
	return e
}

// publics are the names that the bridge would claim.
func (b *Bridge) publics() (all []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, id := range b.services.IDs() {
		all = append(all, b.services.Offered(id).Public.String())
	}
	return all
}

// examineWay is one try of a race.
func (u *uplink) examineWay(ctx context.Context, w way) Try {
	ctx, cancel := context.WithTimeout(ctx, examineLimit)
	defer cancel()
	t := Try{Target: w.target, Addr: w.addr}
	if w.way == nil {
		t.Target = net.JoinHostPort(w.host, strconv.Itoa(int(w.addr.Port())))
	}
	begun := time.Now()
	heard := make(chan news, 2)
	u.try(ctx, 0, w, func(ctx context.Context, sock net.Conn) (*auth.Conn, bool, error) {
		t.Reached = true
		if at, ok := sock.LocalAddr().(*net.TCPAddr); ok {
			t.Local = at.AddrPort().Addr().Unmap()
		}
		conn, err := link.Authenticate(ctx, sock, u.b.auth(), examineLimit)
		return conn, false, err
	}, heard)
	close(heard)
	for n := range heard {
		switch {
		case n.took > 0:
			t.TCP, w.connected = n.took, true
		case n.err != nil:
			t.Err = u.tryError(w, t.Reached, n.err)
		default:
			t.Proven = time.Since(begun)
			t.Answer, t.AskErr = link.Ask(ctx, n.conn, u.b.publics())
		}
	}
	return t
}

// tryError is why one way led to no proxy, with the remedy.
func (u *uplink) tryError(w way, reached bool, err error) error {
	switch _, said := errors.AsType[*via.Error](err); {
	case w.way != nil && w.connected && !reached && errors.Is(err, context.DeadlineExceeded):
		return w.way.Silent(w.target, examineLimit)
	case w.way != nil && !said:
		return u.wayError(w, err)
	case w.way != nil || w.connected:
		return err
	}
	return hinted(err, dialHint(err))
}
