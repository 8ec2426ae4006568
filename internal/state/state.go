// Package state keeps everything of a process that must survive a restart, in
// one directory:
//
//	lock          held by the live process; says its process id
//	identity.pem  the proxy's private key and certificate
//	keys.json     the keys that `reverser key` manages
//	offered       which of the keys is allowed the port that the proxy's file offers
//	address       the address the proxy last gave out in tokens
//	known         addresses that bridges came from
//	usage.db      what was counted of connections
//	tls           certificates, their keys, and the account at their authority
//	admin.sock    the admin socket of the live process
//	admin.path    where the admin socket is, if not at admin.sock
//	import.ready  the files of an import, until each one is in its place
//	replaced-…    what an import replaced
//
// Files are written whole, are private, and belong to the owner of the
// directory. They change only under the lock, which the operating
// system drops when the process dies, so there is never a stale one to remove.
// A process that is stopping gives the lock up early, so that its successor can
// start beside it. The package starts no goroutines.
package state

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"reverser/internal/access"
	"reverser/internal/grammar"
	"reverser/internal/sys"
)

// Roles that have a default directory.
const (
	RoleProxy  = "proxy"
	RoleBridge = "bridge"
)

const (
	lockFile     = "lock"
	identityFile = "identity.pem"
	keysFile     = "keys.json"
	addressFile  = "address"
)

// ErrInUse is what errors.Is finds when another live process holds the
// directory. The error itself is an [*InUseError].
var ErrInUse = errors.New("state directory in use")

// InUseError says which directory is held, and by whom if that is known.
type InUseError struct {
	Path string
	PID  int // 0 when unknown
}

func (e *InUseError) Error() string {
	who := "another reverser process"
	if e.PID != 0 {
		who = fmt.Sprintf("another reverser process (pid %d)", e.PID)
	}
	return fmt.Sprintf("state directory %s is in use by %s: stop that one, or give this one its own --state DIR", e.Path, who)
}

// Is makes errors.Is(err, ErrInUse) true.
func (e *InUseError) Is(target error) bool { return target == ErrInUse }

// DefaultDir is where a role keeps its state when no --state is given: the
// platform's directory for such things, and reverser/ROLE in it, or ROLE in the
// directory that systemd made for a unit with StateDirectory=.
func DefaultDir(role string) (string, error) {
	// Several are separated by colons. Elsewhere the variable means nothing.
	if dir, _, _ := strings.Cut(os.Getenv("STATE_DIRECTORY"), ":"); runtime.GOOS == "linux" && filepath.IsAbs(dir) {
		return filepath.Join(dir, role), nil
	}
	base, err := defaultBase()
	if err != nil {
		return "", fmt.Errorf("find the default state directory: %w (give one with --state DIR)", err)
	}
	return filepath.Join(base, "reverser", role), nil
}

func defaultBase() (string, error) {
	switch runtime.GOOS {
	case "windows":
		// Not the roaming profile: an identity belongs to one machine.
		if dir := os.Getenv("LocalAppData"); dir != "" {
			return dir, nil
		}
		return "", errors.New("%LocalAppData% is not set")
	case "darwin", "ios":
		home, err := os.UserHomeDir()
		if err != nil && os.Geteuid() == 0 { // a daemon of launchd has none
			return "/Library/Application Support", nil
		}
		if err != nil {
			return "", err
		}
		return filepath.Join(home, "Library", "Application Support"), nil
	default:
		// The XDG rule: a relative value is to be ignored.
		if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
			return dir, nil
		}
		if home, err := os.UserHomeDir(); err == nil && filepath.IsAbs(home) {
			return filepath.Join(home, ".local", "state"), nil
		}
		// A system service may have no home at all.
		if os.Geteuid() == 0 {
			return "/var/lib", nil
		}
		return "", errors.New("neither $XDG_STATE_HOME nor $HOME is set")
	}
}

