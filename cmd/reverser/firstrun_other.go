//go:build !windows

package main

// ownWindow is about Windows alone: elsewhere programs are started from a shell.
func ownWindow() bool { return false }

func readsChinese() bool { return false }
