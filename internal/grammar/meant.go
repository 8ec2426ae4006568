package grammar

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strings"
)

// This file is for what people write who know another program, or whose keyboard or word processor writes characters that only
// look right. Nothing of it is taken; where what was meant is plain, the error says how it is written.

// spaced are the separators with space around them.
var spaced = regexp.MustCompile(`\s*([=:/,])\s*`)

// plain is s as a Latin keyboard writes it in one word: without full-width forms, quotes, and space where none belongs.
func plain(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r >= '！' && r <= '～': // the full-width forms of ASCII
			return r - '！' + '!'
		case r == '。':
			return '.'
		case r == '、':
			return ','
		case r == '\u3000' || r == '\u00a0':
			return ' '
		case r == '→':
			return '>'
		case r == '\u200b' || r == '\ufeff' || strings.ContainsRune("\"'`“”„‘’", r):
			return -1
		case r >= '\u2010' && r <= '\u2015' || r == '−':
			return '-'
		}
		return r
	}, s)
	return spaced.ReplaceAllString(strings.TrimSpace(s), "$1")
}

// Lookalike reports whether s has a character that only looks like one of TOML or of an address: a full-width form or a curly quote.
func Lookalike(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool {
		return r > 0x7f && (strings.ContainsRune("“”„‘’\u3000\u00a0", r) || plain("x"+string(r)+"x") != "x"+string(r)+"x")
	})
}

// explain returns err, or a better word about s where one of the ways in which it was probably meant is right.
func explain(what, s string, err error, right func(string) bool, meant ...func(string) string) error {
	var unsupported *UnsupportedKindError
	p := plain(s)
	if err == nil || errors.As(err, &unsupported) || looksSecret(p) {
		return err
	}
	for _, f := range append([]func(string) string{func(s string) string { return s }}, meant...) {
		m := f(p)
		switch {
		case m == s || m == "" || !right(m):
			continue
		case Lookalike(s):
			return fmt.Errorf("%s %q has characters in it that only look like those of a Latin keyboard: write %s", what, s, m)
		case m == p:
			return fmt.Errorf("%s %q has quotes or spaces in it: write %s", what, s, m)
		case what == "service":
			return fmt.Errorf("service %q is not PUBLIC=TARGET: write %s", s, m)
		case strings.HasSuffix(err.Error(), ": write HOST:PORT"):
			return fmt.Errorf("%q: write %s", s, m)
		case !strings.Contains(err.Error(), "write "):
			return fmt.Errorf("%w: write %s", err, m)
		}
		return err
	}
	return err
}

var (
	arrow     = regexp.MustCompile(`\s*[-=]?>\s*`)
	manyPorts = regexp.MustCompile(`^(tcp/)?[0-9]+(-|,|\.\.|~)[0-9]+`)
	scheme    = regexp.MustCompile(`^[a-z]+://`)
	portWord  = regexp.MustCompile(`^[a-zA-Z][a-zA-Z_-]*$`)
)

// meantExpose is how PUBLIC=TARGET was probably meant.
func meantExpose(s string) string {
	s = arrow.ReplaceAllString(s, "=")
	s = strings.TrimPrefix(s, "R:") // chisel
	s = strings.TrimSuffix(s, "/tcp")
	public, target, ok := strings.Cut(s, "=")
	if !ok {
		return meantPair(bareAddress(s))
	}
	public, target = meantPublic(public), strings.TrimPrefix(bareAddress(target), "tcp/")
	switch host, rest, ok := strings.Cut(target, ","); {
	case ok:
		target = host + ":" + rest
	case strings.HasPrefix(target, ":"):
		target = target[1:]
	case !strings.Contains(target, ":"):
		if host, rest, ok := strings.Cut(target, "/"); ok {
			target = host + ":" + rest
		}
	}
	return public + "=" + target
}

// meantPair is for words without "=": ssh -R, Docker and chisel write only colons, and who writes a host means its service.
func meantPair(s string) string {
	if strings.HasPrefix(s, "tcp/") && !manyColons(s) {
		return "" // a bind address, and its target is missing
	}
	public, target, _ := strings.Cut(meantPublic(s), ":")
	kindless := strings.TrimPrefix(public, "tcp/")
	if _, err := ParsePort(kindless); err == nil {
		if target == "" {
			return kindless
		}
		return kindless + "=" + target
	}
	port, rest, ok := strings.Cut(target, ":")
	if _, err := ParsePort(port); err != nil {
		return ""
	}
	local := kindless == "localhost"
	if ip, err := netip.ParseAddr(kindless); err == nil {
		local = ip.IsLoopback()
		if ip.IsUnspecified() && !ok {
			return port
		}
	}
	switch {
	case ok && kindless == "localhost":
		return "tcp/127.0.0.1:" + port + "=" + rest
	case ok:
		return "tcp/" + kindless + ":" + port + "=" + rest
	case local:
		return port
	}
	return port + "=" + net.JoinHostPort(kindless, port)
}

func manyColons(s string) bool { return strings.Count(s, ":") > 1 }

// meantPublic is how PUBLIC was probably meant.
func meantPublic(s string) string {
	s = strings.TrimSuffix(s, "/tcp")
	if rest, ok := strings.CutPrefix(s, "tcp:"); ok {
		s = "tcp/" + rest
	}
	kind, rest := "", s
	if r, ok := strings.CutPrefix(s, "tcp/"); ok {
		kind, rest = "tcp/", r
	}
	rest = strings.TrimPrefix(strings.TrimPrefix(rest, "*"), ":")
	if port, ok := strings.CutPrefix(rest, "localhost:"); ok && kind != "" {
		rest = "127.0.0.1:" + port
	}
	return kind + rest
}

// bareAddress is an address without what a URL has around it.
func bareAddress(s string) string {
	s = scheme.ReplaceAllString(s, "")
	if before, path, ok := strings.Cut(s, "/"); ok && strings.Contains(before, ":") {
		if _, err := ParsePort(path); err != nil {
			return before
		}
	}
	return s
}

// meantAllow is how a rule was probably meant.
func meantAllow(s string) string {
	s = strings.TrimSuffix(s, "/tcp")
	if s == "any" || s == "all" {
		return "tcp/1-65535"
	}
	if rest, ok := strings.CutPrefix(s, "tcp:"); ok {
		s = "tcp/" + rest
	}
	for _, between := range []string{"..", "~", ":"} {
		low, high, _ := strings.Cut(s, between)
		_, bad := ParsePort(high)
		if _, err := ParsePort(strings.TrimPrefix(low, "tcp/")); err == nil && bad == nil {
			return low + "-" + high
		}
	}
	return s
}

// meantAddress is how HOST:PORT was probably meant.
func meantAddress(s string) string {
	if host, port, ok := strings.Cut(bareAddress(s), ","); ok {
		return host + ":" + port
	}
	return strings.Join(strings.Fields(s), ":")
}

// meantListen is how an address to listen on was probably meant.
func meantListen(s string) string {
	return strings.TrimPrefix(strings.TrimSuffix(s, "/tcp"), "*")
}
