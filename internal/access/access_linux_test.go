package access

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Users that these machines do not have, and the group of one of them.
const (
	service = 65_532 // as which the process runs in many images
	shared  = 2_000  // a supplementary group of service, as Kubernetes' fsGroup
	other   = 1_000  // who owns files that are bind-mounted from a host
)

// host is a place of files on which the test may mount what it likes.
type host struct {
	*testing.T
	dir string
}

// onHost calls f in a thread that sees mounts of its own, which end with it.
func onHost(t *testing.T, f func(h host)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root, to mount and to give files away")
	}
	dir := t.TempDir()
	os.Chmod(dir, 0o755)
	os.Chmod(filepath.Dir(dir), 0o755) // TempDir's parent is closed to the users that as becomes
	thread(t, func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
			return fmt.Errorf("SKIPPED: a mount namespace: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("SKIPPED: private mounts: %w", err)
		}
		f(host{t, dir})
		return nil
	})
}

// thread calls f in a thread that is thrown away.
func thread(t *testing.T, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		err := fmt.Errorf("the test ended early")
		runtime.LockOSThread() // and never unlocks it
		defer func() { done <- err }()
		err = f()
	}()
	if err := <-done; err != nil {
		if strings.HasPrefix(err.Error(), "SKIPPED") {
			t.Skip(err)
		}
		t.Error(err)
	}
}

// as calls f as another user. Threads that are started in a thread with mounts of its own do not have these, so the user's ids are
// changed in the same thread, and back.
func (h host) as(uid int, f func()) {
	h.Helper()
	if uid == 0 {
		f()
		return
	}
	set := func(trap uintptr, a, b, c uintptr) {
		if _, _, errno := unix.RawSyscall(trap, a, b, c); errno != 0 {
			panic(fmt.Sprintf("become user %d: %v", uid, errno))
		}
	}
	keep := ^uintptr(0)
	unix.RawSyscall(unix.SYS_SETRESGID, keep, uintptr(uid), keep)
	setgroups(shared)
	set(unix.SYS_SETRESUID, keep, uintptr(uid), keep)
	defer func() {
		set(unix.SYS_SETRESUID, keep, 0, keep)
		set(unix.SYS_SETRESGID, keep, 0, keep)
		setgroups()
	}()
	f()
}

// setgroups changes the groups of this thread alone.
func setgroups(gids ...uint32) {
	var first unsafe.Pointer
	if len(gids) > 0 {
		first = unsafe.Pointer(&gids[0])
	}
	unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(gids)), uintptr(first), 0)
}

func (h host) file(path string, uid, gid int, mode os.FileMode) string {
	h.Helper()
	path = filepath.Join(h.dir, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		h.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("text"), 0o600); err != nil {
		h.Fatal(err)
	}
	h.own(path, uid, gid, mode)
	return path
}

func (h host) own(path string, uid, gid int, mode os.FileMode) {
	h.Helper()
	if err := os.Lchown(path, uid, gid); err != nil {
		h.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		h.Fatal(err)
	}
}

// readOnly mounts a file or directory on itself, read-only, as a container's runtime does.
func (h host) readOnly(path string) {
	h.Helper()
	if err := unix.Mount(path, path, "", unix.MS_BIND, ""); err != nil {
		h.Fatal(err)
	}
	if err := unix.Mount("", path, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		h.Fatal(err)
	}
}

// verdict is what the rules say about a file, for a secret and for settings.
type verdict struct {
	notes []string
	fault *Fault
}

func (h host) look(r Rules, path string) (secret, settings verdict) {
	h.Helper()
	f, err := os.Open(path)
	if err != nil {
		h.Fatal(err)
	}
	defer f.Close()
	file, err := r.Look(path, f)
	if err != nil {
		h.Fatal(err)
	}
	if secret.notes, secret.fault = file.Private(); secret.fault == nil {
		var more []string
		more, secret.fault = file.Owned()
		secret.notes = append(secret.notes, more...)
	}
	settings.notes, settings.fault = file.Unwritable()
	return secret, settings
}

// wantTaken wants a file to be taken, with a note for each of the words and no other.
func (h host) wantTaken(what string, v verdict, notes ...string) {
	h.Helper()
	if v.fault != nil {
		h.Errorf("%s is refused: %v", what, v.fault)
		return
	}
	if len(v.notes) != len(notes) {
		h.Errorf("%s has the notes %q, want %d", what, v.notes, len(notes))
		return
	}
	for i, word := range notes {
		if !strings.Contains(v.notes[i], word) {
			h.Errorf("%s has the note %q, want %q in it", what, v.notes[i], word)
		}
	}
}

