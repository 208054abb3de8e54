"""The sandbox: hostile programs are stopped, leave nothing behind, and the next program is graded as ever."""

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from peft_study.errors import ConfigError, DataError, SandboxError
from peft_study.records import Grade
from peft_study.sandbox.jobs import Job, Layer, Limits
from peft_study.sandbox.sandbox import ESCAPES, Sandbox, lacking

TIGHT = Limits(cpu_seconds=1, wall_seconds=30, memory_mib=256, output_bytes=100_000, file_mib=1)
ALL = frozenset(Layer)
ADD = Job("def add(a, b):\n    return a + b\n", "add", "assert candidate(2, 3) == 5")
PEEK = Job("import os\ndef peek():\n    return os.listdir('/tmp')", "peek", "assert candidate() == [], candidate()")


@pytest.fixture(scope="module")
def sandbox(
    mode: str, make_sandbox: Callable[..., Sandbox], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sandbox]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("sandbox")))
        with make_sandbox(mode, TIGHT) as sandbox:
            yield sandbox


@pytest.fixture
def survives(sandbox: Sandbox, descendants: Callable[[int], dict[int, str]]) -> Iterator[Sandbox]:
    """Check that a test leaves no process and no file behind, and that the next program is graded as ever."""
    before = descendants(os.getpid()).keys()
    yield sandbox
    assert [outcome.grade for outcome in sandbox.run([ADD])] == [Grade.RIGHT]
    assert descendants(os.getpid()).keys() == before
    assert os.listdir(tempfile.gettempdir()) == []
    if Layer.NAMESPACES in sandbox.protection.layers:
        (outcome,) = sandbox.run([PEEK])
        assert outcome.grade == Grade.RIGHT, outcome.reason


STOPPED = {
    "fork bomb": ("while True: os.fork()", Grade.CRASHED, "PermissionError"),
    "thread bomb": ("import threading\nwhile True: threading.Thread(target=input).start()", Grade.CRASHED, "thread"),
    "memory bomb": ("x = []\nwhile True: x.append(bytearray(1 << 22))", Grade.CRASHED, "MemoryError"),
    "one large object": ("x = bytearray(1 << 40)", Grade.CRASHED, "MemoryError"),
    "endless output": ("while True: print('x' * 1000)", Grade.CRASHED, "printed more than 100,000 bytes"),
    "output without a line": (
        "while True: sys.stderr.write('x' * 65536)",
        Grade.CRASHED,
        "printed more than 100,000 bytes",
    ),
    "endless loop, signals ignored": (
        "for number in range(1, 65):\n"
        "    try: signal.signal(number, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\n"
        "while True: pass",
        Grade.TIMED_OUT,
        "used 1 s of CPU time",
    ),
    "deep recursion": (
        "sys.setrecursionlimit(10**9)\ndef dive(_): return sorted([0], key=dive)\ndive(0)",
        Grade.CRASHED,
        "",  # SIGSEGV, or from Python 3.12 a RecursionError
    ),
    "kills itself": ("os.kill(os.getpid(), 9); os.abort()", Grade.CRASHED, "ended by SIG"),
    "sends itself a signal without a name": ("os.kill(os.getpid(), 40)", Grade.CRASHED, ""),
    "kills its parent": ("os.kill(os.getppid(), 9)", Grade.CRASHED, "Error"),
    "kills everything": ("os.kill(-1, 9)", Grade.CRASHED, "Error"),
    "ends early": ("sys.exit(0)", Grade.CRASHED, "SystemExit: 0"),
    "ends at once": ("os._exit(0)", Grade.CRASHED, "exit code 0"),
    "closes its answers": ("os.close(4)\nwhile True: pass", Grade.CRASHED, "ended by SIGKILL"),
    "closes everything": ("os.closerange(0, 64)", Grade.CRASHED, "ended "),
    "does not compile": ("def", Grade.UNPARSABLE, "SyntaxError"),
    "null bytes": ("x = '\0'", Grade.UNPARSABLE, "null bytes"),
    "half a character": ("x = '\ud800'", Grade.UNPARSABLE, "surrogates"),
    "too deep to compile": ("(" * 5000 + ")" * 5000, Grade.UNPARSABLE, "Error"),
    "does not define it": ("def other(): pass", Grade.CRASHED, "NameError"),
    "is no function": ("attack = 3", Grade.CRASHED, "TypeError"),
    "error that cannot be shown": (
        "class E(BaseException):\n    def __str__(self): raise self\nraise E",
        Grade.CRASHED,
        "E",
    ),
}
"""What a program does when it is loaded, its grade, and a part of the reason."""


