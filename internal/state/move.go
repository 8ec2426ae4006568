package state

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"reverser/internal/access"
	"reverser/internal/grammar"
)

// movable are the files that move with a process to another machine. What else a directory holds belongs to one process or one machine.
// An earlier version refuses a picture with more than it knows. So usersFile stays, of which nothing but a preference is lost.
var movable = []string{identityFile, keysFile, addressFile, knownFile}

// File is a file of a state directory, with its name there.
type File struct {
	Name string
	Data []byte
}

// Picture is what of a state directory moves to another machine: the files that are there, in the order of movable.
type Picture []File

// Read returns the picture of a directory that another process may be using, and the names of files that this version does not know.
// Files are replaced whole, so each one is as that process last wrote it; none of them is of a later moment than the return.
// Trusted users are those of Open.
func Read(dir string, trusted ...int) (p Picture, unknown []string, err error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("state directory %s: %w", dir, err)
	}
	root, err := os.OpenRoot(abs)
	if err != nil {
		return nil, nil, fmt.Errorf("state directory %s: %w", abs, plain(err))
	}
	defer root.Close()
	d := &Dir{path: abs, root: root, rules: access.Rules{Trusted: trusted}}
	if err := d.judge(); err != nil {
		return nil, nil, err
	}
	// An import may replace all of them meanwhile, between two processes.
	for range 10 {
		if p, err = d.Picture(); err != nil {
			return nil, nil, err
		}
		again, err := d.Picture()
		if err != nil {
			return nil, nil, err
		}
		if p.Equal(again) {
			unknown, err = d.unknown()
			return p, unknown, err
		}
	}
	return nil, nil, fmt.Errorf("the files of state directory %s change all the time: try again", abs)
}

// IsStateDir reports whether a process ever had its state in dir.
func IsStateDir(dir string) (bool, error) {
	for _, name := range []string{lockFile, identityFile} {
		_, err := os.Stat(filepath.Join(dir, name))
		if err == nil {
			return true, nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !isNotDir(err) {
			return false, fmt.Errorf("state directory %s: %w", dir, plain(err))
		}
	}
	return false, nil
}

// HasIdentity reports whether dir has the identity of a proxy, readable or not, or an import is about to put one there.
func HasIdentity(dir string) bool {
	for _, name := range []string{identityFile, filepath.Join(readyDir, identityFile)} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			return true
		}
	}
	return false
}

// Read is the function Read for a directory that this process holds.
func (d *Dir) Read() (p Picture, unknown []string, err error) {
	if p, err = d.Picture(); err != nil {
		return nil, nil, err
	}
	unknown, err = d.unknown()
	return p, unknown, err
}

// Picture returns the directory's picture. It fails if one of its files cannot be used.
func (d *Dir) Picture() (Picture, error) {
	var p Picture
	for _, name := range movable {
		b, err := d.readMovable(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if name == knownFile {
			if _, err := parseKnown(b, knownHead); err != nil { // a start puts it aside too
				continue
			}
		}
		p = append(p, File{name, b})
	}
	for _, f := range p {
		switch err := f.check(); {
		case err == nil:
		case f.Name == identityFile:
			return nil, noIdentity(filepath.Join(d.path, f.Name), err)
		case f.Name == keysFile:
			return nil, damaged(filepath.Join(d.path, f.Name), err)
		}
	}
	if len(p) > 0 {
		if err := p.Check(); err != nil {
			return nil, fmt.Errorf("state directory %s: %w", d.path, err)
		}
	}
	return p, nil
}

func (d *Dir) readMovable(name string) ([]byte, error) {
	if name == identityFile || name == keysFile {
		return d.readSecret(name)
	}
	b, err := d.readFile(name)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(d.path, name), plain(err))
	}
	return b, nil
}

// unknown are the names of what some other version may have put into the directory.
func (d *Dir) unknown() (names []string, err error) {
	entries, err := fs.ReadDir(d.root.FS(), ".")
	if err != nil {
		return nil, fmt.Errorf("state directory %s: %w", d.path, plain(err))
	}
	stay := append([]string{lockFile, socketFile, socketPathFile, adminTokenFile, damagedFile, usersFile, damagedUsers, usageFile, offeredFile, stagingDir, readyDir, tlsFolder}, movable...)
	for _, e := range entries {
		if name := e.Name(); !slices.Contains(stay, name) && !strings.HasPrefix(name, keptPrefix) && !strings.HasPrefix(name, usageAside) && name[0] != '.' {
			names = append(names, name)
		}
	}
	return names, nil
}

