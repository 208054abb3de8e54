"""`peft-study data`: lines in, lines out, and shards that go on."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from peft_study import cli
from peft_study.igsm.families import NANO
from peft_study.igsm.shards import ShardStream


def call(*arguments: object, text: str = "") -> Any:
    return CliRunner().invoke(cli.app, ["data", *map(str, arguments)], input=text)


def lines(result: Any) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_sample_writes_what_the_page_says() -> None:
    options = ("--family", "med", "--split", "test", "--op", 20, "--seed", 0, "-n", 12, "--mistakes", "retry")
    found = lines(call("sample", *options, "--retry-rate", 0.2))
    assert len(found) == 12
    keys = {"problem", "solution", "answer", "modulus", "op", "ip", "template_hash", "mistakes"}
    assert all(set(line) == keys for line in found)
    assert {(line["op"], line["modulus"]) for line in found} == {(20, 23)}
    assert any(line["mistakes"] for line in found)
    assert all(len(line["template_hash"]) == 16 for line in found)
    assert all(int(line["template_hash"], 16) % 23 in (20, 21, 22) for line in found)
    assert all(line["problem"].startswith(" The number of each ") and line["problem"].endswith("?") for line in found)
    assert lines(call("sample", *options, "--retry-rate", 0.2)) == found
    assert lines(call("sample", *options)) != found  # no mistakes
    turned = lines(call("sample", *options, "--order", "qp"))
    assert all(line["problem"].startswith(" How many ") for line in turned)


def test_sample_then_verify() -> None:
    sampled = call("sample", "-n", 20, "--family", "mini", "--mistakes", "miss", "--retry-rate", 0.5, "--reask")
    verdicts = lines(call("verify", text=sampled.stdout))
    assert [verdict["ok"] for verdict in verdicts] == [True] * 20
    assert sum(verdict["retries"] for verdict in verdicts) > 5
    assert [verdict["op"] for verdict in verdicts] == [line["op"] for line in lines(sampled)]


def test_verify_goes_on_behind_a_bad_line() -> None:
    good = call("sample", "-n", 1, "--op", 3).stdout
    wrong = json.dumps(json.loads(good) | {"answer": "17"})
    verdicts = lines(call("verify", text=f"{{\n{good}\n\nnull\n{wrong}\n"))
    # An empty line has its verdict too, so that the verdicts stand in the places of the lines.
    assert [verdict["ok"] for verdict in verdicts] == [None, True, None, None, None, False]
    assert verdicts[5]["verdict"] == "answer"
    assert verdicts[5]["first_wrong_step"] == 3


def test_verify_reads_bytes_that_are_no_text() -> None:
    good = call("sample", "-n", 1, "--op", 3).stdout.encode()
    result = CliRunner().invoke(cli.app, ["data", "verify"], input=b"\xff\xfe{\n" + good)
    assert [verdict["ok"] for verdict in lines(result)] == [None, True]


def test_verify_takes_the_looser_rule() -> None:
    """An operation that is not the problem's is seen by the strict rule alone, where the value is right."""
    problem = (
        " The number of each Rome's Tower equals 0. The number of each Rome's Gate equals 0 more than each Rome's"
        " Tower. How many Gate does Rome have?"
    )
    solution = " Define Rome's Tower as a; so a = 0. Define Rome's Gate as b; so b = 0 * a = 0 * 0 = 0."
    line = json.dumps({"problem": problem, "solution": solution, "answer": "0"})
    strict, published = (lines(call("verify", "--rule", rule, text=line))[0] for rule in ("strict", "published"))
    assert (strict["ok"], strict["verdict"], strict["first_wrong_step"]) == (False, "lookup", 1)
    assert published["ok"] is True


def test_build_is_read_back_and_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    first = call("build", folder, "--tokens", 3 * NANO.max_tokens, "--retry-rate", 0.3)
    assert (first.exit_code, first.stdout.strip()) == (0, f"{folder}: {3 * NANO.max_tokens} tokens in 1 shards")
    assert "3 of 3 windows" in first.stderr
    call("build", folder, "--tokens", 5 * NANO.max_tokens, "--retry-rate", 0.3)
    assert len(ShardStream(folder)) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "--family", "huge"], "family must be one of nano, mini, med, hard"),
        (["sample", "--retry-rate", "1"], "retry_rate must be in [0, 1)"),
        (["sample", "--op", "40"], "letters, but a solution with op=40 needs 40"),
        (["sample", "--family", "med", "--split", "test", "--op", "1"], "makes no test problem with op=1"),
        (["build", "{folder}/x", "--length", "10"], "a window has 10 tokens, but 300 documents in a row are longer"),
        (["build", "{folder}/x", "--length", "1"], "a window must have at least 2 tokens, but got 1"),
        (["build", "{folder}/file"], "cannot be written to"),
        (["build", "/proc/x"], "cannot be written to"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = call(*(argument.format(folder=tmp_path) for argument in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [["sample", "-n", "100000"], ["show", "-n", "2000"]])
def test_a_reader_who_has_seen_enough_is_no_error(command: list[str]) -> None:
    program = [sys.executable, "-m", "peft_study", "data", *command]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline()
        child.stdout.close()
        assert child.stderr.read() == ""
        assert child.wait(timeout=60) == 0


def test_a_build_goes_on_when_nobody_reads_its_progress(tmp_path: Path) -> None:
    tokens = 9000 * NANO.max_tokens
    program = [sys.executable, "-m", "peft_study", "data", "build", str(tmp_path / "x"), "--tokens", str(tokens)]
    with subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        child.stderr.close()
        child.wait(timeout=120)
    assert len(ShardStream(tmp_path / "x")) == 9000