// Dir is a state directory that this process holds.
type Dir struct {
	path string
	// root confines every file operation to the directory: when root edits the
	// directory of a service user, a symbolic link that user left there must
	// not lead root's writes and chowns elsewhere.
	root  *os.Root
	owner owner
	rules access.Rules
	files access.Dir // the rules for the files in it
	note  string
	sock  socket

	unstored unstored    // keys that were revoked
	hasKeys  atomic.Bool // the file of the keys is there, or was

	mu        sync.Mutex  // held while files are written
	lock      *os.File    // guarded by mu, as all below; nil: not held
	yielded   bool        // the lock was given up for a successor
	signature signature   // of the lock file when it was given up
	identity  []byte      // what Identity read or made; nil: it was not called
	seen      fs.FileInfo // of the identity's file, when it was looked at last
}

// Open makes the directory if it is missing, proves that it is writable and
// takes its lock. A directory held by a live process is an [*InUseError]. One of
// another user is refused, unless that user, by its id, is trusted.
func Open(path string, trusted ...int) (*Dir, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("state directory %s: %w", path, err)
	}
	_, missing := os.Lstat(abs)
	// What root makes above the directory is passable: /var/lib/reverser has the directories of services with users of their own.
	above := fs.FileMode(0o700)
	if os.Geteuid() == 0 {
		above = 0o755
	}
	if err := os.MkdirAll(filepath.Dir(abs), above); err != nil {
		return nil, unusable(abs, err)
	}
	if err := os.Mkdir(abs, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, unusable(abs, err)
	}
	if errors.Is(missing, fs.ErrNotExist) {
		if err := protectNew(abs); err != nil {
			return nil, unusable(abs, err)
		}
	}
	root, err := os.OpenRoot(abs)
	if err != nil {
		return nil, unusable(abs, err)
	}
	d := &Dir{path: abs, root: root, rules: access.Rules{Trusted: trusted}}
	if err := d.open(); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// judge refuses a directory that others can change, before anything is made in it.
func (d *Dir) judge() error {
	self, err := d.root.Open(".")
	if err != nil {
		return unusable(d.path, err)
	}
	defer self.Close()
	info, err := self.Stat()
	if err != nil {
		return unusable(d.path, err)
	}
	var fault *access.Fault
	if d.files, d.note, fault = d.rules.Dir(d.path, self); fault != nil {
		return fmt.Errorf("state directory %s: %w", d.path, fault)
	}
	d.owner = ownerOf(info)
	return nil
}

func (d *Dir) open() error {
	if err := d.judge(); err != nil {
		return err
	}
	if err := d.checkAll(); err != nil {
		return err
	}
	if err := d.takeLock(); err != nil {
		return err
	}
	if err := d.signLock(); err != nil {
		return unusable(d.path, err)
	}
	d.removeLeftovers()
	// The lock file may be writable in a directory that takes no new files:
	// find out now, not when the first key is added.
	probe := tempName(probeName)
	p, err := d.root.OpenFile(probe, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return unusable(d.path, err)
	}
	p.Close()
	if err := d.root.Remove(probe); err != nil {
		return unusable(d.path, err)
	}
	if err := d.finishReplace(); err != nil { // of an import that the end of its process cut short
		return fmt.Errorf("state directory %s: %w", d.path, err)
	}
	return nil
}

// checkAll is check for every file.
func (d *Dir) checkAll() error {
	for _, name := range []string{lockFile, identityFile, keysFile, offeredFile, addressFile, knownFile, usersFile, socketPathFile, adminTokenFile} {
		if err := d.check(name); err != nil {
			return err
		}
	}
	return nil
}

