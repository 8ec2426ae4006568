package main

import "reverser/internal/sys"

// enoughDescriptors refuses to serve with so few that proxy and bridge would
// stand still under load.
func enoughDescriptors() error {
	if err := sys.CheckDescriptors(); err != nil {
		return usageHint("raise the limit with `ulimit -n 1024` (above the hard limit, as root) or with LimitNOFILE=1024 in a systemd unit", "%w", err)
	}
	return nil
}
