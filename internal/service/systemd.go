package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// systemd installs a unit.
type systemd struct {
	root string // what stands before every path; tests have a directory of their own
	uid  int    // of this process
	run  runner
}

const (
	unitDir   = "/etc/systemd/system"
	configDir = "/etc/reverser"
	stateBase = "/var/lib"
	logBase   = "/var/log"

	// leastSystemd has LoadCredential, %d and everything else that the unit needs.
	leastSystemd = 250
)

func (m *systemd) Name() string { return "systemd" }

func unitFile(role string) string  { return UnitName(role) + ".service" }
func unitPath(role string) string  { return unitDir + "/" + unitFile(role) }
func tokenPath(role string) string { return configDir + "/" + role + ".token" }

// statePath is where the state directory of a unit is.
func (s Spec) statePath() string { return cmp.Or(s.State, stateBase+"/reverser/"+s.Role) }

// logsOf is where the unit with a state directory may write an access log; "": nowhere.
func logsOf(state string) string {
	if rel, ok := strings.CutPrefix(state, stateBase+"/"); ok {
		return filepath.Join(logBase, rel)
	}
	return ""
}

// Plan implements [Manager].
func (m *systemd) Plan(s Spec) (Plan, error) {
	text, err := m.unit(s)
	if err != nil {
		return Plan{}, err
	}
	p := Plan{Files: []File{{Path: unitPath(s.Role), Text: text}}, Obstacle: m.reachable(s)}
	if s.Token != "" {
		p.Files = append(p.Files, File{Path: tokenPath(s.Role), Note: "the token; only root can read it, and systemd hands it to the service"})
	}
	p.Commands = []string{"systemctl daemon-reload", "systemctl enable " + unitFile(s.Role), "systemctl restart " + unitFile(s.Role)}
	return p, nil
}

// unit is the text of the unit file.
func (m *systemd) unit(s Spec) (string, error) {
	if err := checkWords(append([]string{s.Program, s.State, s.Config, s.User}, s.Args...)...); err != nil {
		return "", err
	}
	// systemd takes these in no path of a program, not even escaped.
	if !filepath.IsAbs(s.Program) || strings.ContainsAny(s.Program, "\"'\\") {
		return "", misuse("copy the program to a plain path, such as /usr/local/bin/reverser, and run that one",
			"systemd cannot run %s: the path of a program has no quotes and no backslashes", s.Program)
	}
	state := s.statePath()
	args := []string{quoteWord(s.Role), "--state", quoteWord(state)}
	if s.Token != "" {
		args = append(args, "--token-file", "%d/token")
	}
	for _, a := range s.Args {
		args = append(args, quoteWord(a))
	}
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# Made by `reverser service install %s`, which --replace makes anew. For changes of your own: systemctl edit %s", s.Role, unitFile(s.Role))
	line("[Unit]")
	line("Description=%s", describe(s.Role))
	line("# The network need not be up: the service waits for it by itself. After= also orders the stop: the network stays up until the service has finished its connections.")
	line("After=network.target")
	line("StartLimitIntervalSec=0")
	line("")
	line("[Service]")
	line("Type=notify")
	line("NotifyAccess=main")
	// The colon keeps systemd from replacing $NAME in arguments.
	line("ExecStart=:%s %s", quoteWord(s.Program), strings.Join(args, " "))
	line("ExecReload=:%s reload --state %s", quoteWord(s.Program), quoteWord(state))
	line("Restart=on-failure")
	line("RestartSec=3")
	line("WatchdogSec=60")
	line("TimeoutStartSec=90")
	line("# Open connections finish first, as --drain says.")
	line("TimeoutStopSec=%d", int((s.Drain + 20*time.Second).Seconds()))
	line("LimitNOFILE=524288")
	line("UMask=0077")
	line("")
	if s.Token != "" {
		line("# The service gets the token from systemd. Nobody but root can read this file.")
		line("LoadCredential=token:%s", tokenPath(s.Role))
	}
	if s.User == "" {
		line("# A user of its own, which exists while the service runs.")
		line("DynamicUser=yes")
	} else {
		line("User=%s", s.User)
	}
	if rel, ok := strings.CutPrefix(state, stateBase+"/"); ok {
		line("StateDirectory=%s", quoteDirectory(rel))
		line("StateDirectoryMode=0700")
	} else {
		line("ReadWritePaths=%s", quoteWord(state))
	}
	if logs := logsOf(state); logs != "" {
		line("# For --access-log.")
		line("LogsDirectory=%s", quoteDirectory(strings.TrimPrefix(logs, logBase+"/")))
		line("LogsDirectoryMode=0750")
	}
	line("")
	line("# It needs the network, its state directory, and nothing else.")
	var capabilities []string
	if s.LowPorts {
		capabilities = append(capabilities, "CAP_NET_BIND_SERVICE")
	}
	if s.UsersAddresses {
		capabilities = append(capabilities, "CAP_NET_ADMIN")
	}
	if len(capabilities) > 0 {
		line("AmbientCapabilities=%s", strings.Join(capabilities, " "))
	}
	line("CapabilityBoundingSet=%s", strings.Join(capabilities, " "))
	for _, l := range hardening {
		line("%s", l)
	}
	line("")
	line("[Install]")
	line("WantedBy=multi-user.target")
	return b.String(), nil
}

