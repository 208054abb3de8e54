"""The caller's side of one warden: a process of `child`, and the pipes to it."""

import contextlib
import json
import os
import select
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft_study.sandbox.jobs import Job, Layer, Limits
from peft_study.sandbox.values import dumps

_START = "import sys; sys.path.insert(0, sys.argv[1]); from peft_study.sandbox import child; child.main()"
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/tmp",
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
}
"""All that a program finds in its environment."""
_GRACE = 5.0
"""Seconds that a warden has to end after its input has."""
_PATIENCE = 60.0
"""Seconds beyond the limit after which a warden that does not answer is given up."""


class LostError(Exception):
    """A warden ended, or answers no more."""


class Warden:
    """A process that runs jobs one after another."""

    def __init__(self, python: Sequence[str], limits: Limits, layers: frozenset[Layer]) -> None:
        exam, self._exam = os.pipe()
        self._reasons, reasons = os.pipe()
        os.set_blocking(self._reasons, False)
        # No module beside Python's own, no byte code written, and nothing of our environment.
        command = [*python, "-s", "-S", "-P", "-B", "-c", _START, str(Path(__file__).parents[2])]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=_ENVIRONMENT,
                cwd="/",
                start_new_session=True,  # Ctrl-C is ours to handle
                pass_fds=(exam, reasons),
            )
        except OSError as error:
            os.close(self._exam)
            os.close(self._reasons)
            raise LostError(f"{python[0]} does not run ({error.strerror})") from None
        finally:
            os.close(exam)
            os.close(reasons)
        self._patience = limits.wall_seconds + _PATIENCE
        try:
            self._send({"layers": sorted(layers), "exam": exam, "reasons": reasons, **limits.model_dump()})
            ready = self._receive()
        except LostError:
            self.close()
            raise
        self.layers = frozenset(Layer(name) for name in ready["layers"])
        self.uids: tuple[int, int] | None = tuple(ready["uids"]) if ready["uids"] else None
        self.root: bool = ready["root"]

    def run(self, job: Job) -> dict[str, Any]:
        """Run a job and return its outcome as the warden words it."""
        exam = dumps((job.exam, job.data))  # before anything is sent: a value may not be plain
        self._send({"program": job.program, "entry_point": job.entry_point})
        try:
            data = len(exam).to_bytes(8, "big") + exam
            while data:
                data = data[os.write(self._exam, data) :]
        except BrokenPipeError:
            pass  # The warden has ended; what it says follows.
        reply = self._receive()
        said = b""
        with contextlib.suppress(BlockingIOError):
            said = os.read(self._reasons, 1 << 16)
        if reply["reason"] is None:
            # An examiner that was ended before its verdict may have left a line before this one.
            reply["reason"] = json.loads(said.splitlines()[-1])
        return reply

    def close(self) -> None:
        """End the warden, and all that it runs with it; does nothing the second time."""
        assert self._process.stdin
        if not self._process.stdin.closed:
            # At the end of its input it ends by itself and reaps its own; killed, it would leave that to others.
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            try:
                self._process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            assert self._process.stdout
            self._process.stdout.close()
            os.close(self._exam)
            os.close(self._reasons)

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin
        if self._process.stdin.closed:
            raise LostError("it has been closed")
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise LostError("it has ended") from None

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout
        if not select.select([self._process.stdout], [], [], self._patience)[0]:
            raise LostError("it does not answer")
        line = self._process.stdout.readline()
        if not line:
            raise LostError("it has ended")
        message = json.loads(line)
        if "fault" in message:
            raise LostError(message["fault"])
        return message
