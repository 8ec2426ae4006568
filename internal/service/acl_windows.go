package service

import (
	"fmt"

	"golang.org/x/sys/windows"
)

// protect closes a file or directory to all but the system and administrators, and an account if one is named: full lets that
// write, otherwise it may read. What is inherited does not count.
func protect(path, account string, full bool) error {
	sddl := "D:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)"
	if account != "" && account != accountSystem {
		rights := "FR"
		if full {
			rights = "FA"
		}
		sddl += fmt.Sprintf("(A;OICI;%s;;;%s)", rights, accountSID(account))
	}
	sd, err := windows.SecurityDescriptorFromString(sddl)
	if err != nil {
		return fmt.Errorf("access list %s: %w", sddl, err)
	}
	dacl, _, err := sd.DACL()
	if err != nil {
		return err
	}
	return windows.SetNamedSecurityInfo(path, windows.SE_FILE_OBJECT, windows.DACL_SECURITY_INFORMATION|windows.PROTECTED_DACL_SECURITY_INFORMATION, nil, nil, dacl, nil)
}
