package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"debug/pe"
	"encoding/json"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/tc-hib/winres"
	"github.com/tc-hib/winres/version"
	"go.yaml.in/yaml/v3"
)

// targets are enough to see all kinds of files.
var targets = []platform{{runtime.GOOS, runtime.GOARCH}, {"windows", "amd64"}}

// build makes a release of the checkout in a directory of its own.
func build(t *testing.T) (*release, map[string][]byte) {
	t.Helper()
	r, err := newRelease(t.Context(), "..", "")
	if err != nil {
		t.Fatal(err)
	}
	r.download = "https://example.com/r"
	files, err := r.make(t.Context(), t.TempDir(), targets)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "out")
	if err := writeOut(out, files); err != nil {
		t.Fatal(err)
	}
	made := map[string][]byte{}
	for _, f := range files {
		if made[f.name], err = os.ReadFile(filepath.Join(out, f.name)); err != nil {
			t.Fatal(err)
		}
	}
	return r, made
}

// TestRelease makes a release twice, in different places and environments, and looks at what came out.
func TestRelease(t *testing.T) {
	r, made := build(t)
	base := program + "_" + r.plainVersion() + "_"
	archive := base + runtime.GOOS + "_" + runtime.GOARCH + ".tar.gz"
	archived := base + "windows_amd64.zip"
	unpacked := untar(t, made[archive])
	unzipped := unzip(t, made[archived])

	t.Run("again", func(t *testing.T) {
		defer syscall.Umask(syscall.Umask(0o077))
		t.Setenv("GOFLAGS", "-trimpath=false")
		t.Setenv("GOAMD64", "v3")
		t.Setenv("CGO_ENABLED", "1")
		t.Setenv("TZ", "Asia/Shanghai")
		t.Setenv("LC_ALL", "zh_CN.UTF-8")
		_, again := build(t)
		if len(again) != len(made) {
			t.Errorf("the second build has %d files, the first %d", len(again), len(made))
		}
		for name, data := range made {
			if !bytes.Equal(again[name], data) {
				t.Errorf("%s differs from that of another directory, umask and environment", name)
			}
		}
	})

	t.Run("checksums", func(t *testing.T) {
		for line := range strings.Lines(string(made[sumsFile])) {
			hash, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
			if !ok || sum(made[name]) != hash {
				t.Errorf("%q is not the checksum of a file", line)
			}
		}
		if got, want := bytes.Count(made[sumsFile], []byte("\n")), len(made)-1; got != want {
			t.Errorf("there are %d checksums, of %d files", got, want)
		}
	})

	t.Run("program", func(t *testing.T) {
		exe := filepath.Join(t.TempDir(), program)
		top := strings.TrimSuffix(archive, ".tar.gz") + "/"
		if err := os.WriteFile(exe, unpacked[top+program], 0o700); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), exe, "version").CombinedOutput()
		if err != nil || !strings.HasPrefix(string(out), program+" "+r.version+" (") {
			t.Errorf("version = %q, %v; want %s", out, err, r.version)
		}
		for _, name := range []string{"LICENSE", "README.md", "README.zh-CN.md", "LICENSES-OF-PARTS.txt", "completions/reverser.bash", "docs/ARCHITECTURE.md"} {
			if len(unpacked[top+name]) == 0 {
				t.Errorf("%s lacks %s", archive, name)
			}
			if !bytes.Equal(unpacked[top+name], unzipped[name]) && name != "LICENSES-OF-PARTS.txt" {
				t.Errorf("%s differs from platform to platform", name)
			}
		}
		if bytes.Contains(unpacked[top+program], []byte(mustGetwd(t))) {
			t.Error("the program contains the path of the checkout")
		}
	})

	t.Run("resource", func(t *testing.T) {
		exe := unzipped[program+".exe"]
		if f, err := pe.NewFile(bytes.NewReader(exe)); err != nil || f.Machine != pe.IMAGE_FILE_MACHINE_AMD64 {
			t.Fatalf("the program of windows/amd64 is none: %v", err)
		}
		rs, err := winres.LoadFromEXE(bytes.NewReader(exe))
		if err != nil {
			t.Fatal(err)
		}
		if icon, err := rs.GetIcon(winres.ID(1)); err != nil {
			t.Errorf("icon: %v", err)
		} else if err := icon.SaveICO(io.Discard); err != nil {
			t.Errorf("icon: %v", err)
		}
		text := string(rs.Get(winres.RT_MANIFEST, winres.ID(1), winres.LCIDDefault))
		for _, want := range []string{`level="asInvoker"`, `>true</longPathAware>`, `>UTF-8</activeCodePage>`} {
			if !strings.Contains(text, want) {
				t.Errorf("the manifest lacks %s:\n%s", want, text)
			}
		}
		for _, lang := range []uint16{english, chinese} {
			info, err := version.FromBytes(rs.Get(winres.RT_VERSION, winres.ID(1), lang))
			if err != nil {
				t.Fatalf("version resource of language %#x: %v", lang, err)
			}
			texts := *info.Table()[lang]
			if texts[version.CompanyName] != publisher || texts[version.ProductVersion] != r.plainVersion() || texts[version.FileDescription] == "" {
				t.Errorf("version resource of language %#x: %v", lang, texts)
			}
		}
	})

	t.Run("package managers", func(t *testing.T) {
		address, hash := "https://example.com/r/"+archived, sum(made[archived])
		var scoop struct {
			Version, Bin string
			Architecture map[string]struct{ URL, Hash string }
		}
		if err := json.Unmarshal(made["reverser.json"], &scoop); err != nil {
			t.Fatal(err)
		}
		if zip := scoop.Architecture["64bit"]; zip.URL != address || zip.Hash != hash || scoop.Version != r.plainVersion() || unzipped[scoop.Bin] == nil {
			t.Errorf("Scoop is told %+v; the zip is %s, %s", scoop, address, hash)
		}
		for kind, name := range map[string]string{"version": "", "defaultLocale": ".locale.en-US", "locale": ".locale.zh-CN", "installer": ".installer"} {
			var winget struct {
				PackageIdentifier    string `yaml:"PackageIdentifier"`
				PackageVersion       string `yaml:"PackageVersion"`
				ManifestType         string `yaml:"ManifestType"`
				NestedInstallerFiles []struct {
					RelativeFilePath string `yaml:"RelativeFilePath"`
				} `yaml:"NestedInstallerFiles"`
				Installers []struct {
					Architecture    string `yaml:"Architecture"`
					InstallerURL    string `yaml:"InstallerUrl"`
					InstallerSha256 string `yaml:"InstallerSha256"`
				} `yaml:"Installers"`
			}
			if err := yaml.Unmarshal(made["reverser.reverser"+name+".yaml"], &winget); err != nil {
				t.Fatal(err)
			}
			if winget.PackageIdentifier != "reverser.reverser" || winget.PackageVersion != r.plainVersion() || winget.ManifestType != kind {
				t.Errorf("winget is told %+v; want %s %s", winget, kind, r.plainVersion())
			}
			if kind != "installer" {
				continue
			}
			if i := winget.Installers; len(i) != 1 || i[0].Architecture != "x64" || i[0].InstallerURL != address || i[0].InstallerSha256 != strings.ToUpper(hash) ||
				unzipped[winget.NestedInstallerFiles[0].RelativeFilePath] == nil {
				t.Errorf("winget is told %+v; the zip is %s, %s", winget, address, hash)
			}
		}
	})

	t.Run("bill of materials", func(t *testing.T) {
		for _, name := range []string{archive, archived} {
			file := strings.TrimSuffix(strings.TrimSuffix(name, ".tar.gz"), ".zip") + ".cdx.json"
			var bom cdx.BOM
			if err := json.Unmarshal(made[file], &bom); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			if got := (*bom.Metadata.Component.Hashes)[0].Value; got != sum(made[name]) {
				t.Errorf("%s has the checksum %s, and %s has %s", file, got, name, sum(made[name]))
			}
			licenses := string(unpacked[strings.TrimSuffix(name, ".tar.gz")+"/LICENSES-OF-PARTS.txt"]) + string(unzipped["LICENSES-OF-PARTS.txt"])
			found := map[string]bool{}
			for _, c := range *bom.Components {
				found[c.Name] = true
				if c.Name != "std" && !strings.Contains(licenses, "\n"+c.Name+" "+c.Version+" (") {
					t.Errorf("the license of %s %s is missing", c.Name, c.Version)
				}
			}
			for _, want := range []string{"std", "github.com/spf13/cobra", "golang.org/x/sys"} {
				if !found[want] {
					t.Errorf("%s lacks %s", file, want)
				}
			}
		}
	})
}

