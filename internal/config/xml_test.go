package config

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// inFolder writes files of a folder and returns the path of the first.
func inFolder(t *testing.T, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	for i := 0; i < len(files); i += 2 {
		path := filepath.Join(dir, filepath.FromSlash(files[i]))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, path, files[i+1])
	}
	return filepath.Join(dir, files[0])
}

func inConfiguration(section string) string {
	return "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<configuration>\n" + section + "\n</configuration>\n"
}

// What another file says holds as it does in .NET.
func TestXMLOtherFile(t *testing.T) {
	const head = "<?xml version=\"1.0\"?>\n<!-- this machine -->\n"
	base := func(attr string) string {
		return inConfiguration("<appSettings " + attr + ">\n" + proxyXML + "</appSettings>")
	}
	for _, c := range []struct {
		name  string
		files []string
		want  string // IcPort, TransferPort, WorkPort
	}{
		{"one value", []string{"p.config", base(`file="x.config"`), "x.config", head + `<appSettings><add key="icPORT" value="4010"/></appSettings>`}, ":4010 :3020 tcp/9000"},
		{"a folder, as Windows writes it", []string{"p.config", base(`file="sub\x.config"`), "sub/x.config", `<appSettings><add key="IcPort" value="4010"/></appSettings>`}, ":4010 :3020 tcp/9000"},
		{"the folder above", []string{"a/p.config", base(`file="../x.config"`), "x.config", `<appSettings><add key="IcPort" value="4010"/></appSettings>`}, ":4010 :3020 tcp/9000"},
		{"a removed value", []string{"p.config", base(`file="x.config"`), "x.config", `<appSettings><remove key="transferport"/></appSettings>`}, ":3010  tcp/9000"},
		{"cleared", []string{"p.config", base(`file="x.config"`), "x.config", `<appSettings><clear/><add key="WorkPort" value="9001"/><add key="IcPort" value="4010"/></appSettings>`}, ":4010  tcp/9001"},
		{"the last of two", []string{"p.config", base(`file="x.config"`), "x.config", `<appSettings><add key="IcPort" value="4010"/><add key="IcPort" value="4011"/></appSettings>`}, ":4011 :3020 tcp/9000"},
		{"UTF-16", []string{"p.config", base(`file="x.config"`), "x.config", encodings(`<appSettings><add key="IcPort" value="4010"/></appSettings>`)["UTF-16 little-endian"]}, ":4010 :3020 tcp/9000"},
		{"nothing in it", []string{"p.config", base(`file="x.config"`), "x.config", "<appSettings/>"}, ":3010 :3020 tcp/9000"},
		{"no name", []string{"p.config", base(`file=""`)}, ":3010 :3020 tcp/9000"},
		{"no file", []string{"p.config", base(`file="x.config"`)}, ":3010 :3020 tcp/9000"},
		{"the whole section", []string{"p.config", inConfiguration(`<appSettings configSource="x.config"/>`), "x.config", head + "<appSettings>" + proxyXML + "</appSettings>"}, ":3010 :3020 tcp/9000"},
		{"the whole section, with a file", []string{"p.config", inConfiguration(`<appSettings configSource="sub\x.config"/>`), "sub/x.config", `<appSettings file="y.config">` + proxyXML + "</appSettings>", "sub/y.config", `<appSettings><add key="IcPort" value="4010"/></appSettings>`}, ":4010 :3020 tcp/9000"},
		{"another section from a file", []string{"p.config", inConfiguration(`<connectionStrings configSource="none.config"/><appSettings>` + proxyXML + "</appSettings>")}, ":3010 :3020 tcp/9000"},
	} {
		p, _, err := proxyOf(inFolder(t, c.files...))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got := fmt.Sprintf("%s %s %s", p.Listen, p.Transfer, p.Offer[0]); got != c.want {
			t.Errorf("%s: %s; want %s", c.name, got, c.want)
		}
	}

	// What is wrong is said where it stands, and so is where a value comes from.
	path := inFolder(t, "p.config", base(`file="x.config"`), "x.config", "<appSettings>\n\n<add key='IcPort' value='0x'/>\n</appSettings>")
	_, _, err := proxyOf(path)
	want(t, "a bad port in the other file", err, filepath.Join(filepath.Dir(path), "x.config")+":3: IcPort", `"0x"`)
	write(t, filepath.Join(filepath.Dir(path), "x.config"), "<appSettings>\n<add key='IcPort' value='4010'/></appSettings>")
	p, _, err := proxyOf(path)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := p.origin["listen"], (Place{filepath.Join(filepath.Dir(path), "x.config"), 2, "IcPort"}); got != want {
		t.Errorf("origin of listen = %v; want %v", got, want)
	}
	write(t, filepath.Join(filepath.Dir(path), "x.config"), "<appSettings>\n<add key='RealServerPort' value='4010'/></appSettings>")
	_, _, err = proxyOf(path)
	want(t, "a key of the other role in the other file", err, "x.config:2: RealServerPort", "a bridge's")
}

