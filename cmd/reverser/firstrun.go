package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"reverser/internal/bridge"
	"reverser/internal/config"
	"reverser/internal/doctor"
	"reverser/internal/grammar"
	"reverser/internal/status"
)

// firstRun is the dialogue with a person who started the program by a double click, and who may never have used a command line. It
// asks for what a bridge needs, tries that, and then offers to keep it. Its window closes when the program ends, so it waits for
// a key then.
type firstRun struct {
	in  *bufio.Reader
	out io.Writer
	say *phrases
	// try runs a bridge until each service is up or known not to be, or ctx ends. It returns what stands in the way.
	try func(ctx context.Context, args config.BridgeArgs) error
	// run runs a bridge until it is told to stop.
	run func(args config.BridgeArgs) error
	// install makes a service of it. nil: there is no way to.
	install func(args config.BridgeArgs) error
	// answers reports whether something listens at a target.
	answers func(ctx context.Context, target string) bool
}

// phrases are what firstRun says, in one language.
type phrases struct {
	welcome, unpack                           string
	token, noToken, server, ports             string
	badServer, badPorts                       string // %v: the error
	trying, works                             string // %s: the addresses
	fails                                     string // %v: what stands in the way
	again                                     string
	noTarget                                  string // %s: the target
	keep, install, here, end, choice, unclear string
	installed, running, failed                string // failed: %v
	key                                       string
}

const (
	firstRunTry    = 25 * time.Second // more than a first dial and a second one take
	firstRunTarget = 3 * time.Second
)

var errGone = errors.New("the input has ended")

// startedAlone is the program without arguments in a window of its own.
func (c *cli) startedAlone(chinese bool) int {
	f := &firstRun{
		in: bufio.NewReader(c.stdin), out: c.stdout, say: phrasesFor(chinese),
		try: c.tryBridge,
		run: func(args config.BridgeArgs) error { return c.runBridge(context.Background(), args) },
		answers: func(ctx context.Context, target string) bool {
			network, addr := "tcp", target
			if path, ok := strings.CutPrefix(target, "unix:"); ok {
				network, addr = "unix", path
			}
			conn, err := new(net.Dialer).DialContext(ctx, network, addr)
			if err != nil {
				return false
			}
			conn.Close()
			return true
		},
	}
	if c.manager != nil {
		f.install = c.installService
	}
	exe, err := os.Executable()
	if err == nil && inTemp(exe) {
		f.print(f.say.unpack)
		f.waitForKey()
		return exitUsage
	}
	return f.dialogue(context.Background())
}

// inTemp reports whether a program lies in the directory for temporary files: there Explorer puts what is started from within a
// zip, and removes it later.
func inTemp(exe string) bool {
	rel, err := filepath.Rel(resolve(os.TempDir()), resolve(exe))
	return err == nil && filepath.IsLocal(rel)
}

func resolve(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return path
}

// dialogue returns the exit code of the program.
func (f *firstRun) dialogue(ctx context.Context) (code int) {
	defer f.waitForKey()
	f.print(f.say.welcome)
	for {
		args, err := f.ask()
		if err != nil {
			return exitFailed
		}
		switch ok, err := f.check(ctx, args); {
		case err != nil:
			return exitFailed
		case ok:
			return f.offer(args)
		}
		f.print("")
	}
}

