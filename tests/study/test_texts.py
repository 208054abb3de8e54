"""A trial on real texts from config to MLflow: run, killed, gone on with, measured again, shared by two processes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from peft import PeftModel
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from analysis.export import results_path
from analysis.report import write_report
from analysis.summary import summarize
from analysis.table import read_results
from peft_study.errors import CheckpointError, ConfigError, StoreError
from peft_study.records import Status
from peft_study.study import texts
from peft_study.study.config import TrialConfig, build_config
from peft_study.study.evaluate import evaluate_checkpoint
from peft_study.study.export import export_trial
from peft_study.study.plan import USUAL_RATES, build_plan, resolve_rate
from peft_study.study.single import run_alone
from peft_study.study.stores import mlflow_path
from peft_study.study.sweep import run_sweep
from peft_study.study.sweep_file import read_sweep
from peft_study.study.texts import TextTrial, open_trial
from peft_study.study.tuned import TunedRates
from peft_study.telling import Point
from tests.processes import run_together

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of sums with solutions in steps."""
    file = tmp_path_factory.mktemp("problems") / "sums.jsonl"
    rows = []
    for a in range(2, 9):
        for b in range(2, 9):
            question = f"Tom has {a} apples and buys {b} more, then eats 1. How many apples does Tom have?"
            solution = f"{a} + {b} = {a + b} apples.\n{a + b} - 1 = {a + b - 1} apples.\n#### {a + b - 1}"
            rows.append({"question": question, "solution": solution, "answer": str(a + b - 1)})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def config_of(model: Path, problems: Path, **changes: Any) -> TrialConfig:
    settings = {
        "pretrained.name": str(model),
        "pretrained.attention": "eager",
        "corpus.name": str(problems),
        "corpus.mistakes": "number",
        "corpus.retry_rate": 0.5,
        "corpus.window": 128,
        "corpus.validation_share": 0.2,
        "method.name": "lora",
        "method.rank": 4,
        "training.tokens": 8 * 2 * 128,
        "training.batch_windows": 2,
        "training.points": 2,
        "training.lr": 1e-2,
        "training.precision": "fp32",
        "testing.n": 6,
        "testing.max_new_tokens": 12,
        "testing.loss_windows": 4,
    }
    return build_config(settings | changes)


