#!/bin/sh
# The main job, from nothing: make an image, sign it, trust the key, run it under fly and under nspawn, with a network;
# then tamper with it and see it refused. On Debian 12, as root. Everything but the packages and .venv lives in a temporary directory.
set -eu
ROOT=$(cd "$(dirname "$0")/.." && pwd)
. "$ROOT/tests/setup.sh"
install_packages python3-venv gnupg busybox-static libseccomp2 nftables iproute2
install_rkpy "$ROOT"

work=$(mktemp -d)
export GNUPGHOME="$work/gnupg"
rkpy() { "$BIN/rkpy" --dir="$work/data" --local-config="$work/etc" "$@"; }
clean() {
    gpgconf --kill all
    rkpy gc --grace-period=0s
    rm -rf --one-file-system "$work"
    rmdir /run/rkpy 2> /dev/null || true
}
trap clean EXIT
say() { printf '\n# %s\n' "$*"; }

say "An image is a tar of a manifest and a root file system."
mkdir -p "$work/image/rootfs/bin" "$work/image/rootfs/etc" && mkdir -m 0700 "$GNUPGHOME"
cp /bin/busybox "$work/image/rootfs/bin/busybox"
ln -s busybox "$work/image/rootfs/bin/sh"
printf 'root:x:0:0::/:/bin/sh\nhello:x:1000:1000::/:/bin/sh\n' > "$work/image/rootfs/etc/passwd"
printf 'root:x:0:\nhello:x:1000:\n' > "$work/image/rootfs/etc/group"
printf 'hosts: files dns\n' > "$work/image/rootfs/etc/nsswitch.conf"
cat > "$work/image/manifest" <<'JSON'
{
    "acKind": "ImageManifest",
    "acVersion": "0.8.11",
    "name": "example.com/hello",
    "labels": [
        {"name": "version", "value": "1.0"},
        {"name": "os", "value": "linux"},
        {"name": "arch", "value": "amd64"}
    ],
    "app": {
        "exec": ["/bin/sh", "-c", "echo hello from $AC_APP_NAME, run by uid $(busybox id -u)"],
        "user": "hello",
        "group": "hello"
    }
}
JSON
tar -C "$work/image" -czf "$work/hello.aci" manifest rootfs

say "Signed with gpg, beside the image, as appC has it."
gpg --batch --quiet --passphrase '' --quick-generate-key 'Demo Builder <demo@example.com>' ed25519 sign never
gpg --batch --quiet --armor --export demo@example.com > "$work/demo.pub"
gpg --batch --quiet --armor --detach-sign --output "$work/hello.aci.asc" "$work/hello.aci"

say "Without a trusted key it does not run:"
if rkpy run --stage1=fly "$work/hello.aci"; then echo "an untrusted image ran" >&2; exit 1; fi

say "Trust the key for images below example.com, and it does:"
rkpy trust --prefix=example.com --skip-fingerprint-review "$work/demo.pub"
rkpy run --stage1=fly "$work/hello.aci"

say "From the store, by name:"
rkpy run --stage1=fly example.com/hello:1.0 --exec=/bin/sh -- -c 'echo my own words; exit 3' || echo "exit status $?"
rkpy image list

say "The same image in namespaces of its own, without a network:"
rkpy run --net=none example.com/hello:1.0 --exec=/bin/sh -- -c 'busybox ps; exit 4' || echo "exit status $?"
rkpy list

say "Two pods on the default network, with a published port; in a namespace that plays this machine, whose own is left alone:"
cat > "$work/networks.sh" <<'SH'
set -eu
ip link set lo up
mkdir -p /run/rkpy
mount -t tmpfs tmpfs /run/rkpy
trap '"$@" stop web > /dev/null; wait' EXIT
"$@" run --pod-name=web --port=8080:8000 example.com/hello:1.0 --exec=/bin/busybox -- httpd -f -p 8000 -h /etc &
again() { for _ in $(seq 100); do "$@" 2> /dev/null && return; sleep 0.1; done; "$@"; }
echo "# Its name, asked for by the host over loopback, and by a second pod:"
again busybox wget -q -O - http://127.0.0.1:8080/hostname
"$@" run example.com/hello:1.0 --exec=/bin/busybox -- wget -q -O - http://web:8000/hostname
"$@" list
"$@" net list
SH
unshare --net --mount sh "$work/networks.sh" "$BIN/rkpy" --dir="$work/data" --local-config="$work/etc"

say "One byte changed, and it is refused:"
cp "$work/hello.aci" "$work/tampered.aci" && cp "$work/hello.aci.asc" "$work/tampered.aci.asc"
printf x | dd of="$work/tampered.aci" bs=1 seek=100 conv=notrunc status=none
if rkpy run --stage1=fly "$work/tampered.aci"; then echo "a tampered image ran" >&2; exit 1; fi
say "Done."
