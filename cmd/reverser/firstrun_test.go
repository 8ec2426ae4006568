package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"

	"reverser/internal/admin"
	"reverser/internal/config"
	"reverser/internal/grammar"
	"reverser/internal/proxy"
	"reverser/internal/state"
)

// dialogueTest plays a person at a firstRun, and the machine behind it.
type dialogueTest struct {
	firstRun
	out       bytes.Buffer
	tries     []error // what each try gives, nil behind the last one
	tried     []config.BridgeArgs
	ran       []config.BridgeArgs
	installed []config.BridgeArgs
	installs  []error // what each installation gives
}

func newDialogue(say *phrases, typed string) *dialogueTest {
	d := &dialogueTest{}
	d.firstRun = firstRun{
		in: bufio.NewReader(strings.NewReader(typed)), out: &d.out, say: say,
		try: func(_ context.Context, args config.BridgeArgs) (err error) {
			if d.tried = append(d.tried, args); len(d.tried) <= len(d.tries) {
				err = d.tries[len(d.tried)-1]
			}
			return err
		},
		run: func(args config.BridgeArgs) error { d.ran = append(d.ran, args); return nil },
		install: func(args config.BridgeArgs) (err error) {
			if d.installed = append(d.installed, args); len(d.installed) <= len(d.installs) {
				err = d.installs[len(d.installed)-1]
			}
			return err
		},
		answers: func(context.Context, string) bool { return true },
	}
	return d
}

func testToken(addrs ...string) string {
	return grammar.Token{Addrs: addrs, Secret: [32]byte{1}, Pin: [32]byte{2}}.Encode()
}

