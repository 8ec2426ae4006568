package entrance

import (
	"iter"
	"strings"

	"reverser/internal/grammar"
)

// mostPrefix is how much of a request's path is compared with those of services, which are not longer.
const mostPrefix = 256

// Names yields the names of a kind that stand for a host and a path, the most specific one first: the host itself, then a wildcard for its
// first label, then one for all; of each first the longest path. host is what
// grammar.RequestHost returns; nothing stands for "".
func Names(kind grammar.Kind, host, path string) iter.Seq[grammar.Public] {
	return func(yield func(grammar.Public) bool) {
		paths := func(host string) bool {
			for p := cutPath(path); ; p = p[:max(strings.LastIndexByte(p, '/'), 0)] {
				if !yield(grammar.Public{Kind: kind, Host: host, Path: p}) {
					return false
				}
				if p == "" {
					return true
				}
			}
		}
		if host == "" || !paths(host) {
			return
		}
		if _, rest, ok := strings.Cut(host, "."); ok && strings.Trim(host, "0123456789.") != "" && !strings.Contains(host, ":") && !paths("*."+rest) {
			return
		}
		paths("*")
	}
}

// cutPath is the longest prefix of a path, at the end of a segment, that is compared.
func cutPath(path string) string {
	if len(path) > mostPrefix {
		path = path[:max(strings.LastIndexByte(path[:mostPrefix+1], '/'), 0)]
	}
	if !strings.HasPrefix(path, "/") {
		return ""
	}
	return strings.TrimSuffix(path, "/")
}
