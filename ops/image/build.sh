#!/usr/bin/env bash
# Build the image without Docker, as root: a base by debootstrap, the Dockerfile by buildah in a chroot.
#
#   ops/image/build.sh [cpu|gpu] [TAG]        needs buildah and debootstrap (apt-get install --no-install-recommends)
#
# Debian's own Python 3.11 is the base; with BASE=python:3.11-slim-bookworm and BASE_DIGEST=@sha256:… it is that image.
# RELEASE=1 builds what is to be published, and refuses a base that is not named by its digest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
target=${1:-cpu}
tag=${2:-ebbtide:$target}
base=${BASE:-localhost/debian-python:3.11}
digest=${BASE_DIGEST:-}
if [[ -n ${RELEASE:-} && ! $base$digest =~ @sha256:[0-9a-f]{64}$ ]]; then
    echo "a release names its base by digest: BASE=python:3.11-slim-bookworm BASE_DIGEST=@sha256:…" >&2
    exit 2
fi
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=${STORAGE_DRIVER:-vfs}

if [[ -z ${BASE:-} ]] && ! buildah inspect --type image "$base" >/dev/null 2>&1; then
    root=$(mktemp -d)
    trap 'rm -rf "$root"' EXIT
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$root" >/dev/null
    rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale}/*
    container=$(buildah from scratch)
    buildah copy --quiet "$container" "$root" / >/dev/null
    buildah commit --quiet --rm "$container" "$base" >/dev/null
fi

# How this machine reaches its index is the build's affair, and no part of the image.
mounts=()
for file in /etc/pip.conf "${PIP_CERT:-}"; do
    [[ -f $file ]] && mounts+=(--volume "$file:$file:ro")
done
buildah build "${mounts[@]}" --network host --build-arg "PYTHON_IMAGE=$base" \
    --build-arg "BASE_DIGEST=$digest" --target "$target" \
    --file Dockerfile --tag "$tag" .

# What is inside, and how much: runs/sbom-TARGET.json.
mkdir -p runs
container=$(buildah from "$tag")
mounted=$(buildah mount "$container")
python3 ops/image/sbom.py "$mounted"/opt/ebbtide/lib/python3*/site-packages >"runs/sbom-$target.json"
echo "$tag: $(du -sm "$mounted" | cut -f1) MB, $(grep -c '"purl"' "runs/sbom-$target.json") packages in runs/sbom-$target.json"
buildah rm "$container" >/dev/null
