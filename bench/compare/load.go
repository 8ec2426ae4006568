package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// connections is how many wrk keeps busy.
const connections = 50

// A load is a row that a program measures by making traffic.
type load struct {
	kind
	run func(ctx context.Context, b *bed, c *contender, seconds int) (v float64, note string, err error)
}

var loads = []load{
	{kind{Name: "bulk up", Unit: "Gbit/s", Goal: 0.8, goal: ratioAtLeast}, bulk()},
	{kind{Name: "bulk down", Unit: "Gbit/s", Goal: 0.8, goal: ratioAtLeast}, bulk("-R")},
	{kind{Name: "requests, kept alive", Unit: "1000/s", Goal: 0.7, goal: ratioAtLeast}, requests()},
	{kind{Name: "requests, one per connection", Unit: "1000/s"}, requests("-H", "Connection: close")},
}

// bulk measures one stream. Up is from the user to the server.
func bulk(flags ...string) func(context.Context, *bed, *contender, int) (float64, string, error) {
	return func(ctx context.Context, b *bed, c *contender, seconds int) (float64, string, error) {
		// The first second, in which windows grow, does not count.
		args := append([]string{"-t", strconv.Itoa(seconds), "-O", "1"}, flags...)
		for try := 1; ; try++ {
			v, err := b.iperf(ctx, c.bulk, time.Duration(seconds)*time.Second, args...)
			if err == nil || try == 10 || !errors.Is(err, errBusy) {
				return v, "", err
			}
			// The end of the test before is still on its way.
			if err := sleep(ctx, 200*time.Millisecond); err != nil {
				return 0, "", err
			}
		}
	}
}

// tryIperf tells whether the iperf3 server answers at addr.
func (b *bed) tryIperf(ctx context.Context, addr string) error {
	_, err := b.iperf(ctx, addr, 0, "-n", "1K")
	return err
}

func (b *bed) iperf(ctx context.Context, addr string, lasts time.Duration, args ...string) (float64, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return 0, err
	}
	text, err := b.output(ctx, lasts, "iperf3", append([]string{"-J", "-c", host, "-p", port}, args...)...)
	if len(text) == 0 && err != nil {
		return 0, err
	}
	return parseIperf(text) // its own words say more than its exit code
}

var errBusy = errors.New("the server is busy running a test")

// parseIperf returns how many Gbit/s arrived, from what iperf3 -J printed.
func parseIperf(text []byte) (float64, error) {
	var r struct {
		Error string
		End   struct {
			Received *struct {
				Bits float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		}
	}
	switch err := json.Unmarshal(text, &r); {
	case err != nil:
		return 0, fmt.Errorf("read the output of iperf3 -J: %w: %.200q", err, text)
	case strings.Contains(r.Error, "busy"):
		return 0, fmt.Errorf("iperf3: %w", errBusy)
	case r.Error != "":
		return 0, fmt.Errorf("iperf3: %s", strings.TrimPrefix(r.Error, "error - "))
	case r.End.Received == nil:
		return 0, fmt.Errorf("the output of iperf3 -J has no end.sum_received: %.200q", text)
	}
	return r.End.Received.Bits / 1e9, nil
}

// requests measures HTTP requests through wrk's one thread: nginx and both processes of a contender want the other
// cores.
func requests(flags ...string) func(context.Context, *bed, *contender, int) (float64, string, error) {
	return func(ctx context.Context, b *bed, c *contender, seconds int) (float64, string, error) {
		args := append([]string{"-t", "1", "-c", strconv.Itoa(connections), "-d", strconv.Itoa(seconds) + "s"}, flags...)
		text, err := b.output(ctx, time.Duration(seconds)*time.Second, "wrk", append(args, "http://"+c.http+"/")...)
		if err != nil {
			return 0, "", err
		}
		v, note, err := parseWrk(text)
		return v / 1000, note, err
	}
}

var (
	wrkRate   = regexp.MustCompile(`(?m)^Requests/sec:\s+([0-9.]+)$`)
	wrkErrors = regexp.MustCompile(`(?m)^\s*(Socket errors: .*|Non-2xx or 3xx responses: .*)$`)
)

// parseWrk returns the requests per second, and as a note the errors among them, from what wrk printed.
func parseWrk(text []byte) (rate float64, note string, err error) {
	m := wrkRate.FindSubmatch(text)
	if m == nil {
		return 0, "", fmt.Errorf("the output of wrk has no Requests/sec: %.200q", text)
	}
	if rate, err = strconv.ParseFloat(string(m[1]), 64); err != nil {
		return 0, "", fmt.Errorf("read the output of wrk: %w", err)
	}
	var notes []string
	for _, e := range wrkErrors.FindAllSubmatch(text, -1) {
		notes = append(notes, string(e[1]))
	}
	if rate == 0 {
		return 0, "", fmt.Errorf("wrk got no response: %s", strings.Join(notes, ", "))
	}
	return rate, strings.Join(notes, ", "), nil
}

// output runs a tool that should take as long as lasts, and returns its stdout, what there is of it after an error
// too.
func (b *bed) output(ctx context.Context, lasts time.Duration, tool string, args ...string) ([]byte, error) {
	limit := lasts + 15*time.Second
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := command(ctx, b.tools[tool], args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s did not end within %v", tool, limit)
	case err != nil:
		err = fmt.Errorf("%s: %w: %s", tool, err, strings.TrimSpace(stdout.String()+stderr.String()))
	}
	return stdout.Bytes(), err
}
