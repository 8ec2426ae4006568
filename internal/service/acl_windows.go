package service

import "reverser/internal/access"

// protect closes a file or directory to all but whoever installs the service, administrators and the system, and an account if one is
// named: full lets that write, otherwise it may read.
func protect(path, account string, full bool) error {
	if account == "" || account == accountSystem {
		return access.Protect(path)
	}
	return access.Protect(path, access.Grant{SID: accountSID(account), Write: full})
}
