#!/bin/sh
# Installs what the tests need on a Debian 12 machine and runs all of them: linters, types, unit and host tests. As root.
# Arguments are passed to pytest.
set -eu
ROOT=$(cd "$(dirname "$0")/.." && pwd)
cd "$ROOT"
. tests/setup.sh
install_packages python3-venv gnupg gcc libc6-dev libcap2-bin busybox-static buildah skopeo umoci podman runc \
    libseccomp2 bubblewrap hyperfine mmdebstrap tar xz-utils zstd shellcheck systemd docker-registry apache2-utils openssl \
    qemu-system-x86 linux-image-cloud-amd64 e2fsprogs procps iproute2 nftables iptables containernetworking-plugins passt uidmap \
    systemd-container dbus dbus-user-session libnss-mymachines libpam-systemd libsystemd-dev pkg-config python3-dev bash zsh fish groff-base man-db
# The interpreter is started some ten thousand times, and what these leave out takes half of each start: a finder of
# modules where a path will do, and a hook of setuptools'.
install_rkpy -e "${ROOT}[dev,systemd]" --config-settings editable_mode=compat
export SETUPTOOLS_USE_DISTUTILS=stdlib

"$BIN/ruff" check .
"$BIN/ruff" format --check .
"$BIN/mypy"
shellcheck -x tests/*.sh docs/*.sh .ci/run
# A test that cannot run here is a failure, not a skip.
export RKPY_TESTS_MUST_RUN=1 PATH="$BIN:$PATH"
[ $# -eq 0 ] || exec "$BIN/pytest" "$@"

# At once, because much of the time is waiting: what runs pods on this machine; what needs a system of its own, in a
# container and then in a machine; and what runs no pods, after that pods that are machines, and a machine that is
# rebooted. What is left behind is looked for at the end of the first, when the others are over (tests/host/conftest.py).
MACHINES="kvm or machine or qemu"
beside() {
    # A shell has what it does not wait for ignore these signals, which some tests send.
    nice -n 10 env --default-signal=INT,QUIT RKPY_TESTS_BESIDE=0 "$BIN/pytest" "$@"
}
LOGS=$(mktemp -d)
# The disk of those machines is made once.
export RKPY_TEST_CACHE="${RKPY_TEST_CACHE:-$LOGS}"
(
    STATUS=0
    beside --ignore=tests/host --ignore=tests/systemd --ignore=tests/vm || STATUS=$?
    beside tests/host -k "$MACHINES" || STATUS=$?
    beside tests/vm --ignore=tests/vm/test_guest.py || STATUS=$?
    exit "$STATUS"
) >"$LOGS/units" 2>&1 &
UNITS=$!
(
    STATUS=0
    beside tests/systemd || STATUS=$?
    beside tests/vm/test_guest.py || STATUS=$?
    exit "$STATUS"
) >"$LOGS/systems" 2>&1 &
SYSTEMS=$!
trap 'pkill -P "$SYSTEMS,$UNITS" 2>/dev/null || true; rm -rf "$LOGS"' EXIT
STATUS=0
RKPY_TESTS_BESIDE="$SYSTEMS $UNITS" "$BIN/pytest" tests/host -k "not ($MACHINES)" || STATUS=$?
wait "$SYSTEMS" || STATUS=$?
wait "$UNITS" || STATUS=$?
cat "$LOGS/units" "$LOGS/systems"
exit "$STATUS"
