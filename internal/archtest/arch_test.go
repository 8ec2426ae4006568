package archtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"reverser/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

const module = "reverser"

// rule says what the files of one package, tests apart, may import besides the standard library and golang.org/x.
type rule struct {
	pkg   string // below the module; "" is the root package
	own   string // packages of this module, below internal/ unless they begin with a slash
	third string // modules of others
	not   string // of the standard library
	why   string
}

// rules has a line for every package, from the bottom up. A package may only import what stands above it.
var rules = []rule{
	// The ground: data and grammar that everybody may share.
	{pkg: "internal/wire", not: "net os io time sync context log/slog",
		why: "bytes to frames and back: no I/O, no goroutine, no clock, so that every truncation can be tried"},
	{pkg: "internal/status", why: "plain data that proxy, bridge and admin share: it knows none of them"},
	{pkg: "internal/units", why: "how numbers are written for people: what they count is not its to know"},
	{pkg: "internal/escape", why: "what strangers say, made harmless for terminals and logs: it knows none who says it, nor who writes it"},
	{pkg: "internal/lines", why: "which log lines are left out where somebody causes many: it knows neither who it is, nor what they say"},
	{pkg: "internal/events", own: "escape", why: "what was logged last, kept and handed out: it knows neither who logs, nor who asks"},
	{pkg: "internal/accesslog", own: "escape", why: "lines of JSON in a file that may be full or moved aside; what connections and requests are is not its to know"},
	{pkg: "internal/proxyproto", not: "net os io sync context log/slog",
		why: "headers of the PROXY protocol and back: no I/O, no clock; whom to believe is not its to know. Libraries for it bring a listener, which would stand on the path of a byte"},
	{pkg: "internal/grammar", own: "wire", why: "what people write: PUBLIC, TARGET, --allow and tokens: text in, values out; wire for the fields of a token"},
	{pkg: "internal/access", why: "who else can read or change a file: what is in it, and what it is for, is not its to know"},
	{pkg: "internal/sys", why: "what differs between operating systems; what sockets carry, and what a change of the network means, is not its to know"},
	{pkg: "internal/state", own: "access grammar sys", why: "files on disk: policies are stored in the grammar of --allow, nothing else is known here"},
	{pkg: "internal/export", own: "state", third: "filippo.io/age", not: "os net",
		why: "a state directory as one encrypted file: which files there are, and where they lie, is known to state"},
	{pkg: "internal/via", own: "escape grammar", why: "what servers on the way out of a network say; who wants to get out, and why, is not its to know"},
	{pkg: "internal/config", own: "access grammar state via", third: "github.com/pelletier/go-toml/v2 github.com/fsnotify/fsnotify",
		why: "where settings come from: the one place that knows TOML and XML, so that nothing on the path of a byte does, and no role"},

	{pkg: "internal/certs", own: "escape lines status", third: "github.com/caddyserver/certmagic github.com/mholt/acmez go.uber.org/zap",
		why: "certificates that come by themselves: who accepts connections, who wants a name, and where files lie, is told to it"},

	// The path of a byte.
	{pkg: "internal/share", why: "divides memory among strangers; what for is its user's business"},
	{pkg: "internal/record", own: "sys", why: "TLS records and back; who the peer is, and what it says, is not its business"},
	{pkg: "internal/auth", own: "record wire", why: "turns a socket into a proven one; it does not know what is carried over it"},
	{pkg: "internal/link", own: "auth record status sys wire", why: "streams that outlive a connection; what a stream is connected to is its owner's business"},
	{pkg: "internal/relay", own: "link sys wire", why: "binds a socket and a stream; it does not know who connected to what"},
	{pkg: "internal/traffic", own: "link relay share status sys wire", why: "counts connections and ends them; where one leads is its role's business"},
	{pkg: "internal/registry", own: "grammar link wire", not: "net os log/slog",
		why: "decides who serves what, and leaves it to others to do it: it sees ways to bridges, never a socket or a log"},
	{pkg: "internal/entrance", own: "grammar link proxyproto registry share sys traffic",
		why: "turns what arrives at a socket into a name; who serves the name is not its to know"},
	{pkg: "internal/inspect", why: "stands beside HTTP and keeps what passes; who serves, and where a service is, is not its to know"},
	{pkg: "internal/web", own: "grammar inspect share sys",
		why: "HTTP for services: it finds the service of a request and carries the exchange; who serves what, links and certificates are its owner's"},
	{pkg: "internal/proxy", own: "auth entrance grammar inspect lines link registry relay share status sys traffic web wire",
		why: "the public role. It never sees the bridge's package: what they share is the protocol, and it is written down"},
	{pkg: "internal/claims", own: "grammar status wire", not: "os io sync context log/slog",
		why: "the bridge's side of claims, as deterministic as the registry: the simulation of both drives it step by step"},
	{pkg: "internal/bridge", own: "auth claims grammar lines link proxyproto relay share status sys traffic via wire",
		why: "the LAN role. It never sees the proxy's package, nor the registry: the proxy's choices are not its to know"},

	// What people and programs hold in their hands.
	{pkg: "internal/usage", own: "status", third: "go.etcd.io/bbolt",
		why: "what counters had, kept on disk: who counts, and where the file lies, is told to it; nothing on the path of a byte waits for it"},
	{pkg: "internal/admin", own: "config escape events grammar inspect state status sys usage", why: "reads snapshots, edits keys and passes orders on through interfaces: it cannot reach into a role"},
	{pkg: "internal/page", why: "files for a browser, which know the process by its API alone"},
	{pkg: "", own: "bridge escape grammar status via",
		why: "the library: whoever imports it gets the LAN role and nothing of the program"},
	{pkg: "internal/notify", own: "escape status", why: "tells chats and programs elsewhere what snapshots show; it cannot reach into a role, and nothing waits for it"},
	{pkg: "internal/metrics", own: "escape status", third: "github.com/prometheus/client_golang",
		why: "what is counted anyway, for who scrapes it: it asks the role by an interface, and nothing on the path of a byte knows that there is such a thing"},
	{pkg: "internal/doctor", own: "accesslog auth bridge config grammar link relay state status sys via",
		why: "looks at a role from outside, by its settings and its status, and changes nothing: it cannot reach into one, and how to dial, read or store is asked of who knows"},
	{pkg: "internal/top", own: "escape status units", third: "charm.land/bubbletea/v2 github.com/charmbracelet/x/ansi",
		why: "draws snapshots on a terminal; where they come from, and how an order gets to the process, is not its to know"},
	{pkg: "internal/service", own: "access", why: "what service managers read and say; what the service does, and what its settings mean, is not its to know"},
	{pkg: "cmd/reverser", own: "access accesslog admin bridge certs config doctor escape events export grammar inspect lines metrics notify page proxy relay service state status sys top traffic usage units",
		third: "github.com/spf13/cobra github.com/spf13/pflag github.com/lmittmann/tint",
		why:   "flags, files, terminal and signals: the place for libraries that are none of the library's business"},

	// Beside the program.
	{pkg: "internal/memnet", why: "a network in memory, for tests only: see testOnly"},
	{pkg: "internal/leaktest", why: "for tests only: see testOnly"},
	{pkg: "internal/logtest", why: "what a program logs, for tests only: see testOnly"},
	{pkg: "internal/freeport", why: "ports for what tests start, one at a time for all of them; not what listens there"},
	{pkg: "internal/acmetest", own: "freeport", why: "an authority that issues certificates, for tests only: see testOnly"},
	{pkg: "internal/archtest", why: "this test"},
	{pkg: "internal/model", why: "the protocol's rules a second time, without the program, so that a mistake in the code is not copied"},
	{pkg: "e2e", why: "runs the built programs from outside"},
	{pkg: "e2e/process", why: "starts, reads and ends programs; it knows none of them"},
	{pkg: "internal/ctrlevent", why: "for tests only: what Windows says to a process when its console ends; not which process, nor why"},
	{pkg: "e2e/console", own: "ctrlevent", why: "does to a process of Windows what the end of its console does, or ends it; it does not know which one"},
	{pkg: "e2e/netlab", why: "three hosts and the faults between them; it does not know what runs there"},
	{pkg: "e2e/faultnet", why: "a relay that breaks what passes; it does not know what that means"},
	{pkg: "e2e/attacks", own: "auth grammar state wire", why: "plays those who wish a tunnel ill: it speaks the protocol by itself, and never with the code that it attacks"},
	{pkg: "e2e/faults", own: "freeport grammar wire /e2e/attacks /e2e/faultnet /e2e/netlab /e2e/process", why: "breaks what the built program depends on and looks from outside"},
	{pkg: "bench/...", own: "bridge grammar state /e2e/netlab",
		why: "measures the built programs from outside, also over a distance; thousands of bridges fit into one process only"},
	{pkg: "deploy", why: "files for containers and for Prometheus, and their tests"},
	{pkg: "examples/...", own: "/ /examples/asr", why: "what a user of the library could write, so the library is all they see"},
}

