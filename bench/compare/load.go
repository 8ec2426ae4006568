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

type measurement = func(context.Context, *bed, *contender, settings) ([]float64, string, error)

// bulk measures streams at once. Up is from the user to the server. The figures are Gbit/s, and the CPU seconds of the
// processes between per GB, in all and each.
func bulk(streams int, flags ...string) measurement {
	return func(ctx context.Context, b *bed, c *contender, set settings) ([]float64, string, error) {
		// The first second, in which windows grow, does not count.
		args := append([]string{"-t", strconv.Itoa(set.Seconds), "-O", "1", "-P", strconv.Itoa(streams)}, flags...)
		then := c.cpu()
		r, err := b.iperf(ctx, c.bulk, time.Duration(set.Seconds)*time.Second, args...)
		if err != nil {
			return nil, "", err
		}
		figures := []float64{r.gbits, nothing, nothing, nothing}
		if c.name != direct {
			for i, s := range c.cpuSince(then) {
				figures[1+i] = s / (r.bytes / 1e9) // bytes of the first second too: they cost as much
			}
		}
		return figures, "", nil
	}
}

// farBulk measures one stream over a long way, in Mbit/s. The beginning, in which windows grow, takes longer there.
func farBulk(flags ...string) measurement {
	return func(ctx context.Context, b *bed, c *contender, set settings) ([]float64, string, error) {
		seconds, omit := max(set.Seconds, 2), min(set.Seconds, 3)
		if set.Size != "quick" {
			omit = 3
		}
		args := append([]string{"-t", strconv.Itoa(seconds), "-O", strconv.Itoa(omit)}, flags...)
		r, err := b.iperf(ctx, c.bulk, time.Duration(seconds+omit)*time.Second, args...)
		return []float64{r.gbits * 1e3}, "", err
	}
}

// tryIperf returns an error unless the iperf3 server answers at addr.
func (b *bed) tryIperf(ctx context.Context, addr string) error {
	_, err := b.iperfOnce(ctx, addr, 0, "-n", "1K")
	return err
}

// iperf tries again while the server is busy: the end of the test before may still be on its way.
func (b *bed) iperf(ctx context.Context, addr string, lasts time.Duration, args ...string) (iperfResult, error) {
	for try := 1; ; try++ {
		r, err := b.iperfOnce(ctx, addr, lasts, args...)
		if err == nil || try == 10 || !errors.Is(err, errBusy) {
			return r, err
		}
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return r, err
		}
	}
}

func (b *bed) iperfOnce(ctx context.Context, addr string, lasts time.Duration, args ...string) (r iperfResult, err error) {
	text, err := b.output(ctx, b.front, lasts, b.tools["iperf3"], iperfArgs(addr, args...)...)
	if len(text) == 0 && err != nil {
		return r, err
	}
	return parseIperf(text) // its own words say more than its exit code
}

func iperfArgs(addr string, args ...string) []string {
	ip, port, _ := net.SplitHostPort(addr)
	return append([]string{"-J", "-c", ip, "-p", port}, args...)
}

var errBusy = errors.New("the server is busy with the test before")

// busy matches what iperf3 says then. Where its server's word comes late, it is the reset behind it that is seen.
var busy = regexp.MustCompile(`busy|Connection reset by peer|control socket has closed unexpectedly`)

type iperfResult struct {
	gbits float64 // that arrived, without the omitted beginning
	bytes float64 // in all, as counted by the user's end
}