// ask returns what a bridge needs, as if it stood on a command line.
func (f *firstRun) ask() (args config.BridgeArgs, err error) {
	for {
		line, err := f.line(f.say.token)
		if err != nil {
			return args, err
		}
		if args = readPasted(line); args.Token == "" {
			f.print(f.say.noToken)
			continue
		}
		break
	}
	// LooksToken accepted it; ParseToken reports whether it is complete.
	tok, err := grammar.ParseToken(args.Token)
	if err != nil {
		f.print(fmt.Sprintf(f.say.fails, err))
		return f.ask()
	}
	for tok.Addr() == "" && len(args.Proxies) == 0 {
		line, err := f.line(f.say.server)
		if err != nil {
			return args, err
		}
		addr, err := grammar.ParseHost(line, defaultPort)
		if err != nil {
			f.print(fmt.Sprintf(f.say.badServer, err))
			continue
		}
		args.Proxies = []string{addr}
	}
	for usual := strings.Join(args.Expose, " "); ; {
		question := f.say.ports
		if usual != "" {
			question += " [" + usual + "]"
		}
		line, err := f.line(question)
		if err != nil {
			return args, err
		}
		if args.Expose = strings.Fields(first(line, usual)); len(args.Expose) == 0 {
			continue
		}
		if _, _, err = config.NewBridgeSource(args).Load(); err == nil {
			return args, nil
		}
		f.print(fmt.Sprintf(f.say.badPorts, err))
	}
}

// readPasted finds what a bridge needs in what a person pasted: a token, or the whole line that a proxy printed.
func readPasted(line string) (args config.BridgeArgs) {
	words := strings.Fields(line)
	for i := 0; i < len(words); i++ {
		word := strings.Trim(words[i], `"'`)
		proxy, isProxy := strings.CutPrefix(word, "--proxy=")
		switch {
		case word == "--proxy" && i+1 < len(words):
			i++
			proxy, isProxy = words[i], true
		case args.Token == "" && grammar.LooksToken(word):
			args.Token = word
			continue
		}
		if isProxy {
			if addr, err := grammar.ParseHost(proxy, defaultPort); err == nil { // the placeholder is none
				args.Proxies = append(args.Proxies, addr)
			}
			continue
		}
		if _, err := grammar.ParseExpose(word); err == nil && args.Token != "" {
			args.Expose = append(args.Expose, word)
		}
	}
	return args
}

// check tries the bridge. It reports whether to go on with these answers.
func (f *firstRun) check(ctx context.Context, args config.BridgeArgs) (ok bool, err error) {
	for {
		f.print(f.say.trying)
		ctx, cancel := context.WithTimeout(ctx, firstRunTry)
		err := f.try(ctx, args)
		cancel()
		if err == nil {
			break
		}
		f.print(fmt.Sprintf(f.say.fails, err))
		answer, err := f.choose(f.say.again, 3)
		switch {
		case err != nil:
			return false, err
		case answer == 2:
			return false, nil
		case answer == 3:
			return true, nil
		}
	}
	f.print(fmt.Sprintf(f.say.works, strings.Join(publicAddresses(args), ", ")))
	for _, arg := range args.Expose {
		e, err := grammar.ParseExpose(arg)
		if err != nil {
			return false, err
		}
		target, cancel := context.WithTimeout(ctx, firstRunTarget)
		if !f.answers(target, e.Target.String()) {
			f.print(fmt.Sprintf(f.say.noTarget, e.Target))
		}
		cancel()
	}
	return true, nil
}

// publicAddresses are what users connect to, as far as that is known here.
func publicAddresses(args config.BridgeArgs) (all []string) {
	host := ""
	if tok, err := grammar.ParseToken(args.Token); err == nil {
		host, _, _ = net.SplitHostPort(first(append(args.Proxies, tok.Addr())...))
	}
	for _, arg := range args.Expose {
		public, _, _ := strings.Cut(arg, "=")
		if _, err := grammar.ParsePort(public); err == nil {
			public = net.JoinHostPort(host, public)
		}
		all = append(all, public)
	}
	return all
}

