package attacks

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// What a stranger says before it is silent.
type Words int

const (
	Nothing Words = iota // connect, and wait
	Half                 // the beginning of a TLS record
	Hello                // a whole ClientHello, for which the server has to compute an answer that nobody reads
	Ask                  // a whole request of HTTP for a name that nobody serves
)

func (w Words) String() string {
	return [...]string{"silent", "half a hello", "a whole hello", "a request for nobody"}[w]
}

// Strangers connect to an address without a key, so many a second, and keep what they get for as long as they are let.
type Strangers struct {
	Addr netip.AddrPort
	Rate int          // connections a second
	From []netip.Addr // take turns; none: any address
	Says Words

	Came, Failed atomic.Int64 // connections that were begun, and those for which there was no socket or no time
	Answered     atomic.Int64 // those that got a byte

	stop chan struct{}
	wg   sync.WaitGroup

	mu   sync.Mutex
	held map[net.Conn]struct{} // guarded by mu, as all below
	old  []net.Conn            // of held, the oldest first, with some that have ended
	over bool
}

// mostHeld is how many connections strangers hold at once. Beyond it they close the oldest one.
const mostHeld = 3000

// beat is how often strangers come.
const beat = 10 * time.Millisecond

// Start begins the flood.
func (s *Strangers) Start() {
	s.stop, s.held, s.over = make(chan struct{}), make(map[net.Conn]struct{}), false
	s.wg.Go(s.run)
}

// Stop ends the flood and all its connections.
func (s *Strangers) Stop() {
	close(s.stop)
	s.mu.Lock()
	s.over = true
	for c := range s.held {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

func (s *Strangers) run() {
	tick := time.NewTicker(beat)
	defer tick.Stop()
	begin, n := time.Now(), 0
	busy := make(chan struct{}, 16) // beats under way, where the machine is slow
	for {
		select {
		case <-s.stop:
			return
		case <-tick.C:
		}
		due := int(time.Since(begin).Seconds()*float64(s.Rate)) - n
		due = min(due, s.Rate/10+1) // who was held up does not hurry afterwards
		first := n
		n += due
		select {
		case busy <- struct{}{}:
		default:
			s.Failed.Add(int64(due))
			continue
		}
		s.wg.Go(func() {
			for i := range due {
				s.come(first + i)
			}
			<-busy
		})
	}
}

// come is one stranger.
func (s *Strangers) come(i int) {
	var from netip.Addr
	if len(s.From) > 0 {
		from = s.From[i%len(s.From)]
	}
	conn, err := connect(s.Addr, from)
	if err != nil {
		s.Failed.Add(1)
		return
	}
	conn.(*net.TCPConn).SetLinger(0) // leaves nothing behind
	s.Came.Add(1)
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		conn.Close()
		return
	}
	s.held[conn] = struct{}{}
	s.old = append(s.old, conn)
	var oldest net.Conn
	for len(s.held) > mostHeld && oldest == nil {
		if _, ok := s.held[s.old[0]]; ok {
			oldest = s.old[0]
		}
		s.old = s.old[1:]
	}
	s.wg.Go(func() { s.stay(conn) })
	s.mu.Unlock()
	if oldest != nil {
		oldest.Close()
	}
}

// stay says what a stranger has to say and waits for the end.
func (s *Strangers) stay(conn net.Conn) {
	defer func() {
		conn.Close()
		s.mu.Lock()
		delete(s.held, conn)
		s.mu.Unlock()
	}()
	switch s.Says {
	case Half:
		conn.Write([]byte{0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03})
	case Hello:
		conn.Write(clientHello())
	case Ask:
		io.WriteString(conn, "GET / HTTP/1.1\r\nHost: nobody.example\r\nConnection: close\r\n\r\n")
	}
	b := make([]byte, 1024)
	for first := true; ; first = false {
		n, err := conn.Read(b)
		if first && n > 0 {
			s.Answered.Add(1)
		}
		if err != nil {
			return
		}
	}
}

// clientHello is the first message of a TLS client that any server answers.
var clientHello = sync.OnceValue(func() []byte {
	mine, theirs := net.Pipe()
	defer mine.Close()
	defer theirs.Close()
	var wg sync.WaitGroup
	wg.Go(func() {
		tls.Client(mine, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, NextProtos: []string{"reverser/1"}}).Handshake()
	})
	b := make([]byte, 16<<10)
	n, _ := theirs.Read(b)
	theirs.Close()
	wg.Wait()
	return b[:n]
})

// Blocks are n addresses of the loopback network, each in a /24 of its own.
func Blocks(n int) []netip.Addr {
	all := make([]netip.Addr, n)
	for i := range all {
		all[i] = netip.AddrFrom4([4]byte{127, byte(16 + i/250), byte(1 + i%250), 9})
	}
	return all
}

// Shout connects like a TLS client that names the protocols, and returns why the server did not go on, or that ctx has ended.
func Shout(ctx context.Context, addr, name string, protocols ...string) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	c := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, ServerName: name, NextProtos: protocols})
	if err := c.Handshake(); err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	_, err = c.Read(make([]byte, 1))
	return err
}