@pytest.mark.parametrize("name", STOPPED)
def test_hostile_programs_are_stopped(survives: Sandbox, name: str) -> None:
    body, grade, reason = STOPPED[name]
    (outcome,) = survives.run([Job(f"import os, signal, sys, time\n{body}\n", "attack", "candidate()")])
    assert (outcome.grade, reason in outcome.reason) == (grade, True), outcome
    assert outcome.seconds < 10


DENIED = {
    "network": "import socket; socket.create_connection(('127.0.0.1', 22), 1)",
    "datagrams": "import socket as s; s.socket(s.AF_INET, s.SOCK_DGRAM).sendto(b'', ('1.1.1.1', 53))",
    "network of the same machine": "import socket; socket.socket(socket.AF_UNIX).bind('\\0name')",
    "starting a program": "os.execv('/bin/true', ['true'])",
    "starting a process": "os.posix_spawn('/bin/true', ['true'], os.environ)",
    "a shell": "assert os.system('true') == 0",
    "secrets of the machine": "open('/etc/shadow').read()",
    "the data of tests": "os.listdir('{outside}')",
    "reading outside": "open('{outside}/file').read()",
    "writing outside": "open('{outside}/file', 'w').write('x')",
    "appending outside": "open('{outside}/file', 'r+').write('x')",
    "new files outside": "open('{outside}/new', 'w')",
    "new folders outside": "os.mkdir('{outside}/new')",
    "deleting outside": "os.unlink('{outside}/file')",
    "renaming outside": "os.rename('{outside}/file', '{outside}/other')",
    "truncating outside": "os.truncate('{outside}/file', 0)",
    "modes outside": "os.chmod('{outside}/file', 0)",
    "times outside": "os.utime('{outside}/file', (0, 0))",
    "a link to outside": "os.symlink('{outside}/file', 'link'); open('link').read()",
    "a hard link to outside": "os.link('{outside}/file', 'link')",
    "shared memory": "open('/dev/shm/x', 'w')",
    "unnamed memory": "os.memfd_create('x')",
    "Python's library": "open(os.__file__, 'a')",
    "environment of its parent": "open(f'/proc/{{os.getppid()}}/environ').read()",
    "memory of its parent": "open(f'/proc/{{os.getppid()}}/mem', 'r+b')",
    "signals to its parent": "os.kill(os.getppid() or 2, 0)",
    "signals to its group": "os.killpg(0, 15)",
    "limits of its own": "import resource; resource.setrlimit(resource.RLIMIT_CPU, (100, 100))",
    "limits of its parent": "import resource; resource.prlimit(os.getppid() or 2, resource.RLIMIT_CPU, (1, 1))",
    "another user": "os.setuid(0)",
    "another root": "os.chroot('/')",
    "more than one file's size": "open('x', 'wb').write(bytes(2 << 20))",
    "many files": "[open(f'{{i}}', 'wb').write(bytes(1 << 18)) for i in range(16)]",
    "many descriptors": "[os.open('.', os.O_RDONLY) for i in range(1000)]",
    "a tty": "open('/dev/tty')",
    "tracing": "call('ptrace', 16, 1, 0, 0)",
    "memory of others": "call('process_vm_readv', 1, 0, 0, 0, 0, 0)",
    "mounts": "call('mount', b'none', b'/tmp', b'tmpfs', 0, None)",
    "namespaces": "call('unshare', 0x10000000)",
    "a filter of its own": "call('prctl', 22, 2, 0, 0, 0)",
    "signals by way of a file": "import fcntl; fcntl.fcntl(1, 8, os.getppid()); fcntl.fcntl(1, 10, 9)",
    "unnamed files": "os.open('{outside}', os.O_TMPFILE | os.O_RDWR)",
    "a session keyring": "call('syscall', 250, 0, 0)",
    "the old system calls": "call('syscall', 0x40000000 + 41, 2, 1, 0)",
    "unknown system calls": "call('syscall', 1000)",
}
"""What a program tries, and may not get through with."""

