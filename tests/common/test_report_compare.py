"""Two runs side by side: what is a difference, what is noise, and what cannot be told."""

import json
import re

import numpy as np
import pytest

from common import report
from common.comparison import median_interval
from common.reporting import compare, conditions
from common.reporting.blocks import Lines, Note, Table
from common.reporting.difference import (
    OUTSIDE,
    SAME,
    UNKNOWN,
    WITHIN,
    Quantity,
    Value,
    lie_apart,
    of_ratio,
    of_rounds,
    of_seeds,
)
from common.reporting.inputs import Inputs, folders_of, read_inputs
from tests.common import made_up_reports
from tests.common.test_report import HOSTILE, Page

NAMES = ["person", "car"]


def quantity(first, second, **how):
    return Quantity("q", first, second, **how)


def table(first, second, title):
    """Rows of a section by name: A, B, change, difference."""
    made, _ = compare.sections(first, second)
    (section,) = [section for section in made if section.title == title]
    (found,) = [block for block in section.blocks if isinstance(block, Table)]
    return {row[0]: row[1:] for row in found.rows}


# --- what the runs have in common -------------------------------------------------------------


def test_what_only_one_run_has_is_named():
    first = Inputs(
        {"evaluation": made_up_reports.evaluation(["person", "car", "bus"])},
        {"street": made_up_reports.tracking(["car"])[0]},
    )
    second = Inputs(
        {"evaluation": made_up_reports.evaluation(["car", "dog"])},
        {"square": made_up_reports.tracking(["car"])[0]},
    )
    made, _ = compare.sections(first, second)
    told = {s.title: [b.text for b in s.blocks if isinstance(b, Note)] for s in made}
    assert told["Detections"] == ["Only in A: person, bus.", "Only in B: dog."]
    assert told["Videos"][1:] == ["Only in A: street.", "Only in B: square."]
    same, _ = compare.sections(first, first)
    assert not any(isinstance(block, Note) for section in same for block in section.blocks)


def test_times_read_as_in_the_report():
    runs = [run_of(training=made_up_reports.training(["car"])) for _ in range(2)]
    (found,) = conditions.section(*runs).blocks
    assert isinstance(found, Table)
    assert {row[2] for row in found.rows} == {"2026-01-02 03:04:05"}


# --- one quantity -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "apart"),
    [
        (Value(1.0, 0.9, 1.1), Value(1.3, 1.2, 1.4), True),
        (Value(1.3, 1.2, 1.4), Value(1.0, 0.9, 1.1), True),
        (Value(1.0, 0.9, 1.1), Value(1.2, 1.05, 1.4), False),
        (Value(1.0, 0.9, 1.1), Value(1.2, 1.11, 1.4), False),  # apart by less than 2%
        (Value(1.0, 0.9, 1.1), Value(1.2, 1.13, 1.4), True),
        (Value(1.0, 0.9, 1.1, noise=1.05), Value(1.2, 1.13, 1.4), False),
        (Value(1.0, 0.9, 1.1), Value(1.2, 1.13, 1.4, noise=1.05), False),
        (Value(1.0), Value(1.2, 1.13, 1.4), False),
        (Value(0.0, 0.0, 0.0), Value(0.4, 0.3, 0.5), True),
    ],
)
def test_when_intervals_lie_apart(first, second, apart):
    assert lie_apart(first, second) is apart


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (quantity(Value(1.0, 0.9, 1.1), Value(2.0, 1.9, 2.1)), f"{OUTSIDE}: B is better"),
        (quantity(Value(2.0, 1.9, 2.1), Value(1.0, 0.9, 1.1)), f"{OUTSIDE}: B is worse"),
        (
            quantity(Value(1.0, 0.9, 1.1), Value(2.0, 1.9, 2.1), better="lower"),
            f"{OUTSIDE}: B is worse",
        ),
        (quantity(Value(1.0, 0.9, 1.1), Value(1.1, 1.0, 1.2)), WITHIN),
        (quantity(Value(1.0), Value(9.0)), UNKNOWN),
        (quantity(Value(1.0, 0.9, 1.1), Value(9.0)), UNKNOWN),
        (quantity(Value(1.0), Value(1.0)), SAME),
        (quantity(Value(1.0), Value(None)), "–"),
        (quantity(Value(7.0), Value(7.1), better="lower", is_exact=True), "B is worse"),
        (quantity(Value(7.0), Value(7.0), is_exact=True), SAME),
    ],
)
def test_what_can_be_said_of_a_difference(one, words):
    assert one.verdict() == words
    assert (one.shade() != 0) == words.startswith(OUTSIDE)


