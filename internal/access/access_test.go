package access

import "testing"

func TestParseOwner(t *testing.T) {
	for s, want := range map[string]int{"0": 0, "1000": 1000, "65534": 65534, "4294967294": 4294967294} {
		if uid, err := ParseOwner(s); uid != want || err != nil {
			t.Errorf("ParseOwner(%q) = %d, %v; want %d", s, uid, err, want)
		}
	}
	for _, s := range []string{"", "alice", "-1", "1000 ", "0x10", "4294967295", "99999999999"} {
		if uid, err := ParseOwner(s); err == nil {
			t.Errorf("ParseOwner(%q) = %d, want an error", s, uid)
		}
	}
}
