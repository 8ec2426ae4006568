package service

import (
	"cmp"
	"context"
	"crypto/sha1"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode/utf16"
)

// HostedFlag is what a manager that does not read stderr puts on the command line of a service: the process answers the manager, and
// writes its log to [LogFile].
const HostedFlag = "--service"

// windowsServices installs services of Windows. What it asks of the system is behind interfaces: the rules here are tested on any
// system.
type windowsServices struct {
	scm      scm
	programs string // the directory for programs
	data     string // the directory for what belongs to no user
	// protect closes a file or directory to all but the system, administrators and one account.
	protect func(path string, account string, full bool) error
	// owned returns an error when somebody else than the system, an administrator or this user made a file or directory: whoever
	// made it may open it again.
	owned func(path string) error
}

// scm is the service control manager.
type scm interface {
	// config is of a service that is installed; without one the error is ErrNotInstalled.
	config(name string) (scmConfig, error)
	create(name string, c scmConfig) error
	update(name string, c scmConfig) error
	remove(name string) error
	start(name string) error
	stop(name string) error
	query(name string) (scmState, error)
	// exists reports whether there is a process of that number.
	exists(pid int) bool
	// Sources of events are what the event log shows as the origin of a line.
	addSource(name string) error
	removeSource(name string) error
}

// scmConfig is what the manager knows of a service. It starts it with the system, before anybody logs on, and again when it fails.
type scmConfig struct {
	Display, Description string
	Program              string
	Args                 []string
	Account              string
	StopWithin           time.Duration // that it gets when the system is shut down
}

// scmState is how a service does.
type scmState struct {
	State      string // Running and so on
	PID        int
	ExitCode   uint32 // of the last end, or an error of the system where Own is false
	Own        bool   // the exit code is the program's
	CheckPoint uint32 // moves while a start or stop makes progress
}

func (m *windowsServices) Name() string { return "Windows services" }

func (m *windowsServices) program() string {
	return filepath.Join(m.programs, "reverser", "reverser.exe")
}
func (m *windowsServices) home() string { return filepath.Join(m.data, "reverser") }
func (m *windowsServices) token(role string) string {
	return filepath.Join(m.home(), role+".token")
}

func (m *windowsServices) stateOf(s Spec) string {
	return cmp.Or(s.State, filepath.Join(m.home(), s.Role))
}

// The accounts that need no password. The default is one that the system makes for the service alone.
const (
	accountSystem  = "LocalSystem"
	accountLocal   = `NT AUTHORITY\LocalService`
	accountNetwork = `NT AUTHORITY\NetworkService`
)

