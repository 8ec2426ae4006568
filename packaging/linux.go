package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"embed"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/goreleaser/nfpm/v2"
	"github.com/goreleaser/nfpm/v2/deb"
	"github.com/goreleaser/nfpm/v2/files"
	"github.com/goreleaser/nfpm/v2/rpm"
)

//go:embed scripts
var scripts embed.FS

// instance stands in a unit where its name goes, until it is a template.
const instance = "INSTANCE"

// units are the templates of services that packages bring. Their text is that of `reverser service install`.
func (r *release) units(ctx context.Context, src string) (units []file, err error) {
	if runtime.GOOS != "linux" {
		return nil, errors.New("packages are made on Linux, where the program knows systemd: name other platforms with -platforms")
	}
	exe := r.built(src, platform{runtime.GOOS, runtime.GOARCH})
	dir, err := os.MkdirTemp("", "reverser-units-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	token, err := output(ctx, dir, nil, exe, "key", "add", "any", "--allow", "tcp/9000", "--state", filepath.Join(dir, "state"))
	if err != nil {
		return nil, err
	}
	for name, text := range map[string]string{
		"token": token, "bridge-" + instance + ".toml": "proxy = \"127.0.0.1\"\n[[expose]]\npublic = 9000\n", "proxy-" + instance + ".toml": "\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	for role, more := range map[string][]string{
		"bridge": {"--token-file", filepath.Join(dir, "token")},
		"proxy":  {"--low-ports"}, // which ports there will be is not known here
	} {
		args := []string{"service", "install", role, "--dry-run", "--state", "/var/lib/reverser/" + role + "-" + instance,
			"--config", filepath.Join(dir, role+"-"+instance+".toml")}
		plan, err := output(ctx, dir, nil, exe, append(args, more...)...)
		if err != nil {
			return nil, err
		}
		text, err := unitTemplate(role, plan, exe, dir)
		if err != nil {
			return nil, err
		}
		units = append(units, file{name: "/usr/lib/systemd/system/reverser-" + role + "@.service", data: []byte(text)})
	}
	return byName(units), nil
}

// unitTemplate makes a template of what `service install --dry-run` printed for exe with a configuration file in dir.
func unitTemplate(role, plan, exe, dir string) (string, error) {
	head := "# /etc/systemd/system/reverser-" + role + ".service\n# Made by "
	unit, ok := strings.CutPrefix(plan, head)
	if !ok {
		return "", fmt.Errorf("the plan of a service begins differently now:\n%s", plan)
	}
	_, unit, _ = strings.Cut(unit, "\n")
	unit, _, ok = strings.Cut(unit, "WantedBy=multi-user.target\n")
	if !ok {
		return "", fmt.Errorf("the plan of a service ends differently now:\n%s", plan)
	}
	unit += "WantedBy=multi-user.target\n"
	needs := []string{"/etc/reverser/" + role + "-%i.toml"}
	for _, change := range []struct {
		old, new string
		when     bool
	}{
		{exe, "/usr/bin/" + program, true},
		{dir, "/etc/reverser", true},
		{"/etc/reverser/" + role + ".token", "/etc/reverser/" + role + "-" + instance + ".token", role == "bridge"},
		{"Description=reverser " + role, "Description=reverser " + role + " " + instance, true},
		{instance, "%i", true},
	} {
		if !change.when {
			continue
		}
		if !strings.Contains(unit, change.old) {
			return "", fmt.Errorf("the unit of a service has no %q:\n%s", change.old, unit)
		}
		unit = strings.ReplaceAll(unit, change.old, change.new)
	}
	if role == "bridge" {
		needs = append(needs, "/etc/reverser/bridge-%i.token")
	}
	what := strings.ReplaceAll(strings.Join(needs, " and "), "%i", "NAME")
	unit, ok = strings.CutPrefix(unit, "[Unit]\n")
	if !ok {
		return "", fmt.Errorf("the unit of a service begins differently now:\n%s", unit)
	}
	return "# systemctl enable --now reverser-" + role + "@NAME runs a " + role + " as " + what + " say.\n" +
		"# For changes of your own: systemctl edit reverser-" + role + "@\n" +
		"[Unit]\nAssertPathExists=" + strings.Join(needs, "\nAssertPathExists=") + "\n" + unit, nil
}

// manual is a page of the manual, made of what the program says of itself.
func (r *release) manual(ctx context.Context, src string) (file, error) {
	exe := r.built(src, platform{runtime.GOOS, runtime.GOARCH})
	var b strings.Builder
	fmt.Fprintf(&b, ".TH REVERSER 1 %q %q\n.SH NAME\n%s \\- %s\n", r.date.Format("2006-01-02"), program+" "+r.plainVersion(), program, roff(strings.ToLower(summary[:1])+summary[1:]))
	fmt.Fprint(&b, ".SH SYNOPSIS\n.B reverser\n.I command\n[\\fIoptions\\fR]\n")
	for _, command := range []string{
		"", "proxy", "bridge", "key", "key add", "key list", "key remove", "status", "reload", "notify", "inspect", "check",
		"service", "service install proxy", "service install bridge", "service uninstall", "service start", "service stop", "service status", "demo",
	} {
		help, err := output(ctx, src, nil, exe, append(strings.Fields(command), "--help")...)
		if err != nil {
			return file{}, err
		}
		title := strings.ToUpper(command)
		if command == "" {
			title = "DESCRIPTION"
		}
		fmt.Fprintf(&b, ".SH %s\n.nf\n%s\n.fi\n", title, roff(strings.TrimSpace(help)))
	}
	fmt.Fprint(&b, ".SH FILES\n.nf\n"+roff(`/etc/reverser/ROLE-NAME.toml        of the service reverser-ROLE@NAME; examples in /usr/share/doc/reverser/examples
/etc/reverser/bridge-NAME.token     of the service reverser-bridge@NAME, mode 0600
/var/lib/reverser/ROLE-NAME         its state directory`)+"\n.fi\n.SH SEE ALSO\n.I /usr/share/doc/reverser/README.md\n")
	data, err := gzipped([]byte(b.String()))
	return file{name: "/usr/share/man/man1/reverser.1.gz", data: data}, err
}

// roff escapes a text for the manual.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`, "…", "...").Replace(s)
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}

