# shellcheck shell=bash
# Sourced by the other scripts of the image: which container engine there is, and how to call it.
# After `find_engine`, "${ENGINE[@]}" is the command. IMAGE_ENGINE=podman insists on one of them.

engine_works() {
    case $1 in
        # The client alone is no engine.
        docker) docker info >/dev/null 2>&1 ;;
        *) command -v "$1" >/dev/null ;;
    esac
}

find_engine() {
    local name
    for name in ${IMAGE_ENGINE:-docker podman buildah}; do
        if engine_works "$name"; then
            ENGINE=("$name")
            # Where the kernel still has version 1 of the control groups, crun does not start.
            if [ "$name" = podman ] && [ ! -e /sys/fs/cgroup/cgroup.controllers ] \
                && command -v runc >/dev/null; then
                ENGINE+=(--runtime runc --cgroup-manager cgroupfs)
            fi
            return
        fi
    done
    printf 'error: no container engine works here (looked for: %s)\n' \
        "${IMAGE_ENGINE:-docker podman buildah}" \
        'install Docker, or: apt-get install podman' >&2
    return 1
}
