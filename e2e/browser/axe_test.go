package browser

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// axe-core looks for what keeps people with a screen reader, a keyboard alone or weak eyes out. It comes from npm.
const (
	axePackage = "axe-core@4.14.1"
	axeFile    = "package/axe.min.js"
	axeSum     = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"
)

var errNoNPM = errors.New("missing: npm, for axe-core; on Debian: apt install npm")

// axe returns the script.
var axe = sync.OnceValues(func() (string, error) {
	npm, err := exec.LookPath("npm")
	if err != nil {
		return "", errNoNPM
	}
	cmd := exec.Command(npm, "pack", "--silent", "--pack-destination", buildDir, axePackage)
	cmd.Dir = buildDir
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("npm pack %s: %w\n%s", axePackage, err, out)
	}
	packed, err := filepath.Glob(filepath.Join(buildDir, "axe-core-*.tgz"))
	if err != nil || len(packed) != 1 {
		return "", fmt.Errorf("npm pack %s made %v, %w", axePackage, packed, err)
	}
	f, err := os.Open(packed[0])
	if err != nil {
		return "", err
	}
	defer f.Close()
	unzipped, err := gzip.NewReader(f)
	if err != nil {
		return "", err
	}
	for files := tar.NewReader(unzipped); ; {
		h, err := files.Next()
		if err != nil {
			return "", fmt.Errorf("look for %s in %s: %w", axeFile, axePackage, err)
		}
		if h.Name != axeFile {
			continue
		}
		script, err := io.ReadAll(files)
		if sum := sha256.Sum256(script); hex.EncodeToString(sum[:]) != axeSum {
			return "", fmt.Errorf("%s of %s has the sum %x, want %s", axeFile, axePackage, sum, axeSum)
		}
		return string(script), err
	}
})

// accessible fails the test for each serious or critical finding in what a page shows.
func accessible(t *testing.T, p *Page, what string) {
	t.Helper()
	script, err := axe()
	if errors.Is(err, errNoNPM) && os.Getenv("CI") != "true" {
		t.Logf("NOT TESTED: who can use the page: %v", err)
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	type finding struct{ ID, Impact, Help, HTML string }
	// The page's policy forbids scripts of others, not the tools of a developer, which this is.
	found := Eval[[]finding](p, "if (!window.axe) {"+script+"\n}"+`
		const {violations} = await axe.run(document, {resultTypes: ['violations']});
		return violations.map((v) => ({ID: v.id, Impact: v.impact, Help: v.help, HTML: v.nodes[0].html.slice(0, 300)}));`)
	for _, f := range found {
		if f.Impact == "serious" || f.Impact == "critical" {
			t.Errorf("%s: axe-core finds %s (%s): %s\n%s", what, f.ID, f.Impact, f.Help, f.HTML)
		} else {
			t.Logf("%s: axe-core finds %s (%s): %s\n%s", what, f.ID, f.Impact, f.Help, f.HTML)
		}
	}
}
