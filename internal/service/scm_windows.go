package service

import (
	"errors"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/eventlog"
	"golang.org/x/sys/windows/svc/mgr"
)

// New returns the service manager of this machine.
func New() Manager {
	return &windowsServices{
		scm:      systemSCM{},
		programs: knownFolder(windows.FOLDERID_ProgramFiles, `C:\Program Files`),
		data:     knownFolder(windows.FOLDERID_ProgramData, `C:\ProgramData`),
		protect:  protect,
		owned:    owned,
	}
}

func knownFolder(id *windows.KNOWNFOLDERID, otherwise string) string {
	path, err := windows.KnownFolderPath(id, 0)
	if err != nil {
		return otherwise
	}
	return path
}

// systemSCM is the service control manager of this machine. It is asked with no more rights than an order needs, so that whoever
// may not change services can look at them.
type systemSCM struct{}

// with opens a service for an order.
func (systemSCM) with(name string, access uint32, do func(*mgr.Service) error) error {
	m, err := windows.OpenSCManager(nil, nil, windows.SC_MANAGER_CONNECT)
	if err != nil {
		return fmt.Errorf("ask the service manager: %w", err)
	}
	defer windows.CloseServiceHandle(m)
	p, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return err
	}
	h, err := windows.OpenService(m, p, access)
	if errors.Is(err, windows.ERROR_SERVICE_DOES_NOT_EXIST) {
		return ErrNotInstalled
	}
	if err != nil {
		return fmt.Errorf("open the service %s: %w", name, err)
	}
	s := &mgr.Service{Name: name, Handle: h}
	defer s.Close()
	return do(s)
}

func (m systemSCM) config(name string) (c scmConfig, err error) {
	err = m.with(name, windows.SERVICE_QUERY_CONFIG, func(s *mgr.Service) error {
		var q *windows.QUERY_SERVICE_CONFIG
		for n := uint32(1024); ; {
			b := make([]byte, n)
			q = (*windows.QUERY_SERVICE_CONFIG)(unsafe.Pointer(&b[0]))
			err := windows.QueryServiceConfig(s.Handle, q, n, &n)
			if err == nil {
				break
			}
			if !errors.Is(err, windows.ERROR_INSUFFICIENT_BUFFER) || n <= uint32(len(b)) {
				return fmt.Errorf("read the configuration of the service %s: %w", name, err)
			}
		}
		line := windows.UTF16PtrToString(q.BinaryPathName)
		words, err := windows.DecomposeCommandLine(line)
		if err != nil || len(words) == 0 {
			return fmt.Errorf("the command line of the service %s cannot be read: %q: %w", name, line, err)
		}
		c = scmConfig{Display: windows.UTF16PtrToString(q.DisplayName), Program: words[0], Args: words[1:], Account: windows.UTF16PtrToString(q.ServiceStartName)}
		// What tune sets. A manager that does not know a level has nothing there.
		b := make([]byte, 8192) // the most that there can be
		n := uint32(len(b))
		if windows.QueryServiceConfig2(s.Handle, windows.SERVICE_CONFIG_DESCRIPTION, &b[0], n, &n) == nil {
			c.Description = windows.UTF16PtrToString((*windows.SERVICE_DESCRIPTION)(unsafe.Pointer(&b[0])).Description)
		}
		n = uint32(len(b))
		if windows.QueryServiceConfig2(s.Handle, configPreshutdown, &b[0], n, &n) == nil {
			c.StopWithin = time.Duration(*(*uint32)(unsafe.Pointer(&b[0]))) * time.Millisecond
		}
		return nil
	})
	return c, err
}

func (m systemSCM) create(name string, c scmConfig) error {
	manager, err := mgr.Connect()
	if err != nil {
		return fmt.Errorf("ask the service manager for a new service: %w", err)
	}
	defer manager.Disconnect()
	s, err := manager.CreateService(name, c.Program, mgr.Config{
		ServiceType: windows.SERVICE_WIN32_OWN_PROCESS, StartType: mgr.StartAutomatic, ErrorControl: mgr.ErrorNormal,
		ServiceStartName: c.Account, DisplayName: c.Display,
	}, c.Args...)
	if err != nil {
		return fmt.Errorf("create the service %s: %w", name, err)
	}
	defer s.Close()
	if err := m.tune(s, c); err != nil {
		s.Delete()
		return fmt.Errorf("create the service %s: %w", name, err)
	}
	return nil
}

func (m systemSCM) update(name string, c scmConfig) error {
	const access = windows.SERVICE_CHANGE_CONFIG | windows.SERVICE_QUERY_CONFIG | windows.SERVICE_START // to restart it is an action to allow
	return m.with(name, access, func(s *mgr.Service) error {
		words := []string{windows.ComposeCommandLine(append([]string{c.Program}, c.Args...)), c.Account, c.Display}
		var p [3]*uint16
		for i, w := range words {
			var err error
			if p[i], err = windows.UTF16PtrFromString(w); err != nil {
				return err
			}
		}
		err := windows.ChangeServiceConfig(s.Handle, windows.SERVICE_WIN32_OWN_PROCESS, windows.SERVICE_AUTO_START, windows.SERVICE_ERROR_NORMAL,
			p[0], nil, nil, nil, p[1], nil, p[2])
		if err != nil {
			return fmt.Errorf("change the service %s: %w", name, err)
		}
		return m.tune(s, c)
	})
}

const configPreshutdown = 7 // SERVICE_CONFIG_PRESHUTDOWN_INFO

