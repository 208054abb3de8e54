"""Figures: what is computed is tested by number, what is drawn by drawing it."""

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from matplotlib.text import Annotation, Text

from analysis.figures import headline, learning_rate, targets
from analysis.rows import rows_of
from analysis.style import SKILL_COLOURS, render, spread
from analysis.summary import Counts, Interval
from analysis.table import arm_rows, to_frame, to_rows, write_results
from peft_study.igsm.families import NANO
from peft_study.study.config import build_config
from peft_study.study.tuned import TunedRates

HEADLINE = NANO.headline_op


def pooled(frame: pd.DataFrame, arm: str, metric: str, op: int | None = HEADLINE) -> tuple[float, float, float]:
    rows = [
        row
        for row in to_rows(arm_rows(frame))
        if (row["trial"], row["metric"], row["op"]) == (arm, metric, op) and row["set"] in ("ood", "injected")
    ]
    return rows[0]["value"], rows[0]["low"], rows[0]["high"]


def test_headline_curves_are_the_ranks_at_their_parameters(frame: pd.DataFrame) -> None:
    info = headline.compute(frame)
    assert list(info.raw) == ["correction", "detection"]
    (curve,) = info.raw["correction"].curves
    assert [(point.text, point.params) for point in curve.points] == [("r1", 11_000), ("r4", 42_000), ("r16", 166_000)]
    assert curve.points[1].interval == pooled(frame, "correction-r4", "accuracy")
    assert curve.full is not None
    assert (curve.full.params, curve.full.interval) == (1_050_000, pooled(frame, "full", "accuracy"))
    (curve,) = info.raw["detection"].curves
    assert curve.points[2].interval == pooled(frame, "detection-r16", "detect_auroc")


def test_headline_references_are_control_bases_probe_and_free_detector(frame: pd.DataFrame) -> None:
    info = headline.compute(frame)
    correction = {reference.text: reference.interval for reference in info.raw["correction"].references}
    assert list(correction) == ["base as it is", "control", "retry pretraining", "retry pretraining + t"]
    assert correction["control"] == pooled(frame, "control", "accuracy")
    assert correction["retry pretraining"] == pooled(frame, "pretrained", "accuracy")
    detection = {reference.text: reference.interval for reference in info.raw["detection"].references}
    assert detection == {
        "probe": pooled(frame, "probe", "detect_auroc"),
        "free detector": pooled(frame, "upper", "free_auroc"),
    }


def test_headline_gap_has_a_curve_a_skill(frame: pd.DataFrame) -> None:
    info = headline.compute(frame)
    assert [curve.text for curve in info.gap.curves] == ["correction", "detection"]
    assert info.gap.curves[0].points[0].interval == pooled(frame, "correction-r1", "gap_closed")
    assert info.gap.curves[0].points[0].interval.value < info.gap.curves[0].points[2].interval.value
    assert info.no_gap == ()
    assert info.ops == {"correction": HEADLINE, "detection": HEADLINE}
    assert (info.counts.seeds, info.counts.bases, info.counts.problems) == ((1, 2), (1, 1), 128)
    assert (info.counts.planned, info.counts.failed) == (24, 1)


def test_headline_without_a_gap_says_so_and_draws(made: SimpleNamespace) -> None:
    same = made.outcomes("control", 0)
    trials = [made.trial(arm, 0) for arm in ("control", "correction-r1", "correction-r4")]
    info = headline.compute(to_frame(rows_of(made.sweep([*trials, made.trial("upper", 0, outcomes=same)]))))
    assert info.no_gap == ("correction",)
    assert info.gap.curves == ()
    texts = [text.get_text() for axes in headline.draw(info).axes for text in axes.texts]
    assert any("no gap" in text for text in texts)


def test_headline_names_the_target_sets_where_there_are_several(made: SimpleNamespace) -> None:
    first, second, third = (made.trial(f"correction-{rank}", 0) for rank in ("r1", "r4", "r16"))
    first.config["method"]["targets"], second.config["method"]["targets"] = "attention", "qv"
    info = headline.compute(to_frame(rows_of(made.sweep([first, second]))))
    assert [curve.text for curve in info.raw["correction"].curves] == ["correction, attention", "correction, qv"]
    headline.draw(info)
    # Beside adapters on all matrices they are in the tables alone.
    info = headline.compute(to_frame(rows_of(made.sweep([first, second, third]))))
    assert [curve.text for curve in info.raw["correction"].curves] == ["correction"]
    assert [point.text for point in info.raw["correction"].curves[0].points] == ["r16"]