func TestFirstRun(t *testing.T) {
	token, bare := testToken("203.0.113.7:3010"), testToken()
	want := func(expose ...string) config.BridgeArgs { return config.BridgeArgs{Token: token, Expose: expose} }
	at := func(proxy string, expose ...string) config.BridgeArgs {
		return config.BridgeArgs{Token: bare, Proxies: []string{proxy}, Expose: expose}
	}
	down := errors.New("no route to the proxy")
	for _, tt := range []struct {
		name      string
		typed     []string
		tries     []error
		installs  []error
		code      int
		ran       []config.BridgeArgs
		installed []config.BridgeArgs
		says      []string
		never     []string
	}{
		{name: "a token, run here", typed: []string{token, "9000=9904", "2"}, ran: []config.BridgeArgs{want("9000=9904")},
			says: []string{"203.0.113.7:9000"}, never: []string{"address of your server"}},
		{name: "the printed line, its port, a service", typed: []string{"reverser bridge " + token + " 9000", "", "1"}, installed: []config.BridgeArgs{want("9000")},
			says: []string{"[9000]", "The service is installed"}},
		{name: "the printed line with the placeholder", typed: []string{"reverser bridge " + bare + " 9000 --proxy YOUR.SERVER:3010", "YOUR.SERVER", "tunnel.example.com", "", "1"},
			installed: []config.BridgeArgs{at("tunnel.example.com:3010", "9000")}, says: []string{"placeholder", "tunnel.example.com:9000"}},
		{name: "a line with an address", typed: []string{"reverser bridge " + bare + " 9000 --proxy tunnel.example.com:4000", "", "2"}, ran: []config.BridgeArgs{at("tunnel.example.com:4000", "9000")}},
		{name: "a pasted byte order mark and quotes", typed: []string{"\ufeff\"" + token + "\"", "9000", "2"}, ran: []config.BridgeArgs{want("9000")}},
		{name: "several ports", typed: []string{token, "9000 2222=22", "2"}, ran: []config.BridgeArgs{want("9000", "2222=22")}, says: []string{"203.0.113.7:9000, 203.0.113.7:2222"}},
		{name: "slips of the hand", typed: []string{"hello", "", token[:len(token)-4], token, "", "70000", "9000:80", "9000=80", "x", "0", "9", "2"}, ran: []config.BridgeArgs{want("9000=80")},
			says: []string{"There is no token in that", "cut short", "70000", "9000=80", "Type a number from 1 to 3"}},
		{name: "down, again, up", typed: []string{token, "9000", "1", "3"}, tries: []error{down}, says: []string{"It does not work: no route to the proxy", "It works"}},
		{name: "down, other answers", typed: []string{token, "9000", "2", token, "9001", "2"}, tries: []error{down}, ran: []config.BridgeArgs{want("9001")}},
		{name: "down, all the same", typed: []string{token, "9000", "3", "2"}, tries: []error{down}, ran: []config.BridgeArgs{want("9000")}, never: []string{"It works"}},
		{name: "an installation that fails", typed: []string{token, "9000", "1", "2"}, installs: []error{errors.New("you said no")},
			installed: []config.BridgeArgs{want("9000")}, ran: []config.BridgeArgs{want("9000")}, says: []string{"That failed: you said no"}, never: []string{"The service is installed"}},
		{name: "the window is closed at the token", code: exitFailed},
		{name: "the window is closed at the port", typed: []string{token}, code: exitFailed},
		{name: "the window is closed at a failure", typed: []string{token, "9000"}, tries: []error{down}, code: exitFailed},
		{name: "the window is closed at the choice", typed: []string{token, "9000"}, code: exitFailed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDialogue(&englishPhrases, strings.Join(append(tt.typed, ""), "\r\n"))
			d.tries, d.installs = tt.tries, tt.installs
			code := d.dialogue(t.Context())
			out := d.out.String()
			if code != tt.code {
				t.Errorf("exit code %d; want %d", code, tt.code)
			}
			if !reflect.DeepEqual(d.ran, tt.ran) {
				t.Errorf("ran %v; want %v", d.ran, tt.ran)
			}
			if !reflect.DeepEqual(d.installed, tt.installed) {
				t.Errorf("installed %v; want %v", d.installed, tt.installed)
			}
			for _, s := range tt.says {
				if !strings.Contains(out, s) {
					t.Errorf("it does not say %q", s)
				}
			}
			for _, s := range tt.never {
				if strings.Contains(out, s) {
					t.Errorf("it says %q", s)
				}
			}
			if !strings.HasSuffix(out, englishPhrases.key) {
				t.Error("it does not wait for a key at the end")
			}
			if strings.Contains(out, "rv1_A") {
				t.Error("it prints a token")
			}
			if t.Failed() {
				t.Log(out)
			}
		})
	}
}

// TestFirstRunWithoutServices is a system on which no service can be made.
func TestFirstRunWithoutServices(t *testing.T) {
	d := newDialogue(&englishPhrases, testToken("203.0.113.7:3010")+"\n9000\n1\n")
	d.install = nil
	if code := d.dialogue(t.Context()); code != exitOK || len(d.ran) != 1 {
		t.Errorf("exit code %d, ran %v", code, d.ran)
	}
	if strings.Contains(d.out.String(), "service, also") {
		t.Errorf("it offers a service:\n%s", &d.out)
	}
}