// parseIperf reads what iperf3 -J printed.
func parseIperf(text []byte) (res iperfResult, err error) {
	var r struct {
		Error     string
		Intervals []struct {
			Sum struct {
				Bytes, Seconds float64
				Omitted        bool
			}
		}
		End struct {
			Received *struct {
				Bits float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		}
	}
	switch err := json.Unmarshal(text, &r); {
	case err != nil:
		return res, fmt.Errorf("read the output of iperf3 -J: %w: %.200q", err, text)
	case busy.MatchString(r.Error):
		return res, fmt.Errorf("iperf3: %w: %s", errBusy, strings.TrimPrefix(r.Error, "error - "))
	case r.Error != "":
		return res, fmt.Errorf("iperf3: %s", strings.TrimPrefix(r.Error, "error - "))
	case r.End.Received == nil:
		return res, fmt.Errorf("the output of iperf3 -J has no end.sum_received: %.200q", text)
	}
	var bits, seconds float64
	for _, i := range r.Intervals {
		res.bytes += i.Sum.Bytes
		if !i.Sum.Omitted {
			bits += 8 * i.Sum.Bytes
			seconds += i.Sum.Seconds
		}
	}
	res.gbits = r.End.Received.Bits / 1e9
	// The server takes its own time for the omitted beginning. When it is late, which a slow path or a busy machine is
	// enough for, it leaves out most of what it has received; then what the user's end has counted is nearer to the truth.
	if counted := bits / seconds / 1e9; seconds > 0 && (res.gbits < 0.8*counted || res.gbits > 1.25*counted) {
		res.gbits = counted
	}
	return res, nil
}

// wrkScript makes wrk print what its own table leaves out.
const wrkScript = `done = function(summary, latency, requests)
	io.write(string.format("percentiles %d %d %d\n", latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
	io.write(string.format("responses %d\n", summary.requests))
end
`

// requests measures HTTP requests through wrk's one thread: nginx and both processes of a contender want the other
// cores. The figures are thousands per second, three percentiles in ms, and the CPU seconds of the processes between
// per 100,000, in all and each.
func requests(conns int, flags ...string) measurement {
	return func(ctx context.Context, b *bed, c *contender, set settings) ([]float64, string, error) {
		script, err := b.file("wrk.lua", wrkScript)
		if err != nil {
			return nil, "", err
		}
		args := append([]string{"-t", "1", "-c", strconv.Itoa(conns), "-d", strconv.Itoa(set.Seconds) + "s", "-s", script}, flags...)
		then := c.cpu()
		text, err := b.output(ctx, b.front, time.Duration(set.Seconds)*time.Second, b.tools["wrk"], append(args, "http://"+c.http+"/")...)
		if err != nil {
			return nil, "", err
		}
		r, err := parseWrk(text)
		if err != nil {
			return nil, "", err
		}
		figures := []float64{r.rate / 1000, r.p50, r.p99, r.p999, nothing, nothing, nothing}
		if c.name != direct {
			for i, s := range c.cpuSince(then) {
				figures[4+i] = s / (r.responses / 1e5)
			}
		}
		return figures, r.errors, nil
	}
}

type wrkResult struct {
	rate, responses float64
	p50, p99, p999  float64 // ms
	errors          string
}

var (
	wrkRate   = regexp.MustCompile(`(?m)^Requests/sec:\s+([0-9.]+)$`)
	wrkErrors = regexp.MustCompile(`(?m)^\s*(Socket errors: .*|Non-2xx or 3xx responses: .*)$`)
	wrkOurs   = regexp.MustCompile(`(?m)^percentiles (\d+) (\d+) (\d+)\nresponses (\d+)$`)
)

// parseWrk reads what wrk and wrkScript printed.
func parseWrk(text []byte) (r wrkResult, err error) {
	m := wrkRate.FindSubmatch(text)
	if m == nil {
		return r, fmt.Errorf("the output of wrk has no Requests/sec: %.200q", text)
	}
	rate, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		return r, fmt.Errorf("read the output of wrk: %w", err)
	}
	var notes []string
	for _, e := range wrkErrors.FindAllSubmatch(text, -1) {
		notes = append(notes, string(e[1]))
	}
	if rate == 0 {
		return r, fmt.Errorf("wrk got no response: %s", strings.Join(notes, ", "))
	}
	ours := wrkOurs.FindSubmatch(text)
	if ours == nil {
		return r, fmt.Errorf("the output of wrk has no percentiles: %.200q", text)
	}
	var n [4]float64
	for i := range n {
		n[i], _ = strconv.ParseFloat(string(ours[1+i]), 64) // digits
	}
	return wrkResult{rate, n[3], n[0] / 1e3, n[1] / 1e3, n[2] / 1e3, strings.Join(notes, ", ")}, nil
}

// output runs a program on a host that should take as long as lasts, and returns its stdout, what there is of it after
// an error too.
func (b *bed) output(ctx context.Context, at host, lasts time.Duration, path string, args ...string) ([]byte, error) {
	limit := lasts + 20*time.Second
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := command(ctx, path, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := at.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	tool := cmd.Args[0][strings.LastIndexByte(cmd.Args[0], '/')+1:]
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s did not end within %v", tool, limit)
	case err != nil:
		err = fmt.Errorf("%s: %w: %s", tool, err, strings.TrimSpace(stdout.String()+stderr.String()))
	}
	return stdout.Bytes(), err
}