// tune sets what a service has besides its configuration proper. A level that a manager does not know is left out: Wine's knows few.
func (systemSCM) tune(s *mgr.Service, c scmConfig) error {
	description, err := windows.UTF16PtrFromString(c.Description)
	if err != nil {
		return err
	}
	say := windows.SERVICE_DESCRIPTION{Description: description}
	again := []windows.SC_ACTION{
		{Type: windows.SC_ACTION_RESTART, Delay: 3000}, {Type: windows.SC_ACTION_RESTART, Delay: 10000},
		{Type: windows.SC_ACTION_RESTART, Delay: 30000}, // this one for ever
	}
	recovery := windows.SERVICE_FAILURE_ACTIONS{ResetPeriod: 24 * 60 * 60, ActionsCount: uint32(len(again)), Actions: &again[0]}
	alsoWhenItSaysSo := windows.SERVICE_FAILURE_ACTIONS_FLAG{FailureActionsOnNonCrashFailures: 1}
	sid := uint32(windows.SERVICE_SID_TYPE_UNRESTRICTED)
	stopWithin := uint32(c.StopWithin.Milliseconds())
	for _, level := range []struct {
		level uint32
		info  unsafe.Pointer
		what  string
	}{
		{windows.SERVICE_CONFIG_DESCRIPTION, unsafe.Pointer(&say), "describe it"},
		{windows.SERVICE_CONFIG_FAILURE_ACTIONS, unsafe.Pointer(&recovery), "have it started again when it fails"},
		{windows.SERVICE_CONFIG_FAILURE_ACTIONS_FLAG, unsafe.Pointer(&alsoWhenItSaysSo), "have it started again when it fails"},
		{windows.SERVICE_CONFIG_SERVICE_SID_INFO, unsafe.Pointer(&sid), "give it an identity"},
		{configPreshutdown, unsafe.Pointer(&stopWithin), "give it time when the system is shut down"},
	} {
		err := windows.ChangeServiceConfig2(s.Handle, level.level, (*byte)(level.info))
		if err != nil && !errors.Is(err, windows.ERROR_INVALID_LEVEL) {
			return fmt.Errorf("%s: %w", level.what, err)
		}
	}
	return nil
}

func (m systemSCM) remove(name string) error {
	return m.with(name, windows.DELETE, func(s *mgr.Service) error {
		if err := s.Delete(); err != nil && !errors.Is(err, windows.ERROR_SERVICE_MARKED_FOR_DELETE) {
			return fmt.Errorf("remove the service %s: %w", name, err)
		}
		return nil
	})
}

func (m systemSCM) start(name string) error {
	return m.with(name, windows.SERVICE_START, func(s *mgr.Service) error {
		for begun := time.Now(); ; time.Sleep(scmPoll) {
			err := s.Start()
			if errors.Is(err, windows.ERROR_SERVICE_DATABASE_LOCKED) && time.Since(begun) < scmPatience {
				continue // the system is starting, or another service is
			}
			if err != nil && !errors.Is(err, windows.ERROR_SERVICE_ALREADY_RUNNING) {
				return fmt.Errorf("start the service %s: %w", name, err)
			}
			return nil
		}
	})
}

func (m systemSCM) stop(name string) error {
	return m.with(name, windows.SERVICE_STOP, func(s *mgr.Service) error {
		if _, err := s.Control(svc.Stop); err != nil && !errors.Is(err, windows.ERROR_SERVICE_NOT_ACTIVE) {
			return err
		}
		return nil
	})
}

func (m systemSCM) query(name string) (st scmState, err error) {
	err = m.with(name, windows.SERVICE_QUERY_STATUS, func(s *mgr.Service) error {
		q, err := s.Query()
		if err != nil {
			return fmt.Errorf("ask how the service %s does: %w", name, err)
		}
		st = scmState{State: scmStates[q.State], PID: int(q.ProcessId), ExitCode: q.Win32ExitCode, CheckPoint: q.CheckPoint}
		if q.Win32ExitCode == uint32(windows.ERROR_SERVICE_SPECIFIC_ERROR) {
			st.Own, st.ExitCode = true, q.ServiceSpecificExitCode
		}
		return nil
	})
	return st, err
}

func (systemSCM) exists(pid int) bool {
	h, err := windows.OpenProcess(windows.SYNCHRONIZE, false, uint32(pid))
	if err != nil {
		return errors.Is(err, windows.ERROR_ACCESS_DENIED)
	}
	defer windows.CloseHandle(h)
	event, err := windows.WaitForSingleObject(h, 0) // the handle of somebody else keeps the number of one that has ended
	return err == nil && event == uint32(windows.WAIT_TIMEOUT)
}

var scmStates = map[svc.State]string{
	svc.Stopped: Stopped, svc.StartPending: Starting, svc.StopPending: Stopping, svc.Running: Running,
	svc.ContinuePending: Running, svc.PausePending: Running, svc.Paused: Running,
}

// The messages of the system's own EventCreate.exe are the text alone.
func (systemSCM) addSource(name string) error {
	const key = `SYSTEM\CurrentControlSet\Services\EventLog\Application\`
	if k, err := registry.OpenKey(registry.LOCAL_MACHINE, key+name, registry.QUERY_VALUE); err == nil {
		return k.Close()
	}
	if err := eventlog.InstallAsEventCreate(name, eventlog.Info|eventlog.Warning|eventlog.Error); err != nil {
		return fmt.Errorf("make %s a source of the event log: %w", name, err)
	}
	return nil
}

func (systemSCM) removeSource(name string) error { return eventlog.Remove(name) }
