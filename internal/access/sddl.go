package access

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// What a list grants, of what counts here (FILE_READ_DATA and so on). For a directory, mayWrite is to put files into it.
const (
	mayRead    = 0x1
	mayWrite   = 0x2 | 0x4 | mayDelete | mayGrant // to append is to write, and whoever can delete a file can put another in its place
	mayDelete  = 0x10000
	mayGrant   = 0x40000 | 0x80000 // change the list or the owner
	mayReplace = 0x40 | mayGrant   // of a directory: delete files in it, whatever their own lists say
)

// rightWords are the rights of files by their names in the text form of a descriptor. Generic ones stand for what they mean for files.
var rightWords = map[string]uint32{
	"GA": 0x1f01ff, "GR": 0x120089, "GW": 0x120116, "GX": 0x1200a0,
	"FA": 0x1f01ff, "FR": 0x120089, "FW": 0x120116, "FX": 0x1200a0,
	"RC": 0x20000, "SD": 0x10000, "WD": 0x40000, "WO": 0x80000,
	"CC": 0x1, "DC": 0x2, "LC": 0x4, "SW": 0x8, "RP": 0x10, "WP": 0x20, "DT": 0x40, "LO": 0x80, "CR": 0x100,
}

// crowd is a group that other people of the machine or of the network are in without anybody's choice.
type crowd struct {
	alias string // in the text form of a descriptor, "" where it has none
	sid   string
	name  string
}

var crowds = []crowd{
	{"WD", "S-1-1-0", "Everyone"},
	{"AU", "S-1-5-11", "Authenticated Users"},
	{"BU", "S-1-5-32-545", "Users"},
	{"BG", "S-1-5-32-546", "Guests"},
	{"AN", "S-1-5-7", "Anonymous"},
	{"IU", "S-1-5-4", "Interactive"},
	{"NU", "S-1-5-2", "Network"},
	{"", "S-1-5-113", "Local account"},
	{"", "S-1-2-0", "Local"},
	{"DU", "S-1-5-21-*-513", "Domain Users"},
	{"DG", "S-1-5-21-*-514", "Domain Guests"},
	{"LG", "S-1-5-21-*-501", "Guest"},
}

func crowdOf(sid string) (crowd, bool) {
	i := slices.IndexFunc(crowds, func(c crowd) bool {
		before, after, domain := strings.Cut(c.sid, "*")
		return sid == c.alias || sid == c.sid || domain && strings.HasPrefix(sid, before) && strings.HasSuffix(sid, after)
	})
	if i < 0 {
		return crowd{}, false
	}
	return crowds[i], true
}

// list is an access control list of a file.
type list struct {
	none    bool // there is no list: everybody may do everything
	entries []entry
}

type entry struct {
	allow  bool
	rights uint32
	sid    string // or an alias
}

// parseList reads the list in the text form of a security descriptor (SDDL), as Windows writes it. Entries that are only for what is made
// in a directory later are left out.
func parseList(sddl string) (l list, err error) {
	_, text, ok := strings.Cut(sddl, "D:")
	if !ok || strings.HasPrefix(strings.TrimLeft(text, "PARI"), "NO_ACCESS_CONTROL") {
		return list{none: true}, nil
	}
	for first := true; ; first = false {
		flags, rest, ok := strings.Cut(text, "(")
		if first && strings.Contains(flags, "NO_ACCESS_CONTROL") {
			return list{none: true}, nil
		}
		if !ok || strings.Contains(flags, ":") { // the next part is about auditing
			return l, nil
		}
		// A conditional entry has parentheses of its own.
		depth, end := 1, -1
		for i, c := range rest {
			switch c {
			case '(':
				depth++
			case ')':
				depth--
			}
			if depth == 0 {
				end = i
				break
			}
		}
		if end < 0 {
			return list{}, fmt.Errorf("access list %q ends early", sddl)
		}
		fields := strings.Split(rest[:end], ";")
		text = rest[end+1:]
		if len(fields) < 6 {
			return list{}, fmt.Errorf("entry %q of an access list has %d fields", rest[:end], len(fields))
		}
		e := entry{sid: fields[5]}
		switch fields[0] {
		case "A", "OA", "XA", "ZA": // one with a condition counts as if that held
			e.allow = true
		case "D", "OD":
		case "XD":
			continue // nor is this one relied on
		default:
			return list{}, fmt.Errorf("entry %q of an access list is of an unknown kind", rest[:end])
		}
		if strings.Contains(fields[1], "IO") {
			continue
		}
		if e.rights, err = parseRights(fields[2]); err != nil {
			return list{}, fmt.Errorf("entry %q of an access list: %w", rest[:end], err)
		}
		l.entries = append(l.entries, e)
	}
}

// parseRights reads "FA", "GRGX" or "0x1301bf".
func parseRights(s string) (rights uint32, err error) {
	if n, err := strconv.ParseUint(s, 0, 32); err == nil {
		return generic(uint32(n)), nil
	}
	for ; len(s) >= 2; s = s[2:] {
		right, ok := rightWords[s[:2]]
		if !ok {
			return 0, fmt.Errorf("unknown right %q", s[:2])
		}
		rights |= right
	}
	if s != "" {
		return 0, fmt.Errorf("unknown right %q", s)
	}
	return rights, nil
}

