package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// settle is how long connections are idle before they are weighed: enough to give buffers back, not enough for the
// garbage collection that Go forces every two minutes.
const settle = 5 * time.Second

// fresh starts a contender of the same way that has carried nothing yet, and weighs it.
func (b *bed) fresh(ctx context.Context, name string, conns int) (c *contender, kb int, err error) {
	i := slices.IndexFunc(ways, func(w way) bool { return w.name == name })
	if c, err = b.compete(ctx, ways[i], conns); err != nil {
		return nil, 0, err
	}
	if err = sleep(ctx, time.Second); err == nil { // the starting up is not to be counted
		kb, err = c.resident()
	}
	if err != nil {
		c.stop()
	}
	return c, kb, err
}

// weighIdle finds by how many KB both processes of a fresh contender grow for one idle connection, and how much of a core
// all of them cost. Each connection has carried a few bytes before: one that was never used may not have been connected
// to the server at all.
func weighIdle(ctx context.Context, b *bed, old *contender, set settings) ([]float64, string, error) {
	c, before, err := b.fresh(ctx, old.name, set.Conns)
	if err != nil {
		return nil, "", err
	}
	defer c.stop()
	users, err := dialMany(ctx, b.front, c.echo, set.Conns)
	defer closeMany(users)
	if err != nil {
		return nil, "", c.explain(err)
	}
	rest := settle
	if set.Size == "quick" {
		rest = 2 * time.Second
	}
	if err := sleep(ctx, rest); err != nil {
		return nil, "", err
	}
	after, err := c.resident()
	if err != nil {
		return nil, "", err
	}
	then, start := c.cpu(), time.Now()
	if err := sleep(ctx, time.Duration(3*set.Seconds)*time.Second); err != nil {
		return nil, "", err
	}
	busy := c.cpuSince(then)[0] / time.Since(start).Seconds()
	for i, conn := range users { // or they were not worth their memory
		if err := ping(conn); err != nil {
			return nil, "", c.explain(fmt.Errorf("connection %d of %d is dead after its idleness: %w", i+1, set.Conns, err))
		}
	}
	return []float64{float64(after-before) / float64(set.Conns), busy * 100}, "", nil
}

// weighFlight finds by how many KB both processes grow for a connection on which 64 KB are always under way, with a tenth
// of the idle connections.
func weighFlight(ctx context.Context, b *bed, old *contender, set settings) ([]float64, string, error) {
	conns := max(set.Conns/10, 1)
	c, before, err := b.fresh(ctx, old.name, conns)
	if err != nil {
		return nil, "", err
	}
	defer c.stop()
	var weights []float64
	_, err = b.pump(ctx, c, conns, 64<<10, time.Duration(max(set.Seconds, 2))*time.Second, func() error {
		kb, err := c.resident()
		weights = append(weights, float64(kb-before)/float64(conns))
		return err
	})
	if err != nil {
		return nil, "", c.explain(err)
	}
	return []float64{median(weights[len(weights)/2:])}, "", nil // when buffers have their size
}

// scaleSizes are the numbers of connections whose cost is compared.
func scaleSizes(set settings) []int {
	var sizes []int
	for n := 10; n < set.Conns; n *= 10 {
		sizes = append(sizes, n)
	}
	return append(sizes, set.Conns)
}

// scale finds the CPU seconds of the processes between per 100,000 small echoes, at growing numbers of busy connections,
// and how much more an echo costs at the largest number than at the smallest.
func scale(ctx context.Context, b *bed, old *contender, set settings) (figures []float64, note string, err error) {
	c, _, err := b.fresh(ctx, old.name, set.Conns)
	if err != nil {
		return nil, "", err
	}
	defer c.stop()
	for _, n := range scaleSizes(set) {
		lasts := time.Duration(max(set.Seconds, 2)) * time.Second
		echoes, err := b.pump(ctx, c, n, 128, lasts, func() error { return nil })
		if err != nil {
			return nil, "", c.explain(err)
		}
		figures = append(figures, echoes.cpu/(float64(echoes.Echoes)/1e5))
	}
	return append(figures, figures[len(figures)-1]/figures[0]), "", nil
}

type pumpResult struct {
	pumped
	cpu float64 // seconds of the contender's processes, from when all connections were open
}

// pump runs the helper of that name against c and calls watch again and again meanwhile.
func (b *bed) pump(ctx context.Context, c *contender, conns, size int, lasts time.Duration, watch func() error) (r pumpResult, err error) {
	ctx, cancel := context.WithTimeout(ctx, lasts+3*patience)
	defer cancel()
	cmd := command(ctx, b.self, "pump", c.echo, strconv.Itoa(conns), strconv.Itoa(size), lasts.String())
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err1 != nil || err2 != nil {
		return r, fmt.Errorf("pipes: %w, %w", err1, err2)
	}
	var words strings.Builder
	cmd.Stderr = &words
	if err := b.front.Start(cmd); err != nil {
		return r, err
	}
	defer func() {
		in.Close()
		cancel()
		_ = cmd.Wait() // its last line is here, or it is missed
	}()
	lines := bufio.NewReader(out)
	if _, err := lines.ReadString('\n'); err != nil {
		cancel()
		_ = cmd.Wait()
		return r, fmt.Errorf("pump: %w: %s", err, strings.TrimSpace(words.String()))
	}
	then := c.cpu()
	if _, err := io.WriteString(in, "go\n"); err != nil {
		return r, err
	}
	for end := time.Now().Add(lasts - 100*time.Millisecond); time.Now().Before(end); {
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return r, err
		}
		if err := watch(); err != nil {
			return r, err
		}
	}
	last, err := lines.ReadBytes('\n')
	if err != nil {
		return r, fmt.Errorf("pump: %w", err)
	}
	r.cpu = c.cpuSince(then)[0]
	if err := json.Unmarshal(last, &r.pumped); err != nil {
		return r, fmt.Errorf("pump: %w", err)
	}
	if r.Echoes == 0 {
		return r, fmt.Errorf("pump: no echo within %v", lasts)
	}
	return r, nil
}
