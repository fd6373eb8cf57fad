"""What the inference benchmark makes of arms that are wrong, fail, or do not fit into memory."""

import dataclasses
import weakref

import numpy as np
import pytest
import torch

from common.coco import load_split
from common.models import Detections, load_model
from phase2_optimization import ladder_rows, measuring
from phase2_optimization.builders import Workshop
from phase2_optimization.inputs import timed_images
from phase2_optimization.variants import BASELINE, VARIANTS
from tests.phase2_runs import altered, rows_of

CPU = torch.device("cpu")


def test_too_few_iterations_claim_nothing(run):
    status, report = run("--variants", "channels_last")
    assert status == 0
    assert rows_of(report, "channels_last")[1]["verdict"] == "too few rounds to tell"
    assert report["fastest_variant"] is None
    assert report["conclusion"].startswith("No winner")


def test_boxes_beyond_the_tolerance_make_a_row_invalid(run, replace_variant):
    def shift(images, found):
        return [d._replace(boxes_xyxy=d.boxes_xyxy + np.float32(3)) for d in found]

    replace_variant("channels_last", altered(shift))
    status, report = run("--variants", "channels_last")
    assert status == 0
    for row in rows_of(report, "channels_last").values():
        assert row["status"].startswith("invalid: ")
        assert "of the boxes are the baseline's" in row["status"]
    assert report["fastest_variant"] is None
    assert "channels_last" not in report["optimal_batch_size_by_variant"]
    assert rows_of(report, BASELINE)[1]["status"] == "ok"


def test_additional_boxes_make_a_row_invalid(run, replace_variant):
    """They come last, so mAP hardly notices them."""

    def add(images, found):
        extra = Detections(
            np.array([[0, 0, 9, 9]], np.float32), np.array([0.051], np.float32), np.array([1])
        )
        return [
            Detections(*(np.concatenate(both) for both in zip(one, extra, strict=True)))
            for one in found
        ]

    replace_variant("channels_last", altered(add))
    _, report = run("--variants", "channels_last")
    assert rows_of(report, "channels_last")[1]["status"].startswith("invalid: ")


def test_not_a_number_is_invalid_and_the_report_stays_json(run, replace_variant):
    def spoil(images, found):
        return [d._replace(boxes_xyxy=np.full_like(d.boxes_xyxy, np.nan)) for d in found]

    replace_variant("inference_graph", altered(spoil))
    status, report = run("--variants", "inference_graph")
    assert status == 0
    assert rows_of(report, "inference_graph")[1]["status"].startswith("invalid: ")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
    ids=["cuda", "python", "cpu"],
)
def test_out_of_memory_at_a_batch_size_is_a_row(run, replace_variant, error):
    def fail(images, found):
        if len(images) > 1:
            raise error
        return found

    replace_variant("channels_last", altered(fail))
    status, report = run("--variants", "channels_last")
    assert status == 0
    found = rows_of(report, "channels_last")
    assert found[1]["status"] == "ok"
    assert found[2]["status"] == "oom"
    assert found[2]["latency_ms"] is found[2]["speedup"] is found[2]["throughput_img_s"] is None
    assert rows_of(report, BASELINE)[2]["latency_ms"]["p50"] > 0


def test_out_of_memory_while_timing_drops_that_arm_only(run, replace_variant):
    calls = []

    def fail_late(images, found):
        calls.append(len(images))
        if calls.count(2) > 3:  # the checks and one warm-up round fit
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    replace_variant("channels_last", altered(fail_late))
    _, report = run("--variants", "channels_last")
    assert rows_of(report, "channels_last")[2]["status"] == "oom"
    assert rows_of(report, BASELINE)[2]["iterations"] == 2


def test_a_model_that_never_fits_is_told_to_the_user(run, replace_variant, capsys):
    def fail(images, found):
        raise torch.OutOfMemoryError("CUDA out of memory")

    replace_variant(BASELINE, altered(fail))
    status, report = run("--variants", BASELINE)
    assert (status, report) == (2, None)
    assert "does not fit into memory" in capsys.readouterr().err


def test_what_does_not_fit_beside_all_others_is_timed_beside_the_baseline(run, replace_variant):
    """As on a GPU: every model takes its part of the memory."""
    alive = weakref.WeakSet()

    def crowded(name):
        def build(model, workshop):
            predict = VARIANTS[BASELINE].build(model, workshop)

            class Resident:
                def __call__(self, images):
                    if name == "folded_norms" and len(alive) > 1:
                        raise torch.OutOfMemoryError("CUDA out of memory")
                    return predict(images)

            resident = Resident()
            alive.add(resident)
            return resident

        return build

    for name in ("channels_last", "folded_norms"):
        replace_variant(name, crowded(name))
    status, report = run("--variants", "channels_last,folded_norms")
    assert status == 0
    for name in ("channels_last", "folded_norms"):
        for row in rows_of(report, name).values():
            assert row["status"] == "ok"
            assert row["speedup"]["ratio"] > 0


