//go:build unix && !linux

package sys

func notDumpable() error { return nil }
