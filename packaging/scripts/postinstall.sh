# dpkg says "configure" and the version that was there, rpm the number of versions that are there now.
systemd daemon-reload
case "$1:$2" in
configure:?* | [2-9]:*)
	# What runs goes on with the new program. It takes as long as open connections do, and nobody waits for that here.
	on_units --no-block try-restart
	;;
esac