func (h host) wantRefused(what string, v verdict, words ...string) {
	h.Helper()
	if v.fault == nil {
		h.Errorf("%s is taken", what)
		return
	}
	for _, word := range words {
		if !strings.Contains(v.fault.Error(), word) {
			h.Errorf("%s: %q, want %q in it", what, v.fault, word)
		}
	}
}

// TestDockerSecret: Docker mounts a secret read-only, with mode 0444 and the owner of a file of the host.
func TestDockerSecret(t *testing.T) {
	onHost(t, func(h host) {
		path := h.file("run/secrets/token", other, other, 0o444)
		h.readOnly(path)
		for _, uid := range []int{0, service} {
			h.as(uid, func() {
				secret, settings := h.look(Rules{}, path)
				h.wantTaken(fmt.Sprintf("a secret as user %d", uid), secret, "mode 0444", "uid 1000")
				h.wantTaken(fmt.Sprintf("settings as user %d", uid), settings, "uid 1000")
			})
		}
		// Swarm's are root's.
		path = h.file("run/secrets/swarm", 0, 0, 0o444)
		h.readOnly(path)
		secret, settings := h.look(Rules{}, path)
		h.wantTaken("root's secret", secret, "read-only mount")
		h.wantTaken("root's settings", settings)
	})
}

// TestKubernetesSecret: a volume of root, read-only, whose files are links to a directory that is exchanged as a whole. With fsGroup the
// files have mode 0440, without it 0644.
func TestKubernetesSecret(t *testing.T) {
	for _, mode := range []os.FileMode{0o440, 0o644} {
		onHost(t, func(h host) {
			h.file("vol/..2026_11_29/token", 0, shared, mode)
			vol := filepath.Join(h.dir, "vol")
			for name, to := range map[string]string{"..data": "..2026_11_29", "token": "..data/token"} {
				if err := os.Symlink(to, filepath.Join(vol, name)); err != nil {
					t.Fatal(err)
				}
			}
			h.own(vol, 0, shared, 0o777|os.ModeSticky|os.ModeSetgid)
			h.readOnly(vol)
			h.as(service, func() {
				secret, settings := h.look(Rules{}, filepath.Join(vol, "token"))
				h.wantTaken("a secret", secret, fmt.Sprintf("mode %04o", mode))
				h.wantTaken("settings", settings)
			})
		})
	}
}

// TestCredential: systemd gives a unit's credentials to its user by an access list, which shows as mode 0440. Where it cannot mount
// anything the directory is writable for root.
func TestCredential(t *testing.T) {
	onHost(t, func(h host) {
		path := h.file("credentials/reverser.service/token", 0, 0, 0o444) // a list of this process's own is not needed to read it
		t.Setenv("CREDENTIALS_DIRECTORY", filepath.Dir(path))
		h.as(service, func() {
			secret, settings := h.look(Rules{}, path)
			h.wantTaken("a credential", secret, "$CREDENTIALS_DIRECTORY")
			h.wantTaken("settings", settings)
		})
		h.own(path, other, other, 0o440) // of a service manager that is not root's
		secret, settings := h.look(Rules{}, path)
		h.wantTaken("another's credential", secret, "mode 0440", "uid 1000")
		h.wantTaken("another's settings", settings, "uid 1000")

		h.own(path, 0, 0, 0o666)
		secret, settings = h.look(Rules{}, path)
		h.wantRefused("a credential that everyone may write", secret, "read and write it (mode 0666)")
		h.wantRefused("settings that everyone may write", settings, "write it (mode 0666)")

		beside := h.file("credentials/reverser.service-2/token", 0, 0, 0o440)
		secret, _ = h.look(Rules{}, beside)
		h.wantRefused("another unit's credential", secret, "chmod 600")
		link := filepath.Join(filepath.Dir(path), "link")
		if err := os.Symlink(beside, link); err != nil {
			t.Fatal(err)
		}
		secret, _ = h.look(Rules{}, link)
		h.wantRefused("what a link in the directory leads to", secret, "chmod 600 "+beside)
	})
}

