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

// Handler serves the page at /. It is to be asked with GET and HEAD only, and with the headers that the guard of the API sets.
func Handler() http.Handler {
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
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := r.URL.Path
		if name == "/" {
			name = "/index.html"
		}
		tag, ok := tags[name]
		if !ok {
			http.NotFound(w, r)
			return
		}
		f, err := root.Open(name[1:])
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
	})
}
