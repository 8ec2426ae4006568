package main

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
)

// The demo stays, at the address that it prints, until it is asked to end.
func TestDemoStays(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	t.Setenv("TMP", t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out, w := io.Pipe()
	c := &cli{stdout: w, stderr: io.Discard}
	done := make(chan error, 1)
	go func() {
		err := c.demo(ctx, false, "")
		w.Close()
		done <- err
	}()

	url := ""
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if m := regexp.MustCompile(`^  (http://\S+)$`).FindStringSubmatch(lines.Text()); m != nil {
			url = m[1]
		}
		if strings.Contains(lines.Text(), "Ctrl-C ends the demo") {
			break
		}
	}
	if url == "" {
		cancel()
		t.Fatalf("the demo printed no URL and ended with %v", <-done)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	page, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || !strings.Contains(string(page), "came through the tunnel") {
		t.Errorf("GET %s = %q, %v", url, page, err)
	}
	go io.Copy(io.Discard, out)
	cancel()
	if err := <-done; err != nil {
		t.Errorf("demo = %v, want nil after it was asked to end", err)
	}
	w.Close()
}
