package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// mayLog are the functions that write to the log themselves, in the packages that strangers, users and peers reach, with what bounds
// their lines. Everything else goes through lines.Log, or whoever has something happen very often fills the disk and stops the process
// that waits for its log.
var mayLog = map[string]string{
	"bridge.New":         "relay.Dialer.Warn is told once a minute",
	"bridge.Run":         "once, and once for each change of this machine's network",
	"bridge.attached":    "reporter: the same",
	"bridge.detached":    "reporter: the same",
	"bridge.failed":      "reporter: the same",
	"bridge.awaitDrain":  "once",
	"bridge.leaving":     "reporter: ten lines a second at the most",
	"bridge.ended":       "reporter: the same",
	"bridge.watchName":   "once for each lookup, which has its pauses",
	"proxy.Run":          "once",
	"proxy.finishPairs":  "once",
	"proxy.sayRotated":   "once for each order to rotate a key",
	"proxy.sayExpiry":    "once for each key and change of the clock",
	"proxy.report":       "once in reportStrangersPer",
	"proxy.saveKnown":    "once in saveAgain",
	"traffic.Accept":     "once in acceptFailedPer for each listener",
	"traffic.bind":       "one line for each pair, as documented: it costs a connection",
	"traffic.Drain":      "once",
	"traffic.Note":       "Strain: once until it is over, which takes ten seconds",
	"traffic.relax":      "Strain: the same",
	"traffic.released":   "one line for each pair, as documented",
	"traffic.sayRefusal": "once a second for each service, ten times for each key",
	"traffic.sayRest":    "the same",
}

// TestLogsAreBounded: nobody writes to the log for each thing that a stranger, user or peer does, but for whom mayLog names.
func TestLogsAreBounded(t *testing.T) {
	methods := []string{"Debug", "Info", "Warn", "Error", "Log", "LogAttrs", "DebugContext", "InfoContext", "WarnContext", "ErrorContext"}
	found := make(map[string]bool)
	for _, pkg := range []string{"auth", "bridge", "certs", "claims", "entrance", "link", "proxy", "record", "registry", "relay", "traffic", "wire"} {
		files, err := filepath.Glob(filepath.Join("..", pkg, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("package %s: %d files, %v", pkg, len(files), err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			set, functions := functionsOf(t, file)
			for _, fn := range functions {
				ast.Inspect(fn, func(n ast.Node) bool {
					if sel, ok := n.(*ast.SelectorExpr); ok && slices.Contains(methods, sel.Sel.Name) && isLog(sel.X) {
						name := pkg + "." + fn.Name.Name
						if found[name] = true; mayLog[name] == "" {
							t.Errorf("%s: %s writes to the log itself; have lines.Log do it, or say in mayLog what bounds its lines", set.Position(sel.Pos()), name)
						}
					}
					return true
				})
			}
		}
	}
	for name := range mayLog {
		if !found[name] {
			t.Errorf("mayLog names %s, which does not write to the log", name)
		}
	}
}

// functionsOf returns the functions and methods of a file, and where they are.
func functionsOf(t *testing.T, file string) (set *token.FileSet, functions []*ast.FuncDecl) {
	t.Helper()
	set = token.NewFileSet()
	parsed, err := parser.ParseFile(set, file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range parsed.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok {
			functions = append(functions, fn)
		}
	}
	return set, functions
}

// isLog reports whether an expression is called as loggers are here.
func isLog(x ast.Expr) bool {
	name := ""
	switch x := x.(type) {
	case *ast.Ident:
		name = x.Name
	case *ast.SelectorExpr:
		name = x.Sel.Name
	}
	return name == "log" || name == "Log" || name == "slog"
}
