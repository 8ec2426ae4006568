//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"sync"
	"time"
)

// A series is what one user saw across an outage, all in seconds since the beginning.
type series struct {
	span     float64
	down, up float64       // the outage
	bin      float64       // width of what follows
	bytes    []float64     // that had come to the user at the end of each bin
	at, took []float64     // echoes: when the answer came, how long it took
	stall    time.Duration // of the echo after the heal
	bulk     time.Duration // and of the download
}

// drawOutage measures an outage and draws it. It returns a sentence about what was measured.
func drawOutage(ctx context.Context, set settings, file string) (string, error) {
	var m *series
	s := scenario{id: "picture", lab: true, run: func(ctx context.Context, b *bed) (err error) {
		m, err = measureOutage(ctx, b)
		return err
	}}
	res := runScenario(ctx, s, set)
	if res.skipped != "" {
		return "The picture was not drawn again: " + res.skipped + ".", nil
	}
	if len(res.broken) > 0 {
		return "", errors.New(strings.Join(res.broken, "; "))
	}
	if err := os.WriteFile(file, []byte(m.svg()), 0o644); err != nil {
		return "", err
	}
	return fmt.Sprintf("One user downloads at 20 MB/s and another types, through the same tunnel. For %.0f s the router between bridge and proxy drops everything. "+
		"After the heal the first echo is back in %s, and the download goes on in %s; it ends with %s and an equal checksum, the echoes with none wrong. "+
		"Drawn from the data of this run.",
		m.up-m.down, seconds(m.stall), seconds(m.bulk), bytesText(int64(m.bytes[len(m.bytes)-1]))), nil
}

func measureOutage(ctx context.Context, b *bed) (*series, error) {
	before, outage, behind := 5*time.Second, by(b, 2*time.Second, 10*time.Second, 10*time.Second), by(b, 3*time.Second, 10*time.Second, 10*time.Second)
	t, err := b.tunnel(ctx, options{lab: true})
	if err != nil {
		return nil, err
	}
	echo, err := t.echoUsers(ctx, 1, 50*time.Millisecond)
	if err != nil {
		return nil, err
	}
	l, err := t.connect(ctx)
	if err != nil {
		return nil, err
	}
	up, down := newFlow(1000), newFlow(-1)
	down.rate = 20e6
	const bin = 100 * time.Millisecond
	m := &series{bin: bin.Seconds(), span: (before + outage + behind).Seconds()}
	begin := time.Now()
	var wg sync.WaitGroup
	wg.Go(func() { b.failIf(l.duplex(up, down), "the download") })
	wg.Go(func() {
		for i := 1; i <= int((before+outage+behind)/bin); i++ {
			if !pass(ctx, time.Until(begin.Add(time.Duration(i)*bin))) {
				return
			}
			m.bytes = append(m.bytes, float64(down.received.Load()))
		}
	})
	pass(ctx, before)
	if err := t.lab.Down(); err != nil {
		return nil, err
	}
	m.down = time.Since(begin).Seconds()
	pass(ctx, outage)
	if err := t.lab.Up(); err != nil {
		return nil, err
	}
	healed := time.Now()
	m.up = healed.Sub(begin).Seconds()
	wg.Go(func() {
		var err error
		m.bulk, err = down.moves(ctx)
		b.failIf(err, "the download after the heal")
	})
	all, err := stalls(ctx, echo, healed)
	if err != nil {
		return nil, err
	}
	m.stall = all[0]
	pass(ctx, time.Until(begin.Add(before+outage+behind)))
	close(down.stop)
	wg.Wait()
	b.finishAll(echo)
	for _, s := range echo[0].all() {
		m.at, m.took = append(m.at, s.at.Sub(begin).Seconds()), append(m.took, s.took.Seconds())
	}
	return m, b.allEndedWell(ctx, t)
}

// Layout of the picture.
const (
	width      = 860
	left       = 70
	right      = 20
	panel      = 150
	gap        = 46
	top        = 64
	panelWidth = width - left - right
)

