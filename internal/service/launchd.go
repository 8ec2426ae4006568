package service

import (
	"bytes"
	"cmp"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// launchd installs a daemon of macOS.
type launchd struct {
	root string // what stands before every path; tests have a directory of their own
	uid  int    // of this process
	sudo string // the user who ran sudo, "" if nobody did
	run  runner
	// give makes a user the owner of everything below a path.
	give func(path, user string) error
}

const (
	daemonDir   = "/Library/LaunchDaemons"
	supportDir  = "/Library/Application Support/reverser"
	launchdWait = 15 * time.Second
)

func (m *launchd) Name() string { return "launchd" }

func (m *launchd) label(role string) string { return UnitName(role) }
func (m *launchd) plistPath(role string) string {
	return daemonDir + "/" + m.label(role) + ".plist"
}
func (m *launchd) token(role string) string  { return supportDir + "/" + role + ".token" }
func (m *launchd) target(role string) string { return "system/" + m.label(role) }
func (m *launchd) stateOf(s Spec) string     { return cmp.Or(s.State, supportDir+"/"+s.Role) }

// userOf is who runs the service: the system makes no users for services, so it is the person who installs it.
func (m *launchd) userOf(s Spec) string { return cmp.Or(s.User, m.sudo, "root") }

// Plan implements [Manager].
func (m *launchd) Plan(s Spec) (Plan, error) {
	text, err := m.plist(s)
	if err != nil {
		return Plan{}, err
	}
	p := Plan{Obstacle: m.reachable(s), Files: []File{{Path: m.plistPath(s.Role), Text: text}, {Path: m.stateOf(s), Note: "the state directory, of the user " + m.userOf(s)}}}
	if s.Token != "" {
		p.Files = append(p.Files, File{Path: m.token(s.Role), Note: "the token; only the user " + m.userOf(s) + " can read it"})
	}
	p.Commands = []string{"launchctl enable " + m.target(s.Role), "launchctl bootstrap system " + m.plistPath(s.Role)}
	return p, nil
}

// plist is the text of the property list.
func (m *launchd) plist(s Spec) (string, error) {
	if err := checkWords(append([]string{s.Program, s.State, s.Config, s.User}, s.Args...)...); err != nil {
		return "", err
	}
	args := []string{s.Program, s.Role, "--state", m.stateOf(s), HostedFlag}
	if s.Token != "" {
		args = append(args, "--token-file", m.token(s.Role))
	}
	var b strings.Builder
	line := func(depth int, format string, words ...any) {
		for i, w := range words {
			var escaped bytes.Buffer
			xml.EscapeText(&escaped, fmt.Append(nil, w))
			words[i] = escaped.String()
		}
		fmt.Fprintf(&b, strings.Repeat("\t", depth)+format+"\n", words...)
	}
	b.WriteString(xml.Header)
	line(0, `<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">`)
	line(0, `<plist version="1.0">`)
	line(0, "<dict>")
	line(1, "<key>Label</key><string>%s</string>", m.label(s.Role))
	line(1, "<key>ProgramArguments</key>")
	line(1, "<array>")
	for _, a := range append(args, s.Args...) {
		line(2, "<string>%s</string>", a)
	}
	line(1, "</array>")
	line(1, "<key>UserName</key><string>%s</string>", m.userOf(s))
	line(1, "<key>Umask</key><integer>63</integer>")
	line(1, "<key>RunAtLoad</key><true/>")
	line(1, "<key>KeepAlive</key><dict><key>SuccessfulExit</key><false/></dict>")
	line(1, "<key>ThrottleInterval</key><integer>3</integer>")
	line(1, "<key>ExitTimeOut</key><integer>%s</integer>", int((s.Drain + 20*time.Second).Seconds()))
	line(1, "<key>ProcessType</key><string>Interactive</string>") // not slowed down for others' sake
	line(1, "<key>SoftResourceLimits</key><dict><key>NumberOfFiles</key><integer>65536</integer></dict>")
	line(1, "<key>HardResourceLimits</key><dict><key>NumberOfFiles</key><integer>65536</integer></dict>")
	line(1, "<key>StandardErrorPath</key><string>/dev/null</string>")
	line(1, "<key>StandardOutPath</key><string>/dev/null</string>")
	line(0, "</dict>")
	line(0, "</plist>")
	return b.String(), nil
}

// reachable refuses what macOS keeps services away from, whoever they run as.
func (m *launchd) reachable(s Spec) error {
	for _, path := range []string{s.Program, s.Config, s.State} {
		parts := strings.Split(filepath.ToSlash(filepath.Clean(path)), "/") // "", "Users", NAME, folder, …
		if len(parts) > 4 && parts[1] == "Users" && slices.Contains([]string{"Desktop", "Documents", "Downloads"}, parts[3]) {
			return misuse("move it elsewhere: a program to /usr/local/bin, a file to /usr/local/etc",
				"%s: macOS lets no service into the folder %s of a user", path, parts[3])
		}
	}
	return nil
}

func (m *launchd) usable(order string) error {
	if m.uid != 0 {
		return hint("run it as root: sudo reverser service …", "service %s changes the system, and this user may not", order)
	}
	return nil
}

// Install implements [Manager].
func (m *launchd) Install(ctx context.Context, s Spec, replace bool) (err error) {
	text, err := m.plist(s)
	if err != nil {
		return err
	}
	if err := m.usable("install"); err != nil {
		return err
	}
	existed := m.exists(m.plistPath(s.Role))
	if existed && !replace {
		return installed(s.Role)
	}
	if err := m.reachable(s); err != nil {
		return err
	}
	ran := m.loaded(ctx, s.Role)

	var undo undoing
	defer undo.unless(&err)
	for _, dir := range []string{daemonDir, supportDir} {
		if err := undo.mkdir(m.path(dir)); err != nil {
			return err
		}
	}
	state := m.path(m.stateOf(s))
	hadState := m.exists(m.stateOf(s))
	if err := undo.mkdirState(state); err != nil {
		return err
	}
	if s.Prepare != nil {
		if err := s.Prepare(state); err != nil {
			return err
		}
	}
	if before := m.userBefore(s.Role); before != "" && before != m.userOf(s) && hadState {
		undo.add(func() error { return m.give(state, before) })
	}
	if err := m.give(state, m.userOf(s)); err != nil {
		return err
	}
	if ran {
		if err := m.unload(ctx, s.Role); err != nil {
			return err
		}
		undo.add(func() error { return m.load(context.Background(), s.Role) })
	}
	if s.Token != "" {
		if err := undo.replace(m.path(m.token(s.Role)), s.Token+"\n", 0o600); err != nil {
			return err
		}
		if err := m.give(m.path(m.token(s.Role)), m.userOf(s)); err != nil {
			return err
		}
	}
	if err := undo.replace(m.path(m.plistPath(s.Role)), text, 0o644); err != nil {
		return err
	}
	undo.add(func() error {
		if m.loaded(context.Background(), s.Role) {
			return m.unload(context.Background(), s.Role)
		}
		return nil
	})
	err = m.Start(ctx, s.Role)
	if err == nil && s.Check != nil {
		err = s.Check(ctx, m)
	}
	if err != nil {
		return takenBack(err, existed, hadState)
	}
	if s.Token == "" { // of the service that was replaced
		os.Remove(m.path(m.token(s.Role)))
	}
	return nil
}

// loaded reports whether launchd knows the service.
func (m *launchd) loaded(ctx context.Context, role string) bool {
	_, err := m.run(ctx, "launchctl", "print", m.target(role))
	return err == nil
}

func (m *launchd) load(ctx context.Context, role string) error {
	// What was disabled once stays so, also for a service that is made anew.
	if _, err := m.run(ctx, "launchctl", "enable", m.target(role)); err != nil {
		return err
	}
	_, err := m.run(ctx, "launchctl", "bootstrap", "system", m.plistPath(role))
	return err
}

// unload ends the process and waits for that: launchd takes a service with the same name only then.
func (m *launchd) unload(ctx context.Context, role string) error {
	if _, err := m.run(ctx, "launchctl", "bootout", m.target(role)); err != nil && m.loaded(ctx, role) {
		// It says "operation in progress" for as long as connections finish.
		for m.loaded(ctx, role) {
			if !rest(ctx) {
				return err
			}
		}
	}
	return nil
}

func rest(ctx context.Context) bool {
	select {
	case <-time.After(100 * time.Millisecond):
		return true
	case <-ctx.Done():
		return false
	}
}

// Uninstall implements [Manager].
func (m *launchd) Uninstall(ctx context.Context, role string, purge bool) (kept []Kept, err error) {
	if err := m.usable("uninstall"); err != nil {
		return nil, err
	}
	state := cmp.Or(m.State(role), m.stateOf(Spec{Role: role}))
	if !m.exists(m.plistPath(role)) && !(purge && m.exists(state)) {
		return nil, notInstalled(role)
	}
	if m.loaded(ctx, role) {
		if err := m.unload(ctx, role); err != nil {
			return nil, err
		}
	}
	for _, path := range []string{m.plistPath(role), m.token(role), besides(m.plistPath(role)), besides(m.token(role))} {
		if err := os.Remove(m.path(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	if purge && under(state, supportDir) {
		if err := os.RemoveAll(m.path(state)); err != nil {
			return nil, err
		}
	}
	os.Remove(m.path(supportDir)) // if nothing else is in it
	if m.exists(state) {
		kept = append(kept, keptState(state, role, under(state, supportDir)))
	} else if m.exists(supportDir) {
		kept = append(kept, keptOwn(supportDir))
	}
	return kept, nil
}

// Start implements [Manager].
func (m *launchd) Start(ctx context.Context, role string) error {
	if err := m.usable("start"); err != nil {
		return err
	}
	if !m.exists(m.plistPath(role)) {
		return notInstalled(role)
	}
	if !m.loaded(ctx, role) {
		if err := m.load(ctx, role); err != nil {
			return err
		}
	} else if _, err := m.run(ctx, "launchctl", "kickstart", m.target(role)); err != nil {
		return err
	}
	// launchd does not know when a process is ready. One that cannot serve ends at once.
	ctx, cancel := context.WithTimeout(ctx, launchdWait)
	defer cancel()
	for steady := 0; steady < 10; {
		st, err := m.Status(ctx, role)
		if err != nil {
			return err
		}
		if steady++; st.State == Failed {
			return doesNotComeUp(role, st, nil)
		}
		if !rest(ctx) {
			return doesNotComeUp(role, st, ctx.Err())
		}
	}
	return nil
}

// Stop implements [Manager].
func (m *launchd) Stop(ctx context.Context, role string) error {
	if err := m.usable("stop"); err != nil {
		return err
	}
	if !m.exists(m.plistPath(role)) {
		return notInstalled(role)
	}
	if !m.loaded(ctx, role) {
		return nil
	}
	return m.unload(ctx, role)
}

// Status implements [Manager].
func (m *launchd) Status(ctx context.Context, role string) (Status, error) {
	if !m.exists(m.plistPath(role)) {
		return Status{}, notInstalled(role)
	}
	path := filepath.Join(m.State(role), LogFile)
	st := Status{State: Stopped, Boot: true, LogHint: "the whole log: " + path}
	out, err := m.run(ctx, "launchctl", "print", m.target(role))
	if err != nil { // launchd does not know it: it was stopped
		return st, nil
	}
	p := launchdProperties(out)
	st.PID, _ = strconv.Atoi(p["pid"])
	code := p["last exit code"]
	switch {
	case st.PID != 0:
		st.State = Running
	case code == "0" || code == "" || strings.HasPrefix(code, "(never"):
	default:
		number, _, _ := strings.Cut(code, ":")
		st.State, st.Why = Failed, exitWords(number)
		st.Log = lastLines(m.path(path), 10)
	}
	if st.State == Running {
		st.Log = warnings(lastLines(m.path(path), 50), 3)
	}
	return st, nil
}

// launchdProperties are the lines "name = value" of `launchctl print` that are about the service itself.
func launchdProperties(out string) map[string]string {
	p := make(map[string]string)
	for line := range strings.Lines(out) {
		if !strings.HasPrefix(line, "\t") || strings.HasPrefix(line, "\t\t") {
			continue
		}
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " = "); ok {
			p[name] = value
		}
	}
	return p
}

// State implements [Manager].
func (m *launchd) State(role string) string { return m.listed(role, "--state") }

// userBefore is who runs the service that is installed, "" if none is.
func (m *launchd) userBefore(role string) string { return m.listed(role, "UserName") }

// listed is the string that follows a word in the list of an installed service: the value of a key, or the next argument. "" if there is
// none.
func (m *launchd) listed(role, before string) string {
	text, err := os.ReadFile(m.path(m.plistPath(role)))
	if err != nil {
		return ""
	}
	d := xml.NewDecoder(bytes.NewReader(text))
	for last := ""; ; {
		t, err := d.Token()
		if err != nil {
			return ""
		}
		start, ok := t.(xml.StartElement)
		if !ok || start.Name.Local != "string" && start.Name.Local != "key" {
			continue
		}
		var word string
		if d.DecodeElement(&word, &start) != nil {
			return ""
		}
		if last == before && start.Name.Local == "string" {
			return word
		}
		last = word
	}
}

// TokenFile implements [Manager].
func (m *launchd) TokenFile(role string) string {
	if !m.exists(m.token(role)) {
		return ""
	}
	return m.path(m.token(role))
}

func (m *launchd) path(p string) string { return filepath.Join(m.root, p) }

func (m *launchd) exists(p string) bool {
	_, err := os.Lstat(m.path(p))
	return err == nil
}
