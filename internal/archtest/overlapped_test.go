package archtest

import (
	"go/ast"
	"go/token"
	"path/filepath"
	"slices"
	"testing"
)

// mayOverlap are the functions that make a windows.Overlapped of their own, with why that is safe.
var mayOverlap = map[string]string{
	"internal/state/state_windows.go lockedByte": "the system is done with it when the call returns: the file is not overlapped, and the call does not wait for the lock",
}

// TestOverlapped: an Overlapped is a field of something that lives as long as the operation. The compiler puts one that a function makes on
// the stack, also behind a pointer, and the system writes into it later, when the stack may have moved.
func TestOverlapped(t *testing.T) {
	is := func(e ast.Expr) bool {
		if lit, ok := e.(*ast.CompositeLit); ok {
			e = lit.Type
		}
		s, ok := e.(*ast.SelectorExpr)
		return ok && s.Sel.Name == "Overlapped"
	}
	seen := make(map[string]bool)
	for file, imports := range sources(t) {
		if !slices.Contains(imports, "golang.org/x/sys/windows") && !slices.Contains(imports, "syscall") {
			continue
		}
		_, functions := functionsOf(t, filepath.Join("..", "..", file))
		for _, fn := range functions {
			name := file + " " + fn.Name.Name
			ast.Inspect(fn, func(n ast.Node) bool {
				made := false
				switch n := n.(type) {
				case *ast.ValueSpec: // var over windows.Overlapped
					made = is(n.Type) || slices.ContainsFunc(n.Values, is)
				case *ast.AssignStmt: // over := windows.Overlapped{}
					made = n.Tok == token.DEFINE && slices.ContainsFunc(n.Rhs, is)
				case *ast.UnaryExpr: // &windows.Overlapped{}
					made = n.Op == token.AND && is(n.X)
				case *ast.CallExpr: // new(windows.Overlapped)
					made = slices.ContainsFunc(n.Args, is)
				}
				if made && mayOverlap[name] == "" {
					t.Errorf("%s makes a windows.Overlapped: make it a field of what outlives the operation", name)
				}
				seen[name] = seen[name] || made
				return true
			})
		}
	}
	for name := range mayOverlap {
		if !seen[name] {
			t.Errorf("mayOverlap has %s, which makes none", name)
		}
	}
}