func mustGetwd(t *testing.T) string {
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(dir)
}

func untar(t *testing.T, data []byte) map[string][]byte {
	t.Helper()
	gz, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	last := ""
	for tr := tar.NewReader(gz); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" {
			t.Errorf("%s belongs to %d:%d %q", h.Name, h.Uid, h.Gid, h.Uname)
		}
		want := fs.FileMode(0o644)
		if h.Typeflag == tar.TypeDir {
			want = fs.ModeDir | 0o755
		} else if strings.HasSuffix(h.Name, "/"+program) {
			want = 0o755
		}
		if h.FileInfo().Mode() != want {
			t.Errorf("%s has mode %v; want %v", h.Name, h.FileInfo().Mode(), want)
		}
		if h.Name < last && h.Typeflag != tar.TypeDir {
			t.Errorf("%s stands behind %s", h.Name, last)
		}
		last = h.Name
		if files[h.Name], err = io.ReadAll(tr); err != nil {
			t.Fatal(err)
		}
	}
}

func unzip(t *testing.T, data []byte) map[string][]byte {
	t.Helper()
	zr, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for _, f := range zr.File {
		if files[f.Name], err = fs.ReadFile(zr, f.Name); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// checkout is a repository with one commit.
func checkout(t *testing.T) (dir string, git func(args ...string)) {
	t.Helper()
	dir = t.TempDir()
	git = func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "git", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
			"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@a", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@a",
			"GIT_AUTHOR_DATE=2026-01-02T03:04:05+0800", "GIT_COMMITTER_DATE=2026-01-02T03:04:05+0800")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	git("init", "-q")
	write(t, filepath.Join(dir, "a"), "1")
	git("add", "a")
	git("commit", "-q", "-m", "a")
	return dir, git
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
		t.Fatal(err)
	}
}

