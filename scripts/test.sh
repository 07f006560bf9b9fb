#!/usr/bin/env bash
# Makes the environment and runs the tests. Usage: scripts/test.sh [--all] [pytest options]
# Without --all the tests marked slow are left out.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh

chosen=(-m 'not slow')
if [ "${1:-}" = --all ]; then
    shift
    chosen=()
fi

# The tests that run SAM2 have a process of their own: at the end of one process that had run
# hundreds of other tests, SAM2's died of a segmentation fault, and the cause is not yet known.
readonly SAM2_TESTS=(
    tests/fewshot
    tests/cli/test_cli_pretrain_sam2.py tests/cli/test_cli_pseudo_label.py
    tests/pipelines/test_pipelines_pretrain_sam2.py
    tests/pipelines/test_pipelines_pseudo_label.py
    tests/pipelines/test_pipelines_pseudo_label_bad_inputs.py
    tests/pipelines/test_pipelines_pseudo_label_shipped.py
)
failed=0
.venv/bin/python -m pytest "${chosen[@]}" "${SAM2_TESTS[@]/#/--ignore=}" "$@" || failed=1
.venv/bin/python -m pytest "${chosen[@]}" "$@" "${SAM2_TESTS[@]}" || failed=1
exit $failed