def test_how_a_quantity_is_shown():
    ratio = quantity(Value(2.0, 1.9, 2.1), Value(3.0), digits=2)
    assert ratio.cells() == ("q", "2.00 (1.90 to 2.10)", "3.00", "+50.0%", UNKNOWN)
    assert quantity(Value(0.5), Value(0.45)).cells()[3] == "-0.050", "a share changes by points"
    assert quantity(Value(0.0), Value(3.0), digits=0).cells()[3] == "+3"
    assert quantity(Value(None), Value(3.0)).cells()[1:4] == ("–", "3.000", "–")


def test_where_intervals_come_from():
    ratio = {"ratio": 1.5, "ci95": [1.4, 1.6]}
    assert of_ratio(ratio, {"ci95": [0.8, 1.1]}) == Value(1.5, 1.4, 1.6, noise=1.25)
    assert of_ratio({"ratio": 1.5, "ci95": None}) == Value(1.5)
    assert of_ratio(None) == Value(None)
    times = [10.0, 11.0, 12.0, 10.0, 9.0, 13.0, 10.5, 11.5]
    median, interval = median_interval(np.array(times))
    assert of_rounds(times) == Value(median, *interval)
    assert interval[0] < median < interval[1]
    assert of_rounds(times[:6]) is None
    assert of_rounds([*times, None]) is None
    seeds = {"mean": 0.5, "min": 0.4, "max": 0.6, "values": [0.4, 0.5, 0.6]}
    assert of_seeds(seeds) == Value(0.5, 0.4, 0.6)
    assert of_seeds(seeds | {"values": [0.4, 0.6]}) == Value(0.5)


# --- runs -------------------------------------------------------------------------------------


def run_of(**metrics):
    return Inputs(json.loads(json.dumps(metrics)))


def test_speed_ups_are_told_by_their_intervals_and_milliseconds_are_not():
    first, second = (run_of(inference_benchmark=made_up_reports.benchmark()) for _ in range(2))
    for row in second.metrics["inference_benchmark"]["results"]:
        if row["variant"] == "inference_graph" and row["batch_size"] == 4:
            row["speedup"] = {"ratio": 2.0, "ci95": [1.9, 2.1]}
            row["latency_ms"]["p50"] /= 2
    rows = table(first, second, "Speed-ups")
    name = "inference_graph, batch 4"
    assert rows[f"{name}: speed-up"][-1] == f"{OUTSIDE}: B is better"
    assert rows[f"{name}: p50 ms"][2:] == ("-50.0%", UNKNOWN)
    assert rows["channels_last, batch 4: speed-up"][-1] == SAME
    assert not [key for key in rows if key.startswith("fp32_eager") and "speed-up" in key]
    noise = {"4": {"ratio": 1.0, "ci95": [0.7, 1.3]}}
    second.metrics["inference_benchmark"]["noise"] = noise
    assert table(first, second, "Speed-ups")[f"{name}: speed-up"][-1] == WITHIN


def test_rounds_and_seeds_of_mixed_precision_are_used():
    def run(scale, low):
        content = made_up_reports.amp()
        for arm in content["arms"]:
            arm["step_times_ms"] = [scale * ms for ms in (10.0, 10.1, 9.9, 10.0, 10.2, 9.8, 10.0)]
            values = [low, low + 0.01, low + 0.02]
            arm["over_seeds"] = {"map": {"mean": values[1], "min": low, "max": values[2]}}
            arm["over_seeds"]["map"]["values"] = values
        return run_of(amp_comparison=content)

    rows = table(run(1.0, 0.5), run(2.0, 0.51), "Mixed-precision training")
    assert rows["fp32: step ms"][-1] == f"{OUTSIDE}: B is worse"
    assert rows["amp_bf16: mAP"][-1] == WITHIN
    rows = table(run(1.0, 0.5), run(1.0, 0.6), "Mixed-precision training")
    assert rows["amp_bf16: mAP"][-1] == f"{OUTSIDE}: B is better"


def test_single_values_are_never_marked():
    """A training, its evaluation and tracking have one value each."""
    contents = {
        "training": made_up_reports.training(NAMES),
        "evaluation": made_up_reports.evaluation(NAMES),
        "tracking_eval": made_up_reports.tracking(NAMES)[1],
    }
    first, second = run_of(**contents), run_of(**contents)
    second.metrics["training"]["best"]["map"] = 0.1
    second.metrics["evaluation"]["classes"][0]["ap"] = 0.1
    second.metrics["tracking_eval"]["combined"]["idf1"] = 0.1
    for title, name in (("Training", "mAP"), ("Detections", "person: AP"), ("Tracking", "IDF1")):
        rows = table(first, second, title)
        assert rows[name][-1] == UNKNOWN
        assert {row[-1] for row in rows.values()} == {UNKNOWN, SAME}
    _, cards = compare.sections(first, second)
    assert [card.value for card in cards] == ["0", "3"]


def test_the_size_of_a_file_is_exact():
    first, second = (
        run_of(export=made_up_reports.report("export", formats=made_up_reports.formats("onnx")))
        for _ in range(2)
    )
    second.metrics["export"]["formats"][0]["size_mib"] *= 0.5
    rows = table(first, second, "Exported formats")
    assert rows["onnx: MiB"] == ("12.50", "6.25", "-50.0%", "B is better")