def test_only_finalists_are_in_memory_in_the_final_rounds(
    model_path, data_path, tmp_path, monkeypatch, replace_variant
):
    alive, at_the_start = weakref.WeakSet(), []

    def resident(name):
        def build(model, workshop):
            predict = VARIANTS[BASELINE].build(model, workshop)

            class Resident:
                def __call__(self, images):
                    return predict(images)

            made = Resident()
            made.name = name
            alive.add(made)
            return made

        return build

    def planted(arms, **_):
        at_the_start.append(sorted(one.name for one in alive))
        return {arm: np.full(7, 10.0) for arm in arms}

    names = ("channels_last", "folded_norms")
    for name in names:
        replace_variant(name, resident(name))
    monkeypatch.setattr(measuring.timing, "warm_up", lambda *_: 0)
    monkeypatch.setattr(measuring.timing, "measure_interleaved", planted)
    model, split = load_model(model_path, CPU).model, load_split(data_path, "val")
    images, shop = timed_images(split, 2, None), Workshop(CPU, tmp_path, [], 1)
    made = measuring.Benchmark(model, shop, split, images, 7, 1.0, 2, 0)
    made.check([BASELINE, *names], [1], {})
    monkeypatch.setattr(ladder_rows.Rows, "_parity", lambda *_: None)
    monkeypatch.setattr(ladder_rows.Rows, "_status", lambda *_: "ok")
    made.time(1)
    made.time_finalists([])
    made.time_finalists([("folded_norms", 2), ("folded_norms", 1)])
    assert at_the_start == [list(names), ["folded_norms"] * 2]  # the second one is its second self
    assert list(made.final) == [("folded_norms", 2), ("folded_norms", 1)]
    assert made.final_noise == {"ratio": 1.0, "ci95": (1.0, 1.0)}


def test_every_set_of_rounds_has_a_number_of_its_own(run, replace_variant):
    """The crowded one is timed again, beside the baseline alone."""
    calls = []

    def fail_once(images, found):
        calls.append(len(images))
        if calls.count(2) == 2:  # the first in the rounds of all
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    replace_variant("channels_last", altered(fail_once))
    _, report = run("--variants", "channels_last,folded_norms")
    numbers = {
        size: [rows_of(report, name)[size]["rounds_id"] for name in report["variants"]]
        for size in (1, 2)
    }
    assert numbers == {1: [1, 1, 1], 2: [2, 3, 2]}
    assert {row["status"] for row in report["results"]} == {"ok"}


def test_a_second_self_that_fails_leaves_the_finalists_as_they_are(
    model_path, data_path, tmp_path, replace_variant
):
    built = []

    def once(model, workshop):
        built.append(1)
        if len(built) > 2:  # for the checks, and to be timed
            raise RuntimeError("no space left on the device")
        return VARIANTS[BASELINE].build(model, workshop)

    replace_variant("channels_last", once)
    model, split = load_model(model_path, CPU).model, load_split(data_path, "val")
    images, shop = timed_images(split, 2, None), Workshop(CPU, tmp_path, [], 1)
    made = measuring.Benchmark(model, shop, split, images, 2, 1.0, 2, 0)
    made.check([BASELINE, "channels_last"], [1], {})
    made.time_finalists([("channels_last", 1), ("channels_last", 2)])
    assert len(built) == 3
    assert set(made.final) == {("channels_last", 1), ("channels_last", 2)}
    assert made.final_noise is None
    assert made.checks["channels_last"].failure == ""


def test_a_bug_in_a_variant_is_not_taken_for_a_lack_of_memory(run, replace_variant):
    calls = []

    def fail_late(images, found):
        calls.append(len(images))
        if calls.count(2) > 3:
            raise RuntimeError("expected scalar type Float")
        return found

    replace_variant("channels_last", altered(fail_late))
    status, report = run("--variants", "channels_last")
    assert status == 0
    expected = "failed: RuntimeError: expected scalar type Float"
    assert rows_of(report, "channels_last")[1]["status"] == "ok"
    assert rows_of(report, "channels_last")[2]["status"] == expected
    assert rows_of(report, BASELINE)[2]["iterations"] == 2


def test_the_two_baselines_share_no_memory(run, monkeypatch):
    built = []
    build = VARIANTS[BASELINE].build
    monkeypatch.setitem(
        VARIANTS,
        BASELINE,
        dataclasses.replace(
            VARIANTS[BASELINE],
            build=lambda m, w: built.append(next(m.parameters()).data_ptr()) or build(m, w),
        ),
    )
    run("--variants", BASELINE, "--batch-sizes", "1")
    assert len(built) == 3  # for the checks, then two to be timed
    assert built[1] != built[2]