// hardening is what every unit has. /proc stays readable: the memory of the machine and the limits of its sockets are read there.
// PrivateUsers is left out: where user namespaces are switched off, a unit with it does not start.
var hardening = []string{
	"NoNewPrivileges=yes",
	"ProtectSystem=strict",
	"ProtectHome=yes",
	"PrivateTmp=yes",
	"PrivateDevices=yes",
	"ProtectClock=yes",
	"ProtectControlGroups=yes",
	"ProtectHostname=yes",
	"ProtectKernelLogs=yes",
	"ProtectKernelModules=yes",
	"ProtectKernelTunables=yes",
	"ProtectProc=invisible",
	"RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK",
	"RestrictNamespaces=yes",
	"RestrictRealtime=yes",
	"RestrictSUIDSGID=yes",
	"RemoveIPC=yes",
	"LockPersonality=yes",
	"MemoryDenyWriteExecute=yes",
	"SystemCallArchitectures=native",
	"SystemCallFilter=@system-service",
	"SystemCallFilter=~@privileged",
	"SystemCallErrorNumber=EPERM",
}

// quoteWord writes one word as systemd reads it in a command without replacement of variables.
func quoteWord(s string) string {
	plain := s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:=@,+", r))
	})
	if plain {
		return s
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `%`, `%%`).Replace(s) + `"`
}

