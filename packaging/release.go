package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

const (
	program   = "reverser"
	summary   = "Give a service behind NAT a public address"
	publisher = "The reverser authors"
	license   = "Apache-2.0"
)

// release is what is built: a commit, the name that it gets, and its time.
type release struct {
	root     string
	version  string // v1.2.3
	date     time.Time
	download string // where its files will be found
}

var versionPattern = regexp.MustCompile(`^v(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$`)

// newRelease looks at the checkout. A version that a person names is that of a commit: it is refused where files differ from it.
func newRelease(ctx context.Context, root, version string) (*release, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	r := &release{root: root, version: version}
	if version != "" && !versionPattern.MatchString(version) {
		return nil, fmt.Errorf("version %q: it looks like v1.2.3 or v1.2.3-rc.1", version)
	}
	commit, err := r.git(ctx, "log", "-1", "--format=%H %ct")
	if err != nil {
		return nil, fmt.Errorf("find the commit that is built: %w (a release is made from a git checkout)", err)
	}
	hash, seconds, _ := strings.Cut(strings.TrimSpace(commit), " ")
	if s := os.Getenv("SOURCE_DATE_EPOCH"); s != "" {
		seconds = s
	}
	unix, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil || unix < 0 {
		return nil, fmt.Errorf("SOURCE_DATE_EPOCH %q: it is a time in seconds since 1970", seconds)
	}
	r.date = time.Unix(unix, 0).UTC()
	changes, err := r.git(ctx, "status", "--porcelain", "--untracked-files=no")
	if err != nil {
		return nil, err
	}
	if r.version == "" {
		// The tag of the commit; else what `go build` calls a commit without one.
		tag, _ := r.git(ctx, "describe", "--tags", "--exact-match", "--match", "v[0-9]*")
		if r.version = strings.TrimSpace(tag); !versionPattern.MatchString(r.version) {
			r.version = fmt.Sprintf("v0.0.0-%s-%.12s", r.date.Format("20060102150405"), hash)
		}
		if changes != "" {
			r.version += "+dirty"
		}
	} else if changes != "" {
		return nil, fmt.Errorf("version %s is to be built from files that differ from the commit: commit them, or leave the version out:\n%s", version, changes)
	}
	return r, nil
}

// plainVersion is the version as file names and packages have it: 1.2.3.
func (r *release) plainVersion() string { return strings.TrimPrefix(r.version, "v") }

// numbers are the three numbers of the version.
func (r *release) numbers() (n [4]uint16) {
	for i, s := range versionPattern.FindStringSubmatch(r.version)[1:4] {
		v, _ := strconv.ParseUint(s, 10, 16)
		n[i] = uint16(v)
	}
	return n
}

func (r *release) git(ctx context.Context, args ...string) (string, error) {
	return output(ctx, r.root, nil, "git", args...)
}

// copySource copies the files that git tracks to a directory below stage. What else lies in the checkout does not get into a
// release, and what the build adds does not get into the checkout.
func (r *release) copySource(ctx context.Context, stage string) (string, error) {
	list, err := r.git(ctx, "ls-files", "-z")
	if err != nil {
		return "", err
	}
	src := filepath.Join(stage, "src")
	for name := range strings.SplitSeq(strings.TrimSuffix(list, "\x00"), "\x00") {
		data, err := os.ReadFile(filepath.Join(r.root, filepath.FromSlash(name)))
		if errors.Is(err, fs.ErrNotExist) { // deleted, and not committed so
			continue
		}
		if err != nil {
			return "", err
		}
		to := filepath.Join(src, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(to), 0o777); err != nil {
			return "", err
		}
		if err := os.WriteFile(to, data, 0o666); err != nil {
			return "", err
		}
	}
	return src, nil
}

// output runs a program in dir and returns what it prints. The environment is this process's with env added.
func output(ctx context.Context, dir string, env []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(errs.Bytes()))
	}
	return out.String(), nil
}

// writeOut makes dir anew with the files in it. A directory that holds something else is left alone.
func writeOut(dir string, files []file) error {
	if len(files) == 0 {
		return errors.New("there is nothing to write")
	}
	old, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range old {
		if e.IsDir() || !strings.HasPrefix(e.Name(), program) && e.Name() != sumsFile {
			return fmt.Errorf("%s holds %q, which is no file of a release: name another directory", dir, e.Name())
		}
	}
	for _, e := range old {
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(dir, f.name), f.data, 0o666); err != nil {
			return err
		}
	}
	return nil
}
