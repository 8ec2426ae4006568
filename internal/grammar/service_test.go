package grammar

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func TestParsePublic(t *testing.T) {
	for in, want := range map[string]struct {
		public          Public
		text            string
		network, listen string
	}{
		"9000":                   {Public{KindTCP, "", 9000, ""}, "tcp/9000", "tcp", ":9000"},
		"tcp/1":                  {Public{KindTCP, "", 1, ""}, "tcp/1", "tcp", ":1"},
		"tcp/65535":              {Public{KindTCP, "", 65535, ""}, "tcp/65535", "tcp", ":65535"},
		"127.0.0.1:9000":         {Public{KindTCP, "127.0.0.1", 9000, ""}, "tcp/127.0.0.1:9000", "tcp4", "127.0.0.1:9000"},
		"tcp/0.0.0.0:9000":       {Public{KindTCP, "0.0.0.0", 9000, ""}, "tcp/0.0.0.0:9000", "tcp4", "0.0.0.0:9000"},
		"tcp/[::1]:9000":         {Public{KindTCP, "::1", 9000, ""}, "tcp/[::1]:9000", "tcp6", "[::1]:9000"},
		"tcp/[0:0::0:1]:9000":    {Public{KindTCP, "::1", 9000, ""}, "tcp/[::1]:9000", "tcp6", "[::1]:9000"},
		"tcp/[::ffff:1.2.3.4]:9": {Public{KindTCP, "1.2.3.4", 9, ""}, "tcp/1.2.3.4:9", "tcp4", "1.2.3.4:9"},
		"tcp/[fe80::1%eth0]:9":   {Public{KindTCP, "fe80::1%eth0", 9, ""}, "tcp/[fe80::1%eth0]:9", "tcp6", "[fe80::1%eth0]:9"},
		"udp/53":                 {Public{KindUDP, "", 53, ""}, "udp/53", "udp", ":53"},
		"http/App.Example.COM.":  {Public{KindHTTP, "app.example.com", 0, ""}, "http/app.example.com", "", ""},
		"http/a.b/C/d~1/":        {Public{KindHTTP, "a.b", 0, "/C/d~1"}, "http/a.b/C/d~1", "", ""},
		"http/a.b/":              {Public{KindHTTP, "a.b", 0, ""}, "http/a.b", "", ""},
		"http/*/v2":              {Public{KindHTTP, "*", 0, "/v2"}, "http/*/v2", "", ""},
		"http/*.B.c/x":           {Public{KindHTTP, "*.b.c", 0, "/x"}, "http/*.b.c/x", "", ""},
		"http/203.0.113.7/x":     {Public{KindHTTP, "203.0.113.7", 0, "/x"}, "http/203.0.113.7/x", "", ""},
		"https/[2001:DB8:0::1]":  {Public{KindHTTPS, "2001:db8::1", 0, ""}, "https/[2001:db8::1]", "", ""},
		"https/2001:db8::1/x":    {Public{KindHTTPS, "2001:db8::1", 0, "/x"}, "https/[2001:db8::1]/x", "", ""},
		"http/[::ffff:1.2.3.4]":  {Public{KindHTTP, "1.2.3.4", 0, ""}, "http/1.2.3.4", "", ""},
		"http/a/%e6%96%87":       {Public{KindHTTP, "a", 0, "/%E6%96%87"}, "http/a/%E6%96%87", "", ""},
		"http/a/_x.y/z-1":        {Public{KindHTTP, "a", 0, "/_x.y/z-1"}, "http/a/_x.y/z-1", "", ""},
		"https/a":                {Public{KindHTTPS, "a", 0, ""}, "https/a", "", ""},
		"tls/my_host.lan":        {Public{KindTLS, "my_host.lan", 0, ""}, "tls/my_host.lan", "", ""},
		"private/DB":             {Public{KindPrivate, "db", 0, ""}, "private/db", "", ""},
		"offered":                {Public{KindOffered, "", 0, ""}, "offered", "", ""},
	} {
		got, err := ParsePublic(in)
		if err != nil || got != want.public || got.String() != want.text {
			t.Errorf("ParsePublic(%q) = %#v (%s), %v; want %#v (%s)", in, got, got, err, want.public, want.text)
		}
		if n, l := got.ListenNetwork(), got.ListenAddr(); n != want.network || l != want.listen {
			t.Errorf("ParsePublic(%q) listens on %q %q; want %q %q", in, n, l, want.network, want.listen)
		}
		if again, err := ParsePublic(got.String()); err != nil || again != got {
			t.Errorf("ParsePublic(%q) = %v, %v; want the same again", got, again, err)
		}
	}
}

// badPorts must be refused in every place that takes a port, and named there.
var badPorts = []string{"90x0", "0", "65536", "-1", "0x50", "80abc", "+80", "080", "99999999999999999999", "9 0", "９０"}

