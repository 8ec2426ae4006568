package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// helpers are what this program does in processes of its own, so that no figure contains what another part of the
// measurement costs. The first argument names one.
var helpers = map[string]func(ctx context.Context, args []string, in io.Reader, out io.Writer) error{
	"serve": serveHelper, // ADDR: the echo server
	"relay": relayHelper, // FROM=TO...: a plaintext relay that leaves the copying to the kernel
	"type":  typeHelper,  // ADDR COUNT PAUSE: keystrokes on one connection
	"knock": knockHelper, // ADDR COUNT PAUSE: new connections
	"fleet": fleetHelper, // bridges
	"pump":  pumpHelper,  // ADDR CONNS SIZE DURATION: messages on all connections at once
}

// runHelper returns the exit code.
func runHelper(args []string, in io.Reader, out, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := helpers[args[0]](ctx, args[1:], in, out); err != nil {
		fmt.Fprintf(stderr, "compare %s: %v\n", args[0], err)
		return 1
	}
	return 0
}

var errArgs = errors.New("wrong arguments")

func serveHelper(ctx context.Context, args []string, _ io.Reader, _ io.Writer) error {
	if len(args) != 1 {
		return errArgs
	}
	e, err := listenEcho(args[0])
	if err != nil {
		return err
	}
	<-ctx.Done()
	e.close()
	return nil
}

// relayHelper is the bare limit of what a relay can reach: io.Copy between two TCP connections becomes splice(2).
func relayHelper(ctx context.Context, args []string, _ io.Reader, _ io.Writer) error {
	for _, arg := range args {
		from, to, ok := strings.Cut(arg, "=")
		if !ok {
			return errArgs
		}
		ln, err := net.Listen("tcp", from)
		if err != nil {
			return err
		}
		go func() {
			for {
				user, err := ln.Accept()
				if err != nil {
					return // the process ends
				}
				go splice(user.(*net.TCPConn), to)
			}
		}()
	}
	<-ctx.Done()
	return nil
}

func splice(user *net.TCPConn, to string) {
	defer user.Close()
	conn, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer conn.Close()
	server := conn.(*net.TCPConn)
	copyEnd := func(to, from *net.TCPConn) {
		_, _ = io.Copy(to, from) // the measuring program sees what is missing
		_ = to.CloseWrite()
	}
	var wg sync.WaitGroup
	wg.Go(func() { copyEnd(server, user) })
	copyEnd(user, server)
	wg.Wait()
}

// latencies is what type and knock print, in ms.
type latencies struct{ P50, P99, Max float64 }

func summarize(took []time.Duration) (l latencies, err error) {
	if len(took) == 0 {
		return l, errors.New("no echo came back")
	}
	slices.Sort(took)
	ms := func(q float64) float64 { return took[min(len(took)-1, int(q*float64(len(took))))].Seconds() * 1e3 }
	return latencies{ms(.5), ms(.99), ms(1)}, nil
}

func echoArgs(args []string) (addr string, count int, pause time.Duration, err error) {
	if len(args) != 3 {
		return "", 0, 0, errArgs
	}
	if count, err = strconv.Atoi(args[1]); err == nil {
		pause, err = time.ParseDuration(args[2])
	}
	return args[0], count, pause, err
}

// typeHelper sends at fixed times, whether the echoes before have come or not: somebody who waits for a late echo would
// otherwise send fewer keystrokes just when they take long. Each is timed from when it was due.
func typeHelper(ctx context.Context, args []string, _ io.Reader, out io.Writer) error {
	addr, count, pause, err := echoArgs(args)
	if err != nil {
		return err
	}
	conn, err := here{}.Dial(ctx, addr)
	if err != nil {
		return err
	}
	defer func() { _ = conn.SetLinger(0); conn.Close() }()
	if err := ping(conn); err != nil {
		return err
	}
	_ = conn.SetDeadline(time.Now().Add(time.Duration(count)*pause + patience))
	start := time.Now()
	due := func(i int) time.Time { return start.Add(time.Duration(i+1) * pause) }
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for i := range count {
			time.Sleep(time.Until(due(i)))
			if _, err := conn.Write([]byte{'k'}); err != nil {
				return // the reader says what is wrong
			}
		}
	})
	took := make([]time.Duration, 0, count)
	var buf [256]byte
	for len(took) < count {
		n, err := conn.Read(buf[:])
		if err != nil {
			conn.Close()
			return fmt.Errorf("after %d of %d echoes: %w", len(took), count, err)
		}
		for range n {
			took = append(took, time.Since(due(len(took))))
		}
	}
	l, err := summarize(took)
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(l)
}

// knockHelper times new connections, from before the dial to the first byte of the answer.
func knockHelper(ctx context.Context, args []string, _ io.Reader, out io.Writer) error {
	addr, count, pause, err := echoArgs(args)
	if err != nil {
		return err
	}
	var took []time.Duration
	for range count {
		start := time.Now()
		conn, err := here{}.Dial(ctx, addr)
		if err != nil {
			return err
		}
		err = ping(conn)
		took = append(took, time.Since(start))
		_ = conn.SetLinger(0)
		conn.Close()
		if err != nil {
			return err
		}
		time.Sleep(pause)
	}
	l, err := summarize(took)
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(l)
}

// pumped is what pump prints at its end.
type pumped struct{ Echoes int64 }

// pumpHelper opens connections, says so with a line, waits for a line, and then keeps one message under way on each.
func pumpHelper(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	if len(args) != 4 {
		return errArgs
	}
	n, err1 := strconv.Atoi(args[1])
	size, err2 := strconv.Atoi(args[2])
	lasts, err3 := time.ParseDuration(args[3])
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	conns, err := dialMany(ctx, here{}, args[0], n)
	defer closeMany(conns)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "ready")
	if _, err := bufio.NewReader(in).ReadString('\n'); err != nil {
		return err
	}
	var wg sync.WaitGroup
	var echoes atomic.Int64
	var failed atomic.Pointer[error]
	message := make([]byte, size)
	end := time.Now().Add(lasts)
	for _, conn := range conns {
		_ = conn.SetDeadline(end)
		wg.Go(func() {
			buf := make([]byte, min(size, 4<<10))
			for {
				_, err := conn.Write(message)
				for left := size; left > 0 && err == nil; {
					var n int
					n, err = conn.Read(buf[:min(left, len(buf))])
					left -= n
				}
				if err != nil {
					if !errors.Is(err, os.ErrDeadlineExceeded) {
						failed.Store(&err)
					}
					return
				}
				echoes.Add(1)
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	return json.NewEncoder(out).Encode(pumped{echoes.Load()})
}