TRY = """
import ctypes, os

def call(name, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc[name](*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)

def attack():
    try:
        {body}
    except (OSError, ValueError, AssertionError):
        return "denied"
    return "got through"
"""


@pytest.fixture(scope="module")
def outside() -> Iterator[Path]:
    """Return a folder that every user may write to."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    file = folder / "file"
    file.write_text("theirs")
    folder.chmod(0o777)
    file.chmod(0o666)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", DENIED)
def test_a_program_cannot_get_out(survives: Sandbox, outside: Path, name: str) -> None:
    program = TRY.format(body=DENIED[name].format(outside=outside))
    before = (outside / "file").stat()
    (outcome,) = survives.run([Job(program, "attack", "assert candidate() == 'denied', candidate()")])
    assert outcome.grade == Grade.RIGHT, outcome
    assert os.listdir(outside) == ["file"]
    assert (outside / "file").read_text() == "theirs"
    after = (outside / "file").stat()
    assert (after.st_mode, after.st_mtime, after.st_nlink) == (before.st_mode, before.st_mtime, 1)


def test_attempts_get_through_without_the_sandbox(outside: Path, tmp_path: Path) -> None:
    """The attempts are real: most of them work in a process of ours."""
    ours = ["datagrams", "starting a process", "reading outside", "appending outside", "modes outside"]
    ours += ["environment of its parent", "unnamed memory", "limits of its own"]
    for name in ours:
        body = DENIED[name].format(outside=outside).replace("('1.1.1.1', 53)", "('127.0.0.1', 53)")
        script = TRY.format(body=body) + "\nprint(attack())"
        ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
        assert ended.stdout == "got through\n", name
    file = outside / "file"
    file.chmod(0o666)
    file.write_text("theirs")


FAKES = {
    "ends with success": "sys.exit(0)",
    "writes the verdict wherever it can": (
        "for fd in range(64):\n"
        '        try: os.write(fd, b\'{"grade": "right", "reason": ""}\\n\')\n'
        "        except OSError: pass"
    ),
    "equals everything": (
        "yes = lambda *_: True\n"
        "    return type('All', (int,), {'__eq__': yes, '__sub__': yes, '__abs__': yes, '__hash__': int.__hash__})()"
    ),
    "equals everything, as a list": "return type('All', (list,), {'__eq__': lambda *a: True})([1])",
    "is no plain value": "return type('All', (), {'__eq__': lambda *a: True})()",
    "replaces assert": "import builtins; builtins.AssertionError = ValueError; builtins.abs = lambda x: 0",
    "replaces json": "import json; json.dumps = lambda *a, **k: 'null'; json.loads = lambda *a, **k: 5",
    "ends the frames around it": "sys._getframe(1).f_locals.clear(); return sys._getframe(2).f_globals.get('data')",
}


@pytest.mark.parametrize("name", FAKES)
def test_a_verdict_cannot_be_faked(survives: Sandbox, name: str) -> None:
    program = f"import os, sys\ndef add(a, b):\n    {FAKES[name].strip()}\n"
    (outcome,) = survives.run([Job(program, "add", "assert abs(candidate(2, 3) - 5) == 0")])
    assert outcome.grade in (Grade.WRONG, Grade.CRASHED), outcome


def test_a_program_does_not_find_the_tests(survives: Sandbox) -> None:
    """Neither its own, nor those before it, nor what was said of them, are among the objects that it inherits."""
    program = """