// check refuses a file that somebody else may change. It says nothing about one that is not there or cannot be opened: whoever
// reads it does.
func (d *Dir) check(name string) error {
	full := filepath.Join(d.path, name)
	info, err := d.root.Stat(name)
	if err != nil {
		return nil
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is no regular file (%s): remove it, or choose another directory with --state DIR", full, info.Mode())
	}
	f, _, err := d.openFile(name)
	if err != nil {
		return nil
	}
	defer f.Close()
	return d.checkFile(f, full)
}

// checkFile refuses a file that others can write, or that has another name: whoever made that may have another directory's
// file changed, or keep a secret beyond its removal.
func (d *Dir) checkFile(f *os.File, full string) error {
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("read %s: %w", full, plain(err))
	}
	if fault := d.files.Unwritable(full, f); fault != nil {
		return fmt.Errorf("%s: %w", full, fault)
	}
	if n := links(f, info); n > 1 {
		return fmt.Errorf("%s is a hard link (mode %04o): the file has %d names. %s", full, info.Mode().Perm(), n, linksRemedy(full))
	}
	return nil
}

// takeLock takes the lock. mu is held, or nobody else has d yet.
func (d *Dir) takeLock() error {
	f, err := d.root.OpenFile(lockFile, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return unusable(d.path, err)
	}
	if err := d.checkFile(f, filepath.Join(d.path, lockFile)); err != nil { // it is written to
		f.Close()
		return err
	}
	if err := lockAlone(f); err != nil {
		pid := readPID(f)
		f.Close()
		if errors.Is(err, errLocked) {
			return &InUseError{Path: d.path, PID: pid}
		}
		return fmt.Errorf("lock state directory %s: %w", d.path, err)
	}
	d.lock = f
	return nil
}

// lockTries bounds for how long lockAlone waits for those who look, and lockPause is called between two tries.
const lockTries = 200

var lockPause = func() { time.Sleep(5 * time.Millisecond) }

// lockAlone takes the lock, also while others look who has it (lockHolder): these share it for a moment.
func lockAlone(f *os.File) error {
	for tries := 1; ; tries++ {
		err := lockExclusive(f)
		if !errors.Is(err, errLocked) || tries == lockTries || lockShared(f) != nil { // or a process holds it
			return err
		}
		unlock(f)
		lockPause()
	}
}

// signLock writes into the lock file who holds it: for people, and for TakenOver.
func (d *Dir) signLock() error {
	if err := d.owner.give(d.lock); err != nil {
		return err
	}
	if err := d.lock.Truncate(0); err != nil {
		return err
	}
	_, err := d.lock.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

// dropLock gives the lock back. The file stays: removing it would let two
// processes lock two different files of the same name. mu is held.
func (d *Dir) dropLock() error {
	if d.lock == nil {
		return nil
	}
	err := errors.Join(unlock(d.lock), d.lock.Close())
	d.lock = nil
	return err
}

// Path is the absolute path of the directory.
func (d *Dir) Path() string { return d.path }

// Note is for the log of a process that keeps the directory: who else can change what is in it. It is mostly empty.
func (d *Dir) Note() string { return d.note }

// Yield gives the lock to a successor, for a process that finishes what it has.
// The admin socket answers until the successor opens its own in its place.
// From then on this process changes nothing in the directory.
func (d *Dir) Yield() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.unstored.ids()) > 0 { // the successor reads the file; with an error status says so
		d.unstored.note(d.storeLocked())
	}
	d.yielded = true
	d.signature = d.readSignature()
	return d.dropLock()
}

// TakenOver reports whether another process has opened the directory since Yield. It takes no lock, and so it is in nobody's way: whoever
// opens the directory signs the lock file.
func (d *Dir) TakenOver() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.yielded && d.readSignature() != d.signature
}

// signature is who signed the lock file, and when: processes in two containers may have the same pid.
type signature struct {
	pid int
	at  int64 // nanoseconds since 1970
}

// readSignature reads that of the lock file; zero: it cannot be read. mu is held.
func (d *Dir) readSignature() signature {
	f, err := d.root.Open(lockFile)
	if err != nil {
		return signature{}
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return signature{}
	}
	return signature{readPID(f), info.ModTime().UnixNano()}
}

