//go:build !unix

package config

import "io/fs"

// looseMode lets every file pass. On Windows a file has an access list, and the
// mode that Go reports is made up: 0666 for all that is writable. A file in the
// user's own profile is closed to other users there by inheritance.
func looseMode(fs.FileInfo) error { return nil }

// ownedByOthers and writtenByOthers let every file pass, for the same reason.
func ownedByOthers(string, fs.FileInfo) (text, hint string)   { return "", "" }
func writtenByOthers(string, fs.FileInfo) (text, hint string) { return "", "" }
