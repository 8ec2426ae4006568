package e2e

import (
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// The scenario itself: several clients stream speech at once, and get through the
// tunnel the transcripts that they get directly.
func TestSpeechToText(t *testing.T) {
	t.Parallel()
	need(t,
		program{"pocketsphinx_continuous", "pocketsphinx"},
		program{"/usr/share/pocketsphinx/model/en-us/en-us.lm.bin", "pocketsphinx-en-us"},
		program{"espeak-ng", "espeak-ng"},
		program{"sox", "sox"})
	server, client := build(t, "./examples/asr/server"), build(t, "./examples/asr/client")
	port := freePort(t)
	s := start(t, "ASR server", server, nil, "--listen", loopback(port), "--parallel", "2")
	s.awaitOutput("listening")
	tun := startTunnel(t, strconv.Itoa(port))

	sentences := []string{"hello world", "the weather is nice today", "open the door please", "one two three four five"}
	dir := t.TempDir()
	direct := make([]string, len(sentences))
	for i, text := range sentences {
		file := filepath.Join(dir, strconv.Itoa(i)+".raw")
		run(t, client, "--say", text, "--save", file)
		direct[i] = run(t, client, "--addr", loopback(port), file)
		if len(strings.Fields(direct[i])) == 0 {
			t.Fatalf("%q directly: no transcript", text)
		}
	}
	// Twice each, all at once, one of the two as fast as it is spoken.
	clients := make([]*testProcess, 2*len(sentences))
	for i := range clients {
		args := []string{"--addr", tun.addr(), filepath.Join(dir, strconv.Itoa(i%len(sentences))+".raw")}
		if i < len(sentences) {
			args = append([]string{"--real-time"}, args...)
		}
		clients[i] = start(t, "ASR client", client, nil, args...)
	}
	var wg sync.WaitGroup
	for i, c := range clients {
		wg.Go(func() {
			code := c.awaitEndFor(5 * time.Minute) // ten recognitions, two at a time
			want := direct[i%len(sentences)]
			if got := c.Stdout.String(); code != 0 || got != want {
				t.Errorf("%q through the tunnel: %q, exit code %d; want %q", sentences[i%len(sentences)], got, code, want)
			}
		})
	}
	wg.Wait()
	t.Logf("transcripts: %q", direct)
}
