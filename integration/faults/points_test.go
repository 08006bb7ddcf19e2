package faults

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/integration/tools"
)

// sources are the parsed programs and libraries, tests left out.
type sources struct {
	funcs []*function
}

type function struct {
	*ast.FuncDecl
	dir string
}

// withPoints are the folders that fault points may stand in, elsewhere those of the
// parts that need a cluster, each with the table that kills and fails at its points,
// and proves that it covers them as this one does.
var (
	withPoints = []string{"pkg", "ipam", "plugins"}
	elsewhere  = map[string]string{
		"pkg/ipam/kube":  "integration/kubeipam/kill_test.go",
		"pkg/ipam/queue": "integration/kubeipam/kill_test.go",
		"pkg/hostclaim":  "integration/kubeipam/hostclaim_test.go",
		"pkg/install":    "installer/install-cni/main_test.go",
	}
)

// What is left to another table is there: it names the folder.
func TestElsewhere(t *testing.T) {
	root, err := tools.Root()
	require.NoError(t, err)
	for folder, table := range elsewhere {
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, table), nil, parser.SkipObjectResolution)
		require.NoError(t, err, "the table for %s", folder)
		named := false
		ast.Inspect(file, func(n ast.Node) bool {
			lit, ok := n.(*ast.BasicLit)
			named = named || ok && lit.Value == strconv.Quote(folder)
			return true
		})
		require.True(t, named, "%s doesn't name %s", table, folder)
	}
}

func readSources(t *testing.T) *sources {
	t.Helper()
	root, err := tools.Root()
	require.NoError(t, err)
	s := &sources{}
	for _, folder := range withPoints {
		err := filepath.WalkDir(filepath.Join(root, folder), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") ||
				filepath.Base(filepath.Dir(path)) == "fault" {
				return err
			}
			folder, err := filepath.Rel(root, filepath.Dir(path))
			if _, left := elsewhere[folder]; err != nil || left {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			for _, decl := range file.Decls {
				if f, ok := decl.(*ast.FuncDecl); ok && f.Body != nil {
					s.funcs = append(s.funcs, &function{f, filepath.Dir(path)})
				}
			}
			return nil
		})
		require.NoError(t, err)
	}
	return s
}

// points are the names of all fault points, sorted.
func (s *sources) points() (list []string, err error) {
	for _, f := range s.funcs {
		ast.Inspect(f.Body, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if ok && calls(call, "At") && receiver(call) == "fault" {
				values, evalErr := s.values(call.Args[0], f, 0)
				err = errors.Join(err, evalErr)
				list = append(list, values...)
			}
			return true
		})
	}
	slices.Sort(list)
	return slices.Compact(list), err
}

func calls(c *ast.CallExpr, name string) bool {
	switch fun := c.Fun.(type) {
	case *ast.Ident:
		return fun.Name == name
	case *ast.SelectorExpr:
		return fun.Sel.Name == name
	}
	return false
}

// receiver is what stands before the dot of a call.
func receiver(c *ast.CallExpr) string {
	if sel, ok := c.Fun.(*ast.SelectorExpr); ok {
		if x, ok := sel.X.(*ast.Ident); ok {
			return x.Name
		}
	}
	return ""
}

// values are all strings that an expression in f can have: literals, sums,
// parameters (what the callers pass) and fields (what the literals of the struct
// have there).
func (s *sources) values(e ast.Expr, f *function, depth int) ([]string, error) {
	if depth > 8 {
		return nil, fmt.Errorf("%s: a fault point's name that calls itself", f.Name)
	}
	switch e := e.(type) {
	case *ast.BasicLit:
		text, err := strconv.Unquote(e.Value)
		return []string{text}, err
	case *ast.BinaryExpr:
		left, err := s.values(e.X, f, depth+1)
		right, rightErr := s.values(e.Y, f, depth+1)
		var list []string
		for _, l := range left {
			for _, r := range right {
				list = append(list, l+r)
			}
		}
		return list, errors.Join(err, rightErr)
	case *ast.Ident:
		if i := parameter(f, e.Name); i >= 0 {
			return s.arguments(f, i, depth)
		}
	case *ast.SelectorExpr:
		if x, ok := e.X.(*ast.Ident); ok {
			if typ := s.typeOf(x.Name, f); typ != "" {
				return s.fields(typ, e.Sel.Name, f.dir, depth)
			}
		}
	}
	return nil, fmt.Errorf("function %s in %s has a fault point whose name this test can't work out", f.Name, f.dir)
}

