package access

import (
	"strings"
	"testing"
)

const alice = "S-1-5-21-1004336348-1177238915-682003330-1001"

// lists are what real files and directories have, as `icacls /save` and Get-Acl show them.
var lists = []struct {
	what, sddl             string
	reads, writes, replace string // the crowds that can
}{
	{"a file in a profile", "D:(A;ID;FA;;;SY)(A;ID;FA;;;BA)(A;ID;FA;;;" + alice + ")", "", "", ""},
	{"what Protect makes", "D:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;FA;;;" + alice + ")(A;OICI;FR;;;S-1-5-19)", "", "", ""},
	{"a file in a folder of the system drive", "D:AI(A;ID;FA;;;BA)(A;ID;FA;;;SY)(A;ID;0x1200a9;;;BU)(A;ID;0x1301bf;;;AU)", "Users and Authenticated Users", "Authenticated Users", ""},
	{"a folder of the system drive", "D:AI(A;OICIID;FA;;;BA)(A;OICIID;FA;;;SY)(A;OICIID;0x1200a9;;;BU)(A;ID;0x1301bf;;;AU)(A;OICIIOID;SDGXGWGR;;;AU)", "Users and Authenticated Users", "Authenticated Users", ""},
	{"a file in ProgramData", "D:AI(A;ID;FA;;;SY)(A;ID;FA;;;BA)(A;ID;0x1200a9;;;BU)", "Users", "", ""},
	{"a folder in ProgramData", "D:AI(A;OICIID;FA;;;SY)(A;OICIID;FA;;;BA)(A;OICIIOID;GA;;;CO)(A;OICIID;0x1200a9;;;BU)(A;CIID;DCLCRPCR;;;BU)", "Users", "Users", ""},
	{"a file of a share for everyone", "D:(A;;FA;;;WD)", "Everyone", "Everyone", "Everyone"},
	{"everyone, by number", "D:(A;;0x1f01ff;;;S-1-1-0)", "Everyone", "Everyone", "Everyone"},
	{"a generic right for everyone", "D:(A;;GA;;;WD)", "Everyone", "Everyone", "Everyone"},
	{"a generic right, by number", "D:(A;;0x40000000;;;WD)", "", "Everyone", ""},
	{"a domain's users", "D:(A;;FR;;;S-1-5-21-1-2-3-513)(A;;FW;;;DU)", "Domain Users", "Domain Users", ""},
	{"a domain's guests", "D:(A;;FR;;;S-1-5-21-1-2-3-514)(A;;FR;;;BG)(A;;FR;;;AN)", "Domain Guests and Guests and Anonymous", "", ""},
	{"another user", "D:(A;;FA;;;S-1-5-21-1-2-3-1002)(A;;FA;;;S-1-5-80-1-2-3-4-5)", "", "", ""}, // somebody's choice
	{"execute only", "D:(A;;FX;;;WD)", "", "", ""},
	{"permission to change the list", "D:(A;;WD;;;BU)", "", "Users", "Users"},
	{"permission to delete", "D:(A;;SD;;;BU)", "", "Users", ""},
	{"permission to delete what is in it", "D:(A;;DT;;;BU)", "", "", "Users"},
	{"denied before", "D:(D;;FA;;;WD)(A;;FA;;;BU)", "", "", ""},
	{"denied in part", "D:(D;;FW;;;BU)(A;;FA;;;BU)", "Users", "Users", "Users"}, // not to delete
	{"denied behind", "D:(A;;FA;;;BU)(D;;FA;;;BU)", "Users", "Users", "Users"},
	{"others denied", "D:(D;;FA;;;BG)(A;;FR;;;BU)", "Users", "", ""},
	{"for what is made in it", "D:(A;OICIIO;FA;;;WD)", "", "", ""},
	{"a condition", `D:(XA;;FR;;;WD;(@User.Title=="PM" && (@User.Division=="Finance" || @User.Division =="Sales")))(A;;FW;;;BU)`, "Everyone", "Users", ""},
	{"a denial with a condition", `D:(XD;;FA;;;WD;(@User.Title=="PM"))(A;;FR;;;WD)`, "Everyone", "", ""},
	{"a part about auditing", "D:PAI(A;;FA;;;BA)S:AI(AU;SAFA;FA;;;WD)(ML;;NW;;;LW)", "", "", ""},
	{"owner and group in front", "O:BAG:DUD:(A;;FR;;;BU)", "Users", "", ""},
	{"a list without entries", "D:P", "", "", ""},
	{"no list", "", "Everyone", "Everyone", "Everyone"},
	{"no list, by name", "D:NO_ACCESS_CONTROL", "Everyone", "Everyone", "Everyone"},
	{"no list, protected", "D:PNO_ACCESS_CONTROL", "Everyone", "Everyone", "Everyone"},
}

func TestGrants(t *testing.T) {
	for _, c := range lists {
		l, err := parseList(c.sddl)
		if err != nil {
			t.Errorf("%s: %v", c.what, err)
			continue
		}
		for rights, want := range map[uint32]string{mayRead: c.reads, mayWrite: c.writes, mayReplace: c.replace} {
			to, granted := l.grants(rights)
			if got := names(to); got != want || (granted == 0) != (want == "") {
				t.Errorf("%s, %s: rights %#x are granted to %q, want %q", c.what, c.sddl, rights, got, want)
			}
		}
	}
}

