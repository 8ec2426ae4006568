package attacks

import (
	"crypto/rand"
	"crypto/tls"
	"net"
	"sync"

	"reverser/internal/auth"
	"reverser/internal/state"
	"reverser/internal/wire"
)

// A Proxy has the identity and the keys of a real one, and lies.
type Proxy struct {
	// Attached answers an ATTACH; nil: the session and each slot are let in.
	Attached func(a wire.Attach) wire.Attached
	// Handle is called for every frame that comes, but PING, from one goroutine for each connection. answer writes frames there.
	Handle func(slot int, f wire.Frame, answer func(frames []byte) error)

	ln   net.Listener
	auth *auth.ServerConfig
	tls  *tls.Config
	wg   sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{} // guarded by mu
}

// Steal takes identity and keys from a copy of a proxy's state directory and serves bridges at ln.
func (p *Proxy) Steal(dir string, ln net.Listener) error {
	d, err := state.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	identity, _, err := d.Identity()
	if err != nil {
		return err
	}
	keys, err := d.Keys()
	if err != nil {
		return err
	}
	secrets := make(map[[16]byte][32]byte)
	for _, k := range keys {
		secrets[k.ID] = k.Secret
	}
	p.auth = &auth.ServerConfig{Identity: identity, Lookup: func(id [16]byte) (secret [32]byte, ok bool) {
		secret, ok = secrets[id]
		return secret, ok
	}}
	rand.Read(p.auth.Instance[:])
	p.tls, p.ln, p.conns = p.auth.TLS(), ln, make(map[net.Conn]struct{})
	p.wg.Go(p.accept)
	return nil
}

func (p *Proxy) accept() {
	for {
		sock, err := p.ln.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		p.conns[sock] = struct{}{}
		p.mu.Unlock()
		p.wg.Go(func() {
			p.serve(sock)
			sock.Close()
			p.mu.Lock()
			delete(p.conns, sock)
			p.mu.Unlock()
		})
	}
}

func (p *Proxy) serve(sock net.Conn) {
	conn, err := auth.Server(sock, p.tls, p.auth)
	if err != nil {
		return
	}
	c := newFrames(conn)
	f, err := c.read()
	if err != nil || f.Type != wire.TypeAttach {
		return
	}
	a, err := wire.ParseAttach(f)
	if err != nil {
		return
	}
	answer := wire.Attached{Status: wire.StatusOK, Slot: a.Slot, Carriers: 4, Window: 1 << 16, MaxStreams: 4096}
	if p.Attached != nil {
		answer = p.Attached(a)
	}
	if c.write(wire.AppendAttached(nil, f.Offset, answer)) != nil || answer.Status != wire.StatusOK {
		return
	}
	c.serve(func(f wire.Frame) { p.Handle(int(a.Slot), f, c.write) })
}

// Close ends everything.
func (p *Proxy) Close() {
	p.ln.Close()
	p.mu.Lock()
	for c := range p.conns {
		c.Close()
	}
	p.mu.Unlock()
	p.wg.Wait()
}