// offer keeps the bridge in the way that the person chooses.
func (f *firstRun) offer(args config.BridgeArgs) (code int) {
	type way struct {
		text string
		do   func() int
	}
	ways := []way{{f.say.here, func() int {
		f.print(f.say.running)
		if err := f.run(args); err != nil {
			f.print(fmt.Sprintf(f.say.failed, redact(err.Error())))
			return exitFailed
		}
		return exitOK
	}}, {f.say.end, func() int { return exitOK }}}
	if f.install != nil {
		ways = append([]way{{f.say.install, func() int {
			if err := f.install(args); err != nil {
				f.print(fmt.Sprintf(f.say.failed, redact(err.Error())))
				return -1
			}
			f.print(f.say.installed)
			return exitOK
		}}}, ways...)
	}
	for {
		question := f.say.keep
		for i, w := range ways {
			question += "\n  " + strconv.Itoa(i+1) + "  " + w.text
		}
		answer, err := f.choose(question, len(ways))
		if err != nil {
			return exitFailed
		}
		if code := ways[answer-1].do(); code >= 0 {
			return code
		}
	}
}

// choose asks until the answer is a number from 1 to n.
func (f *firstRun) choose(question string, n int) (int, error) {
	for {
		f.print(question)
		line, err := f.line(f.say.choice)
		if err != nil {
			return 0, err
		}
		if answer, err := strconv.Atoi(line); err == nil && answer >= 1 && answer <= n {
			return answer, nil
		}
		f.print(fmt.Sprintf(f.say.unclear, n))
	}
}

func (f *firstRun) print(text string) { fmt.Fprintln(f.out, text) }

// line asks and returns a line without the white space around it.
func (f *firstRun) line(question string) (string, error) {
	fmt.Fprintf(f.out, "\n%s\n> ", question)
	line, err := f.in.ReadString('\n')
	if line = strings.TrimSpace(strings.TrimPrefix(line, "\ufeff")); err != nil && line == "" {
		return "", errGone
	}
	return line, nil
}

func (f *firstRun) waitForKey() { waitForKey(f.out, f.in, f.say) }

// waitForKey keeps the window open until the person has read it.
func waitForKey(out io.Writer, in *bufio.Reader, say *phrases) {
	fmt.Fprintf(out, "\n%s", say.key)
	in.ReadString('\n')
}

func phrasesFor(chinese bool) *phrases {
	if chinese {
		return &chinesePhrases
	}
	return &englishPhrases
}

