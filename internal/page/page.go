// Package page is the page of a proxy or bridge: files for a browser, which hold nothing of the process. What the page shows
// comes from the API beside it (internal/admin), with the session of whoever has logged in.
//
// It is written as a browser reads it, without a build: ES modules, of which files/main.js is the first, and one style sheet. All that it needs is
// in files, the libraries with their licences in files/lib, so that it works on a machine without the internet. It has no inline
// script and no inline style: the process forbids both.
package page

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io"
	"io/fs"
	"net/http"
	"path"
	"time"
)

//go:embed files
var files embed.FS

// types are what the files are. A system's own table of types may say something else of them, with which no module is run.
var types = map[string]string{
	".html": "text/html; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".svg":  "image/svg+xml",
	".md":   "text/plain; charset=utf-8",
	"":      "text/plain; charset=utf-8", // licences
}

// Page serves the page at /, and its files. It is to be asked with GET and HEAD only, and with the headers that the guard of the API sets.
type Page struct {
	root fs.FS
	tags map[string]string // of each file, by its path, for ETag
}

// New returns the page.
func New() *Page {
	root, err := fs.Sub(files, "files")
	if err != nil {
		panic(err) // the name is wrong
	}
	tags := make(map[string]string)
	if err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := fs.ReadFile(root, name)
		sum := sha256.Sum256(b)
		tags["/"+name] = `"` + hex.EncodeToString(sum[:12]) + `"`
		return err
	}); err != nil {
		panic(err) // they are in the program
	}
	return &Page{root, tags}
}

// file returns the path of the file that a request for a path gets.
func file(path string) string {
	if path == "/" {
		return "/index.html"
	}
	return path
}

// Has reports whether there is a file at a path.
func (p *Page) Has(path string) bool { return p.tags[file(path)] != "" }

func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := file(r.URL.Path)
	tag, ok := p.tags[name]
	if !ok {
		http.NotFound(w, r)
		return
	}
	f, err := p.root.Open(name[1:])
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer f.Close()
	// Files of one version belong together: a browser asks each time whether its copy is still the one.
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Set("ETag", tag)
	w.Header().Set("Content-Type", types[path.Ext(name)])
	http.ServeContent(w, r, name, time.Time{}, f.(io.ReadSeeker)) // files of embed can seek
}
