//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"reverser/e2e/netlab"
	"reverser/e2e/process"
)

// sideBySide runs variants of a scenario at once, each in a world of its own.
func sideBySide[T any](variants []T, run func(T) error) error {
	errs := make([]error, len(variants))
	var wg sync.WaitGroup
	for i, v := range variants {
		wg.Go(func() { errs[i] = run(v) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// F4
func blackHole(ctx context.Context, b *bed) error {
	outages := by(b, []time.Duration{1, 5, 20}, []time.Duration{1, 5, 10, 20, 60}, []time.Duration{1, 5, 10, 20, 60, 240})
	for i := range outages {
		outages[i] *= time.Second
	}
	return sideBySide(outages, func(outage time.Duration) error {
		err := b.oneBlackHole(ctx, outage)
		if err != nil {
			err = fmt.Errorf("outage of %v: %w", outage, err)
		}
		return err
	})
}

func (b *bed) oneBlackHole(ctx context.Context, outage time.Duration) error {
	t, err := b.tunnel(ctx, options{lab: true})
	if err != nil {
		return err
	}
	users, err := t.echoUsers(ctx, by(b, 30, 50, 100), 50*time.Millisecond)
	if err != nil {
		return err
	}
	l, err := t.connect(ctx)
	if err != nil {
		return err
	}
	up, down := newFlow(-1), newFlow(-1)
	up.rate, down.rate = 2e6, 2e6 // a fast one would only fill the line of a machine that is busy
	var wg sync.WaitGroup
	wg.Go(func() { b.failIf(l.duplex(up, down), fmt.Sprintf("bulk through %v", outage)) })
	web, err := b.download(ctx, t)
	if err != nil {
		return err
	}
	pass(ctx, 500*time.Millisecond)
	if err := t.lab.Down(); err != nil {
		return err
	}
	pass(ctx, outage)
	if err := t.lab.Up(); err != nil {
		return err
	}
	healed := time.Now()
	var bulk [2]time.Duration
	var moving sync.WaitGroup
	for i, f := range []*flow{up, down} {
		moving.Go(func() {
			var err error
			bulk[i], err = f.moves(ctx)
			b.failIf(err, fmt.Sprintf("bulk after %v", outage))
		})
	}
	all, err := stalls(ctx, users, healed)
	moving.Wait()
	if err != nil {
		return err
	}
	all = append(all, bulk[:]...)
	close(up.stop)
	close(down.stop)
	wg.Wait()
	b.finishAll(users)
	if web != nil {
		b.failIf(web(), fmt.Sprintf("curl through an outage of %v", outage))
	}
	b.note("%v: bulk goes on after %s up, %s down", outage, seconds(bulk[0]), seconds(bulk[1]))
	p95, most := quantile(all, .95), quantile(all, 1)
	if outage >= 20*time.Second {
		b.within(fmt.Sprintf("%v: stall after heal p50 %s, p95", outage, seconds(quantile(all, .5))), p95, 2*time.Second)
		b.within("max", most, 4*time.Second)
	} else {
		b.within(fmt.Sprintf("%v: stall after heal p50 %s, p95 %s, max", outage, seconds(quantile(all, .5)), seconds(p95)), most, time.Second)
	}
	return b.allEndedWell(ctx, t)
}

// download starts nginx on the lan host and curl among the users, at a speed that makes it take a while. What it returns
// waits for the end. Without these programs it is nil.
func (b *bed) download(ctx context.Context, t *tunnel) (wait func() error, err error) {
	nginx, curl := lookPath("nginx"), lookPath("curl")
	if nginx == "" || curl == "" {
		if os.Getenv("CI") == "true" {
			return nil, errors.New("missing: nginx, curl; on Debian: apt install nginx-light curl")
		}
		b.note("without curl and nginx, which are not installed")
		return nil, nil
	}
	dir := filepath.Join(b.dir, fmt.Sprintf("nginx-%d", b.starts.Add(1)))
	if err := os.MkdirAll(filepath.Join(dir, "www"), 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "www", "file"), noiseAt(3, 0, 1<<20), 0o644); err != nil {
		return nil, err
	}
	conf := fmt.Sprintf(`daemon off; user root; worker_processes 1; pid %[1]s/pid; error_log stderr;
events { worker_connections 64; }
http { access_log off; client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f;
uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
server { listen 127.0.0.1:8080; root %[1]s/www; limit_rate 400k; sendfile off; output_buffers 1 16k; } }
`, dir)
	if err := os.WriteFile(filepath.Join(dir, "conf"), []byte(conf), 0o644); err != nil {
		return nil, err
	}
	if _, err := b.start(t.lan, "nginx", nginx, nil, "-c", filepath.Join(dir, "conf"), "-p", dir, "-e", "stderr"); err != nil {
		return nil, err
	}
	second, err := b.start(t.pub, "key", b.bin, nil, "key", "add", "web", "--allow", "tcp/8080", "--state", t.proxyState)
	if err != nil {
		return nil, err
	}
	if _, err := second.AwaitEnd(ctx); err != nil {
		return nil, err
	}
	bridge, err := b.start(t.lan, "bridge of nginx", b.bin, []string{"REVERSER_TOKEN=" + strings.TrimSpace(second.Stdout.String())},
		"bridge", "8080", "--proxy", t.dials, "--state", t.bridgeState+"-web", "--log-format", "json")
	if err != nil {
		return nil, err
	}
	err = await(ctx, "nginx through the tunnel", func() bool { return len(bridge.Said("service up")) > 0 })
	if err != nil {
		return nil, err
	}
	out := filepath.Join(dir, "got")
	get, err := b.start(t.pub, "curl", curl, nil, "--silent", "--show-error", "--fail", "--noproxy", "*", "-o", out, "http://127.0.0.1:8080/file")
	if err != nil {
		return nil, err
	}
	return func() error {
		code, err := get.AwaitEnd(ctx)
		if err != nil || code != 0 {
			return fmt.Errorf("exit code %d, %w: %s", code, err, get.Stderr.String())
		}
		got, err := os.ReadFile(out)
		if err == nil && string(got) != string(noiseAt(3, 0, 1<<20)) {
			err = errors.New("the file differs")
		}
		return err
	}, nil
}

// lookPath also looks where Debian puts servers.
func lookPath(program string) string {
	for _, name := range []string{program, "/usr/sbin/" + program} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

// F5
func addressChange(ctx context.Context, b *bed) error {
	moves := by(b, 2, 4, 20)
	t, err := b.tunnel(ctx, options{lab: true})
	if err != nil {
		return err
	}
	users, err := t.echoUsers(ctx, 30, 50*time.Millisecond)
	if err != nil {
		return err
	}
	var worst []time.Duration
	for range moves {
		pass(ctx, time.Second)
		if err := t.lab.Move(); err != nil {
			return err
		}
		all, err := stalls(ctx, users, time.Now())
		if err != nil {
			return err
		}
		worst = append(worst, quantile(all, 1))
	}
	b.finishAll(users)
	b.note("%d changes", moves)
	b.within(fmt.Sprintf("back at work: median %s, max", seconds(quantile(worst, .5))), quantile(worst, 1), 2*time.Second)
	return b.allEndedWell(ctx, t)
}

// F6
func oneWay(ctx context.Context, b *bed) error {
	return sideBySide([]netlab.Direction{netlab.ToProxy, netlab.ToBridge}, func(d netlab.Direction) error {
		t, err := b.tunnel(ctx, options{lab: true})
		if err != nil {
			return err
		}
		users, err := t.echoUsers(ctx, 20, 50*time.Millisecond)
		if err != nil {
			return err
		}
		pass(ctx, 500*time.Millisecond)
		begin := time.Now()
		if err := t.lab.SetLoss(d, 1); err != nil {
			return err
		}
		// Either side may notice: what it closes, the other one sees.
		err = await(ctx, "one side notices", func() bool {
			return len(t.bridge.Said("a connection to the proxy broke")) > 0 ||
				len(t.proxy.Said("bridge lost")) > 0
		})
		if err != nil {
			return err
		}
		b.within(fmt.Sprintf("nothing passes %v: noticed after", d), time.Since(begin), 16*time.Second)
		if err := t.lab.SetLoss(d, 0); err != nil {
			return err
		}
		all, err := stalls(ctx, users, time.Now())
		if err != nil {
			return err
		}
		b.finishAll(users)
		b.within("stall after heal, max", quantile(all, 1), 4*time.Second)
		return b.allEndedWell(ctx, t)
	})
}

// limitFlag is the option that says how long a session may be without a connection.
const limitFlag = "--resume-within"

func (b *bed) hasLimitFlag() bool {
	for _, role := range []string{"proxy", "bridge"} {
		out, _ := exec.Command(b.bin, role, "--help").CombinedOutput()
		if !strings.Contains(string(out), limitFlag) {
			return false
		}
	}
	return true
}

// F7
func beyondLimit(ctx context.Context, b *bed) error {
	if !b.hasLimitFlag() {
		b.skipped = "this build has no " + limitFlag
		return nil
	}
	const limit = 20 * time.Second
	t, err := b.tunnel(ctx, options{lab: true, both: []string{limitFlag, limit.String()}})
	if err != nil {
		return err
	}
	lines, err := t.connectAll(ctx, by(b, 50, 200, 1000))
	if err != nil {
		return err
	}
	before := usageOf(t.proxy.Cmd.Process.Pid)
	down := time.Now()
	if err := t.lab.Down(); err != nil {
		return err
	}
	type ended struct {
		who, how string
		after    time.Duration
	}
	ends := make(chan ended, 2*len(lines))
	var wg sync.WaitGroup
	for _, l := range lines {
		wg.Go(func() { how, _ := endOf(l.user, limit+time.Minute); ends <- ended{"users", how, time.Since(down)} })
		wg.Go(func() { how, _ := endOf(l.lan, limit+time.Minute); ends <- ended{"LAN", how, time.Since(down)} })
	}
	wg.Wait()
	close(ends)
	span := map[string][]time.Duration{}
	for e := range ends {
		if e.how != endRST {
			b.fail("%s saw %s; want RST", e.who, e.how)
		}
		span[e.who] = append(span[e.who], e.after)
	}
	// The clock of the limit runs from when a side noticed: at once where it had something to send, else after silence.
	for _, who := range []string{"users", "LAN"} {
		lost := quantile(span[who], 1) - quantile(span[who], 0)
		b.note("%s: all RST, %s after the outage began (noticing it takes up to 16 s)", who, seconds(quantile(span[who], 1)))
		b.within(who+": from the first to the last", lost, time.Second)
		if last := quantile(span[who], 1); last > limit+16*time.Second+patience || quantile(span[who], 0) < limit-time.Second {
			b.fail("%s: RST %s to %s after the outage began; the limit is %v", who, seconds(quantile(span[who], 0)), seconds(last), limit)
		}
	}
	if err := t.lab.Up(); err != nil {
		return err
	}
	// The public port was closed with the session.
	took, err := t.served(ctx, time.Minute)
	if err != nil {
		return fmt.Errorf("after the outage: %w", err)
	}
	b.note("a new connection works %s after the heal", seconds(took))
	l, err := t.connect(ctx)
	if err != nil {
		return err
	}
	b.failIf(l.duplex(newFlow(1<<20), newFlow(1<<20)), "after the outage")
	after := usageOf(t.proxy.Cmd.Process.Pid)
	b.note("proxy: descriptors %d, with the connections %d", after.fds, before.fds)
	if after.fds > before.fds-len(lines)+20 {
		b.fail("the proxy has %d descriptors; before the limit they were %d for %d connections", after.fds, before.fds, len(lines))
	}
	return nil
}

// F11
func asleep(ctx context.Context, b *bed) error {
	sleep := by(b, 17*time.Second, 20*time.Second, 30*time.Second)
	return sideBySide([]string{"proxy", "bridge"}, func(who string) error {
		t, err := b.tunnel(ctx, options{})
		if err != nil {
			return err
		}
		users, err := t.echoUsers(ctx, 20, 50*time.Millisecond)
		if err != nil {
			return err
		}
		l, err := t.connect(ctx)
		if err != nil {
			return err
		}
		up, down := newFlow(-1), newFlow(-1)
		up.rate, down.rate = 2e6, 2e6
		var wg sync.WaitGroup
		wg.Go(func() { b.failIf(l.duplex(up, down), "bulk while the "+who+" slept") })
		p := map[string]*process.Process{"proxy": t.proxy, "bridge": t.bridge}[who]
		pass(ctx, 500*time.Millisecond)
		p.Cmd.Process.Signal(syscall.SIGSTOP)
		pass(ctx, sleep)
		p.Cmd.Process.Signal(syscall.SIGCONT)
		all, err := stalls(ctx, users, time.Now())
		close(up.stop)
		close(down.stop)
		wg.Wait()
		if err != nil {
			return err
		}
		b.finishAll(users)
		b.within(fmt.Sprintf("%s asleep for %v: back at work p50 %s, max", who, sleep, seconds(quantile(all, .5))), quantile(all, 1), 4*time.Second)
		return b.allEndedWell(ctx, t)
	})
}

// F22
func leavesDuringOutage(ctx context.Context, b *bed) error {
	outage, leave := by(b, 16*time.Second, 30*time.Second, 60*time.Second), by(b, 3*time.Second, 10*time.Second, 10*time.Second)
	t, err := b.tunnel(ctx, options{lab: true})
	if err != nil {
		return err
	}
	lines, err := t.connectAll(ctx, 10)
	if err != nil {
		return err
	}
	stay, err := t.echoUsers(ctx, 5, 50*time.Millisecond)
	if err != nil {
		return err
	}
	pid := t.proxy.Cmd.Process.Pid
	with := usageOf(pid).fds
	begin := time.Now()
	if err := t.lab.Down(); err != nil {
		return err
	}
	// Each user writes until nothing more is taken: window and sockets are full.
	for _, l := range lines {
		l.user.SetWriteDeadline(time.Now().Add(leave))
		go io.Copy(l.user, &endless{})
	}
	pass(ctx, leave-time.Since(begin))
	for i, l := range lines {
		if i%2 == 0 {
			l.user.SetLinger(0) // half of them are reset, the others end in good order
		}
		l.user.Close()
	}
	left := time.Now()
	err = await(ctx, "the proxy lets go of the users who left", func() bool {
		return usageOf(pid).fds <= with-len(lines)/2 || time.Since(left) > outage
	})
	if err != nil {
		return err
	}
	if time.Since(left) > outage {
		b.miss("users who were reset were not noticed before the heal")
	}
	b.within("users who were reset: noticed after", time.Since(left), 6*time.Second)
	pass(ctx, outage-time.Since(begin))
	if err := t.lab.Up(); err != nil {
		return err
	}
	heal := time.Now()
	var wg sync.WaitGroup
	for i, l := range lines {
		wg.Go(func() {
			end, n := endOf(l.lan, time.Minute)
			if end == endNone || i%2 == 0 && end != endRST {
				b.fail("the LAN end of a user who left saw %s after %d bytes", end, n)
			}
		})
	}
	wg.Wait()
	b.note("the LAN service is told %s after the heal", seconds(time.Since(heal)))
	if _, err := stalls(ctx, stay, heal); err != nil {
		return err
	}
	b.finishAll(stay)
	return nil
}

// endless is a Reader of noise.
type endless struct{ at int64 }

func (e *endless) Read(b []byte) (int, error) {
	n := copy(b, noiseAt(0, e.at, min(len(b), chunk)))
	e.at += int64(n)
	return n, nil
}