// Check reports why this version could not run on the picture; nil if it can. An empty picture is that of a bridge.
func (p Picture) Check() error {
	for i, f := range p {
		if !slices.Contains(movable, f.Name) {
			return fmt.Errorf("this version has no file %q in a state directory", f.Name)
		}
		if slices.ContainsFunc(p[:i], func(o File) bool { return o.Name == f.Name }) {
			return fmt.Errorf("%s is there twice", f.Name)
		}
		if err := f.check(); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	if len(p) > 0 && p.data(identityFile) == nil {
		return fmt.Errorf("there is no %s, without which all else is of no use", identityFile)
	}
	return nil
}

// check reports why this version cannot use the content of a file.
func (f File) check() (err error) {
	switch f.Name {
	case identityFile:
		_, err = tls.X509KeyPair(f.Data, f.Data)
	case keysFile:
		_, err = parseKeys(f.Data)
	case knownFile:
		_, err = parseKnown(f.Data, knownHead)
	case addressFile:
		if len(f.Data) > 4<<10 {
			err = fmt.Errorf("%d bytes are no address", len(f.Data))
		}
	}
	return err
}

func (p Picture) data(name string) []byte {
	for _, f := range p {
		if f.Name == name {
			return f.Data
		}
	}
	return nil
}

// Role is whose picture it is.
func (p Picture) Role() string {
	if len(p) == 0 {
		return RoleBridge
	}
	return RoleProxy
}

// Equal reports whether two pictures have the same files with the same content.
func (p Picture) Equal(o Picture) bool {
	return slices.EqualFunc(p, o, func(a, b File) bool { return a.Name == b.Name && bytes.Equal(a.Data, b.Data) })
}

// Same reports whether two pictures have the same identity and the same keys. The rest is only what a process remembers.
func (p Picture) Same(o Picture) bool {
	return bytes.Equal(p.data(identityFile), o.data(identityFile)) && bytes.Equal(p.data(keysFile), o.data(keysFile))
}

// Identity is the pin that tokens of this picture's proxy carry; false: it has no identity.
func (p Picture) Identity() (pin [32]byte, ok bool) {
	pem := p.data(identityFile)
	cert, err := tls.X509KeyPair(pem, pem)
	if err != nil {
		return pin, false
	}
	return Pin(cert), true
}

// HasKeys reports whether keys were ever stored, none included, as Dir.HasKeysFile does.
func (p Picture) HasKeys() bool { return p.data(keysFile) != nil }

// Keys are the keys in the picture.
func (p Picture) Keys() ([]Key, error) {
	b := p.data(keysFile)
	if b == nil {
		return nil, nil
	}
	return parseKeys(b)
}

// Reach is what Dir.Reach returned where the picture was made.
func (p Picture) Reach() grammar.Reach { return parseReach(p.data(addressFile)) }

// WithoutKeys returns the picture without the keys of these names.
func (p Picture) WithoutKeys(names []string) (Picture, error) {
	keys, err := p.Keys()
	if err != nil {
		return nil, err
	}
	left := slices.DeleteFunc(slices.Clone(keys), func(k Key) bool { return slices.Contains(names, k.Name) })
	if len(left) == len(keys) {
		return p, nil
	}
	b, err := formatKeys(left)
	if err != nil {
		return nil, err
	}
	p = slices.Clone(p)
	for i := range p {
		if p[i].Name == keysFile {
			p[i].Data = b
		}
	}
	return p, nil
}

// A replacement is written into stagingDir. Renaming that to readyDir is the moment from which on it holds: whoever opens the
// directory next finishes it if this process cannot.
const (
	stagingDir = "import.new"
	readyDir   = "import.ready"
	listFile   = "files" // in both: the names of the files that there are to be
	keptPrefix = "replaced-"
)

// HoldsState reports whether the directory has what an import would replace, readable or not.
func (d *Dir) HoldsState() bool {
	for _, name := range []string{identityFile, keysFile} {
		if _, err := d.root.Lstat(name); err == nil {
			return true
		}
	}
	return false
}

// Replace puts a picture in place of what the directory has: all of it or, with an error, nothing, also when the machine fails in
// between. A copy of what was there is kept in a folder of the directory; kept is its name, "" if there was nothing.
func (d *Dir) Replace(p Picture, now time.Time) (kept string, err error) {
	err = d.edit(func() error {
		kept, err = d.replace(p, now)
		return err
	})
	return kept, err
}

func (d *Dir) replace(p Picture, now time.Time) (kept string, err error) {
	if err := p.Check(); err != nil {
		return "", err
	}
	if kept, err = d.keepCopy(now); err != nil {
		return "", fmt.Errorf("keep a copy of what is in %s: %w", d.path, plain(err))
	}
	if err := d.stage(p); err != nil {
		d.root.RemoveAll(stagingDir)
		if kept != "" {
			d.root.RemoveAll(kept)
		}
		return "", fmt.Errorf("write the files into %s: %w", d.path, plain(err))
	}
	if err := d.finishReplace(); err != nil {
		return kept, fmt.Errorf("the files are in %s, and %w: the next start does that", filepath.Join(d.path, readyDir), err)
	}
	return kept, nil
}

// keepCopy copies what is there, whatever state it is in.
func (d *Dir) keepCopy(now time.Time) (folder string, err error) {
	var files []File
	for _, name := range movable {
		b, err := d.root.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		files = append(files, File{name, b})
	}
	if len(files) == 0 {
		return "", nil
	}
	stamp := keptPrefix + now.UTC().Format("20060102T150405Z")
	folder = stamp
	for n := 2; ; n++ {
		if _, err := d.root.Lstat(folder); errors.Is(err, fs.ErrNotExist) {
			break
		}
		folder = fmt.Sprintf("%s-%d", stamp, n)
	}
	if err := d.writeFolder(folder, files); err != nil {
		d.root.RemoveAll(folder)
		return "", err
	}
	return folder, d.syncDir(".")
}

// stage writes a picture so that finishReplace can put it in place.
func (d *Dir) stage(p Picture) error {
	var names []string
	for _, f := range p {
		names = append(names, f.Name)
	}
	if err := d.writeFolder(stagingDir, append(slices.Clone(p), File{listFile, []byte(strings.Join(names, "\n"))})); err != nil {
		return err
	}
	if err := d.root.Rename(stagingDir, readyDir); err != nil {
		return err
	}
	return d.syncDir(".")
}

// writeFolder makes a folder with these files. With an error some of it may be there.
func (d *Dir) writeFolder(folder string, files []File) error {
	if err := d.root.Mkdir(folder, 0o700); err != nil {
		return err
	}
	f, err := d.root.Open(folder)
	if err != nil {
		return err
	}
	err = d.owner.give(f)
	f.Close()
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := d.create(path.Join(folder, f.Name), f.Data); err != nil {
			return err
		}
	}
	return d.syncDir(folder)
}

