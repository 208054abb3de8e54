"""The walls of the sandbox: what the Linux kernel is asked to deny to a process before it runs a program.

The calls have no names in Python, so they go through ctypes; numbers are those of the kernel's headers.
Runs inside the sandbox, so it needs Python's library alone.
"""

import ctypes
import itertools
import os
import pwd
import resource
import struct
import sys
import sysconfig
from collections.abc import Container, Iterable
from typing import NamedTuple

from peft_study.sandbox.calls import libc_call

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x0002_0000, 0x0400_0000, 0x0800_0000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x1000_0000, 0x2000_0000, 0x4000_0000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    1,
    2,
    4,
    8,
    32,
    4096,
    16384,
    1 << 18,
)
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38

LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")
"""Where modules of Python that are written in C find what they are linked with."""
WRITABLE = "/tmp"
"""The one folder that a program may write to, where it has a root of its own."""


class Bounds(NamedTuple):
    """Limits of one process."""

    cpu_seconds: int
    memory_mib: int
    processes: int
    file_mib: int


# ---- users and limits


_PIDS = 1 << 22
"""More than the highest process id of any kernel."""


def spare_uids() -> tuple[int, int] | None:
    """Return two user ids that nobody has, other ones for each process; None where this one cannot take any.

    The kernel counts the processes of a user together, so one sandbox with the user of another could use up its limit.
    """
    if os.geteuid() != 0:
        return None
    with open("/proc/self/uid_map") as file:
        first, _, count = max([int(number) for number in line.split()] for line in file)
    # Containers number their processes anew, but the kernel may know their users by the same numbers.
    place = os.stat("/proc/self/ns/pid").st_ino * _PIDS + os.getpid()
    return pick_uids(first, count, {user.pw_uid for user in pwd.getpwall()}, place)


def pick_uids(first: int, count: int, taken: Container[int], place: int) -> tuple[int, int] | None:
    """Return two of `count` user ids from `first` on that are not `taken`; None where there are none.

    As long as the ids suffice, another `place` has others, whatever is taken: places that differ by less than 2^22,
    which is as many as there are processes, and those of 511 containers with subsequent numbers. A container that
    has but 65,536 ids has 32,767 pairs: with two sandboxes in it, that is the chance that they share one.

    >>> pick_uids(0, 10, {5}, 0), pick_uids(0, 10, {5}, 1), pick_uids(0, 10, {5}, 2)
    ((9, 8), (7, 6), (3, 2))
    """
    last, pairs = first + count - 1, (count - 1) // 2
    numbers = itertools.chain((place + i * _PIDS for i in range(8)), range(place, place + pairs))
    found = ((last - 2 * (number % pairs), last - 2 * (number % pairs) - 1) for number in numbers if pairs)
    return next(((a, b) for a, b in found if a not in taken and b not in taken), None)


def set_limits(bounds: Bounds, num_others: int) -> None:
    """Bind this process and its children; `num_others` processes of the same user are not the program's."""
    limits = {
        resource.RLIMIT_CPU: bounds.cpu_seconds,
        resource.RLIMIT_AS: bounds.memory_mib << 20,
        resource.RLIMIT_NPROC: bounds.processes + num_others,
        resource.RLIMIT_FSIZE: bounds.file_mib << 20,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_SIGPENDING: 64,
    }
    for limit, value in limits.items():
        highest = resource.getrlimit(limit)[1]
        # Soft and hard at once: CPU time then ends in SIGKILL, which cannot be ignored.
        value = value if highest == resource.RLIM_INFINITY else min(value, highest)
        resource.setrlimit(limit, (value, value))


def gain_nothing() -> None:
    """Make sure that neither this process nor its children gain rights again, whatever they start."""
    libc_call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def drop_privileges(uid: int | None) -> None:
    """Become `uid` for good, without groups and capabilities; None stays the same user, without capabilities."""
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    libc_call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
    # Version 3 of the header; effective, permitted and inheritable, 64 bits each, are none.
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x2008_0522, 0))
    libc_call("capset", header, ctypes.create_string_buffer(24))


def die_with_parent(parent: int) -> None:
    """Have this process killed when its parent ends; `parent` is what `os.getppid` says while it lives."""
    libc_call("prctl", PR_SET_PDEATHSIG, 9, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(70)


# ---- namespaces


def python_folders() -> list[str]:
    """Return the folders of Python's own library, and of libraries it is linked with; a program may read these."""
    own = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), f"{sys.base_exec_prefix}/lib")
    return [path for path in dict.fromkeys((*own, *LIBRARIES)) if os.path.exists(path)]


