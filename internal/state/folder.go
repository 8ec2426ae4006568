package state

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"strings"
)

// tlsFolder holds certificates, their keys and the account at the authority that issues them. What is in it can be made again, by asking
// the authority, so an export leaves it out.
const tlsFolder = "tls"

// Folder is a folder of a state directory, whose files somebody else names and reads. Names have slashes and may be in folders
// themselves. Files are as private, and as whole, as those of the directory.
type Folder struct {
	d    *Dir
	name string
}

// TLS returns the folder for certificates.
func (d *Dir) TLS() *Folder { return &Folder{d, tlsFolder} }

// at is where a file lies in the directory.
func (f *Folder) at(name string) (string, error) {
	if name != "" && !fs.ValidPath(name) {
		return "", fmt.Errorf("%q is no name of a file in %s", name, filepath.Join(f.d.path, f.name))
	}
	return path.Join(f.name, name), nil
}

// Read returns what a file holds, or an error that is fs.ErrNotExist.
func (f *Folder) Read(name string) ([]byte, error) {
	at, err := f.at(name)
	if err != nil {
		return nil, err
	}
	if info, err := f.d.root.Stat(at); err == nil && !info.Mode().IsRegular() { // to open a named pipe would wait for whoever writes it
		return nil, fmt.Errorf("read %s: %w", filepath.Join(f.d.path, at), fs.ErrNotExist)
	}
	return f.d.readSecret(at)
}

// Write replaces a file, and makes the folders above it.
func (f *Folder) Write(ctx context.Context, name string, data []byte) error {
	at, err := f.at(name)
	if err != nil {
		return err
	}
	return f.d.edit(func() error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := f.d.makeFolders(path.Dir(at)); err != nil {
			return fmt.Errorf("make the folder of %s: %w", filepath.Join(f.d.path, at), plain(err))
		}
		return f.d.write(at, data)
	})
}

// makeFolders makes a folder and those above it, with the directory's owner. mu is held.
func (d *Dir) makeFolders(name string) error {
	for i := range len(name) + 1 {
		if i < len(name) && name[i] != '/' {
			continue
		}
		switch err := d.root.Mkdir(name[:i], 0o700); {
		case errors.Is(err, fs.ErrExist):
			continue
		case err != nil:
			return err
		}
		made, err := d.root.Open(name[:i])
		if err != nil {
			return err
		}
		err = d.owner.give(made)
		made.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// Remove removes a file, or a folder with all that is in it. It is no error if there is none.
func (f *Folder) Remove(name string) error {
	at, err := f.at(name)
	if err != nil {
		return err
	}
	return f.d.edit(func() error { return f.d.root.RemoveAll(at) })
}

// Stat describes a file or folder. The error is fs.ErrNotExist if there is none.
func (f *Folder) Stat(name string) (fs.FileInfo, error) {
	at, err := f.at(name)
	if err != nil {
		return nil, err
	}
	return f.d.root.Stat(at)
}

// List returns the names of what is in a folder, and of what is in its folders if all is true. There may be nothing.
func (f *Folder) List(name string, all bool) (names []string, err error) {
	at, err := f.at(name)
	if err != nil {
		return nil, err
	}
	err = fs.WalkDir(f.d.root.FS(), at, func(p string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case p == at:
			return nil
		case strings.HasPrefix(path.Base(p), "."): // a file that is being written
			return nil
		}
		names = append(names, strings.TrimPrefix(p, f.name+"/"))
		if entry.IsDir() && !all {
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", filepath.Join(f.d.path, at), plain(err))
	}
	return names, nil
}
