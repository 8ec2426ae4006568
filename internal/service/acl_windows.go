package service

import (
	"fmt"

	"reverser/internal/access"
)

// protect closes a file or directory to all but whoever installs the service, administrators and the system, and an account if one is
// named: full lets that write, otherwise it may read.
func protect(path, account string, full bool) error {
	if account == "" || account == accountSystem {
		return access.Protect(path)
	}
	return access.Protect(path, access.Grant{SID: accountSID(account), Write: full})
}

// owned returns an error when somebody else than the system, an administrator or this user made a file or directory.
func owned(path string) error {
	mine, owner, err := access.Owned(path)
	if err != nil || mine {
		return err
	}
	return hint(fmt.Sprintf("look at what is in %s, move it away, and install the service again", path),
		"%s was made by another user (%s), who could read what the service keeps there", path, owner)
}
