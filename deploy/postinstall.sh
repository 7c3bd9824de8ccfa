#!/bin/sh
# Makes the service's user; starts nothing: the CA is made by `chancery init` first.
set -e
if [ "$1" = configure ] && [ -z "${DPKG_ROOT:-}" ]; then
	getent passwd chancery >/dev/null || useradd --system --home-dir /var/lib/chancery --shell /usr/sbin/nologin chancery
	install -d -m 0750 -o root -g chancery /etc/chancery /etc/chancery/credentials
	chgrp chancery /etc/chancery/chancery.yaml
	[ -d /run/systemd/system ] && systemctl daemon-reload || true
fi
