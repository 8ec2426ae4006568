package state

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// knownFile and usersFile have a line for each address: its block and when somebody who is welcome last came from it, in seconds since 1970.
// They are two, since earlier versions take every line of knownFile for a bridge's, and damaged is one with anything else.
const (
	knownFile = "known"
	usersFile = "known.users"
	knownHead = "# Addresses that bridges came from lately: their connections go before those of strangers. The proxy writes this file."
	usersHead = "# Addresses that users came from lately who reached a service by its name: they are not held to the rate of strangers. The proxy writes this file."

	damagedFile  = knownFile + ".damaged"
	damagedUsers = usersFile + ".damaged"
	mostKnown    = 65_536
)

// Known is an address, or a network of IPv6, that a bridge was connected from, or a user.
type Known struct {
	Block netip.Prefix
	Last  time.Time
}

// Known returns the addresses that SetKnown stored last, nothing at first. A file that is damaged is put aside, and the error says so: nothing
// but a preference is lost with it.
func (d *Dir) Known() ([]Known, error) { return d.known(knownFile, damagedFile, knownHead) }

// KnownUsers is Known for what SetKnownUsers stored.
func (d *Dir) KnownUsers() ([]Known, error) { return d.known(usersFile, damagedUsers, usersHead) }

func (d *Dir) known(name, damaged, head string) ([]Known, error) {
	list, err := d.readKnown(name, head)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return list, nil
	}
	err = fmt.Errorf("read %s: %w", filepath.Join(d.path, name), plain(err))
	if aside := d.edit(func() error { return d.root.Rename(name, damaged) }); aside != nil {
		return nil, fmt.Errorf("%w (it cannot be put aside: %w)", err, plain(aside))
	}
	return nil, fmt.Errorf("%w (put aside as %s)", err, damaged)
}

func (d *Dir) readKnown(name, head string) ([]Known, error) {
	b, err := d.readFile(name)
	if err != nil {
		return nil, err
	}
	return parseKnown(b, head)
}

func parseKnown(b []byte, head string) (list []Known, err error) {
	lines := bufio.NewScanner(bytes.NewReader(b))
	if !lines.Scan() || lines.Text() != head {
		return nil, errors.New("it does not begin as the proxy writes it")
	}
	for n := 2; lines.Scan(); n++ {
		block, at, _ := strings.Cut(lines.Text(), " ")
		p, err := netip.ParsePrefix(block)
		sec, secErr := strconv.ParseInt(at, 10, 64)
		bits := 64
		if p.Addr().Is4() {
			bits = 32
		}
		switch {
		case err != nil || secErr != nil || p.Bits() != bits || p != p.Masked() || p.Addr().Is4In6():
			return nil, fmt.Errorf("line %d is no address with a time", n)
		case n > mostKnown+1:
			return nil, fmt.Errorf("it has more than %d addresses", mostKnown)
		}
		list = append(list, Known{p, time.Unix(sec, 0)})
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(b) > 0 && b[len(b)-1] != '\n' {
		return nil, errors.New("its last line is cut short")
	}
	return list, nil
}

// SetKnown stores the addresses that bridges came from, what was longest ago first.
func (d *Dir) SetKnown(list []Known) error { return d.setKnown(knownFile, knownHead, list) }

// SetKnownUsers stores the addresses that users came from who reached a service, what was longest ago first.
func (d *Dir) SetKnownUsers(list []Known) error { return d.setKnown(usersFile, usersHead, list) }

func (d *Dir) setKnown(name, head string, list []Known) error {
	b := []byte(head + "\n")
	for _, k := range list[max(len(list)-mostKnown, 0):] {
		b = append(append(k.Block.AppendTo(b), ' '), strconv.FormatInt(k.Last.Unix(), 10)...)
		b = append(b, '\n')
	}
	return d.edit(func() error { return d.write(name, b) })
}
