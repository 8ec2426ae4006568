package link

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/auth"
	"reverser/internal/memnet"
	"reverser/internal/wire"
)

// ask asks the proxy of a world, as another process than the bridge.
func (w *world) ask(t *testing.T, public ...string) (Answer, error) {
	t.Helper()
	sock, err := w.net.Dial(t.Context(), "proxy:3010")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := auth.Client(t.Context(), sock, auth.ClientConfig{
		KeyID: [16]byte{1}, Secret: [32]byte{2}, Pin: auth.Pin(testIdentity().Leaf.RawSubjectPublicKeyInfo), Instance: [16]byte{99},
	})
	if err != nil {
		t.Fatal(err)
	}
	return Ask(t.Context(), conn, public)
}

// TestAsk: who asks is told what a bridge would be told, and neither a session that lives nor one that is away notices.
func TestAsk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		defer w.close()
		w.host.cfg.Ask = func(key [16]byte, public []string) (why []string) {
			for _, p := range public {
				if why = append(why, ""); p != "tcp/9000" {
					why[len(why)-1] = p + " denied:\nby the policy"
				}
			}
			return why
		}
		before := w.px.link
		a, b := w.open()
		got, err := w.ask(t, "tcp/80", "tcp/9000")
		if err != nil || !errors.Is(got.Err, ErrDuplicate) || !slices.Equal(got.Why, []string{"tcp/80 denied: by the policy", ""}) {
			t.Errorf("Ask = %+v, %v; want that another bridge has the key, and tcp/80 denied", got, err)
		}
		if got, err := w.ask(t); err != nil || !errors.Is(got.Err, ErrDuplicate) || len(got.Why) != 0 {
			t.Errorf("Ask for nothing = %+v, %v", got, err)
		}

		// The bridge is away: another one would take its place, and who asks does not.
		for _, c := range w.net.Conns() {
			c.BlackHole(memnet.Both)
		}
		w.net.Reset()
		if got, err := w.ask(t, "tcp/9000"); err != nil || got.Err != nil || !slices.Equal(got.Why, []string{""}) {
			t.Errorf("Ask while the bridge is away = %+v, %v; want that a session would begin", got, err)
		}
		if w.px.link != before || before.Err() != nil || len(w.host.Links()) != 1 {
			t.Errorf("the session that was there ended (%v), or there are more: %d", before.Err(), len(w.host.Links()))
		}
		time.Sleep(10 * time.Second) // it is back
		a.Write([]byte("x"))
		a.CloseWrite()
		buf := make([]byte, 2)
		if n, err := b.Read(buf); n != 1 || err != nil {
			t.Errorf("Read = %d, %v; want the byte that crossed behind the break", n, err)
		}

		w.host.cfg.Draining = func() bool { return true }
		if got, err := w.ask(t, "tcp/9000"); err != nil || got.Err == nil || !strings.Contains(got.Err.Error(), "stopping") {
			t.Errorf("Ask while the proxy is stopping = %+v, %v", got, err)
		}
		w.host.cfg.Admit = func([16]byte, [32]byte, bool) error { return errors.New("the key was removed") }
		if got, err := w.ask(t, "tcp/9000"); err != nil || got.Err == nil || !strings.Contains(got.Err.Error(), "removed") || len(got.Why) != 0 {
			t.Errorf("Ask with a key that was removed meanwhile = %+v, %v", got, err)
		}
	})
}

// TestAskForMany: of more names than a question holds the first are asked for, and of longer answers the first are told.
func TestAskForMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		defer w.close()
		asked := 0
		long := strings.Repeat("x", 200)
		w.host.cfg.Ask = func(_ [16]byte, public []string) []string {
			asked += len(public)
			return slices.Repeat([]string{long}, len(public))
		}
		got, err := w.ask(t, slices.Repeat([]string{"tcp/9000"}, 5000)...)
		if err != nil || asked != wire.MaxAsk/len("tcp/9000\n") || len(got.Why) != wire.MaxAsk/(len(long)+1) {
			t.Errorf("asked for %d, answered %d, %v", asked, len(got.Why), err)
		}
	})
}

// TestAskGivesWay: very many names are looked up a few at a time, each time in a turn, and at the key's pace.
func TestAskGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before := turns
		turns = newTurnstile(func() int { return 2 })
		turns.fit()
		defer func() { turns = before }()
		w := newWorld(t, 0)
		defer w.close()
		calls := 0
		w.host.cfg.Ask = func(_ [16]byte, public []string) []string {
			if calls++; len(public) > askedAtOnce {
				t.Errorf("%d names were looked up at once, want at most %d", len(public), askedAtOnce)
			}
			if len(turns.free) != 0 {
				t.Error("names were looked up outside of a turn")
			}
			return make([]string, len(public))
		}
		at := tenantCrowd * runtime.GOMAXPROCS(0)
		begin := time.Now()
		for calls < 10*at {
			if got, err := w.ask(t, slices.Repeat([]string{"a"}, 1000)...); err != nil || len(got.Why) != 1000 {
				t.Fatalf("Ask = %d answers, %v", len(got.Why), err)
			}
		}
		if d := time.Since(begin); d < 9*Pause {
			t.Errorf("%d parts were looked up in %s, want pauses of %s between them", calls, d, Pause)
		}
	})
}

// TestAskAnOlderProxy: one that does not know the question refuses it by name.
func TestAskAnOlderProxy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &memnet.Net{}
		ln, err := n.Listen("proxy:3010")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		go func() {
			sock, err := ln.Accept()
			if err != nil {
				return
			}
			cfg := &auth.ServerConfig{Identity: testIdentity(), Lookup: func([16]byte) ([32]byte, bool) { return [32]byte{2}, true }}
			conn, err := auth.Server(sock, cfg.TLS(), cfg)
			if err != nil {
				return
			}
			defer conn.Close()
			if _, err := readFrame(conn, make([]byte, attachScratch)); err == nil {
				conn.Write(wire.AppendAttached(nil, 1, wire.Attached{Status: wire.StatusUnsupported, Text: "field 128"}))
			}
		}()
		sock, err := n.Dial(context.Background(), "proxy:3010")
		if err != nil {
			t.Fatal(err)
		}
		conn, err := auth.Client(t.Context(), sock, auth.ClientConfig{KeyID: [16]byte{1}, Secret: [32]byte{2}, Pin: auth.Pin(testIdentity().Leaf.RawSubjectPublicKeyInfo)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Ask(t.Context(), conn, nil); !errors.Is(err, ErrNotAsked) {
			t.Errorf("Ask = %v, want ErrNotAsked", err)
		}
	})
}
