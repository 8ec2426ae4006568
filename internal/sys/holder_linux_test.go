package sys

import (
	"net"
	"os"
	"strconv"
	"testing"

	"reverser/internal/freeport"
)

// TestPortHolders: the listener of this process is found, of a port that nobody listens on nobody is.
func TestPortHolders(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		own, err := freeport.Get() // one that the kernel gives to nobody else meanwhile, under whichever address
		if err != nil {
			t.Fatal(err)
		}
		at := net.JoinHostPort(host, strconv.Itoa(own))
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Logf("no listener at %s: %v", at, err)
			continue
		}
		port := uint16(own)
		holders, taken := PortHolders(port)
		if !taken || len(holders) != 1 || holders[0].PID != os.Getpid() || holders[0].Program == "" {
			t.Errorf("PortHolders of %s = %v, %v; want this process", l.Addr(), holders, taken)
		}
		l.Close()
		if holders, taken = PortHolders(port); taken || len(holders) > 0 {
			t.Errorf("PortHolders behind the end = %v, %v; want nobody", holders, taken)
		}
	}
}

// TestMachine: what is asked of a machine has an answer here.
func TestMachine(t *testing.T) {
	if d, err := DiskOf(t.TempDir()); err != nil || d.Size <= 0 || d.Free > d.Size {
		t.Errorf("DiskOf = %+v, %v", d, err)
	}
	if _, err := DiskOf("/nowhere at all"); err == nil {
		t.Error("DiskOf of nothing has no error")
	}
	if got, want := DescriptorLimitOf(os.Getpid()), DescriptorLimit(); got != want {
		t.Errorf("DescriptorLimitOf this process = %d, DescriptorLimit %d", got, want)
	}
	if got, want := MemoryAvailableTo(os.Getpid()), AvailableMemory(); got != want {
		t.Errorf("MemoryAvailableTo this process = %d, AvailableMemory %d", got, want)
	}
}
