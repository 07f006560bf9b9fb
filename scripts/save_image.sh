#!/usr/bin/env bash
# Saves the image as the archive that the challenge asks for, to be read by `docker load -i`.
#   scripts/save_image.sh TEAM [--task Contrast|NonContrast] [--image NAME] [--to FOLDER]
# The archive is LiSeg-TEAM.tar.gz, or LiSeg-Contrast-TEAM.tar.gz as in 2025, and holds the image
# under the name sslmedsam2.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/image_engine.sh
source "$here/image_engine.sh"

usage() {
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit "$1"
}

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

team='' task='' image=sslmedsam2 folder=.
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage 0 ;;
        --task | --image | --to)
            [ $# -gt 1 ] || usage 2 >&2
            case $1 in
                --task) task=$2- ;;
                --image) image=$2 ;;
                --to) folder=$2 ;;
            esac
            shift
            ;;
        -*) usage 2 >&2 ;;
        *) team=$1 ;;
    esac
    shift
done
[[ $team =~ ^[A-Za-z0-9_.-]+$ ]] || usage 2 >&2
[[ $task =~ ^((Non)?Contrast-)?$ ]] || usage 2 >&2

find_engine
readonly ARCHIVE=$folder/LiSeg-$task$team.tar.gz NAME=docker.io/library/sslmedsam2:latest
mkdir -p "$folder"
partial=$(mktemp "$folder/.image-XXXXXX")
trap 'rm -f "$partial" "$partial.tar"' EXIT

compress() {
    if command -v pigz >/dev/null; then pigz -c; else gzip -c; fi
}

if [ "${ENGINE[0]}" = docker ]; then
    docker image inspect "$image" >/dev/null || fail "there is no image $image"
    docker tag "$image" sslmedsam2:latest
    docker save sslmedsam2:latest | compress >"$partial"
elif [ "${ENGINE[0]}" = podman ]; then
    "${ENGINE[@]}" image exists "$image" || fail "there is no image $image"
    "${ENGINE[@]}" tag "$image" "$NAME"
    "${ENGINE[@]}" save --format docker-archive --output "$partial.tar" "$NAME"
    compress <"$partial.tar" >"$partial"
else
    buildah push "$image" "docker-archive:$partial.tar:$NAME"
    compress <"$partial.tar" >"$partial"
fi
chmod 644 "$partial"
mv "$partial" "$ARCHIVE"
printf '%s: %d MB, SHA-256 %s\n' "$ARCHIVE" $(($(stat -c %s "$ARCHIVE") / 1000000)) \
    "$(sha256sum <"$ARCHIVE" | cut -d ' ' -f 1)"
