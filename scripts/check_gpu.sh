#!/usr/bin/env bash
# Checks a GPU in at most 8 minutes: does it compute what the CPU does, how fast, in how much memory?
#   scripts/check_gpu.sh [--out DIR] [--seconds 420] [--fake]
# --out    for check_gpu.json and check_gpu.md, a section for RESULTS.md [default: build/check_gpu]
# --fake   on a fake CUDA device, which needs a C++ compiler and no GPU: shows that the check works
#
# Uses PYTHON=/path/to/python3, or else the clone's own .venv, and makes it if it is not there.
# Where there is no network, on a machine that has PyTorch: scripts/gpu_kit.sh carries the packages.
# The torch of that machine may be another than the pinned one: check_gpu.json says which it was.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit "$1"
}

out=build/check_gpu options=()
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage 0 ;;
        --fake) options+=(--fake) ;;
        --out | --seconds)
            [ $# -gt 1 ] || usage 2 >&2
            if [ "$1" = --out ]; then out=$2; else options+=(--seconds "$2"); fi
            shift
            ;;
        *) usage 2 >&2 ;;
    esac
    shift
done

if [ -z "${PYTHON:-}" ]; then
    [ -x .venv/bin/python ] || bash scripts/setup.sh
    PYTHON=.venv/bin/python
fi
PYTHONPATH=$PWD exec "$PYTHON" benchmarks/check_gpu.py --out "$out" "${options[@]}"