// TestInstallCommand: the command is one that the program takes. It is tried without effect.
func TestInstallCommand(t *testing.T) {
	args := config.BridgeArgs{Token: testToken(), Proxies: []string{"tunnel.example.com:4000"}, Expose: []string{"9000", "2222=22"}}
	file := filepath.Join(t.TempDir(), "the token")
	if err := os.WriteFile(file, []byte(args.Token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	command := append(installCommand(args, file), "--dry-run")
	for _, word := range command {
		if strings.Contains(word, "rv1_") {
			t.Errorf("the token stands on the command line")
		}
	}
	var out bytes.Buffer
	code := run(command, strings.NewReader(""), &out, &out)
	if runtime.GOOS == "linux" && (code != exitOK || !strings.Contains(out.String(), "tunnel.example.com:4000 9000 2222=22")) {
		t.Errorf("%q ends with %d:\n%s", command, code, &out)
	}
}

// TestPhrases: both languages say everything, and take the same values.
func TestPhrases(t *testing.T) {
	en, zh := reflect.ValueOf(englishPhrases), reflect.ValueOf(chinesePhrases)
	for i := range en.NumField() {
		name := en.Type().Field(i).Name
		a, b := en.Field(i).String(), zh.Field(i).String()
		if a == "" || b == "" {
			t.Errorf("%s is missing in a language: %q, %q", name, a, b)
		}
		for _, verb := range []string{"%s", "%v", "%d", "\n  1  ", "\n  3  "} {
			if strings.Count("\n"+a, verb) != strings.Count("\n"+b, verb) {
				t.Errorf("%s has %q in one language only", name, verb)
			}
		}
		for line := range strings.Lines(a + "\n" + b) {
			if w := consoleColumns(strings.TrimSuffix(line, "\n")); w > 80 {
				t.Errorf("%s has a line of %d columns: %s", name, w, line)
			}
		}
	}
	d := newDialogue(&chinesePhrases, testToken("203.0.113.7:3010")+"\n9000\n2\n")
	if code := d.dialogue(t.Context()); code != exitOK || !strings.Contains(d.out.String(), "连接成功。用户访问：203.0.113.7:9000") {
		t.Errorf("exit code %d:\n%s", code, &d.out)
	}
}

// consoleColumns counts a Chinese character as two.
func consoleColumns(s string) (n int) {
	for _, r := range s {
		if n++; r >= 0x2e80 {
			n++
		}
	}
	return n
}

func TestInTemp(t *testing.T) {
	if exe := filepath.Join(os.TempDir(), "Temp1_reverser.zip", "reverser.exe"); !inTemp(exe) {
		t.Errorf("inTemp(%s) = false", exe)
	}
	home := filepath.Join(filepath.Dir(filepath.Clean(os.TempDir())), "elsewhere", "reverser.exe")
	if inTemp(home) {
		t.Errorf("inTemp(%s) = true", home)
	}
}

// TestFirstRunTries tries bridges at a real proxy.
func TestFirstRunTries(t *testing.T) {
	dir, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	identity, _, err := dir.Identity()
	if err != nil {
		t.Fatal(err)
	}
	held, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(held.Addr().String())
	allow, err := grammar.ParsePolicy([]string{"tcp/" + port})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	editor := &admin.KeyEditor{Dir: dir, Pin: state.Pin(identity), Reach: dir.Reach, InForce: storedKeys(dir, state.Pin(identity)), Log: log}
	tok, err := editor.Make("pc", allow, state.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := editor.InForce()
	if err != nil {
		t.Fatal(err)
	}
	p := proxy.New(proxy.Config{Listen: "127.0.0.1:0", Identity: identity, Log: log, Settings: proxy.Settings{Keys: proxyKeys(keys)}})
	if err := p.Listen(); err != nil {
		t.Fatal(err)
	}
	held.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	wg.Go(func() { p.Run(ctx) })

	service, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close()
	expose := fmt.Sprintf("tcp/127.0.0.1:%s=%s", port, service.Addr())
	c := &cli{stdin: strings.NewReader("")}
	args := config.BridgeArgs{Token: tok.Encode(), Proxies: []string{p.Addr().String()}, Expose: []string{expose}}
	// More than once: what a try leaves behind would be in the way of the next.
	for range 3 {
		if err := c.tryBridge(ctx, args); err != nil {
			t.Fatalf("tryBridge: %v", err)
		}
	}
	args.Expose = []string{"1=" + port}
	if err := c.tryBridge(ctx, args); err == nil || !strings.Contains(err.Error(), "denied") {
		t.Errorf("a port that the key may not open: %v", err)
	}
	args.Expose, args.Token = []string{expose}, testToken()
	short, stop := context.WithCancel(ctx)
	stop() // what is in the way is asked for after the time is over, too
	if err := c.tryBridge(short, args); err == nil {
		t.Error("a foreign token works")
	}
}