def test_targets_has_a_curve_for_each_set_of_matrices(made: SimpleNamespace) -> None:
    """Others than those that learn as the headline does are left out: unmasked, or with other rows of new words."""
    names = ("control", "full", "correction-r1", "correction-r4", "correction-r16", "detection-r4", "detection-full")
    trials = {name: made.trial(name, 0) for name in names}
    trials["correction-r4"].config["method"]["targets"] = "qv"
    others = {"unmasked": ("skill", "mask", False), "without rows": ("method", "embeddings", "none")}
    others["clean"] = ("data", "retry_rate", 0.0)
    for name, (part, key, value) in others.items():
        trials[name] = replace(made.trial("correction-r4", 0), arm=name, trial=f"{name}-s0-b0-0123456789")
        trials[name].config[part][key] = value
    frame = to_frame(rows_of(made.sweep(list(trials.values()))))
    info = targets.compute(frame)
    assert list(info.panels) == ["correction", "detection"]
    found = {curve.targets: [point.text for point in curve.points] for curve in info.panels["correction"].curves}
    assert found == {"all-linear": ["r1", "r16"], "qv": ["r4"]}
    # Marks that lie close together are told apart by their axis.
    point = headline.Point("r1", 9, Interval(0.984, 0.979, 0.989))
    close = targets.TargetPanel((targets.TargetCurve("all-linear", (point,)),), (), HEADLINE)
    (axes,) = targets.draw(info._replace(panels={"detection": close})).axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(set(labels)) == len(labels) > 2
    (point,) = info.panels["correction"].curves[1].points
    assert (point.params, point.interval) == (42_000, pooled(frame, "correction-r4", "accuracy"))
    levels = {reference.text: reference.interval for reference in info.panels["correction"].references}
    assert levels == {
        "control": pooled(frame, "control", "accuracy"),
        "full fine-tuning": pooled(frame, "full", "accuracy"),
    }
    assert [reference.text for reference in info.panels["detection"].references] == ["full fine-tuning"]
    figure = targets.draw(info)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["all-linear", "qv"]
    assert not any(axes.get_window_extent().overlaps(legend.get_window_extent()) for axes in figure.axes)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert {"r1", "r4", "r16", "control", "full fine-tuning"} == set(texts)
    assert "Dashed" in targets.describe(info)


def test_sets_as_large_as_one_another_stand_side_by_side() -> None:
    interval = Interval(0.5, 0.4, 0.6)

    def curve(targets_name: str, **params: int) -> targets.TargetCurve:
        points = tuple(headline.Point(text, number, interval) for text, number in params.items())
        return targets.TargetCurve(targets_name, points)

    curves = (
        curve("all-linear", r4=57_600, r16=228_096),
        curve("mlp", r28=226_560),
        curve("qv", r18=56_000, r80=240_000),
    )
    places = targets.side_by_side(curves)
    # Three percent are as large; five are not.
    assert places["qv", "r80"] == (240_000, False)
    assert places["all-linear", "r16"][0] < 226_560 < 228_096 < places["mlp", "r28"][0]
    assert places["all-linear", "r4"][0] < places["qv", "r18"][0]
    assert [places[key][1] for key in (("all-linear", "r16"), ("mlp", "r28"))] == [True, False]
    # The figure stands by them.
    info = targets.TargetsInfo(
        {"correction": targets.TargetPanel(curves, (), HEADLINE)}, Counts((1, 1), (1, 1), 1, 0, 0, 0, 0, (), ())
    )
    (axes,) = targets.draw(info).axes
    drawn = {(text.get_text(), text.xy[0]) for text in axes.texts if isinstance(text, Annotation)}
    assert drawn == {(text, x) for (_, text), (x, _) in places.items()}


def test_headline_hangs_full_fine_tuning_on_what_learns_alike(made: SimpleNamespace) -> None:
    masked, full = made.trial("correction-r4", 0), made.trial("full", 0)
    trials = [masked, full]
    for record in (masked, full):
        config = {**record.config, "skill": {**record.config["skill"], "mask": False}}
        arm = f"{record.arm}-unmasked"
        trials.append(replace(record, arm=arm, trial=f"{arm}-s0-b0-0123456789", config=config))
    trials[3] = replace(trials[3], outcomes=made.outcomes("control", 0))
    curves = headline.compute(to_frame(rows_of(made.sweep(trials)))).raw["correction"].curves
    assert [curve.text for curve in curves] == ["correction, masked", "correction, unmasked"]
    solved = [curve.full.interval.value for curve in curves if curve.full]
    assert solved == [trial.outcomes[f"correct_ood_{NANO.headline_op}"].mean() for trial in (full, trials[3])]
    assert solved[0] != solved[1]


def test_a_legend_covers_neither_an_interval_nor_the_names_of_levels(made: SimpleNamespace) -> None:
    """Low in a corner it would, where a rank closes less than nothing of its gap."""
    names = ("control", "upper", "probe", "correction-r1", "correction-r4", "detection-r4")
    trials = [made.trial(name, 0) for name in names]
    trials[4].config["skill"]["mask"] = False
    figure = headline.draw(headline.compute(to_frame(rows_of(made.sweep(trials)))))
    figure.canvas.draw()
    right = figure.axes[-1]
    legend = right.get_legend()
    assert legend is not None
    box = legend.get_window_extent()
    assert [text.get_text() for text in legend.get_texts()] == [
        "correction, masked",
        "correction, unmasked",
        "detection",
    ]
    assert right.bbox.x1 <= box.x0
    assert box.x1 <= figure.bbox.x1
    assert not [text for text in right.texts if text.get_window_extent().overlaps(box)]


