// Command fields prints the table ../fields.txt from the Go types of the Kubernetes API: which fields each type has,
// their numbers, types and merge rules. The format is described at the top of src/schema.rs. To regenerate:
//
//	mkdir /tmp/fields && cp main.go /tmp/fields && cd /tmp/fields && go mod init fields
//	go get k8s.io/api@v0.35.0 k8s.io/apimachinery@v0.35.0 k8s.io/apiextensions-apiserver@v0.35.0 k8s.io/kube-aggregator@v0.35.0
//	go run . > .../apiserver/api/data/fields.txt
package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log"
	"os/exec"
	"path/filepath"
	"reflect"
	"sort"
	"strconv"
	"strings"
)

type pkg struct{ alias, module, dir, openapi, apiVersion string }

// The alias is how other packages' types are named in the table: `meta.ObjectMeta`.
var pkgs = []pkg{
	{"meta", "k8s.io/apimachinery", "pkg/apis/meta/v1", "io.k8s.apimachinery.pkg.apis.meta.v1", "meta.k8s.io/v1"},
	{"core", "k8s.io/api", "core/v1", "", "v1"},
	{"admissionregistration", "k8s.io/api", "admissionregistration/v1", "", "admissionregistration.k8s.io/v1"},
	{"apps", "k8s.io/api", "apps/v1", "", "apps/v1"},
	{"authentication", "k8s.io/api", "authentication/v1", "", "authentication.k8s.io/v1"},
	{"authorization", "k8s.io/api", "authorization/v1", "", "authorization.k8s.io/v1"},
	{"autoscaling", "k8s.io/api", "autoscaling/v1", "", "autoscaling/v1"},
	{"autoscalingv2", "k8s.io/api", "autoscaling/v2", "", "autoscaling/v2"},
	{"batch", "k8s.io/api", "batch/v1", "", "batch/v1"},
	{"certificates", "k8s.io/api", "certificates/v1", "", "certificates.k8s.io/v1"},
	{"coordination", "k8s.io/api", "coordination/v1", "", "coordination.k8s.io/v1"},
	{"discovery", "k8s.io/api", "discovery/v1", "", "discovery.k8s.io/v1"},
	{"events", "k8s.io/api", "events/v1", "", "events.k8s.io/v1"},
	{"flowcontrol", "k8s.io/api", "flowcontrol/v1", "", "flowcontrol.apiserver.k8s.io/v1"},
	{"networking", "k8s.io/api", "networking/v1", "", "networking.k8s.io/v1"},
	{"node", "k8s.io/api", "node/v1", "", "node.k8s.io/v1"},
	{"policy", "k8s.io/api", "policy/v1", "", "policy/v1"},
	{"rbac", "k8s.io/api", "rbac/v1", "", "rbac.authorization.k8s.io/v1"},
	{"resource", "k8s.io/api", "resource/v1", "", "resource.k8s.io/v1"},
	{"scheduling", "k8s.io/api", "scheduling/v1", "", "scheduling.k8s.io/v1"},
	{"storage", "k8s.io/api", "storage/v1", "", "storage.k8s.io/v1"},
	{"apiextensions", "k8s.io/apiextensions-apiserver", "pkg/apis/apiextensions/v1",
		"io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1", "apiextensions.k8s.io/v1"},
	{"apiregistration", "k8s.io/kube-aggregator", "pkg/apis/apiregistration/v1",
		"io.k8s.kube-aggregator.pkg.apis.apiregistration.v1", "apiregistration.k8s.io/v1"},
}

// Types whose JSON form is not the plain reading of their fields.
var special = map[string]string{
	"meta.Time": "time", "meta.MicroTime": "microtime", "meta.Duration": "duration", "meta.FieldsV1": "json",
	"resource.Quantity": "quantity", "intstr.IntOrString": "intstr", "runtime.RawExtension": "raw",
	"runtime.Unknown": "raw", "apiextensions.JSON": "json", "types.UID": "str",
}

var basic = map[string]string{
	"string": "str", "int32": "i32", "int64": "i64", "int": "i64", "uint8": "i32", "bool": "bool", "float64": "f64",
}

type decl struct {
	spec *ast.TypeSpec
	tags map[string][]string
}

type gen struct {
	pkg     pkg
	types   map[string]decl
	imports map[string]string
}

// tags reads the `+name=value` lines of comments.
func tags(groups ...*ast.CommentGroup) map[string][]string {
	out := map[string][]string{}
	for _, g := range groups {
		if g == nil {
			continue
		}
		for _, c := range g.List {
			for _, line := range strings.Split(c.Text, "\n") {
				line = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line), "//"))
				if strings.HasPrefix(line, "+") {
					k, v, _ := strings.Cut(line[1:], "=")
					out[k] = append(out[k], strings.TrimSpace(v))
				}
			}
		}
	}
	return out
}

func load(p pkg) *gen {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", p.module).Output()
	if err != nil {
		log.Fatal(p.module, err)
	}
	g := &gen{p, map[string]decl{}, map[string]string{}}
	files, _ := filepath.Glob(filepath.Join(strings.TrimSpace(string(out)), p.dir, "*.go"))
	for _, name := range files {
		if base := filepath.Base(name); strings.HasSuffix(base, "_test.go") || strings.HasPrefix(base, "zz_") || strings.HasPrefix(base, "generated") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			log.Fatal(err)
		}
		for _, i := range file.Imports {
			path, _ := strconv.Unquote(i.Path.Value)
			alias := filepath.Base(path)
			if i.Name != nil {
				alias = i.Name.Name
			}
			for _, other := range pkgs {
				if path == other.module+"/"+other.dir {
					g.imports[alias] = other.alias
				}
			}
		}
		for _, d := range file.Decls {
			if d, ok := d.(*ast.GenDecl); ok && d.Tok == token.TYPE {
				for _, s := range d.Specs {
					s := s.(*ast.TypeSpec)
					// Some tags stand in a comment of their own, right above the documentation.
					groups := []*ast.CommentGroup{d.Doc, s.Doc}
					for _, c := range file.Comments {
						if c.End() < d.Pos() && d.Doc != nil && d.Doc.Pos()-c.End() <= 3 {
							groups = append(groups, c)
						}
					}
					g.types[s.Name.Name] = decl{s, tags(groups...)}
				}
			}
		}
	}
	return g
}

