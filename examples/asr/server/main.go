// Command server is a speech-to-text server on TCP, in front of PocketSphinx.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"reverser/examples/asr"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:9904", "`address` to listen on")
	parallel := flag.Int("parallel", runtime.NumCPU(), "how many clients are recognised at a time; the others wait")
	maxAudio := flag.Duration("max-audio", 10*time.Minute, "longest audio of one client")
	silence := flag.Duration("silence", time.Minute, "how long a client may send nothing")
	program := flag.String("recognizer", "pocketsphinx_continuous", "`program` that recognises; stand-in answers length and checksum of the audio instead")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "server: %q is one argument too many; all settings are flags\n", flag.Arg(0))
		os.Exit(2)
	}
	recognize, err := asr.Recognizer(asr.StandIn), error(nil)
	if *program != "stand-in" {
		recognize, err = asr.PocketSphinx(*program)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(2)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	log.Info("listening", "address", l.Addr().String(), "parallel", *parallel)
	s := &asr.Server{Recognize: recognize, Parallel: *parallel, MaxAudio: *maxAudio, Silence: *silence, Log: log}
	if err := s.Serve(ctx, l); err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
}