func gzipped(data []byte) ([]byte, error) {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// packages makes the deb and the rpm of a platform. content is what an archive has, system what only a package has.
func (r *release) packages(p platform, base string, content, system []file) (made []file, err error) {
	dir, err := os.MkdirTemp("", "reverser-package-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	for _, kind := range []struct {
		name     string
		packager nfpm.Packager
	}{{"deb", deb.Default}, {"rpm", rpm.DefaultRPM}} {
		info := &nfpm.Info{
			Name: program, Arch: p.arch, Platform: "linux", Version: r.plainVersion(), VersionSchema: "semver",
			Section: "net", Priority: "optional", Maintainer: publisher, Vendor: publisher, License: license, MTime: r.date,
			Description: summary + "\nThe proxy runs on a server with a public address, the bridge next to the\nservice. Users' connections travel, encrypted, over a link between the two\nand survive a break of it.",
			Overridables: nfpm.Overridables{
				RPM: nfpm.RPM{BuildHost: "localhost", Summary: summary, Group: "System Environment/Daemons", Packager: publisher},
			},
		}
		if info.Scripts, err = writeScripts(dir); err != nil {
			return nil, err
		}
		for i, f := range append(installed(kind.name, content), system...) {
			from := filepath.Join(dir, fmt.Sprintf("%s-%d", kind.name, i))
			if err := os.WriteFile(from, f.data, 0o666); err != nil {
				return nil, err
			}
			info.Contents = append(info.Contents, &files.Content{Source: from, Destination: f.name,
				FileInfo: &files.ContentFileInfo{Owner: "root", Group: "root", Mode: os.FileMode(f.mode()), MTime: r.date}})
		}
		for _, dir := range directories(info.Contents) {
			info.Contents = append(info.Contents, &files.Content{Type: files.TypeDir, Destination: dir,
				FileInfo: &files.ContentFileInfo{Owner: "root", Group: "root", Mode: 0o755, MTime: r.date}})
		}
		info = nfpm.WithDefaults(info)
		if err := nfpm.PrepareForPackager(info, kind.name); err != nil {
			return nil, err
		}
		var b bytes.Buffer
		if err := kind.packager.Package(info, &b); err != nil {
			return nil, err
		}
		made = append(made, file{name: base + "." + kind.name, data: b.Bytes()})
	}
	return made, nil
}

// everywhere are directories that every system has.
var everywhere = []string{"/", "/etc", "/usr", "/usr/bin", "/usr/lib", "/usr/lib/systemd", "/usr/lib/systemd/system", "/usr/share", "/usr/share/doc", "/usr/share/man", "/usr/share/man/man1"}

// directories are those that a package brings: rpm leaves behind what no package has.
func directories(contents files.Contents) []string {
	// Whoever makes the first key makes what is in /var/lib/reverser, but the users of services must get through it.
	dirs := []string{"/etc/reverser", "/var/lib/reverser"}
	for _, c := range contents {
		for dir := path.Dir(c.Destination); !slices.Contains(everywhere, dir); dir = path.Dir(dir) {
			dirs = append(dirs, dir)
		}
	}
	slices.Sort(dirs)
	return slices.Compact(dirs)
}

// installed says where in a system the files of an archive go.
func installed(kind string, content []file) (all []file) {
	// Debian's places, then those of others.
	zsh, terms := "/usr/share/zsh/vendor-completions/_"+program, "/usr/share/doc/reverser/copyright"
	if kind == "rpm" {
		zsh, terms = "/usr/share/zsh/site-functions/_"+program, "/usr/share/licenses/reverser/LICENSE"
	}
	places := map[string]string{
		program:                           "/usr/bin/" + program,
		"completions/reverser.bash":       "/usr/share/bash-completion/completions/" + program,
		"completions/reverser.fish":       "/usr/share/fish/vendor_completions.d/reverser.fish",
		"completions/reverser.zsh":        zsh,
		"completions/reverser.powershell": "",
		"LICENSE":                         terms,
		"examples/config/proxy.toml":      "/usr/share/doc/reverser/examples/proxy.toml",
		"examples/config/bridge.toml":     "/usr/share/doc/reverser/examples/bridge.toml",
		"CONTRIBUTING.md":                 "",
	}
	for _, f := range content {
		place, ok := places[f.name]
		switch {
		case ok && place == "":
			continue
		case ok:
			f.name = place
		default:
			f.name = "/usr/share/doc/reverser/" + f.name
		}
		all = append(all, f)
	}
	return all
}

func writeScripts(dir string) (s nfpm.Scripts, err error) {
	common, err := scripts.ReadFile("scripts/common.sh")
	if err != nil {
		return s, err
	}
	for name, to := range map[string]*string{"postinstall": &s.PostInstall, "preremove": &s.PreRemove, "postremove": &s.PostRemove} {
		text, err := scripts.ReadFile("scripts/" + name + ".sh")
		if err != nil {
			return s, err
		}
		*to = filepath.Join(dir, name)
		if err := os.WriteFile(*to, append(common[:len(common):len(common)], text...), 0o777); err != nil {
			return s, err
		}
	}
	return s, nil
}
