# dpkg says "remove" or "upgrade", rpm 0 or 1.
case "$1" in
remove | 0)
	on_units stop
	# Without the program they would fail at each start of the machine.
	rm -f /etc/systemd/system/*.wants/reverser-proxy@*.service /etc/systemd/system/*.wants/reverser-bridge@*.service
	for role in proxy bridge; do
		! ours $role || rm -f /etc/systemd/system/*.wants/reverser-$role.service
	done
	;;
esac
