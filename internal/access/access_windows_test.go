package access

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/windows"
)

// onWine reports whether this is not a real Windows. Wine keeps no more of a list than the modes of a Unix file can, and its icacls does
// nothing.
func onWine() bool {
	return windows.NewLazySystemDLL("ntdll.dll").NewProc("wine_get_version").Find() == nil
}

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func setList(t *testing.T, path, sddl string) {
	t.Helper()
	sd, err := windows.SecurityDescriptorFromString(sddl)
	if err != nil {
		t.Fatal(err)
	}
	dacl, _, err := sd.DACL()
	if err != nil {
		t.Fatal(err)
	}
	if err := windows.SetNamedSecurityInfo(path, windows.SE_FILE_OBJECT, windows.DACL_SECURITY_INFORMATION|windows.PROTECTED_DACL_SECURITY_INFORMATION, nil, nil, dacl, nil); err != nil {
		t.Fatal(err)
	}
}

// TestLists gives a file lists and reads them back.
func TestLists(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Protect(path); err != nil {
		t.Fatal(err)
	}
	f := open(t, path)
	file, err := Rules{}.Look(path, f)
	if err != nil {
		t.Fatal(err)
	}
	if file.seen.plain || file.seen.fixed {
		t.Skipf("SKIPPED: the volume of %s has no access lists, or cannot be written", path)
	}
	for name, check := range map[string]func() ([]string, *Fault){"Private": file.Private, "Owned": file.Owned, "Unwritable": file.Unwritable} {
		if notes, fault := check(); fault != nil || len(notes) > 0 {
			t.Errorf("%s of a protected file = %v, %v", name, notes, fault)
		}
	}
	id, err := me()
	if err != nil {
		t.Fatal(err)
	}
	for sddl, can := range map[string]string{"(A;;FR;;;WD)": "read it", "(A;;FA;;;WD)": "read and write it"} {
		setList(t, path, "D:P(A;;FA;;;"+id+")"+sddl)
		file, err := Rules{}.Look(path, f)
		if err != nil {
			t.Fatal(err)
		}
		_, fault := file.Private()
		if fault == nil || !strings.Contains(fault.Text, "(Everyone) can "+can) {
			t.Errorf("Private with %s = %v", sddl, fault)
			continue
		}
		if _, fault := file.Unwritable(); (fault != nil) != (sddl == "(A;;FA;;;WD)") {
			t.Errorf("Unwritable with %s = %v", sddl, fault)
		}
		if onWine() {
			t.Log("NOT RUN under Wine: the command that mends it")
			continue
		}
		if out, err := exec.Command("cmd", "/c", strings.TrimPrefix(fault.Hint, "run ")).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", fault.Hint, err, out)
		}
		if file, err = (Rules{}).Look(path, f); err != nil {
			t.Fatal(err)
		}
		if _, fault := file.Private(); fault != nil {
			t.Errorf("Private after the remedy = %v", fault)
		}
	}
}

// TestProtectedDirectory: what is made in a protected directory is closed too.
func TestProtectedDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	setList(t, dir, "D:P(A;OICI;FA;;;WD)")
	if _, _, fault := (Rules{}).Dir(dir, open(t, dir)); fault == nil || !strings.Contains(fault.Error(), "Everyone") || !strings.Contains(fault.Error(), "--state DIR") {
		t.Errorf("a directory that everyone can write: %v", fault)
	}
	if err := Protect(dir); err != nil {
		t.Fatal(err)
	}
	d, note, fault := Rules{}.Dir(dir, open(t, dir))
	if note != "" || fault != nil {
		t.Fatalf("a protected directory: %q, %v", note, fault)
	}
	path := filepath.Join(dir, "identity.pem")
	if err := os.WriteFile(path, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if onWine() {
		t.Log("NOT RUN under Wine: what a file inherits")
		return
	}
	if fault := d.Private(path, open(t, path)); fault != nil {
		t.Errorf("a file in a protected directory: %v", fault)
	}
}
