#!/bin/sh
# Installs what is missing on Debian or Ubuntu: sh deploy/deps.sh run|test
# run: a C compiler, SoftHSM and a Go that can fetch the right one; test: also the
# foreign programs that the tests compare with.
set -eu
what=${1:-run}

sudo=
[ "$(id -u)" = 0 ] || sudo=sudo

go_ok() { # Go 1.21 or newer can fetch the toolchain that go.mod names
	command -v go >/dev/null 2>&1 || return 1
	v=$(GOTOOLCHAIN=local go version 2>/dev/null | sed -n 's/^go version go1\.\([0-9]*\).*/\1/p')
	[ -n "$v" ] && [ "$v" -ge 21 ]
}

need=
have() { command -v "$1" >/dev/null 2>&1 || need="$need $2"; }
have gcc gcc
[ -e /usr/include/stdlib.h ] || need="$need libc6-dev"
[ -e /usr/lib/softhsm/libsofthsm2.so ] || need="$need softhsm2"
[ -e /etc/ssl/certs/ca-certificates.crt ] || need="$need ca-certificates"
if [ "$what" = test ]; then
	have certbot certbot
	have openssl openssl
	have pkcs11-tool opensc
	ls /usr/lib/*/libsoftokn3.so >/dev/null 2>&1 || need="$need libnss3" # the second vendor of HSM modules
	have certtool gnutls-bin
	have softhsm2-util softhsm2
	have dpkg dpkg
	ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || need="$need postgresql"
	have chromium chromium
	have curl curl
fi
backports=
if ! go_ok; then
	. /etc/os-release
	case "${VERSION_CODENAME:-}" in
	bookworm) backports=bookworm-backports ;;
	*) need="$need golang-go" ;;
	esac
fi
[ -n "$need$backports" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
	echo "missing:$need ${backports:+golang (Go 1.21 or newer)}; this is no Debian or Ubuntu, so install them by hand and call make again" >&2
	exit 1
fi
echo "installing:$need ${backports:+golang from $backports} (with ${sudo:-root} apt-get)"
export DEBIAN_FRONTEND=noninteractive
$sudo apt-get update -qq
# shellcheck disable=SC2086 # the list is meant to be split
[ -z "$need" ] || $sudo apt-get install -y -qq --no-install-recommends $need >/dev/null
if [ -n "$backports" ]; then
	if ! grep -rqs "$backports" /etc/apt/sources.list /etc/apt/sources.list.d; then
		echo "deb http://deb.debian.org/debian $backports main" | $sudo tee /etc/apt/sources.list.d/backports.list >/dev/null
		$sudo apt-get update -qq
	fi
	$sudo apt-get install -y -qq --no-install-recommends -t "$backports" golang >/dev/null
fi
go_ok || {
	echo "the packaged Go is older than 1.21. Unpack a newer one from https://go.dev/dl/ to /usr/local/go, put /usr/local/go/bin first in PATH and call make again" >&2
	exit 1
}
