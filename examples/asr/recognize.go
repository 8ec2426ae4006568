package asr

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os/exec"
	"strings"
	"time"
)

// A Recognizer turns audio into one line of text. It reads while the audio comes in.
type Recognizer func(ctx context.Context, audio io.Reader) (string, error)

// PocketSphinx recognises English with CMU PocketSphinx, the given program of
// Debian's pocketsphinx package ("" means pocketsphinx_continuous), and the model of
// its package pocketsphinx-en-us.
func PocketSphinx(program string) (Recognizer, error) {
	if program == "" {
		program = "pocketsphinx_continuous"
	}
	path, err := exec.LookPath(program)
	if err != nil {
		return nil, fmt.Errorf("find the recogniser %s: %w; on Debian: apt install pocketsphinx pocketsphinx-en-us", program, err)
	}
	return func(ctx context.Context, audio io.Reader) (string, error) {
		cmd := exec.CommandContext(ctx, path, "-infile", "/dev/stdin", "-logfn", "/dev/null")
		cmd.Stdin = audio
		cmd.WaitDelay = time.Second // a killed recogniser does not wait for audio
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("run %s: %w", program, errors.Join(err, lastLine(stderr.String())))
		}
		// One line for each utterance.
		return strings.Join(strings.Fields(string(out)), " "), nil
	}, nil
}

// StandIn is for machines without a recogniser: instead of a transcript it answers how much audio came, and its checksum.
func StandIn(_ context.Context, audio io.Reader) (string, error) {
	sum := crc32.NewIEEE()
	n, err := io.Copy(sum, audio)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%.1f seconds of audio, checksum %08x", float64(n)/BytesPerSecond, sum.Sum32()), nil
}

func lastLine(s string) error {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	if last := lines[len(lines)-1]; last != "" {
		return errors.New(last)
	}
	return nil
}
