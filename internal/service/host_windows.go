package service

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/eventlog"
)

// IsHosted reports whether the service manager has started this process.
func IsHosted() bool {
	is, err := svc.IsWindowsService()
	return is && err == nil
}

// Host is the service manager that started this process.
type Host struct {
	asked   chan os.Signal
	changes chan svc.Status
	ended   chan struct{}
}

// newHost has room for one reload and two interrupts to be asked for.
func newHost() *Host {
	return &Host{asked: make(chan os.Signal, 3), changes: make(chan svc.Status), ended: make(chan struct{})}
}

// RunHosted runs role, which ends with its exit code, as the service of that name, and returns when it has ended.
func RunHosted(name string, role func(*Host) int) error {
	err := svc.Run(name, &handler{newHost(), role})
	if errors.Is(err, windows.ERROR_FAILED_SERVICE_CONTROLLER_CONNECT) {
		return hint("`reverser service start` starts a service; leave the flag out to run it here", "%s is for the service manager, and that did not start this process", HostedFlag)
	}
	return err
}

// Asked is what the manager wants, as if it were a signal.
func (h *Host) Asked() <-chan os.Signal { return h.asked }

// reload is the signal that asks for the settings to be read again.
type reload struct{}

func (reload) Signal()        {}
func (reload) String() string { return "PARAMCHANGE" }

// AsksReload reports whether a signal of [Host.Asked] asks for a reload.
func AsksReload(sig os.Signal) bool { _, ok := sig.(reload); return ok }

// accepts is what a service that runs may be asked. Before a shutdown it is told early, and has the time that its installation asked for.
const accepts = svc.AcceptStop | svc.AcceptPreShutdown | svc.AcceptShutdown | svc.AcceptParamChange

// Ready says that the process does what it is there for.
func (h *Host) Ready(string) error { return h.tell(svc.Status{State: svc.Running, Accepts: accepts}) }

// Stopping says that the process was asked to stop.
func (h *Host) Stopping(string, time.Duration) error {
	return h.tell(svc.Status{State: svc.StopPending, Accepts: svc.AcceptShutdown})
}

// Status has no place in this manager.
func (h *Host) Status(string) error { return nil }

// Reloading has none either.
func (h *Host) Reloading() error { return nil }

// Alive is not asked for.
func (h *Host) Alive() error { return nil }

func (h *Host) tell(st svc.Status) error {
	select {
	case h.changes <- st:
		return nil
	case <-h.ended:
		return fmt.Errorf("tell the service manager: %w", os.ErrClosed)
	}
}

// handler answers the service manager. It runs the role in a goroutine of its own and waits for it.
type handler struct {
	host *Host
	role func(*Host) int
}

// progress is how often a start or stop that takes its time is said to go on, and progressWithin when that is missed.
const (
	progress       = 2 * time.Second
	progressWithin = 20 * time.Second
)

// Execute implements [svc.Handler].
func (s *handler) Execute(_ []string, requests <-chan svc.ChangeRequest, status chan<- svc.Status) (own bool, code uint32) {
	now := svc.Status{State: svc.StartPending, WaitHint: uint32(progressWithin.Milliseconds())}
	status <- now
	done := make(chan int, 1)
	go func() { done <- s.role(s.host) }()
	defer close(s.host.ended)
	again := time.NewTicker(progress)
	defer again.Stop()
	say := func(st svc.Status) {
		if now.State == svc.StopPending && st.State != svc.StopPending {
			return // it was asked to stop before it was ready
		}
		st.CheckPoint = 0
		if st.State != svc.Running {
			st.CheckPoint, st.WaitHint = now.CheckPoint+1, uint32(progressWithin.Milliseconds())
		}
		now = st
		status <- now
	}
	for {
		select {
		case st := <-s.host.changes:
			say(st)
		case <-again.C:
			if now.State != svc.Running {
				say(now)
			}
		case r := <-requests:
			switch r.Cmd {
			case svc.Interrogate:
				status <- now
			case svc.ParamChange:
				if len(s.host.asked) == 0 { // else a reload, or the end, is asked for already
					s.ask(reload{})
				}
			case svc.Stop, svc.PreShutdown:
				if now.State != svc.StopPending {
					say(svc.Status{State: svc.StopPending, Accepts: svc.AcceptShutdown})
					s.ask(os.Interrupt)
				}
			case svc.Shutdown: // the system goes down within seconds: what is not finished is reset, and not left hanging
				if now.State != svc.StopPending {
					say(svc.Status{State: svc.StopPending})
					s.ask(os.Interrupt)
				}
				s.ask(os.Interrupt)
			}
		case code := <-done:
			return true, uint32(code)
		}
	}
}

// ask passes a wish on. There is room for all that count.
func (s *handler) ask(sig os.Signal) {
	select {
	case s.host.asked <- sig:
	default:
	}
}

// EventLog returns a function that writes to the event log of the system, for [Log.Events].
func EventLog(name string) (write func(line string, isError bool), err error) {
	l, err := eventlog.Open(name)
	if err != nil {
		return nil, fmt.Errorf("open the event log: %w", err)
	}
	return func(line string, isError bool) {
		if isError {
			l.Error(1, line)
		} else {
			l.Warning(1, line)
		}
	}, nil
}
