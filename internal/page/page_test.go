package page_test

import (
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"reverser/internal/page"
)

// sources returns the files that are ours, by name, and the size of those that are not.
func sources(t *testing.T) (ours map[string]string, lib int) {
	t.Helper()
	ours = make(map[string]string)
	err := fs.WalkDir(os.DirFS("files"), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(filepath.Join("files", filepath.FromSlash(name)))
		if strings.HasPrefix(name, "lib/") {
			lib += len(b)
			return err
		}
		ours[name] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return ours, lib
}

func get(t *testing.T, h http.Handler, method, path string, header ...string) *http.Response {
	t.Helper()
	r := httptest.NewRequest(method, path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func TestHandler(t *testing.T) {
	h := page.New()
	for _, tt := range []struct{ path, kind string }{
		{"/", "text/html; charset=utf-8"},
		{"/index.html", "text/html; charset=utf-8"},
		{"/main.js", "text/javascript; charset=utf-8"},
		{"/page.css", "text/css; charset=utf-8"},
		{"/icon.svg", "image/svg+xml"},
		{"/lib/preact.js", "text/javascript; charset=utf-8"},
		{"/lib/LICENSE-preact", "text/plain; charset=utf-8"},
	} {
		r := get(t, h, "GET", tt.path)
		if r.StatusCode != 200 || r.Header.Get("Content-Type") != tt.kind || r.Header.Get("Cache-Control") != "no-cache" {
			t.Errorf("GET %s = %d, %v", tt.path, r.StatusCode, r.Header)
		}
		again := get(t, h, "GET", tt.path, "If-None-Match", r.Header.Get("ETag"))
		if again.StatusCode != http.StatusNotModified {
			t.Errorf("GET %s of whoever has it = %d, want 304", tt.path, again.StatusCode)
		}
		if r := get(t, h, "HEAD", tt.path); r.StatusCode != 200 {
			t.Errorf("HEAD %s = %d", tt.path, r.StatusCode)
		}
		if !h.Has(tt.path) {
			t.Errorf("Has(%q) = false", tt.path)
		}
	}
	for _, path := range []string{"/lib", "/lib/", "/nothing.js", "/../page.go", "/files/index.html", "//main.js", "/main.js/"} {
		if r := get(t, h, "GET", path); r.StatusCode != 404 {
			t.Errorf("GET %s = %d, want 404", path, r.StatusCode)
		}
		if h.Has(path) {
			t.Errorf("Has(%q) = true", path)
		}
	}
}

// TestNothingFromOutside: whatever the page loads is in it, so that it works without the internet, and the content security policy
// lets all of it pass: no inline script, no inline style. What the process says gets into the page as text alone.
func TestNothingFromOutside(t *testing.T) {
	ours, lib := sources(t)
	if lib > 200_000 {
		t.Errorf("the libraries have %d bytes, want 200,000 at most", lib)
	}
	h := page.New()
	imports := regexp.MustCompile(`(?m)(?:^import|^export) (?:[^;]*? from )?'([^']+)';`)
	loads := regexp.MustCompile(`(?:src|href)="([^"#]+)"`)
	never := regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|dangerouslySetInnerHTML|document\.write|\beval\(|new Function|srcdoc|javascript:|\son[a-z]+="|style="|<style|<script>`)
	for name, text := range ours {
		if found := never.FindString(text); found != "" {
			t.Errorf("%s has %q", name, found)
		}
		if strings.Contains(text, "://") && name != "icon.svg" && !strings.Contains(text, "w3.org") {
			t.Errorf("%s has an address elsewhere", name)
		}
		var wants []string
		switch path.Ext(name) {
		case ".js":
			for _, m := range imports.FindAllStringSubmatch(text, -1) {
				if !strings.HasPrefix(m[1], "./") {
					t.Errorf("%s imports %q, which is not relative", name, m[1])
				}
				wants = append(wants, m[1])
			}
		case ".html":
			for _, m := range loads.FindAllStringSubmatch(text, -1) {
				wants = append(wants, m[1])
			}
		}
		for _, want := range wants {
			if r := get(t, h, "GET", path.Join("/", path.Dir(name), want)); r.StatusCode != 200 {
				t.Errorf("%s wants %s, which is not there", name, want)
			}
		}
	}
}

// TestWords: both languages have the same words with the same fields, all that are used, and no others.
func TestWords(t *testing.T) {
	ours, _ := sources(t)
	word := regexp.MustCompile(`(?m)^\t'([^']+)': '(.*)',$`)
	field := regexp.MustCompile(`\{\w+\}`)
	read := func(file string) map[string]string {
		words := make(map[string]string)
		for _, m := range word.FindAllStringSubmatch(ours[file], -1) {
			if _, twice := words[m[1]]; twice {
				t.Errorf("%s has %s twice", file, m[1])
			}
			words[m[1]] = m[2]
		}
		return words
	}
	en, zh := read("words-en.js"), read("words-zh.js")
	if len(en) < 100 {
		t.Fatalf("words-en.js has %d words", len(en))
	}
	for name, text := range en {
		other, ok := zh[name]
		if !ok {
			t.Errorf("words-zh.js lacks %s", name)
			continue
		}
		fields := func(s string) []string {
			all := field.FindAllString(s, -1)
			slices.Sort(all)
			return all
		}
		if !slices.Equal(fields(text), fields(other)) {
			t.Errorf("%s has the fields %v in English and %v in Chinese", name, fields(text), fields(other))
		}
	}
	for name := range zh {
		if _, ok := en[name]; !ok {
			t.Errorf("words-en.js lacks %s", name)
		}
	}
	used := make(map[string]bool)
	literal := regexp.MustCompile(`'([a-z]+\.[\w.-]+)'`)
	prefix := regexp.MustCompile(`'([a-z]+(?:\.[a-z]+)*\.)' \+`)
	for name, text := range ours {
		if path.Ext(name) != ".js" || strings.HasPrefix(name, "words-") {
			continue
		}
		for _, m := range literal.FindAllStringSubmatch(text, -1) {
			used[m[1]] = true
		}
		for _, m := range prefix.FindAllStringSubmatch(text, -1) {
			for word := range maps.Keys(en) {
				if strings.HasPrefix(word, m[1]) {
					used[word] = true
				}
			}
		}
		for _, m := range regexp.MustCompile(`\bt\('([^']+)'[,)]`).FindAllStringSubmatch(text, -1) {
			if _, ok := en[m[1]]; !ok {
				t.Errorf("%s says %s, for which there are no words", name, m[1])
			}
		}
	}
	for name := range en {
		if !used[name] {
			t.Errorf("nobody says %s", name)
		}
	}
}