// HasYielded reports whether Yield was called.
func (d *Dir) HasYielded() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.yielded
}

// ErrSucceeded is what errors.Is finds when a process that gave up its
// directory would change a file there, and a successor holds it.
var ErrSucceeded = errors.New("a newer process has taken over")

// edit calls f, which changes files, under the lock. A process that gave the
// lock up has it for that moment, unless there is a successor.
func (d *Dir) edit(f func() error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lock == nil {
		err := d.takeLock()
		if errors.Is(err, ErrInUse) {
			return fmt.Errorf("state directory %s: %w, and this one is stopping: ask again", d.path, ErrSucceeded)
		}
		if err != nil {
			return err
		}
		defer d.dropLock()
	} else if err := d.holdLock(); err != nil {
		return err
	}
	return f()
}

// Close removes the admin socket, unless a successor has its own there, and
// gives the lock back.
func (d *Dir) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sock.succeeded = d.yielded && d.lock == nil && d.takeLock() != nil
	d.closeSocket()
	return errors.Join(d.dropLock(), d.root.Close())
}

// Reach is what SetReach stored last.
func (d *Dir) Reach() grammar.Reach {
	b, err := d.readFile(addressFile)
	if err != nil {
		return grammar.Reach{}
	}
	return parseReach(b)
}

// SetReach remembers how bridges reach this proxy, so that `reverser key add` can put it into a token while the proxy is stopped.
func (d *Dir) SetReach(r grammar.Reach) error {
	text := formatReach(r)
	b, err := d.readFile(addressFile)
	if bytes.Equal(b, text) || errors.Is(err, fs.ErrNotExist) && len(text) <= len("\n") {
		return nil
	}
	return d.edit(func() error { return d.write(addressFile, text) })
}

// formatReach writes a line with the addresses, with commas between, and one with the SNI if there is one.
func formatReach(r grammar.Reach) []byte {
	text := strings.Join(r.Addrs, ",") + "\n"
	if r.SNI != "" {
		text += sniWord + r.SNI + "\n"
	}
	return []byte(text)
}

const sniWord = "sni "

// parseReach reads what formatReach wrote, and leaves out what no token could carry.
func parseReach(b []byte) (r grammar.Reach) {
	addrs, rest, _ := strings.Cut(string(b), "\n")
	for addr := range strings.SplitSeq(addrs, ",") {
		if addr, err := grammar.ParseHostPort(strings.TrimSpace(addr)); err == nil {
			r.Addrs = append(r.Addrs, addr)
		}
	}
	if name, ok := strings.CutPrefix(rest, sniWord); ok {
		r.SNI, _ = grammar.ParseSNI(strings.TrimSpace(name))
	}
	return r
}

// unusable wraps the reason why a directory cannot serve.
func unusable(path string, err error) error {
	// The path is said already, in full; the inner one would repeat it.
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		err = fmt.Errorf("%s %s: %w", pe.Op, pe.Path, pe.Err)
	}
	remedy := "it must be a directory that this user can write to; choose another with --state DIR"
	switch {
	case errors.Is(err, fs.ErrPermission):
		remedy = cmp.Or(access.Unusable(path), remedy)
	case sys.DiskFull(err):
		remedy = "make room on its disk, or choose another with --state DIR"
	}
	return &unusableError{path, err, remedy}
}

// unusableError is why a directory cannot serve, and what to do.
type unusableError struct {
	path   string
	err    error
	remedy string
}

func (e *unusableError) Error() string {
	return fmt.Sprintf("state directory %s cannot be used: %v (%s)", e.path, e.err, e.remedy)
}

func (e *unusableError) Unwrap() error { return e.err }

// Remedy is what to do.
func (e *unusableError) Remedy() string { return e.remedy }

