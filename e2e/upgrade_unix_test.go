//go:build unix

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// versions are the two programs, each as what is there before and what comes after: an upgrade and a downgrade.
func versions(t *testing.T) map[string]struct{ before, after string } {
	base, head := successorProgram(t), reverser(t)
	return map[string]struct{ before, after string }{
		"upgrade":   {base, head},
		"downgrade": {head, base},
	}
}

// runs starts a program in a role, with a state directory.
func runs(t *testing.T, program, role, state string, args ...string) *testProcess {
	t.Helper()
	return start(t, role, program, nil, append([]string{role, "--state", state, "--log-format", "json"}, args...)...)
}

// The program of a proxy or a bridge is exchanged under its users, as a service manager does: the next process starts when the last
// one has ended, or beside it. Connections go on through the old process. The bridge's users lose nothing at all.
func TestProgramIsExchanged(t *testing.T) {
	t.Parallel()
	for name, v := range versions(t) {
		for _, role := range []string{"proxy", "bridge"} {
			for _, beside := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/beside=%t", name, role, beside), func(t *testing.T) {
					t.Parallel()
					exchangeProgram(t, v.before, v.after, role, beside)
				})
			}
		}
	}
}

func exchangeProgram(t *testing.T, before, after, role string, beside bool) {
	link, public := freePort(t), freePort(t)
	service := fmt.Sprintf("tcp/%d", public)
	proxyState, bridgeState := t.TempDir(), t.TempDir()
	proxyArgs := append([]string{"--listen", loopback(link)}, longDrain...)
	p := runs(t, before, "proxy", proxyState, proxyArgs...)
	p.awaitOutput("reverser bridge rv1_")
	bridgeArgs := append([]string{tokenPattern.FindString(p.Stdout.String()), fmt.Sprintf("%d=%d", public, serve(t, echo))}, longDrain...)
	b := runs(t, before, "bridge", bridgeState, bridgeArgs...)
	b.awaitRecord("service up", "service", service)
	session := dial(t, loopback(public))
	exchange(t, session, "before")
	users := newCrowd(loopback(public))
	users.more(t, 10)

	old, state, args := p, proxyState, proxyArgs
	if role == "bridge" {
		old, state, args = b, bridgeState, bridgeArgs
	}
	signal(t, old, syscall.SIGTERM)
	old.awaitRecord("draining")
	exchange(t, session, "while the old program drains")
	finish := func() {
		session.CloseWrite()
		if _, err := session.Read(make([]byte, 1)); err == nil || err.Error() != "EOF" {
			t.Errorf("the connection ends with %v, want a clean end", err)
		}
		wantExit(t, old)
	}
	if !beside {
		finish()
	}
	next := runs(t, after, role, state, args...)
	next.awaitRecord("service up", "service", service)
	users.more(t, 50)
	if beside {
		exchange(t, session, "beside the new program")
		finish()
	}
	users.more(t, 10)
	served, refused := users.end(t)
	if role == "bridge" && refused > 0 {
		t.Errorf("%d users were refused, and %d served; want all of them served", refused, served)
	}
	if tokenPattern.MatchString(next.Stdout.String()) {
		t.Error("the next program made a key of its own")
	}
}

// A state directory is read by the newer program, and by the older one again when that has written it. The keys of both are good,
// and those that either removed are not.
func TestStateOfTwoVersions(t *testing.T) {
	t.Parallel()
	base, head := baseProgram(t), reverser(t)
	state, link, target := t.TempDir(), freePort(t), serve(t, echo)
	key := func(program string, args ...string) string {
		return run(t, program, append([]string{"key"}, append(args, "--state", state)...)...)
	}
	tokens := map[string]string{}
	add := func(program, name string) {
		tokens[name] = strings.TrimSpace(key(program, "add", name, "--allow", "tcp/1024-65535"))
	}

	// serves has a proxy of this program serve a bridge with each of the tokens. Those named in gone are refused.
	serves := func(program string, gone ...string) {
		t.Helper()
		p := runs(t, program, "proxy", state, "--listen", loopback(link))
		p.awaitRecord("proxy listening")
		for name, token := range tokens {
			public := freePort(t)
			b := runs(t, program, "bridge", t.TempDir(), token, fmt.Sprintf("%d=%d", public, target), "--proxy", loopback(link))
			if strings.Contains(strings.Join(gone, " "), name) {
				b.awaitLogged("refused the key")
			} else {
				b.awaitRecord("service up")
				user := dial(t, loopback(public))
				exchange(t, user, "hello")
				user.Close()
			}
			signal(t, b, syscall.SIGINT)
			wantExit(t, b)
		}
		signal(t, p, syscall.SIGINT)
		wantExit(t, p)
		for _, word := range []string{"damaged", "forgotten", "cannot be"} {
			if lines := p.Said(word); len(lines) > 0 {
				t.Errorf("a proxy of %s logged %v", filepath.Base(program), lines)
			}
		}
	}
	add(base, "first")
	add(base, "second")
	serves(base)
	add(head, "third")
	key(head, "remove", "second")
	serves(head, "second") // which also writes the addresses that bridges came from
	add(base, "fourth")
	key(base, "remove", "first")
	serves(base, "first", "second")
	serves(head, "first", "second")
	if got := names(key(head, "list", "--json")); got != "fourth third" {
		t.Errorf("the keys are %s, want fourth and third", got)
	}
}

