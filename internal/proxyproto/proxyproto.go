// Package proxyproto turns headers of the PROXY protocol, versions 1 and 2, into values and back. A balancer sends one at the beginning of
// a connection to say whose connection it is (https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt).
//
// It knows bytes only: no socket, no clock. Who may send a header, and how long that may take, is up to its users.
package proxyproto

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"strconv"
	"strings"
)

// Header is what a header says.
type Header struct {
	Client netip.AddrPort // whose connection it is; invalid: it is the sender's own, such as a health check, or the sender does not know
	Local  netip.AddrPort // the address that the client reached; invalid when Client is
}

// The first bytes of both versions.
const (
	prefix1 = "PROXY "
	prefix2 = "\r\n\r\n\x00\r\nQUIT\n"
)

// MaxLen is how long a header may be that Parse takes. Version 1 ends at 107 bytes; version 2 may carry 64 KiB of further information, of
// which senders have been seen to use some hundred bytes, or a client's certificate.
const MaxLen = 16 << 10

const (
	longest1 = 107
	head2    = 16 // up to the addresses, with their length at its end
)

// Commands, families and types of version 2.
const (
	version2     = 2 << 4
	commandLocal = 0
	commandProxy = 1

	unspec = 0x00
	tcp4   = 0x11
	tcp6   = 0x21

	typeCRC32C = 3
)

// ErrMalformed is what errors.Is finds in the errors of Parse.
var ErrMalformed = errors.New("no PROXY header")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

// Append appends the header of version 1 or 2 for a connection of a client that reached local. Where the client is not known, it says so
// (UNKNOWN, LOCAL). Where local is not known, or of another family, it says what it can.
func Append(b []byte, version int, h Header) []byte {
	client, local, ok := h.addresses()
	if version == 1 {
		return append1(b, client, local, ok)
	}
	return append2(b, client, local, ok)
}

// addresses returns both addresses in one family, which a header has. An IPv4 address beside one of IPv6 is written as one of IPv6.
func (h Header) addresses() (client, local netip.AddrPort, ok bool) {
	if !h.Client.IsValid() {
		return client, local, false
	}
	c, l := h.Client.Addr().Unmap().WithZone(""), h.Local.Addr().Unmap().WithZone("")
	switch {
	case !l.IsValid() && c.Is4():
		l = netip.IPv4Unspecified()
	case !l.IsValid():
		l = netip.IPv6Unspecified()
	case c.Is4() != l.Is4():
		c, l = netip.AddrFrom16(c.As16()), netip.AddrFrom16(l.As16())
	}
	return netip.AddrPortFrom(c, h.Client.Port()), netip.AddrPortFrom(l, h.Local.Port()), true
}

func append1(b []byte, client, local netip.AddrPort, ok bool) []byte {
	if !ok {
		return append(b, prefix1+"UNKNOWN\r\n"...)
	}
	family := "TCP6"
	if client.Addr().Is4() {
		family = "TCP4"
	}
	return fmt.Appendf(b, prefix1+"%s %s %s %d %d\r\n", family, client.Addr(), local.Addr(), client.Port(), local.Port())
}

func append2(b []byte, client, local netip.AddrPort, ok bool) []byte {
	b = append(b, prefix2...)
	if !ok {
		return append(b, version2|commandLocal, unspec, 0, 0)
	}
	c, l := client.Addr().AsSlice(), local.Addr().AsSlice()
	family := byte(tcp6)
	if len(c) == 4 {
		family = tcp4
	}
	b = append(b, version2|commandProxy, family)
	b = binary.BigEndian.AppendUint16(b, uint16(2*len(c)+4))
	b = append(append(b, c...), l...)
	b = binary.BigEndian.AppendUint16(b, client.Port())
	return binary.BigEndian.AppendUint16(b, local.Port())
}

// Parse reads what has come of a header. While more is not 0, the header is not complete: at least so many further bytes belong to it.
// Who reads no more than that before the next call never reads what stands behind the header. An error means that b does not begin a
// header of either version.
func Parse(b []byte) (h Header, more int, err error) {
	switch {
	case begins(b, prefix1): // or nothing has come: the shortest header is one of version 1
		h, more, err = parse1(b)
	case begins(b, prefix2):
		h, more, err = parse2(b)
	default:
		err = malformed("the connection begins with %q", b[:min(len(b), head2)])
	}
	if err != nil || h.Client.Addr().IsUnspecified() {
		h = Header{}
	}
	return h, more, err
}

// begins reports whether b is the beginning of what begins with prefix.
func begins(b []byte, prefix string) bool {
	n := min(len(b), len(prefix))
	return string(b[:n]) == prefix[:n]
}

// least1 is the length of the shortest header of version 1, which is the shortest of all.
const least1 = len(prefix1 + "UNKNOWN\r\n")

