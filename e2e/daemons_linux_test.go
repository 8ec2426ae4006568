package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// The servers and clients that people put behind tunnels, as Debian has them. Each test starts its own, on loopback and in
// temporary directories.

var (
	vsftpd       = program{"vsftpd", "vsftpd"}
	smbd         = program{"smbd", "samba"}
	smbclient    = program{"smbclient", "smbclient"}
	exim         = program{"exim4", "exim4-daemon-light"}
	mosquitto    = program{"mosquitto", "mosquitto"}
	mosquittoPub = program{"mosquitto_pub", "mosquitto-clients"}
	mosquittoSub = program{"mosquitto_sub", "mosquitto-clients"}
	psql         = program{"psql", "postgresql"}
	mariadbd     = program{"mariadbd", "mariadb-server"}
	mariadb      = program{"mariadb", "mariadb-client"}
	mariadbInit  = program{"mariadb-install-db", "mariadb-server"}
	rsync        = program{"rsync", "rsync"}
	git          = program{"git", "git"}
	iperf3       = program{"iperf3", "iperf3"}
	python       = program{"/usr/bin/python3", "python3"} // Debian's, which has the modules of Debian's packages
)

// heavy skips a test under the race detector: it looks at other programs, and what our own code does for them it does for the rest too.
func heavy(t *testing.T) {
	t.Helper()
	if raceEnabled {
		t.Skip("run without the race detector")
	}
	t.Parallel()
}