// testOnly are packages that only test files import.
var testOnly = []string{"internal/memnet", "internal/leaktest", "internal/logtest", "internal/acmetest"}

// banned are packages that the library must not pull in, not even through others; a prefix counts.
var banned = []struct{ prefix, why string }{
	{"github.com/spf13/", "a library parses no command line"},
	{"flag", "a flag that a library registers lands in its user's program"},
	{"github.com/pelletier/go-toml", "configuration files are the program's"},
	{"github.com/fsnotify/", "configuration files are the program's"},
	{"encoding/xml", "configuration files are the program's"},
	{"github.com/caddyserver/certmagic", "certificates for public names are the proxy's"},
	{"github.com/mholt/acmez", "certificates for public names are the proxy's"},
	{"filippo.io/age", "the state directory, and what becomes of it, is the program's"},
	{"go.uber.org/zap", "logs of others are the program's"},
	{module + "/internal/certs", "certificates for public names are the program's"},
	{"golang.org/x/crypto/acme", "certificates for public names are the proxy's"},
	{"go.etcd.io/bbolt", "what is kept of usage is the program's"},
	{"github.com/prometheus/", "metrics are the program's; a library's user has their own"},
	{"github.com/lmittmann/tint", "how log lines look is the program's choice: the library takes a *slog.Logger"},
	{"net/http", "the library hands out a net.Listener; serving on it is its user's choice"},
	{"testing", "testing registers flags and belongs into tests"},
	{module + "/internal/memnet", "for tests only"},
	{module + "/internal/proxy", "the library is the LAN role"},
	{module + "/internal/config", "configuration files are the program's"},
	{module + "/internal/state", "the library keeps nothing on disk unless its user does"},
}

