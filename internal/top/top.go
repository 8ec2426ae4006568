// Package top shows what a running process does, as it does it: on a terminal, or in lines of JSON.
//
//  1. sample.go makes rates of two snapshots, and lists that are sorted and filtered.
//  2. top.go takes keys and samples, one after the other.
//  3. view.go draws. The terminal is sent what has changed on it, and nothing else.
//  4. lines.go writes JSON.
//
// Texts of peers and strangers are escaped and cut before they are measured and drawn. The goroutines are those of the terminal library, which
// ends them, and one request at a time.
package top

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	tea "charm.land/bubbletea/v2"

	"reverser/internal/status"
)

// Source is the process that is looked at.
type Source struct {
	Look func(context.Context) (status.Snapshot, error)
	// End resets a connection.
	End func(ctx context.Context, id string) error
	// Fatal reports whether an error of Look is none that goes away; nil: all do.
	Fatal func(error) bool
}

const (
	every     = time.Second     // how often the process is looked at
	silence   = 6 * time.Second // a process that is asked for so long is said not to answer, as the page says it
	lookLimit = 30 * time.Second
	mostText  = 64 // characters of a filter
)

// ErrSilent is told of a process that is there and does not answer.
var ErrSilent = errors.New("it does not answer")

// Show shows the process on a terminal until the user has seen enough, or ctx ends.
func Show(ctx context.Context, src Source, first status.Snapshot, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m := newModel(ctx, src)
	m.accept(sampled{at: time.Now(), snap: first})
	done, err := tea.NewProgram(m, tea.WithContext(ctx), tea.WithInput(in), tea.WithOutput(out)).Run()
	if m, ok := done.(*model); ok && m.fatal != nil {
		return m.fatal
	}
	if ctx.Err() != nil || err == tea.ErrInterrupted {
		return nil
	}
	return err
}

// model is all that is shown, and all that was chosen. Only Update changes it.
type model struct {
	ctx           context.Context
	src           Source
	width, height int

	now    sample
	gone   error // of the last look, or ErrSilent; nil: the process answered
	asked  int   // numbers the looks
	asking bool  // the last one has no answer yet
	fatal  error // that ends it all
	paused bool

	shown    kind
	views    [kinds]choice
	typing   bool // a filter
	help     bool
	question *status.Pair // to be ended, if the user says so
	note     string       // what became of the last order
}

// choice is how a list is shown.
type choice struct {
	order    order
	reversed bool
	filter   string
	chosen   string // the id of the chosen item; "": the first
	line     int    // where it was
	top      int    // the first line that is shown
	widths   []int  // of columns: the most that was shown of each
	list     []item // sorted and filtered
}

func newModel(ctx context.Context, src Source) *model {
	return &model{ctx: ctx, src: src, width: 80, height: 24}
}

// sampled is the answer to a look.
type sampled struct {
	at   time.Time
	snap status.Snapshot
	err  error
}

// due says that it is time to look.
type due struct{}

// overdue says that the look with the number should have its answer by now.
type overdue int

// ended is what became of the order to end a connection.
type ended struct {
	pair status.Pair
	err  error
}

// Init implements tea.Model.
func (m *model) Init() tea.Cmd { return wait(every) }

func wait(d time.Duration) tea.Cmd {
	return tea.Tick(d, func(time.Time) tea.Msg { return due{} })
}

func (m *model) look() tea.Msg {
	return m.src.look(m.ctx)
}

// look looks at the process, which may take lookLimit.
func (src Source) look(ctx context.Context) sampled {
	limited, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	snap, err := src.Look(limited)
	if limited.Err() != nil && ctx.Err() == nil && err != nil {
		err = ErrSilent
	}
	return sampled{time.Now(), snap, err}
}

func (m *model) end(p status.Pair) tea.Cmd {
	return func() tea.Msg {
		ctx, cancel := context.WithTimeout(m.ctx, lookLimit)
		defer cancel()
		return ended{p, m.src.End(ctx, p.ID)}
	}
}

// Update implements tea.Model.
func (m *model) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case due:
		if m.paused {
			return m, wait(every)
		}
		m.asked++
		m.asking = true
		n := overdue(m.asked)
		return m, tea.Batch(m.look, tea.Tick(silence, func(time.Time) tea.Msg { return n }))
	case overdue:
		if m.asking && int(msg) == m.asked && m.gone == nil {
			m.gone = ErrSilent
		}
	case sampled:
		m.asking = false
		if m.accept(msg) {
			return m, tea.Quit
		}
		return m, wait(every)
	case ended:
		if m.note = fmt.Sprintf("ended %s", named(msg.pair)); msg.err != nil {
			m.note = "not ended: " + msg.err.Error()
		}
	case tea.PasteMsg:
		if m.typing {
			m.typed(msg.Content)
		}
	case tea.KeyPressMsg:
		return m, m.press(msg)
	}
	return m, nil
}