// quoteDirectory writes the path of StateDirectory=, which is read in two steps: quotes are taken away and white space divides, then a
// colon divides and what is escaped becomes itself.
func quoteDirectory(s string) string {
	percent := strings.ReplaceAll(s, "%", "%%")
	switch {
	case quoteWord(s) == s && !strings.Contains(s, ":"):
		return s
	case !strings.ContainsAny(s, `"\:`):
		return `"` + percent + `"`
	case !strings.ContainsAny(s, `'\:`):
		return "'" + percent + "'"
	}
	var b strings.Builder
	for _, c := range []byte(percent) {
		if strings.IndexByte(" \t\"'\\:", c) >= 0 {
			fmt.Fprintf(&b, `\x%02x`, c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

var hexByte = regexp.MustCompile(`\\x[0-9a-f]{2}`)

// unquoteDirectory reads what quoteDirectory wrote.
func unquoteDirectory(s string) string {
	if len(s) >= 2 && (s[0] == '"' || s[0] == '\'') {
		s = s[1 : len(s)-1]
	} else {
		s = hexByte.ReplaceAllStringFunc(s, func(x string) string {
			c, _ := strconv.ParseUint(x[2:], 16, 8)
			return string([]byte{byte(c)})
		})
	}
	return strings.ReplaceAll(s, "%%", "%")
}

// Install implements [Manager].
func (m *systemd) Install(ctx context.Context, s Spec, replace bool) (err error) {
	text, err := m.unit(s)
	if err != nil {
		return err
	}
	if err := m.usable(ctx, "install"); err != nil {
		return err
	}
	before, err := m.show(ctx, s.Role)
	if err != nil {
		return err
	}
	ours := before["FragmentPath"] == unitPath(s.Role)
	switch path := before["FragmentPath"]; {
	case path != "" && !ours && m.exists(path):
		return hint(fmt.Sprintf("configure it with `systemctl edit %s`, or remove the package", unitFile(s.Role)), "%s: %w: %s is not of this command", unitFile(s.Role), ErrInstalled, path)
	case (ours || m.exists(unitPath(s.Role))) && !replace:
		return installed(s.Role)
	}
	if err := m.reachable(s); err != nil {
		return err
	}

	var undo undoing
	defer undo.unless(&err)
	ran := before["ActiveState"] == "active" || before["ActiveState"] == "activating" || before["ActiveState"] == "reloading"
	started := false
	undo.add(func() error { return m.settleBack(s.Role, ours && ran, started) })
	for _, dir := range []string{unitDir, configDir} {
		if err := undo.mkdir(m.path(dir)); err != nil {
			return err
		}
	}
	if s.Token != "" {
		if err := undo.replace(m.path(tokenPath(s.Role)), s.Token+"\n", 0o600); err != nil {
			return err
		}
	}
	if err := undo.replace(m.path(unitPath(s.Role)), text, 0o644); err != nil {
		return err
	}
	if before["UnitFileState"] != "enabled" {
		// While systemd still knows the unit.
		undo.add(func() error { m.run(context.Background(), "systemctl", "disable", unitFile(s.Role)); return nil })
	}
	state := m.path(s.statePath())
	if !m.exists(s.statePath()) && under(s.statePath(), stateBase) {
		// The start makes it.
		undo.add(func() error { return m.removeMade(stateBase, s.statePath()) })
	}
	if logs := logsOf(s.statePath()); logs != "" && !m.exists(logs) {
		undo.add(func() error { return m.removeMade(logBase, logs) })
	}
	if s.Prepare != nil {
		// The user of the service looks for its own directory in this one.
		if err := undo.mkdir(filepath.Dir(state)); err != nil {
			return err
		}
		if err := s.Prepare(state); err != nil {
			return err
		}
	}
	if _, err := m.run(ctx, "systemctl", "daemon-reload"); err != nil {
		return err
	}
	if _, err := m.run(ctx, "systemctl", "enable", unitFile(s.Role)); err != nil {
		return err
	}
	started = true
	// It may be about to be started again.
	undo.add(func() error { m.run(context.Background(), "systemctl", "stop", unitFile(s.Role)); return nil })
	err = m.start(ctx, s.Role, "restart")
	if err == nil && s.Check != nil {
		err = s.Check(ctx, m)
	}
	if err != nil {
		return takenBack(err, ours, true) // the journal has the log
	}
	if s.Token == "" { // of the service that was replaced
		m.remove(tokenPath(s.Role))
	}
	return nil
}

// settleBack has systemd do what the files say that are there again after an installation that failed. ran reports whether the service
// ran before, started whether the new one was started.
func (m *systemd) settleBack(role string, ran, started bool) error {
	ctx := context.Background()
	if _, err := m.run(ctx, "systemctl", "daemon-reload"); err != nil {
		return err
	}
	if !started {
		return nil // what runs is the old one
	}
	if ran {
		_, err := m.run(ctx, "systemctl", "restart", unitFile(role))
		return err
	}
	m.run(ctx, "systemctl", "reset-failed", unitFile(role)) // an error if there is nothing to reset
	return nil
}

// reachable refuses what a service with a user of its own and a hardened unit could not open.
func (m *systemd) reachable(s Spec) error {
	if under(s.Program, "/home", "/root", "/run/user", "/tmp", "/var/tmp") {
		return misuse(fmt.Sprintf("install -m 755 %s /usr/local/bin/reverser, and run that one", s.Program),
			"the program is %s, where a service cannot reach it", s.Program)
	}
	if s.State != "" && !under(s.State, stateBase) && s.User == "" {
		return misuse("leave --state out, choose a directory below "+stateBase+", or name with --user the user whom it belongs to",
			"--state %s: the service has a user of its own, which owns directories below %s only", s.State, stateBase)
	}
	for _, path := range s.Sockets {
		if under(path, "/home", "/root", "/run/user", "/tmp", "/var/tmp") {
			return misuse("have its program listen in /run or /var/lib", "unix:%s: a service cannot reach that place", path)
		}
	}
	if s.User != "" {
		return nil
	}
	if p, ok := m.closed(s.Program, 0o001); ok {
		return misuse("run chmod a+rx "+p, "the program %s cannot be run by the user of the service: %s is closed to others", s.Program, p)
	}
	if s.Config == "" {
		return nil
	}
	if under(s.Config, "/home", "/root", "/run/user", "/tmp", "/var/tmp") {
		return misuse(fmt.Sprintf("move it to %s, owned by root", configDir), "--config %s: a service cannot reach that place", s.Config)
	}
	if p, ok := m.closed(s.Config, 0o004); ok {
		return misuse(fmt.Sprintf("put the secrets in it elsewhere (a token: --token-file, which is handed over privately; keys: `reverser key add`) and run chmod o+r %s, or name with --user the user whom it belongs to", p),
			"--config %s cannot be read by the user of the service: %s is closed to others", s.Config, p)
	}
	return nil
}

// under reports whether a path is below one of the directories.
func under(path string, dirs ...string) bool {
	path = filepath.Clean(path)
	return slices.ContainsFunc(dirs, func(d string) bool { return strings.HasPrefix(path, d+"/") })
}

// closed finds what keeps users other than its owner from a file: itself, if it has none of the bits, or a directory above.
func (m *systemd) closed(path string, bits fs.FileMode) (string, bool) {
	for p := path; p != "/" && p != "."; p = filepath.Dir(p) {
		info, err := os.Stat(m.path(p))
		if err == nil && info.Mode().Perm()&bits == 0 {
			return p, true
		}
		bits = 0o001
	}
	return "", false
}

// usable refuses where systemd does not run, or this user may not tell it anything.
func (m *systemd) usable(ctx context.Context, order string) error {
	if !m.exists("/run/systemd/system") {
		return hint("in a container, run the role itself, and let what runs the container restart it; `--dry-run` prints the unit for another machine",
			"this system was not started by systemd, so it has no services")
	}
	if m.uid != 0 {
		return hint("run it as root: sudo reverser service …", "service %s changes the system, and this user may not", order)
	}
	out, err := m.run(ctx, "systemctl", "--version")
	if err != nil {
		return err
	}
	words := strings.Fields(out) // "systemd 252 (252.38-1~deb12u1)"
	if len(words) < 2 {
		return fmt.Errorf("systemctl --version says %q, which is no version", strings.TrimSpace(out))
	}
	number, _, _ := strings.Cut(words[1], ".")
	if v, err := strconv.Atoi(number); err == nil && v < leastSystemd {
		return hint("write a unit of your own: docs/SERVICE.md has one for older versions", "this is systemd %d, and the unit needs %d", v, leastSystemd)
	}
	return nil
}

// Uninstall implements [Manager].
func (m *systemd) Uninstall(ctx context.Context, role string, purge bool) (kept []Kept, err error) {
	if err := m.usable(ctx, "uninstall"); err != nil {
		return nil, err
	}
	there := m.exists(unitPath(role))
	state := cmp.Or(m.State(role), Spec{Role: role}.statePath())
	if !there && !(purge && m.exists(state)) {
		return nil, notInstalled(role)
	}
	if there {
		if _, err := m.run(ctx, "systemctl", "disable", "--now", unitFile(role)); err != nil {
			return nil, err
		}
		if err := m.remove(unitPath(role)); err != nil {
			return nil, err
		}
		if _, err := m.run(ctx, "systemctl", "daemon-reload"); err != nil {
			return nil, err
		}
		m.run(ctx, "systemctl", "reset-failed", unitFile(role)) // an error if there is nothing to reset
	}
	for _, path := range []string{tokenPath(role), besides(tokenPath(role)), besides(unitPath(role))} {
		if err := m.remove(path); err != nil {
			return nil, err
		}
	}
	dropIns := unitPath(role) + ".d"
	if purge {
		if err := os.RemoveAll(m.path(dropIns)); err != nil {
			return nil, err
		}
		if under(state, stateBase) {
			if err := m.removeMade(stateBase, state); err != nil {
				return nil, err
			}
		}
	}
	logs := logsOf(state)
	if entries, err := os.ReadDir(m.path(logs)); logs != "" && (purge || err == nil && len(entries) == 0) {
		if err := m.removeMade(logBase, logs); err != nil {
			return nil, err
		}
	}
	os.Remove(m.path(configDir)) // if nothing else is in it
	if m.exists(state) {
		kept = append(kept, keptState(state, role, under(state, stateBase)))
	}
	if logs != "" && m.exists(logs) {
		kept = append(kept, Kept{logs, "the access log; --purge removes it"})
	}
	if m.exists(dropIns) {
		kept = append(kept, Kept{dropIns, "your changes to the unit; the next installation takes them over, and --purge removes them"})
	}
	if m.exists(configDir) {
		kept = append(kept, keptOwn(configDir))
	}
	return kept, nil
}

// removeMade removes a directory that systemd made below another one, to which with DynamicUser it is a link, and the directories above
// that are empty then.
func (m *systemd) removeMade(below, dir string) error {
	rel := strings.TrimPrefix(dir, below+"/")
	for _, base := range []string{below, below + "/private"} {
		if err := os.RemoveAll(m.path(filepath.Join(base, rel))); err != nil {
			return err
		}
		for dir := filepath.Dir(rel); dir != "."; dir = filepath.Dir(dir) {
			os.Remove(m.path(filepath.Join(base, dir)))
		}
	}
	return nil
}

// Start implements [Manager].
func (m *systemd) Start(ctx context.Context, role string) error {
	if err := m.known(ctx, role, "start"); err != nil {
		return err
	}
	return m.start(ctx, role, "start")
}

// start has systemd start the service, and says why it does not come up.
func (m *systemd) start(ctx context.Context, role, verb string) error {
	_, err := m.run(ctx, "systemctl", verb, unitFile(role))
	if err == nil {
		return nil
	}
	st, serr := m.Status(ctx, role)
	if serr != nil {
		return err
	}
	return doesNotComeUp(role, st, err)
}

// Stop implements [Manager].
func (m *systemd) Stop(ctx context.Context, role string) error {
	if err := m.known(ctx, role, "stop"); err != nil {
		return err
	}
	_, err := m.run(ctx, "systemctl", "stop", unitFile(role))
	return err
}

func (m *systemd) known(ctx context.Context, role, order string) error {
	if err := m.usable(ctx, order); err != nil {
		return err
	}
	p, err := m.show(ctx, role)
	if err != nil {
		return err
	}
	if p["LoadState"] == "not-found" {
		return notInstalled(role)
	}
	return nil
}

// Status implements [Manager].
func (m *systemd) Status(ctx context.Context, role string) (Status, error) {
	if !m.exists("/run/systemd/system") {
		return Status{}, m.usable(ctx, "status")
	}
	p, err := m.show(ctx, role)
	if err != nil {
		return Status{}, err
	}
	if p["LoadState"] == "not-found" {
		return Status{}, notInstalled(role)
	}
	st := Status{
		Text: p["StatusText"], Boot: strings.HasPrefix(p["UnitFileState"], "enabled"),
		LogHint: "the whole log: journalctl -u " + unitFile(role),
	}
	st.PID, _ = strconv.Atoi(p["MainPID"])
	st.Since = unixSeconds(p["StateChangeTimestamp"])
	switch p["ActiveState"] {
	case "active", "reloading":
		st.State = Running
	case "activating":
		st.State = Starting
	case "deactivating":
		st.State = Stopping
	case "failed":
		st.State = Failed
	default:
		st.State = Stopped
	}
	st.Why = whyOf(p)
	if st.State == Running {
		st.Log = m.journal(ctx, role, "_SYSTEMD_INVOCATION_ID="+p["InvocationID"], "--lines", "3", "--priority", "warning", "--since", "-10min")
		return st, nil
	}
	if m.uid == 0 {
		_, _ = m.run(ctx, "journalctl", "--sync") // what the process said at its end may be on its way
	}
	// By the process: a journal that is behind takes what a process said for the next invocation's, or for none's.
	if pid := p["ExecMainPID"]; pid != "" && pid != "0" {
		st.Log = m.journal(ctx, role, "_PID="+pid, "--lines", "10", "--since="+p["ExecMainStartTimestamp"])
	}
	if st.Why != "" && len(st.Log) == 0 && m.uid != 0 {
		st.LogHint = "run it as root to see what the service said: sudo reverser service status " + role
	}
	return st, nil
}

// journal is the end of what the service said, without what systemd says of it, in the entries that match, such as _PID=77.
func (m *systemd) journal(ctx context.Context, role, match string, which ...string) []string {
	args := append([]string{"--no-pager", "--quiet", "--output", "cat", "_SYSTEMD_UNIT=" + unitFile(role), match}, which...)
	out, err := m.run(ctx, "journalctl", args...)
	if err != nil {
		return nil
	}
	var lines []string
	for l := range strings.Lines(out) {
		if l = strings.TrimSpace(l); l != "" {
			lines = append(lines, l)
		}
	}
	return lines
}

// whyOf says in words what systemd knows of the last end of the process.
func whyOf(p map[string]string) string {
	var why []string
	switch result := p["Result"]; result {
	case "", "success":
		if p["ActiveState"] != "activating" || p["SubState"] != "auto-restart" {
			return ""
		}
	case "exit-code":
		why = append(why, exitWords(p["ExecMainStatus"]))
	case "signal", "core-dump":
		why = append(why, "the process was ended by signal "+p["ExecMainStatus"])
	case "watchdog":
		why = append(why, "the process was stuck, and systemd ended it")
	case "timeout":
		why = append(why, "the process was not ready, or did not end, in time")
	case "protocol":
		why = append(why, "the process ended without a word that it is ready")
	case "oom-kill":
		why = append(why, "the machine ran out of memory")
	default:
		why = append(why, "the result is "+result)
	}
	if n := p["NRestarts"]; n != "" && n != "0" {
		why = append(why, "systemd has started it again "+n+" times")
	}
	return strings.Join(why, "; ")
}

func exitWords(code string) string {
	switch code {
	case "2":
		return "exit code 2: wrong usage or configuration"
	case "203":
		return "exit code 203: the program cannot be run"
	case "217":
		return "exit code 217: the user of the service does not exist"
	case "226":
		return "exit code 226: the file system of the unit cannot be set up (in a container, that may not be allowed)"
	case "238":
		return "exit code 238: the state directory cannot be made"
	case "243":
		return "exit code 243: the token cannot be handed over"
	}
	return "exit code " + code
}

// showProperties are what show asks for.
var showProperties = []string{
	"LoadState", "FragmentPath", "ActiveState", "SubState", "MainPID", "StatusText", "Result", "ExecMainStatus", "NRestarts", "UnitFileState",
	"StateChangeTimestamp", "InvocationID", "ExecMainPID", "ExecMainStartTimestamp",
}

func (m *systemd) show(ctx context.Context, role string) (map[string]string, error) {
	out, err := m.run(ctx, "systemctl", "show", "--timestamp=unix", "--property", strings.Join(showProperties, ","), unitFile(role))
	if err != nil && m.uid != 0 { // without D-Bus it talks to root alone
		return nil, hint("run it as root: sudo reverser service …", "systemd does not tell this user: %w", err)
	}
	if err != nil {
		return nil, err
	}
	p := make(map[string]string)
	for l := range strings.Lines(out) {
		name, value, _ := strings.Cut(strings.TrimRight(l, "\n"), "=")
		p[name] = value
	}
	return p, nil
}

// unixSeconds parses "@1732863600".
func unixSeconds(s string) time.Time {
	n, err := strconv.ParseInt(strings.TrimPrefix(s, "@"), 10, 64)
	if err != nil || n <= 0 {
		return time.Time{}
	}
	return time.Unix(n, 0)
}

// State implements [Manager].
func (m *systemd) State(role string) string {
	text, err := os.ReadFile(m.path(unitPath(role)))
	if err != nil {
		return ""
	}
	for l := range strings.Lines(string(text)) {
		l = strings.TrimSpace(l)
		if dir, ok := strings.CutPrefix(l, "StateDirectory="); ok {
			return stateBase + "/" + unquoteDirectory(dir)
		}
		if dir, ok := strings.CutPrefix(l, "ReadWritePaths="); ok {
			return unquoteWord(dir)
		}
	}
	return ""
}

// unquoteWord reads what quoteWord wrote.
func unquoteWord(s string) string {
	in, ok := strings.CutPrefix(s, `"`)
	if !ok {
		return s
	}
	return strings.NewReplacer(`\\`, `\`, `\"`, `"`, `%%`, `%`).Replace(strings.TrimSuffix(in, `"`))
}

// TokenFile implements [Manager].
func (m *systemd) TokenFile(role string) string {
	if !m.exists(tokenPath(role)) {
		return ""
	}
	return m.path(tokenPath(role))
}

func (m *systemd) path(p string) string { return filepath.Join(m.root, p) }

func (m *systemd) exists(p string) bool {
	_, err := os.Lstat(m.path(p))
	return err == nil
}

// remove removes a file that may not be there.
func (m *systemd) remove(p string) error {
	if err := os.Remove(m.path(p)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
