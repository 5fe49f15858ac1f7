#!/usr/bin/env bash
# Build the image and run the sample job in it as the worst cluster would: read-only system, a user
# number that nobody knows, no HOME, no network, 1 MB of /tmp and of /dev/shm.
#   benchmarks/image.sh WORK_DIR [options of buildah build, for example --build-arg BASE_IMAGE=...]
# BASE=debian builds on a debootstrap base instead of python:3.12-slim, where no registry is at hand.
# Needs buildah, bubblewrap and GNU time (Debian), as root; no engine. Results: benchmarks/image.md.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mkdir -p "$1" && realpath "$1")
shift
export STORAGE_DRIVER=${STORAGE_DRIVER:-vfs} BUILDAH_ISOLATION=${BUILDAH_ISOLATION:-chroot}

if [[ ${BASE:-} == debian ]]; then
    base=localhost/siam-bids-base
    if ! buildah inspect --type image "$base" &> /dev/null; then
        packages=python3,python3-venv,ca-certificates
        debootstrap --variant=minbase --include=$packages bookworm "$work/base" > "$work/base.log"
        rm -rf "$work"/base/var/cache/apt/archives/*.deb "$work"/base/var/lib/apt/lists/*
        container=$(buildah from scratch)
        buildah copy --quiet "$container" "$work/base" / > /dev/null
        buildah commit --quiet --rm "$container" "$base" > /dev/null
        rm -rf "$work/base"
    fi
    set -- --build-arg BASE_IMAGE="$base" "$@"
fi
# HEALTHCHECK is Docker's; OCI's format has no place for it.
[[ ${KEEP_IMAGE:-} ]] || buildah build --quiet --format docker "$@" -t siam-bids . > "$work/image"
container=$(buildah from siam-bids)
trap 'buildah rm "$container" > /dev/null' EXIT
root=$(buildah mount "$container")
echo "size: $(du -sm --apparent-size "$root" | cut -f1) MB"

mkdir -p "$work/out" "$work/scratch"

inside() {
    bwrap --ro-bind "$root" / --dev /dev --proc /proc --unshare-all --uid 4242 --gid 4242 --clearenv \
        --setenv PATH /opt/siam-bids/bin:/usr/local/bin:/usr/bin:/bin \
        --size 1000000 --tmpfs /tmp --size 1000000 --tmpfs /dev/shm \
        --ro-bind data/sample_bids /media \
        --bind "$work/out" /mnt --bind "$work/scratch" /srv "$@"
}

timed() {
    local name=$1
    shift
    /usr/bin/time -f "$name: %e s" -o "$work/time" "$@" > "$work/log" 2>&1 || { cat "$work/log"; exit 1; }
    cat "$work/time"
}
export -f inside
export root work
for option in --version --help; do
    timed "siam-bids $option, first" bash -c "inside siam-bids $option"
    timed "siam-bids $option, again" bash -c "inside siam-bids $option"
done
timed "sample job, participant" bash -c "inside siam-bids /media /mnt participant -w /srv"
tail -1 "$work/log"
timed "sample job, group" bash -c "inside siam-bids /media /mnt group -w /srv"
tail -1 "$work/log"
find "$work/out" -name '*_dseg.nii.gz' | wc -l | sed 's/$/ label maps/'