def named(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {f"{m['set']} {m['metric']}": m for m in result["measures"]}


def test_correction_from_config_to_mlflow(checkpoint: Callable[[str], Path], problems: Path, tmp_path: Path) -> None:
    config = config_of(checkpoint("llama"), problems)
    result, folder = run_alone(config, tmp_path / "runs", None, QUIET)
    assert (result["status"], result["reason"]) == ("finished", "")
    measures = named(result)
    assert {"stream loss", "id accuracy", "id unparsable", "id truncated", "id accuracy_gain"} <= measures.keys()
    assert measures["id accuracy"]["n"] == 6
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["validation/loss"] < lines[0]["validation/loss"]
    assert result["tokens"] == 8 * 2 * 128
    assert result["tokens_with_loss"] > 0
    assert len(result["matched"]) == 2 * 7

    card = (folder / "adapter" / "README.md").read_text()
    assert f"base_model: {checkpoint('llama')}" in card
    assert "| accuracy | validation id |" in card
    command = next(line for line in card.splitlines() if line.startswith("    peft-study finetune "))
    assert "method.rank=4" in command
    assert "testing.n=6" in command
    assert "corpus.packing" not in command

    client = MlflowClient(f"sqlite:///{mlflow_path(tmp_path / 'runs')}")
    experiment = client.get_experiment_by_name("peft_study")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], "tags.trial != ''")
    assert run.info.status == "FINISHED"
    assert run.data.params["pretrained.name"] == str(checkpoint("llama"))
    assert run.data.metrics["id/accuracy"] == measures["id accuracy"]["value"]
    assert "| what | value |" in run.data.tags["mlflow.note.content"]
    assert {each.path for each in client.list_artifacts(run.info.run_id)} >= {"adapter", "samples.jsonl"}
    (model,) = client.search_logged_models([experiment.experiment_id])
    assert (model.name, model.tags["skill"]) == (result["trial"], "correction")
    # MLflow loads it by itself: what it writes is what transformers and peft write.
    served = mlflow.pyfunc.load_model(model.artifact_location, model_config={"max_new_tokens": 5})
    (written,) = served.predict([{"prompt": "Tom has 3 apples"}])

    other = config_of(checkpoint("llama"), problems, **{"training.lr": 0.005})
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "config.yaml").write_text((folder / "config.yaml").read_text())
    with pytest.raises(ConfigError, match="a run of another config that was begun"):
        run_alone(other, tmp_path / "runs", begun, QUIET)

    # Finished is finished: nothing is run, and nothing is logged twice.
    again, _ = run_alone(config, tmp_path / "runs", None, QUIET)
    assert again == result
    assert len(client.search_runs([experiment.experiment_id], "tags.trial != ''")) == 1

    # Plain transformers and peft read what was saved.
    base = AutoModelForCausalLM.from_pretrained(checkpoint("llama"), dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, folder / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint("llama"))
    ids = torch.tensor([tokenizer("Tom has 3 apples")["input_ids"]])
    trial = open_trial(folder)
    with torch.no_grad():
        ours = trial.learner(ids, torch.ones_like(ids, dtype=torch.bool), verdict=False)
        assert torch.allclose(ours, adapted(input_ids=ids).logits[0], atol=1e-5)

    greedy = adapted.generate(input_ids=ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert written == tokenizer.decode(greedy[0, ids.shape[1] :], skip_special_tokens=True)

    # And what is exported.
    copied = export_trial(folder, tmp_path / "copied", merged=False)
    assert {path.name for path in copied.iterdir()} >= {"adapter_model.safetensors", "adapter_config.json", "README.md"}
    whole = AutoModelForCausalLM.from_pretrained(export_trial(folder, tmp_path / "whole", merged=True))
    assert AutoTokenizer.from_pretrained(tmp_path / "whole")("Tom")["input_ids"] == tokenizer("Tom")["input_ids"]
    with torch.no_grad():
        assert torch.allclose(ours, whole(input_ids=ids).logits[0], atol=1e-5)
    with pytest.raises(ConfigError, match="must be new or an empty folder"):
        export_trial(folder, copied, merged=True)
    with pytest.raises(CheckpointError, match="holds no trial"):
        export_trial(tmp_path, tmp_path / "nothing", merged=False)

    # The command measures the same again.
    measured = evaluate_checkpoint(folder / "adapter", "correction", None, "validation", 6, 0)
    assert measured["accuracy"]["value"] == measures["id accuracy"]["value"]
    with pytest.raises(ConfigError, match="trained for correction"):
        evaluate_checkpoint(folder, "detection", None, "validation", 6, 0)
    with pytest.raises(ConfigError, match="leave --op out"):
        evaluate_checkpoint(folder, "correction", 4, "validation", 6, 0)


def test_detection_and_measuring_again(checkpoint: Callable[[str], Path], problems: Path, tmp_path: Path) -> None:
    changes = {"skill.name": "detection", "testing.n": 10}
    config = config_of(checkpoint("gpt2"), problems, **changes)
    result, folder = run_alone(config, tmp_path / "runs", None, QUIET)
    assert result["status"] == "finished", result["reason"]
    first = named(result)
    assert 0 <= first["injected detect_auroc"]["value"] <= 1
    trial = open_trial(folder, {"split": "validation", "n": 10})
    found = trial.measure(None, None)
    again = {f"{m.set} {m.metric}": m for m in found.measures}
    assert again["injected detect_auroc"].value == pytest.approx(first["injected detect_auroc"]["value"])

    # What MLflow loads judges the end of a text.
    client = MlflowClient(f"sqlite:///{mlflow_path(tmp_path / 'runs')}")
    (model,) = client.search_logged_models(["1"])
    text = "Tom has 3 + 4 = 8 apples."
    parts = {"prompt": "Tom has ", "solution": "3 + 4 = 8 apples.\n"}
    (judged,) = mlflow.pyfunc.load_model(model.artifact_location).predict([parts])
    ids = torch.tensor([trial.learner.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        logits = trial.learner(ids, torch.arange(ids.shape[1])[None] == ids.shape[1] - 1, verdict=True)
    assert judged == pytest.approx(float(logits[0].softmax(0)[1]), abs=1e-5)


def test_killed_and_gone_on_with_equals_straight(
    checkpoint: Callable[[str], Path], problems: Path, tmp_path: Path
) -> None:
    config = config_of(checkpoint("qwen2"), problems, **{"testing.baseline": False})

    def weights(trial: TextTrial) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in trial.learner.trainable().values()]

    def trained(folder: Path, on_point: Callable[[Point], None]) -> TextTrial:
        trial = TextTrial(config, tmp_path)
        fast = trial.training.model_copy(update={"checkpoint_seconds": 0})
        trial.training = fast
        folder.mkdir(exist_ok=True)
        trial.train(trial.task(), folder, on_point)
        return trial

    def kill(point: Point) -> None:
        if point.tokens == 5 * 2 * 128:
            raise KeyboardInterrupt

    straight = weights(trained(tmp_path / "straight", lambda _: None))
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "killed", kill)
    resumed = weights(trained(tmp_path / "killed", lambda _: None))
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed, strict=True))


