package sys

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestWidenDescriptorTable: the kernel says that the table has the room, and no descriptor is left open.
func TestWidenDescriptorTable(t *testing.T) {
	WidenDescriptorTable()
	want := min(tableSize, DescriptorLimit())
	if _, err := os.Lstat(fmt.Sprintf("/proc/self/fd/%d", want-1)); err == nil {
		t.Errorf("descriptor %d is left open", want-1)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "FDSize:")
	var size int
	if _, err := fmt.Sscan(rest, &size); err != nil {
		t.Fatal(err)
	}
	if size < want {
		t.Errorf("room for %d descriptors, want %d", size, want)
	}
}