// svg draws three panels over one axis of time. Colours follow the reader's light or dark setting.
func (m *series) svg() string {
	var s strings.Builder
	height := top + 3*panel + 2*gap + 50
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="system-ui, sans-serif" font-size="13">
<title>A user's view of an outage of the link</title>
<style>
.bg { fill: #ffffff } text { fill: #24292f } .dim { fill: #57606a } .axis { stroke: #8c959f; fill: none } .grid { stroke: #d8dee4 }
.out { fill: #f6c6c1; opacity: .55 } .line { fill: none; stroke: #0969da; stroke-width: 1.6 } .dot { fill: #8250df } .sum { fill: none; stroke: #1a7f37; stroke-width: 2 }
.swl { fill: #0969da } .sws { fill: #1a7f37 }
@media (prefers-color-scheme: dark) {
.bg { fill: #0d1117 } text { fill: #e6edf3 } .dim { fill: #9198a1 } .axis { stroke: #656c76 } .grid { stroke: #2a313c }
.out { fill: #6e2b2b; opacity: .6 } .line { stroke: #58a6ff } .dot { fill: #bc8cff } .sum { stroke: #3fb950 } .swl { fill: #58a6ff } .sws { fill: #3fb950 }
}
</style>
<rect class="bg" width="%d" height="%d"/>
`, width, height, width, height)
	x := func(t float64) float64 { return left + t/m.span*panelWidth }
	fmt.Fprintf(&s, "<text x=\"%d\" y=\"22\" font-size=\"16\" font-weight=\"600\">The link is gone for %.0f s; the users' connections are not</text>\n", left, m.up-m.down)
	// The legend.
	lx := float64(left)
	for _, e := range []struct {
		class, text string
		wide        float64
	}{{"swl", "download, MB/s", 130}, {"sws", "download, bytes in all", 180}, {"dot", "echo of one keystroke", 175}, {"out", "no packet passes", 130}} {
		fmt.Fprintf(&s, "<rect class=\"%s\" x=\"%.0f\" y=\"34\" width=\"12\" height=\"12\" rx=\"2\"/><text x=\"%.0f\" y=\"45\">%s</text>\n", e.class, lx, lx+18, e.text)
		lx += e.wide
	}
	y0 := func(i int) float64 { return float64(top + i*(panel+gap)) }
	frame := func(i int, title string, marks []float64, y func(float64) float64, label func(float64) string) {
		fmt.Fprintf(&s, "<rect class=\"out\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%d\"/>\n", x(m.down), y0(i), x(m.up)-x(m.down), panel)
		for _, v := range marks {
			fmt.Fprintf(&s, "<line class=\"grid\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/><text class=\"dim\" x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%s</text>\n",
				left, width-right, y(v), y(v), left-8, y(v)+4, label(v))
		}
		fmt.Fprintf(&s, "<path class=\"axis\" d=\"M%d %.1fV%.1fH%d\"/><text x=\"%d\" y=\"%.1f\" font-weight=\"600\">%s</text>\n",
			left, y0(i), y0(i)+panel, width-right, left+6, y0(i)+16, title)
	}
	linear := func(i int, most float64) func(float64) float64 {
		return func(v float64) float64 { return y0(i) + panel - v/most*panel }
	}
	plain := func(v float64) string { return fmt.Sprintf("%g", v) }

	// Speed.
	var speed []float64
	last, fastest := 0.0, 1.0
	for _, v := range m.bytes {
		speed = append(speed, (v-last)/m.bin/1e6)
		last, fastest = v, max(fastest, speed[len(speed)-1])
	}
	step := niceStep(fastest)
	y := linear(0, math.Ceil(fastest*1.08/step)*step)
	frame(0, "MB/s to the user", marksTo(step, fastest), y, plain)
	path(&s, "line", len(speed), func(i int) (float64, float64) { return x((float64(i) + .5) * m.bin), y(speed[i]) })

	// Bytes in all.
	total := m.bytes[len(m.bytes)-1] / 1e6
	step = niceStep(total)
	y = linear(1, math.Ceil(total*1.08/step)*step)
	frame(1, "MB that the user has, every byte once", marksTo(step, total), y, plain)
	path(&s, "sum", len(m.bytes), func(i int) (float64, float64) { return x(float64(i+1) * m.bin), y(m.bytes[i] / 1e6) })

	// Echoes, on a scale of powers of ten.
	const least, most = -4.0, 2.0
	y = func(v float64) float64 { return y0(2) + panel - (math.Log10(v)-least)/(most-least)*panel }
	frame(2, "round trip of an echo", []float64{1e-3, 1e-2, 1e-1, 1, 10}, y, func(v float64) string {
		if v < 1 {
			return fmt.Sprintf("%g ms", v*1000)
		}
		return fmt.Sprintf("%g s", v)
	})
	for i := range m.at {
		if m.at[i] > m.span {
			continue
		}
		fmt.Fprintf(&s, "<circle class=\"dot\" cx=\"%.1f\" cy=\"%.1f\" r=\"2\"/>", x(m.at[i]), y(max(m.took[i], 1.2e-4)))
		if m.took[i] > 1 { // the one who waited: from when it was sent
			fmt.Fprintf(&s, "<line stroke-dasharray=\"3 3\" class=\"axis\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/><text class=\"dim\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">one echo waits %s</text>",
				x(m.at[i]-m.took[i]), x(m.at[i]), y(m.took[i]), y(m.took[i]), x(m.at[i])-8, y(m.took[i])+16, seconds(time.Duration(m.took[i]*1e9)))
		}
	}
	s.WriteByte('\n')
	bottom := y0(2) + panel
	for t := 0.0; t <= m.span; t += niceStep(m.span) {
		fmt.Fprintf(&s, "<text class=\"dim\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%g s</text>", x(t), bottom+18, t)
	}
	fmt.Fprintf(&s, "\n<text class=\"dim\" x=\"%d\" y=\"%.1f\" text-anchor=\"middle\">time since the beginning</text>\n</svg>\n", left+panelWidth/2, bottom+38)
	return s.String()
}

func path(s *strings.Builder, class string, n int, at func(int) (x, y float64)) {
	fmt.Fprintf(s, "<path class=\"%s\" d=\"", class)
	for i := range n {
		x, y := at(i)
		fmt.Fprintf(s, "%c%.1f %.1f", "ML"[min(i, 1)], x, y)
	}
	s.WriteString("\"/>\n")
}

// niceStep is a round number of which about four or five make most.
func niceStep(most float64) float64 {
	p := math.Pow(10, math.Floor(math.Log10(most/4)))
	for _, f := range []float64{1, 2, 5} {
		if f*p*5 >= most {
			return f * p
		}
	}
	return 10 * p
}

func marksTo(step, most float64) (marks []float64) {
	for v := 0.0; v <= most*1.001; v += step {
		marks = append(marks, v)
	}
	return marks
}