// fault is an error with the remedy, which is a part of its text.
type fault struct {
	err    error
	remedy string
}

func (f *fault) Error() string { return f.err.Error() + ": " + f.remedy }
func (f *fault) Unwrap() error { return f.err }

// Remedy is the end of the text that says what to do.
func (f *fault) Remedy() string { return f.remedy }

// write replaces a file, under the lock, so that a reader, or a crash at any moment, sees the
// old one or the new one whole.
func (d *Dir) write(name string, data []byte) (err error) {
	tmp := path.Join(path.Dir(name), tempName(path.Base(name)))
	if err = d.create(tmp, data); err == nil {
		if before, gone := d.root.Lstat(name); gone == nil {
			err = d.owner.like(d.root, tmp, before)
		}
		if err == nil {
			err = rename(d.root, tmp, name)
		}
		if err != nil {
			d.root.Remove(tmp)
		} else {
			err = d.syncDir(path.Dir(name))
		}
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Join(d.path, name), plain(err))
	}
	return nil
}

// create makes a file and has it on the disk. With an error there is none.
func (d *Dir) create(name string, data []byte) (err error) {
	f, err := d.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close() // a second Close does no harm
			d.root.Remove(name)
		}
	}()
	if err := d.owner.give(f); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return f.Close()
}

// openFile opens a file of the directory to read it. It refuses what is no regular file: to open a named pipe would wait for whoever writes it,
// and so would all who want to change the directory meanwhile.
func (d *Dir) openFile(name string) (*os.File, fs.FileInfo, error) {
	f, err := d.root.OpenFile(name, access.ReadNow, 0)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("it is no regular file (%s): remove it, or put the file back", info.Mode())
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

// readFile reads a file of the directory that has no secret in it.
func (d *Dir) readFile(name string) ([]byte, error) {
	f, info, err := d.openFile(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAll(f, info.Size())
}

// readSecret reads a file that only its owner may be able to read.
func (d *Dir) readSecret(name string) ([]byte, error) {
	full := filepath.Join(d.path, name)
	f, info, err := d.openFile(name)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", full, plain(err))
	}
	defer f.Close()
	if fault := d.files.Private(full, f); fault != nil {
		return nil, fmt.Errorf("%s: %w", full, fault)
	}
	if err := d.checkFile(f, full); err != nil {
		return nil, err
	}
	b, err := readAll(f, info.Size())
	if err != nil {
		return nil, err
	}
	// Whoever looks at it with Notepad, and saves it, adds a mark.
	if bytes.HasPrefix(b, []byte("\xff\xfe")) || bytes.HasPrefix(b, []byte("\xfe\xff")) {
		return nil, fmt.Errorf("%s was saved as UTF-16: save it as UTF-8 (in Notepad: Save as, Encoding, UTF-8)", full)
	}
	return bytes.TrimPrefix(b, []byte("\xef\xbb\xbf")), nil
}

// plain drops the path from an error whose caller says it in full.
func plain(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	if le, ok := errors.AsType[*os.LinkError](err); ok { // of a rename
		return le.Err
	}
	return err
}

// tempBytes are the random bytes in a name of tempName.
const tempBytes = 6

func tempName(name string) string {
	var b [tempBytes]byte
	rand.Read(b[:])
	return "." + name + "." + hex.EncodeToString(b[:])
}

func readPID(f *os.File) int {
	b := make([]byte, 16)
	n, _ := f.ReadAt(b, 0)
	pid, _ := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	return pid
}

func readAll(f *os.File, size int64) ([]byte, error) {
	const most = 16 << 20 // nothing we write comes near; a wrong file should not eat the memory
	if size > most {
		return nil, fmt.Errorf("read %s: %d bytes is more than any state file has", f.Name(), size)
	}
	b := make([]byte, size)
	n, err := f.ReadAt(b, 0)
	if int64(n) == size {
		err = nil
	}
	return b[:n], err
}