func TestVersion(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "")
	dir, git := checkout(t)
	get := func(named string) string {
		t.Helper()
		r, err := newRelease(t.Context(), dir, named)
		if err != nil {
			return err.Error()
		}
		return r.version
	}
	want := func(named, want string) {
		t.Helper()
		if got := get(named); !strings.HasPrefix(got, want) {
			t.Errorf("the version is %q; want %q", got, want)
		}
	}
	want("", "v0.0.0-20260101190405-")
	want("v1.2.3-rc.1", "v1.2.3-rc.1")
	want("1.2.3", `version "1.2.3": it looks like`)
	want("v1.2", `version "v1.2": it looks like`)
	git("tag", "v1.2.3")
	want("", "v1.2.3")
	write(t, filepath.Join(dir, "b"), "not of the release")
	want("", "v1.2.3")
	write(t, filepath.Join(dir, "a"), "2")
	want("", "v1.2.3+dirty")
	want("v1.2.3", "version v1.2.3 is to be built from files that differ")
	dir = t.TempDir()
	t.Setenv("GIT_CEILING_DIRECTORIES", filepath.Dir(dir))
	want("", "find the commit that is built")
}

func TestSourceDate(t *testing.T) {
	dir, _ := checkout(t)
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	if r, err := newRelease(t.Context(), dir, "v1.0.0"); err != nil || r.date.Unix() != 1700000000 {
		t.Errorf("SOURCE_DATE_EPOCH gives %v, %v", r, err)
	}
	t.Setenv("SOURCE_DATE_EPOCH", "yesterday")
	if _, err := newRelease(t.Context(), dir, "v1.0.0"); err == nil || !strings.Contains(err.Error(), "SOURCE_DATE_EPOCH") {
		t.Errorf("SOURCE_DATE_EPOCH=yesterday: %v", err)
	}
}

// TestForeignDirectory: what is no release is not swept away.
func TestForeignDirectory(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "thesis.txt"), "all of it")
	write(t, filepath.Join(dir, "reverser_1_linux_amd64.tar.gz"), "old")
	files := []file{{name: "reverser_2_linux_amd64.tar.gz"}}
	if err := writeOut(dir, files); err == nil || !strings.Contains(err.Error(), "thesis.txt") {
		t.Errorf("a directory with other files: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "reverser_1_linux_amd64.tar.gz")); err != nil {
		t.Errorf("a refusal removed something: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "thesis.txt")); err != nil {
		t.Fatal(err)
	}
	if err := writeOut(dir, files); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "reverser_1_linux_amd64.tar.gz")); err == nil {
		t.Error("the file of an older release is still there")
	}
}

func TestDownload(t *testing.T) {
	for in, want := range map[string]string{
		"":                           "https://YOUR.SERVER/reverser/v1.2.3",
		"https://example.com/r/":     "https://example.com/r",
		"http://example.com/r":       "error",
		"example.com":                "error",
		"https://example.com/?a=b":   "error",
		"https://exa mple.com/":      "error",
		"https://example.com/r\n- x": "error",
	} {
		got, err := checkDownload(in, "v1.2.3")
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("checkDownload(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
}

func TestPlatforms(t *testing.T) {
	if got, err := parsePlatforms("linux/arm64,windows/amd64"); err != nil || len(got) != 2 {
		t.Errorf("parsePlatforms = %v, %v", got, err)
	}
	if _, err := parsePlatforms("plan9/amd64"); err == nil || !strings.Contains(err.Error(), "linux/amd64") {
		t.Errorf("parsePlatforms(plan9/amd64): %v", err)
	}
}
