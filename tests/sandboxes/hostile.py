"""What a command may try. Each prints BREACH where it succeeds; SECRET is in a file, in `/tmp`, in the environment."""

# ruff: noqa: E501 - scripts are read as they are typed

from __future__ import annotations


def python(code: str) -> str:
    return f"python3 - <<'END'\nimport ctypes, os, socket, sys\nlibc = ctypes.CDLL(None, use_errno=True)\n{code}\nEND"


def succeeds(command: str) -> str:
    return f"if {command}; then echo BREACH; fi 2>/dev/null"


ATTACKS = {
    # what is of this machine
    "read_planted_home": "cat {home}/secret ~/.ssh/* /root/.ssh/* /home/*/.ssh/* 2>&1",
    "read_planted_tmp": "cat {tmp_file}; cat /tmp/* 2>&1; find / -xdev -name 'secret*' -exec cat {{}} + 2>&1 | tail -5",
    "read_environment": "env; cat /proc/*/environ | tr '\\0' '\\n'; cat /proc/1/cmdline | head -c 3000",
    "read_shadow": succeeds("cat /etc/shadow /etc/sudoers | grep ."),
    "write_outside": "for f in / /usr /etc /usr/bin /lib {home} /proc/sys /root; do "
    + succeeds("touch $f/x")
    + "; done",
    "remount_writable": succeeds("mount -o remount,rw /usr") + "; " + succeeds("mount -o remount,rw /"),
    "mount_proc_or_disk": succeeds("mount -t proc x /tmp") + "; " + succeeds("mount /dev/vda /tmp"),
    "bind_over": succeeds("mount --bind /work /usr"),
    "unmount": succeeds("umount /proc/sys") + "; " + succeeds("umount -l /usr") + "; " + succeeds("umount -l /proc"),
    "unshare_user": succeeds("unshare -U true")
    + "; "
    + succeeds("unshare -Urm true")
    + "; "
    + succeeds("unshare -n true"),
    "clone_new_user": python("pid = libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0)\nif pid >= 0: print('BREACH')"),
    "setns": python("fd = os.open('/proc/self/ns/net', 0)\nif libc.setns(fd, 0) == 0: print('BREACH')"),
    "pivot_root": python("if libc.syscall(155, b'/work', b'/work') == 0: print('BREACH')"),
    "chroot_breakout": python(
        "try:\n os.mkdir('d'); os.chroot('d'); os.chdir('../../../..'); os.chroot('.'); print('BREACH')\n"
        "except OSError as error: print(error)"
    ),
    "mknod_disk": succeeds("mknod /work/d b 254 0 && head -c 1 /work/d"),
    "devices": succeeds("ls /dev/vd* /dev/sd* /dev/nvme* /dev/mem /dev/kmsg /dev/fuse /dev/kvm | grep ."),
    "kernel_memory": succeeds("head -c 1 /proc/kcore") + "; " + succeeds("head -c 1 /dev/mem"),
    "setuid": python(
        "try:\n os.setuid(0 if os.getuid() else 12345); print('BREACH')\nexcept OSError as error: print(error)"
    ),
    "setuid_file": "cp /bin/sh s; chmod 4755 s; ./s -p -c 'cat /etc/shadow' 2>/dev/null && echo BREACH",
    "proc_sys": "for f in kernel/core_pattern kernel/hostname vm/drop_caches user/max_user_namespaces; do "
    + succeeds("echo 1 > /proc/sys/$f")
    + "; done",
    "sysrq": succeeds("echo b > /proc/sysrq-trigger"),
    "cgroup_release_agent": succeeds("mkdir /sys/fs/cgroup/memory/x") + "; " + succeeds("mount -t cgroup x /tmp"),
    # the first process
    "kill_init": "kill -9 1; kill -TERM 1; kill -INT 1; kill -STOP 1; kill -CHLD 1; sleep 0.2; echo alive",
    "kill_all": "kill -9 -1",
    "kill_parent": "kill -9 $PPID; kill -STOP $PPID; kill -9 0",
    "ptrace_init": python("if libc.ptrace(16, 1, 0, 0) == 0 or libc.ptrace(0x4206, 1, 0, 0) == 0: print('BREACH')"),
    "init_memory": succeeds("head -c 1 /proc/1/mem") + "; " + succeeds("cat /proc/1/maps | grep ."),
    "init_root": succeeds("ls /proc/1/root/")
    + "; "
    + succeeds("ls /proc/1/cwd/")
    + "; "
    + succeeds("cat /proc/1/environ"),
    "init_descriptors": "for fd in 0 1 2; do "
    + succeeds("readlink /proc/1/fd/$fd || ls -l /proc/1/fd/ | grep -e '->'")
    + "; "
    + succeeds("echo x > /proc/1/fd/$fd")
    + "; done",
    "init_limits": python(
        "limits = (ctypes.c_ulong * 2)(1, 1)\nif libc.prlimit(1, 7, ctypes.byref(limits), None) == 0: print('BREACH')"
    ),
    "read_init_memory": python(
        "v = (ctypes.c_ulong * 2)(0x400000, 8)\nif libc.process_vm_readv(1, v, 1, v, 1, 0) > 0: print('BREACH')"
    ),
    "forge_frames": python(
        "import struct\nframe = struct.pack('>II', 2, 6) + b'{{}}BREACH'\n"
        "for fd in range(3, 256):\n try: os.write(fd, frame); print('BREACH')\n except OSError: pass\n"
        "os.write(1, struct.pack('>II', 2, 0) + b'{{}}')"
    ),
    # what it reaches
    "loopback": python(
        "try:\n socket.create_connection(('127.0.0.1', {port}), 2); print('BREACH')\nexcept OSError as error: print(error)"
    ),
    "network": python(
        "for host in '1.1.1.1', '169.254.169.254', '10.0.0.1', '172.17.0.1':\n"
        " try: socket.create_connection((host, 80), 1); print('BREACH')\n except OSError as error: print(error)"
    ),
    "datagrams": python(
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "try: s.sendto(b'x', ('8.8.8.8', 53)); print('BREACH')\nexcept OSError as error: print(error)"
    ),
    "abstract_socket": python(
        "s = socket.socket(socket.AF_UNIX)\n"
        "try: s.connect('\\0{abstract}'); print('BREACH')\nexcept OSError as error: print(error)"
    ),
    "vsock": python(
        "try: socket.socket(40, socket.SOCK_STREAM); print('BREACH')\nexcept OSError as error: print(error)"
    ),
    "raw_socket": python(
        "for family, kind in ((2, 3), (17, 3)):\n"
        " try: socket.socket(family, kind); print('BREACH')\n except OSError as error: print(error)"
    ),
    "docker_socket": succeeds("ls /var/run/docker.sock /run/docker.sock /run/podman /run/dbus | grep ."),
    "keyring": python("if libc.syscall(248, b'user', b'k', b'v', 1, -3) > 0: print('BREACH')"),
    "terminal": python(
        "import fcntl, termios\n"
        "for fd in range(3):\n"
        " try: fcntl.ioctl(fd, termios.TIOCSTI, b'x'); print('BREACH')\n except OSError as error: print(error)\n"
        "try: os.open('/dev/tty', os.O_RDWR); print('BREACH')\nexcept OSError as error: print(error)"
    ),
    # what it uses up
    "fork_bomb": "f() {{ f | f & }}; f; sleep 30",
    "fork_bomb_of_daemons": python(
        "for _ in range(100000):\n try:\n  if os.fork() == 0: os.setsid()\n except OSError: pass"
    ),
    "memory_of_one": python("try:\n a = bytearray(1 << 30); print('BREACH')\nexcept MemoryError: print('none')"),
    "memory_of_many": "for i in 1 2 3 4 5 6 7 8 9; do python3 -c 'a = bytearray(60 << 20); import time; time.sleep(60)' & done; "
    "wait; echo BREACH",
    "shared_memory": python(
        "import mmap\nm = mmap.mmap(-1, 1 << 29)\nfor at in range(0, 1 << 29, 4096): m[at] = 1\nprint('BREACH')"
    ),
    "memory_files": python(
        "if libc.syscall(319, b'x', 0) >= 0 or libc.shmget(0, 1 << 28, 0o1600) >= 0: print('BREACH')"
    ),
    "disk": "for d in /work /tmp /dev/shm /dev; do for i in $(seq 30); do head -c 16M /dev/zero > $d/$i; done; done 2>/dev/null; "
    "test $(cat /work/* /tmp/* /dev/shm/* /dev/[0-9]* 2>/dev/null | wc -c) -gt 210000000 && echo BREACH; rm -f /work/* /tmp/*",
    "one_file": "head -c 20M /dev/zero > big; test $(wc -c < big) -gt 17000000 && echo BREACH; rm big",
    "inodes": python(
        "try:\n for i in range(200000): os.close(os.open('f%d' % i, os.O_CREAT))\n print('BREACH')\n"
        "except OSError as error: print(error)\nfinally:\n for name in os.listdir('.'): os.unlink(name)"
    ),
    "deep_folders": python(
        "try:\n for i in range(100000): os.mkdir('d'); os.chdir('d')\n print('BREACH')\nexcept OSError as error: print(error)"
    ),
    "output": "yes BREA",
    "output_without_line": "head -c 200M /dev/zero; printf '\\033]0;x\\007\\033[2J\\033c'",
    "closes_output": "exec >&- 2>&-; sleep 60",
    "sleeps": "sleep 100",
    "ignores_signals": "trap '' TERM INT HUP; while :; do :; done",
    # what it holds outside its processes; each ends by itself where nothing stops it, after 600 MB at most
    "shared_memory_unmapped": python(
        "import mmap, time\nkept = []\n"
        "for _ in range(12):\n"
        " m = mmap.mmap(-1, 50 << 20)\n"
        " for at in range(0, 50 << 20, 4096): m[at] = 1\n"
        " m.madvise(mmap.MADV_DONTNEED); kept.append(m)\n"
        "print('BREACH')"
    ),
    "shared_memory_of_zero": python(
        "import mmap\nkept = []\n"
        "with open('/dev/zero', 'r+b') as zero:\n"
        " for _ in range(12):\n"
        "  m = mmap.mmap(zero.fileno(), 50 << 20)\n"
        "  for at in range(0, 50 << 20, 4096): m[at] = 1\n"
        "  m.madvise(mmap.MADV_DONTNEED); kept.append(m)\n"
        "print('BREACH')"
    ),
    "socket_buffers": "("
    + python(
        "import time\nfilled, kept = 0, []\n"
        "for _ in range(15):\n"
        " if os.fork() == 0: break\n"
        "for _ in range(110):\n"
        " pair = socket.socketpair(); kept.append(pair)\n"
        " for one in pair:\n"
        "  one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20); one.setblocking(False)\n"
        "  try:\n"
        "   while filled < 40 << 20: filled += one.send(bytes(65536))\n"
        "  except OSError: pass\n"
        "time.sleep(1)\n"
        "if filled > 12 << 20: os.write(1, b'filled\\n')\n"
        "try:\n"
        " while True: os.wait()\n"
        "except OSError: pass"
    )
    + "\n) > sum; test $(grep -c filled sum) -gt 14 && echo BREACH",
    "connection_buffers": python(
        "filled, kept = 0, []\n"
        "server = socket.create_server(('127.0.0.1', 0), backlog=100)\n"
        "for _ in range(30):\n"
        " one = socket.create_connection(server.getsockname()); kept += [one, server.accept()[0]]\n"
        " one.setblocking(False)\n"
        " try:\n"
        "  while filled < 600 << 20: filled += one.send(bytes(65536))\n"
        " except OSError: pass\n"
        "if filled > 30 << 20: print('BREACH')"
    ),
    "page_tables": python(
        "libc.mmap.restype = ctypes.c_void_p\n"
        "libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]\n"
        "start = libc.mmap(None, 1 << 38, 1, 0x4022, -1, 0)\n"
        "for at in range(start, start + (1 << 38), 1 << 21): ctypes.string_at(at, 1)\n"
        "print('BREACH')"
    ),
    "spliced_pages": python(
        "given = ctypes.create_string_buffer(9)\nvector = (ctypes.c_ulong * 2)(ctypes.addressof(given), 8)\n"
        "if libc.vmsplice(os.pipe()[1], vector, 1, 0) > 0: print('BREACH')"
    ),
    "huge_pages": python(
        "import mmap\ntry: mmap.mmap(-1, 1 << 21, flags=0x40022); print('BREACH')\nexcept OSError as error: print(error)"
    ),
    # what all of the machine, or of a user, share
    "spared_when_memory_ends": python(
        "try: open('/proc/self/oom_score_adj', 'w').write('0')\nexcept OSError as error: print(error)\n"
        "if int(open('/proc/self/oom_score_adj').read()) < 500: print('BREACH')"
    ),
    "asynchronous_io": python(
        "context = ctypes.c_ulong()\nif libc.syscall(206, 60000, ctypes.byref(context)) == 0: print('BREACH')"
    ),
    "watches": python("if libc.inotify_init1(0) >= 0 or libc.syscall(300, 0, 0) >= 0: print('BREACH')"),
    "message_queues": python("if libc.syscall(240, b'x', 0o102, 0o600, 0) >= 0: print('BREACH')"),
    "other_socket_pairs": python(
        "pair = (ctypes.c_int * 2)()\n"
        "if libc.socketpair(17, 2, 0, pair) == 0 or ctypes.get_errno() != 97: print('BREACH')"
    ),
    "leases": python(
        "import fcntl\nos.close(os.open('f', os.O_CREAT))\n"
        "try: fcntl.fcntl(os.open('f', 0), 1024, fcntl.F_RDLCK); print('BREACH')\nexcept OSError as error: print(error)"
    ),
    "terminals": "("
    + python(
        "import time\n"
        "for _ in range(6):\n"
        " if os.fork() == 0: break\n"
        "kept = []\n"
        "try:\n"
        " while len(kept) < 240: kept.append(os.open('/dev/ptmx', os.O_RDWR))\n"
        "except OSError: pass\n"
        "time.sleep(1)\nos.write(1, b'%d\\n' % len(kept))\n"
        "try:\n"
        " while True: os.wait()\n"
        "except OSError: pass"
    )
    + "\n) > sum; test $(($(tr '\n' '+' < sum)0)) -gt 1000 && echo BREACH",
    "signals": python(
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [40])\n"
        "value = ctypes.c_void_p()\n"
        "if sum(libc.sigqueue(os.getpid(), 40, value) == 0 for _ in range(2000)) > 300: print('BREACH')"
    ),
    # what it leaves behind
    "daemons": "(setsid nohup sh -c 'sleep 76543; echo BREACH' &) >/dev/null 2>&1; exit 0",
    "double_fork": python(
        "if os.fork() == 0:\n os.setsid()\n if os.fork() == 0: os.execvp('sleep', ['sleep', '76543'])"
    ),
    "startup_files": "for f in .bashrc .profile .bash_profile sitecustomize.py usercustomize.py os.py json.py; do "
    "echo 'echo BREACH; print(\"BREACH\")' > $f; cp $f /tmp/; done; export BASH_ENV=/work/.bashrc PYTHONSTARTUP=/work/os.py",
    "path_of_next": "printf '#!/bin/sh\\necho BREACH\\n' > bash; chmod +x bash; cp bash sh; cp bash cat; export PATH=/work:$PATH",
    "preload": "echo x > l.so; export LD_PRELOAD=/work/l.so; echo /work/l.so > /etc/ld.so.preload",
    "archive_out": python(
        "import io, tarfile\n"
        "with tarfile.open('t.tar', 'w') as t:\n"
        " i = tarfile.TarInfo('../../../../usr/planted'); i.size = 1; t.addfile(i, io.BytesIO(b'x'))\n"
        " l = tarfile.TarInfo('l'); l.type = tarfile.SYMTYPE; l.linkname = '/usr'; t.addfile(l)\n"
    )
    + "\ntar -xPf t.tar; "
    + succeeds("ls /usr/planted"),
    "hard_link_out": succeeds("ln /etc/passwd /work/p && echo x >> /work/p"),
}
"""By name, the script; `home`, `tmp_file`, `port` and `abstract` are of this machine. Braces are doubled."""
