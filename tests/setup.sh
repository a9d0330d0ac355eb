# shellcheck shell=sh
# Sourced with $ROOT set, by what sets up a Debian 12 machine. $BIN then has the programs of the virtual environment.

VENV="${VENV:-$ROOT/.venv}"
BIN="$VENV/bin"

install_packages() {
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' && continue
        # One missing is reason enough to ask for all: apt skips what is there.
        apt-get update -q >&2
        DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@" >&2
        return
    done
}

# pip's own arguments, such as the project's directory or `-e DIRECTORY`.
install_rkpy() {
    [ -x "$BIN/python" ] || /usr/bin/python3 -m venv "$VENV"
    # What an earlier build left there would be packed again, removed modules too.
    rm -rf "$ROOT/build"
    "$BIN/python" -m pip install -q --disable-pip-version-check "$@" >&2
}
