package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// The demo stays, at the address that it prints, until it is asked to end. Its
// log is narrow enough to read, or one JSON object per line.
func TestDemoStays(t *testing.T) {
	for format, wantLine := range map[string]func(t *testing.T, line string){
		logText: wantNarrow,
		logJSON: func(t *testing.T, line string) {
			t.Helper()
			if !json.Valid([]byte(line)) {
				t.Errorf("a line that is no JSON object: %s", line)
			}
		},
	} {
		t.Run(format, func(t *testing.T) { testDemoStays(t, format, wantLine) })
	}
}

func testDemoStays(t *testing.T, format string, wantLine func(t *testing.T, line string)) {
	t.Setenv("TMPDIR", t.TempDir())
	t.Setenv("TMP", t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out, w := io.Pipe()
	var log syncBuffer
	c := &cli{stdout: w, stderr: &log, log: &log}
	done := make(chan error, 1)
	go func() {
		err := c.demo(ctx, false, format)
		w.Close()
		done <- err
	}()

	url := ""
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		wantNarrow(t, lines.Text())
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
	for ctx, stop := context.WithTimeout(ctx, time.Minute); ; {
		defer stop()
		if strings.Count(log.String(), "pair released") == 2 {
			break
		}
		if !pause(ctx, time.Millisecond) {
			t.Fatalf("the log shows\n%s\nwant the request's pair at both ends, and no other", log.String())
		}
	}
	for line := range strings.Lines(log.String()) {
		wantLine(t, strings.TrimSuffix(line, "\n"))
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("demo = %v, want nil after it was asked to end", err)
	}
	w.Close()
}

// wantNarrow wants a line to fit on a terminal, but for a path that the system
// chose.
func wantNarrow(t *testing.T, line string) {
	t.Helper()
	if n := len([]rune(line)); n > demoWidth && !strings.Contains(line, "--state ") {
		t.Errorf("a line of %d columns, want at most %d: %s", n, demoWidth, line)
	}
}

// syncBuffer is a bytes.Buffer for several goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func TestFolder(t *testing.T) {
	for in, want := range map[string]string{
		"short line\n":                          "short line\n",
		"0123 56789 1\n":                        "0123 56789\n  1\n",
		"0123 567890 1\n":                       "0123\n  567890 1\n",
		"averylongword andanotherone x\nnext\n": "averylongword\n  andanotherone\n  x\nnext\n",
		"\x1b[92m0123\x1b[0m 56789 1\n":         "\x1b[92m0123\x1b[0m 56789\n  1\n",
		"":                                      "",
	} {
		var out bytes.Buffer
		if n, err := (folder{&out, 10, "  "}).Write([]byte(in)); n != len(in) || err != nil || out.String() != want {
			t.Errorf("%q became %q, %d, %v; want %q", in, out.String(), n, err, want)
		}
	}
}