// What the older program does not know is refused by name, and nothing is changed. The export from before the upgrade brings the older
// program back.
func TestDowngradeOverWhatIsNew(t *testing.T) {
	t.Parallel()
	base, head := baseProgram(t), reverser(t)
	state := t.TempDir()
	run(t, base, "key", "add", "nas", "--allow", "tcp/9000", "--state", state)
	file := filepath.Join(t.TempDir(), "before.state")
	pass := filepath.Join(t.TempDir(), "pass")
	if err := os.WriteFile(pass, []byte("correct horse battery\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, head, "state", "export", file, "--state", state, "--passphrase-file", pass)
	run(t, head, "key", "add", "limited", "--allow", "tcp/9001", "--max-services", "1", "--state", state)
	keys := func() string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(state, "keys.json"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	written := keys()
	p := runs(t, base, "proxy", state, "--listen", loopback(freePort(t)))
	if code := p.awaitEnd(); code != 2 || !strings.Contains(p.Stderr.String(), "max_services") {
		t.Errorf("the base's proxy exits with %d and says %q; want 2, and max_services by its name", code, p.Stderr.String())
	}
	if keys() != written {
		t.Error("the base changed the file that it refused")
	}
	run(t, head, "state", "import", file, "--state", state, "--replace", "--passphrase-file", pass)
	if got := names(run(t, base, "key", "list", "--json", "--state", state)); got != "nas" {
		t.Errorf("after the import the base has keys %s, want nas", got)
	}

	// The same with a version that is newer than this one.
	newer := strings.Replace(keys(), `"name"`, `"colour": "blue", "name"`, 1)
	if err := os.WriteFile(filepath.Join(state, "keys.json"), []byte(newer), 0o600); err != nil {
		t.Fatal(err)
	}
	p = runs(t, head, "proxy", state, "--listen", loopback(freePort(t)))
	if code := p.awaitEnd(); code != 2 || !strings.Contains(p.Stderr.String(), "colour") || !strings.Contains(p.Stderr.String(), "newer version") {
		t.Errorf("this proxy exits with %d and says %q; want 2, colour by its name, and that a newer version wrote it", code, p.Stderr.String())
	}
	if keys() != newer {
		t.Error("this program changed the file that it refused")
	}
}

// The base's own examples of configuration files are good here. What a file has that a program does not know is refused by name.
func TestConfigurationOfTwoVersions(t *testing.T) {
	t.Parallel()
	base, head := baseProgram(t), reverser(t)
	examples, err := filepath.Glob(filepath.Join(baseSource(compatBase), "examples", "config", "*"))
	if err != nil || len(examples) < 4 {
		t.Fatalf("the base has the examples %q, %v", examples, err)
	}
	for _, example := range examples {
		if err := os.Chmod(example, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, program := range []string{base, head} {
			p := start(t, "check", program, nil, "check", example)
			if code := p.awaitEnd(); code != 0 {
				t.Errorf("%s check %s: exit code %d\n%s", filepath.Base(program), filepath.Base(example), code, p.Stderr.String())
			}
		}
	}
	file := filepath.Join(t.TempDir(), "proxy.toml")
	if err := os.WriteFile(file, []byte("listen = \":"+strconv.Itoa(freePort(t))+"\"\ncolour = \"blue\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{base, head} {
		p := runs(t, program, "proxy", t.TempDir(), "--config", file)
		if code := p.awaitEnd(); code != 2 || !strings.Contains(p.Stderr.String(), "colour") || !strings.Contains(p.Stderr.String(), file+":2") {
			t.Errorf("%s with an option that it does not know: exit code %d, %q; want 2, and the option with its line", filepath.Base(program), code, p.Stderr.String())
		}
	}
}

// names are those of the keys in a list, in order.
func names(list string) string {
	var keys []struct{ Name string }
	if err := json.Unmarshal([]byte(list), &keys); err != nil {
		return err.Error()
	}
	var all []string
	for _, k := range keys {
		all = append(all, k.Name)
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}
