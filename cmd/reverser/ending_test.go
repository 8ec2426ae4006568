package main

import (
	"context"
	"crypto/x509"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"reverser/internal/config"
	"reverser/internal/state"
	"reverser/internal/status"
)

// TestReloadAsksForCertificates: at either role, a reload has certificates asked for again that were refused.
func TestReloadAsksForCertificates(t *testing.T) {
	asked := make(chan struct{}, 1)
	page := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		select {
		case asked <- struct{}{}:
		default:
		}
		io.WriteString(w, "{}") // no directory of an authority
	}))
	defer page.Close()
	dir, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	set := config.Settings{}
	set.ACME.Directory, set.ACME.Roots = page.URL, x509.NewCertPool()
	set.ACME.Roots.AddCert(page.Certificate())
	log := slog.New(slog.DiscardHandler)
	for name, role := range map[string]func(*authority) applier{
		"proxy":  func(a *authority) applier { return &proxyRole{authority: a} },
		"bridge": func(a *authority) applier { return bridgeRole{endings: &endings{authority: a}} },
	} {
		t.Run(name, func(t *testing.T) {
			a := newAuthority(set.Common, false, dir, nil, nil, log)
			a.Want(map[string]string{"app.example.com": "nas"})
			ctx, stop := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			defer wg.Wait()
			defer stop()
			wg.Go(func() { a.run(ctx) })
			<-asked
			for !slices.ContainsFunc(a.Status(), func(c status.Certificate) bool { return c.Error != "" }) {
				time.Sleep(time.Millisecond)
			}
			select { // the tries of one asking
			case <-asked:
			default:
			}
			lines := newAccessLog(log)
			defer lines.Close()
			r := newReloader(&fakeSource{}, role(a), config.Settings{}, nil, lines, log)
			if _, err := r.Reload(ctx); err != nil {
				t.Fatal(err)
			}
			<-asked
		})
	}
}
