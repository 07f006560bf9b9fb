#!/usr/bin/env bash
# Makes a minimal Debian or Ubuntu as the image localhost/base:<release>, where no registry can be
# reached: scripts/image_base.sh FOLDER, with FOLDER as image_site.py leaves it. Needs root, podman
# and debootstrap. The image names no mirror: a build brings this machine's list of sources along.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/image_engine.sh
source "$here/image_engine.sh"
# shellcheck source=/dev/null
source /etc/os-release

readonly SITE=$1 RELEASE=$VERSION_CODENAME
readonly IMAGE=localhost/base:$RELEASE
IMAGE_ENGINE=podman find_engine

if "${ENGINE[@]}" image exists "$IMAGE"; then
    printf '%s is there\n' "$IMAGE"
    exit
fi
mirror=$(awk -v release="$RELEASE" '$3 == release { print $2; exit }' "$SITE/sources.list")
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
debootstrap --variant=minbase --include=ca-certificates "$RELEASE" "$root" "$mirror" >"$SITE/debootstrap.log"
: >"$root/etc/apt/sources.list"
# What debootstrap takes from this machine, and what a container has no use for.
rm -rf "$root"/etc/{hostname,resolv.conf,machine-id} "$root"/var/log/* "$root"/var/cache/* \
    "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,info,locale,man}/*
tar -C "$root" -c . | "${ENGINE[@]}" import --quiet - "$IMAGE" >/dev/null
printf 'made %s\n' "$IMAGE"
