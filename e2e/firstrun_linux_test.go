package e2e

import (
	"archive/zip"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"reverser/e2e/process"
)

// A person sits at a terminal, reads what a program shows and types.
type person struct {
	t     *testing.T
	tty   *os.File
	shown process.Output
}

// controls are what a terminal obeys: they move words about, as Windows' console does at each line.
var controls = regexp.MustCompile(`\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07\x1b]*(\x07|\x1b\\)|\x1b.|\s`)

// sees waits until the terminal shows a text.
func (p *person) sees(text string) {
	p.t.Helper()
	text = controls.ReplaceAllString(text, "")
	eventually(p.t, "the terminal shows "+text, func() bool {
		return strings.Contains(controls.ReplaceAllString(p.shown.String(), ""), text)
	})
}

func (p *person) types(text string) {
	p.t.Helper()
	if _, err := io.WriteString(p.tty, text); err != nil {
		p.t.Fatal(err)
	}
}

// awaitConsole waits until the console of Wine has the terminal for itself: what is typed before reaches it in another way, Enter as a line feed.
func (p *person) awaitConsole() {
	p.t.Helper()
	raw, err := p.tty.SyscallConn()
	if err != nil {
		p.t.Fatal(err)
	}
	eventually(p.t, "Enter is a carriage return", func() (is bool) {
		raw.Control(func(fd uintptr) {
			mode, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
			is = err == nil && mode.Iflag&unix.ICRNL == 0
		})
		return is
	})
}

// TestFirstRunOfTheZip: somebody unpacks the zip of a release into a folder that was empty, starts the program in it by a double click,
// answers what it asks, and a user is served. The folder and the answers are all that there is.
func TestFirstRunOfTheZip(t *testing.T) {
	t.Parallel()
	if !onWine("bridge") || onWine("proxy") {
		t.Skip("needs a bridge of Windows and a proxy of Linux: .ci/wine runs it")
	}
	dir := t.TempDir()
	release := os.Getenv("REVERSER_E2E_RELEASE") // .ci/run has made one
	if release == "" {
		release = filepath.Join(dir, "release")
		cmd := exec.Command("go", "run", ".", "-platforms", "windows/amd64", "-out", release)
		cmd.Dir = "../packaging"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", cmd, err, out)
		}
	}
	zips, err := filepath.Glob(filepath.Join(release, "*_windows_amd64.zip"))
	if err != nil || len(zips) != 1 {
		t.Fatalf("the release has the zips %q, %v; want one", zips, err)
	}
	folder := filepath.Join(dir, "新的 folder")
	unzip(t, zips[0], folder)

	proxy := startProxy(t)
	proxy.defaultToken()
	line := strings.TrimSpace(proxy.Stdout.String()) // as it stands there, to be copied
	public := freePort(t)

	tty, program, err := process.Terminal()
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	words := strings.Fields(os.Getenv(programEnv["bridge"])) // Wine, and a program
	words[len(words)-1] = filepath.Join(folder, "reverser.exe")
	p := prepare(t, "reverser.exe", words[0], nil, words[1:]...)
	p.Cmd.Stdin, p.Cmd.Stdout, p.Cmd.Stderr = program, program, program
	p.Cmd.SysProcAttr.Setpgid, p.Cmd.SysProcAttr.Setsid, p.Cmd.SysProcAttr.Setctty = false, true, true // a session has a group of its own
	p.start()
	program.Close()
	somebody := &person{t: t, tty: tty}
	read := make(chan struct{})
	go func() {
		defer close(read)
		io.Copy(&somebody.shown, tty) // until nobody has the other end
	}()
	defer func() {
		if t.Failed() {
			t.Logf("the terminal shows\n%s", controls.ReplaceAllString(somebody.shown.String(), " "))
		}
		p.Kill()
		tty.Close()
		<-read
	}()

	somebody.sees("Paste that line, or the token in it (rv1_...), and press Enter:")
	somebody.awaitConsole()
	somebody.types(line + "\r")
	somebody.sees("Which port shall be public?")
	somebody.types(fmt.Sprintf("%d=%d\r", public, serve(t, echo)))
	somebody.sees("It works. Users reach: " + loopback(public))
	somebody.sees("in this window, until it is closed")
	somebody.types("2\r")
	somebody.sees("It runs until you close this window.")
	var c io.ReadWriter
	eventually(t, "a user is served", func() bool {
		conn := dial(t, loopback(public))
		io.WriteString(conn, "hello")
		got := make([]byte, 5)
		if _, err := io.ReadFull(conn, got); err != nil {
			return false
		}
		c = conn
		return string(got) == "hello"
	})
	somebody.types("\x03")
	somebody.sees("stopping when the last connection ends")
	io.WriteString(c, "who is connected may finish")
	got := make([]byte, len("who is connected may finish"))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Errorf("behind Ctrl-C: %q, %v", got, err)
	}
	c.(io.Closer).Close()
	somebody.sees("Press Enter to close this window.")
	somebody.types("\r")
	if code := p.awaitEnd(); code != 0 {
		t.Errorf("exit code %d; want 0", code)
	}
}

// unzip unpacks a zip into a new folder.
func unzip(t *testing.T, from, folder string) {
	t.Helper()
	z, err := zip.OpenReader(from)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	for _, f := range z.File {
		data, err := fs.ReadFile(z, f.Name)
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(folder, filepath.FromSlash(f.Name))
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}
