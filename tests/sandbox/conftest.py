"""Sandboxes as every kind of machine would make them, and the processes that they start."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peft_study.sandbox.jobs import Layer, Limits
from peft_study.sandbox.sandbox import Sandbox

SYSTEM_PYTHON = "/usr/bin/python3"
MODES = ("root", "landlock", "ordinary", "ordinary, landlock")
"""Kinds of machines: the caller is root or an ordinary user, with namespaces or, by `landlock`, without."""

ASK = """
import ctypes, json, os, platform

libc = ctypes.CDLL(None, use_errno=True)
uid, gid = os.geteuid(), os.getegid()

def works(attempt):
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    try:
        os._exit(0 if attempt() else 1)
    except OSError:
        os._exit(1)

def namespaces():  # for mounts, UTS, IPC, processes and the network, and for users if this is no root
    if libc.unshare(0x6C020000 | (0x10000000 if uid else 0)):
        return False
    if uid:
        for name, text in ("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1"):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    private = libc.mount(b"none", b"/", None, 0x44000, None) == 0
    return private and libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) == 0

def another_user():
    os.setresuid(54321, 54321, 54321)
    return True

with open("/proc/self/status") as file:
    seccomp = "Seccomp_filters:" in file.read() and platform.machine() in ("x86_64", "aarch64")
print(json.dumps({
    "seccomp": seccomp,
    "namespaces": works(namespaces),
    "landlock": libc.syscall(444, None, 0, 1) > 0,
    "uid": uid == 0 and works(another_user),
}))
"""
"""Asks the kernel what it offers to this user, without any of the sandbox's code."""


def _system_python() -> tuple[str, ...]:
    """Return a Python that any user can run, or skip."""
    query = [SYSTEM_PYTHON, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    if not Path(SYSTEM_PYTHON).exists() or subprocess.run(query, check=False).returncode:
        pytest.skip(f"no {SYSTEM_PYTHON} of version 3.11 or later")
    return (SYSTEM_PYTHON,)


def _as_nobody() -> tuple[str, ...]:
    """Return how an ordinary user starts Python, or skip."""
    if os.geteuid() != 0:
        return (sys.executable,)
    if not shutil.which("setpriv"):
        pytest.skip("setpriv is needed to become an ordinary user")
    command = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *_system_python())
    source = Path(__file__).parents[2] / "peft_study" / "__init__.py"
    if subprocess.run([*command, "-c", "open(__import__('sys').argv[1])", source], check=False, stderr=-3).returncode:
        pytest.skip(f"an ordinary user cannot read {source}")
    return command


def _play(mode: str, *, processes: int = 1) -> tuple[frozenset[Layer], tuple[str, ...], frozenset[Layer]]:
    """Return layers and Python that play one kind of machine, and the layers that must hold there.

    Skips where this machine has less, which is for the kernel to say: that the sandbox does not start is a failure.
    """
    layers, python = frozenset(Layer), (sys.executable,)
    if mode in ("root", "landlock") and os.geteuid() != 0:
        pytest.skip("the tests do not run as root")
    if "landlock" in mode:
        layers, python = layers - {Layer.NAMESPACES}, _system_python()
    if "ordinary" in mode:
        python = _as_nobody()
    asked = subprocess.run([*python, "-c", ASK], capture_output=True, text=True, check=True)
    offered = layers & {Layer(name) for name, there in json.loads(asked.stdout).items() if there}
    needed = {Layer.SECCOMP} | ({Layer.NAMESPACES} if processes > 1 else set())
    needed |= {Layer.UID} if mode in ("root", "landlock") else set()
    files = {Layer.NAMESPACES, Layer.LANDLOCK} & layers
    if missing := sorted(needed - offered) or ([] if files & offered else sorted(files)):
        pytest.skip(f"{mode}: this kernel offers no {', '.join(missing)}")
    return layers, python, offered


@pytest.fixture(scope="session", params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    """Return each kind of machine in turn."""
    return request.param


@pytest.fixture(scope="session")
def play() -> Callable[..., tuple[frozenset[Layer], tuple[str, ...], frozenset[Layer]]]:
    """Return `_play`."""
    return _play


@pytest.fixture(scope="session")
def make_sandbox() -> Callable[..., Sandbox]:
    """Return a function that makes a sandbox on which one kind of machine is played, or skips where there is less."""

    def make(mode: str, limits: Limits, **options: Any) -> Sandbox:
        layers, python, offered = _play(mode, processes=limits.processes)
        sandbox = Sandbox(limits, allow_untrusted_code=True, layers=layers, python=python, **options)
        # A layer that broke is dropped where another holds, so that it would not be missed.
        assert sandbox.protection.layers == offered
        return sandbox

    return make


@pytest.fixture(scope="session")
def descendants() -> Callable[[int], dict[int, str]]:
    """Return a function that gives all processes below one, zombies too, with the letter of each one's state."""

    def below(pid: int) -> dict[int, str]:
        children: dict[int, list[tuple[int, str]]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                except (FileNotFoundError, ProcessLookupError):
                    continue
                children.setdefault(int(parent), []).append((int(entry.name), state))
        found: dict[int, str] = {}
        new = [pid]
        while new:
            below_new = [child for parent in new for child in children.get(parent, [])]
            found.update(below_new)
            new = [child for child, _ in below_new]
        return found

    return below
