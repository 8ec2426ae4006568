package config

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"reverser/internal/grammar"
)

// tomlKeys are the options of both roles in this version, in the order of the
// help.
var tomlKeys = []string{
	"listen", "transfer", "http", "https", "bind", "advertise", "sni", "proxy_protocol_from", "certificate", "key",
	"token", "token_file", "proxy", "proxy_transfer", "via", "via_file", "keepalive", "source", "auto_cert", "expose",
	"state", "trust_owner", "drain", "resume_within", "log_format", "log_level", "pairs", "notify",
	"acme_email", "acme_directory", "acme_root",
	"access_log",
	"admin", "admin_host", "admin_certificate", "admin_certificate_key", "admin_plain",
}

// later are keys of versions to come, by the table that they are for; "" is the file itself. They are refused by name, so that a file
// from there is not taken for a file with a slip in it.
var later = map[string][]string{
	"": {
		"cluster", "advertise_peer", "keys_from", "uplink", "accept_services", "policy", "connect",
		"sealed", "country", "datagrams", "close_when_down",
	},
	"key":    {"allow_connect", "group", "bandwidth"},
	"expose": {"targets", "balance", "health", "weight", "group", "close_when_down", "sealed", "datagrams"},
}

func (d *doc) readTOML(text string) {
	var options map[string]any
	if err := toml.Unmarshal([]byte(text), &options); err != nil {
		e := &Error{Text: "this is not TOML", Err: errNotTOML}
		var de *toml.DecodeError
		if errors.As(err, &de) {
			e.Line, _ = de.Position()
			e.Hint = tomlHint(lineOf(text, e.Line))
			// The decoder quotes some of what it stumbles over. That may be a token.
			if msg := strings.TrimPrefix(de.Error(), "toml: "); !strings.Contains(lineOf(text, e.Line), "rv1") {
				e.Text += ": " + msg
			}
			// What stands there twice, or as two things, is no matter of quotes.
			switch msg := de.Error(); {
			case strings.HasSuffix(msg, "is already defined"):
				e.Hint = "keep one of the two"
			case strings.Contains(msg, " already exists"), strings.Contains(msg, " should be a "):
				e.Hint = ""
			}
		}
		d.fail(e)
		d.broken = true
		return
	}
	d.options = options
	d.lines = tomlLines(text)
	for key := range options {
		d.known(key, key, tomlKeys)
	}
}

var (
	yamlLine  = regexp.MustCompile(`^\s*-?\s*([A-Za-z_]+)\s*:`)
	bareValue = regexp.MustCompile(`^\s*([a-z_]+)\s*=\s*([^"'\s#\[{=]+)\s*(#.*)?$`)
)

// tomlHint is what helps with a line that is not TOML.
func tomlHint(line string) string {
	line = strings.TrimRight(line, "\r\n")
	text, _, _ := strings.Cut(line, "#")
	bare := bareValue.FindStringSubmatch(line)
	switch {
	case grammar.Lookalike(text):
		return `there are curly quotes or full-width characters on this line: write =, " and ' with a Latin keyboard`
	case strings.Contains(text, `\`) && strings.Contains(text, `"`):
		return `in double quotes a \ begins an escape: write the value in single quotes, such as 'C:\reverser\office.token'`
	case yamlLine.MatchString(text):
		return "this is YAML's way: write " + strings.ToLower(yamlLine.FindStringSubmatch(text)[1]) + ` = "…"`
	case strings.HasPrefix(strings.TrimSpace(text), "{"), strings.HasSuffix(strings.TrimSpace(text), "{"), strings.HasSuffix(strings.TrimSpace(text), ";"):
		return `a line here is key = "value", and [[expose]] or [[key]] above those that belong together`
	case bare != nil && !strings.Contains(line, "rv1"):
		return fmt.Sprintf("text values stand in double quotes: write %s = %q", bare[1], bare[2])
	}
	return "text values stand in double quotes"
}

// foreign are keys of the files of frp, rathole and chisel, and what they are here.
var foreign = map[string]string{
	"serverAddr": `proxy = "HOST:PORT"`, "server_addr": `proxy = "HOST:PORT"`, "remote_addr": `proxy = "HOST:PORT"`, "server": `proxy = "HOST:PORT"`,
	"serverPort": `the port in proxy = "HOST:PORT"`, "server_port": `the port in proxy = "HOST:PORT"`,
	"bindPort": `listen = ":PORT"`, "bind_port": `listen = ":PORT"`, "bindAddr": `listen = "ADDRESS:PORT"`, "bind_addr": `listen = "ADDRESS:PORT"`, "port": `listen = ":PORT"`,
	"proxies": "[[expose]] with public and target", "services": "[[expose]] with public and target", "remotes": "[[expose]] with public and target", "tunnels": "[[expose]] with public and target",
	"email": `acme_email = "EMAIL"`, "auth": `token_file = "FILE"`, "default_token": `token_file = "FILE"`,
	"common": "written without a section", "client": "written without a section", "bridge": "written without a section",
	"localPort": "target", "local_port": "target", "localIP": "target", "local_ip": "target", "local_addr": "target", "remotePort": "public", "remote_port": "public",
}

// The decoder's error is not passed on: it holds the text around the fault.
var errNotTOML = errors.New("not TOML")

func lineOf(text string, n int) string {
	for line := range strings.Lines(text) {
		if n--; n == 0 {
			return line
		}
	}
	return ""
}

// known faults a key that is not in the list.
func (d *doc) known(path, key string, keys []string) {
	if slices.Contains(keys, key) {
		return
	}
	text := "there is no such key"
	hint := "the keys here are " + strings.Join(keys, ", ")
	table, _, inside := strings.Cut(path, "[")
	if !inside {
		table = ""
	}
	if slices.Contains(later[table], key) {
		text = "this is not in this version yet"
		if hint = "leave it out"; key == "targets" {
			hint = `give one: target = "…"`
		}
	} else if here, ok := foreign[key]; ok {
		hint = "another program's file has that: here it is " + here
	} else if near := nearest(key, keys); near != "" {
		hint = "did you mean " + near + "?"
	}
	if strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		key = strconv.Quote(key)
	}
	if strings.Contains(key, "rv1_") {
		key, hint = "", "a token goes into a file that token_file names"
	}
	d.fail(&Error{Line: d.line(path), Key: key, Text: text, Hint: hint})
}

