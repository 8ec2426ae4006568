package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"
)

// inUTF16 is text as Notepad saves it as "UTF-16 LE", and PowerShell's > too.
func inUTF16(text string) string {
	b := []byte{0xff, 0xfe}
	for _, u := range utf16.Encode([]rune(text)) {
		b = append(b, byte(u), byte(u>>8))
	}
	return string(b)
}

// TestFilesAsEditorsSaveThem: what Notepad makes of a file is read, or refused with what to do; names and directories are Chinese, with
// spaces.
func TestFilesAsEditorsSaveThem(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "语音 识别 服务")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	port, link := serve(t, echo), freePort(t)
	absolute := func(role, path string) string { // as the role's program knows it
		if onWine(role) {
			return "Z:" + path
		}
		return path
	}
	proxyText := fmt.Sprintf("# 代理\nlisten = %q\nstate = %q\nlog_format = \"json\"\n", loopback(link), absolute("proxy", filepath.Join(dir, "代理 状态")))
	crlf := strings.NewReplacer("\n", "\r\n")
	saved := map[string]func(string) string{
		"as UTF-8":             func(s string) string { return s },
		"with CRLF":            crlf.Replace,
		"as UTF-8 with BOM":    func(s string) string { return "\ufeff" + crlf.Replace(s) },
		"as UTF-16 LE":         func(s string) string { return inUTF16(crlf.Replace(s)) },
		"without its last end": func(s string) string { return strings.TrimSuffix(s, "\n") },
	}
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for how, save := range saved {
		if p := startReverser(t, "check", nil, "check", write("代理 "+how+".toml", save(proxyText))); p.awaitEnd() != 0 {
			t.Errorf("check of a file that was saved %s: %s", how, p.Stderr.String())
		}
	}
	// In the code page of a Chinese Windows, which nothing in the file names.
	gbk := strings.Replace(proxyText, "代理", "\xb4\xfa\xc0\xed", 1)
	if p := startReverser(t, "check", nil, "check", write("gbk.toml", gbk)); p.awaitEnd() != 2 || !strings.Contains(p.Stderr.String(), "UTF-8") {
		t.Errorf("check of a GBK file: %q; want exit code 2 and a word about UTF-8", p.Stderr.String())
	}

	// All of it at once: both run from such files, with such state directories and a token file.
	state := filepath.Join(dir, "代理 状态")
	p := &proxyProcess{state: state, link: link}
	roles.Store(state, "proxy")
	p.testProcess = startReverser(t, "proxy", nil, "proxy", "--config", write("代理.toml", saved["as UTF-16 LE"](proxyText)))
	p.awaitReady()
	public := freePort(t)
	token := write("令牌.txt", inUTF16(p.defaultToken()+"\r\n"))
	b := &bridgeProcess{state: filepath.Join(dir, "网桥 状态")}
	roles.Store(b.state, "bridge")
	b.testProcess = startReverser(t, "bridge", nil, "bridge", "--config", write("网桥.toml", saved["as UTF-8 with BOM"](fmt.Sprintf(
		"token_file = %q\nstate = %q\nlog_format = \"json\"\n[[expose]]\npublic = \"%d\"\ntarget = \"%d\"\n", absolute("bridge", token), absolute("bridge", b.state), public, port))))
	b.awaitUp(fmt.Sprintf("tcp/%d", public))
	exchange(t, dial(t, loopback(public)), "你好")
}