def test_an_architecture_that_cannot_keep_documents_apart_is_refused(
    checkpoint: Callable[[str], Path], problems: Path, tmp_path: Path
) -> None:
    config = config_of(checkpoint("bloom"), problems)
    with pytest.raises(ConfigError, match=r"set corpus.packing=false"):
        TextTrial(config, tmp_path).task()
    alone = config_of(checkpoint("bloom"), problems, **{"corpus.packing": False})
    assert len(TextTrial(alone, tmp_path).task().stream) == len(TextTrial(alone, tmp_path).corpus.train)


def test_own_solutions_that_the_chat_template_will_not_have_are_left_out(
    checkpoint: Callable[[str], Path], problems: Path, tmp_path: Path
) -> None:
    shutil.copytree(checkpoint("llama"), tmp_path / "thinker")
    (tmp_path / "thinker" / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content.split('</think>')[-1] }}\n{% endfor %}"
    )
    rows = [json.loads(line) for line in problems.read_text().splitlines()]
    own = [
        {"question": row["question"], "text": f"{thought}{row['solution']}"}
        for row in rows
        for thought in ("", "So.</think>")
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    changes = {"corpus.mistakes": "own", "corpus.samples": str(tmp_path / "own.jsonl")}
    trial = TextTrial(config_of(tmp_path / "thinker", problems, **changes), tmp_path)
    count = len(trial.corpus.learned)
    assert f"own not taken {count}; own right {count}" in trial.corpus.source
    assert len(trial.encoder.encode_all(trial.corpus.train).encoded) == count


def test_windows_that_the_model_cannot_see_are_refused(
    checkpoint: Callable[[str], Path], problems: Path, tmp_path: Path
) -> None:
    config = config_of(checkpoint("gpt2"), problems, **{"corpus.window": 256})
    with pytest.raises(ConfigError, match=r"at most the 128 positions .* set corpus.window=128"):
        TextTrial(config, tmp_path).task()


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"corpus.validation_share": 0}, r"none of 0 validation windows .* larger corpus.validation_share"),
        ({"skill.name": "detection", "corpus.mistakes": "none"}, r"has \d+ and 0; set corpus.mistakes"),
        ({"skill.name": "detection", "corpus.retry_rate": 0}, r"has \d+ and 0; set corpus.mistakes"),
    ],
)
def test_what_cannot_be_learned_or_measured_is_refused_before_training(
    checkpoint: Callable[[str], Path], problems: Path, tmp_path: Path, changes: dict[str, Any], fault: str
) -> None:
    trial = TextTrial(config_of(checkpoint("llama"), problems, **changes), tmp_path)
    with pytest.raises(ConfigError, match=fault):
        trial.task()