// finishReplace puts the files of readyDir in place, if it is there. It does no harm a second time, and removes what an import left that
// never came so far.
func (d *Dir) finishReplace() error {
	if err := d.root.RemoveAll(stagingDir); err != nil {
		return fmt.Errorf("%s cannot be removed: %w", filepath.Join(d.path, stagingDir), plain(err))
	}
	list, err := d.root.ReadFile(path.Join(readyDir, listFile))
	if errors.Is(err, fs.ErrNotExist) { // none, or all but the removal of the folder is done
		return d.root.RemoveAll(readyDir)
	}
	if err != nil {
		return fmt.Errorf("they cannot be put in place: %w", err)
	}
	names := strings.Split(string(list), "\n")
	for _, name := range movable {
		err := rename(d.root, path.Join(readyDir, name), name)
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
			if !slices.Contains(names, name) {
				err = d.root.RemoveAll(name)
			}
		}
		if err != nil {
			return fmt.Errorf("they cannot be put in place: %w", err)
		}
	}
	if err := d.root.RemoveAll(offeredFile); err != nil { // it is about the keys of before
		return fmt.Errorf("they cannot be put in place: %w", err)
	}
	if err := d.syncDir("."); err != nil {
		return err
	}
	if err := d.root.RemoveAll(readyDir); err != nil {
		return fmt.Errorf("%s cannot be removed: %w", filepath.Join(d.path, readyDir), plain(err))
	}
	return d.syncDir(".")
}
