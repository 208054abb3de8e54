"""System calls: how to make those that Python has no name for, and a filter of those that a program may make.

Numbers are those of linux/seccomp.h, linux/filter.h, asm/unistd_64.h and asm-generic/unistd.h (on aarch64).
Runs inside the sandbox, so it needs Python's library alone.
"""

import ctypes
import errno
import functools
import os
import platform
import struct
import sys
from collections.abc import Iterable
from typing import Any

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
CLONE_ANY_NEW = 0x7E02_0080
"""The flags of `clone` that make a namespace."""

ALLOWED = """
    read 0 63  write 1 64  open 2 -  close 3 57  stat 4 -  fstat 5 80  lstat 6 -  poll 7 -  lseek 8 62  mmap 9 222
    mprotect 10 226  munmap 11 215  brk 12 214  rt_sigaction 13 134  rt_sigprocmask 14 135  rt_sigreturn 15 139
    pread64 17 67  pwrite64 18 68  readv 19 65  writev 20 66  access 21 -  pipe 22 -  select 23 -  sched_yield 24 124
    mremap 25 216  msync 26 227  mincore 27 232  madvise 28 233  dup 32 23  dup2 33 -  pause 34 -  nanosleep 35 101
    getitimer 36 102  alarm 37 -  setitimer 38 103  getpid 39 172  exit 60 93  wait4 61 260  uname 63 160
    flock 73 32  fsync 74 82  fdatasync 75 83  ftruncate 77 46  getdents 78 -  getcwd 79 17  chdir 80 49  fchdir 81 50
    rename 82 -  mkdir 83 -  rmdir 84 -  creat 85 -  link 86 -  unlink 87 -  symlink 88 -  readlink 89 -  umask 95 166
    gettimeofday 96 169  getrlimit 97 163  getrusage 98 165  sysinfo 99 179  times 100 153  getuid 102 174
    getgid 104 176  geteuid 107 175  getegid 108 177  getppid 110 173  getpgrp 111 -  setsid 112 157  getgroups 115 158
    getresuid 118 148  getresgid 120 150  getpgid 121 155  getsid 124 156  rt_sigpending 127 136
    rt_sigtimedwait 128 137  rt_sigsuspend 130 133  sigaltstack 131 132  statfs 137 43  fstatfs 138 44  gettid 186 178
    time 201 -  futex 202 98  sched_getaffinity 204 123  getdents64 217 61  set_tid_address 218 96
    restart_syscall 219 128  fadvise64 221 223  clock_gettime 228 113  clock_getres 229 114  clock_nanosleep 230 115
    exit_group 231 94  waitid 247 95  openat 257 56  mkdirat 258 34  newfstatat 262 79  unlinkat 263 35  renameat 264 38
    linkat 265 37  symlinkat 266 36  readlinkat 267 78  faccessat 269 48  pselect6 270 72  ppoll 271 73
    set_robust_list 273 99  get_robust_list 274 100  fallocate 285 47  dup3 292 24  pipe2 293 59  renameat2 316 276
    getrandom 318 278  membarrier 324 283  copy_file_range 326 285  statx 332 291  rseq 334 293  close_range 436 436
    faccessat2 439 439
"""
"""System calls that a program may make: name, number on x86-64, number on aarch64.

Computing, memory, time, and files (the other walls say which). Not here, so denied: sockets, exec, tracing, mounts,
namespaces, modes and owners of files, memory without a limit (memfd, shared memory), and whatever the kernel learns.
"""
PROCESSES = "fork 57 -  vfork 58 -"
KILLS = "kill 62 129  tkill 200 130  tgkill 234 131"
CLONE, FCNTL, IOCTL, PRLIMIT = "clone 56 220", "fcntl 72 25", "ioctl 16 29", "prlimit64 302 261"

_ARCHITECTURES = {"x86_64": (0xC000_003E, 1), "aarch64": (0xC000_00B7, 2)}
"""The kernel's number of the architecture, and its column in the tables."""
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF_0000, 0x0005_0000, 0x8000_0000
_IOCTL_ALLOWED = (0x5401, 0x5413, 0x5450, 0x5451)
"""Is it a terminal (TCGETS, TIOCGWINSZ), and is it closed by exec (FIONCLEX, FIOCLEX)."""
_FCNTL_ALLOWED = (0, 1, 2, 3, 4, 5, 6, 7, 1030)
"""F_DUPFD to F_SETLKW and F_DUPFD_CLOEXEC. Not F_SETOWN with F_SETSIG: any signal, to any process of the user."""
_FIRST_NEW = 424
"""Calls from here on are young enough that a C library does without those that answer ENOSYS."""


def seccomp_available() -> bool:
    """Return whether this kernel filters system calls and the filter is written for this processor."""
    if platform.machine() not in _ARCHITECTURES or sys.maxsize < 1 << 32:
        return False
    try:
        libc_call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, None, 0, 0)
    except OSError as error:
        return error.errno == errno.EFAULT  # it knows filters, and was given none
    return False


def _numbers(table: str) -> list[int]:
    column = _ARCHITECTURES[platform.machine()][1]
    words = table.split()
    return [int(words[i + column]) for i in range(0, len(words), 3) if words[i + column] != "-"]


def _argument_is(table: str, index: int, values: Iterable[int]) -> list[tuple[int, int, int, int]]:
    """Return the part of a filter that allows the calls where the low half of an argument is one of `values`."""
    checks = list(values)
    tests = [(_EQUAL, len(checks) - i, 0, value) for i, value in enumerate(checks)]
    block = [(_LOAD, 0, 0, 16 + 8 * index), *tests, (_RETURN, 0, 0, _ERRNO | errno.EPERM), (_RETURN, 0, 0, _ALLOW)]
    return [line for number in _numbers(table) for line in [(_EQUAL, 0, len(block), number), *block]]


def filter_program(*, processes: bool, pid: int) -> bytes:
    """Return the filter, as instructions of classic BPF; `pid` is the one process it may send signals to.

    With `processes` it may make processes and threads, and send signals to all that it sees.
    """
    allowed = _numbers(ALLOWED)
    lines = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, _ARCHITECTURES[platform.machine()][0]),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, 0),
        *_argument_is(FCNTL, 1, _FCNTL_ALLOWED),
        *_argument_is(IOCTL, 1, _IOCTL_ALLOWED),
        *_argument_is(PRLIMIT, 0, (0,)),
    ]
    if processes:
        allowed += _numbers(PROCESSES) + _numbers(KILLS)
        clone = [(_LOAD, 0, 0, 16), (_ANY_BIT, 0, 1, CLONE_ANY_NEW), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]
        lines += [(_EQUAL, 0, len(clone) + 1, *_numbers(CLONE)), *clone, (_RETURN, 0, 0, _ALLOW)]
    else:
        lines += _argument_is(KILLS, 0, (pid,))
    lines += [(_EQUAL, len(allowed) - i + 2, 0, number) for i, number in enumerate(allowed)]
    lines += [
        (_AT_LEAST, 0, 1, _FIRST_NEW),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def restrict_calls(program: bytes) -> None:
    """Put the filter over this process and its children, for good."""
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    libc_call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def libc_call(name: str, *arguments: Any) -> int:
    """Call a function of the C library; OSError where it returns -1."""
    # As C int, which ctypes takes by default, a 64-bit argument would be cut.
    given = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = _libc()[name](*given)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result
