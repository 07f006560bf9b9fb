#!/usr/bin/env bash
# Builds the source distribution and, from it, the wheel. Both hold the weights (22 MB).
#   scripts/build_dist.sh [FOLDER]     [default: dist]
# PYTHON is the interpreter, which needs pip and setuptools  [default: .venv/bin/python].
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(realpath -s "${PYTHON:-.venv/bin/python}")
mkdir -p "${1:-dist}"
target=$(realpath "${1:-dist}")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# In a copy, since setuptools would put files of an earlier build into the wheel.
cp -R pyproject.toml setup.py MANIFEST.in constraints.txt requirements-sam2.txt README.md LICENSE \
    sslmedsam2 weights "$scratch"
cd "$scratch"
"$python" -c 'import sys, setuptools.build_meta as build; build.build_sdist(sys.argv[1])' \
    "$target" >"$scratch.log" 2>&1 || { cat "$scratch.log" >&2; exit 1; }
rm "$scratch.log"
version=$("$python" -c 'import sslmedsam2; print(sslmedsam2.__version__)')
"$python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$target" \
    "$target/sslmedsam2-$version.tar.gz"
ls -s --block-size=KB "$target/sslmedsam2-$version"*
