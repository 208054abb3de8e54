"""The sandbox's processes: side by side without harm to each other, and gone when they are done or nobody asks."""

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from peft_study.errors import SandboxError
from peft_study.records import Grade
from peft_study.sandbox.jobs import Job, Layer, Limits
from peft_study.sandbox.sandbox import Sandbox
from peft_study.sandbox.walls import pick_uids

TIGHT = Limits(cpu_seconds=1, wall_seconds=30, memory_mib=256, output_bytes=100_000, file_mib=1)
FOUR = TIGHT.model_copy(update={"processes": 4})
ADD = Job("def add(a, b):\n    return a + b\n", "add", "assert candidate(2, 3) == 5")
HOLD = """
import os, time
children = []
for _ in range({children}):
    children.append(os.fork())
    if not children[-1]:
        time.sleep(0.6)
        os._exit(0)
def hold():
    return [os.waitpid(child, 0)[1] for child in children]
"""
"""A program that has some processes for a while."""
Descendants = Callable[[int], dict[int, str]]


@pytest.mark.parametrize("mode", ["root", "ordinary"])
def test_with_more_processes_none_outlives_its_program(
    mode: str, make_sandbox: Callable[..., Sandbox], descendants: Descendants
) -> None:
    bombs = {
        "while True:\n    try: os.fork()\n    except OSError: pass": Grade.TIMED_OUT,
        "import threading\nwhile True: threading.Thread(target=time.sleep, args=(99,)).start()": Grade.CRASHED,
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(99)": Grade.RIGHT,
        "os.kill(-1, 9)": Grade.CRASHED,
        "os.wait4(-1, 0)": Grade.CRASHED,
        "pid = os.fork()\nif pid == 0: os._exit(3)\nassert os.waitpid(pid, 0)[1] >> 8 == 3": Grade.RIGHT,
    }
    with make_sandbox(mode, FOUR.model_copy(update={"wall_seconds": 0.8})) as sandbox:
        before = descendants(os.getpid()).keys()
        for body, grade in bombs.items():
            (outcome,) = sandbox.run(
                [Job(f"import os, time\n{body}\ndef f(): return 1", "f", "assert candidate() == 1")]
            )
            assert outcome.grade == grade, (body, outcome)
            assert descendants(os.getpid()).keys() == before
            assert sandbox.run([ADD])[0].grade == Grade.RIGHT


def test_programs_run_side_by_side_and_come_back_in_order() -> None:
    jobs = [
        Job(
            f"import time\ndef f():\n    time.sleep({(5 - i) / 50})\n    return {i}",
            "f",
            f"assert candidate() == {i % 4}",
        )
        for i in range(6)
    ]
    with Sandbox(TIGHT, allow_untrusted_code=True, workers=3) as sandbox:
        start = time.monotonic()
        outcomes = sandbox.run([*jobs, Job("import time\ntime.sleep(0.4)", "", "")] * 2)
        assert time.monotonic() - start < sum(outcome.seconds for outcome in outcomes)
        expected = [Grade.RIGHT] * 4 + [Grade.WRONG] * 2 + [Grade.RIGHT]
        assert [outcome.grade for outcome in outcomes] == expected * 2
    with pytest.raises(SandboxError, match="has been closed"):
        sandbox.run([ADD])


@pytest.mark.parametrize("mode", ["root", "ordinary"])
def test_neither_workers_nor_sandboxes_share_a_limit_or_a_signal(
    mode: str, make_sandbox: Callable[..., Sandbox]
) -> None:
    """Each of four programs at once has all the processes that it may have, and no more."""
    hold = Job(HOLD.format(children=3), "hold", "assert candidate() == [0, 0, 0]")
    more = Job(HOLD.format(children=4), "hold", "candidate()")
    kill = Job("import os\nos.kill(-1, 9)", "", "")
    with (
        make_sandbox(mode, FOUR, workers=2) as first,
        make_sandbox(mode, FOUR, workers=3) as second,
        ThreadPoolExecutor(2) as pool,
    ):
        uids = [uid for sandbox in (first, second) for warden in sandbox._wardens for uid in warden.uids or ()]
        assert len(set(uids)) == len(uids) == (10 if mode == "root" else 0)
        held = pool.submit(first.run, [hold, hold])
        beside = second.run([hold, hold, kill])
        assert [outcome.grade for outcome in held.result()] == [Grade.RIGHT] * 2, held.result()
        assert [outcome.grade for outcome in beside] == [Grade.RIGHT, Grade.RIGHT, Grade.CRASHED], beside
        (outcome,) = first.run([more])
        assert outcome.grade == Grade.CRASHED
        assert "BlockingIOError" in outcome.reason


