package state_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/windows"

	"reverser/internal/state"
)

// TestAdminPipeIsPrivate: its access list names this user, administrators and the system, and nobody else.
func TestAdminPipeIsPrivate(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	defer admin(t, d, "it")()
	name, err := state.AdminSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(name, `\\.\pipe\reverser-`) {
		t.Fatalf("the admin socket is %s, want a pipe", name)
	}
	p, err := windows.UTF16PtrFromString(name)
	if err != nil {
		t.Fatal(err)
	}
	h, err := windows.CreateFile(p, windows.READ_CONTROL|windows.GENERIC_READ, 0, nil, windows.OPEN_EXISTING, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer windows.CloseHandle(h)
	sd, err := windows.GetSecurityInfo(h, windows.SE_KERNEL_OBJECT, windows.DACL_SECURITY_INFORMATION|windows.OWNER_SECURITY_INFORMATION)
	if err != nil {
		t.Fatal(err)
	}
	if s := sd.String(); strings.Contains(s, ";WD)") || strings.Contains(s, ";AN)") || strings.Contains(s, ";BU)") {
		t.Errorf("the pipe's access list is %s, which lets others in", s)
	}
}

// TestAdminPipeManyClients: clients that come at once, leave without a word, or stay are all served.
func TestAdminPipeManyClients(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	defer admin(t, d, "it")()
	for range 20 { // they leave before they are accepted
		c, err := state.DialAdmin(context.Background(), path)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	got := make(chan string)
	for range 20 {
		go func() {
			c, err := state.DialAdmin(context.Background(), path)
			if err != nil {
				got <- err.Error()
				return
			}
			defer c.Close()
			b, _ := io.ReadAll(c)
			got <- string(b)
		}()
	}
	for range 20 {
		if s := <-got; s != "it" {
			t.Errorf("a client read %q", s)
		}
	}
}

// TestAdminPipeDeadline: a read can be ended, as net/http does with its connections.
func TestAdminPipeDeadline(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	l, err := d.ListenAdmin()
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
		}
		accepted <- c
	}()
	c, err := state.DialAdmin(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s := <-accepted
	defer s.Close()
	for _, end := range []net.Conn{c, s} {
		end.SetReadDeadline(time.Now().Add(time.Millisecond))
		if _, err := end.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read = %v, want a deadline error", err)
		}
		end.SetReadDeadline(time.Time{})
	}
	io.WriteString(c, "a")
	if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
		t.Errorf("after the deadline: %v", err)
	}
}

// TestAdminPipeWhileOthersLook: a command that looks for the admin socket all the time does not keep the process from opening it again.
func TestAdminPipeWhileOthersLook(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		for ctx.Err() == nil {
			state.AdminSocket(path)
		}
	})
	for range 5 {
		l, err := d.ListenAdmin()
		if err != nil {
			t.Fatal(err)
		}
		l.Close() // what it recorded stays, as behind a process that was killed
	}
}

// TestAdminPipeClosedOnce: a listener that is closed while Accept waits closes each of its handles once. The second time would close
// whatever has got the number since.
func TestAdminPipeClosedOnce(t *testing.T) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for range 8 {
		d := open(t, t.TempDir())
		wg.Go(func() {
			for range 200 {
				l, err := d.ListenAdmin()
				if err != nil {
					t.Error(err)
					return
				}
				begun, events := make(chan bool), make(chan windows.Handle, 1)
				go func() {
					begun <- true
					if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
						t.Errorf("Accept = %v, want net.ErrClosed", err)
					}
					h, err := windows.CreateEvent(nil, 1, 0, nil) // which gets the lowest number that is free now
					if err != nil {
						t.Error(err)
					}
					events <- h
				}()
				<-begun
				if err := l.Close(); err != nil {
					t.Error(err)
				}
				if err := windows.CloseHandle(<-events); err != nil {
					t.Errorf("an event of somebody else was closed: %v", err)
				}
			}
		})
	}
}
