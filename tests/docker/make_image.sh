#!/usr/bin/env bash
# make_image.sh FOLDER PYTHON [NAME]: make FOLDER/root of this machine's own programs, since no registry is asked in tests:
# a shell, a few tools, and the standard library of the interpreter PYTHON, compiled, as any image has it. With a NAME, make
# an image of it.
set -euo pipefail
root=$1/root python=$2 name=${3:-}
tools="sh bash cat ls mkdir rm cp mv ln mkfifo mknod chmod chown head tail yes sleep id env setsid nohup kill seq dd sed grep find
    sort wc tr touch tee uname timeout mount umount unshare chroot tar true false printf echo stat df ps git python3"
mkdir -p "$root"/{bin,usr/bin,usr/lib,etc,tmp,work,root}
libraries() { ldd "$1" 2>/dev/null | grep -o '/[^ )]*' || true; }
copy() { [[ -e $root$1 ]] || { mkdir -p "$root$(dirname "$1")" && cp -L "$1" "$root$1"; }; }
for tool in $tools; do
    path=$(PATH=/usr/bin:/bin command -v "$tool") && [[ $path == /* ]] || continue
    cp -L "$path" "$root/bin/$tool"
    for library in $(libraries "$path"); do copy "$library"; done
done
prefix=$("$python" -c 'import sys; print(sys.base_prefix)')
binary=$("$python" -c 'import os, sys; print(os.path.realpath(sys.executable))')
standard=$("$python" -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
mkdir -p "$root$standard" "$root$prefix/bin"
tar -C "$standard" --exclude=site-packages --exclude=dist-packages --exclude=test --exclude='config-*' -c . | tar -C "$root$standard" -x
cp -L "$binary" "$root$prefix/bin/python3"
for file in "$binary" $(find "$root$standard" -name '*.so'); do
    for library in $(libraries "$file"); do copy "$library"; done
done
chmod 755 "$root" "$root/root"
chmod 1777 "$root/tmp"
printf 'root:x:0:0:root:/root:/bin/sh\nagent:x:1000:1000:agent:/tmp:/bin/sh\n' >"$root/etc/passwd"
printf %s "$prefix/bin:/usr/bin:/bin" >"$root/PATH"
[[ -z $name ]] || tar -C "$root" -c . | docker import -c "ENV PATH=$prefix/bin:/usr/bin:/bin" - "$name" >/dev/null
