#!/usr/bin/env bash
# Builds the image with docker, podman or buildah, whichever is there.
#   scripts/build_image.sh [--cpu | --cuda 12.6] [--tag NAME] [-- OPTIONS OF THE ENGINE'S BUILD]
# --cpu        leaves CUDA out: a third of the size, no GPU.
# --cuda 12.6  for GPUs and drivers that CUDA 13 does not support: compute capability 5.0 to 9.0,
#              driver 525 or newer. Its pins are in constraints-cuda12.6.txt.
# --tag        [default: sslmedsam2, sslmedsam2:cpu or sslmedsam2:cuda12.6]
# After -- for example:
#   --build-arg SAM2_WEIGHTS=medsam2              bake in official weights and accept their terms
#   --build-arg BASE_IMAGE=nvidia/cuda:...@sha256:...
#   --secret id=ca,src=FILE --secret id=pipconf,src=FILE     a site's own certificate and pip.conf
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/image_engine.sh
source scripts/image_engine.sh

readonly CPU_BASE=docker.io/library/debian:bookworm-slim
readonly CUDA126_BASE=docker.io/nvidia/cuda:12.6.3-base-ubuntu24.04
readonly TORCH_BUILDS=https://download.pytorch.org/whl

usage() {
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit "$1"
}

tag=''
variant=()
default_tag=sslmedsam2
while [ $# -gt 0 ]; do
    case $1 in
        --cpu)
            variant=(--build-arg TORCH=cpu --build-arg "TORCH_INDEX=$TORCH_BUILDS/cpu"
                --build-arg "BASE_IMAGE=$CPU_BASE")
            default_tag=sslmedsam2:cpu
            ;;
        --cuda)
            [ "${2:-}" = 12.6 ] || usage 2 >&2
            variant=(--build-arg TORCH=cuda --build-arg "TORCH_INDEX=$TORCH_BUILDS/cu126"
                --build-arg CUDA_PINS=constraints-cuda12.6.txt
                --build-arg "BASE_IMAGE=$CUDA126_BASE")
            default_tag=sslmedsam2:cuda12.6
            shift
            ;;
        --tag)
            [ $# -gt 1 ] || usage 2
            tag=$2
            shift
            ;;
        --)
            shift
            break
            ;;
        -h | --help) usage 0 ;;
        *) usage 2 >&2 ;;
    esac
    shift
done
tag=${tag:-$default_tag}

revision=unknown created=unknown
if git rev-parse HEAD >/dev/null 2>&1; then
    revision=$(git rev-parse HEAD)
    created=$(git log -1 --format=%cI)
    git diff --quiet HEAD -- || revision+=-changed
fi
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' sslmedsam2/__init__.py)

find_engine
# The OCI format has no place for the health check; Docker's own format has.
case ${ENGINE[0]} in
    docker) build=(env DOCKER_BUILDKIT=1 docker build) ;;
    podman) build=("${ENGINE[@]}" build --format docker) ;;
    buildah) build=(buildah bud --format docker --layers) ;;
esac

printf 'building %s with %s\n' "$tag" "${ENGINE[0]}"
"${build[@]}" --tag "$tag" "${variant[@]}" \
    --build-arg "VERSION=$version" --build-arg "REVISION=$revision" \
    --build-arg "CREATED=$created" "$@" .

if [ "${ENGINE[0]}" != buildah ]; then
    bytes=$("${ENGINE[@]}" image inspect --format '{{.Size}}' "$tag")
    printf '%s: %d MB\n' "$tag" $((bytes / 1000000))
fi
