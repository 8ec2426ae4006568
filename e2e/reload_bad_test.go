package e2e

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
)

// TestReloadBadFiles: a file that cannot be applied changes nothing, whatever is wrong with it. The order is answered with what is wrong and
// where, status keeps it, and both the connections and the settings of before go on.
func TestReloadBadFiles(t *testing.T) {
	t.Parallel()
	public, other := freePort(t), freePort(t)
	target := serve(t, echo)
	proxyText := keyTable("main", public, other)
	bridgeText := exposeTable(public, target)
	c := startConfigured(t, proxyText, bridgeText, "main", "spare")
	c.bridge.awaitUp(fmt.Sprintf("tcp/%d", public))
	conn := dial(t, loopback(public))
	exchange(t, conn, "before")

	good := map[string]string{"proxy": proxyText, "bridge": c.bridgeText("main", bridgeText)}
	place := map[string]struct{ file, state string }{"proxy": {c.proxyFile, c.proxy.state}, "bridge": {c.bridgeFile, c.bridge.state}}
	write := func(text string) func(file string) {
		return func(file string) { c.write(file, text) }
	}
	type kind struct {
		side, what string
		spoil      func(file string)
		want       string // in the answer, behind the file's name
	}
	var kinds []kind
	for side, text := range good {
		for what, k := range map[string]struct {
			text, want string
		}{
			"an unknown key":   {"lisen = 3010\n" + text, ":1: lisen: "},
			"a wrong type":     {"drain = [1, 2]\n" + text, ":1: drain: "},
			"a bad value":      {"log_level = \"loud\"\n" + text, ":1: log_level: "},
			"a file cut short": {text + "\ndrain = ", ": "},
			"an open string":   {"log_level = \"info\n" + text, ":1"},
			"a key twice":      {"drain = \"1s\"\ndrain = \"2s\"\n" + text, ":2"},
			"bytes of no text": {"\x00\x01\xff\xfe\xfa" + text, ""},
			"no text but XML":  {"<configuration><appSettings>", ""},
		} {
			kinds = append(kinds, kind{side, what, write(k.text), k.want})
		}
		kinds = append(kinds,
			kind{side, "the other role's file", write(good[map[string]string{"proxy": "bridge", "bridge": "proxy"}[side]]), ""},
			kind{side, "no file", func(file string) { os.Remove(file) }, ""},
			kind{side, "a folder", func(file string) { os.Remove(file); os.Mkdir(file, 0o700) }, ""})
		if runtime.GOOS != "windows" {
			kinds = append(kinds, kind{side, "a file that all can write", func(file string) { c.write(file, text); os.Chmod(file, 0o666) }, ""})
		}
	}
	kinds = append(kinds,
		kind{"proxy", "a transfer port", write(fmt.Sprintf("transfer = %d\n", other) + proxyText), ":1: transfer: a change from none"},
		kind{"proxy", "a port out of range", write(strings.Replace(proxyText, fmt.Sprint(other), "70000", 1)), "70000"},
		kind{"bridge", "a port out of range", write(c.bridgeText("main", exposeTable(70000, target))), ":4: "},
		kind{"bridge", "another keepalive", write("keepalive = \"50s\"\n" + good["bridge"]), ":1: keepalive: a change from "},
		kind{"proxy", "a key without its file", write(keyTable("nobody", public)), ":3: secret_file: "},
		kind{"proxy", "two keys of one name", write(proxyText + keyTable("main", other)), "two keys with the name"},
		kind{"proxy", "a key without rights", write(strings.Replace(proxyText, "allow = ", "#allow = ", 1)), "allow: "},
		kind{"proxy", "a right that is none", write(strings.Replace(proxyText, "tcp/", "tpc/", 1)), "allow: "},
		kind{"bridge", "no service", write(c.bridgeText("main", "")), "nothing to expose"},
		kind{"bridge", "a name twice", write(c.bridgeText("main", bridgeText+exposeTable(public, target))), "given twice"},
		kind{"bridge", "names that overlap", write(c.bridgeText("main", bridgeText+fmt.Sprintf("[[expose]]\npublic = \"tcp/127.0.0.1:%d\"\ntarget = 1\n", public))), "overlap"},
		kind{"bridge", "a target that is none", write(c.bridgeText("main", fmt.Sprintf("[[expose]]\npublic = %d\ntarget = \"nowhere\"\n", public))), "target \"nowhere\" has no port"},
		kind{"bridge", "another token", write(c.bridgeText("spare", bridgeText)), "another token needs a restart"},
		kind{"bridge", "a token that is none", write("token = \"rv1_x\"\nproxy = \"127.0.0.1\"\n" + bridgeText), ":1: token: "},
		kind{"bridge", "another proxy", write(strings.Replace(good["bridge"], "127.0.0.1", "127.0.0.2", 1)), "proxy: a change from "})

	for _, k := range kinds {
		p := place[k.side]
		k.spoil(p.file)
		_, err := reload(p.state)
		switch {
		case err == nil:
			t.Errorf("%s, %s: it was taken", k.side, k.what)
		case !strings.Contains(err.Error(), k.want):
			t.Errorf("%s, %s: the answer is %q; want one with %q", k.side, k.what, err, k.want)
		}
		if st := mustStatus(t, p.state); st.Reload == nil || st.Reload.Error == "" {
			t.Errorf("%s, %s: status says %+v of the reload; want the error", k.side, k.what, st.Reload)
		}
		exchange(t, conn, k.what)
		exchange(t, dial(t, loopback(public)), k.what)
		os.Remove(p.file)
		c.write(p.file, good[k.side])
		c.mustReload(p.state)
	}
	for side, p := range place {
		st := mustStatus(t, p.state)
		if len(st.Services) != 1 || st.Services[0].Public != fmt.Sprintf("tcp/%d", public) || len(st.Links) != 1 || st.Links[0].Resumes != 0 {
			t.Errorf("the %s ends with %+v and %+v; want what it began with", side, st.Services, st.Links)
		}
	}
	t.Logf("%d kinds", len(kinds))
}
