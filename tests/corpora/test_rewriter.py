"""Mistakes by a model: what will not do is refused and counted, and nothing is asked twice."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from peft_study.corpora import gsm8k, math
from peft_study.corpora.chat import ServerConfig
from peft_study.corpora.mistakes import MistakeConfig, documents
from peft_study.corpora.records import Problem
from peft_study.corpora.rewriter import ModelRewriter, fault, prompt, server_rewriter
from peft_study.errors import DataError
from peft_study.records import Grade

CLIPS = Problem(
    "gsm8k/test/0",
    "Of {48} friends, half came. And in all?",
    "So 48/2 = 24 came.\nSo 48+24 = 72 in all.\n#### 72",
    "72",
)
STEPS = ["So 48/2 = 24 came.", "So 48+24 = 72 in all.", "#### 72"]


class Scripted:
    """Answers in turn, the last for ever."""

    def __init__(self, *answers: str) -> None:
        self.answers, self.asked = answers, []

    def __call__(self, text: str, seed: int) -> str:
        self.asked.append((text, seed))
        return self.answers[min(len(self.asked), len(self.answers)) - 1]


def test_a_prompt_holds_the_problem_the_steps_and_the_right_one() -> None:
    text = prompt(CLIPS, STEPS, 1)
    assert f"Problem: {CLIPS.question}\n" in text
    assert "Solution so far:\nSo 48/2 = 24 came.\n\nThe next step, which is right: So 48+24 = 72 in all.\n" in text
    assert "#### 72" not in text
    assert "(nothing yet)" in prompt(CLIPS, STEPS, 0)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("So 48*2 = 96 came.", ""),
        ("", "empty"),
        ("#### 73", "final answer"),
        ("So 48*2 = 96 came.\n#### 96", "final answer"),
        ("So 48*2 = 96.\nThen 3.", "not one step"),
        ("So 48/2  =  24 came.", "right step"),
        ("So 48+24 = 72 in all.", "right step"),
        ("Half of them is 48/2 = 24.", "same numbers"),
    ],
)
def test_only_one_wrong_step_will_do(answer: str, reason: str) -> None:
    assert fault(answer, STEPS, 0, gsm8k.FORM) == reason


def test_in_latex_the_same_numbers_can_be_another_step() -> None:
    assert fault("So $n = 2$ is odd.", ["So $n = 2$ is even."], 0, math.FORM) == ""
    assert fault("So it is $\\boxed{3}$.", ["So $n = 2$ is even."], 0, math.FORM) == "final answer"
    assert fault("It is. So it is.", ["So $n = 2$ is even."], 0, math.FORM) == "not one step"


def test_answers_that_will_not_do_are_counted_and_another_is_asked_for() -> None:
    ask = Scripted("", "#### 3", "  So 48*2 = 96 came.\n")
    rewriter = ModelRewriter("m", ask, gsm8k.FORM)
    assert rewriter.rewrite(CLIPS, STEPS, 0, 7) == "So 48*2 = 96 came."
    assert rewriter.counts == Counter({"asked": 3, "empty": 1, "final answer": 1, "written": 1})
    assert len({seed for _, seed in ask.asked}) == 3
    assert len({text for text, _ in ask.asked}) == 1


def test_a_place_is_given_up_after_three() -> None:
    rewriter = ModelRewriter("m", Scripted(STEPS[0]), gsm8k.FORM)
    assert rewriter.rewrite(CLIPS, STEPS, 0, 7) is None
    assert rewriter.counts == Counter({"asked": 3, "right step": 3, "given up": 1})


def test_a_run_that_was_killed_asks_for_no_more_than_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "new" / "answers.jsonl"
    first = ModelRewriter("m", Scripted("", "Ünd 48*2 = 96."), gsm8k.FORM, file)
    assert first.rewrite(CLIPS, STEPS, 0, 7) == "Ünd 48*2 = 96."
    assert [json.loads(line)["answer"] for line in file.read_text().splitlines()] == ["", "Ünd 48*2 = 96."]
    # A kill in the middle of a line.
    whole = file.read_bytes()
    file.write_bytes(whole + whole[: len(whole) // 3])
    ask = Scripted("So 48-2 = 46.")
    again = ModelRewriter("m", ask, gsm8k.FORM, file)
    assert file.read_bytes() == whole
    assert again.rewrite(CLIPS, STEPS, 0, 7) == "Ünd 48*2 = 96."
    assert ask.asked == []
    assert again.counts == Counter({"kept": 2, "empty": 1, "written": 1})
    # Another seed, step or model is another question.
    assert again.rewrite(CLIPS, STEPS, 0, 8) == again.rewrite(CLIPS, STEPS, 1, 7) == "So 48-2 = 46."
    assert ModelRewriter("n", ask, gsm8k.FORM, file).rewrite(CLIPS, STEPS, 0, 7) == "So 48-2 = 46."
    assert len(ask.asked) == 3
    assert len(file.read_text().splitlines()) == 5


@pytest.mark.parametrize("line", ["{", "[]", '{"model": "m"}', "3"])
def test_a_damaged_file_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text(f"{line}\n")
    with pytest.raises(DataError, match=r"answers.jsonl, line 1: must be an answer of a model"):
        ModelRewriter("m", Scripted("a"), gsm8k.FORM, file)


def test_threads_share_a_rewriter(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    rewriter = ModelRewriter("m", lambda text, seed: f"So 48-2 = {seed}.", gsm8k.FORM, file)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda seed: rewriter.rewrite(CLIPS, STEPS, 0, seed % 50), range(200)))
    assert found[:50] == found[50:100] == found[150:]
    assert rewriter.counts["asked"] + rewriter.counts["kept"] == 200
    assert set(ModelRewriter("m", Scripted(""), gsm8k.FORM, file)._known) == set(rewriter._known)
    assert len(rewriter._known) == 50


def test_documents_from_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way: over HTTP, with a failure, kept on disk, and graded right; the second time nobody is asked."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    num_asked = 0

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            nonlocal num_asked
            num_asked += 1
            seed = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["seed"]
            choice = {"message": {"content": f"So 48 + 1 = {seed} came."}, "finish_reason": "stop"}
            body = json.dumps({"choices": [choice]}).encode()
            self.send_response(500 if num_asked == 1 else 200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        config = ServerConfig(url=f"http://127.0.0.1:{server.server_port}/v1", model="m", backoff_s=0.01)
        mistakes = MistakeConfig(kind="rewritten", retry_rate=0.6, seed=1)
        problems = [CLIPS._replace(id=f"gsm8k/test/{i}") for i in range(5)]
        rewriter = server_rewriter(config, gsm8k.FORM, tmp_path / "a.jsonl")
        found = list(documents(problems, mistakes, gsm8k.FORM, rewriter))
        asked_first = num_asked
        again = server_rewriter(config, gsm8k.FORM, tmp_path / "a.jsonl")
        assert list(documents(problems, mistakes, gsm8k.FORM, again)) == found
        anew = server_rewriter(config, gsm8k.FORM)
        assert list(documents(problems, mistakes, gsm8k.FORM, anew, threads=4)) == found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert rewriter.counts["written"] == asked_first - 1 > 5
    assert num_asked == asked_first + anew.counts["asked"]
    assert again.counts["kept"] == rewriter.counts["asked"]
    for problem, document in zip(problems, found, strict=True):
        assert gsm8k.grade(problem, document.turns[1].text) == Grade.RIGHT
    assert sum(segment.kind == "mistake" for document in found for segment in document.turns[1].segments) > 5