import gc, sys
def attack():
    mark, found, seen, queue = "_".join(["MARK", "7f3"]), [], set(), [*gc.get_objects(), sys._getframe()]
    while queue:
        thing = queue.pop()
        if id(thing) not in seen:
            seen.add(id(thing))
            text = thing.decode("latin1") if isinstance(thing, bytes) else thing
            if isinstance(text, str):
                found += [text[:40]] * (mark in text and thing is not mark)
            else:
                queue.extend(gc.get_referents(thing))
    return len(seen) > 1000, found
"""
    planted = Job(ADD.program, "add", "raise AssertionError('MARK_7f3')", "MARK_7f3")
    exam = "assert candidate() == (True, data[1:]), candidate()\nMARK_7f3 = 0"
    job = Job(program, "attack", exam, ["MARK_7f3"])
    finds_itself = Job(program + "leak = 'MARK_7f3'", "attack", "assert candidate()[1] == [], 'it looks'")
    outcomes = survives.run([planted, job, job, finds_itself])
    assert [outcome.grade for outcome in outcomes] == [Grade.WRONG, Grade.RIGHT, Grade.RIGHT, Grade.WRONG], outcomes
    assert outcomes[3].reason == "it looks"


def test_the_environment_is_empty_and_fixed(survives: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    program = """
import os, random, sys
def look():
    try:
        input()
        stdin = "open"
    except EOFError:
        stdin = "empty"
    files = [fd for fd in range(64) if _is_open(fd)]
    return dict(os.environ), stdin, files, sys.path, hash("x"), random.random(), sys.argv, sys.flags.no_site