def test_figures_of_the_same_table_are_the_same_bytes(frame: pd.DataFrame) -> None:
    first, second = (render(headline.draw(headline.compute(frame)), "svg") for _ in range(2))
    assert first == second


def test_labels_of_a_figure_do_not_touch(frame: pd.DataFrame) -> None:
    figure = headline.draw(headline.compute(frame))
    figure.canvas.draw()
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts]
        assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
        assert all(box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes)


def test_nothing_at_all_is_drawn_too(made: SimpleNamespace) -> None:
    frame = to_frame(rows_of(made.sweep([])))
    headline.draw(headline.compute(frame))
    learning_rate.draw(learning_rate.compute(frame))


def test_target_sets_say_that_no_adapter_has_finished(made: SimpleNamespace) -> None:
    frame = to_frame(rows_of(made.sweep([made.trial("full", 0)])))
    info = targets.compute(frame)
    assert info.panels == {}
    assert [text.get_text() for text in targets.draw(info).texts] == ["No adapter has finished yet."]


@pytest.mark.parametrize("positions", [[0.5], [0.1, 0.1, 0.1], [0.9, 0.2, 0.95, 0.25], [2.0, -1.0, 0.5]])
def test_spread_keeps_labels_apart_inside_and_in_order(positions: list[float]) -> None:
    placed = spread(positions, apart=0.2, low=0.0, high=1.0)
    rising = sorted(placed)
    assert all(b - a >= 0.2 - 1e-9 for a, b in itertools.pairwise(rising))
    assert 0 <= rising[0] <= rising[-1] <= 1
    assert sorted(range(len(placed)), key=placed.__getitem__) == sorted(range(len(placed)), key=positions.__getitem__)


def test_skills_have_colours_of_their_own() -> None:
    assert len(set(SKILL_COLOURS.values())) == len(SKILL_COLOURS)


@pytest.fixture
def tuning(made: SimpleNamespace) -> pd.DataFrame:
    """Return a tidy table of a learning rate sweep: the middle rate is best for rank 1, the last for rank 16."""
    trials = []
    for arm, source in (("correction-r1", {1: "full", 0: "control", 2: "control"}), ("correction-r16", {2: "full"})):
        for place, lr in enumerate((1e-3, 3e-3, 1e-2)):
            for seed in (0, 1):
                outcomes = made.outcomes(source.get(place, "control"), seed)
                record = made.trial(arm, seed, outcomes=outcomes)
                record.config["training"]["lr"], record.config["evaluation"]["split"] = lr, "validation"
                measures = [
                    {
                        "split": "validation",
                        "set": "ood",
                        "op": op,
                        "metric": "accuracy",
                        "value": float(outcomes[f"correct_ood_{op}"].mean()),
                        "low": 0.0,
                        "high": 1.0,
                        "n": 128,
                    }
                    for op in NANO.ood_ops
                ]
                record.result["measures"] += measures
                trials.append(replace(record, arm=f"{arm}-lr-{lr}", trial=f"{arm}-lr-{lr}-s{seed}-b0-0123456789"))
    return to_frame(rows_of(made.sweep(trials)))


def test_learning_rate_marks_the_best_and_the_edge(tuning: pd.DataFrame) -> None:
    info = learning_rate.compute(tuning)
    assert [(tuned.cell.rank, tuned.best.lr, tuned.on_edge) for tuned in info.tuned] == [
        (1, 0.003, False),
        (16, 0.01, True),
    ]
    first = info.tuned[0]
    assert [rate.lr for rate in first.rates] == [0.001, 0.003, 0.01]
    assert first.best.interval == pooled(tuning, "correction-r1-lr-0.003", "accuracy", op=None)
    assert first.best.loss == pytest.approx(0.3)
    learning_rate.draw(info)


def test_titles_of_panels_do_not_touch(tuning: pd.DataFrame) -> None:
    info = learning_rate.compute(tuning)
    one = info.tuned[0]
    named = [("all-linear", "unmasked"), ("all-linear", "clean tokens"), ("attention", "retry base"), ("attention", "")]
    tuned = tuple(
        one._replace(cell=one.cell._replace(targets=targets, variant=variant, tokens=tokens))
        for targets, variant in named
        for tokens in (524_288, 4_194_304)
    )
    figure = learning_rate.draw(info._replace(tuned=tuned))
    figure.canvas.draw()
    titles = {axes.get_title("left") for axes in figure.axes}
    texts = [artist for artist in figure.findobj(Text) if isinstance(artist, Text)]
    boxes = [text.get_window_extent() for text in texts if text.get_text() in titles]
    assert len(boxes) == len(tuned)
    assert not [(a, b) for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]


def test_learning_rate_agrees_with_what_the_sweeps_use(tuning: pd.DataFrame, tmp_path: Path) -> None:
    write_results(tmp_path / "lr.csv", to_rows(tuning))
    rates = TunedRates(tmp_path / "lr.csv")
    for tuned in learning_rate.compute(tuning).tuned:
        settings = {"method.name": "lora", "method.rank": tuned.cell.rank}
        found = rates.look_up(build_config(settings))
        assert found.lr == tuned.best.lr
        assert bool(found.alarms) is tuned.on_edge