// TestGroupOfTheService: root keeps a secret for a service as 0640 root:GROUP.
func TestGroupOfTheService(t *testing.T) {
	onHost(t, func(h host) {
		path := h.file("etc/token", 0, shared, 0o640)
		h.as(service, func() {
			secret, _ := h.look(Rules{}, path)
			h.wantTaken("a secret of the service's group", secret)
		})
		secret, _ := h.look(Rules{}, path)
		h.wantRefused("the same, for root, who needs no group", secret, "chmod 600")
		h.own(path, 0, shared, 0o660)
		h.as(service, func() {
			secret, _ := h.look(Rules{}, path)
			h.wantRefused("a secret that the group can write", secret, "mode 0660", "chown")
		})
	})
}

// TestTrustedOwner: a bind mount that can be written, of a file of the host's user.
func TestTrustedOwner(t *testing.T) {
	onHost(t, func(h host) {
		trust := Rules{Trusted: []int{other}}
		path := h.file("etc/bridge.toml", other, other, 0o644)
		for _, uid := range []int{0, service} {
			h.as(uid, func() {
				_, settings := h.look(Rules{}, path)
				h.wantRefused(fmt.Sprintf("another's settings as user %d", uid), settings, "uid 1000", "--trust-owner 1000", "read-only")
				secret, settings := h.look(trust, path)
				h.wantTaken("a trusted user's settings", settings)
				h.wantRefused("a trusted user's secret for everyone", secret, "read it (mode 0644)")
			})
		}
		h.own(path, other, shared, 0o660) // whom the trusted user lets write it
		h.as(service, func() {
			secret, settings := h.look(trust, path)
			h.wantTaken("a trusted user's settings", settings)
			h.wantTaken("a trusted user's secret", secret)
			secret, settings = h.look(Rules{Trusted: []int{other + 1}}, path)
			h.wantRefused("another user's settings", settings, "--trust-owner 1000")
			h.wantRefused("another user's secret", secret, "mode 0660")
		})
		h.own(path, other, other, 0o666)
		_, settings := h.look(trust, path)
		h.wantRefused("a trusted user's settings that everyone may write", settings, "mode 0666")
		h.readOnly(path)
		secret, settings := h.look(trust, path)
		h.wantTaken("the same on a read-only mount", settings, "mode 0666")
		h.wantTaken("the same on a read-only mount", secret, "mode 0666")

		dir := filepath.Dir(h.file("d/bridge.toml", 0, 0, 0o644))
		h.own(dir, other, other, 0o755)
		_, settings = h.look(Rules{}, dir+"/bridge.toml")
		h.wantRefused("settings in another's directory", settings, "--trust-owner 1000", "directory "+dir)
		_, settings = h.look(trust, dir+"/bridge.toml")
		h.wantTaken("settings in a trusted user's directory", settings)
		h.readOnly(dir)
		_, settings = h.look(Rules{}, dir+"/bridge.toml")
		h.wantTaken("settings in another's read-only directory", settings, "directory "+dir)
	})
}

// TestLinkOutOfAReadOnlyMount: what counts is where the file is, not where its name is.
func TestLinkOutOfAReadOnlyMount(t *testing.T) {
	onHost(t, func(h host) {
		file := h.file("home/token", other, other, 0o444)
		dir := filepath.Join(h.dir, "secrets")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(file, dir+"/token"); err != nil {
			t.Fatal(err)
		}
		h.readOnly(dir)
		secret, settings := h.look(Rules{}, dir+"/token")
		h.wantRefused("a secret", secret, "mode 0444")
		h.wantRefused("settings", settings, "uid 1000")
	})
}

// TestRemediesWork carries out, as root, what each refusal says to run, and wants the file to be taken then.
func TestRemediesWork(t *testing.T) {
	for _, uid := range []int{0, service} {
		for _, owner := range []int{0, service, other} {
			for _, mode := range []os.FileMode{0o644, 0o666, 0o440, 0o660, 0o646} {
				onHost(t, func(h host) {
					path := h.file("etc/file", owner, 3_000, mode)
					var secret, settings verdict
					try := func() { h.as(uid, func() { secret, settings = h.tryLook(path) }) }
					for _, pick := range []func() *verdict{func() *verdict { return &secret }, func() *verdict { return &settings }} {
						h.own(path, owner, 3_000, mode)
						for tries := 0; ; tries++ {
							try()
							v := pick()
							if v.fault == nil {
								break
							}
							if tries == 3 {
								t.Fatalf("%v, whatever is done", v.fault)
							}
							command, ok := strings.CutPrefix(v.fault.Hint, "run ")
							command, _, _ = strings.Cut(command, ", ")
							command = strings.ReplaceAll(command, " as root", "")
							command = strings.ReplaceAll(command, " and ", " && ")
							if out, err := exec.Command("sh", "-c", command).CombinedOutput(); !ok || err != nil {
								t.Fatalf("the remedy of %q: %v: %s", v.fault, err, out)
							}
						}
					}
				})
			}
		}
	}
}