def test_curves_of_both_are_in_one_chart():
    contents = [made_up_reports.training(NAMES), made_up_reports.evaluation(NAMES)]
    run = run_of(training=contents[0], evaluation=contents[1])
    made, _ = compare.sections(run, run)
    charts = [block for section in made for block in section.blocks if isinstance(block, Lines)]
    assert [chart.x_label for chart in charts] == ["epoch", "recall"]
    assert all([name for name, _ in chart.series] == ["A", "B"] for chart in charts)


def test_what_one_run_lacks_is_said():
    first, second = run_of(pruning=made_up_reports.pruning()), run_of(profile={"stages": []})
    made, _ = compare.sections(first, second)
    assert {section.title: section.reading for section in made} == {
        "Where the time goes": "Only B has this result.",
        "Pruned models": "Only A has this result.",
    }
    nothing = run_of(profile={"stages": []})
    ((section,), _) = compare.sections(nothing, nothing)
    assert [type(block) for block in section.blocks] == [Note]


# --- conditions -------------------------------------------------------------------------------


def test_other_hardware_versions_data_and_settings_are_warned_of():
    first, second = (
        run_of(profile=made_up_reports.profile(), inference_benchmark=made_up_reports.benchmark())
        for _ in range(2)
    )
    assert conditions.notices(first, second) == []
    for content in second.metrics.values():
        content["environment"]["threads"] = 1
    profile = second.metrics["profile"]
    profile["environment"]["packages"]["torch"] = "2.16.0"
    profile["inputs"]["outputs/models/best_model.pth"] = "b" * 64  # what is compared
    first.metrics["profile"]["inputs"]["a/instances_val.json"] = "c" * 64
    profile["inputs"]["b/instances_val.json"] = "d" * 64
    profile["batch_size"] = 8
    assert conditions.notices(first, second) == [
        "Hardware differs between A and B: threads 2 against 1 (profile, inference_benchmark).",
        "Versions differ between A and B: torch 2.15.0 against 2.16.0 (profile).",
        f"Data differs between A and B: instances_val.json {'c' * 12} against {'d' * 12} "
        "(profile).",
        "Settings differ between A and B: batch_size 4 against 8 (profile).",
    ]


def test_recipes_that_differ_are_told():
    first, second = (run_of(training=made_up_reports.training(NAMES)) for _ in range(2))
    second.metrics["training"]["recipe"]["learning_rate"] = 0.1
    second.metrics["training"]["seed"] = 5  # the first does not say
    assert conditions.notices(first, second) == [
        "Settings differ between A and B: learning_rate 0.001 against 0.1 (training)."
    ]


# --- the command ------------------------------------------------------------------------------


def test_the_command_compares_an_outputs_folder_with_a_metrics_folder(run_script, tmp_path):
    for name in ("a", "b"):
        made_up_reports.write_all(tmp_path / name, HOSTILE)
    done = run_script(
        *("common/report.py", "--compare", tmp_path / "a", tmp_path / "b" / "metrics"),
        *("--output", tmp_path / "out"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    html = (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    markdown = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    page = Page(html)
    assert page.addresses
    assert all(address.startswith("#") for address in page.addresses)
    assert not re.search(r"https?:|url\(|@import", html)
    assert "<script" not in markdown
    assert "Only A has this result." in markdown, "the videos are beside the metrics"
    for name in HOSTILE:
        assert " ".join(name.split()) in page.text


@pytest.mark.parametrize(
    ("folder", "words"), [("nowhere", "no such folder"), ("empty", "holds no results")]
)
def test_what_is_no_run_is_one_line(run_script, tmp_path, outputs_dir, folder, words):
    made_up_reports.write_all(tmp_path / "a", NAMES)
    (tmp_path / "empty").mkdir()
    done = run_script("common/report.py", "--compare", tmp_path / "a", tmp_path / folder)
    assert done.returncode == 2
    told = f"error: {tmp_path / folder}: {words} – give an outputs folder, or the metrics folder"
    assert done.stderr == f"{told} in one\n"
    assert not outputs_dir.exists()


def test_a_folder_of_train_is_a_run(tmp_path):
    content = made_up_reports.training(NAMES)
    (tmp_path / "training.json").write_text(json.dumps(content))
    (tmp_path / "best_model.json").write_text(json.dumps({"sha256": "e" * 64}))
    inputs = read_inputs(folders_of(tmp_path))
    assert list(inputs.metrics) == ["training"]
    assert inputs.metrics["training"]["inputs"] == {"best_model.pth": "e" * 64}
    assert inputs.videos == {}
    content = report.build_comparison(inputs, inputs, ["a", "b"])
    assert "A is a, B is b." in report.render_markdown(content)