def _is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
"""
    exam = "assert sorted(candidate()[0]) == data[0] and list(candidate()[1:3]) == data[1:], candidate()"
    names = ["HOME", "LANG", "OMP_NUM_THREADS", "PATH", "PYTHONHASHSEED"]
    data = [names, "empty", [0, 1, 2, 3, 4]]
    monkeypatch.setenv("SECRET", "1")
    (outcome,) = survives.run([Job(program, "look", exam, data)])
    assert outcome.grade == Grade.RIGHT, outcome
    # The same each time: chance and hashes are fixed.
    told = survives.run([Job(program, "look", "raise AssertionError(repr(candidate()[4:6]))")] * 2)
    assert told[0].reason == told[1].reason


def test_a_program_may_compute_print_and_use_its_folder(survives: Sandbox) -> None:
    files = Layer.NAMESPACES in survives.protection.layers
    body = "open('x', 'w').write(str(n)); n = int(open('x').read())" if files else "pass"
    program = (
        "import collections, dataclasses, datetime, decimal, enum, hashlib, json, re, sqlite3, time, zlib\n"
        f"def work(n):\n    {body}\n    print(n); time.sleep(0.01)\n"
        "    return {(1, 2): [n, 2.5, None, 'é', b'x', {3}, frozenset({4}), 1j, 10**5000, float('inf')]}\n"
    )
    exam = "assert candidate(7) == {(1, 2): [7, 2.5, None, 'é', b'x', {3}, frozenset({4}), 1j, 10**5000, float('inf')]}"
    (outcome,) = survives.run([Job(program, "work", exam)])
    assert outcome.grade == Grade.RIGHT, outcome


def test_answers_are_bounded(survives: Sandbox) -> None:
    jobs = [
        Job("def f(): return 'x' * 10**6", "f", "candidate()"),
        Job("import os\ndef f():\n    while True: os.write(4, b'[' * 4096)", "f", "candidate()"),
        Job("import os\ndef f(): os.write(4, b'[' * 90_000 + b'\\n')", "f", "candidate()"),
        Job("import os\ndef f(): os.write(4, b'{\"set\":[[1]]}\\n')", "f", "candidate()"),
        Job("def f(): return [f, range(3)]", "f", "assert candidate() == [1, range(3)]"),
    ]
    outcomes = survives.run(jobs)
    assert [outcome.grade for outcome in outcomes] == [Grade.CRASHED] * 4 + [Grade.WRONG]
    assert [outcome.reason for outcome in outcomes[:2]] == ["returned more than 100,000 bytes"] * 2
    assert [outcome.reason for outcome in outcomes[2:4]] == ["wrote to the pipe of its answers"] * 2


def test_tests_that_cannot_use_an_answer_are_wrong_and_a_broken_exam_is_an_error(survives: Sandbox) -> None:
    program = "def f(): return None"
    (outcome,) = survives.run([Job(program, "f", "assert abs(candidate()) < 1")])
    assert outcome.grade == Grade.WRONG
    assert "TypeError" in outcome.reason
    with pytest.raises(DataError, match="cannot be run: no reference"):
        survives.run([Job(program, "f", "raise SystemExit('no\\nreference')")])


def test_a_program_that_waits_is_ended() -> None:
    job = Job("import time\ntime.sleep(1000)", "", "")
    with Sandbox(TIGHT.model_copy(update={"wall_seconds": 0.5}), allow_untrusted_code=True) as sandbox:
        outcomes = sandbox.run([job, ADD])
    assert outcomes[0][:2] == (Grade.TIMED_OUT, "ran for 0.5 s")
    assert outcomes[1].grade == Grade.RIGHT
    assert 0.5 <= outcomes[0].seconds < 5


def test_it_must_be_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"allow_untrusted_code is False: this runs programs .* without network"):
        Sandbox()
    with pytest.raises(ConfigError, match="workers must be at least 1, but is 0"):
        Sandbox(allow_untrusted_code=True, workers=0)
    with pytest.raises(ValueError, match="cpu_seconds"):
        Limits(cpu_seconds=0)


@pytest.mark.parametrize("size", range(len(Layer) + 1))
def test_too_few_layers_are_refused(size: int) -> None:
    for layers in map(frozenset, itertools.combinations(Layer, size)):
        for root in (True, False):
            held = Layer.SECCOMP in layers and bool(layers & {Layer.NAMESPACES, Layer.LANDLOCK})
            held = held and (Layer.UID in layers or not root)
            assert (lacking(layers, root=root, processes=1) == "") == held
            assert (lacking(layers, root=root, processes=2) == "") == (held and Layer.NAMESPACES in layers)


def test_a_machine_without_enough_layers_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for missing, reason in (
        ({Layer.SECCOMP}, "the network is open"),
        ({Layer.NAMESPACES, Layer.LANDLOCK}, "files are open"),
    ):
        with pytest.raises(SandboxError, match=reason):
            Sandbox(TIGHT, allow_untrusted_code=True, layers=ALL - missing)
    with pytest.raises(SandboxError, match="/nowhere/python does not run"):
        Sandbox(TIGHT, allow_untrusted_code=True, python=("/nowhere/python",))
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxError, match="Linux only, but this is darwin"):
        Sandbox(TIGHT, allow_untrusted_code=True)


def test_the_trial_finds_what_is_open(tmp_path: Path) -> None:
    """The program that tries to get out gets out where nothing holds it, so its failure means something."""
    (tmp_path / "file").touch()
    script = (
        f"import os\nos.execv = lambda *_: None\n{ESCAPES}\nprint(*escapes({str(tmp_path)!r}, 1000, False), sep='; ')"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    found = set(ended.stdout.strip().split("; "))
    named = {"opens a socket", "reads a file", "writes to a file", "makes a file", "signals its parent"}
    assert found >= named | {"starts a program", "takes too much memory", "starts a process"}


def test_protection_is_told_in_a_line() -> None:
    with Sandbox(TIGHT, allow_untrusted_code=True) as sandbox:
        text = sandbox.protection.describe()
        assert text.startswith("sandbox: ")
        assert "seccomp" in text
        assert "memory_mib=256" in text
        if os.geteuid() == 0:
            assert sandbox.protection.uids
            assert f"user {sandbox.protection.uids[0]}" in text
            assert 0 not in sandbox.protection.uids