// tryLook is look for a file that perhaps cannot be opened; it then needs no rules.
func (h host) tryLook(path string) (secret, settings verdict) {
	f, err := os.Open(path)
	if err != nil {
		return verdict{}, verdict{}
	}
	f.Close()
	return h.look(Rules{}, path)
}

// TestStateDirectory: whose directory is used, and what its group may do.
func TestStateDirectory(t *testing.T) {
	onHost(t, func(h host) {
		dir := filepath.Join(h.dir, "state")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			uid       int // who runs
			owner, gr int
			mode      os.FileMode
			trusted   []int
			fault     string // "": none
			note      string
		}{
			{0, 0, 0, 0o700, nil, "", ""},
			{0, other, other, 0o700, nil, "", "--trust-owner 1000"},
			{0, other, other, 0o700, []int{other}, "", ""},
			{0, other, other, 0o702, []int{other}, "others on this machine", ""},
			{service, service, service, 0o700, nil, "", ""},
			{service, service, shared, 0o2770, nil, "--trust-owner 65532", ""}, // as Kubernetes leaves it at each start
			{service, service, shared, 0o2770, []int{service}, "", ""},
			{service, 0, shared, 0o2775, nil, "--trust-owner 0", ""}, // a new volume with fsGroup
			{service, 0, shared, 0o2775, nil, "--state " + dir + "/reverser", ""},
			{service, 0, shared, 0o2775, []int{0}, "", ""},
			{service, 0, 0, 0o777, []int{0}, "--state " + dir + "/reverser", ""},
			{service, other, shared, 0o770, nil, "uid 1000", ""},
			{service, other, shared, 0o770, []int{other}, "", ""},
			{service, other, shared, 0o777, []int{other}, "others on this machine", ""},
		} {
			what := fmt.Sprintf("mode %04o of %d:%d for user %d who trusts %v", c.mode, c.owner, c.gr, c.uid, c.trusted)
			h.own(dir, c.owner, c.gr, c.mode&0o777)
			f, err := os.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			h.as(c.uid, func() {
				d, note, fault := Rules{Trusted: c.trusted}.Dir(dir, f)
				switch {
				case c.fault == "" && fault != nil:
					t.Errorf("%s: %v", what, fault)
				case c.fault != "" && (fault == nil || !strings.Contains(fault.Error(), c.fault)):
					t.Errorf("%s: %v, want %q in it", what, fault, c.fault)
				}
				if (note == "") != (c.note == "") || !strings.Contains(note, c.note) {
					t.Errorf("%s: note %q, want %q", what, note, c.note)
				}
				if fault != nil {
					return
				}
				group := slices.Contains(c.trusted, c.owner)
				for mode, taken := range map[os.FileMode]bool{0o600: true, 0o660: group, 0o640: group, 0o604: false, 0o666: false} {
					h.own2(dir+"/keys", c.uid, c.gr, mode)
					f := h.openAsRoot(dir + "/keys")
					if fault := d.Private("keys", f); (fault == nil) != taken {
						t.Errorf("%s: a secret file of mode %04o: %v", what, mode, fault)
					}
					if fault := d.Unwritable("keys", f); (fault == nil) != (mode&0o022 == 0 || taken) {
						t.Errorf("%s: a file of mode %04o: %v", what, mode, fault)
					}
					f.Close()
				}
			})
			f.Close()
		}
	})
}

// openAsRoot opens a file in the middle of being another user.
func (h host) openAsRoot(path string) *os.File {
	h.Helper()
	me, keep := os.Geteuid(), ^uintptr(0)
	unix.RawSyscall(unix.SYS_SETRESUID, keep, 0, keep)
	defer unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(me), keep)
	f, err := os.Open(path)
	if err != nil {
		h.Fatal(err)
	}
	return f
}

// own2 makes a file as root in the middle of being another user.
func (h host) own2(path string, uid, gid int, mode os.FileMode) {
	h.Helper()
	me := os.Geteuid()
	keep := ^uintptr(0)
	unix.RawSyscall(unix.SYS_SETRESUID, keep, 0, keep)
	defer unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(me), keep)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		h.Fatal(err)
	}
	h.own(path, uid, gid, mode)
}