// dataPath are the packages on the path of a byte: everything they pull in is read by whoever audits it.
var dataPath = []string{"wire", "auth", "link", "relay", "traffic", "registry", "claims", "proxyproto", "entrance", "proxy", "bridge"}

// TestImports holds the rules for all platforms at once, by reading the files rather than building them.
func TestImports(t *testing.T) {
	rank := make(map[string]int)
	for i, r := range rules {
		rank[r.pkg] = i
	}
	unused := make(map[string]bool)
	for _, r := range rules {
		unused[r.pkg] = true
	}
	for file, imports := range sources(t) {
		dir := path.Dir(file)
		if dir == "." {
			dir = ""
		}
		test := strings.HasSuffix(file, "_test.go")
		i := slices.IndexFunc(rules, func(r rule) bool {
			all, wild := strings.CutSuffix(r.pkg, "...")
			return r.pkg == dir || wild && strings.HasPrefix(dir+"/", all)
		})
		if i < 0 {
			t.Errorf("%s: package %q has no line in the table: say what it may import, and why", file, dir)
			continue
		}
		r := rules[i]
		delete(unused, r.pkg)
		if test {
			continue // tests go through whatever door they need
		}
		for _, imp := range imports {
			own, isOwn := ownPackage(imp)
			switch {
			case isOwn && slices.Contains(testOnly, own):
				t.Errorf("%s imports %s, which is for tests only", file, imp)
			case isOwn && !slices.Contains(r.owns(), own):
				t.Errorf("%s imports %s. %s: %s", file, imp, name(r.pkg), r.why)
			case isOwn && !strings.HasSuffix(r.pkg, "...") && rank[own] >= i:
				t.Errorf("%s imports %s, which stands below it in the table: imports point down only", file, imp)
			case !isOwn && isStd(imp) && slices.Contains(strings.Fields(r.not), imp):
				t.Errorf("%s imports %s. %s: %s", file, imp, name(r.pkg), r.why)
			case !isOwn && !isStd(imp) && !strings.HasPrefix(imp, "golang.org/x/") && !r.allowsThird(imp):
				t.Errorf("%s imports %s. %s: %s", file, imp, name(r.pkg), r.why)
			}
		}
	}
	for pkg := range unused {
		t.Errorf("the table has a line for %s, which does not exist", name(pkg))
	}
}

// TestLeakChecks: no package's tests leave goroutines behind.
func TestLeakChecks(t *testing.T) {
	checked := map[string]bool{"internal/leaktest": true}
	tested := make(map[string]bool)
	for file, imports := range sources(t) {
		if !strings.HasSuffix(file, "_test.go") {
			continue
		}
		tested[path.Dir(file)] = true
		if slices.Contains(imports, module+"/internal/leaktest") {
			checked[path.Dir(file)] = true
		}
	}
	for dir := range tested {
		if !checked[dir] {
			t.Errorf("the tests of %s have no leak check: give them a main_test.go with leaktest.Main", dir)
		}
	}
}