def enter_namespaces() -> int:
    """Give this process namespaces of its own, for users (if it is no root), mounts, processes, network and IPC.

    Returns in a child, the first process of the namespace; the caller itself waits for it and ends as it does.
    Returns a descriptor of the namespace of processes, for `fork_apart`.
    """
    uid, gid = os.geteuid(), os.getegid()
    flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    libc_call("unshare", flags | (CLONE_NEWUSER if uid else 0))
    if uid:
        # Without `deny` a user may not map a group.
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    child = os.fork()
    if child:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
    die_with_parent(0)  # out of sight from here
    return os.open("/proc/self/ns/pid", os.O_RDONLY)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    arguments = [value if value is None else os.fsencode(value) for value in (source, target, kind, options)]
    try:
        libc_call("mount", *arguments[:3], flags, arguments[3])
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} ({target})") from None


def _bind(source: str, target: str) -> None:
    """Show `source`, a folder or a file, at `target`, read-only."""
    _mount(source, target, None, MS_BIND | MS_REC)
    # Flags that the source has are locked for a user without rights over it: they are asked for again.
    kept = os.statvfs(target).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _mount(None, target, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | kept)


def enter_root(folders: Iterable[str]) -> None:
    """Change to a root that holds nothing but `folders`, read-only, `/dev/null`, and an empty place for `/tmp`."""
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    # Opened before the new root covers /tmp, where a folder may lie.
    sources = {path: os.open(path, os.O_PATH) for path in (*folders, "/dev/null")}
    new = "/tmp"
    _mount("none", new, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for path, descriptor in sources.items():
        if os.path.isdir(path):
            os.makedirs(new + path, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(new + path), exist_ok=True)
            os.close(os.open(new + path, os.O_CREAT | os.O_WRONLY))
        _bind(f"/proc/self/fd/{descriptor}", new + path)
        os.close(descriptor)
    os.makedirs(new + WRITABLE, exist_ok=True)
    os.chdir(new)
    # The old root lands on top of the new one, and is then taken off: nothing of it can be reached.
    libc_call("pivot_root", b".", b".")
    libc_call("umount2", b".", MNT_DETACH)
    os.chdir("/")
    _mount(None, "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def mount_folder(size_mib: int) -> None:
    """Lay an empty folder in memory over `WRITABLE`, of at most `size_mib` MiB and 1,024 files."""
    options = f"size={size_mib}m,nr_inodes=1024,mode=777"
    _mount("none", WRITABLE, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, options)


def unmount_folder() -> None:
    """Throw away what `mount_folder` laid."""
    libc_call("umount2", os.fsencode(WRITABLE), MNT_DETACH)


def fork_apart(namespace: int) -> int:
    """Fork like `os.fork`, the child being the first process of a namespace in which there are no others.

    When the child ends, the kernel ends every process that it left. `namespace` is that of the caller.
    """
    libc_call("unshare", CLONE_NEWPID)
    pid = os.fork()
    if pid:
        libc_call("setns", namespace, CLONE_NEWPID)
    return pid


# ---- Landlock: linux/landlock.h

READ_FILE, READ_DIR = 1 << 2, 1 << 3
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446


def landlock_version() -> int:
    """Return the version of Landlock that the kernel has, 0 for none."""
    try:
        return libc_call("syscall", _CREATE_RULESET, None, 0, 1)
    except OSError:
        return 0


def restrict_files(version: int, readable: Iterable[str], writable: Iterable[str]) -> None:
    """Deny every file but what is beneath the folders; what a version knows of network and signals is denied too."""
    files = (1 << (13, 14, 15, 15, 16)[min(version, 5) - 1]) - 1
    network, scopes = (3 if version >= 4 else 0), (3 if version >= 6 else 0)
    attributes = struct.pack("=QQQ", files, network, scopes)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = libc_call("syscall", _CREATE_RULESET, attributes, len(attributes), 0)
    for allowed, paths in ((READ_FILE | READ_DIR, readable), (files, writable)):
        for path in paths:
            descriptor = os.open(path, os.O_PATH)
            rights = allowed if os.path.isdir(path) else allowed & READ_FILE
            libc_call("syscall", _ADD_RULE, ruleset, 1, struct.pack("=Qi", rights, descriptor), 0)
            os.close(descriptor)
    libc_call("syscall", _RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
