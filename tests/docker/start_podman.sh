#!/usr/bin/env bash
# start_podman.sh FOLDER: serve podman's own socket, FOLDER/podman.sock, with images and containers below FOLDER. It stays
# in the foreground, so that who starts it can end it.
set -euo pipefail
folder=$1
mkdir -p "$folder"
# Its own defaults are above what a build machine lets anybody raise.
printf '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]\n' >"$folder/containers.conf"
driver=overlay
[[ $(stat -f -c %T "$folder") == overlayfs ]] && driver=vfs
export CONTAINERS_CONF=$folder/containers.conf
exec podman --root "$folder/root" --runroot "$folder/run" --runtime runc --storage-driver "$driver" \
    --cgroup-manager cgroupfs system service --time=0 "unix://$folder/podman.sock"
