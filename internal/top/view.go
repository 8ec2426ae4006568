package top

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"

	"reverser/internal/escape"
	"reverser/internal/status"
	"reverser/internal/units"
)

var (
	bold    = ansi.NewStyle().Bold()
	faint   = ansi.NewStyle().Faint()
	reverse = ansi.NewStyle().Reverse(true)
	red     = ansi.NewStyle().Bold().ForegroundColor(ansi.Red)
)

// View implements tea.Model.
func (m *model) View() tea.View {
	lines := m.lines()
	if len(lines) > m.height {
		lines = lines[:m.height]
	}
	v := tea.NewView(strings.Join(lines, "\n"))
	v.AltScreen = true
	return v
}

const mostTroubles = 3

// head is what stands above the list.
func (m *model) head() (lines []string) {
	s := m.now.snap
	up := units.Span(time.Duration(s.UptimeSeconds * float64(time.Second)))
	right := fmt.Sprintf("sent %s/s  received %s/s", units.Size(uint64(m.now.sent)), units.Size(uint64(m.now.received)))
	if m.gone != nil {
		right = ""
	}
	for _, left := range []string{s.Role + " " + text(s.Version) + ", up " + up, s.Role + ", up " + up, s.Role} {
		both := m.apart(left, right)
		if ansi.StringWidth(both) <= m.width || left == s.Role {
			lines = append(lines, bold.Styled(m.line(both)))
			break
		}
	}
	lines = append(lines, m.line(strings.Join([]string{
		ratio(m.now.up(links), len(s.Links), "link"), ratio(m.now.up(services), len(s.Services), "service"),
		number(m.now.connections, "connection"),
	}, "   ")))
	var wrong []string
	switch {
	case m.gone == ErrSilent:
		wrong = append(wrong, "the process does not answer: this is of "+m.now.at.Format(time.TimeOnly))
	case m.gone != nil:
		wrong = append(wrong, "the process does not answer, waiting for it: "+m.gone.Error())
	}
	wrong = append(wrong, m.now.troubles()...)
	most := min(mostTroubles, max(m.height-8, 1))
	for i, w := range wrong {
		if i == most-1 && len(wrong) > most {
			lines = append(lines, red.Styled(m.line(fmt.Sprintf("and %d more: see `reverser status`", len(wrong)-i))))
			break
		}
		lines = append(lines, red.Styled(m.line(text(w))))
	}
	return lines
}

// lines are those of the screen.
func (m *model) lines() (lines []string) {
	if m.width < 20 || m.height < 4 {
		return []string{m.line("too small")}
	}
	lines = m.head()
	if m.height >= 7 { // below, what moves is worth more
		lines = append(lines, m.tabs())
	}
	foot := m.foot()
	if m.height < 9 && m.question == nil && !m.typing && m.note == "" {
		foot = ""
	}
	rows := m.height - len(lines)
	if foot != "" {
		rows--
	}
	if m.help {
		lines = append(lines, m.helpLines(rows)...)
	} else {
		lines = append(lines, m.listLines(rows)...)
	}
	if foot != "" {
		for len(lines) < m.height-1 {
			lines = append(lines, "")
		}
		lines = append(lines[:m.height-1], foot)
	}
	return lines
}

func (m *model) tabs() string {
	var parts []string
	for k, title := range []string{"1 connections", "2 services", "3 links"} {
		if m.width < 60 {
			title = strings.Fields(title)[1]
		}
		if kind(k) == m.shown {
			parts = append(parts, reverse.Styled(" "+title+" "))
		} else {
			parts = append(parts, " "+title+" ")
		}
	}
	v := m.views[m.shown]
	how := "by " + v.order.of(m.shown)
	if v.reversed {
		how += ", reversed"
	}
	if v.filter != "" && !m.typing {
		how = fmt.Sprintf("%d with %q, ", len(v.list), v.filter) + how
	}
	if m.paused {
		how = "PAUSED, " + how
	}
	return m.line(m.apart(strings.Join(parts, ""), how))
}

func (m *model) foot() string {
	v := m.views[m.shown]
	switch {
	case m.question != nil:
		return reverse.Styled(m.line("y ends " + named(*m.question) + "; any other key does not"))
	case m.typing:
		return m.line("show those with: " + text(v.filter) + "_   Enter keeps it, Esc shows all")
	case m.note != "":
		return bold.Styled(m.line(text(m.note)))
	case m.help:
		return faint.Styled(m.line("any key goes back"))
	}
	keys := "q quit  ? keys  Tab view  s sort  / find  Space pause"
	if m.shown == pairs && m.src.End != nil {
		keys += "  x end"
	}
	return faint.Styled(m.line(keys))
}

func (m *model) helpLines(rows int) []string {
	lines := []string{
		"",
		"  Tab, 1 2 3      connections, services, links",
		"  s, r            sort by rate, total, age or name; reversed",
		"  /               show those with a text in them; Esc shows all again",
		"  Up, Down, PgUp, PgDn, Home, End   choose a line",
		"  x               end the chosen connection",
		"  Space           pause, and go on",
		"  q               quit",
		"",
		"  sent is from clients to targets, received the other way.",
	}
	if len(lines) > rows {
		lines = lines[1:min(len(lines), max(rows, 1)+1)]
	}
	for i := range lines {
		lines[i] = m.line(lines[i])
	}
	return lines
}