def test_rates_that_are_not_set(checkpoint: Callable[[str], Path], problems: Path) -> None:
    config = config_of(checkpoint("llama"), problems, **{"training.lr": None})
    assert resolve_rate(config, TunedRates()).training.lr == USUAL_RATES["lora"]


def test_a_search_may_not_see_test_problems(checkpoint: Callable[[str], Path], problems: Path) -> None:
    assert config_of(checkpoint("llama"), problems).measuring.split == "validation"
    asked = config_of(checkpoint("llama"), problems, **{"testing.split": "test"})
    assert asked.measuring.split == "test"


def test_two_processes_share_a_trial(checkpoint: Callable[[str], Path], problems: Path, tmp_path: Path) -> None:
    """As `accelerate launch` starts them: the loss is that of one, and the first alone writes."""
    keys = [
        "corpus.mistakes=number", "corpus.retry_rate=0.5", "corpus.window=128", "corpus.validation_share=0.2",
        "method.rank=4", "training.tokens=4096", "training.batch_windows=4", "training.points=2", "training.lr=0.01",
        "training.precision=fp32", "pretrained.attention=eager", "testing.n=2", "testing.max_new_tokens=4",
        "testing.baseline=false",
    ]  # fmt: skip
    losses, with_loss = [], []
    for processes in (1, 2):
        command = ["-m", "peft_study", "finetune", "--model", checkpoint("llama"), "--data", problems]
        run_together(processes, *command, "--runs", tmp_path / str(processes), *keys)
        (file,) = (tmp_path / str(processes)).glob("finetune/*/metrics.jsonl")
        losses.append([json.loads(line)["validation/loss"] for line in file.read_text().splitlines()])
        with_loss.append(json.loads(file.with_name("result.json").read_text())["tokens_with_loss"])
    assert with_loss[0] == with_loss[1] > 0
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert texts.BASELINE not in {path.name for path in (tmp_path / "2").rglob("*")}


def test_an_arm_of_a_sweep_is_the_same_trial(
    checkpoint: Callable[[str], Path], problems: Path, write_sweep: Callable[..., Path], tmp_path: Path
) -> None:
    """Its table shows what real texts have: no number of operations, a base and a corpus by name."""
    flat = config_of(checkpoint("llama"), problems, **{"testing.baseline": False}).model_dump(mode="json")
    trial = {key: flat[key] for key in ("pretrained", "corpus", "testing", "training", "method")}
    # A rate in a name has a point, which MLflow's names of models have not.
    grid = {"training.lr": [0.01]}
    arms = {skill: {"trial": {"skill": {"name": skill}}, "grid": grid} for skill in ("correction", "detection")}
    plan = build_plan(read_sweep(str(write_sweep(trial=trial, arms=arms, gap={}))))
    outcome = run_sweep(plan, tmp_path / "runs", workers=0, console=QUIET)
    assert set(outcome.statuses.values()) == {Status.FINISHED}
    page = write_report(plan.sweep.name, tmp_path / "runs").with_suffix(".md").read_text()
    assert "A claim needs 3 seeds; missing: 3 seeds (an arm has 2)." in page
    assert "**Correction** (share of problems solved). References" in page
    assert not any(word in page for word in ("base pair", "retries", "[BACK]", "out of distribution"))
    frame = read_results(results_path(plan.sweep.name, tmp_path / "runs"))
    lines = {line.skill: line for line in summarize(frame)}
    assert (lines["correction"].op, lines["detection"].op) == (None, None)
    assert all(line.raw is not None for line in lines.values())
    assert lines["correction"].problems == 6
    row = lines["correction"].row
    assert (row["base"], row["family"], row["kind"]) == (str(checkpoint("llama")), str(problems), "number")


