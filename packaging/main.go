// Dist makes what a release consists of, in one directory:
//
//	reverser_VERSION_OS_ARCH.tar.gz, .zip   the program with its documents, for six platforms
//	reverser_VERSION_linux_ARCH.deb, .rpm   packages
//	reverser_VERSION_OS_ARCH.cdx.json       its bill of materials (CycloneDX)
//	reverser.json, reverser.reverser*.yaml  where Scoop and winget find the zips
//	SHA256SUMS                              of all the files above
//
// The same commit gives the same bytes, with the same version of Go, on any machine and at any time. So nothing that is
// written comes from the clock, the user, the directory or the order of a map: times are the commit's, and programs are built
// from a copy of the files that git tracks. docs/RELEASING.md says how a release is made and verified.
//
// It is a module of its own, so that the libraries that it needs are none of the program's.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "dist:", err)
		}
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout io.Writer) error {
	fl := flag.NewFlagSet("dist", flag.ContinueOnError)
	root := fl.String("root", "..", "`DIR` of the checkout")
	out := fl.String("out", "../dist", "`DIR` that is made anew, with the files of the release")
	version := fl.String("version", "", "`VERSION`, such as v1.2.3 (default: the tag of the commit; without one, its time and hash)")
	download := fl.String("download", "", "`URL` below which the files will be found, for Scoop and winget (default: a placeholder)")
	only := fl.String("platforms", strings.Join(names(platforms), ","), "`OS/ARCH,...` to build for")
	if err := fl.Parse(args); err != nil {
		return err
	}
	if fl.NArg() > 0 {
		return fmt.Errorf("%q is one argument too many: see -help", fl.Arg(0))
	}
	targets, err := parsePlatforms(*only)
	if err != nil {
		return err
	}
	r, err := newRelease(ctx, *root, *version)
	if err != nil {
		return err
	}
	if r.download, err = checkDownload(*download, r.version); err != nil {
		return err
	}
	stage, err := os.MkdirTemp("", "reverser-dist-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(stage)
	files, err := r.make(ctx, stage, targets)
	if err != nil {
		return err
	}
	if err := writeOut(*out, files); err != nil {
		return err
	}
	for _, f := range files {
		fmt.Fprintf(stdout, "%9d  %s\n", len(f.data), f.name)
	}
	fmt.Fprintf(stdout, "%s %s in %s\n", program, r.version, *out)
	return nil
}

// file is one file of a release, or of an archive.
type file struct {
	name string // with slashes
	data []byte
	exec bool
}

// make builds the programs below stage and returns the files of the release, in the order of their names, and the
// checksums behind them.
func (r *release) make(ctx context.Context, stage string, targets []platform) ([]file, error) {
	src, err := r.copySource(ctx, stage)
	if err != nil {
		return nil, err
	}
	completions, err := r.completions(ctx, src)
	if err != nil {
		return nil, err
	}
	documents, err := readDocuments(src)
	if err != nil {
		return nil, err
	}
	var system []file
	if slices.ContainsFunc(targets, func(p platform) bool { return p.os == "linux" }) {
		if system, err = r.units(ctx, src); err != nil {
			return nil, err
		}
		manual, err := r.manual(ctx, src)
		if err != nil {
			return nil, err
		}
		system = append(system, manual)
	}
	var files []file
	for _, p := range targets {
		made, err := r.makePlatform(ctx, src, p, slices.Concat(documents, completions), system)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
		files = append(files, made...)
	}
	managers, err := r.managers(files)
	if err != nil {
		return nil, err
	}
	files = byName(append(files, managers...))
	return append(files, checksums(files)), nil
}

// makePlatform makes the files of one platform. with is what goes into the archive beside the program, system what only
// packages have.
func (r *release) makePlatform(ctx context.Context, src string, p platform, with, system []file) ([]file, error) {
	exe, err := r.build(ctx, src, p)
	if err != nil {
		return nil, err
	}
	parts, err := readParts(ctx, src, exe)
	if err != nil {
		return nil, err
	}
	licenses, err := parts.licenses()
	if err != nil {
		return nil, err
	}
	content := slices.Concat([]file{{name: p.exe(), data: exe, exec: true}, licenses}, with)
	base := program + "_" + r.plainVersion() + "_" + p.os + "_" + p.arch
	archive := file{name: base + ".tar.gz"}
	if p.os == "windows" {
		// Explorer unpacks a zip into a folder with the zip's name.
		archive.name = base + ".zip"
		archive.data, err = zipped(content, r.date)
	} else {
		archive.data, err = tarred(base, content, r.date)
	}
	if err != nil {
		return nil, err
	}
	sbom, err := parts.sbom(r, p, archive)
	if err != nil {
		return nil, err
	}
	made := []file{archive, {name: base + ".cdx.json", data: sbom}}
	if p.os == "linux" {
		packages, err := r.packages(p, base, content, system)
		if err != nil {
			return nil, err
		}
		made = append(made, packages...)
	}
	return made, nil
}
