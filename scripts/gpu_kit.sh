#!/usr/bin/env bash
# Checks a GPU machine that has PyTorch and no network, and trains there what was begun elsewhere.
#   scripts/gpu_kit.sh pack [--work-dir DIR] [--kit DIR] [--checkpoint FILE] [--python 3.12]
#   scripts/gpu_kit.sh check --out DIR [--kit DIR] [options of check_gpu.sh]
#   scripts/gpu_kit.sh run  --out DIR [--kit DIR] [--minutes 6] [--sam2-minutes 0] [--batch 8]
#                        [--iterations-per-epoch 50] [--device cuda] [--learning-rate 8e-4]
#                        [--contrast-probability 0.5]
#
# pack   writes a kit of at most 60 MB: the source, the preprocessed volumes of `train --work-dir DIR`
#        as float16, the newest checkpoint, and the packages that a machine with torch, scipy,
#        scikit-image, matplotlib and click lacks, for its version of Python. Without --work-dir only
#        the packages, which is enough for check.
# check  on the GPU machine, in a clone beside the kit: runs check_gpu.sh with the kit's packages.
# run    on the GPU machine, in the kit's folder: trains the network of the kit for so many minutes
#        from its checkpoint, with a learning rate that ends at zero, then the compact SAM2. Writes
#        liver.pth (for `train --warm-start`), curve.csv and timing.json, and sam2.safetensors.
#
# The kit holds images of patients: keep it as they are kept, and never commit it.
set -euo pipefail

usage() {
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit "$1"
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
what=${1:-}
shift || true
kit=$here/build/gpu_kit python=3.12 arguments=()
[ "$what" = run ] && kit=$here
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage 0 ;;
        --kit | --python)
            [ $# -gt 1 ] || usage 2 >&2
            if [ "$1" = --kit ]; then kit=$(realpath -m "$2"); else python=$2; fi
            shift
            ;;
        *) arguments+=("$1") ;;
    esac
    shift
done

pack() {
    [ -x "$here/.venv/bin/python" ] || bash "$here/scripts/setup.sh"
    rm -rf "$kit/sslmedsam2"
    mkdir -p "$kit/wheels" "$kit/scripts"
    cp -r "$here/sslmedsam2" "$kit/"
    cp "$here/scripts/gpu_kit.sh" "$here/scripts/gpu_kit.py" "$kit/scripts/"
    find "$kit/sslmedsam2" \( -name __pycache__ -o -name assets \) -type d -prune -exec rm -r {} +
    # Compiled packages for the Python of the GPU machine, then those of any version.
    cd "$here"
    local pip="$here/.venv/bin/python -m pip" platforms=() n
    for n in 28 27 26 24 17; do platforms+=(--platform "manylinux_2_${n}_x86_64"); done
    $pip download --quiet --no-deps --only-binary=:all: --python-version "$python" \
        --implementation cp "${platforms[@]}" --platform manylinux2014_x86_64 \
        --constraint constraints.txt --dest "$kit/wheels" \
        blosc2 msgspec ndindex numexpr nibabel hydra-core omegaconf \
        batchgeneratorsv2 dynamic-network-architectures typing-extensions
    SAM2_BUILD_CUDA=0 $pip wheel --quiet --no-deps --constraint constraints.txt \
        --wheel-dir "$kit/wheels" nnunetv2 acvl-utils batchgenerators antlr4-python3-runtime iopath
    SAM2_BUILD_CUDA=0 $pip wheel --quiet --no-deps --no-build-isolation --require-hashes \
        --wheel-dir "$kit/wheels" --requirement requirements-sam2.txt
    PYTHONPATH=$here "$here/.venv/bin/python" "$here/scripts/gpu_kit.py" pack --kit "$kit" "$@"
}

unpack() {
    interpreter=${PYTHON:-python3}
    if [ ! -d "$kit/site" ]; then
        "$interpreter" -m pip install --quiet --no-index --no-deps --no-compile \
            --target "$kit/site" "$kit"/wheels/*.whl
    fi
}

check() {
    unpack
    PYTHONPATH=$here:$kit/site exec "$interpreter" "$here/scripts/gpu_kit.py" check "$@"
}

run() {
    unpack
    PYTHONPATH=$kit:$kit/site exec "$interpreter" "$kit/scripts/gpu_kit.py" run --kit "$kit" "$@"
}

case $what in
    pack | check | run) "$what" "${arguments[@]}" ;;
    *) usage 2 >&2 ;;
esac