def test_a_failure_while_measuring_does_not_cost_the_training(
    checkpoint: Callable[[str], Path], problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command measures again what was trained."""
    runs, folder = tmp_path / "runs", tmp_path / "mine"
    config = config_of(checkpoint("llama"), problems, **{"training.tokens": 256, "testing.baseline": False})

    def no_memory(*_: Any) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(TextTrial, "measure", no_memory)
        failed, _ = run_alone(config, runs, folder, QUIET)
    assert (failed["status"], failed["reason"]) == ("failed", "RuntimeError: out of memory")
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    client = MlflowClient(f"sqlite:///{mlflow_path(runs)}")
    assert client.search_runs(["1"], "tags.reason LIKE '%memory'")
    with monkeypatch.context() as patched:
        patched.setattr("peft_study.study.weights.fingerprint", lambda _: "others")
        with pytest.raises(StoreError, match=r"made from other weights .*; .* remove"):
            run_alone(config, runs, folder, QUIET)
    with monkeypatch.context() as patched:
        patched.setattr("peft_study.training.supervised.batch_loss", no_memory)
        result, _ = run_alone(config, runs, folder, QUIET)
    assert (result["status"], result["tokens"]) == ("finished", 256)
    (run,) = client.search_runs(["1"], "tags.trial != ''")
    assert (run.info.status, run.data.tags.get("reason")) == ("FINISHED", None)
    assert not (folder / "checkpoint").exists()


def test_what_is_refused_leaves_nothing_and_mlflow_says_why(
    checkpoint: Callable[[str], Path], problems: Path, tmp_path: Path
) -> None:
    """A mended config may then come to the same folder."""
    runs, folder = tmp_path / "runs", tmp_path / "mine"
    wrong = config_of(checkpoint("gpt2"), problems, **{"corpus.window": 256})
    with pytest.raises(ConfigError, match=r"set corpus.window=128"):
        run_alone(wrong, runs, folder, QUIET)
    assert {path.name for path in folder.iterdir()} == {".lock"}
    client = MlflowClient(f"sqlite:///{mlflow_path(runs)}")
    (run,) = client.search_runs(["1"], "tags.trial != ''")
    assert (run.info.status, run.data.tags["status"]) == ("FAILED", "failed")
    assert "set corpus.window=128" in run.data.tags["reason"]
    right = config_of(checkpoint("gpt2"), problems, **{"training.tokens": 256, "testing.baseline": False})
    said = Console(record=True, width=400)
    assert run_alone(right, runs, folder, said)[0]["status"] == "finished"
    # What is read and adapted is said before the training, and once.
    text = said.export_text()
    assert text.count("windows: ") == 1
    assert text.index("windows: ") < text.index("finished")
    again = Console(record=True, width=400)
    run_alone(right, runs, folder, again)
    assert again.export_text().count("windows: ") == 1


def test_programs_that_may_not_run_are_refused_before_anything_is_trained(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "p.jsonl").write_text(
        "".join(json.dumps({"prompt": f"a{i}", "completion": "b"}) + "\n" for i in range(9))
    )
    program = {
        "task_id": "HumanEval/0",
        "prompt": "def f():\n",
        "canonical_solution": "    pass\n",
        "test": "",
        "entry_point": "f",
    }
    (tmp_path / "HumanEval.jsonl").write_text(json.dumps(program) + "\n")
    tests = {"corpus.test": "humaneval", "corpus.test_path": str(tmp_path), "testing.split": "test"}
    config = config_of(checkpoint("gpt2"), tmp_path / "p.jsonl", **tests, **{"corpus.mistakes": "none"})
    with pytest.raises(ConfigError, match=r"set testing.allow_untrusted_code=true"):
        TextTrial(config, tmp_path)


def test_a_merged_model_has_the_precision_of_its_base(
    checkpoint: Callable[[str], Path], problems: Path, tmp_path: Path
) -> None:
    changes = {"training.precision": "bf16", "training.tokens": 1024, "testing.baseline": False, "testing.n": 1}
    _, folder = run_alone(config_of(checkpoint("llama"), problems, **changes), tmp_path, None, QUIET)
    merged = AutoModelForCausalLM.from_pretrained(export_trial(folder, tmp_path / "whole", merged=True))
    assert merged.dtype is torch.float32
    base = AutoModelForCausalLM.from_pretrained(checkpoint("llama"), dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, folder / "adapter")
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        assert torch.allclose(merged(input_ids=ids).logits, adapted(input_ids=ids).logits, atol=1e-5)