// page is how many items fit.
func (m *model) page() int { return max(m.height-len(m.head())-3, 1) }

func (m *model) listLines(rows int) (lines []string) {
	v := &m.views[m.shown]
	if rows < 2 {
		return nil
	}
	rows--
	if v.top > v.line {
		v.top = v.line
	}
	if v.line >= v.top+rows {
		v.top = v.line - rows + 1
	}
	v.top = max(min(v.top, len(v.list)-rows), 0)
	seen := v.list[v.top:min(v.top+rows, len(v.list))]
	columns := fit(m.measured(v, seen), m.width)
	var titles []string
	for _, c := range columns {
		titles = append(titles, c.title)
	}
	lines = append(lines, bold.Styled(m.line(joined(columns, titles))))
	if len(v.list) == 0 {
		none := "none"
		if v.filter != "" {
			none = fmt.Sprintf("none with %q: Esc shows all", v.filter)
		}
		return append(lines, m.line(none))
	}
	for i := v.top; i < len(v.list) && i < v.top+rows; i++ {
		var cells []string
		for _, c := range columns {
			cells = append(cells, c.cell(m, v.list[i]))
		}
		line := m.line(joined(columns, cells))
		switch {
		case i == v.line && v.chosen != "" || i == v.line && m.question != nil:
			line = reverse.Styled(line)
		case v.list[i].fault:
			line = red.Styled(line)
		}
		lines = append(lines, line)
	}
	return lines
}

// column is one of a list.
type column struct {
	title       string
	least, most int // of its width
	holds       content
	drop        int // the highest goes first when there is no room
	cell        func(*model, item) string
}

// content is what the cells of a column are.
type content int

const (
	words content = iota // cut at the end
	name                 // cut in the middle: names often begin alike, and often end alike
	right                // a number
)

// mostName is how wide the first column becomes, which says what a line is about.
const mostName = 64

// measured are the columns of a list, no wider than what is in them. A column becomes no narrower again, or all would move to and fro.
func (m *model) measured(v *choice, seen []item) []column {
	columns := append([]column{}, listColumns[m.shown]...)
	if v.widths == nil {
		v.widths = make([]int, len(columns))
	}
	for i := range columns {
		c := &columns[i]
		if i == 0 {
			c.most = mostName
		}
		if c.least == c.most {
			continue
		}
		widest := &v.widths[i]
		for _, it := range seen {
			if *widest < c.most {
				*widest = max(*widest, min(ansi.StringWidth(text(c.cell(m, it))), c.most))
			}
		}
		if *widest == 0 {
			c.least = len(c.title)
		}
		c.most = max(c.least, *widest)
		if i == 0 {
			c.least = min(c.most, max(c.least, m.width/3)) // before others have room at all
		}
	}
	return columns
}

var listColumns = [kinds][]column{
	pairs: {
		{"SERVICE", 10, 28, name, 0, func(m *model, it item) string { return m.pair(it).Service }},
		{"CLIENT", 21, 47, name, 0, func(m *model, it item) string { return m.pair(it).Client }},
		{"SENT/S", 10, 10, right, 0, func(_ *model, it item) string { return rate(it.sent) }},
		{"RECEIVED/S", 10, 10, right, 0, func(_ *model, it item) string { return rate(it.received) }},
		{"TOTAL", 8, 8, right, 1, func(_ *model, it item) string { return units.Size(it.total) }},
		{"AGE", 6, 6, right, 2, (*model).age},
		{"STATE", 7, 7, words, 3, func(m *model, it item) string {
			if state := m.pair(it).State; state != status.PairHalfClosed {
				return state
			}
			return "closing" // for which there is room
		}},
		{"TARGET", 12, 30, name, 4, func(m *model, it item) string { return m.pair(it).Target }},
		{"PAIR", 7, 7, right, 5, func(_ *model, it item) string { return it.id }},
	},
	services: {
		{"SERVICE", 10, 32, name, 0, func(m *model, it item) string { return m.service(it).Public }},
		{"STATE", 8, 8, words, 0, func(m *model, it item) string { return m.service(it).State }},
		{"CONN", 5, 5, right, 0, func(_ *model, it item) string { return strconv.Itoa(it.connections) }},
		{"SENT/S", 10, 10, right, 1, func(_ *model, it item) string { return rate(it.sent) }},
		{"RECEIVED/S", 10, 10, right, 1, func(_ *model, it item) string { return rate(it.received) }},
		{"TOTAL", 8, 8, right, 2, func(_ *model, it item) string { return units.Size(it.total) }},
		{"KEY", 8, 20, name, 3, func(m *model, it item) string { return m.service(it).Key }},
		{"TARGET", 12, 30, name, 4, func(m *model, it item) string { return m.service(it).Target }},
		{"REASON", 20, 100, words, 5, func(m *model, it item) string { return m.service(it).Reason }},
	},
	links: {
		{"LINK", 8, 24, name, 0, func(m *model, it item) string { return m.link(it).Key }},
		{"STATE", 8, 8, words, 0, func(m *model, it item) string { return m.link(it).State }},
		{"RTT", 8, 8, right, 1, func(m *model, it item) string { return millis(m.link(it).RTTMillis) }},
		{"SENT/S", 10, 10, right, 2, func(_ *model, it item) string { return rate(it.sent) }},
		{"RECEIVED/S", 10, 10, right, 2, func(_ *model, it item) string { return rate(it.received) }},
		{"AGE", 6, 6, right, 3, (*model).age},
		{"REMOTE", 21, 47, name, 4, func(m *model, it item) string { return m.link(it).Remote }},
		{"CARRIERS", 8, 8, right, 5, func(m *model, it item) string { return strconv.Itoa(m.link(it).Carriers) }},
		{"RESUMES", 7, 7, right, 6, func(m *model, it item) string { return strconv.FormatUint(m.link(it).Resumes, 10) }},
		{"TOTAL", 8, 8, right, 7, func(_ *model, it item) string { return units.Size(it.total) }},
	},
}

