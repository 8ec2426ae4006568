//go:build !windows

package main

// ownWindow is about Windows alone: elsewhere programs are started from a shell.
func ownWindow() bool { return false }

func readsChinese() bool { return false }

// forAdministrator closes a file to all but administrators: it is this user's, with mode 0600.
func forAdministrator(string) error { return nil }

// asAdministrator runs a command of this program as whoever runs this.
func asAdministrator(command []string, here func([]string) error) error { return here(command) }
