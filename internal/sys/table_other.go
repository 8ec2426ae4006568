//go:build !linux

package sys

// WidenDescriptorTable does nothing: it is for Linux.
func WidenDescriptorTable() {}
