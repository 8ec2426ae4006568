//go:build !windows

package main

// ownWindow is about Windows alone: elsewhere programs are started from a shell.
func ownWindow() bool { return false }

func readsChinese() bool { return false }

// asAdministrator runs a command of this program as whoever runs this.
func asAdministrator(command []string, here func([]string) error) error { return here(command) }
