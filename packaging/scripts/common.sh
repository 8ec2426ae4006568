#!/bin/sh
# dpkg and rpm run these scripts. They never start a service, nor enable one.
set -e

# on_units runs systemctl on the services that this package has: what its templates made, and what `reverser service install` made
# of its program.
on_units() {
	set -- "$@" 'reverser-proxy@*.service' 'reverser-bridge@*.service'
	for role in proxy bridge; do
		! ours $role || set -- "$@" "reverser-$role.service"
	done
	systemd "$@"
}

# ours reports whether the service of a role runs the program of this package. It may be of another one, such as /usr/local/bin.
ours() { grep -qs '^ExecStart=:/usr/bin/reverser ' "/etc/systemd/system/reverser-$1.service"; }

# systemd runs systemctl, where systemd is there. What fails there does not stop dpkg or rpm.
systemd() {
	[ -d /run/systemd/system ] || return 0
	systemctl "$@" || true
}