// tryBridge runs a bridge, without a trace on disk, until it is clear whether its services are up.
func (c *cli) tryBridge(ctx context.Context, args config.BridgeArgs) error {
	args.Environ = os.Getenv
	set, _, err := config.NewBridgeSource(args).Load()
	if err != nil {
		return err
	}
	settings, _ := bridgeSettings(set, newEndings(set, slog.New(slog.DiscardHandler)))
	b, err := bridge.New(bridge.Config{
		Token: set.Bridge.Token, Proxies: doctor.ProxiesOf(set.Bridge), Settings: settings, Version: version(), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	running, stop := context.WithCancel(context.Background())
	defer stop()
	wg.Go(func() { b.Run(running) })
	for _, e := range set.Bridge.Services {
		st, err := b.Await(ctx, e.Public)
		if err != nil {
			return fmt.Errorf("%s: %w", e.Public, err)
		}
		if st.State != status.ServiceUp {
			return fmt.Errorf("%s: %s: %s", e.Public, st.State, st.Reason)
		}
	}
	return nil
}

// installService makes a service of a bridge, with the rights of an administrator. The token goes by a file that others cannot
// read and that is gone afterwards: they see command lines.
func (c *cli) installService(args config.BridgeArgs) error {
	dir, err := os.MkdirTemp("", "reverser-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "token")
	if err := os.WriteFile(file, []byte(args.Token+"\n"), 0o600); err != nil {
		return err
	}
	if err := forAdministrator(file); err != nil {
		return fmt.Errorf("close the file with the token to others: %w", err)
	}
	return asAdministrator(installCommand(args, file), func(command []string) error {
		if code := run(command, c.stdin, c.stdout, c.stderr); code != exitOK {
			return fmt.Errorf("the installation ended with exit code %d", code)
		}
		return nil
	})
}

// installCommand is the command line that makes a service of a bridge, in the place of one that is there.
func installCommand(args config.BridgeArgs, tokenFile string) []string {
	command := []string{"service", "install", "bridge", "--replace", "--token-file", tokenFile}
	for _, p := range args.Proxies {
		command = append(command, "--proxy", p)
	}
	return append(command, args.Expose...)
}

var englishPhrases = phrases{
	welcome: `reverser gives a service on this computer, or in its network, a public address.

You need a server with a public address on which "reverser proxy" runs. At its
first start it printed a line that begins with: reverser bridge rv1_`,
	unpack: `This program was started from within the zip file, or from a folder for
temporary files. Unpack the zip first ("Extract all"), into a folder where the
program can stay, and start it there.`,
	token:     "Paste that line, or the token in it (rv1_...), and press Enter:",
	noToken:   "There is no token in that: it is the long word that begins with rv1_",
	server:    "The address of your server (a name or an IP address):",
	badServer: "That is no address: %v",
	ports: `Which port shall be public? 9000 means: port 9000 of the server leads to port
9000 of this computer. 9000=8080 leads to port 8080 here, 9000=192.168.1.5:80 to
another computer. Several are separated by spaces.`,
	badPorts: "That does not work: %v",
	trying:   "\nTrying it ...",
	works:    "It works. Users reach: %s",
	fails:    "It does not work: %v",
	again: `  1  try again
  2  change the answers
  3  go on all the same: the program goes on trying by itself`,
	noTarget:  "But nothing answers at %s yet: start the program that users are to reach.",
	keep:      "How shall it run?",
	install:   "always, as a Windows service, before anybody logs on (an administrator's work)",
	here:      "in this window, until it is closed",
	end:       "not now",
	choice:    "Number, and Enter:",
	unclear:   "Type a number from 1 to %d.",
	installed: "The service is installed and runs. In a terminal, this shows how it does:\n  reverser service status bridge",
	running:   "It runs until you close this window. With Ctrl-C, open connections finish first.\n",
	failed:    "That failed: %v",
	key:       "Press Enter to close this window.",
}

var chinesePhrases = phrases{
	welcome: `reverser 让这台电脑（或它所在内网）的服务拥有一个公网地址。

你需要一台有公网地址、正在运行 "reverser proxy" 的服务器。它第一次启动时
打印了一行，开头是：reverser bridge rv1_`,
	unpack: `程序是直接从压缩包里（或从临时文件夹）启动的。请先把压缩包解压
（“全部解压缩”）到一个固定的文件夹，再从那里启动。`,
	token:     "请粘贴那一行，或其中的令牌（rv1_...），然后按回车：",
	noToken:   "里面没有令牌：令牌是以 rv1_ 开头的那一长串字符",
	server:    "服务器的地址（域名或 IP）：",
	badServer: "这不是一个地址：%v",
	ports: `要公开哪个端口？9000 表示：服务器的 9000 端口通向本机的 9000 端口。
9000=8080 通向本机的 8080 端口，9000=192.168.1.5:80 通向另一台电脑。
多个之间用空格分开。`,
	badPorts: "这样不行：%v",
	trying:   "\n正在试连……",
	works:    "连接成功。用户访问：%s",
	fails:    "没有成功：%v",
	again: `  1  再试一次
  2  修改答案
  3  仍然继续：程序会自己不断重试`,
	noTarget:  "但是 %s 目前没有应答：请启动用户要访问的程序。",
	keep:      "以什么方式运行？",
	install:   "一直运行：安装为 Windows 服务，无人登录时也运行（需要管理员确认）",
	here:      "在这个窗口里运行，关闭窗口即停止",
	end:       "暂不运行",
	choice:    "请输入序号并按回车：",
	unclear:   "请输入 1 到 %d 的数字。",
	installed: "服务已经安装并在运行。在终端里查看情况：\n  reverser service status bridge",
	running:   "程序将一直运行到你关闭这个窗口为止。按 Ctrl-C 会等已有连接结束后停止。\n",
	failed:    "没有成功：%v",
	key:       "按回车键关闭窗口。",
}
