package sys

import "testing"

// TestSendBuffer: a fixed buffer never takes the place of a larger one that the kernel would have given.
func TestSendBuffer(t *testing.T) {
	for _, tt := range []struct{ most, auto, want int }{
		{212_992, 4 << 20, 0},       // what most distributions come with
		{2 << 20, 4 << 20, 0},       // the same
		{4 << 20, 4 << 20, 4 << 20}, // twice the kernel's own
		{64 << 20, 4 << 20, mostSendBuffer / 2},
		{64 << 20, 64 << 20, 0},
		{4 << 20, 0, 0}, // unknown
		{0, 0, 0},
	} {
		if got := sendBufferOf(tt.most, tt.auto); got != tt.want {
			t.Errorf("sendBufferOf(%d, %d) = %d, want %d", tt.most, tt.auto, got, tt.want)
		}
	}
	if auto := sysctl("net/ipv4/tcp_wmem", 2); auto < 64<<10 {
		t.Errorf("the most of the kernel's own choice is read as %d bytes", auto)
	}
}