func TestBadLists(t *testing.T) {
	for _, sddl := range []string{"D:(", "D:(A;;FA;;;WD", "D:(A;;FA)", "D:(Q;;FA;;;WD)", "D:(A;;ZZ;;;WD)", "D:(A;;F;;;WD)", "D:(A;;0xfffffffff;;;WD)"} {
		if l, err := parseList(sddl); err == nil {
			t.Errorf("parseList(%q) = %+v, want an error", sddl, l)
		}
	}
}

func FuzzParseList(f *testing.F) {
	for _, c := range lists {
		f.Add(c.sddl)
	}
	f.Fuzz(func(t *testing.T, sddl string) {
		l, err := parseList(sddl)
		if err != nil {
			return
		}
		if _, granted := l.grants(mayRead | mayWrite); granted&^(mayRead|mayWrite) != 0 {
			t.Errorf("more is granted than was asked for: %#x", granted)
		}
	})
}

func on(t *testing.T, sddl string) seen {
	t.Helper()
	l, err := parseList(sddl)
	if err != nil {
		t.Fatal(err)
	}
	return seen{path: `C:\reverser files\token.txt`, list: l, me: alice}
}

func TestWindowsFiles(t *testing.T) {
	const drive = "D:AI(A;ID;FA;;;BA)(A;ID;FA;;;SY)(A;ID;0x1200a9;;;BU)(A;ID;0x1301bf;;;AU)"
	const command = `run icacls "C:\reverser files\token.txt" /inheritance:r /grant:r "*` + alice + `:F" /grant:r "*S-1-5-32-544:F" /grant:r "*S-1-5-18:F"`
	s := on(t, drive)
	if _, fault := s.private(); fault == nil || fault.Text != "others on this machine (Users and Authenticated Users) can read and write it" ||
		fault.Hint != command+` /remove "*S-1-5-32-545" /remove "*S-1-5-11"` {
		t.Errorf("a secret: %v", fault)
	}
	if _, fault := s.unwritable(); fault == nil || fault.Text != "others on this machine (Authenticated Users) can write it" || !strings.HasPrefix(fault.Hint, command) {
		t.Errorf("settings: %v", fault)
	}
	s = on(t, "D:(A;ID;0x1200a9;;;BU)")
	if _, fault := s.private(); fault == nil || !strings.Contains(fault.Text, "(Users) can read it") {
		t.Errorf("a secret that others can read: %v", fault)
	}
	if notes, fault := s.unwritable(); fault != nil || len(notes) > 0 {
		t.Errorf("settings that others can read: %v, %v", notes, fault)
	}
	s = on(t, "D:(A;;FW;;;S-1-5-21-1-2-3-513)")
	if _, fault := s.private(); fault == nil || !strings.Contains(fault.Text, "(Domain Users) can write it") || !strings.HasSuffix(fault.Hint, ` /remove "*S-1-5-21-1-2-3-513"`) {
		t.Errorf("a secret that a domain can write: %v", fault)
	}

	// A USB stick, and a CD: nobody can mend them.
	s = on(t, "")
	s.plain = true
	for what, check := range map[string]func() ([]string, *Fault){"secret": s.private, "settings": s.unwritable} {
		if notes, fault := check(); fault != nil || len(notes) != 1 || !strings.Contains(notes[0], "no access lists") {
			t.Errorf("%s on FAT: %v, %v", what, notes, fault)
		}
	}
	if fault := s.keepsFiles(); fault != nil {
		t.Errorf("a directory on FAT: %v", fault)
	}
	s.fixed = true
	if notes, fault := s.private(); fault != nil || len(notes) != 1 || !strings.Contains(notes[0], "can read it") || !strings.Contains(notes[0], "read-only") {
		t.Errorf("a secret on a CD: %v, %v", notes, fault)
	}
	if notes, fault := s.unwritable(); fault != nil || len(notes) > 0 {
		t.Errorf("settings on a CD: %v, %v", notes, fault)
	}

	s = on(t, "D:(A;OICI;FA;;;BU)")
	s.path, s.dir = `C:\shared`, true
	if fault := s.keepsFiles(); fault == nil || !strings.Contains(fault.Hint, `"*`+alice+`:(OI)(CI)F"`) || !strings.Contains(fault.Text, `C:\shared`) {
		t.Errorf("a directory that others rule: %v", fault)
	}
}

func TestProtection(t *testing.T) {
	sddl, err := protection(alice, []Grant{{SID: "S-1-5-19"}, {SID: "S-1-5-80-1", Write: true}})
	if want := "D:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;FA;;;" + alice + ")(A;OICI;FR;;;S-1-5-19)(A;OICI;FA;;;S-1-5-80-1)"; sddl != want || err != nil {
		t.Errorf("protection = %q, %v; want %q", sddl, err, want)
	}
	for _, sid := range []string{"", "LocalService", "S-1-", "S-1-5-19)(A;;FA;;;WD"} {
		if sddl, err := protection(alice, []Grant{{SID: sid}}); err == nil {
			t.Errorf("protection with %q = %q, want an error", sid, sddl)
		}
	}
}