func TestBadPorts(t *testing.T) {
	for _, p := range badPorts {
		for form, parse := range map[string]func() error{
			"port":               func() error { _, err := ParsePort(p); return err },
			"public tcp/":        func() error { _, err := ParsePublic("tcp/" + p); return err },
			"public with a host": func() error { _, err := ParsePublic("tcp/127.0.0.1:" + p); return err },
			"allow tcp/":         func() error { _, err := ParseAllow("tcp/" + p); return err },
			"allow range":        func() error { _, err := ParseAllow("tcp/5-" + p); return err },
			"target host":        func() error { _, err := ParseTarget("localhost:" + p); return err },
			"expose target":      func() error { _, err := ParseExpose("9000=[::1]:" + p); return err },
			"host:port":          func() error { _, err := ParseHostPort("a.example:" + p); return err },
			"listen":             func() error { _, err := ParseListen(":" + p); return err },
			"listen bare":        func() error { _, err := ParseListen(p); return err },
		} {
			if err := parse(); err == nil || !strings.Contains(err.Error(), `"`+p+`"`) && p != "９０" || !strings.Contains(err.Error(), p) {
				t.Errorf("%s with port %q: %v; want an error that names it", form, p, err)
			}
		}
	}
	for _, p := range []string{"90x0", "0", "65536", "-1", "0x50", "80abc"} {
		for _, in := range []string{p, p + "=9904", "9000=" + p} {
			if _, err := ParseExpose(in); err == nil || !strings.Contains(err.Error(), p) {
				t.Errorf("ParseExpose(%q) = %v; want an error that names %q", in, err, p)
			}
		}
	}
}