// TestDataPath: the packages that bytes go through pull in the standard library, golang.org/x and each other.
func TestDataPath(t *testing.T) {
	var pkgs []string
	for _, p := range dataPath {
		pkgs = append(pkgs, "./internal/"+p)
	}
	for _, os := range []string{"linux", "darwin", "windows"} {
		for _, p := range list(t, os, pkgs...) {
			own := p.ImportPath == module || strings.HasPrefix(p.ImportPath, module+"/")
			if !p.Standard && !own && !strings.HasPrefix(p.ImportPath, "golang.org/x/") {
				t.Errorf("on %s the data path pulls in %s: only the standard library and golang.org/x may be under it", os, p.ImportPath)
			}
		}
	}
}

// TestLibrary: the root package stays light for whoever imports it.
func TestLibrary(t *testing.T) {
	for _, os := range []string{"linux", "darwin", "windows"} {
		for _, p := range list(t, os, ".") {
			for _, b := range banned {
				if p.ImportPath == b.prefix || strings.HasPrefix(p.ImportPath, strings.TrimSuffix(b.prefix, "/")+"/") {
					t.Errorf("on %s the library pulls in %s: %s", os, p.ImportPath, b.why)
				}
			}
		}
	}
}

// TestTable catches a table that contradicts itself.
func TestTable(t *testing.T) {
	for i, r := range rules {
		if r.why == "" {
			t.Errorf("the line of %s gives no reason", name(r.pkg))
		}
		for _, own := range r.owns() {
			at := slices.IndexFunc(rules, func(o rule) bool { return o.pkg == own })
			if at < 0 && own != "examples/asr" {
				t.Errorf("%s may import %s, which has no line", name(r.pkg), name(own))
			}
			if at > i {
				t.Errorf("%s may import %s, which stands below it", name(r.pkg), name(own))
			}
		}
	}
}

func (r rule) owns() []string {
	own := strings.Fields(r.own)
	for i, p := range own {
		if rest, fromRoot := strings.CutPrefix(p, "/"); fromRoot {
			own[i] = rest
		} else {
			own[i] = "internal/" + p
		}
	}
	return own
}

func (r rule) allowsThird(imp string) bool {
	return slices.ContainsFunc(strings.Fields(r.third), func(m string) bool {
		return imp == m || strings.HasPrefix(imp, m+"/")
	})
}

func name(pkg string) string {
	if pkg == "" {
		return "the root package"
	}
	return pkg
}

func ownPackage(imp string) (string, bool) {
	if imp == module {
		return "", true
	}
	return strings.CutPrefix(imp, module+"/")
}

// isStd: import paths of others begin with a domain.
func isStd(imp string) bool {
	first, _, _ := strings.Cut(imp, "/")
	return !strings.Contains(first, ".")
}

// sources returns the imports of every Go file of the module, by its path from the root.
func sources(t *testing.T) map[string][]string {
	t.Helper()
	files := make(map[string][]string)
	root := filepath.Join("..", "..")
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if base := d.Name(); d.IsDir() {
			if rel != "." && (base[0] == '.' || base[0] == '_' || base == "testdata" || base == "bin" || base == "dist") {
				return filepath.SkipDir
			}
			if _, err := os.Stat(filepath.Join(p, "go.mod")); rel != "." && err == nil {
				return filepath.SkipDir // a module of its own: nothing here can import it
			}
			return nil
		}
		if path.Ext(rel) != ".go" {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), p, nil, parser.ImportsOnly)
		if err != nil {
			return fmt.Errorf("read the imports of %s: %w", rel, err)
		}
		files[rel] = []string{}
		for _, spec := range f.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			files[rel] = append(files[rel], imp)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 10 {
		t.Fatalf("found %d Go files: is the module's root still two folders up?", len(files))
	}
	return files
}

type listed struct {
	ImportPath string
	Standard   bool
}

// list returns the packages and everything that they pull in on the platform.
func list(t *testing.T, goos string, pkgs ...string) []listed {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-deps", "-json=ImportPath,Standard"}, pkgs...)...)
	cmd.Dir = filepath.Join("..", "..")
	cmd.Env = append(cmd.Environ(), "GOOS="+goos, "GOARCH=amd64", "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("%s on %s: %s\n%s", cmd, goos, err, exit.Stderr)
		}
		t.Fatalf("%s: %s", cmd, err)
	}
	var all []listed
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatalf("%s: %s", cmd, err)
		}
		all = append(all, p)
	}
}
