package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// platform is an operating system and an architecture, as Go names them.
type platform struct{ os, arch string }

var platforms = []platform{
	{"linux", "amd64"}, {"linux", "arm64"},
	{"darwin", "amd64"}, {"darwin", "arm64"},
	{"windows", "amd64"}, {"windows", "arm64"},
}

func (p platform) String() string { return p.os + "/" + p.arch }

// exe is the name of the program there.
func (p platform) exe() string {
	if p.os == "windows" {
		return program + ".exe"
	}
	return program
}

func names(all []platform) (ss []string) {
	for _, p := range all {
		ss = append(ss, p.String())
	}
	return ss
}

func parsePlatforms(s string) (chosen []platform, err error) {
	for name := range strings.SplitSeq(s, ",") {
		i := slices.Index(names(platforms), name)
		if i < 0 {
			return nil, fmt.Errorf("platform %q: there are %s", name, strings.Join(names(platforms), ", "))
		}
		chosen = append(chosen, platforms[i])
	}
	return chosen, nil
}

// built is where build puts a program.
func (r *release) built(src string, p platform) string {
	return filepath.Join(src, "..", p.os+"_"+p.arch, p.exe())
}

// build builds the program from the copy of the source.
func (r *release) build(ctx context.Context, src string, p platform) ([]byte, error) {
	out := r.built(src, p)
	if exe, err := os.ReadFile(out); err == nil { // built for the completions
		return exe, nil
	}
	main := filepath.Join(src, "cmd", program)
	if p.os == "windows" {
		resource, err := r.windowsResource(p)
		if err != nil {
			return nil, err
		}
		// The name says for which platform: go build links it into that one only.
		if err := os.WriteFile(filepath.Join(main, "resource_"+p.os+"_"+p.arch+".syso"), resource, 0o666); err != nil {
			return nil, err
		}
	}
	// What the environment may say about a build is said here, so that it is the same everywhere.
	env := []string{
		"CGO_ENABLED=0", "GOOS=" + p.os, "GOARCH=" + p.arch, "GOAMD64=v1", "GOARM64=v8.0",
		"GOFLAGS=", "GOEXPERIMENT=", "GOFIPS140=off", "GOWORK=off", "GOTOOLCHAIN=local",
	}
	_, err := output(ctx, src, env, "go", "build", "-trimpath", "-buildvcs=false", "-mod=readonly",
		"-ldflags", "-s -w -buildid= -X main.release="+r.version, "-o", out, "./cmd/"+program)
	if err != nil {
		return nil, err
	}
	return os.ReadFile(out)
}

// completions are the scripts with which shells complete the program's commands. They are the same on all platforms: the
// program of this machine prints them.
func (r *release) completions(ctx context.Context, src string) (files []file, err error) {
	here := platform{runtime.GOOS, runtime.GOARCH}
	if _, err := r.build(ctx, src, here); err != nil {
		return nil, err
	}
	exe := r.built(src, here)
	for _, shell := range []string{"bash", "fish", "powershell", "zsh"} {
		script, err := output(ctx, src, nil, exe, "completion", shell)
		if err != nil {
			return nil, err
		}
		files = append(files, file{name: "completions/" + program + "." + shell, data: []byte(script)})
	}
	return files, nil
}

// readDocuments reads what stands beside the program in an archive. The README's links into the repository lead to them.
func readDocuments(src string) (files []file, err error) {
	for _, pattern := range []string{
		"LICENSE", "README.md", "README.zh-CN.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/*.md", "docs/*.svg", "spec/*.md", "examples/*/*.md", "examples/config/*",
	} {
		paths, err := filepath.Glob(filepath.Join(src, filepath.FromSlash(pattern)))
		if err != nil {
			return nil, err
		}
		if len(paths) == 0 {
			return nil, fmt.Errorf("there is no %s, which belongs into an archive", pattern)
		}
		for _, path := range paths {
			data, err := os.ReadFile(path)
			if err != nil {
				return nil, err
			}
			name, err := filepath.Rel(src, path)
			if err != nil {
				return nil, err
			}
			files = append(files, file{name: filepath.ToSlash(name), data: data})
		}
	}
	return files, nil
}
