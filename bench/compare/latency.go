package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// echoes runs the type or knock helper against c, in a process of its own.
func (b *bed) echoes(ctx context.Context, helper string, c *contender, count int, pause time.Duration) (l latencies, err error) {
	lasts := time.Duration(count) * (pause + time.Second/2)
	text, err := b.output(ctx, b.front, lasts, b.self, helper, c.echo, strconv.Itoa(count), pause.String())
	if err != nil {
		return l, err
	}
	if err := json.Unmarshal(text, &l); err != nil {
		return l, fmt.Errorf("read the output of %s: %w: %.200q", helper, err, text)
	}
	return l, nil
}

// latency finds the median times until a new connection has its first byte, and until a keystroke has its echo.
// There are perSecond of each for every second that a measurement takes.
func latency(perSecond int, pause time.Duration) measurement {
	return func(ctx context.Context, b *bed, c *contender, set settings) ([]float64, string, error) {
		count := perSecond * set.Seconds
		first, err := b.echoes(ctx, "knock", c, count, pause)
		if err != nil {
			return nil, "", err
		}
		key, err := b.echoes(ctx, "type", c, count, pause)
		return []float64{first.P50, key.P50}, "", err
	}
}

// every is the time between two keystrokes that are measured beside something else.
const every = 2 * time.Millisecond

func typed(set settings) int { return int(time.Duration(set.Seconds) * time.Second / every) }

// besideBulk types on one connection while two others carry as much as they can, one each way.
func besideBulk(ctx context.Context, b *bed, c *contender, set settings) ([]float64, string, error) {
	const lead = time.Second // for windows to grow
	for try := 1; ; try++ {
		limit, cancel := context.WithTimeout(ctx, time.Duration(set.Seconds)*time.Second+lead+patience)
		defer cancel()
		cmd := command(limit, b.tools["iperf3"], iperfArgs(c.bulk, "--bidir", "-t", strconv.Itoa(set.Seconds+2))...)
		var text bytes.Buffer
		cmd.Stdout = &text
		if err := b.front.Start(cmd); err != nil {
			return nil, "", err
		}
		err := sleep(ctx, lead)
		var l latencies
		if err == nil {
			l, err = b.echoes(ctx, "type", c, typed(set), every)
		}
		_ = cmd.Wait() // its own words say more
		_, bulk := parseIperf(text.Bytes())
		if errors.Is(bulk, errBusy) && try < 5 {
			if err := sleep(ctx, 200*time.Millisecond); err != nil {
				return nil, "", err
			}
			continue
		}
		if err == nil && bulk != nil {
			err = fmt.Errorf("the bulk beside it: %w", bulk)
		}
		return []float64{l.P50, l.P99}, "", err
	}
}

// besideStalled types on one connection beside others whose users do not read what the server sends without end.
func besideStalled(ctx context.Context, b *bed, c *contender, set settings) ([]float64, string, error) {
	conns, err := stall(ctx, b.front, c.echo, 50)
	defer closeMany(conns)
	if err != nil {
		return nil, "", err
	}
	if err := sleep(ctx, time.Second); err != nil { // until all buffers are full
		return nil, "", err
	}
	l, err := b.echoes(ctx, "type", c, typed(set), every)
	return []float64{l.P50, l.P99}, "", err
}
