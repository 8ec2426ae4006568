package main

import (
	"encoding/xml"
	"fmt"
	"math"
	"slices"
	"strings"
)

// Layout of the chart.
const (
	chartWidth = 920
	chartLeft  = 330 // for the names of the rows
	chartRight = 30
	chartTop   = 86
	rowHeight  = 24
	octaves    = 3 // the axis goes from 1/2^3 to 2^3
)

// chart draws each row in which reverser and the two HAProxies have a figure: how many times as good as they each
// contender is, on a scale of powers of two, better to the right. Colours follow the reader's light or dark setting.
func (r *report) chart() string {
	var rows []*row
	for _, x := range r.Rows {
		if len(x.Ratio) > 0 && (len(x.Goals) > 0 || !x.Low) {
			rows = append(rows, x)
		}
	}
	height := chartTop + rowHeight*len(rows) + 50
	bottom := chartTop + rowHeight*len(rows)
	var s strings.Builder
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="system-ui, sans-serif" font-size="13">
<title>reverser and others, measured beside two HAProxies in a row</title>
<style>
.bg { fill: #ffffff } text { fill: #24292f } .dim { fill: #57606a } .grid { stroke: #d8dee4 } .one { stroke: #8c959f; stroke-width: 1.5 }
.range { stroke: #0969da; stroke-width: 3; opacity: .45 } .goal { stroke: #bc4c00; stroke-width: 2.5 } .edge { stroke: none }
.reverser { fill: #0969da } .direct { fill: #8c959f } .splice { fill: #1a7f37 } .frp { fill: #cf222e } .earlier { fill: #bf8700 } .rathole { fill: #8250df } .chisel { fill: #9a6700 } .ssh { fill: #bf3989 }
@media (prefers-color-scheme: dark) {
.bg { fill: #0d1117 } text { fill: #e6edf3 } .dim { fill: #9198a1 } .grid { stroke: #2a313c } .one { stroke: #656c76 }
.range { stroke: #58a6ff } .goal { stroke: #f0883e } .reverser { fill: #58a6ff } .splice { fill: #3fb950 } .frp { fill: #ff7b72 } .earlier { fill: #e3b341 } .rathole { fill: #bc8cff } .chisel { fill: #d29922 } .ssh { fill: #f778ba }
}
</style>
<rect class="bg" width="%d" height="%d"/>
<text x="20" y="24" font-size="16" font-weight="600">How many times as good as two HAProxies in a row, which relay plaintext</text>
`, chartWidth, height, chartWidth, height)

	// The legend.
	lx := 20.0
	for _, c := range r.Columns {
		if c.Name == haproxy {
			continue
		}
		fmt.Fprintf(&s, "<circle class=\"%s\" cx=\"%.0f\" cy=\"44\" r=\"5\"/><text x=\"%.0f\" y=\"48\">%s</text>\n", escape(c.Name), lx+5, lx+15, escape(c.Title))
		lx += 40 + 7*float64(len(c.Title))
	}
	fmt.Fprintf(&s, "<line class=\"goal\" x1=\"%.0f\" x2=\"%.0f\" y1=\"38\" y2=\"50\"/><text x=\"%.0f\" y=\"48\">goal</text>\n", lx+5, lx+5, lx+13)

	// The axis.
	x := func(ratio float64) float64 {
		at := min(max(math.Log2(ratio), -octaves), octaves)
		return chartLeft + (at+octaves)/(2*octaves)*(chartWidth-chartLeft-chartRight)
	}
	for i := -octaves; i <= octaves; i++ {
		class, label := "grid", fmt.Sprintf("%g", math.Exp2(float64(i)))
		if i == 0 {
			class = "one"
		}
		fmt.Fprintf(&s, "<line class=\"%s\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\"/><text class=\"dim\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s ×</text>\n",
			class, x(math.Exp2(float64(i))), x(math.Exp2(float64(i))), chartTop-6, bottom, x(math.Exp2(float64(i))), chartTop-12, label)
	}

	for i, row := range rows {
		y := chartTop + rowHeight*i + rowHeight/2
		good := func(ratio float64) float64 {
			if row.Low {
				return 1 / ratio
			}
			return ratio
		}
		fmt.Fprintf(&s, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\" font-size=\"12\">%s</text>\n", chartLeft-14, y+4, escape(row.Name))
		fmt.Fprintf(&s, "<line class=\"range\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\"/>\n", x(good(slices.Min(row.Ratio))), x(good(slices.Max(row.Ratio))), y, y)
		for _, g := range row.Goals {
			if g.Than == haproxy {
				fmt.Fprintf(&s, "<line class=\"goal\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\"/>\n", x(good(g.Factor)), x(good(g.Factor)), y-8, y+8)
			}
		}
		for _, c := range r.Columns {
			ratios := row.ratio(c.Name, haproxy)
			if c.Name == haproxy || len(ratios) == 0 {
				continue
			}
			size := 4
			if c.Name == reverser {
				size = 6
			}
			m := median(ratios)
			fmt.Fprintf(&s, "<circle class=\"%s\" cx=\"%.1f\" cy=\"%d\" r=\"%d\"><title>%s: %s ×</title></circle>\n", escape(c.Name), x(good(m)), y, size, escape(c.Title), figure(m))
		}
	}
	fmt.Fprintf(&s, "<text class=\"dim\" x=\"%d\" y=\"%d\">better to the right; for times, memory and CPU, where less is better, the ratio is turned round. The bar is the range of reverser's rounds.</text>\n", 20, bottom+24)
	fmt.Fprintf(&s, "<text class=\"dim\" x=\"20\" y=\"%d\">%s, %d cores, Linux %s, reverser %s</text>\n</svg>\n", bottom+42,
		escape(r.Machine.CPU), r.Machine.Cores, escape(r.Machine.Kernel), escape(r.Machine.Revision))
	return s.String()
}

func escape(text string) string {
	var s strings.Builder
	_ = xml.EscapeText(&s, []byte(text)) // a Builder takes everything
	return s.String()
}