func (m *model) pair(it item) status.Pair       { return m.now.snap.Pairs[it.at] }
func (m *model) service(it item) status.Service { return m.now.snap.Services[it.at] }
func (m *model) link(it item) status.Link       { return m.now.snap.Links[it.at] }

func (m *model) age(it item) string {
	if it.since.IsZero() {
		return "-"
	}
	return units.Span(m.now.at.Sub(it.since))
}

// fit chooses the columns for which there is room, and gives them what is left over.
func fit(all []column, width int) []column {
	fits := append([]column{}, all...)
	need := func() int {
		n := len(fits) - 1
		for _, c := range fits {
			n += c.least
		}
		return n
	}
	for need() > width && len(fits) > 1 {
		out := 0
		for i, c := range fits {
			if c.drop >= fits[out].drop {
				out = i
			}
		}
		fits = append(fits[:out], fits[out+1:]...)
	}
	fits[0].least += min(fits[0].most-fits[0].least, max(width-need(), 0)) // the name first
	for grown := true; grown && need() < width; {
		grown = false
		for i := range fits {
			if fits[i].least < fits[i].most && need() < width {
				fits[i].least++
				grown = true
			}
		}
	}
	return fits
}

// joined is a line of cells.
func joined(columns []column, cells []string) string {
	var b strings.Builder
	for i, c := range columns {
		if i > 0 {
			b.WriteByte(' ')
		}
		cell := text(cells[i])
		if c.holds == name {
			cell = cutMiddle(cell, c.least)
		}
		cell = ansi.Truncate(cell, c.least, "…")
		space := strings.Repeat(" ", max(c.least-ansi.StringWidth(cell), 0))
		if c.holds == right {
			cell, space = space, cell
		}
		b.WriteString(cell)
		b.WriteString(space)
	}
	return b.String()
}

// cutMiddle is a text of a width at the most, with both its ends.
func cutMiddle(s string, width int) string {
	all := ansi.StringWidth(s)
	if all <= width || width < 3 {
		return s
	}
	tail := (width - 1) / 2
	return ansi.Truncate(s, width-1-tail, "") + "…" + ansi.TruncateLeft(s, all-tail, "")
}

// line is a text as wide as the screen at the most. It must be harmless already.
func (m *model) line(s string) string {
	return ansi.Truncate(s, m.width, "…")
}

// apart has a text at each end of a line, or as much of both as there is room for.
func (m *model) apart(left, right string) string {
	space := m.width - ansi.StringWidth(left) - ansi.StringWidth(right)
	if space < 2 {
		return left + "  " + right
	}
	return left + strings.Repeat(" ", space) + right
}

const mostBytes = 512

// text is what somebody said, harmless and not longer than can be worth it.
func text(s string) string {
	if len(s) > mostBytes {
		s = strings.ToValidUTF8(s[:mostBytes], "")
	}
	return escape.Text(s)
}

func rate(perSecond float64) string {
	if perSecond < 1 {
		return "-"
	}
	return units.Size(uint64(perSecond))
}

func millis(ms float64) string {
	if ms <= 0 {
		return "-"
	}
	return strconv.FormatFloat(ms, 'f', 1, 64) + " ms"
}

func number(n int, of string) string {
	if n == 1 {
		return "1 " + of
	}
	return fmt.Sprintf("%d %ss", n, of)
}

// ratio is how many of something are up.
func ratio(up, all int, of string) string {
	if up == all {
		return number(all, of)
	}
	return fmt.Sprintf("%d of %s up", up, number(all, of))
}

// named is a connection in words.
func named(p status.Pair) string {
	return fmt.Sprintf("connection %s, %s to %s", text(p.ID), text(p.Client), text(p.Service))
}