func parameter(f *function, name string) int {
	i := 0
	for _, field := range f.Type.Params.List {
		for _, n := range field.Names {
			if n.Name == name {
				return i
			}
			i++
		}
	}
	return -1
}

// arguments are the values that callers of f pass as the i-th argument.
func (s *sources) arguments(f *function, i, depth int) (list []string, err error) {
	for _, caller := range s.funcs {
		if !f.Name.IsExported() && caller.dir != f.dir {
			continue
		}
		ast.Inspect(caller.Body, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || !calls(call, f.Name.Name) || len(call.Args) <= i {
				return true
			}
			if len(call.Args) != f.Type.Params.NumFields() || f.Recv == nil && caller.dir == f.dir && receiver(call) != "" {
				return true // another function of that name
			}
			values, valuesErr := s.values(call.Args[i], caller, depth+1)
			list, err = append(list, values...), errors.Join(err, valuesErr)
			return true
		})
	}
	return list, err
}

// typeOf is the struct type of a receiver, parameter or loop variable of f, "" if
// it is none of them.
func (s *sources) typeOf(name string, f *function) string {
	params := slices.Clone(f.Type.Params.List)
	if f.Recv != nil {
		params = append(params, f.Recv.List...)
	}
	for _, field := range params {
		for _, n := range field.Names {
			if n.Name == name {
				return element(field.Type)
			}
		}
	}
	found := ""
	ast.Inspect(f.Body, func(n ast.Node) bool {
		loop, ok := n.(*ast.RangeStmt)
		if !ok {
			return true
		}
		if v, ok := loop.Value.(*ast.Ident); ok && v.Name == name {
			switch over := loop.X.(type) {
			case *ast.Ident:
				found = s.typeOf(over.Name, f)
			case *ast.CallExpr:
				for _, g := range s.funcs {
					if g.dir == f.dir && calls(over, g.Name.Name) && g.Type.Results.NumFields() == 1 {
						found = element(g.Type.Results.List[0].Type)
					}
				}
			}
		}
		return true
	})
	return found
}

// element is the name of a type, or of what a slice or pointer is of.
func element(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	case *ast.StarExpr:
		return element(e.X)
	case *ast.ArrayType:
		return element(e.Elt)
	}
	return ""
}

// fields are the values of a field in all literals of a struct type. In literals
// without keys the field that names a fault point is the first.
func (s *sources) fields(typ, field, dir string, depth int) (list []string, err error) {
	for _, f := range s.funcs {
		take := func(lit *ast.CompositeLit) {
			for i, elt := range lit.Elts {
				value := elt
				if kv, ok := elt.(*ast.KeyValueExpr); ok {
					if element(kv.Key) != field {
						continue
					}
					value = kv.Value
				} else if i > 0 {
					break
				}
				values, valuesErr := s.values(value, f, depth+1)
				list, err = append(list, values...), errors.Join(err, valuesErr)
			}
		}
		ast.Inspect(f.Body, func(n ast.Node) bool {
			lit, ok := n.(*ast.CompositeLit)
			if !ok || !names(lit.Type, typ, dir, f.dir) {
				return true
			}
			if _, many := lit.Type.(*ast.ArrayType); !many {
				take(lit)
				return true
			}
			for _, elt := range lit.Elts {
				if inner, ok := elt.(*ast.CompositeLit); ok && inner.Type == nil {
					take(inner)
				}
			}
			return true
		})
	}
	return list, err
}

// names says whether an expression in folder from names the type of folder dir,
// or a slice of it.
func names(e ast.Expr, typ, dir, from string) bool {
	if list, ok := e.(*ast.ArrayType); ok {
		return names(list.Elt, typ, dir, from)
	}
	if sel, ok := e.(*ast.SelectorExpr); ok {
		return element(sel.X) == filepath.Base(dir) && sel.Sel.Name == typ
	}
	return dir == from && element(e) == typ
}