func TestParsePublicErrors(t *testing.T) {
	for in, want := range map[string]string{
		"":                                   "public is empty",
		"web":                                "neither a port nor",
		"ftp/x":                              `no kind "ftp/"`,
		"http://example.com":                 `is a URL`,
		"tcp/":                               `port ""`,
		"tcp/:9000":                          "write tcp/9000",
		"tcp/*:9000":                         "write tcp/9000",
		"tcp/localhost:9000":                 `bind address "localhost" is not an IP address of the proxy's machine: write tcp/127.0.0.1:9000`,
		"tcp/::1:9000":                       "goes in brackets",
		"tcp/[::1]":                          "port is missing",
		"tcp/[::1:9000":                      "not closed",
		"tcp/[127.0.0.1]:9000":               "brackets are for IPv6",
		"tcp/[fe80::1%a b]:9":                "zone",
		"tcp/9000-9010":                      "a service is one port",
		"http/":                              "host name is empty",
		"http/*.example.com":                 "",
		"http/a..b":                          "empty part",
		"http/-a.b":                          "starts or ends with -",
		"http/a b":                           `" " in it`,
		"http/bücher.example":                "xn--",
		"http/app.example.com:80":            `":" in it: leave out the port, all http/ services share one of the proxy's: write http/app.example.com`,
		"https/example.com/":                 "",
		"https://example.com/x":              "or write https/example.com/x",
		"http/a_/x":                          "ends with _",
		"http/a_.b":                          "ends with _",
		"http/*.*.b":                         "stands for the first label",
		"http/a.*/x":                         "stands for the first label",
		"http/10.0.0.256":                    "neither an IP address nor a host name",
		"http/[a]":                           "brackets are for IPv6",
		"http/[1.2.3.4]":                     "brackets are for IPv6",
		"http/[::1":                          "brackets are for IPv6",
		"http/[fe80::1%eth0]":                "zone",
		"tls/203.0.113.7":                    "sends no address as its server name",
		"tls/[::1]":                          "sends no address as its server name",
		"tls/a/x":                            "found by the server name alone",
		"http/a/../b":                        `".." in it`,
		"http/a/./b":                         `"." in it`,
		"http/a//b":                          "empty part",
		"http/a//":                           "empty part",
		"http/a/%2fb":                        `"%2f" in it`,
		"http/a/%41":                         `"%41" in it`,
		"http/a/%e":                          `"%e" in it`,
		"http/a/%zz":                         `"%zz" in it`,
		"http/a/%+1":                         `"%+1" in it`,
		"http/a/文":                           "is not ASCII",
		"http/a/b c":                         `" " in it`,
		"http/a/b;c":                         `";" in it`,
		"http/a/b?c":                         `"?" in it`,
		"http/a/b*":                          `"*" in it`,
		"http/a/b\\c":                        `"\\" in it`,
		"http/a/" + strings.Repeat("b", 128): "longer than 128",
		"http/" + strings.Repeat("a", 64):    "longer than 63",
		"http/" + strings.Repeat("a.", 127):  "", // 253 without the final dot
		"http/" + strings.Repeat("a.", 127) + "a": "longer than 253",
		"private/":      "1 to 63",
		"private/a/b":   "letters, digits",
		"private/*":     "letters, digits", // a rule, and no name
		"tls/exa\nmple": "in it",
		"rv1_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA": "public is a token",
	} {
		_, err := ParsePublic(in)
		if want == "" {
			if err != nil {
				t.Errorf("ParsePublic(%q): %v", in, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "public") {
			t.Errorf("ParsePublic(%q): %v; want an error about the public with %q", in, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "AAAA") {
			t.Errorf("ParsePublic(%q) quotes a token: %v", in, err)
		}
	}
}

func TestParseTarget(t *testing.T) {
	for in, want := range map[string]Target{
		"9904":              {"tcp", "127.0.0.1:9904"},
		"localhost:9904":    {"tcp", "localhost:9904"},
		"DB.Lan:5432":       {"tcp", "db.lan:5432"},
		"db.lan.:5432":      {"tcp", "db.lan.:5432"},
		"192.168.1.9:80":    {"tcp", "192.168.1.9:80"},
		"[::1]:80":          {"tcp", "[::1]:80"},
		"[FE80::1%eth0]:80": {"tcp", "[fe80::1%eth0]:80"},
		"unix:/run/a=b.sock": {
			"unix", "/run/a=b.sock"},
	} {
		got, err := ParseTarget(in)
		if err != nil || got != want {
			t.Errorf("ParseTarget(%q) = %v, %v; want %v", in, got, err, want)
		}
		if again, err := ParseTarget(got.String()); err != nil || again != got {
			t.Errorf("ParseTarget(%q) = %v, %v; want the same again", got, again, err)
		}
	}
	for in, want := range map[string]string{
		"":                       "target is empty",
		"localhost":              "has no port",
		"10.0.0.1":               "has no port",
		":9904":                  "host before the port is missing",
		"::1:80":                 "goes in brackets",
		"10.0.0.256:80":          "neither an IP address nor",
		"http://localhost:80/x":  `write "localhost:80"`,
		"https://localhost":      "write host:port",
		"/run/a.sock":            `"unix:/run/a.sock"`,
		"unix:":                  "path of the socket is missing",
		"unix:run/a.sock":        "not absolute",
		"unix:/a\x00b":           "control character",
		"47.109.*.*:80":          "put the server's address there",
		"YOUR.SERVER:3010":       "put the server's address there",
		"rv1_AAAAAAAAAAAAA:80":   "token",
		"unix:/rv1_AAAAAAAAAAAA": "token",
	} {
		_, err := ParseTarget(in)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "target") {
			t.Errorf("ParseTarget(%q): %v; want an error about the target with %q", in, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "AAAA") {
			t.Errorf("ParseTarget(%q) quotes a token: %v", in, err)
		}
	}
}

func TestSocketPaths(t *testing.T) {
	long := "/" + strings.Repeat("a", 106)
	for _, c := range []struct {
		goos, path string
		ok         bool
	}{
		{"linux", "/run/a.sock", true},
		{"windows", "/run/a.sock", true},
		{"windows", `C:\run\a.sock`, true},
		{"windows", `c:/run/a.sock`, true},
		{"windows", `C:a.sock`, false},
		{"linux", `C:\run\a.sock`, false},
		{"linux", long, true},
		{"linux", long + "a", false},
		{"darwin", long, false},
		{"darwin", long[:103], true},
		{"freebsd", long, false},
	} {
		if err := checkSocketPathFor(c.goos, c.path); (err == nil) != c.ok {
			t.Errorf("%s: %q: %v; want ok = %v", c.goos, c.path, err, c.ok)
		}
	}
}

func TestParseExpose(t *testing.T) {
	for in, want := range map[string]string{
		"9000":                        "tcp/9000=127.0.0.1:9000",
		"tcp/9000":                    "tcp/9000=127.0.0.1:9000",
		"9000=9904":                   "tcp/9000=127.0.0.1:9904",
		"tcp/127.0.0.1:9000=nas:80":   "tcp/127.0.0.1:9000=nas:80",
		"9000=unix:/run/x=y.sock":     "tcp/9000=unix:/run/x=y.sock",
		"offered=9904":                "offered=127.0.0.1:9904",
		"tcp/[::]:9000=[::1]:9904":    "tcp/[::]:9000=[::1]:9904",
		"tcp/9000=Real.Example.:9904": "tcp/9000=real.example.:9904",
	} {
		got, err := ParseExpose(in)
		if err != nil || got.String() != want {
			t.Errorf("ParseExpose(%q) = %s, %v; want %s", in, got, err, want)
		}
	}
	for in, want := range map[string]string{
		"":                   "public is empty",
		"=9904":              "public is empty",
		"9000=":              "target is missing",
		"tcp/127.0.0.1:9000": "target is missing",
		"offered":            "target is missing",
		"9000=x":             "target",
		"9000:9904":          "write 9000=9904",
		"tcp/9000:9904":      "write 9000=9904",
		"9000:10.0.0.5:80":   "write 9000=10.0.0.5:80",
		"9000:localhost:80":  "write 9000=localhost:80",
		"9000:[::1]:80":      "write 9000=[::1]:80",
		"9000:9904=80":       "write 9000=9904",
		"9000-9010=9000":     "a service is one port",
		"tcp/9000-9010":      "a service is one port",
		"9000-x=9000":        "is not a number",
	} {
		if _, err := ParseExpose(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseExpose(%q): %v; want %q in it", in, err, want)
		}
	}
	for in, kind := range map[string]Kind{
		"udp/53": KindUDP, "udp/53=53": KindUDP, "udp/5000-5010=5000": KindUDP,
		"private/db=5432": KindPrivate,
	} {
		_, err := ParseExpose(in)
		var unsupported *UnsupportedKindError
		if !errors.As(err, &unsupported) || unsupported.Kind != kind || !strings.Contains(err.Error(), string(kind)+"/ services are not in this version") {
			t.Errorf("ParseExpose(%q): %v; want an UnsupportedKindError for %s", in, err, kind)
		}
	}
}

// What users of other programs write, and what keyboards and word processors make of it, is answered with how it is written here.
func TestMeantExpose(t *testing.T) {
	for in, want := range map[string]string{
		// ssh -R, Docker, chisel
		"9000:localhost:9904": "write 9000=localhost:9904", "127.0.0.1:9000:localhost:9904": "write tcp/127.0.0.1:9000=localhost:9904",
		"localhost:9000:nas:80": "write tcp/127.0.0.1:9000=nas:80", "*:9000:localhost:9904": "write 9000=localhost:9904", ":9000:localhost:9904": "write 9000=localhost:9904",
		"R:9000:localhost:9904": "write 9000=localhost:9904", "9000:9904/tcp": "write 9000=9904", "9000/tcp": "write 9000",
		// the service itself
		"localhost:9904": "write 9904", "127.0.0.1:9904": "write 9904", "[::1]:9904": "", "192.168.1.5:9904": "write 9904=192.168.1.5:9904", "nas.lan:80": "write 80=nas.lan:80",
		"http://localhost:9904": "write 9904", "http://nas:8080/path?x=1": "", "http://nas:8080/path": "write 8080=nas:8080", "tcp://0.0.0.0:9000": "write 9000",
		":9000": "write 9000", "*:9000": "write 9000", "*:9000=9904": "write 9000=9904", ":9000=9904": "write 9000=9904", "tcp:9000": "write 9000", "tcp:9000=9904": "write tcp/9000=9904",
		// the target
		"9000=:9904": "write 9000=9904", "9000=tcp/9904": "write 9000=9904", "9000=tcp://nas:9904": "write 9000=nas:9904", "9000=nas,9904": "write 9000=nas:9904",
		"9000=nas/9904": "write 9000=nas:9904", "9000=nas:9904/path": "write 9000=nas:9904", "9000=http://localhost:9904/": "write 9000=localhost:9904", "9000=9904/tcp": "write 9000=9904",
		"9000=nas": `target "nas" has no port`,
		// arrows and spaces
		"9000->9904": "write 9000=9904", "9000>9904": "write 9000=9904", "9000 => nas:9904": "write 9000=nas:9904", "9000→9904": "write 9000=9904",
		"9000 = 9904": "write 9000=9904", "9000= 9904": "write 9000=9904", " 9000": "write 9000", "=": "without spaces", "9000=": "without spaces", "=9904": "without spaces",
		// ranges and lists
		"9000-9010": "one for each", "9000,9001": "one for each", "tcp/9000-9001=9904-9905": "one for each", "9000..9010": "one for each", "9000~9010": "one for each",
		"ssh=22": `"ssh" is no port`, "http=localhost:80": "such as 9000=localhost:80",
		// keyboards and word processors
		"9000：9904": "write 9000=9904", "9000＝9904": "write 9000=9904", "９０００": "write 9000", "9000＝192。168。1。5：9904": "write 9000=192.168.1.5:9904", "tcp／9000": "write tcp/9000",
		"“9000”": "write 9000", "'9000=9904'": "write 9000=9904", "‘9000’=9904": "write 9000=9904", "9000\u00a0=\u30009904": "write 9000=9904", "9000\u200b": "write 9000",
		// beyond help
		"9000=9904=1": "target", "x y z": "public", "9000=nas:9904:1": "target", "中文": "public",
	} {
		_, err := ParseExpose(in)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseExpose(%q): %v; want %q in it", in, err, want)
			continue
		}
		// What is said to write is taken.
		if _, meant, ok := strings.Cut(err.Error(), ": write "); ok && strings.HasPrefix(want, "write ") {
			if _, err := ParseExpose(meant); err != nil {
				t.Errorf("ParseExpose(%q) says %q, and that is refused: %v", in, meant, err)
			}
		}
	}
	// In a file the two halves are two values.
	for public, want := range map[string]string{
		"9000=9904":           `write public = "9000" and target = "9904"`,
		"9000:9904":           `write public = "9000" and target = "9904"`,
		"9000:localhost:9904": `write public = "9000" and target = "localhost:9904"`,
		"9000 ＝ nas:9904":     `write public = "9000" and target = "nas:9904"`,
		"nas:9904":            `write public = "9904" and target = "nas:9904"`,
	} {
		if _, err := NewExpose(public, ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("NewExpose(%q): %v; want %q in it", public, err, want)
		}
	}
	// No token is taken apart, whatever stands around it.
	tok := example("a:1").Encode()
	for _, s := range []string{"9000＝" + tok, "“" + tok + "”", "9000 = " + tok, tok + "：9000", "9000->" + tok} {
		if _, err := ParseExpose(s); err == nil || strings.Contains(err.Error(), tok[20:60]) {
			t.Errorf("ParseExpose of a token: %v", err)
		}
	}
}

func TestMeantAddresses(t *testing.T) {
	host := func(s string) error { _, err := ParseHost(s, 3010); return err }
	hostPort := func(s string) error { _, err := ParseHostPort(s); return err }
	listen := func(s string) error { _, err := ParseListen(s); return err }
	allow := func(s string) error { _, err := ParseAllow(s); return err }
	public := func(s string) error { _, err := ParsePublic(s); return err }
	target := func(s string) error { _, err := ParseTarget(s); return err }
	for _, c := range []struct {
		parse    func(string) error
		in, want string
	}{
		{host, "x：3010", "write x:3010"}, {host, "1.2.3.4：3010", "write 1.2.3.4:3010"}, {host, "x: 3010", "write x:3010"}, {host, "“x”", "write x"}, {host, "x 3010", "write x:3010"},
		{host, "x,3010", "write x:3010"}, {host, "http://x:3010/", `"x:3010"`}, {host, "server。example。com", "write server.example.com"},
		{hostPort, "x 3020", "write x:3020"}, {hostPort, "ｘ：3020", "write x:3020"},
		{listen, "*:3010", "write :3010"}, {listen, "3010/tcp", "write 3010"}, {listen, "：3010", "write :3010"}, {listen, " 3010", "write 3010"}, {listen, "tcp://0.0.0.0:3010", `"0.0.0.0:3010"`},
		{allow, "tcp:9000", "write tcp/9000"}, {allow, "any", "write tcp/1-65535"}, {allow, "all", "write tcp/1-65535"}, {allow, "9000:9010", "write 9000-9010"}, {allow, "tcp/9000:9010", "write tcp/9000-9010"},
		{allow, "9000~9010", "write 9000-9010"}, {allow, "9000..9010", "write 9000-9010"}, {allow, "9000–9010", "write 9000-9010"}, {allow, "9000/tcp", "write 9000"}, {allow, "９０００－９０１０", "write 9000-9010"},
		{public, "tcp:9000", "write tcp/9000"}, {public, "9000/tcp", "write 9000"}, {public, "tcp/*:9000", "write tcp/9000"}, {public, "9000 ", "write 9000"}, {public, "tcp／9000", "write tcp/9000"},
		{target, ":9904", "write 9904"}, {target, "tcp/9904", "write 9904"}, {target, "nas：9904", "write nas:9904"}, {target, " 9904", "write 9904"}, {target, "nas,9904", "write nas:9904"},
	} {
		err := c.parse(c.in)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v; want %q in it", c.in, err, c.want)
			continue
		}
		if _, meant, ok := strings.Cut(err.Error(), ": write "); ok && strings.HasPrefix(c.want, "write ") {
			meant, _, _ = strings.Cut(meant, " ") // "write X to do Y"
			if err := c.parse(meant); err != nil {
				t.Errorf("%q: %q is said to be right, and is refused: %v", c.in, meant, err)
			}
		}
	}
}

func TestCheckExposes(t *testing.T) {
	for _, c := range []struct {
		in   string
		want string // in the error; "" is none
	}{
		{"9000 9001 tcp/127.0.0.1:9002 tcp/127.0.0.2:9002 tcp/[::1]:9002", ""},
		{"tcp/0.0.0.0:9000 tcp/[::]:9000", ""},
		{"9000 tcp/9000=1", "public tcp/9000 is given twice"},
		{"9000 tcp/127.0.0.1:9000=1", "public tcp/9000 and public tcp/127.0.0.1:9000 overlap"},
		{"tcp/[::1]:9000=1 9000", "overlap"},
		{"tcp/0.0.0.0:9000=1 tcp/127.0.0.1:9000=1", "overlap"},
		{"tcp/[::]:9000=1 tcp/[::1]:9000=1", "overlap"},
		{"offered=1 offered=2", "public offered is given twice"},
		{"http/a http/a/x http/* http/*.b tls/a", ""},
		{"http/a/x http/A./x/", "public http/a/x is given twice"},
	} {
		var exposes []Expose
		for f := range strings.FieldsSeq(c.in) {
			public, _, _ := strings.Cut(f, "=")
			e, err := NewExpose(public, "9904")
			if err != nil {
				t.Fatal(err)
			}
			exposes = append(exposes, e)
		}
		err := CheckExposes(exposes)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("CheckExposes(%s): %v; want %q", c.in, err, c.want)
		}
	}
}

