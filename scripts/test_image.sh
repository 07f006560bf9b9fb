#!/usr/bin/env bash
# Builds the CPU variant of the image and runs it as a strict platform would: no network, read-only,
# no capabilities, few processes, little shared memory, any user.
#   scripts/test_image.sh [--image NAME | --cuda] [--only WORDS OF A CHECK] [--work FOLDER]
#                         [--time-limit SECONDS]
# --image  check this image instead of building one
# --cuda   what can be checked of the variant for a GPU without a GPU and without an engine: its
#          packages, their size once trimmed, how they are linked, and for which GPUs. A download of
#          3 GB, 8 GB on the disk
# --time-limit  how long a container may run, 900 s unless said: a machine that others share needs more
# With Docker it builds on debian:bookworm-slim. Without an engine, as root on Debian or Ubuntu, it
# installs podman by apt and makes a base image by debootstrap. Takes 10 to 20 minutes and 8 GB.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/image_engine.sh
source scripts/image_engine.sh

usage() {
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit "$1"
}

image='' cuda='' only=() limit=() work=build/image
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage 0 ;;
        --cuda) cuda=yes ;;
        --image | --only | --work | --time-limit)
            [ $# -gt 1 ] || usage 2 >&2
            case $1 in
                --image) image=$2 ;;
                --only) only=(--only "$2") ;;
                --work) work=$2 ;;
                --time-limit) limit=(--time-limit "$2") ;;
            esac
            shift
            ;;
        *) usage 2 >&2 ;;
    esac
    shift
done

say() { printf '\n== %s\n' "$*"; }

install_podman() {
    say 'no container engine: installing podman by apt'
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install --yes -qq --no-install-recommends \
        buildah debootstrap netavark podman runc uidmap >/dev/null
}

if [ -n "$cuda" ]; then
    bash scripts/setup.sh
    exec .venv/bin/python scripts/cuda_checks.py --work "$work" "${only[@]}"
fi

has_tools() {
    local tool
    for tool in buildah debootstrap podman runc; do
        command -v $tool >/dev/null || return 1
    done
}

if ! engine_works docker; then
    has_tools || install_podman
    export IMAGE_ENGINE=${IMAGE_ENGINE:-podman}
    # Whole copies of every layer, podman's choice where it finds no settings, would fill the disk.
    [ -e /etc/containers/storage.conf ] || export STORAGE_DRIVER=${STORAGE_DRIVER:-overlay}
fi
find_engine

bash scripts/setup.sh
mkdir -p "$work"
work=$(cd "$work" && pwd)
.venv/bin/python scripts/image_site.py "$work/site"

if [ -z "$image" ]; then
    image=sslmedsam2:test
    mapfile -t options <"$work/site/build-options"
    if [ "${ENGINE[0]}" = podman ]; then
        say 'making the base image'
        bash scripts/image_base.sh "$work/site"
        # shellcheck source=/dev/null
        base=localhost/base:$(source /etc/os-release && printf %s "$VERSION_CODENAME")
        options+=(--isolation chroot --build-arg "BASE_IMAGE=$base")
    else
        # Docker builds with secrets, but not with folders of this machine.
        mapfile -t options < <(grep --no-group-separator -A 1 '^--secret$' "$work/site/build-options")
    fi
    say 'building the image'
    bash scripts/build_image.sh --cpu --tag "$image" -- "${options[@]}"
fi

say 'checking the image'
exec .venv/bin/python scripts/image_checks.py --work "$work" --image "$image" "${only[@]}" \
    "${limit[@]}" -- "${ENGINE[@]}"