// publicDir is a temporary directory that servers reach which change their user.
func publicDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func writeFile(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func makeDir(t *testing.T, path string) string {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// awaitListener waits until something listens on a port of 127.0.0.1.
func (p *testProcess) awaitListener(port int) {
	p.t.Helper()
	eventually(p.t, fmt.Sprintf("%s listens on port %d", p.Name, port), func() bool {
		if !p.Running() {
			p.t.Fatalf("%s has ended: %v", p.Name, p.Cmd.ProcessState)
		}
		c, err := net.Dial("tcp", loopback(port))
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// prepareAs is prepare for a program that refuses to be root; without root it stays the user that it is.
func prepareAs(t *testing.T, login, path string, args ...string) *testProcess {
	t.Helper()
	p := prepare(t, filepath.Base(path), path, nil, args...)
	if os.Getuid() == 0 {
		uid, gid := idsOf(t, login)
		p.Cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		p.Cmd.Dir = "/"
	}
	return p
}

func idsOf(t *testing.T, login string) (uid, gid int) {
	t.Helper()
	u, err := user.Lookup(login)
	if err != nil {
		t.Fatal(err)
	}
	uid, _ = strconv.Atoi(u.Uid)
	gid, _ = strconv.Atoi(u.Gid)
	return uid, gid
}

// FTP opens a second connection, to an address and port that the server names.
func TestFTPPassive(t *testing.T) {
	need(t, vsftpd, curl)
	heavy(t)
	needRoot(t)
	dir, port, passive := publicDir(t), freePort(t), freePort(t)
	// The port that the server names is the port that users connect to. On one machine the two need two addresses.
	const public = "127.0.0.2"
	conf := writeFile(t, filepath.Join(dir, "vsftpd.conf"), fmt.Sprintf(`listen=YES
listen_address=127.0.0.1
listen_port=%d
background=NO
run_as_launching_user=YES
anonymous_enable=YES
local_enable=NO
write_enable=YES
anon_upload_enable=YES
anon_world_readable_only=NO
anon_root=%s
allow_writeable_chroot=YES
no_anon_password=YES
pasv_address=%s
pasv_min_port=%d
pasv_max_port=%[4]d
pasv_promiscuous=YES
seccomp_sandbox=NO
`, port, makeDir(t, filepath.Join(dir, "files")), public, passive))
	server := start(t, "vsftpd", vsftpd.path(t), nil, conf)
	server.awaitListener(port)
	p := startProxy(t)
	control := freePort(t)
	b := startBridge(t, p.defaultToken(), fmt.Sprintf("tcp/%s:%d=%d", public, control, port), fmt.Sprintf("tcp/%s:%d=%[2]d", public, passive))
	b.awaitUp(fmt.Sprintf("tcp/%s:%d", public, control), fmt.Sprintf("tcp/%s:%d", public, passive))

	want := randomFile(t, filepath.Join(dir, "up"), 3<<20)
	url := fmt.Sprintf("ftp://%s:%d/", public, control)
	for _, mode := range []string{"--ftp-pasv", "--disable-epsv"} { // EPSV names a port, PASV an address too
		args := []string{"--silent", "--show-error", "--noproxy", "*", "--max-time", "60", mode}
		name := "file" + mode
		run(t, curl.path(t), append(args, "--upload-file", filepath.Join(dir, "up"), url+name)...)
		run(t, curl.path(t), append(args, "--output", filepath.Join(dir, name), url+name)...)
		if sumOfFile(t, filepath.Join(dir, name)) != want {
			t.Errorf("%s: the checksum differs", mode)
		}
		if list := run(t, curl.path(t), append(args, "--list-only", url)...); !strings.Contains(list, name) {
			t.Errorf("%s: the list is %q; want %s in it", mode, list, name)
		}
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		lacks(t, "it needs root")
	}
}

func TestSamba(t *testing.T) {
	need(t, smbd, smbclient)
	heavy(t)
	needRoot(t)
	dir, port := publicDir(t), freePort(t)
	share := makeDir(t, filepath.Join(dir, "share"))
	var places strings.Builder
	for _, kind := range []string{"private dir", "state directory", "cache directory", "lock directory", "pid directory", "ncalrpc dir"} {
		fmt.Fprintf(&places, "%s = %s\n", kind, makeDir(t, filepath.Join(dir, strings.Fields(kind)[0])))
	}
	conf := writeFile(t, filepath.Join(dir, "smb.conf"), fmt.Sprintf(`[global]
server role = standalone
interfaces = 127.0.0.1
bind interfaces only = yes
smb ports = %d
disable netbios = yes
map to guest = Bad User
load printers = no
printcap name = /dev/null
disable spoolss = yes
log file = %s/log
%s
[share]
path = %s
guest ok = yes
read only = no
force user = root
`, port, dir, &places, share))
	server := start(t, "smbd", smbd.path(t), nil, "--foreground", "--no-process-group", "--configfile="+conf)
	server.awaitListener(port)
	tun := startTunnel(t, strconv.Itoa(port))
	want := randomFile(t, filepath.Join(dir, "up"), 20<<20)
	run(t, smbclient.path(t), "//127.0.0.1/share", "--port", strconv.Itoa(tun.public), "--no-pass", "--configfile", conf, "--timeout", "80",
		"--command", fmt.Sprintf("put %s file; get file %s", filepath.Join(dir, "up"), filepath.Join(dir, "down")))
	for _, name := range []string{filepath.Join(share, "file"), filepath.Join(dir, "down")} {
		if sumOfFile(t, name) != want {
			t.Errorf("the checksum of %s differs", filepath.Base(name))
		}
	}
}

// In SMTP the server speaks first.
func TestSMTP(t *testing.T) {
	need(t, exim, curl)
	heavy(t)
	needRoot(t)
	dir, port := publicDir(t), freePort(t)
	uid, gid := idsOf(t, "Debian-exim")
	spool := makeDir(t, filepath.Join(dir, "spool"))
	if err := os.Chown(spool, uid, gid); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "exim.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, `primary_hostname = test.example
spool_directory = %s
log_file_path = %[1]s/%%slog
pid_file_path = %[1]s/pid
queue_only
queue_only_override = false
message_size_limit = 50M
acl_smtp_rcpt = accept
acl_smtp_data = accept
begin acl
accept:
  accept
begin routers
hold:
  driver = redirect
  data = :defer:
`, spool), 0o644); err != nil {
		t.Fatal(err)
	}
	server := start(t, "exim4", exim.path(t), nil, "-C", conf, "-bdf", "-oX", fmt.Sprintf("<; [127.0.0.1]:%d", port))
	server.awaitListener(port)
	tun := startTunnel(t, strconv.Itoa(port))
	var mail strings.Builder
	mail.WriteString("Subject: through the tunnel\r\n\r\n")
	for i := range 150_000 {
		fmt.Fprintf(&mail, "line %d of a long mail, with a dot:\r\n.\r\n", i)
	}
	run(t, curl.path(t), "--silent", "--show-error", "--noproxy", "*", "--max-time", "60", "--upload-file", writeFile(t, filepath.Join(dir, "mail"), mail.String()),
		"--mail-from", "a@test.example", "--mail-rcpt", "b@test.example", "smtp://"+tun.addr())
	bodies, err := filepath.Glob(filepath.Join(spool, "input", "*-D"))
	if err != nil || len(bodies) != 1 {
		t.Fatalf("the server holds %d mails, %v; want one", len(bodies), err)
	}
	got, err := os.ReadFile(bodies[0])
	if err != nil {
		t.Fatal(err)
	}
	_, body, _ := strings.Cut(strings.ReplaceAll(mail.String(), "\r\n", "\n"), "\n\n")
	if _, got, _ := strings.Cut(string(got), "\n"); got != body { // the first line is the spool's own
		t.Errorf("the server holds a mail of %d bytes; want the %d that were sent", len(got), len(body))
	}
}

func TestMQTT(t *testing.T) {
	need(t, mosquitto, mosquittoPub, mosquittoSub)
	heavy(t)
	dir, port := t.TempDir(), freePort(t)
	conf := writeFile(t, filepath.Join(dir, "mosquitto.conf"), fmt.Sprintf("listener %d 127.0.0.1\nallow_anonymous true\nuser root\n", port))
	server := start(t, "mosquitto", mosquitto.path(t), nil, "-v", "-c", conf)
	server.awaitListener(port)
	tun := startTunnel(t, strconv.Itoa(port))
	const n = 500
	sub := start(t, "mosquitto_sub", mosquittoSub.path(t), nil, "-h", "127.0.0.1", "-p", strconv.Itoa(tun.public), "-t", "news/#", "-q", "2", "-C", strconv.Itoa(n), "-k", "60")
	server.awaitOutput("Sending SUBACK")
	var want strings.Builder
	for i := range n {
		fmt.Fprintf(&want, "message %d\n", i)
	}
	runInput(t, writeFile(t, filepath.Join(dir, "messages"), want.String()), mosquittoPub.path(t), "-h", "127.0.0.1", "-p", strconv.Itoa(tun.public), "-t", "news/a", "-q", "2", "-l")
	if code := sub.awaitEnd(); code != 0 {
		t.Fatalf("mosquitto_sub: exit code %d", code)
	}
	var got strings.Builder
	for line := range strings.Lines(sub.Stdout.String()) {
		if strings.HasPrefix(line, "message ") {
			got.WriteString(line)
		}
	}
	if got.String() != want.String() {
		t.Errorf("the subscriber got %d bytes; want each of the %d messages once and in order", got.Len(), n)
	}
}

// Each event arrives before the next is sent.
func TestServerSentEvents(t *testing.T) {
	need(t, curl)
	heavy(t)
	next := make(chan int)
	server := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.(http.Flusher).Flush()
		for i := range next {
			fmt.Fprintf(w, "data: event %d\n\n", i)
			w.(http.Flusher).Flush()
		}
	})
	tun := startTunnel(t, strconv.Itoa(server))
	c := start(t, "curl", curl.path(t), nil, "--no-buffer", "--silent", "--show-error", "--noproxy", "*", "http://"+tun.addr()+"/events")
	for i := range 50 {
		next <- i
		c.awaitOutput(fmt.Sprintf("data: event %d\n", i))
	}
	close(next)
	if code := c.awaitEnd(); code != 0 {
		t.Errorf("curl: exit code %d; want 0 at the end of the events", code)
	}
}

// serveHTTP serves until the end of the test and returns the port.
func serveHTTP(t *testing.T, handle http.HandlerFunc) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: handle}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Serve(l)
	}()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		s.Shutdown(ctx)
		s.Close()
		<-done
	})
	return l.Addr().(*net.TCPAddr).Port
}

// A client that asks first sends its 300 MB when it is told to, and none where it is told not to.
func TestBigUploadAsksFirst(t *testing.T) {
	need(t, curl)
	heavy(t)
	const size = 300 << 20
	server := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			w.Header().Set("Connection", "close")
			http.Error(w, "too large", http.StatusRequestEntityTooLarge)
			return
		}
		h := sha256.New()
		n, err := io.Copy(h, r.Body) // the first read says "100 Continue"
		fmt.Fprintf(w, "%d %x %v", n, h.Sum(nil), err)
	})
	tun := startTunnel(t, strconv.Itoa(server))
	file := filepath.Join(t.TempDir(), "upload")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	if _, err := io.Copy(io.MultiWriter(f, h), newPattern(size)); err != nil {
		t.Fatal(err)
	}
	f.Close()
	upload := func(path string) (string, string) {
		t.Helper()
		c := start(t, "curl", curl.path(t), nil, "--silent", "--show-error", "--verbose", "--noproxy", "*", "--expect100-timeout", "80", "--max-time", "85",
			"--header", "Expect: 100-continue", "--upload-file", file, "http://"+tun.addr()+path)
		c.awaitEnd()
		return c.Stdout.String(), c.Stderr.String()
	}
	got, said := upload("/yes")
	if want := fmt.Sprintf("%d %s <nil>", size, hex.EncodeToString(h.Sum(nil))); got != want || !strings.Contains(said, "< HTTP/1.1 100 Continue") {
		t.Errorf("the server got %q; want %q, behind a 100 Continue\n%s", got, want, said)
	}
	got, said = upload("/no")
	if got != "too large\n" || !strings.Contains(said, "< HTTP/1.1 413 ") || strings.Contains(said, "100 Continue") {
		t.Errorf("the refused upload ends with %q; want the server's answer\n%s", got, said)
	}
	var most int64
	for _, r := range tun.bridge.Records("pair released") {
		if sent := int64(r.Number("sent")); sent < size {
			most = max(most, sent)
		}
	}
	if most > 64<<10 {
		t.Errorf("%d bytes of the refused upload were sent; want the request alone", most)
	}
}

// session is an interactive client of a database.
type session struct {
	*testProcess
	in io.WriteCloser
}

func startSession(t *testing.T, p *testProcess) *session {
	t.Helper()
	in, err := p.Cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.start()
	return &session{p, in}
}

// ask sends a line and waits for an answer.
func (s *session) ask(line, answer string) {
	s.t.Helper()
	if _, err := io.WriteString(s.in, line+"\n"); err != nil {
		s.t.Fatal(err)
	}
	s.awaitOutput(answer)
}

func TestPostgreSQL(t *testing.T) {
	need(t, psql)
	servers, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if len(servers) == 0 {
		servers = []string{"/usr/lib/postgresql/bin/postgres"}
	}
	need(t, program{servers[0], "postgresql"})
	heavy(t)
	dir, port := publicDir(t), freePort(t)
	data := makeDir(t, filepath.Join(dir, "data"))
	if os.Getuid() == 0 {
		uid, gid := idsOf(t, "postgres")
		if err := os.Chown(data, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	initdb := prepareAs(t, "postgres", filepath.Join(filepath.Dir(servers[0]), "initdb"), "-D", data, "-A", "trust", "-U", "tester", "--no-sync", "--no-instructions", "-E", "UTF8", "--locale", "C")
	initdb.start()
	if code := initdb.awaitEnd(); code != 0 {
		t.Fatalf("initdb: exit code %d", code)
	}
	serve := func() *testProcess {
		t.Helper()
		s := prepareAs(t, "postgres", servers[0], "-D", data, "-p", strconv.Itoa(port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off")
		s.start()
		s.awaitOutput("ready to accept connections")
		return s
	}
	server := serve()
	tun := startTunnel(t, strconv.Itoa(port))
	args := []string{"--no-psqlrc", "--quiet", "--tuples-only", "--no-align", fmt.Sprintf("host=127.0.0.1 port=%d user=tester dbname=postgres connect_timeout=60", tun.public)}
	connect := func() *session {
		t.Helper()
		return startSession(t, prepare(t, "psql", psql.path(t), nil, args...))
	}
	idle := connect()
	idle.ask("select 'here ' || 1;", "here 1")

	// A bulk load, and a query that is cancelled, for which psql opens a second connection.
	var rows strings.Builder
	for i := range 100_000 {
		fmt.Fprintf(&rows, "%d\tvalue %d\n", i, i)
	}
	run(t, psql.path(t), append(args, "-c", "create table t (id int, v text)")...)
	run(t, psql.path(t), append(args, "-c", fmt.Sprintf(`\copy t from '%s'`, writeFile(t, filepath.Join(dir, "rows"), rows.String())))...)
	if got := run(t, psql.path(t), append(args, "-c", `\copy t to stdout`)...); got != rows.String() {
		t.Errorf("%d bytes came back; want the %d that were loaded", len(got), rows.Len())
	}
	long := start(t, "psql", psql.path(t), nil, append(args, "-c", "select pg_sleep(600)")...)
	eventually(t, "the query runs", func() bool {
		return strings.TrimSpace(run(t, psql.path(t), append(args, "-c", "select count(*) from pg_stat_activity where query like 'select pg_sleep%' and state = 'active'")...)) == "1"
	})
	if err := long.Cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if code := long.awaitEnd(); code == 0 || !strings.Contains(long.Stderr.String(), "canceling statement due to user request") {
		t.Errorf("the cancelled query: exit code %d, %q", code, long.Stderr.String())
	}

	// The idle session goes on, is told of a restart, and the next one has the same data.
	idle.ask("select 'still ' || 2;", "still 2")
	if err := server.Cmd.Process.Signal(os.Interrupt); err != nil { // a fast shutdown
		t.Fatal(err)
	}
	server.awaitEnd()
	serve()
	io.WriteString(idle.in, "select 3;\n")
	idle.in.Close()
	if idle.awaitEnd() == 0 || !strings.Contains(idle.Stderr.String(), "terminating connection due to administrator command") {
		t.Errorf("the session of before the restart: %q; want the server's own word", idle.Stderr.String())
	}
	if got := run(t, psql.path(t), append(args, "-c", "select count(*) from t")...); got != "100000\n" {
		t.Errorf("behind the restart there are %q rows", got)
	}
}

func TestMariaDB(t *testing.T) {
	need(t, mariadbd, mariadb, mariadbInit)
	heavy(t)
	dir, port := publicDir(t), freePort(t)
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "data")
	run(t, mariadbInit.path(t), "--no-defaults", "--datadir="+data, "--auth-root-authentication-method=normal", "--skip-test-db", "--user="+me.Username)
	serve := func() *testProcess {
		t.Helper()
		s := start(t, "mariadbd", mariadbd.path(t), nil, "--no-defaults", "--datadir="+data, "--bind-address=127.0.0.1", "--port="+strconv.Itoa(port),
			"--socket="+filepath.Join(dir, "s"), "--pid-file="+filepath.Join(dir, "pid"), "--user="+me.Username, "--innodb-flush-log-at-trx-commit=0")
		s.awaitOutput("ready for connections")
		return s
	}
	server := serve()
	tun := startTunnel(t, strconv.Itoa(port))
	args := []string{"--no-defaults", "--protocol=tcp", "--host=127.0.0.1", "--port=" + strconv.Itoa(tun.public), "--user=root", "--batch", "--skip-column-names", "--unbuffered"}
	query := func(q string) string { t.Helper(); return run(t, mariadb.path(t), append(args, "-e", q)...) }
	idle := startSession(t, prepare(t, "mariadb", mariadb.path(t), nil, append(args, "--skip-reconnect")...))
	idle.ask("select concat('here ', 1);", "here 1")

	query("create database d; create table d.t (id int, v longtext); insert into d.t values (1, repeat('x', 8000000))")
	if got := query("select v from d.t"); got != strings.Repeat("x", 8_000_000)+"\n" {
		t.Errorf("%d bytes came back; want 8,000,001", len(got))
	}
	long := start(t, "mariadb", mariadb.path(t), nil, append(args, "-e", "select sleep(600) from d.t where id = 1")...)
	id := ""
	eventually(t, "the query runs", func() bool {
		id = strings.TrimSpace(query("select id from information_schema.processlist where info like 'select sleep%'"))
		return id != ""
	})
	query("kill query " + id)
	long.awaitEnd()
	if !strings.Contains(long.Stdout.String()+long.Stderr.String(), "1\n") && !strings.Contains(long.Stderr.String(), "interrupted") {
		t.Errorf("the killed query: %q, %q", long.Stdout.String(), long.Stderr.String())
	}

	idle.ask("select concat('still ', 2);", "still 2")
	if err := server.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	server.awaitEnd()
	serve()
	io.WriteString(idle.in, "select 3;\n")
	idle.in.Close()
	if idle.awaitEnd() == 0 {
		t.Error("the session of before the restart ends as if nothing had been")
	}
	if got := query("select count(*) from d.t"); got != "1\n" {
		t.Errorf("behind the restart there are %q rows", got)
	}
}

func TestRsync(t *testing.T) {
	need(t, rsync)
	heavy(t)
	dir, port := t.TempDir(), freePort(t)
	source := makeDir(t, filepath.Join(dir, "source", "sub"))
	sums := map[string]string{}
	for i := range 200 {
		name := fmt.Sprintf("f%d", i)
		sums[name] = randomFile(t, filepath.Join(source, name), int64(i*i*10))
	}
	sums["big"] = randomFile(t, filepath.Join(source, "big"), 20<<20)
	ids := ""
	if os.Getuid() == 0 {
		ids = "uid = root\ngid = root\n"
	}
	conf := writeFile(t, filepath.Join(dir, "rsyncd.conf"), fmt.Sprintf("use chroot = no\nlog file = %s/log\n[m]\npath = %s\nread only = no\n%s", dir, makeDir(t, filepath.Join(dir, "module")), ids))
	server := start(t, "rsyncd", rsync.path(t), nil, "--daemon", "--no-detach", "--config="+conf, "--address=127.0.0.1", "--port="+strconv.Itoa(port))
	server.awaitListener(port)
	tun := startTunnel(t, strconv.Itoa(port))
	url := fmt.Sprintf("rsync://%s/m/", tun.addr())
	run(t, rsync.path(t), "-a", "--timeout=60", filepath.Join(dir, "source")+"/", url)
	run(t, rsync.path(t), "-a", "--timeout=60", url, filepath.Join(dir, "back"))
	for name, want := range sums {
		if sumOfFile(t, filepath.Join(dir, "back", "sub", name)) != want {
			t.Errorf("the checksum of %s differs", name)
		}
	}
}

func TestGit(t *testing.T) {
	need(t, git)
	heavy(t)
	dir, port := t.TempDir(), freePort(t)
	git := func(args ...string) string {
		t.Helper()
		p := start(t, "git", git.path(t), []string{"HOME=" + dir, "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0"},
			append([]string{"-c", "user.name=t", "-c", "user.email=t@test.example", "-c", "init.defaultBranch=main", "-c", "safe.directory=*"}, args...)...)
		if code := p.awaitEnd(); code != 0 {
			t.Fatalf("git %s: exit code %d\n%s", args, code, p.Stderr.String())
		}
		return p.Stdout.String()
	}
	bare, work := filepath.Join(dir, "repos", "r.git"), filepath.Join(dir, "work")
	git("init", "-q", "--bare", bare)
	git("init", "-q", work)
	want := randomFile(t, filepath.Join(work, "big"), 10<<20)
	git("-C", work, "add", ".")
	git("-C", work, "commit", "-qm", "first")
	server := start(t, "git daemon", program{"git", "git"}.path(t), []string{"HOME=" + dir}, "-c", "safe.directory=*", "daemon", "--listen=127.0.0.1", "--port="+strconv.Itoa(port), "--reuseaddr",
		"--export-all", "--enable=receive-pack", "--base-path="+filepath.Join(dir, "repos"))
	server.awaitListener(port)
	tun := startTunnel(t, strconv.Itoa(port))
	url := "git://" + tun.addr() + "/r.git"
	git("-C", work, "push", "-q", url, "main")
	git("clone", "-q", url, filepath.Join(dir, "clone"))
	if sumOfFile(t, filepath.Join(dir, "clone", "big")) != want {
		t.Error("the checksum of the clone differs")
	}
}

// With -R the server sends, over a second connection that the client has opened.
func TestIperfReverse(t *testing.T) {
	need(t, iperf3)
	heavy(t)
	port := freePort(t)
	server := start(t, "iperf3", iperf3.path(t), nil, "--server", "--bind", "127.0.0.1", "--port", strconv.Itoa(port), "--forceflush")
	server.awaitOutput("Server listening")
	tun := startTunnel(t, strconv.Itoa(port))
	const bytes = 100 << 20
	for i, more := range [][]string{{"--reverse"}, {"--reverse", "--parallel", "4"}, {}} {
		// Between two clients the server closes its port, and listens again.
		eventually(t, "the server listens", func() bool { return strings.Count(server.Stdout.String(), "Server listening") > i })
		out := run(t, iperf3.path(t), append([]string{"--client", "127.0.0.1", "--port", strconv.Itoa(tun.public), "--bytes", strconv.Itoa(bytes), "--json"}, more...)...)
		var result struct {
			End struct {
				Received struct {
					Bytes int64 `json:"bytes"`
				} `json:"sum_received"`
			} `json:"end"`
		}
		if err := json.Unmarshal([]byte(out), &result); err != nil || result.End.Received.Bytes < bytes/2 {
			t.Errorf("iperf3 %v: %d bytes received, %v; want about %d", more, result.End.Received.Bytes, err, bytes)
		}
	}
}

// pythonModule makes the test need a module of Python's.
func pythonModule(t *testing.T, module, deb string) {
	t.Helper()
	need(t, python)
	p := start(t, "python3", python.path(t), nil, "-c", "import "+module)
	p.quiet = true
	if p.awaitEnd() != 0 {
		need(t, program{"/usr/lib/python3/dist-packages/" + module, deb})
	}
}

func TestWebSocket(t *testing.T) {
	pythonModule(t, "websockets", "python3-websockets")
	heavy(t)
	pythonPair(t, "testdata/websocket.py")
}

func TestGRPC(t *testing.T) {
	pythonModule(t, "grpc", "python3-grpcio")
	heavy(t)
	pythonPair(t, "testdata/grpc_streams.py")
}

// pythonPair runs a script as a server and, through a tunnel, as its client, which checks what it gets and says so.
func pythonPair(t *testing.T, script string) {
	t.Helper()
	port := freePort(t)
	server := start(t, "server", python.path(t), nil, script, "serve", strconv.Itoa(port))
	server.awaitOutput("listening")
	tun := startTunnel(t, strconv.Itoa(port))
	client := start(t, "client", python.path(t), nil, script, "check", strconv.Itoa(tun.public))
	if code := client.awaitEnd(); code != 0 || !bytes.Contains(client.Stdout.Bytes(), []byte("all as it should be")) {
		t.Errorf("the client: exit code %d, %q", code, client.Stdout.String())
	}
}
