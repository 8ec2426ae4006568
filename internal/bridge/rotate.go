package bridge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"reverser/internal/auth"
	"reverser/internal/link"
)

// tryLimit is how long a proxy has to say what it thinks of a secret. One that says nothing is away, and says so to the next connection.
const tryLimit = 3 * time.Second

// trySecret reports whether a secret is another one than that which is proven at present, zero apart. The error says that a proxy refuses
// it: it must not take the place of one that is good. Nothing that this does counts as a use of the secret.
func (b *Bridge) trySecret(ctx context.Context, secret [32]byte) (another bool, err error) {
	if secret == ([32]byte{}) || b.proves(secret) {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, tryLimit)
	defer cancel()
	refused := make([]error, len(b.uplinks))
	var trying sync.WaitGroup
	for i, u := range b.uplinks {
		trying.Go(func() { refused[i] = u.trySecret(ctx, secret) })
	}
	trying.Wait()
	return true, errors.Join(refused...)
}

// proves reports whether connections prove a secret. Those of a bridge that has not begun to dial will.
func (b *Bridge) proves(secret [32]byte) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.uplinks[0].dialer == nil {
		b.cfg.Token.Secret = secret
		return true
	}
	return b.uplinks[0].dialer.Proves(secret)
}

// trySecret makes a connection that proves a secret, and ends it. It returns an error only if the proxy refuses the secret.
func (u *uplink) trySecret(ctx context.Context, secret [32]byte) error {
	cfg := u.b.auth()
	cfg.Secret = secret
	conn, err := u.dial(ctx, false, 0, func(ctx context.Context, sock net.Conn) (*auth.Conn, bool, error) {
		conn, err := link.Authenticate(ctx, sock, cfg, tryLimit)
		return conn, false, err
	})
	if conn != nil {
		conn.Close()
	}
	if errors.Is(err, auth.ErrRefused) {
		return fmt.Errorf("the new token is refused by the proxy at %s, and the present one goes on: %w", u.proxy, err)
	}
	return nil
}
