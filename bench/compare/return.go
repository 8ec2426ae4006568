package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Layout of the picture.
const (
	returnWidth  = 860
	returnLeft   = 70
	returnRight  = 20
	returnTop    = 64
	returnPanel  = 150
	returnGap    = 58
	returnAcross = returnWidth - returnLeft - returnRight
)

// drawReturns draws for each fleet how many of its bridges serve, over the time since the proxy was told to stop. Colours
// follow the reader's light or dark setting.
func (r *report) drawReturns() string {
	var fleets []string
	for _, f := range r.Returns {
		if !slices.Contains(fleets, f.Fleet) {
			fleets = append(fleets, f.Fleet)
		}
	}
	height := returnTop + len(fleets)*(returnPanel+returnGap) + 20
	var s strings.Builder
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="system-ui, sans-serif" font-size="13">
<title>Bridges that serve after a restart of their proxy</title>
<style>
.bg { fill: #ffffff } text { fill: #24292f } .dim { fill: #57606a } .axis { stroke: #8c959f; fill: none } .grid { stroke: #d8dee4 }
.line { fill: none; stroke-width: 2 } .reverser { stroke: #0969da } .frp { stroke: #cf222e } .earlier { stroke: #8250df } .swearlier { fill: #8250df } .swreverser { fill: #0969da } .swfrp { fill: #cf222e }
@media (prefers-color-scheme: dark) {
.bg { fill: #0d1117 } text { fill: #e6edf3 } .dim { fill: #9198a1 } .axis { stroke: #656c76 } .grid { stroke: #2a313c }
.reverser { stroke: #58a6ff } .frp { stroke: #ff7b72 } .earlier { stroke: #bc8cff } .swearlier { fill: #bc8cff } .swreverser { fill: #58a6ff } .swfrp { fill: #ff7b72 }
}
</style>
<rect class="bg" width="%d" height="%d"/>
<text x="%d" y="22" font-size="16" font-weight="600">The proxy is restarted; how many of its bridges serve again</text>
`, returnWidth, height, returnWidth, height, returnLeft)
	x := float64(returnLeft)
	for _, name := range []string{reverser, earlier, frp} {
		if slices.ContainsFunc(r.Returns, func(f returned) bool { return f.Contender == name }) {
			fmt.Fprintf(&s, "<rect class=\"sw%s\" x=\"%.0f\" y=\"34\" width=\"12\" height=\"12\" rx=\"2\"/><text x=\"%.0f\" y=\"45\">%s</text>\n", name, x, x+18, name)
			x += 110
		}
	}
	for i, fleet := range fleets {
		r.drawReturn(&s, fleet, float64(returnTop+i*(returnPanel+returnGap)+16))
	}
	fmt.Fprintf(&s, "<text class=\"dim\" x=\"%d\" y=\"%d\">%s, %d cores, Linux %s, reverser %s; all bridges on the same machine</text>\n</svg>\n", returnLeft, height-8,
		escape(r.Machine.CPU), r.Machine.Cores, escape(r.Machine.Kernel), escape(r.Machine.Revision))
	return s.String()
}

func (r *report) drawReturn(s *strings.Builder, fleet string, top float64) {
	span, all := 0.1, 1
	for _, f := range r.Returns {
		if f.Fleet != fleet {
			continue
		}
		all = f.Bridges
		end := f.Limit // not all came back
		if len(f.Times) == all {
			end = f.Times[all-1] * 1.05
		}
		span = max(span, end)
	}
	x := func(t float64) float64 { return returnLeft + min(t/span, 1)*returnAcross }
	y := func(n float64) float64 { return top + returnPanel*(1-n/float64(all)) }
	for _, share := range []float64{0, .25, .5, .75, 1} {
		n := share * float64(all)
		fmt.Fprintf(s, "<line class=\"grid\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/><text class=\"dim\" x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%.0f</text>\n",
			returnLeft, returnWidth-returnRight, y(n), y(n), returnLeft-8, y(n)+4, n)
	}
	step := roundStep(span)
	for t := 0.0; t <= span; t += step {
		fmt.Fprintf(s, "<text class=\"dim\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%g s</text>", x(t), top+returnPanel+18, math.Round(t*1000)/1000)
	}
	fmt.Fprintf(s, "\n<path class=\"axis\" d=\"M%d %.1fV%.1fH%d\"/><text x=\"%d\" y=\"%.1f\" font-weight=\"600\">%s</text>\n",
		returnLeft, top, top+returnPanel, returnWidth-returnRight, returnLeft, top-6, escape(fleet))
	for _, f := range r.Returns {
		if f.Fleet != fleet {
			continue
		}
		fmt.Fprintf(s, "<path class=\"line %s\" d=\"M%.1f %.1f", f.Contender, x(0), y(0))
		const most = 500 // points
		for i := range f.Times {
			if n := len(f.Times); n > most && i%(n/most) != 0 && i != n-1 {
				continue
			}
			fmt.Fprintf(s, "L%.1f %.1f", x(f.Times[i]), y(float64(i+1)))
		}
		s.WriteString("\"/>\n")
	}
}

// roundStep is a round number of which about five to ten make most.
func roundStep(most float64) float64 {
	p := math.Pow(10, math.Floor(math.Log10(most/4)))
	for _, f := range []float64{1, 2, 5} {
		if f*p*8 >= most {
			return f * p
		}
	}
	return 10 * p
}
