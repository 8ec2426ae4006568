# dpkg says "remove", "purge", "upgrade" …, rpm 0 or 1. rpm has no purge: state and configuration stay.
case "$1" in
purge)
	# A service of another program keeps its token and its state.
	for role in proxy bridge; do
		if ours $role || [ ! -e /etc/systemd/system/reverser-$role.service ]; then
			rm -rf /etc/systemd/system/reverser-$role.service /etc/systemd/system/reverser-$role.service.d \
				/etc/reverser/$role.token /var/lib/reverser/$role /var/lib/private/reverser/$role \
				/var/log/reverser/$role /var/log/private/reverser/$role
		fi
		rm -rf /etc/systemd/system/reverser-$role@*.service.d /etc/reverser/$role-*.toml /etc/reverser/$role-*.token \
			/var/lib/reverser/$role-* /var/lib/private/reverser/$role-* /var/log/reverser/$role-* /var/log/private/reverser/$role-*
	done
	# What is left in them is of others.
	for dir in /etc/reverser /var/lib/reverser /var/lib/private/reverser /var/log/reverser /var/log/private/reverser; do
		rmdir $dir 2>/dev/null || true
	done
	;;
esac
case "$1" in
remove | purge | 0) systemd daemon-reload ;;
esac