func TestAllow(t *testing.T) {
	for _, c := range []struct{ rule, text, yes, no string }{
		{"9000", "tcp/9000", "tcp/9000 tcp/127.0.0.1:9000 tcp/[::1]:9000", "tcp/9001 udp/9000 offered private/9000"},
		{"tcp/9000-9010", "tcp/9000-9010", "9000 9005 9010", "8999 9011"},
		{"tcp/7-7", "tcp/7", "7", "8"},
		{"tcp/127.0.0.1:1-65535", "tcp/127.0.0.1:1-65535", "tcp/127.0.0.1:9000", "9000 tcp/[::1]:9000 tcp/0.0.0.0:9000"},
		{"tcp/[0::1]:9000", "tcp/[::1]:9000", "tcp/[::1]:9000", "9000"},
		{"udp/53", "udp/53", "udp/53", "tcp/53"},
		{"http/*.Example.com.", "http/*.example.com", "http/a.example.com", "http/example.com http/a.b.example.com https/a.example.com http/aexample.com"},
		{"http/*", "http/*", "http/a http/a.example.com", "https/a tcp/80"},
		{"tls/a.example", "tls/a.example", "tls/A.example.", "tls/b.a.example"},
		{"http/a.b/X/", "http/a.b/X", "http/a.b/X http/a.b/X/y", "http/a.b http/a.b/Xy http/a.b/x http/a.c/X https/a.b/X"},
		{"http/*/v2", "http/*/v2", "http/a/v2 http/*/v2 http/*.b/v2/x", "http/a http/a/v22"},
		{"https/[::1]", "https/[::1]", "https/0::1/x", "https/::2 http/::1 https/*"},
		{"https/*.0.example", "https/*.0.example", "https/a.0.example/x https/*.0.example", "https/a.b.0.example https/1.2.3.0"},
		{"private/db", "private/db", "private/DB", "private/db2"},
		{"private/*", "private/*", "private/DB private/a.b_c-1", "tcp/9000 http/db"},
	} {
		a, err := ParseAllow(c.rule)
		if err != nil || a.String() != c.text {
			t.Errorf("ParseAllow(%q) = %s, %v; want %s", c.rule, a, err, c.text)
			continue
		}
		if again, err := ParseAllow(a.String()); err != nil || again != a {
			t.Errorf("ParseAllow(%q) = %v, %v; want the same again", a, again, err)
		}
		for want, list := range map[bool]string{true: c.yes, false: c.no} {
			for _, p := range publics(t, list) {
				if got := (Policy{a}).Permits(p); got != want {
					t.Errorf("%s permits %s = %v; want %v", a, p, got, want)
				}
			}
		}
	}
	for in, want := range map[string]string{
		"":               "allow is empty",
		"web":            `allow "web" is neither`,
		"offered":        "name the port",
		"tcp/*":          "tcp/1-65535",
		"tcp/-1":         `port "-1"`,
		"tcp/9010-9000":  "write tcp",
		"tcp/9000-":      `port ""`,
		"tcp/1-2-3":      `port "2-3"`,
		"tcp/a:1-2":      "not an IP address",
		"http/a.*":       "first label",
		"http/*.*.b":     "first label",
		"http/*.":        "empty",
		"http/*.0.0.1":   "neither an IP address",
		"http/a/..":      `".." in it`,
		"tls/a/b":        "server name alone",
		"private/*x":     "letters, digits",
		"private/":       "1 to 63 characters",
		"gopher/x":       "no kind",
		"rv1_AAAAAAAAAA": "allow is a token",
	} {
		if want == "write tcp" {
			want = "write 9000-9010"
		}
		if _, err := ParseAllow(in); err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "allow") {
			t.Errorf("ParseAllow(%q): %v; want %q in it", in, err, want)
		}
	}
}