func accountOf(s Spec) (string, error) {
	switch strings.ToLower(s.User) {
	case "":
		return `NT SERVICE\` + UnitName(s.Role), nil
	case "localsystem":
		return accountSystem, nil
	case "localservice", strings.ToLower(accountLocal):
		return accountLocal, nil
	case "networkservice", strings.ToLower(accountNetwork):
		return accountNetwork, nil
	}
	return "", misuse("leave --user out: the service then has an account of its own; LocalSystem, LocalService and NetworkService are there too",
		"--user %s: an account with a password cannot run the service", s.User)
}

// accountSID is the identifier of an account of accountOf. That of a service is made from its name.
func accountSID(account string) string {
	switch account {
	case accountSystem:
		return "S-1-5-18"
	case accountLocal:
		return "S-1-5-19"
	case accountNetwork:
		return "S-1-5-20"
	}
	name := strings.ToUpper(strings.TrimPrefix(account, `NT SERVICE\`))
	var b []byte
	for _, unit := range utf16.Encode([]rune(name)) {
		b = binary.LittleEndian.AppendUint16(b, unit)
	}
	sum := sha1.Sum(b)
	sid := "S-1-5-80"
	for i := 0; i < len(sum); i += 4 {
		sid += fmt.Sprintf("-%d", binary.LittleEndian.Uint32(sum[i:]))
	}
	return sid
}

func (m *windowsServices) configOf(s Spec) (scmConfig, error) {
	if err := checkWords(append([]string{s.Program, s.State, s.Config}, s.Args...)...); err != nil {
		return scmConfig{}, err
	}
	account, err := accountOf(s)
	if err != nil {
		return scmConfig{}, err
	}
	args := []string{s.Role, "--state", m.stateOf(s), HostedFlag}
	if s.Token != "" {
		args = append(args, "--token-file", m.token(s.Role))
	}
	display, description, _ := strings.Cut(describe(s.Role), ": ")
	return scmConfig{
		Display: strings.ToUpper(display[:1]) + display[1:], Description: strings.ToUpper(description[:1]) + description[1:],
		Program: m.program(), Args: append(args, s.Args...), Account: account, StopWithin: s.Drain + 15*time.Second,
	}, nil
}

// Plan implements [Manager].
func (m *windowsServices) Plan(s Spec) (Plan, error) {
	c, err := m.configOf(s)
	if err != nil {
		return Plan{}, err
	}
	var p Plan
	if s.Program != c.Program {
		p.Files = append(p.Files, File{Path: c.Program, Note: "a copy of " + s.Program})
	}
	p.Files = append(p.Files, File{Path: m.stateOf(s), Note: "the state directory; only the service and administrators can open it"})
	if s.Token != "" {
		p.Files = append(p.Files, File{Path: m.token(s.Role), Note: "the token; only the service and administrators can read it"})
	}
	words := []string{quoteWindows(c.Program)}
	for _, a := range c.Args {
		words = append(words, quoteWindows(a))
	}
	p.Commands = []string{
		"create the service " + UnitName(s.Role) + ", which starts with the system as " + c.Account + ":",
		strings.Join(words, " "),
		"start it",
	}
	return p, nil
}

// quoteWindows shows a word as it stands on a command line of Windows. The system's own code makes the one that counts.
func quoteWindows(s string) string {
	if s != "" && !strings.ContainsAny(s, " \t\"") {
		return s
	}
	return `"` + strings.ReplaceAll(s, `"`, `\"`) + `"`
}

// Install implements [Manager].
func (m *windowsServices) Install(ctx context.Context, s Spec, replace bool) (err error) {
	name := UnitName(s.Role)
	c, err := m.configOf(s)
	if err != nil {
		return err
	}
	old, err := m.scm.config(name)
	existed := err == nil
	if err != nil && !errors.Is(err, ErrNotInstalled) {
		return m.refused(err, "install")
	}
	if existed && !replace {
		return installed(s.Role)
	}
	ran := false
	if existed {
		st, err := m.scm.query(name)
		if err != nil {
			return err
		}
		ran = st.State == Running || st.State == Starting
	}

	_, err = os.Stat(m.stateOf(s))
	hadState := err == nil

	var undo undoing
	defer undo.unless(&err)
	if existed && ran {
		undo.add(func() error { return m.startAndWait(context.Background(), s.Role) }) // the last step, when all is as it was
	}
	if err := m.copyProgram(s.Program, &undo); err != nil {
		return m.refused(err, "install")
	}
	before := ""
	if stateIn(old) == m.stateOf(s) {
		before = old.Account
	}
	if err := m.makeDirs(s, c.Account, before, &undo); err != nil {
		return m.refused(err, "install")
	}
	if s.Prepare != nil {
		if err := s.Prepare(m.stateOf(s)); err != nil {
			return err
		}
	}
	if existed {
		if err := m.stopAndWait(ctx, name); err != nil {
			return m.refused(err, "install")
		}
		undo.add(func() error { return m.scm.update(name, old) })
		err = m.scm.update(name, c)
	} else {
		undo.add(func() error { return m.drop(name) })
		err = m.scm.create(name, c)
	}
	if err != nil {
		return m.refused(err, "install")
	}
	if err := m.scm.addSource(name); err != nil {
		return m.refused(err, "install")
	}
	err = m.startAndWait(ctx, s.Role)
	if err == nil && s.Check != nil {
		err = s.Check(ctx, m)
	}
	if err != nil {
		undo.add(func() error { return m.stopAndWait(context.Background(), name) })
		return takenBack(err, existed, hadState)
	}
	if s.Token == "" { // of the service that was replaced
		os.Remove(m.token(s.Role))
	}
	m.sweep()
	return nil
}

// drop removes a service whose installation failed, if it is there.
func (m *windowsServices) drop(name string) error {
	m.scm.removeSource(name)
	if err := m.scm.remove(name); err != nil && !errors.Is(err, ErrNotInstalled) {
		return err
	}
	return nil
}

// refused says what to do about an order that the system does not take from this user.
func (m *windowsServices) refused(err error, order string) error {
	if errors.Is(err, fs.ErrPermission) {
		return hint("open a terminal with \"Run as administrator\" and try again there", "service %s changes the system, and this user may not: %w", order, err)
	}
	return err
}

// copyProgram puts the program where no ordinary user can change it: whoever could would be the service.
func (m *windowsServices) copyProgram(from string, undo *undoing) error {
	to := m.program()
	if same(from, to) {
		return nil
	}
	if err := undo.mkdir(filepath.Dir(to)); err != nil {
		return err
	}
	next, err := copyBeside(from, to)
	if err != nil {
		return err
	}
	if _, err := os.Stat(to); err == nil {
		// A program that runs can be renamed, but neither be removed nor be written.
		old := fmt.Sprintf("%s.%d.old", to, time.Now().UnixNano())
		if err := os.Rename(to, old); err != nil {
			os.Remove(next)
			return err
		}
		undo.add(func() error {
			os.Remove(to)
			return os.Rename(old, to)
		})
	} else {
		undo.add(func() error { return os.Remove(to) })
	}
	if err := os.Rename(next, to); err != nil {
		os.Remove(next)
		return err
	}
	return nil
}

func same(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}

// copyBeside copies a file into the directory of another one and returns its path.
func copyBeside(from, to string) (path string, err error) {
	in, err := os.Open(from)
	if err != nil {
		return "", err
	}
	defer in.Close()
	out, err := os.CreateTemp(filepath.Dir(to), filepath.Base(to)+".*.new")
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			out.Close() // a second Close does no harm
			os.Remove(out.Name())
		}
	}()
	if _, err := io.Copy(out, in); err != nil {
		return "", err
	}
	if err := out.Chmod(0o755); err != nil {
		return "", err
	}
	if err := out.Sync(); err != nil {
		return "", err
	}
	return out.Name(), out.Close()
}

// sweep removes programs that were replaced, as far as nobody runs them.
func (m *windowsServices) sweep() {
	old, _ := filepath.Glob(m.program() + ".*.old")
	for _, path := range old {
		os.Remove(path)
	}
}

// makeDirs makes the state directory and the file of the token. before is the account that has the directory so far, "" if none has.
func (m *windowsServices) makeDirs(s Spec, account, before string, undo *undoing) error {
	home, state := m.home(), m.stateOf(s)
	// Everybody may make directories where home is.
	for _, dir := range []string{home, state} {
		if err := m.owned(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := undo.mkdir(home); err != nil {
		return err
	}
	// Before anything is in it.
	if err := m.protect(home, "", true); err != nil {
		return fmt.Errorf("close %s to other users: %w", home, err)
	}
	if err := undo.mkdirState(state); err != nil {
		return err
	}
	if before != "" && before != account {
		undo.add(func() error { return m.protect(state, before, true) })
	}
	if err := m.protect(state, account, true); err != nil {
		return fmt.Errorf("close %s to other users: %w", state, err)
	}
	if s.Token == "" {
		return nil
	}
	path := m.token(s.Role)
	if err := undo.replace(path, s.Token+"\n", 0o600); err != nil { // in a directory that is closed already
		return err
	}
	if err := m.protect(path, account, false); err != nil {
		return fmt.Errorf("close %s to other users: %w", path, err)
	}
	return nil
}

// Uninstall implements [Manager].
func (m *windowsServices) Uninstall(ctx context.Context, role string, purge bool) (kept []Kept, err error) {
	name := UnitName(role)
	c, err := m.scm.config(name)
	there := err == nil
	if err != nil && !errors.Is(err, ErrNotInstalled) {
		return nil, m.refused(err, "uninstall")
	}
	state := cmp.Or(stateIn(c), m.stateOf(Spec{Role: role}))
	if _, err := os.Stat(state); !there && !(purge && err == nil) {
		return nil, notInstalled(role)
	}
	if there {
		if err := m.stopAndWait(ctx, name); err != nil {
			return nil, m.refused(err, "uninstall")
		}
		if err := m.scm.remove(name); err != nil {
			return nil, m.refused(err, "uninstall")
		}
		m.scm.removeSource(name)
	}
	for _, path := range []string{m.token(role), besides(m.token(role))} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, m.refused(err, "uninstall")
		}
	}
	ours := strings.HasPrefix(filepath.Clean(state), m.home()+string(filepath.Separator))
	if purge && ours {
		if err := os.RemoveAll(state); err != nil {
			return nil, m.refused(err, "uninstall")
		}
	}
	others := slices.ContainsFunc([]string{"proxy", "bridge"}, func(r string) bool {
		_, err := m.scm.config(UnitName(r))
		return err == nil
	})
	if !others {
		os.Remove(m.program()) // Windows keeps the program that runs this command
		m.sweep()
		os.Remove(filepath.Dir(m.program()))
	}
	os.Remove(m.home()) // if nothing else is in it
	exists := func(path string) bool { _, err := os.Stat(path); return err == nil }
	if exists(state) {
		kept = append(kept, keptState(state, role, ours))
	}
	if exists(m.home()) && !(exists(state) && strings.HasPrefix(state, m.home())) {
		kept = append(kept, keptOwn(m.home()))
	}
	if exists(m.program()) && !others {
		kept = append(kept, Kept{m.program(), "Windows keeps a program that runs: delete it when this command has ended"})
	}
	return kept, nil
}

// Start implements [Manager].
func (m *windowsServices) Start(ctx context.Context, role string) error {
	if _, err := m.scm.config(UnitName(role)); err != nil {
		return m.missing(err, role, "start")
	}
	return m.startAndWait(ctx, role)
}

// Stop implements [Manager].
func (m *windowsServices) Stop(ctx context.Context, role string) error {
	if _, err := m.scm.config(UnitName(role)); err != nil {
		return m.missing(err, role, "stop")
	}
	return m.refused(m.stopAndWait(ctx, UnitName(role)), "stop")
}

func (m *windowsServices) missing(err error, role, order string) error {
	if errors.Is(err, ErrNotInstalled) {
		return notInstalled(role)
	}
	return m.refused(err, order)
}

// A service that says nothing new for that long is stuck.
const scmPatience = time.Minute

const scmPoll = 100 * time.Millisecond

// startAndWait starts a service, and says why it does not come up.
func (m *windowsServices) startAndWait(ctx context.Context, role string) error {
	name := UnitName(role)
	if st, err := m.scm.query(name); err == nil && st.State == Running {
		return nil
	}
	failed := func(cause error) error {
		st, err := m.Status(ctx, role)
		if err != nil {
			return cause
		}
		return doesNotComeUp(role, st, cause)
	}
	if err := m.scm.start(name); err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return m.refused(err, "start")
		}
		return failed(err)
	}
	st, err := m.await(ctx, name, Starting)
	if err != nil {
		return err
	}
	if st.State != Running {
		if err := m.awaitExit(ctx, st.PID); err != nil {
			return err
		}
		return failed(fmt.Errorf("it is %s", st.State))
	}
	return nil
}

// exitPatience is how long a process that has said that it is stopped may take to exit. Its number may be another's by then.
const exitPatience = 30 * time.Second

// stopAndWait stops a service that may not run. When it returns, the process that ran has no files open any more. Nobody knows the process of a
// service that had stopped before.
func (m *windowsServices) stopAndWait(ctx context.Context, name string) error {
	st, err := m.await(ctx, name, Starting) // until then the manager passes no order on
	if err != nil {
		return err
	}
	pid := st.PID
	if st.State == Stopped || st.State == Failed {
		return m.awaitExit(ctx, pid)
	}
	if st.State != Stopping {
		if err := m.scm.stop(name); err != nil {
			return fmt.Errorf("stop %s: %w", name, err)
		}
	}
	if st, err = m.await(ctx, name, Stopping, Running); err != nil {
		return err
	}
	if st.State != Stopped && st.State != Failed {
		return fmt.Errorf("%s is %s, and was asked to stop", name, st.State)
	}
	return m.awaitExit(ctx, pid)
}

// awaitExit waits until the process of a service that has stopped is gone. 0: there was none.
func (m *windowsServices) awaitExit(ctx context.Context, pid int) error {
	for end := time.Now().Add(exitPatience); pid != 0 && m.scm.exists(pid) && time.Now().Before(end); {
		select {
		case <-time.After(scmPoll):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// await waits until a service is in none of the states any more. The manager does not know the process of one that has stopped: the state that
// is returned has that of the last state with one.
func (m *windowsServices) await(ctx context.Context, name string, during ...string) (st scmState, err error) {
	news, pid := time.Now(), 0
	for last := (scmState{}); ; {
		if st, err = m.scm.query(name); err != nil {
			return st, err
		}
		if st.PID != 0 {
			pid = st.PID
		}
		st.PID = pid
		if !slices.Contains(during, st.State) {
			return st, nil
		}
		if st != last {
			news, last = time.Now(), st
		}
		if time.Since(news) > scmPatience {
			return st, fmt.Errorf("%s is still %s, and makes no progress: look at it in the Task Manager (pid %d)", name, st.State, st.PID)
		}
		select {
		case <-time.After(scmPoll):
		case <-ctx.Done():
			return st, ctx.Err()
		}
	}
}

// Status implements [Manager].
func (m *windowsServices) Status(_ context.Context, role string) (Status, error) {
	name := UnitName(role)
	c, err := m.scm.config(name)
	if err != nil {
		return Status{}, m.missing(err, role, "status")
	}
	q, err := m.scm.query(name)
	if err != nil {
		return Status{}, m.refused(err, "status")
	}
	path := filepath.Join(stateIn(c), LogFile)
	st := Status{
		State: q.State, PID: q.PID, Boot: true,
		LogHint: "the whole log: " + path + "; warnings and errors are in the event log too (Event Viewer, Windows Logs, Application, source " + name + ")",
	}
	switch {
	case q.State == Running:
		st.Log = warnings(lastLines(path, 50), 3)
		return st, nil
	case q.ExitCode == 0 || q.ExitCode == neverStarted && !q.Own:
	case q.Own:
		st.State, st.Why = Failed, exitWords(fmt.Sprint(q.ExitCode))
	default:
		st.State, st.Why = Failed, windowsError(q.ExitCode)
	}
	if q.State != Stopped {
		st.State = q.State
	}
	st.Log = lastLines(path, 10)
	return st, nil
}

// neverStarted is the exit code of a service that has not run since the system started (ERROR_SERVICE_NEVER_STARTED).
const neverStarted = 1077

func windowsError(code uint32) string {
	switch code {
	case 2, 3:
		return "the program is not there any more"
	case 5:
		return "the account of the service may not run the program"
	case 1053:
		return "the process did not answer the service manager in time"
	case 1067:
		return "the process was ended, or crashed"
	case 1069:
		return "the account of the service cannot log on"
	}
	return fmt.Sprintf("error %d of Windows (`net helpmsg %d` says it in words)", code, code)
}

// stateIn is the state directory on the command line of a service.
func stateIn(c scmConfig) string {
	for i, a := range c.Args[:max(len(c.Args)-1, 0)] {
		if a == "--state" {
			return c.Args[i+1]
		}
	}
	return ""
}

// State implements [Manager].
func (m *windowsServices) State(role string) string {
	c, err := m.scm.config(UnitName(role))
	if err != nil {
		return ""
	}
	return stateIn(c)
}

// TokenFile implements [Manager].
func (m *windowsServices) TokenFile(role string) string {
	if _, err := os.Stat(m.token(role)); err != nil {
		return ""
	}
	return m.token(role)
}
