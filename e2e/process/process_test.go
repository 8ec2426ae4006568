package process

import (
	"context"
	"os"
	"os/exec"
	"testing"
	"time"

	"reverser/internal/leaktest"
)

// roleEnv makes the test binary the program that is started.
const roleEnv = "PROCESS_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case "log":
		os.Stderr.WriteString(`{"time":"2026-01-02T03:04:05.5Z","msg":"one","n":1}` + "\nno JSON: one\n" + `{"msg":"one","n":2,"who":"me"}` + "\n")
		os.Exit(3)
	case "parent": // starts a child that holds its output open, and waits
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), roleEnv+"=child")
		cmd.Stdout = os.Stdout
		cmd.Start()
		select {}
	case "child":
		os.Stdout.WriteString("child runs\n")
		time.Sleep(time.Hour)
	}
	leaktest.Main(m)
}

func start(t *testing.T, role string) *Process {
	t.Helper()
	p := New(role, os.Args[0], []string{roleEnv + "=" + role})
	if err := p.Start(nil); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestRecords(t *testing.T) {
	p := start(t, "log")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if code, err := p.AwaitEnd(ctx); code != 3 || err != nil || p.Running() {
		t.Errorf("AwaitEnd = %d, %v, Running = %v; want 3, nil, false", code, err, p.Running())
	}
	if got := p.Records("one"); len(got) != 2 || got[0].Number("n") != 1 || got[0].Time().Year() != 2026 {
		t.Errorf("Records = %v; want both lines", got)
	}
	if got := p.Records("one", "who", "me"); len(got) != 1 || got[0].Text("who") != "me" {
		t.Errorf("Records of me = %v; want the second line", got)
	}
	if got := p.Said("on"); len(got) != 2 || len(p.Said("ne")) != 0 {
		t.Errorf("Said = %v; want both lines that begin so", got)
	}
	p.Kill() // of an ended program is nothing
}

func TestKillTakesChildren(t *testing.T) {
	if _, err := os.Stat("/proc/self/status"); err != nil {
		t.Skip("only Linux ends children along")
	}
	p := New("parent", os.Args[0], []string{roleEnv + "=parent"})
	p.Cmd.WaitDelay = time.Minute
	if err := p.Start(nil); err != nil {
		t.Fatal(err)
	}
	for begin := time.Now(); p.Stdout.Len() == 0; time.Sleep(time.Millisecond) {
		if time.Since(begin) > time.Minute {
			t.Fatal("the child did not start")
		}
	}
	begin := time.Now()
	p.Kill()
	if took := time.Since(begin); took > 50*time.Second { // a living child keeps the output open for WaitDelay
		t.Errorf("Kill took %v: the child lives", took)
	}
}
