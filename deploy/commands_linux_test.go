package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"reverser/e2e/process"
)

// Every command in these files is one that the program takes: it is run, with addresses and paths of the test's own.
func TestCommands(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "reverser")
	if out, err := exec.Command("go", "build", "-o", bin, "../cmd/reverser").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	c := readCompose(t)
	_, proxy := readDeployment(t, "proxy")
	_, bridge := readDeployment(t, "bridge")
	roles := map[string][]string{
		"compose proxy":     c.Services["proxy"].Command,
		"compose bridge":    c.Services["bridge"].Command,
		"kubernetes proxy":  proxy.Template.Spec.Containers[0].Args,
		"kubernetes bridge": bridge.Template.Spec.Containers[0].Args,
	}
	checks := [][]string{
		healthCheck(t),
		proxy.Template.Spec.Containers[0].ReadinessProbe.Exec.Command,
		proxy.Template.Spec.Containers[0].LivenessProbe.Exec.Command,
		bridge.Template.Spec.Containers[0].ReadinessProbe.Exec.Command,
	}
	for name, args := range roles {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			states := "STATE_DIRECTORY=" + t.TempDir()
			run := func(args ...string) *process.Process {
				t.Helper()
				p := process.New(args[0], bin, []string{states}, args...)
				if err := p.Start(nil); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(p.Kill)
				return p
			}
			exit := func(p *process.Process) int {
				t.Helper()
				select {
				case <-p.Ended():
				case <-time.After(patience):
					t.Fatalf("%q did not end", p.Cmd.Args)
				}
				return p.Cmd.ProcessState.ExitCode()
			}
			if args = own(t, bin, args); args[0] == "proxy" {
				args = append(args, "--listen", loopback(freePort(t)))
			}
			p := run(args...)
			for begun := time.Now(); exit(run("status")) != 0; time.Sleep(20 * time.Millisecond) {
				if !p.Running() || time.Since(begun) > patience {
					t.Fatalf("%q does not answer: %v\n%s", args, p.Cmd.ProcessState, p.Stderr.String())
				}
			}
			for _, command := range checks {
				if entry := dockerfile(t, "ENTRYPOINT"); entry != `["`+command[0]+`"]` {
					t.Errorf("a check runs %s, and the image %s", command[0], entry)
				}
				var code int
				said := "did not answer within a second" // which may happen to a process on a busy machine
				for begun := time.Now(); strings.Contains(said, "did not answer within a second") && time.Since(begun) < patience; {
					check := run(command[1:]...)
					code, said = exit(check), check.Stderr.String()
				}
				if args[0] == "proxy" && code != 0 || args[0] == "bridge" && (code != 1 || !strings.Contains(said, "the link to 127.0.0.1:")) {
					t.Errorf("%q of a %s = %d, %s", command, args[0], code, said)
				}
			}
			if err := p.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if code := exit(p); code != 0 {
				t.Errorf("%q ended with %d\n%s", args, code, p.Stderr.String())
			}
		})
	}
}

var (
	address   = regexp.MustCompile(`^(\$\{REVERSER_PROXY:-proxy:3010\}|YOUR\.SERVER:3010)$`)
	tokenFile = regexp.MustCompile(`^(/run/secrets|/etc/reverser)/token$`)
)

// own replaces addresses and files of the command line by some that exist here. Nothing listens at the address.
func own(t *testing.T, bin string, args []string) (all []string) {
	t.Helper()
	replaced := 0
	for _, arg := range args {
		switch {
		case address.MatchString(arg):
			arg = loopback(freePort(t))
			replaced++
		case tokenFile.MatchString(arg):
			dir := t.TempDir()
			token, err := exec.Command(bin, "key", "add", "a", "--allow", "tcp/9000", "--state", filepath.Join(dir, "proxy")).Output()
			if err != nil {
				t.Fatal(err)
			}
			arg = filepath.Join(dir, "token")
			if err := os.WriteFile(arg, token, 0o600); err != nil {
				t.Fatal(err)
			}
			replaced++
		}
		all = append(all, arg)
	}
	if args[0] == "bridge" && replaced != 2 {
		t.Errorf("of %q, %d arguments are replaced; want the address and the token file", args, replaced)
	}
	return all
}