// tables is a list of tables, [[name]], with no keys but these.
func (d *doc) tables(name string, keys ...string) []map[string]any {
	v, ok := d.options[name]
	if !ok {
		return nil
	}
	list, ok := v.([]any)
	var tables []map[string]any
	for i, v := range list {
		t, isTable := v.(map[string]any)
		if !isTable {
			ok = false
			break
		}
		for key := range t {
			d.known(fmt.Sprintf("%s[%d].%s", name, i, key), key, keys)
		}
		tables = append(tables, t)
	}
	if !ok {
		d.fail(&Error{Line: d.line(name), Key: name, Text: "this is no list of tables", Hint: fmt.Sprintf("write [[%s]] above the keys %s", name, strings.Join(keys, ", "))})
		return nil
	}
	return tables
}

// tomlLines finds the line of every key of a document that has been decoded
// already. A key in a list of tables is called "expose[0].public". The parser
// underneath the decoder is the only one that tells.
func tomlLines(text string) map[string]int {
	lines := map[string]int{}
	count := map[string]int{} // of the tables of a list
	begins := lineBegins(text)
	var p unstable.Parser
	p.Reset([]byte(text))
	prefix := ""
	note := func(prefix string, parts unstable.Iterator) string {
		path := prefix
		for parts.Next() {
			n := parts.Node()
			if path != "" {
				path += "."
			}
			path += string(n.Data)
			if _, ok := lines[path]; !ok {
				lines[path] = begins.line(int(n.Raw.Offset))
			}
		}
		return path
	}
	for p.NextExpression() {
		switch e := p.Expression(); e.Kind {
		case unstable.Table:
			prefix = note("", e.Key())
		case unstable.ArrayTable:
			name := note("", e.Key())
			prefix = fmt.Sprintf("%s[%d]", name, count[name])
			count[name]++
			for it := e.Key(); it.Next(); {
				lines[prefix] = begins.line(int(it.Node().Raw.Offset))
			}
		case unstable.KeyValue:
			note(prefix, e.Key())
		}
	}
	return lines
}

// lineOffsets are the offsets at which the lines of a text begin. The parser's own Shape counts the lines from the beginning of the text for
// each key: with some thousand services that takes seconds.
type lineOffsets []int

func lineBegins(text string) lineOffsets {
	begins := lineOffsets{0}
	for i := range len(text) {
		if text[i] == '\n' {
			begins = append(begins, i+1)
		}
	}
	return begins
}

// line returns the number of the line that the byte at offset is on. The first line is 1.
func (begins lineOffsets) line(offset int) int {
	n, found := slices.BinarySearch(begins, offset)
	if found {
		n++
	}
	return n
}

// nearest is the key that was probably meant: the same but for case, hyphens
// and a plural, or two slips away.
func nearest(key string, keys []string) string {
	plain := func(s string) string {
		return strings.TrimSuffix(strings.ReplaceAll(strings.ToLower(s), "-", "_"), "s")
	}
	best, least := "", 3
	for _, k := range keys {
		if n := distance(plain(key), plain(k)); n < least && n < len(k)/2 {
			best, least = k, n
		}
	}
	return best
}

// distance counts the single-byte changes between two words (Levenshtein).
func distance(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
