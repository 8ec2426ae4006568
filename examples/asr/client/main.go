// Command client streams speech to the server and prints the transcript.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"

	"reverser/examples/asr"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:9904", "`address` of the server or of the tunnel")
	say := flag.String("say", "", "`text` to speak by espeak-ng, instead of a file")
	save := flag.String("save", "", "write the audio to this `file` (16 kHz mono, raw) and send nothing")
	realTime := flag.Bool("real-time", false, "send as fast as the audio was spoken")
	flag.Usage = func() {
		fmt.Fprint(os.Stderr, "usage: client [flags] FILE.wav|FILE.raw\n       client [flags] --say TEXT\n\nA .raw file is 16 kHz mono 16-bit audio; any other file is converted by sox.\n\n")
		flag.PrintDefaults()
	}
	flag.Parse()
	if (*say == "") == (flag.NArg() == 0) || flag.NArg() > 1 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *addr, *say, flag.Arg(0), *save, *realTime); err != nil {
		fmt.Fprintln(os.Stderr, "client:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, addr, say, file, save string, realTime bool) error {
	audio, err := open(ctx, say, file)
	if err != nil {
		return err
	}
	if save != "" {
		b, err := io.ReadAll(audio)
		if err != nil {
			return fmt.Errorf("read audio: %w", err)
		}
		return os.WriteFile(save, b, 0o644)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	text, err := asr.Transcribe(ctx, conn, audio, realTime)
	if err != nil {
		return err
	}
	fmt.Println(text)
	return nil
}

// open returns the audio of a file or of spoken text.
func open(ctx context.Context, say, file string) (io.Reader, error) {
	if say != "" {
		// A slow, low voice is the one that the model understands best.
		wav, err := command(ctx, nil, "espeak-ng", "-v", "en-us", "-s", "150", "-p", "30", "--stdout", say)
		if err != nil {
			return nil, err
		}
		return toRaw(ctx, bytes.NewReader(wav), "-t", "wav", "-")
	}
	if strings.EqualFold(filepath.Ext(file), ".raw") {
		b, err := os.ReadFile(file)
		return bytes.NewReader(b), err
	}
	return toRaw(ctx, nil, file)
}

// toRaw converts by sox, with half a second of silence around it for the
// recogniser to find the level of the noise.
func toRaw(ctx context.Context, stdin io.Reader, input ...string) (io.Reader, error) {
	args := append(append([]string{"-q", "-D"}, input...),
		"-r", strconv.Itoa(asr.SampleRate), "-c", "1", "-b", "16", "-e", "signed-integer", "-L", "-t", "raw", "-", "pad", "0.5", "0.5")
	raw, err := command(ctx, stdin, "sox", args...)
	return bytes.NewReader(raw), err
}

func command(ctx context.Context, stdin io.Reader, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = stdin
	out, err := cmd.Output()
	if errors.Is(err, exec.ErrNotFound) {
		return nil, fmt.Errorf("%w; on Debian: apt install %s", err, name)
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil, fmt.Errorf("run %s: %w: %s", name, err, bytes.TrimSpace(exit.Stderr))
	}
	return out, err
}