var gens = map[string]*gen{}

func (g *gen) named(alias, name string) string {
	full := alias + "." + name
	if s, ok := special[full]; ok {
		return s
	}
	other, ok := gens[alias]
	if !ok {
		log.Fatalf("%s: unknown type %s", g.pkg.alias, full)
	}
	d, ok := other.types[name]
	if !ok {
		log.Fatalf("%s: unknown type %s", g.pkg.alias, full)
	}
	_, isStruct := d.spec.Type.(*ast.StructType)
	if _, nullable := d.tags["protobuf.nullable"]; !isStruct && !nullable {
		return other.typ(d.spec.Type)
	}
	if alias == g.pkg.alias {
		return name
	}
	return full
}

func (g *gen) typ(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return g.typ(e.X)
	case *ast.ArrayType:
		if id, ok := e.Elt.(*ast.Ident); ok && id.Name == "byte" {
			return "bytes"
		}
		return "[]" + g.typ(e.Elt)
	case *ast.MapType:
		return "{}" + g.typ(e.Value)
	case *ast.Ident:
		if b, ok := basic[e.Name]; ok {
			return b
		}
		return g.named(g.pkg.alias, e.Name)
	case *ast.SelectorExpr:
		alias := e.X.(*ast.Ident).Name
		if a, ok := g.imports[alias]; ok {
			alias = a
		}
		return g.named(alias, e.Sel.Name)
	}
	log.Fatalf("%s: no name for %T", g.pkg.alias, e)
	return ""
}

func (g *gen) field(f *ast.Field) (number int, line string) {
	if f.Tag == nil {
		return
	}
	raw, _ := strconv.Unquote(f.Tag.Value)
	tag := reflect.StructTag(raw)
	proto, json := strings.Split(tag.Get("protobuf"), ","), strings.Split(tag.Get("json"), ",")
	if len(proto) < 2 || json[0] == "-" {
		return
	}
	number, _ = strconv.Atoi(proto[1])
	facts := ""
	name, t := json[0], g.typ(f.Type)
	for _, option := range json[1:] {
		switch option {
		case "omitempty":
			facts += "?"
		case "inline":
			name = "~"
		}
	}
	for _, option := range proto {
		if v, ok := strings.CutPrefix(option, "name="); ok && name == "" {
			name = v
		}
	}
	if _, ok := f.Type.(*ast.StarExpr); ok {
		facts += "*"
	}
	doc := tags(f.Doc, f.Comment)
	if v := tag.Get("patchStrategy"); v != "" {
		facts += " p:" + v
	}
	if v := tag.Get("patchMergeKey"); v != "" {
		facts += " k:" + v
	}
	if v := doc["listType"]; v != nil {
		facts += " l:" + v[0]
	}
	if v := doc["listMapKey"]; v != nil {
		facts += " m:" + strings.Join(v, ",")
	}
	if v := append(doc["structType"], doc["mapType"]...); v != nil && v[0] == "atomic" {
		facts += " atomic"
	}
	return number, fmt.Sprintf("%d %s %s%s", number, name, t, facts)
}

func (g *gen) message(name string) (string, []string) {
	d := g.types[name]
	s, ok := d.spec.Type.(*ast.StructType)
	if !ok {
		// A named list which may be null: a message with one field, but a plain list in JSON.
		if _, nullable := d.tags["protobuf.nullable"]; nullable {
			return name + " list", []string{"1 items " + g.typ(d.spec.Type) + "?"}
		}
		return "", nil
	}
	head, lines, numbers := name, map[int]string{}, []int{}
	for _, f := range s.Fields.List {
		if number, line := g.field(f); number != 0 {
			lines[number] = line
			numbers = append(numbers, number)
		} else if f.Tag != nil && len(f.Names) == 0 && strings.Contains(f.Tag.Value, "inline") {
			head += " kind"
		}
	}
	if v := append(d.tags["structType"], d.tags["mapType"]...); v != nil && v[0] == "atomic" {
		head += " atomic"
	}
	if strings.HasPrefix(name, "JSONSchemaPropsOr") {
		head += " union"
	}
	sort.Ints(numbers)
	out := []string{}
	for _, n := range numbers {
		out = append(out, lines[n])
	}
	return head, out
}

func main() {
	for _, p := range pkgs {
		gens[p.alias] = load(p)
	}
	for _, p := range pkgs {
		g := gens[p.alias]
		if p.openapi == "" {
			p.openapi = "io.k8s.api." + strings.ReplaceAll(p.dir, "/", ".")
		}
		fmt.Println("@", p.alias, p.openapi, p.apiVersion)
		names := []string{}
		for name := range g.types {
			if _, ok := special[p.alias+"."+name]; !ok {
				names = append(names, name)
			}
		}
		sort.Strings(names)
		for _, name := range names {
			if head, fields := g.message(name); len(fields) > 0 || strings.Contains(head, " kind") {
				fmt.Println("=", head)
				for _, f := range fields {
					fmt.Println(f)
				}
			} else if head != "" && ast.IsExported(name) {
				fmt.Println("=", head)
			}
		}
	}
}
