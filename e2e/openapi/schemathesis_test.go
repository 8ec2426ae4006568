package openapi

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// schemathesisVersion is of the program on PyPI.
const schemathesisVersion = "4.32.5"

// schemathesis returns the program, in a virtual environment that is kept for the next time.
func schemathesis(t *testing.T) string {
	t.Helper()
	python, err := exec.LookPath("python3")
	if err != nil {
		missing(t, "python3 is not installed: "+err.Error())
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	dir := filepath.Join(cache, "reverser-tests", "schemathesis-"+schemathesisVersion)
	program, ready := filepath.Join(dir, "bin", "schemathesis"), filepath.Join(dir, "ready")
	if _, err := os.Stat(ready); err == nil {
		return program
	} else if !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil { // what was not finished
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{python, "-m", "venv", dir},
		{filepath.Join(dir, "bin", "pip"), "install", "--quiet", "--disable-pip-version-check", "schemathesis==" + schemathesisVersion},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
		cancel()
		if err != nil {
			missing(t, strings.Join(args, " ")+": "+err.Error()+"\n"+string(out))
		}
	}
	if err := os.WriteFile(ready, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return program
}

// TestSchemathesis: whatever a program makes up for the operations that are described, with what fits the description and what does not, the
// answer is as described, what does not fit is refused, and none is a fault of the process.
func TestSchemathesis(t *testing.T) {
	program := schemathesis(t)
	proxy, bridge := start(t)
	description, err := filepath.Abs(filepath.FromSlash(file))
	if err != nil {
		t.Fatal(err)
	}
	hooks, err := filepath.Abs("testdata")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []role{bridge, proxy} { // the proxy last: its keys change
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
		cmd := exec.CommandContext(ctx, program, "run", description, "--url", r.base,
			"--header", "Authorization: Bearer "+r.token,
			"--header", "Accept: application/json",
			"--exclude-path", "/api/v1/stream", // which has no end
			// What PUBLIC may be is more than a schema says, and too many wrong tokens are told to wait: TestWrongTokens in internal/admin.
			"--exclude-checks", "positive_data_acceptance,ignored_auth",
			"--max-examples", "5", "--generation-deterministic", "--suppress-health-check", "all",
			"--request-timeout", "30", "--warnings", "off", "--no-color")
		cmd.Dir = t.TempDir()
		cmd.Env = append(os.Environ(), "SCHEMATHESIS_HOOKS=hooks", "PYTHONPATH="+hooks, "PYTHONDONTWRITEBYTECODE=1")
		out, err := cmd.CombinedOutput()
		cancel()
		if err != nil {
			t.Errorf("%s: %v\n%s", r.name, err, out)
			continue
		}
		text := string(out)
		if i := strings.Index(text, "Test cases:"); i >= 0 {
			t.Logf("%s: %s", r.name, strings.Join(strings.Fields(text[i:]), " "))
		} else {
			t.Errorf("%s: nothing was tried:\n%s", r.name, text)
		}
	}
}