func TestXMLOtherFileErrors(t *testing.T) {
	file := inConfiguration("<appSettings file=\"x.config\">" + proxyXML + "</appSettings>")
	source := inConfiguration(`<appSettings configSource="x.config"/>`)
	for _, c := range []struct {
		name  string
		files []string
		words []string
	}{
		{"no such source", []string{"p.config", source}, []string{"p.config:3: configSource", "x.config", "check the path"}},
		{"a source elsewhere", []string{"a/p.config", inConfiguration(`<appSettings configSource="..\x.config"/>`), "x.config", "<appSettings/>"}, []string{"p.config:3: configSource", "not in the folder", "move that file"}},
		{"settings beside a source", []string{"p.config", inConfiguration(`<appSettings configSource="x.config">` + proxyXML + "</appSettings>"), "x.config", "<appSettings/>"}, []string{"p.config:3: configSource", "beside it"}},
		{"a file beside a source", []string{"p.config", inConfiguration(`<appSettings configSource="x.config" file="y.config"/>`), "x.config", "<appSettings/>"}, []string{"p.config:3: configSource", "beside it"}},
		{"a source of a source", []string{"p.config", source, "x.config", `<appSettings configSource="y.config"/>`}, []string{"x.config:1: configSource", "write the settings here"}},
		{"an encrypted source", []string{"p.config", source, "x.config", `<appSettings configProtectionProvider="p"/>`}, []string{"x.config:1: the section is encrypted"}},
		{"an encrypted file", []string{"p.config", file, "x.config", `<appSettings><EncryptedData/></appSettings>`}, []string{"x.config:1: the section is encrypted"}},
		{"another root", []string{"p.config", file, "x.config", inConfiguration("<appSettings>" + proxyXML + "</appSettings>")}, []string{"x.config:2: this is not one <appSettings>", "file has it in p.config", "without <configuration>"}},
		{"no root", []string{"p.config", file, "x.config", proxyXML}, []string{"x.config:3: this is not one <appSettings>"}},
		{"an empty file", []string{"p.config", file, "x.config", ""}, []string{"x.config: this is not one <appSettings>"}},
		{"two roots", []string{"p.config", file, "x.config", "<appSettings/>\n<appSettings/>"}, []string{"x.config:2: this is not one <appSettings>"}},
		{"words behind it", []string{"p.config", file, "x.config", "<appSettings/>\nwords"}, []string{"x.config:1: this is not one <appSettings>"}},
		{"a file of a file", []string{"p.config", file, "x.config", `<appSettings file="y.config"/>`}, []string{"x.config:1: <appSettings> has the attribute file"}},
		{"no XML", []string{"p.config", file, "x.config", "<appSettings>\n<add"}, []string{"x.config:2: this is not XML"}},
		{"GBK", []string{"p.config", file, "x.config", "<appSettings>\n<!-- \xb9\xa4 --></appSettings>"}, []string{"x.config:2: this is not UTF-8", "Notepad"}},
		{"a token", []string{"p.config", inConfiguration(`<appSettings file="` + testToken(1).Encode() + `"/>`)}, []string{"p.config:3: file", "the value is a token"}},
		{"a path of another machine", []string{"p.config", inConfiguration(`<appSettings file="C:\app\x.config"/>`)}, []string{"p.config:3: file", `C:\\app`, "copy that file"}},
		{"a share", []string{"p.config", inConfiguration(`<appSettings file="\\nas\app\x.config"/>`)}, []string{"p.config:3: file", "copy that file"}},
	} {
		if runtime.GOOS == "windows" && strings.Contains(c.words[len(c.words)-1], "copy that file") {
			continue // the path is one of this machine
		}
		_, _, err := Check(inFolder(t, c.files...))
		want(t, c.name, err, c.words...)
	}
	if runtime.GOOS == "windows" {
		return // a file's mode says nothing there
	}
	path := inFolder(t, "p.config", file, "x.config", "<appSettings/>")
	other := filepath.Join(filepath.Dir(path), "x.config")
	if err := os.Chmod(other, 0o666); err != nil {
		t.Fatal(err)
	}
	_, _, err := Check(path)
	want(t, "a file that others can write", err, other+": others on this machine can write it", "chmod go-w "+other)
}

// A change of the other file is noticed, and that it comes and goes.
func TestWatchOtherFile(t *testing.T) {
	path := inFolder(t, "p.config", inConfiguration("<appSettings file=\"x.config\">"+proxyXML+"</appSettings>"), "x.config", "<appSettings/>")
	other := filepath.Join(filepath.Dir(path), "x.config")
	watchReal(t, NewProxySource(ProxyArgs{Config: path}), func(next func(string)) {
		write(t, other, `<appSettings><add key="IcPort" value="4001"/></appSettings>`)
		next(":4001")
		write(t, other, `<appSettings><add key="IcPort" value="4002"/></appSettings>`)
		next(":4002")
		write(t, other, "<appSettings>")
		next("")
		write(t, other, `<appSettings><add key="IcPort" value="4003"/></appSettings>`)
		next(":4003")
		if err := os.Remove(other); err != nil {
			t.Fatal(err)
		}
		next(":3010")
	})
}
