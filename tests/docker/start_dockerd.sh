#!/usr/bin/env bash
# start_dockerd.sh FOLDER: start a Docker daemon of its own, without bridge and firewall; socket FOLDER/docker.sock,
# process FOLDER/docker.pid. It stays in the foreground, so that who starts it can end it.
set -euo pipefail
folder=$1
mkdir -p "$folder"
# Not overlay2 on top of an overlay: a container as a build machine has no other file system to put it on.
driver=overlay2
[[ $(stat -f -c %T "$folder") == overlayfs ]] && driver=vfs
exec dockerd --host "unix://$folder/docker.sock" --data-root "$folder/data" --exec-root "$folder/run" \
    --pidfile "$folder/docker.pid" --storage-driver "$driver" --bridge none --iptables=false --ip6tables=false \
    --ip-forward=false --ip-masq=false
