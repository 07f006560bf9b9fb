#!/usr/bin/env bash
# Makes the project's own Python environment in .venv, with the exact packages of constraints.txt.
#   scripts/setup.sh           with the developers' tools too: tests, type checks, the guide
#   scripts/setup.sh --user    all that the commands need
# Safe to call at any time: it returns at once when nothing changed, updates when the pins or
# pyproject.toml changed, and rebuilds an environment that is broken, moved or half-made.
set -euo pipefail

readonly OLDEST_MINOR=10 # Python 3.10
readonly NEWEST_MINOR=14 # the newest that every pinned package has a build for

cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly VENV=.venv
readonly STAMP=$VENV/setup-stamp
readonly LOG=$VENV/setup.log

case ${1:-} in
    '') kind=dev ;;
    --user) kind=user ;;
    *)
        sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
        exit 2
        ;;
esac

say() { printf 'setup: %s\n' "$*"; }

fail() {
    printf 'setup: error: %s\n' "$@" >&2
    exit 1
}

# Three lines: what the environment was made from, for whom, and where (its scripts hold absolute
# paths).
wanted_stamp() {
    cat constraints.txt requirements-sam2.txt pyproject.toml scripts/setup.sh | cksum
    printf '%s\n' "$1"
    pwd -P
}

is_up_to_date() {
    # One with the developers' tools serves a user too.
    [ "$(cat $STAMP)" = "$(wanted_stamp $kind)" ] || [ "$(cat $STAMP)" = "$(wanted_stamp dev)" ]
}

venv_works() {
    [ -x $VENV/bin/python ] && $VENV/bin/python -c 'import sys' 2>/dev/null
}

same_place() {
    [ -f $STAMP ] && [ "$(tail -n 1 $STAMP)" = "$(pwd -P)" ]
}

is_suitable_python() {
    "$1" - 2>/dev/null <<PYTHON
import sys, venv, ensurepip
sys.exit(not (3, $OLDEST_MINOR) <= sys.version_info[:2] <= (3, $NEWEST_MINOR))
PYTHON
}

find_python() {
    local candidate
    for candidate in python3 python3.12 python3.11 python3.13 python3.10 python3.14; do
        if command -v "$candidate" >/dev/null && is_suitable_python "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    fail "no suitable Python was found: 3.$OLDEST_MINOR to 3.$NEWEST_MINOR with the venv module is needed" \
        "install one (on Debian or Ubuntu: apt-get install python3 python3-venv) and run this again"
}

make_venv() {
    local python
    python=$(find_python)
    say "making $VENV with $("$python" --version)"
    rm -rf $VENV
    "$python" -m venv $VENV || fail "$python could not make $VENV; is there space and write permission?"
}

# The constraints reach every pip, also the ones that pip itself starts to build a package.
export PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

install() {
    $VENV/bin/python -m pip install --progress-bar off "$@" >>$LOG 2>&1 && return
    tail -n 12 $LOG >&2
    fail "pip could not install: $*" \
        "check the network, the proxy, pip's configuration and the free disk space, then run this again" \
        "the whole story is in $LOG"
}

# What pip is doing goes to the log; the size says how far it is.
step() {
    local text=$1 start=$SECONDS
    shift
    say "$text"
    "$@"
    say "    done in $((SECONDS - start)) s; $VENV has $(du -sh $VENV | cut -f1) now"
}

if venv_works && same_place; then
    if is_up_to_date; then
        say "$VENV is up to date"
        exit 0
    fi
    say "the pins or the project's metadata changed: updating $VENV"
    rm $STAMP
else
    make_venv
fi

extra=all also=''
if [ $kind = dev ]; then
    extra=dev also=" and the developers' tools (without them: scripts/setup.sh --user)"
fi
say "1 to 5 minutes; details in $LOG"
# torch first and alone: with it in place no other package's needs can choose another build of it.
step "1/3 PyTorch: a download of 0.2 GB for a CPU, of 3 GB where pip finds a build for CUDA" \
    install "$(sed -n 's/^\(torch==[^ ;]*\).*/\1/p' constraints.txt)"
# Then sam2, built beside that torch and held to its hash; its CUDA extension is not used.
SAM2_BUILD_CUDA=0 step "2/3 SAM2, built from source" install --no-deps --no-build-isolation \
    --require-hashes --requirement requirements-sam2.txt
step "3/3 the other packages, a download of 0.5 GB$also" install --editable ".[$extra]"

wanted_stamp $kind >$STAMP
say "$VENV is ready"