// publics parses a list of names.
func publics(t *testing.T, list string) (all []Public) {
	t.Helper()
	for s := range strings.FieldsSeq(list) {
		p, err := ParsePublic(s)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	return all
}

// TestMeans: what an order is about. A host is not its paths there.
func TestMeans(t *testing.T) {
	for rule, lists := range map[string][2]string{ // yes, no
		"http/a.example":     {"http/a.example", "http/a.example/x https/a.example http/b.example"},
		"http/a.example/x":   {"http/a.example/x", "http/a.example http/a.example/x/y http/a.example/xy"},
		"http/*.example":     {"http/a.example http/a.example/x", "http/a.b.example"},
		"https/*.example/x":  {"https/a.example/x https/a.example/x/y", "https/a.example"},
		"http/*":             {"http/* http/a.example/x", "https/a.example"},
		"tls/a.example":      {"tls/a.example", "https/a.example"},
		"tcp/9000":           {"tcp/9000 tcp/127.0.0.1:9000", "tcp/9001"},
		"tcp/127.0.0.1:1-99": {"tcp/127.0.0.1:80", "tcp/80"},
	} {
		a, err := ParseAllow(rule)
		if err != nil {
			t.Fatal(err)
		}
		for i, list := range lists {
			for _, p := range publics(t, list) {
				if got, want := a.Means(p), i == 0; got != want {
					t.Errorf("%s means %s = %v; want %v", a, p, got, want)
				}
			}
		}
	}
}

func TestPolicy(t *testing.T) {
	p := DefaultPolicy()
	for port, want := range map[uint16]bool{1: false, 1023: false, 1024: true, 65535: true} {
		if got := p.Permits(Public{KindTCP, "", port, ""}); got != want {
			t.Errorf("the default policy permits tcp/%d = %v; want %v", port, got, want)
		}
	}
	if p.Permits(Public{}) || (Policy{{}}).Permits(Public{}) || Policy(nil).Permits(Public{KindTCP, "", 9000, ""}) {
		t.Error("an empty rule or policy permits something")
	}
	if got := append(p, Allow{KindPrivate, "db", 0, 0, ""}).String(); got != "tcp/1024-65535, private/db" {
		t.Errorf("String = %q", got)
	}
	if got := Policy(nil).String(); got != "nothing" {
		t.Errorf("String of an empty policy = %q", got)
	}

	b, err := json.Marshal(p)
	if err != nil || string(b) != `["tcp/1024-65535"]` {
		t.Errorf("Marshal = %s, %v", b, err)
	}
	var back Policy
	if err := json.Unmarshal(b, &back); err != nil || len(back) != 1 || back[0] != p[0] {
		t.Errorf("Unmarshal = %v, %v; want %v", back, err, p)
	}
}

func TestParseAdvertise(t *testing.T) {
	if got, err := ParseAdvertise("example.com", 3010); got != "example.com:3010" || err != nil {
		t.Errorf("ParseAdvertise = %q, %v", got, err)
	}
	for _, in := range []string{"224.0.0.1", "255.255.255.255", "[ff02::1]:3010", "0.0.0.0", "0.0.0.0:3010", "::", "[::]:3010", "::ffff:0.0.0.0"} {
		if got, err := ParseAdvertise(in, 3010); err == nil || !strings.Contains(err.Error(), "nobody can connect to it") {
			t.Errorf("ParseAdvertise(%q) = %q, %v; want it refused", in, got, err)
		}
	}
}

func TestParseHost(t *testing.T) {
	for in, want := range map[string]string{
		"Example.com":      "example.com:3010",
		"example.com:4000": "example.com:4000",
		"203.0.113.1":      "203.0.113.1:3010",
		"::1":              "[::1]:3010",
		"[::1]":            "[::1]:3010",
		"[::1]:4000":       "[::1]:4000",
		"":                 "",
		"a b":              "",
		"example.com:0":    "",
		"YOUR.SERVER":      "",
		"[a]":              "",
	} {
		got, err := ParseHost(in, 3010)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("ParseHost(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
}

func TestParseListen(t *testing.T) {
	for in, want := range map[string]string{
		"3010": ":3010", ":3010": ":3010", "127.0.0.1:3010": "127.0.0.1:3010", "[::1]:3010": "[::1]:3010", "localhost:3010": "localhost:3010",
		"": "", ":": "", "127.0.0.1": "", "a:": "",
	} {
		got, err := ParseListen(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("ParseListen(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
}

// What is missing, or too much, is said by its name.
func TestAddressErrors(t *testing.T) {
	listen := ParseListen
	host := func(s string) (string, error) { return ParseHost(s, 3010) }
	for _, c := range []struct {
		parse    func(string) (string, error)
		in, want string
	}{
		{listen, "127.0.0.1", `"127.0.0.1": the port is missing: write HOST:PORT or :PORT`},
		{listen, "localhost", `"localhost": the port is missing: write HOST:PORT or :PORT`},
		{listen, "[::1]", `"[::1]": the port is missing: write [ADDRESS]:PORT`},
		{listen, "::1", `"::1": an IPv6 address goes in brackets: write [ADDRESS]:PORT`},
		{listen, "90x0", `port "90x0" is not a number from 1 to 65535`},
		{host, "http://x", `"http://x" is a URL: write the host without scheme and path, "x"`},
		{host, "https://x:4000/y", `"https://x:4000/y" is a URL: write the host without scheme and path, "x:4000"`},
		{ParseHostPort, "tcp://x:4000", `"tcp://x:4000" is a URL: write the host without scheme and path, "x:4000"`},
		{listen, "tcp://:4000", `"tcp://:4000" is a URL: write the host without scheme and path, ":4000"`},
		{host, "http://", `"http://" is a URL: write the host without scheme and path`},
	} {
		if got, err := c.parse(c.in); err == nil || err.Error() != c.want {
			t.Errorf("%q: %q, %v; want %s", c.in, got, err, c.want)
		}
	}
}

var fuzzSeeds = []string{
	"9000", "tcp/9000", "tcp/127.0.0.1:9000=9904", "tcp/[::1]:9000=[::1]:80", "tcp/[::ffff:1.2.3.4]:9", "tcp/[fe80::1%eth0]:9=a:1",
	"udp/53", "http/*.example.com", "http/a/b/C%e6", "https/[::1]/x/", "http/*/x", "https/1.2.3.4", "http/*", "HTTP/x", "tls/A.b.", "private/db", "offered=1", "tcp/9000-9010", "tcp/1.2.3.4:1-2",
	"9000=unix:/a=b", "localhost:80", "47.109.*.*:3010", "90x0", "-1", "rv1_AAAA", "=", "tcp/", "[", "tcp/[::]:", "::1", "a.:1",
}

// What a parser takes, it must write so that it takes it again as the same.
func FuzzParseExpose(f *testing.F) {
	for _, s := range fuzzSeeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := ParsePublic(s); err == nil {
			if again, err := ParsePublic(p.String()); err != nil || again != p {
				t.Errorf("ParsePublic(%q) = %v, then %v, %v", s, p, again, err)
			}
			if !p.Overlaps(p) {
				t.Errorf("%v does not overlap itself", p)
			}
		}
		e, err := ParseExpose(s)
		if err != nil {
			return
		}
		if again, err := ParseExpose(e.String()); err != nil || again.String() != e.String() {
			t.Errorf("ParseExpose(%q) = %v, then %v, %v", s, e, again, err)
		}
		if err := CheckExposes([]Expose{e, e}); err == nil {
			t.Errorf("CheckExposes takes %v twice", e)
		}
	})
}

func FuzzParseAllow(f *testing.F) {
	for _, s := range fuzzSeeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAllow(s)
		if err != nil {
			return
		}
		if again, err := ParseAllow(a.String()); err != nil || again != a {
			t.Errorf("ParseAllow(%q) = %v, then %v, %v", s, a, again, err)
		}
		if p, err := ParsePublic(s); err == nil && !a.Permits(p) {
			t.Errorf("%v does not permit %v", a, p)
		}
	})
}

func FuzzParseAddresses(f *testing.F) {
	for _, s := range fuzzSeeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for name, parse := range map[string]func(string) (string, error){
			"ParseHostPort": ParseHostPort,
			"ParseListen":   ParseListen,
			"ParseHost":     func(s string) (string, error) { return ParseHost(s, 3010) },
			"CanonicalHost": CanonicalHost,
		} {
			got, err := parse(s)
			if err != nil {
				continue
			}
			if again, err := parse(got); err != nil || again != got {
				t.Errorf("%s(%q) = %q, then %q, %v", name, s, got, again, err)
			}
		}
	})
}