// accept takes what a look has found, and reports whether that ends it all.
func (m *model) accept(s sampled) (over bool) {
	if m.gone = s.err; s.err != nil {
		if m.src.Fatal != nil && m.src.Fatal(s.err) {
			m.fatal = s.err
			return true
		}
		return false
	}
	if m.paused { // it was under way when the user wanted to read
		return false
	}
	m.now = take(s.at, s.snap, m.now)
	for k := range kinds {
		m.arrange(k)
	}
	return false
}

func (m *model) arrange(k kind) {
	v := &m.views[k]
	v.list = arrange(m.now.lists[k], v.order, v.reversed, v.filter)
	if at := slices.IndexFunc(v.list, func(it item) bool { return it.id == v.chosen }); v.chosen != "" && at >= 0 {
		v.line = at
	} else {
		v.line = min(v.line, max(len(v.list)-1, 0))
		if v.chosen != "" { // the chosen one is gone: what stands there now
			v.chosen = v.idAt(v.line)
		}
	}
}

func (v *choice) idAt(line int) string {
	if line < len(v.list) {
		return v.list[line].id
	}
	return ""
}

// press does what a key is for.
func (m *model) press(key tea.KeyPressMsg) tea.Cmd {
	m.note = ""
	name := key.String()
	switch {
	case name == "ctrl+c":
		return tea.Quit
	case name == "ctrl+z":
		return tea.Suspend
	case m.question != nil:
		p := *m.question
		m.question = nil
		if name == "y" || name == "Y" {
			return m.end(p)
		}
		return nil
	case m.typing:
		m.edit(key)
		return nil
	case m.help:
		m.help = false
		return nil
	}
	v := &m.views[m.shown]
	switch name {
	case "q", "Q":
		return tea.Quit
	case "?", "h", "f1":
		m.help = true
	case "tab", "right", "l":
		m.shown = (m.shown + 1) % kinds
	case "shift+tab", "left":
		m.shown = (m.shown + kinds - 1) % kinds
	case "1", "2", "3":
		m.shown = kind(name[0] - '1')
	case "s":
		v.order = (v.order + 1) % orders
		m.arrange(m.shown)
	case "r":
		v.reversed = !v.reversed
		m.arrange(m.shown)
	case "/":
		m.typing = true
	case "esc":
		v.filter, v.chosen, v.line = "", "", 0
		m.arrange(m.shown)
	case "space", "p":
		m.paused = !m.paused
	case "up", "k":
		m.choose(v.line - 1)
	case "down", "j":
		m.choose(v.line + 1)
	case "pgup", "ctrl+b":
		m.choose(v.line - m.page())
	case "pgdown", "ctrl+f":
		m.choose(v.line + m.page())
	case "home", "g":
		m.choose(0)
	case "end", "G":
		m.choose(len(v.list) - 1)
	case "x", "delete":
		m.ask()
	}
	return nil
}

// choose moves to a line of the list.
func (m *model) choose(line int) {
	v := &m.views[m.shown]
	v.line = max(min(line, len(v.list)-1), 0)
	v.chosen = v.idAt(v.line)
	if line <= 0 { // the first line, whoever that is
		v.chosen = ""
	}
}

// ask asks whether the chosen connection is to be ended.
func (m *model) ask() {
	v := &m.views[pairs]
	switch {
	case m.shown != pairs:
		m.note = "x ends a connection: choose one in the list of connections"
	case m.src.End == nil || v.line >= len(v.list):
	default:
		p := m.now.snap.Pairs[v.list[v.line].at]
		m.question = &p
	}
}

// edit changes the filter.
func (m *model) edit(key tea.KeyPressMsg) {
	v := &m.views[m.shown]
	switch key.String() {
	case "enter":
		m.typing = false
	case "esc":
		m.typing, v.filter = false, ""
	case "backspace", "ctrl+h":
		_, n := utf8.DecodeLastRuneInString(v.filter)
		v.filter = v.filter[:len(v.filter)-n]
	case "ctrl+u":
		v.filter = ""
	default:
		m.typed(key.Text)
		return
	}
	m.arrange(m.shown)
}

func (m *model) typed(text string) {
	v := &m.views[m.shown]
	for _, r := range strings.Join(strings.Fields(text), " ") {
		if utf8.RuneCountInString(v.filter) < mostText {
			v.filter += string(r)
		}
	}
	if text == " " {
		v.filter += " "
	}
	m.arrange(m.shown)
}

// Unfit says why a terminal cannot show it; "": it can.
func Unfit(term string) string {
	switch term {
	case "":
		if os.PathSeparator == '\\' { // the console of Windows needs no name
			return ""
		}
		return "TERM is not set"
	case "dumb":
		return "TERM=dumb: it cannot move its cursor"
	}
	return ""
}