// generic turns the generic rights of a mask into those of files.
func generic(mask uint32) uint32 {
	for bit, word := range map[uint32]string{1 << 28: "GA", 1 << 29: "GX", 1 << 30: "GW", 1 << 31: "GR"} {
		if mask&bit != 0 {
			mask |= rightWords[word]
		}
	}
	return mask
}

// grants returns the crowds that the list gives one of the rights, and the rights that all of them have together.
func (l list) grants(rights uint32) (to []crowd, granted uint32) {
	if l.none {
		return []crowd{crowds[0]}, rights
	}
	for i, e := range l.entries {
		c, ok := crowdOf(e.sid)
		if !e.allow || !ok {
			continue
		}
		left := e.rights & rights
		for _, before := range l.entries[:i] { // the first word about a right counts
			if d, ok := crowdOf(before.sid); ok && !before.allow && (d.name == c.name || d.name == "Everyone") {
				left &^= before.rights
			}
		}
		if left == 0 {
			continue
		}
		granted |= left
		if strings.HasPrefix(e.sid, "S-") {
			c.sid = e.sid // with the domain
		}
		if !slices.Contains(to, c) {
			to = append(to, c)
		}
	}
	return to, granted
}

// names are crowds as people read them.
func names(all []crowd) string {
	words := make([]string, len(all))
	for i, c := range all {
		words[i] = c.name
	}
	return strings.Join(words, " and ")
}

// closing is the command that leaves a file, or a directory with what is in it, to this user, administrators and the system. It is the
// same in a command prompt and in PowerShell.
func closing(path, me string, dir bool, from []crowd) string {
	inherit := ""
	if dir {
		inherit = "(OI)(CI)"
	}
	command := fmt.Sprintf(`icacls "%s" /inheritance:r`, path)
	for _, sid := range []string{me, administrators, system} {
		command += fmt.Sprintf(` /grant:r "*%s:%sF"`, sid, inherit)
	}
	for _, c := range from { // what stands there by itself is not inherited
		who := "*" + c.sid
		if strings.Contains(c.sid, "-*-") {
			who = c.name
		}
		command += fmt.Sprintf(` /remove "%s"`, who)
	}
	return command
}

const (
	administrators = "S-1-5-32-544"
	system         = "S-1-5-18"
)

// seen is what is known about a file, or a directory, on Windows.
type seen struct {
	path  string
	dir   bool
	fixed bool // on a volume that cannot be written
	plain bool // on a volume without access lists, such as FAT: nobody can mend what everybody may do there
	list  list
	me    string // this user's SID
}

// private refuses what others can read or write.
func (s seen) private() (notes []string, fault *Fault) {
	to, granted := s.list.grants(mayRead | mayWrite)
	if granted == 0 {
		return nil, nil
	}
	can := "read and write it"
	switch {
	case granted&mayWrite == 0 || s.fixed:
		can = "read it"
	case granted&mayRead == 0:
		can = "write it"
	}
	if note := s.excuse(can); note != "" {
		return []string{note}, nil
	}
	return nil, &Fault{fmt.Sprintf("others on this machine (%s) can %s", names(to), can), "run " + closing(s.path, s.me, s.dir, to)}
}

// unwritable refuses what others can write.
func (s seen) unwritable() (notes []string, fault *Fault) {
	to, granted := s.list.grants(mayWrite)
	if granted == 0 || s.fixed {
		return nil, nil
	}
	if note := s.excuse("write it"); note != "" {
		return []string{note}, nil
	}
	return nil, &Fault{fmt.Sprintf("others on this machine (%s) can write it", names(to)), "run " + closing(s.path, s.me, s.dir, to)}
}

// keepsFiles refuses a directory in which others can put another file in the place of one.
func (s seen) keepsFiles() *Fault {
	to, granted := s.list.grants(mayReplace)
	if granted == 0 || s.fixed || s.plain {
		return nil // without lists, the file itself has the note
	}
	return &Fault{fmt.Sprintf("others on this machine (%s) can delete files in its directory %s and put others in their place", names(to), s.path),
		"move the file to a directory of yours, or run " + closing(s.path, s.me, true, to)}
}

// excuse is why something that would be a fault elsewhere is none, "" if nothing is.
func (s seen) excuse(can string) string {
	switch {
	case s.fixed:
		return fmt.Sprintf("others on this machine can %s: it is taken all the same, since its volume is read-only", can)
	case s.plain:
		return fmt.Sprintf("others on this machine can %s: it is taken all the same, since its volume has no access lists (FAT)", can)
	}
	return ""
}

// protection is a list, in the text form of a descriptor, for this user, administrators, the system and who is named. It inherits nothing,
// and what is made in a directory inherits it.
func protection(me string, also []Grant) (sddl string, err error) {
	sddl = "D:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;FA;;;" + me + ")"
	for _, g := range also {
		rights := "FR"
		if g.Write {
			rights = "FA"
		}
		if !isSID(g.SID) {
			return "", fmt.Errorf("%q is no SID, such as S-1-5-19", g.SID)
		}
		sddl += "(A;OICI;" + rights + ";;;" + g.SID + ")"
	}
	return sddl, nil
}

// isSID reports whether s is a SID in its long form, with nothing in it that would mean something else in a list.
func isSID(s string) bool {
	numbers, ok := strings.CutPrefix(s, "S-1-")
	return ok && numbers != "" && strings.Trim(numbers, "0123456789-") == ""
}