func parse1(b []byte) (h Header, more int, err error) {
	if len(b) < least1 {
		return h, least1 - len(b), nil
	}
	line, rest, whole := bytes.Cut(b, []byte("\r\n"))
	switch {
	case bytes.ContainsAny(line[:len(line)-1], "\r\n") || line[len(line)-1] == '\n':
		return h, 0, malformed("the line ends without \\r\\n")
	case !whole && len(b) >= longest1:
		return h, 0, malformed("the line is longer than %d bytes", longest1)
	case !whole:
		return h, min(missing1(string(line)), longest1-len(b)), nil
	}
	switch words := strings.Split(string(line), " "); {
	case words[1] == "UNKNOWN":
	case len(words) != 6:
		return h, 0, malformed("the line %q has %d words, want 6", line, len(words))
	default:
		if h.Client, err = addrPort1(words[1], words[2], words[4]); err == nil {
			h.Local, err = addrPort1(words[1], words[3], words[5])
		}
		if err != nil {
			return h, 0, malformed("%s in the line %q", err, line)
		}
	}
	if len(rest) > 0 {
		return h, 0, malformed("%d bytes stand behind it", len(rest))
	}
	return h, 0, nil
}

// missing1 returns how many bytes a line of version 1 without an end is short of, at least: behind each space that has to come, and has
// not, stands a byte.
func missing1(line string) int {
	if strings.HasSuffix(line, "\r") {
		return 1
	}
	n := len("\r\n")
	if words := strings.Split(line, " "); words[1] != "UNKNOWN" {
		n += 2 * max(6-len(words), 0)
	}
	return n
}

func addrPort1(family, addr, port string) (netip.AddrPort, error) {
	ip, err := netip.ParseAddr(addr)
	switch {
	case family != "TCP4" && family != "TCP6":
		return netip.AddrPort{}, fmt.Errorf("unknown family %q", family)
	case err != nil || ip.Zone() != "" || ip.Is4() != (family == "TCP4"):
		return netip.AddrPort{}, fmt.Errorf("%q is no address of %s", addr, family)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || strconv.FormatUint(n, 10) != port {
		return netip.AddrPort{}, fmt.Errorf("%q is no port", port)
	}
	return netip.AddrPortFrom(ip.Unmap(), uint16(n)), nil
}

func parse2(b []byte) (h Header, more int, err error) {
	if len(b) < head2 {
		return h, head2 - len(b), nil
	}
	version, command, family := b[12]&0xf0, b[12]&0x0f, b[13]
	length := head2 + int(binary.BigEndian.Uint16(b[14:]))
	switch {
	case version != version2:
		return h, 0, malformed("version %d", version>>4)
	case command > commandProxy:
		return h, 0, malformed("command %d", command)
	case family>>4 > 3 || family&0xf > 2:
		return h, 0, malformed("family and protocol %#02x", family)
	case length > MaxLen:
		return h, 0, malformed("it is %d bytes long, more than %d", length, MaxLen)
	case len(b) < length:
		return h, length - len(b), nil
	case len(b) > length:
		return h, 0, malformed("%d bytes stand behind it", len(b)-length)
	}
	size := 0 // of an address
	switch family >> 4 {
	case 1:
		size = 4
	case 2:
		size = 16
	case 3: // unix
		size = 108 - 2 // there are no ports
	}
	addresses := 2 * (size + 2)
	if size == 0 {
		addresses = 0
	}
	if command == commandLocal {
		return h, 0, nil // the rest means nothing
	}
	if len(b) < head2+addresses {
		return h, 0, malformed("it has %d bytes for addresses of family %d, which take %d", len(b)-head2, family>>4, addresses)
	}
	if err := checkMore(b, head2+addresses); err != nil {
		return h, 0, err
	}
	if family != tcp4 && family != tcp6 {
		return h, 0, nil // no addresses of TCP
	}
	at := b[head2:]
	addrPort := func(i int) netip.AddrPort {
		ip, _ := netip.AddrFromSlice(at[i*size : (i+1)*size])
		return netip.AddrPortFrom(ip.Unmap(), binary.BigEndian.Uint16(at[2*size+2*i:]))
	}
	h.Client, h.Local = addrPort(0), addrPort(1)
	return h, 0, nil
}

// checkMore reads what a header of version 2 says beside the addresses, from at on, of which nothing is used but its checksum.
func checkMore(b []byte, at int) error {
	for at < len(b) {
		if len(b)-at < 3 {
			return malformed("%d bytes are left for a field", len(b)-at)
		}
		kind, length := b[at], int(binary.BigEndian.Uint16(b[at+1:]))
		if at += 3; length > len(b)-at {
			return malformed("field %d of %d bytes where %d are left", kind, length, len(b)-at)
		}
		if kind == typeCRC32C {
			if length != 4 {
				return malformed("a checksum of %d bytes", length)
			}
			whole := bytes.Clone(b)
			clear(whole[at : at+4])
			if got, want := binary.BigEndian.Uint32(b[at:]), crc32.Checksum(whole, crc32.MakeTable(crc32.Castagnoli)); got != want {
				return malformed("the checksum is %#08x, want %#08x", got, want)
			}
		}
		at += length
	}
	return nil
}