// TestOverlapOfNames: of one name only one service gets the TLS clients, unless all of them leave TLS to the proxy.
func TestOverlapOfNames(t *testing.T) {
	for pair, want := range map[string]bool{
		"https/a tls/a": true, "https/a/x tls/a": true, "https/*.b tls/*.b": true, "https/* tls/*": true,
		"https/a https/a/x": false, "https/a tls/b": false, "https/a.b tls/*.b": false, "http/a tls/a": false, "http/a https/a": false, "http/a http/a/x": false,
	} {
		a, b, _ := strings.Cut(pair, " ")
		p, errP := ParsePublic(a)
		q, errQ := ParsePublic(b)
		if errP != nil || errQ != nil || p.Overlaps(q) != want || q.Overlaps(p) != want {
			t.Errorf("%s: %v, want %v (%v, %v)", pair, p.Overlaps(q), want, errP, errQ)
		}
	}
	if err := CheckExpose([]Expose{{Public: Public{Kind: KindTLS, Host: "a"}}}, Expose{Public: Public{Kind: KindHTTPS, Host: "a", Path: "/x"}}); err == nil ||
		!strings.Contains(err.Error(), "both want the TLS clients of a") {
		t.Errorf("CheckExpose: %v", err)
	}
}

// TestExposeSet: a service is compared with those alone that it may overlap with, and with all of those.
func TestExposeSet(t *testing.T) {
	all := publics(t, `tcp/1 tcp/2 tcp/127.0.0.1:1 tcp/[::1]:1 tcp/[::]:1 tcp/0.0.0.0:1 udp/1 udp/127.0.0.1:1 http/a http/a/x https/a https/a/x https/b
		tls/a tls/b https/*.b tls/*.b https/* tls/* http/* private/a offered`)
	for _, p := range all {
		for _, q := range all {
			if p.Overlaps(q) && p.place() != q.place() {
				t.Errorf("%v and %v overlap, and are not compared", p, q)
			}
			var set ExposeSet
			first, second := set.Add(Expose{Public: p}), set.Add(Expose{Public: q})
			if first != nil || (second != nil) != p.Overlaps(q) {
				t.Errorf("an empty set takes %v: %v, then %v: %v", p, first, q, second)
			}
		}
	}
	var set ExposeSet
	for port := range uint16(1000) {
		for _, kind := range []Kind{KindTCP, KindUDP} {
			if err := set.Add(Expose{Public: Public{Kind: kind, Port: 1 + port}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for at, compared := range set.at {
		if len(compared) != 1 {
			t.Errorf("%d services are compared with one at %v, want 1", len(compared), at)
		}
	}
}

func TestRequestHost(t *testing.T) {
	for in, want := range map[string]string{
		"a.example": "a.example", "A.Example.": "a.example", "a.example:80": "a.example", "a.example:": "a.example", "1.2.3.4": "1.2.3.4", "1.2.3.4:8080": "1.2.3.4",
		"[::1]": "::1", "[0:0::1]:443": "::1", "[::ffff:1.2.3.4]:80": "1.2.3.4", "my_host": "my_host", "localhost:1": "localhost",
		"": "", "::1": "", "[::1": "", "::1]": "", "[a]": "", "[1.2.3.4]": "", "[fe80::1%25eth0]": "", "a:0": "", "a:99999": "", "a:b": "", "a:80:80": "", ":80": "", "a b": "",
		"a..b": "", "a,b": "", "a/b": "", "user@a": "", "a%2e": "", "*": "", "*.b": "", "bücher.example": "", strings.Repeat("a.", 127) + "a": "",
	} {
		got, err := RequestHost(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("RequestHost(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
}
