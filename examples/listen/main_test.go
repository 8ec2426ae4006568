package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"testing"

	"reverser/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestServe(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	all := map[net.Listener]http.HandlerFunc{}
	for _, text := range []string{"one", "two"} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		all[ln] = func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text) }
	}
	done := make(chan error, 1)
	go func() { done <- serve(ctx, all) }()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	got := map[string]bool{}
	for ln := range all {
		resp, err := client.Get("http://" + ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		got[string(b)] = true
	}
	if !got["one"] || !got["two"] {
		t.Errorf("got %v, want both answers", got)
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("serve = %v", err)
	}
}
