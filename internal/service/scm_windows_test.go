package service

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/mgr"
)

// testService is the name of a service that this test installs on the machine that it runs on.
const testService = "reverser-test"

// The test binary is the service, too: it is ready at once, drains for a moment when it is asked to stop, and ends with the exit
// code that its command line says.
func init() { asService = serveTest }

func serveTest() {
	i := slices.Index(os.Args, HostedFlag)
	if i < 0 {
		return
	}
	log, err := OpenLog(os.Args[i+1])
	if err != nil {
		os.Exit(90)
	}
	err = RunHosted(testService, func(h *Host) int {
		log.Write([]byte("<6>INF starting\n"))
		if slices.Contains(os.Args, "broken") {
			log.Write([]byte("<3>ERR it is broken\n"))
			return 2
		}
		if slices.Contains(os.Args, "slow") {
			time.Sleep(3 * progress / 2)
		}
		h.Ready("")
		sig := <-h.Asked()
		h.Stopping("", time.Second)
		log.Write([]byte("<4>WRN asked by " + sig.String() + "\n"))
		time.Sleep(3 * progress / 2) // longer than one sign of progress
		log.Write([]byte("<6>INF stopped\n"))
		return 0
	})
	if err != nil {
		log.Write([]byte(err.Error()))
		os.Exit(91)
	}
	if slices.Contains(os.Args, "slow") {
		time.Sleep(progress)
	}
	os.Exit(0)
}

// A service is made, started, stopped and removed by the machine's own manager.
func TestSystemSCM(t *testing.T) {
	m, err := mgr.Connect()
	if errors.Is(err, windows.ERROR_ACCESS_DENIED) {
		t.Skip("this user may not make services: run the test as administrator")
	}
	must(t, err)
	defer m.Disconnect()
	exe, err := os.Executable()
	must(t, err)
	dir := filepath.Join(t.TempDir(), `with space and 100%`)
	must(t, os.Mkdir(dir, 0o700))
	scm := systemSCM{}
	scm.remove(testService) // of a run that was ended
	c := scmConfig{Display: "Reverser test", Description: "a test", Program: exe, Args: []string{HostedFlag, dir, `a "b" c\`}, Account: accountSystem, StopWithin: time.Minute}
	if _, err := scm.config(testService); !errors.Is(err, ErrNotInstalled) {
		t.Fatalf("config of no service: %v", err)
	}
	must(t, scm.create(testService, c))
	defer scm.remove(testService)
	got, err := scm.config(testService)
	if err != nil || got.Program != exe || !slices.Equal(got.Args, c.Args) || got.Display != c.Display || got.Description != c.Description || got.Account != accountSystem {
		t.Errorf("config = %+v, %v; want %+v", got, err, c)
	}
	must(t, scm.addSource(testService))
	defer scm.removeSource(testService)

	w := &windowsServices{scm: scm}
	await := func(states ...string) scmState {
		t.Helper()
		st, err := w.await(t.Context(), testService, states...)
		must(t, err)
		return st
	}
	start := func() {
		t.Helper()
		must(t, scm.start(testService))
	}
	start()
	if st := await(Starting); st.State != Running || st.PID == 0 {
		t.Fatalf("the service is %+v, want running; its log: %q", st, lastLines(filepath.Join(dir, LogFile), 10))
	}
	must(t, scm.stop(testService))
	if st := await(Stopping, Running); st.State != Stopped || st.ExitCode != 0 {
		t.Errorf("the service is %+v, want stopped", st)
	}
	log := strings.Join(lastLines(filepath.Join(dir, LogFile), 10), "\n")
	if want := "INF starting\nWRN asked by interrupt\nINF stopped"; log != want {
		t.Errorf("its log is %q, want %q", log, want)
	}

	// While it starts, the manager refuses to stop it.
	slow := c
	slow.Args = append(slices.Clone(c.Args), "slow")
	must(t, scm.update(testService, slow))
	start()
	must(t, w.stopAndWait(t.Context(), testService))
	must(t, os.Remove(filepath.Join(dir, LogFile))) // which the process had open
	if st := await(Stopping); st.State != Stopped || st.ExitCode != 0 {
		t.Errorf("the service is %+v, want stopped", st)
	}

	c.Args = append(c.Args, "broken")
	must(t, scm.update(testService, c))
	// Wine's manager calls the start a failure where it looks only after the process has ended, as on a busy machine.
	if err := scm.start(testService); !errors.Is(err, windows.ERROR_SERVICE_REQUEST_TIMEOUT) {
		must(t, err)
	}
	if st := await(Starting, Running); st.State != Stopped || st.ExitCode != 2 || !st.Own {
		t.Errorf("the service is %+v, want stopped with its own exit code 2", st)
	}
	must(t, scm.remove(testService))
	// The manager keeps what is known of a service until it has noticed that its process is gone.
	err = nil
	for end := time.Now().Add(time.Minute); !errors.Is(err, ErrNotInstalled) && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		_, err = scm.query(testService)
	}
	if !errors.Is(err, ErrNotInstalled) {
		t.Errorf("query behind remove: %v, want ErrNotInstalled", err)
	}
}

// Whatever else a service was asked, it hears that it has to stop.
func TestAskedToStop(t *testing.T) {
	h := newHost()
	stop := make(chan bool)
	var asked []string
	role := func(h *Host) int {
		h.Ready("")
		<-stop // it is slow to listen
		for len(h.asked) > 0 {
			asked = append(asked, (<-h.Asked()).String())
		}
		return 0
	}
	requests, status := make(chan svc.ChangeRequest), make(chan svc.Status)
	go func() {
		for st := range status {
			if st.State == svc.Running {
				for range 5 {
					requests <- svc.ChangeRequest{Cmd: svc.ParamChange}
				}
				go func() {
					for _, cmd := range []svc.Cmd{svc.PreShutdown, svc.Shutdown, svc.Interrogate} {
						requests <- svc.ChangeRequest{Cmd: cmd}
					}
					close(stop)
				}()
			}
		}
	}()
	(&handler{h, role}).Execute(nil, requests, status)
	close(status)
	if want := []string{"PARAMCHANGE", "interrupt", "interrupt"}; !slices.Equal(asked, want) {
		t.Errorf("the service was asked for %q, want %q", asked, want)
	}
}

func onWine() bool {
	return windows.NewLazySystemDLL("ntdll.dll").NewProc("wine_get_version").Find() == nil
}

// An access list leaves no way in for other users.
func TestProtect(t *testing.T) {
	if onWine() {
		t.Skip("Wine keeps modes in place of access lists")
	}
	path := filepath.Join(t.TempDir(), "token")
	must(t, os.WriteFile(path, []byte("secret"), 0o600))
	must(t, protect(path, `NT SERVICE\reverser-bridge`, false))
	sd, err := windows.GetNamedSecurityInfo(path, windows.SE_FILE_OBJECT, windows.DACL_SECURITY_INFORMATION)
	must(t, err)
	text := sd.String()
	for _, other := range []string{";WD)", ";BU)", ";AU)"} {
		if strings.Contains(text, other) {
			t.Errorf("the access list is %s: %s is in it", text, other)
		}
	}
	t.Log(text)
}
