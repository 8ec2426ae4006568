package e2e

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	signals "os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"reverser/internal/leaktest"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(helperEnv); role != "" {
		helperMain(role)
		return
	}
	if signals.Ignored(syscall.SIGHUP) { // as under nohup: what is started here would ignore it, too
		signals.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	}
	dir, err := os.MkdirTemp("", "reverser-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	buildDir = dir
	moreAtOnce()
	code := leaktest.Run(m)
	os.RemoveAll(dir)
	os.Exit(code)
}

// moreAtOnce has more tests run at a time than there are processors, unless -parallel says how many: most of them wait.
func moreAtOnce() {
	const atOnce = 6
	flag.Parse()
	asked := false
	flag.Visit(func(f *flag.Flag) { asked = asked || f.Name == "test.parallel" })
	if !asked {
		flag.Set("test.parallel", strconv.Itoa(max(atOnce, runtime.GOMAXPROCS(0))))
	}
}

var buildDir string

// built holds one func() (string, error) per package, so that each is built once.
var built sync.Map

// build returns the path of the program in pkg, built with the race detector if the
// test has it.
func build(t *testing.T, pkg string) string {
	t.Helper()
	once, _ := built.LoadOrStore(pkg, sync.OnceValues(func() (string, error) {
		bin := filepath.Join(buildDir, strings.ReplaceAll(strings.Trim(pkg, "./"), "/", "-"))
		if runtime.GOOS == "windows" {
			bin += ".exe"
		}
		args := []string{"build", "-o", bin}
		if raceEnabled {
			args = append(args, "-race")
		}
		cmd := exec.Command("go", append(args, pkg)...)
		cmd.Dir = ".."
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("go build %s: %w\n%s", pkg, err, out)
		}
		return bin, nil
	}))
	bin, err := once.(func() (string, error))()
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

// A program is one that a Debian package brings.
type program struct{ name, deb string }

// need skips the test unless all programs are there; in CI it fails.
func need(t *testing.T, programs ...program) {
	t.Helper()
	var missing, debs []string
	for _, p := range programs {
		if _, err := lookPath(p.name); err != nil {
			missing = append(missing, p.name)
			debs = append(debs, p.deb)
		}
	}
	if len(missing) == 0 {
		return
	}
	lacks(t, fmt.Sprintf("missing: %s; on Debian: apt install %s", strings.Join(missing, ", "), strings.Join(debs, " ")))
}

// lacks ends a test that cannot run on this machine: it skips, and fails in CI, where nothing may be missing.
func lacks(t *testing.T, text string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(text)
	}
	t.Skip("SKIPPED: " + text)
}

// lookPath also looks where Debian puts servers; a name with a slash is a file.
func lookPath(name string) (string, error) {
	if strings.Contains(name, "/") {
		_, err := os.Stat(name)
		return name, err
	}
	path, err := exec.LookPath(name)
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/" + name)
	}
	return path, err
}