def test_no_two_wardens_get_the_same_users() -> None:
    """Not in one container, nor in those beside it, whose processes have the same numbers."""
    everyone, taken = 4_294_967_295, {4_294_967_294, 4_294_967_201, 65_534, 0}
    places = [namespace * 2**22 + pid for namespace in range(4_026_531_836, 4_026_531_936) for pid in range(1, 300)]
    uids = [uid for place in places for uid in pick_uids(0, everyone, taken, place) or ()]
    assert len(set(uids)) == len(uids) == 2 * len(places)
    assert taken.isdisjoint(uids)
    # A container with few users: as many pairs as there are, and none that the container has not.
    few = [uid for pid in range(32_767) for uid in pick_uids(100_000, 65_536, {165_535}, pid) or ()]
    assert len(few) == 65_534
    assert len(set(few)) == 65_532
    assert (min(few), max(few)) == (100_002, 165_533)
    assert pick_uids(0, 1, (), 5) is None
    assert pick_uids(0, 3, {1, 2}, 5) is None


# ---- the end


def test_nothing_is_left_after_closing(descendants: Descendants) -> None:
    before = descendants(os.getpid()).keys()
    with Sandbox(TIGHT, allow_untrusted_code=True, workers=2):
        wardens = descendants(os.getpid()).keys() - before
        assert len(wardens) >= 2
    assert descendants(os.getpid()).keys() == before
    # Nor a zombie for whoever inherits the orphans of this machine.
    assert [pid for pid in wardens if Path(f"/proc/{pid}").exists()] == []


@pytest.fixture
def orphans() -> Iterator[None]:
    """Have this process inherit the orphans of its children, and leave those that have ended as zombies."""
    set_child_subreaper = 36
    libc = ctypes.CDLL(None)
    assert libc.prctl(set_child_subreaper, 1, 0, 0, 0) == 0
    yield
    assert libc.prctl(set_child_subreaper, 0, 0, 0, 0) == 0


CALLER = """
import os, sys, time
from peft_study.sandbox.sandbox import Sandbox
from peft_study.sandbox.jobs import Job, Layer, Limits
what, layers, python = sys.argv[1], frozenset(Layer(name) for name in sys.argv[2].split()), sys.argv[3:]
sandbox = Sandbox(Limits(wall_seconds=60), allow_untrusted_code=True, layers=layers, python=python)
if "forked" in what and os.fork() == 0:
    time.sleep(60)
    os._exit(0)
print(sandbox._wardens[0]._process.pid, flush=True)
if "running" in what:
    sandbox.run([Job("import time\\ntime.sleep(60)", "", "")])
time.sleep(60)
"""


@pytest.mark.parametrize("what", ["running", "running, forked", "idle, forked"])
def test_nothing_runs_on_when_the_caller_is_killed(
    mode: str, what: str, play: Callable[..., tuple], descendants: Descendants, orphans: None
) -> None:
    """Not even while a process that the caller forked, such as one that loads data, has the pipes as well."""
    layers, python, offered = play(mode)
    before = descendants(os.getpid()).keys()
    # With namespaces a warden is two processes.
    expected = 1 + (Layer.NAMESPACES in offered) + 2 * ("running" in what)
    command = [sys.executable, "-c", CALLER, what, " ".join(layers), *python]
    caller = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert caller.stdout
    warden = int(caller.stdout.readline())
    deadline = time.monotonic() + 20
    while len(theirs := {warden, *descendants(warden)}) < expected:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    caller.kill()
    caller.wait()
    caller.stdout.close()
    while any(state != "Z" for pid, state in descendants(os.getpid()).items() if pid in theirs):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    # The warden alone is left, to be reaped by whoever inherits it: where that is nobody, the rest would stay for ever.
    left = descendants(os.getpid()).keys() - before
    assert left & theirs == {warden}
    assert len(left) == 1 + ("forked" in what)
    for pid in left:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def test_a_warden_that_is_lost_costs_one_program() -> None:
    with Sandbox(TIGHT, allow_untrusted_code=True) as sandbox:
        sandbox._wardens[0]._process.kill()
        sandbox._wardens[0]._process.wait()
        first, second = sandbox.run([ADD, ADD])
        assert first.grade == Grade.CRASHED
        assert "took its sandbox down" in first.reason
        assert second.grade == Grade.RIGHT
