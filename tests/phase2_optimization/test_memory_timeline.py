"""Memory over a step from made-up events, and its picture."""

import numpy as np
import pytest
from matplotlib import pyplot as plt
from PIL import Image

from phase2_optimization.memory_timeline import Timeline, draw, read_timeline, read_timelines

MIB = 2**20


def label(name: str, start: float, end: float) -> dict:
    return {"cat": "user_annotation", "name": name, "ts": start, "dur": end - start}


def memory(moment: float, mib: float, *, reserved: float = 0, device: int = 0) -> dict:
    args = {"Total Allocated": mib * MIB, "Total Reserved": reserved * MIB, "Device Type": device}
    return {"cat": "cpu_instant_event", "name": "[memory]", "ts": moment, "args": args}


STEP = [
    label("training", 1000, 9000),
    label("data wait", 1000, 2000),
    label("RPN", 2000, 7000),  # around the backbone, which is around the FPN
    label("backbone", 2500, 6000),
    label("FPN", 5000, 6000),
    label("Optimizer.step#SGD.step", 7000, 8000),  # PyTorch's own label is no stage
    label("optimizer", 7500, 8500),
]
ON_CUDA = [
    memory(500, 7, reserved=20, device=1),  # before the step
    memory(6500, 30, reserved=64, device=1),
    memory(2000, 10, reserved=64, device=1),  # in any order
    memory(3000, 50, reserved=64, device=1),
    memory(3000, 900),  # of the host
    memory(9500, 99, reserved=99, device=1),  # after the step
]


def test_the_memory_of_a_gpu_is_what_its_allocator_says():
    timeline = read_timeline([*STEP, *ON_CUDA], "training", "cuda")
    assert timeline.ms.tolist() == [1.0, 2.0, 5.5]
    assert timeline.allocated_mib.tolist() == [10, 50, 30]
    assert timeline.reserved_mib.tolist() == [64, 64, 64]
    assert timeline.summary() == {"peak_mib": 50, "peak_stage": "backbone"}


def test_the_memory_of_a_cpu_counts_from_the_beginning_of_the_step():
    events = [memory(200, 3), memory(900, 5), memory(2000, 15), memory(8000, 9), memory(9500, 1)]
    timeline = read_timeline([*STEP, *events], "training", "cpu")
    assert timeline.ms.tolist() == [1.0, 7.0]
    assert timeline.allocated_mib.tolist() == [10, 4]
    assert timeline.reserved_mib is None


def test_a_moment_belongs_to_the_innermost_stage():
    timeline = read_timeline([*STEP, *ON_CUDA], "training", "cuda")
    assert list(timeline.stages) == [
        ("data wait", 0, 1),
        ("RPN", 1, 1.5),
        ("backbone", 1.5, 4),
        ("FPN", 4, 5),
        ("RPN", 5, 6),
        ("optimizer", 6.5, 7.5),
    ]


def test_a_peak_between_stages_is_of_none():
    flat = Timeline(np.array([0.0, 2.0]), np.array([1.0, 5.0]), None, [("RPN", 0.0, 1.0)])
    assert flat.peak() == (5.0, 2.0, "other")


def test_a_step_without_events_of_the_device_has_no_timeline():
    assert read_timeline([*STEP, memory(2000, 15)], "training", "cuda") is None
    assert read_timelines([*STEP, *ON_CUDA], ["training"], "mps") == {}
    assert list(read_timelines([*STEP, *ON_CUDA], ["training"], "cuda")) == ["training"]


def test_the_picture_has_a_panel_for_each_step(tmp_path):
    timeline = read_timeline([*STEP, *ON_CUDA], "training", "cuda")
    heights = []
    for names in (["training"], ["training", "inference"]):
        path = tmp_path / f"{len(names)}.png"
        draw(dict.fromkeys(names, timeline), "cuda", "Memory $\\frac{ of <a> step", path)
        with Image.open(path) as picture:
            heights.append(picture.height)
            colours = {colour for _, colour in picture.convert("RGB").getcolors(2**20)}
        assert len(colours) > 20
    assert heights[1] > 1.5 * heights[0]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["1.png", "2.png"]


@pytest.mark.parametrize(
    ("stages", "has_gap"),
    [
        ([("RPN", 0.0, 2.0), ("backbone", 2.0, 9.0)], False),
        ([("RPN", 0.0, 2.0), ("backbone", 3.0, 9.0)], True),
        ([("RPN", 1.0, 9.0)], True),
        ([("RPN", 0.0, 8.0)], True),
    ],
    ids=["none", "between", "before", "after"],
)
def test_what_is_no_stage_stands_in_the_legend(tmp_path, monkeypatch, stages, has_gap):
    legends = []
    original = plt.close
    monkeypatch.setattr(plt, "close", lambda figure: legends.append(words(figure)))

    def words(figure):
        original(figure)
        return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]

    ramp = Timeline(np.array([0.0, 9.0]), np.array([1.0, 5.0]), None, stages)
    draw({"training": ramp}, "cpu", "title", tmp_path / "ramp.png")
    assert ("other" in legends[0]) == has_gap
    assert legends[0][-1] == "allocated"


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_a_step_that_allocates_nothing_can_be_drawn(tmp_path, device_type):
    flat = Timeline(np.array([0.0]), np.array([0.0]), None, [("RPN", 0.0, 1.0)])
    draw({"training": flat}, device_type, "title", tmp_path / "flat.png")
    assert (tmp_path / "flat.png").stat().st_size > 0
