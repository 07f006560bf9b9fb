#!/usr/bin/env bash
# Makes the environment and runs the tests. Usage: scripts/test.sh [--all] [pytest options]
# Without --all the tests marked slow are left out.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh

if [ "${1:-}" = --all ]; then
    shift
    exec .venv/bin/python -m pytest "$@"
fi
exec .venv/bin/python -m pytest -m 'not slow' "$@"
