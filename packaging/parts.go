package main

import (
	"bytes"
	"cmp"
	"context"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// parts is what a program was made of, as the program itself says.
type parts struct {
	goVersion string
	goRoot    string
	modules   []module
}

type module struct {
	path, version, sum string
	dir                string // where its source lies
}

// readParts reads what is written in a program, and finds where its modules' source lies.
func readParts(ctx context.Context, src string, exe []byte) (*parts, error) {
	info, err := buildinfo.Read(bytes.NewReader(exe))
	if err != nil {
		return nil, err
	}
	p := &parts{goVersion: strings.TrimPrefix(info.GoVersion, "go")}
	if root, err := output(ctx, src, nil, "go", "env", "GOROOT"); err != nil {
		return nil, err
	} else {
		p.goRoot = strings.TrimSpace(root)
	}
	for _, dep := range info.Deps {
		m, err := findModule(ctx, src, dep)
		if err != nil {
			return nil, err
		}
		p.modules = append(p.modules, m)
	}
	slices.SortFunc(p.modules, func(a, b module) int { return cmp.Compare(a.path, b.path) })
	return p, nil
}

func findModule(ctx context.Context, src string, dep *debug.Module) (module, error) {
	if dep.Replace != nil {
		return module{}, fmt.Errorf("module %s is replaced by %s: a release has none that is", dep.Path, dep.Replace.Path)
	}
	dir, err := output(ctx, src, []string{"GOWORK=off", "GOFLAGS="}, "go", "list", "-m", "-f", "{{.Dir}}", dep.Path)
	if err != nil {
		return module{}, err
	}
	return module{dep.Path, dep.Version, dep.Sum, strings.TrimSpace(dir)}, nil
}

// licenses are the texts that must go with copies of what others wrote.
func (p *parts) licenses() (file, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "%s contains parts that others wrote. These are their licenses.\n", program)
	add := func(name, dir string) error {
		texts, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil {
			return err
		}
		found := false
		for _, path := range texts {
			base, _, _ := strings.Cut(strings.ToUpper(filepath.Base(path)), ".")
			switch base {
			case "LICENSE", "LICENCE", "COPYING", "NOTICE", "COPYRIGHT":
			default:
				continue
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			found = true
			fmt.Fprintf(&b, "\n%s\n%s (%s)\n\n%s\n", strings.Repeat("-", 72), name, filepath.Base(path), strings.TrimSpace(strings.ReplaceAll(string(text), "\r\n", "\n")))
		}
		if !found {
			return fmt.Errorf("%s has no license in %s: find out whether it may be given away", name, dir)
		}
		return nil
	}
	if err := add("Go "+p.goVersion, p.goRoot); err != nil {
		return file{}, err
	}
	for _, m := range p.modules {
		if err := add(m.path+" "+m.version, m.dir); err != nil {
			return file{}, err
		}
	}
	return file{name: "LICENSES-OF-PARTS.txt", data: []byte(b.String())}, nil
}

// sbom is the bill of materials of an archive, in CycloneDX.
func (p *parts) sbom(r *release, on platform, archive file) ([]byte, error) {
	main := cdx.Component{
		BOMRef: purl(program, r.version), Type: cdx.ComponentTypeApplication, Name: program, Version: r.version, PackageURL: purl(program, r.version),
		Description: summary, Publisher: publisher,
		Licenses: &cdx.Licenses{{License: &cdx.License{ID: license}}},
		Hashes:   &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: sum(archive.data)}},
		Properties: &[]cdx.Property{
			{Name: "archive", Value: archive.name}, {Name: "GOARCH", Value: on.arch}, {Name: "GOOS", Value: on.os},
		},
	}
	bom := cdx.NewBOM()
	bom.Metadata = &cdx.Metadata{Timestamp: r.date.Format("2006-01-02T15:04:05Z"), Component: &main}
	std := cdx.Component{BOMRef: purl("std", p.goVersion), Type: cdx.ComponentTypeLibrary, Name: "std", Version: p.goVersion, PackageURL: purl("std", p.goVersion),
		Description: "The standard library of Go"}
	components, needs := []cdx.Component{std}, []string{std.BOMRef}
	for _, m := range p.modules {
		c := cdx.Component{BOMRef: purl(m.path, m.version), Type: cdx.ComponentTypeLibrary, Name: m.path, Version: m.version, PackageURL: purl(m.path, m.version)}
		// go.sum's hash is of all names and hashes in a module, not of one file: a scanner finds it by the name that
		// other tools give it.
		if h, ok := strings.CutPrefix(m.sum, "h1:"); ok {
			raw, err := base64.StdEncoding.DecodeString(h)
			if err != nil {
				return nil, fmt.Errorf("checksum of %s: %w", m.path, err)
			}
			c.Hashes = &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: hex.EncodeToString(raw)}}
		}
		components, needs = append(components, c), append(needs, c.BOMRef)
	}
	bom.Components = &components
	bom.Dependencies = &[]cdx.Dependency{{Ref: main.BOMRef, Dependencies: &needs}}
	return json.MarshalIndent(bom, "", "  ")
}

// purl names a Go module as package URLs do.
func purl(path, version string) string {
	return "pkg:golang/" + path + "@" + strings.ReplaceAll(version, "+", "%2B")
}
