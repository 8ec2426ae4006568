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

// knownFile has a line for each address: its block and when a bridge last came from it, in seconds since 1970.
const (
	knownFile   = "known"
	damagedFile = "known.damaged"
	mostKnown   = 65_536
	knownHead   = "# Addresses that bridges came from lately: their connections go before those of strangers. The proxy writes this file."
)

// Known is an address, or a network of IPv6, that a bridge was connected from.
type Known struct {
	Block netip.Prefix
	Last  time.Time
}

// Known returns what SetKnown stored last, nothing at first. A file that is damaged is put aside, and the error says so: nothing but a
// preference is lost with it.
func (d *Dir) Known() ([]Known, error) {
	list, err := d.readKnown()
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return list, nil
	}
	err = fmt.Errorf("read %s: %w", filepath.Join(d.path, knownFile), plain(err))
	if aside := d.edit(func() error { return d.root.Rename(knownFile, damagedFile) }); aside != nil {
		return nil, fmt.Errorf("%w (it cannot be put aside: %w)", err, plain(aside))
	}
	return nil, fmt.Errorf("%w (put aside as %s)", err, damagedFile)
}

func (d *Dir) readKnown() ([]Known, error) {
	b, err := d.readFile(knownFile)
	if err != nil {
		return nil, err
	}
	return parseKnown(b)
}

func parseKnown(b []byte) (list []Known, err error) {
	lines := bufio.NewScanner(bytes.NewReader(b))
	if !lines.Scan() || lines.Text() != knownHead {
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

// SetKnown stores the addresses.
func (d *Dir) SetKnown(list []Known) error {
	b := []byte(knownHead + "\n")
	for _, k := range list[max(len(list)-mostKnown, 0):] {
		b = append(append(k.Block.AppendTo(b), ' '), strconv.FormatInt(k.Last.Unix(), 10)...)
		b = append(b, '\n')
	}
	return d.edit(func() error { return d.write(knownFile, b) })
}
