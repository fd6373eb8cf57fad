"""The options of counting, and everything that is counted in one run."""

import argparse
import json
import subprocess
import sys
import tracemalloc

import cv2
import numpy as np
import pytest

from common import cli, paths
from common.cli import UserError
from phase3_tracking.counting.counting import (
    Counting,
    CountingOptions,
    add_counting_arguments,
    counting_options,
    picture_files,
)
from phase3_tracking.counting.regions import Region
from tests.phase3_tracking.made_up_tracks import boxes

NAMES = {1: "person"}
GATE = ("--line", "gate:100,50,200,50")
YARD = ("--zone", "100,60,200,60,200,160,100,160")


def options(*arguments: str, with_video: bool = True) -> CountingOptions:
    parser = cli.ArgumentParser("")
    add_counting_arguments(parser)
    return counting_options(parser.parse_args(arguments), with_video=with_video)


def test_without_options():
    assert options() == CountingOptions((), (), heatmap=True, contact_sheet=True)
    assert not options().has_regions


def test_all_options():
    asked = options(*GATE, "--line", "0,0,1,1", *YARD, "--no-heatmap", "--no-contact-sheet")
    assert asked.lines == (
        Region("gate", ((100, 50), (200, 50))),
        Region("", ((0, 0), (1, 1))),
    )
    assert len(asked.zones[0].points) == 4
    assert (asked.heatmap, asked.contact_sheet, asked.has_regions) == (False, False, True)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--line", "1,2,3"), "--line: '1,2,3' has 3 numbers"),
        (("--zone", "1,2,3,4"), "--zone: '1,2,3,4' has 2 corners"),
        (("--lines", "1,2,3,4"), "did you mean --line?"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, reason, capsys):
    with pytest.raises(SystemExit) as stop:
        options(*arguments)
    error = capsys.readouterr().err
    assert (stop.value.code, error.count("\n")) == (2, 1)
    assert reason in error


def test_the_help_can_be_shown():
    parser = cli.ArgumentParser("")
    add_counting_arguments(parser)
    assert "left_to_right" in parser.format_help()


@pytest.mark.parametrize(
    ("arguments", "with_video", "names"),
    [
        ((), True, ["run.heatmap.png", "run.contact.jpg"]),
        ((), False, ["run.heatmap.png"]),
        (("--no-heatmap",), True, ["run.contact.jpg"]),
        (("--no-heatmap",), False, []),
    ],
)
def test_the_pictures_written_are_those_announced(tmp_path, arguments, with_video, names):
    asked = options(*arguments, with_video=with_video)
    files = picture_files(tmp_path / "run.mp4", asked)
    assert [path.name for path in files] == names
    counting = Counting(asked, NAMES, 320, 240, 10.0)
    frame = np.zeros((240, 320, 3), np.uint8)
    counting.update(1, 0.0, boxes((1, 150, 20)), frame)
    counting.keep(0.0, frame)
    pictures = counting.pictures(tmp_path / "run.mp4")
    assert list(pictures) == files
    for content in pictures.values():
        assert cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) is not None


def test_a_run():
    counting = Counting(options(*GATE, *YARD), NAMES, 320, 240, 10.0)
    events = []
    for frame, y in enumerate((20, 40, 80, 100), start=1):
        image = np.zeros((240, 320, 3), np.uint8)
        events += counting.update(frame, frame / 10, boxes((1, 150, y)), image)
        assert not image.any()
        counting.draw(image)
        assert image.any()
    summary = json.loads(json.dumps(counting.summary(), allow_nan=False))
    assert [event.kind for event in events] == ["line", "enter"]
    assert summary["regions"]["events_total"] == 2
    assert summary["regions"]["lines"][0]["left_to_right"]["total"] == 1
    assert summary["regions"]["zones"][0]["name"] == "zone 1"
    assert summary["statistics"]["unique_tracks"] == 1
    assert summary["statistics"]["tracks"][0]["dwell_s"] == 0.4


@pytest.mark.parametrize(
    ("arguments", "most_bytes"), [((), 500), (GATE, 720), (YARD, 720), ((*GATE, *YARD), 940)]
)
def test_p3_50_memory_grows_by_what_the_guide_says_for_each_track(arguments, most_bytes):
    """500 bytes, and 220 for each line or zone; each track walks through both."""
    counting = Counting(options(*arguments, "--no-contact-sheet"), NAMES, 320, 240, 30.0)
    image, held = np.zeros((240, 320, 3), np.uint8), []
    tracemalloc.start()
    for track in range(4000):
        for step, y in enumerate((20, 80, 180)):
            number = 3 * track + step
            counting.update(number + 1, number / 30, boxes((track + 1, 150, y)), image)
        if track in (1999, 3999):
            held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert counting.live_counts()["tracks"] == 4000
    listed = counting.summary().get("regions", {"events_total": 0})
    assert listed["events_total"] == 4000 * ("--line" in arguments) + 8000 * ("--zone" in arguments)
    events = sum(map(sys.getsizeof, counting._regions._events)) if arguments else 0
    assert (held[1] - held[0] - events) / 2000 < most_bytes


def test_without_regions_nothing_is_drawn_or_reported_of_them():
    counting = Counting(options(), NAMES, 320, 240, 10.0)
    image = np.zeros((240, 320, 3), np.uint8)
    assert counting.update(1, 0.0, boxes((1, 150, 20)), image) == []
    counting.draw(image)
    assert not image.any()
    assert set(counting.summary()) == {"statistics"}


def test_a_line_outside_of_the_frame():
    with pytest.raises(UserError, match=r"--line gate: .* outside of the frame of 150x240 pixels"):
        Counting(options(*GATE), NAMES, 150, 240, 10.0)


def test_options_need_neither_opencv_nor_numpy():
    code = (
        "import sys, phase3_tracking.counting.counting as c; c.CountingOptions();"
        "print(sorted({'cv2', 'numpy', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=paths.ROOT, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_options_are_plain_values():
    assert isinstance(hash(options(*GATE)), int)
    assert argparse.Namespace(options=options()) == argparse.Namespace(options=options())
