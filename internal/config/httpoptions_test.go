package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const bcryptLine = "ann:$2y$05$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234"

// crowd is a file of so many users.
func crowd(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%c%02d%s\n", 'a', i, strings.TrimPrefix(bcryptLine, "ann"))
	}
	return b.String()
}

func TestHTTPOptions(t *testing.T) {
	dir := t.TempDir()
	users := write(t, filepath.Join(dir, "users"), "# who may come in\n"+bcryptLine+"\n\nbob:$argon2id$v=19$m=65536,t=3,p=4$c2FsdHNhbHQ$c3Vtc3Vtc3Vtc3Vtc3Vtc3Vt\n")
	if err := os.Chmod(users, 0o600); err != nil {
		t.Fatal(err)
	}
	path := write(t, filepath.Join(dir, "bridge.toml"), `
[[expose]]
public = "http/app.example.com/api"
target = 8080
h2c = true
host_header = "app.lan:8080"
set_header = { X-Stage = "test", x-empty = "" }
remove_header = ["Cookie"]
trusted_proxies = ["192.0.2.0/24", "2001:db8::1"]
basic_auth_file = "users"
answer_time = "1d"
inspect = true
`)
	b, _, err := bridgeOf(path)
	if err != nil {
		t.Fatal(err)
	}
	o := b.Expose[0].Options.Proxy
	if !o.H2C || !o.Inspect || o.HostHeader != "app.lan:8080" || len(o.SetHeader) != 2 || o.SetHeader["X-Stage"] != "test" || len(o.RemoveHeader) != 1 ||
		len(o.TrustedProxies) != 2 || o.TrustedProxies[1].String() != "2001:db8::1/128" || len(o.BasicAuth) != 2 || o.BasicAuth[0] != bcryptLine || time.Duration(o.AnswerTime) != 24*time.Hour {
		t.Errorf("options %+v", o)
	}
	if len(b.others) != 1 || b.others[0] != users {
		t.Errorf("files that are watched: %q, want %q", b.others, users)
	}
	for options, want := range map[string]string{
		"h2c = 1":                                                           "neither true nor false",
		"host_header = \"a b\"":                                             "host name",
		"host_header = 1":                                                   "no text",
		"set_header = \"X: y\"":                                             "no table",
		"set_header = { X = 1 }":                                            "no text",
		"set_header = { Host = \"a\" }":                                     "host_header",
		"set_header = { Transfer-Encoding = \"x\" }":                        "about the connection",
		"set_header = { \"X Y\" = \"x\" }":                                  "no name of a header",
		"set_header = { X = \"a\\r\\nB: c\" }":                              "control character",
		"set_header = { X-A = \"1\", x-a = \"2\" }":                         `"X-A" and "x-a" are one header`,
		"remove_header = [\"x\"]\nset_header = { X = \"1\" }":               `"x" is in set_header too`,
		"remove_header = \"X\"":                                             "no list",
		"remove_header = [\"Content-Length\"]":                              "about the connection",
		"trusted_proxies = [\"192.0.2.1/24\"]":                              "192.0.2.0/24",
		"trusted_proxies = [\"proxy.lan\"]":                                 "no IP address",
		"basic_auth_file = \"missing\"":                                     "make it with `htpasswd",
		"basic_auth_file = \"empty\"":                                       "names nobody",
		"basic_auth_file = \"md5\"":                                         "MD5 and SHA-1",
		"basic_auth_file = \"plain\"":                                       "bcrypt",
		"basic_auth_file = \"costly\"":                                      "seconds for each password",
		"basic_auth_file = \"huge\"":                                        "costs the proxy too much",
		"basic_auth_file = \"twice\"":                                       "twice",
		"basic_auth_file = \"writable\"":                                    "can write",
		"basic_auth_file = \"pasted\"":                                      `pasted:2: user "bob": the hash has "!" in it, which bcrypt does not write: nobody could log in`,
		"basic_auth_file = \"joined\"":                                      `joined:2: the name begins with a byte order mark`,
		"basic_auth_file = \"crowd\"":                                       "may be 2560 bytes long, and here it is 2696: the 40 users of this file take 2694 of them: keep some 30 users",
		"set_header = { X = \"" + strings.Repeat("x", 2600) + "\" }":        "these headers take",
		"remove_header = [\"" + strings.Repeat("x", 2600) + "\"]":           "these names take",
		"trusted_proxies = [" + strings.Repeat("\"192.0.2.1\",", 200) + "]": "write networks",
		"inspect = \"yes\"":                                                 "neither true nor false",
		"answer_time = \"5\"":                                               "no unit",
		"answer_time = \"-5s\"":                                             "negative",
		"answer_time = 5":                                                   `answer_time: "5" has no unit: write a number with ms, s, m, h or d, such as "5m" or "30s"`,
		"answer_time = true":                                                "answer_time: the value is no text: write it in quotes",
		"answer_time = \"0s\"":                                              "not between 1ms and 1000h",
		"answer_time = \"42d\"":                                             "not between 1ms and 1000h",
	} {
		for name, text := range map[string]string{
			"empty": "# nobody\n", "md5": "ann:$apr1$x$y", "plain": "ann:secret", "costly": strings.Replace(bcryptLine, "$05$", "$20$", 1),
			"huge": "ann:$argon2id$v=19$m=4194304,t=3,p=4$c2FsdHNhbHQ$c3Vtc3Vtc3Vtc3Vtc3Vtc3Vt", "twice": bcryptLine + "\n" + bcryptLine, "writable": bcryptLine,
			"crowd": crowd(40), "pasted": bcryptLine + "\n" + strings.NewReplacer("ann", "bob", "k", "!").Replace(bcryptLine), "joined": "\ufeff" + bcryptLine + "\n\ufeff" + strings.Replace(bcryptLine, "ann", "bob", 1),
		} {
			os.Chmod(write(t, filepath.Join(dir, name), text), map[bool]os.FileMode{true: 0o666, false: 0o600}[name == "writable"])
		}
		if strings.Contains(options, "writable") && os.PathSeparator == '\\' {
			continue // there, access control lists decide
		}
		_, _, err := bridgeOf(write(t, filepath.Join(dir, "bad.toml"), "[[expose]]\npublic = \"http/a\"\ntarget = 80\n"+options+"\n"))
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), ":4: ") {
			t.Errorf("%s: %v; want line 4 and %q", options, err, want)
		} else if strings.HasPrefix(options, "answer_time") && strings.Count(err.Error(), "write ") > 1 {
			t.Errorf("%s: %v; want the remedy once", options, err)
		}
	}
	// Notepad begins a file with a mark, and ends lines with CR LF.
	os.Chmod(write(t, filepath.Join(dir, "notepad"), "\ufeff"+bcryptLine+"\r\n"), 0o600)
	if b, _, err := bridgeOf(write(t, filepath.Join(dir, "notepad.toml"), "[[expose]]\npublic = \"http/a\"\ntarget = 80\nbasic_auth_file = \"notepad\"\n")); err != nil || len(b.Expose[0].Options.Proxy.BasicAuth) != 1 || b.Expose[0].Options.Proxy.BasicAuth[0] != bcryptLine {
		t.Errorf("a file of Notepad's: %+v, %v", b.Expose, err)
	}
	// 37 users with names of three letters fit: docs/NAMES.md says "some 30", since names may be longer.
	for n, fits := range map[int]bool{30: true, 37: true, 38: false} {
		os.Chmod(write(t, filepath.Join(dir, "crowd"), crowd(n)), 0o600)
		_, _, err := bridgeOf(write(t, filepath.Join(dir, "crowd.toml"), "[[expose]]\npublic = \"http/a\"\ntarget = 80\nbasic_auth_file = \"crowd\"\n"))
		if (err == nil) != fits {
			t.Errorf("%d users: %v", n, err)
		}
	}
	_, _, err = bridgeOf(write(t, filepath.Join(dir, "bad.toml"), "[[expose]]\npublic = 9000\nh2c = true\n"))
	if err == nil || !strings.Contains(err.Error(), "this is for services of http/, https/, and tcp/9000 is none") {
		t.Errorf("h2c of a port: %v", err)
	}
}
