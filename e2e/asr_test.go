package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"reverser/examples/asr"
)

// programsOfASR are the example's programs that take part: those of Linux, and those of Windows where .ci/wine names them.
func programsOfASR(t *testing.T, name string) map[string][]string {
	programs := map[string][]string{"here": {build(t, "./examples/asr/"+name)}}
	if words := strings.Fields(os.Getenv("REVERSER_E2E_ASR_" + strings.ToUpper(name))); len(words) > 0 {
		programs["Windows"] = words
	}
	return programs
}

// TestSpeechWithoutARecogniser is the whole picture where no recogniser is: a stand-in tells what it heard. In .ci/wine that is a
// program of Windows, beside the bridge, and clients are of both systems.
func TestSpeechWithoutARecogniser(t *testing.T) {
	t.Parallel()
	servers, clients := programsOfASR(t, "server"), programsOfASR(t, "client")
	server, ok := servers["Windows"]
	if !ok {
		server = servers["here"]
	}
	port := freePort(t)
	s := start(t, "ASR server", server[0], nil, append(server[1:], "--listen", loopback(port), "--recognizer", "stand-in", "--parallel", "2")...)
	s.awaitOutput("listening")
	tun := startTunnel(t, strconv.Itoa(port))

	dir := t.TempDir()
	var wg sync.WaitGroup
	for system, client := range clients {
		for i := range 4 {
			file := filepath.Join(dir, system+strconv.Itoa(i)+".raw")
			randomFile(t, file, int64(1+i)*asr.BytesPerSecond/2)
			audio, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			want, err := asr.StandIn(t.Context(), bytes.NewReader(audio))
			if err != nil {
				t.Fatal(err)
			}
			args := append(client[1:], "--addr", tun.addr(), fmt.Sprintf("--real-time=%t", i%2 == 0), file)
			c := start(t, "ASR client", client[0], nil, args...)
			wg.Go(func() {
				if code, got := c.awaitEnd(), strings.TrimSpace(c.Stdout.String()); code != 0 || got != want {
					t.Errorf("client of %s: %q, exit code %d; want %q", system, got, code, want)
				}
			})
		}
	}
	wg.Wait()
}

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
