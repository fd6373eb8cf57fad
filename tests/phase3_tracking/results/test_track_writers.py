"""TrackWriters: four files that agree, appear together or not at all, and hold any class name."""

import csv
import errno
import io
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO

from common import paths
from common.cli import UserError
from phase3_tracking import mot_files
from phase3_tracking.counting.region_events import EVENT_COLUMNS, Event
from phase3_tracking.results.spreadsheet_text import FORMULA_STARTS, as_text, csv_lines
from phase3_tracking.results.track_formats import CSV_COLUMNS, VideoFacts
from phase3_tracking.results.track_writers import TrackWriters, track_files

NAMES = {1: "person", 3: "car"}
VIDEO = VideoFacts("street.mp4", 640, 360, 25.0)
FIRST = np.array([[10, 20, 40.126, 80, 1, 1, 0.91239], [100, 100, 150, 130, 2, 3, 0.5]])
SECOND = np.array([[12, 20, 42, 80, 1, 1, 1.0]])
EMPTY = np.empty((0, 7))


def written(folder: Path, frames=(FIRST, EMPTY, SECOND), names=NAMES) -> dict[str, Path]:
    """Suffix -> file."""
    output = folder / "run.mp4"
    with TrackWriters(output, names, VIDEO) as writers:
        for number, tracks in enumerate(frames, start=1):
            writers.write(number, (number - 1) / 25, tracks)
    return {path.name.removeprefix("run"): path for path in track_files(output)}


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_files(tmp_path):
    written(tmp_path)
    assert names_in(tmp_path) == ["run.coco.json", "run.csv", "run.mot.txt", "run.tracks.json"]


def test_mot(tmp_path):
    rng = np.random.default_rng(0)
    frames = []
    for count in rng.integers(0, 9, 50):
        corners = rng.uniform(-50, 2000, (count, 2))
        sizes = rng.uniform(0, 300, (count, 2))
        rest = [rng.permutation(100)[:count], rng.integers(-1, 90, count), rng.uniform(0, 1, count)]
        frames.append(np.column_stack([corners, corners + sizes, *rest]))
    found = written(tmp_path, frames)[".mot.txt"]
    lines = iter(found.read_text().splitlines())
    for number, tracks in enumerate(frames, start=1):
        for x1, y1, x2, y2, track_id, label, confidence in tracks:
            box = f"{x1:.2f},{y1:.2f},{x2 - x1:.2f},{y2 - y1:.2f}"
            assert next(lines) == f"{number},{track_id:.0f},{box},{confidence:.4f},{label:.0f},1"
    assert next(lines, None) is None
    assert len(mot_files.read(found, unique_ids=True)) == sum(map(len, frames))


def test_csv(tmp_path):
    assert written(tmp_path)[".csv"].read_text() == (
        "frame,time_s,track_id,class,category_id,x1,y1,x2,y2,confidence\n"
        "1,0.0000,1,person,1,10.00,20.00,40.13,80.00,0.9124\n"
        "1,0.0000,2,car,3,100.00,100.00,150.00,130.00,0.5000\n"
        "3,0.0800,1,person,1,12.00,20.00,42.00,80.00,1.0000\n"
    )


def test_tracks_json(tmp_path):
    content = json.loads(written(tmp_path)[".tracks.json"].read_text())
    assert content["schema"] == "tracks/1"
    assert content["video"] == {"name": "street.mp4", "width": 640, "height": 360, "fps": 25.0}
    assert content["classes"] == {"1": "person", "3": "car"}
    first, second, third = content["frames"]
    assert first["tracks"][0] == {
        "track_id": 1,
        "category_id": 1,
        "class": "person",
        "box_xyxy": [10, 20, 40.13, 80],
        "confidence": 0.9124,
    }
    assert second == {"frame": 2, "time_s": 0.04, "tracks": []}
    assert (third["frame"], third["time_s"], len(third["tracks"])) == (3, 0.08, 1)


def ground_truth() -> COCO:
    """The boxes of FIRST and SECOND as annotations."""
    coco = COCO()
    boxes = [(1, row) for row in FIRST] + [(3, row) for row in SECOND]
    coco.dataset = {
        "images": [{"id": number, "width": 640, "height": 360} for number in (1, 2, 3)],
        "categories": [{"id": key, "name": name} for key, name in NAMES.items()],
        "annotations": [
            {
                "id": index,
                "image_id": number,
                "category_id": int(row[5]),
                "bbox": [row[0], row[1], row[2] - row[0], row[3] - row[1]],
                "area": (row[2] - row[0]) * (row[3] - row[1]),
                "iscrowd": 0,
            }
            for index, (number, row) in enumerate(boxes, start=1)
        ],
    }
    coco.createIndex()
    return coco


def test_coco_results_are_loaded_and_scored_by_pycocotools(tmp_path):
    from pycocotools.cocoeval import COCOeval

    path = written(tmp_path)[".coco.json"]
    entries = json.loads(path.read_text())
    assert entries[0] == {
        "image_id": 1,
        "category_id": 1,
        "bbox": [10, 20, 30.13, 60],
        "score": 0.9124,
        "track_id": 1,
    }
    assert [entry["image_id"] for entry in entries] == [1, 1, 3]
    evaluation = COCOeval(ground_truth(), ground_truth().loadRes(str(path)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)


@pytest.mark.parametrize("frames", [(), (EMPTY, EMPTY)])
def test_p3_39_no_detections_at_all_give_valid_empty_files(tmp_path, frames):
    files = written(tmp_path, frames)
    assert len(mot_files.read(files[".mot.txt"], unique_ids=True)) == 0
    assert files[".mot.txt"].read_bytes() == b""
    assert files[".csv"].read_text() == ",".join(CSV_COLUMNS) + "\n"
    assert json.loads(files[".coco.json"].read_text()) == []
    frames_written = json.loads(files[".tracks.json"].read_text())["frames"]
    assert [frame["tracks"] for frame in frames_written] == [[] for _ in frames]


ANY_NAMES = [
    "a,b",
    'the "car"',
    "two\nlines",
    "日本語",
    "🚲",
    "x" * 500,
    "$\\frac{1}{2}$",
    "",
    "\ud800",
]


@pytest.mark.parametrize("name", ANY_NAMES)
def test_p3_54_any_class_name_is_written_and_read_back(tmp_path, name):
    files = written(tmp_path, names={1: name, 3: "car"})
    content = json.loads(files[".tracks.json"].read_text(encoding="utf-8"))
    assert content["classes"]["1"] == content["frames"][0]["tracks"][0]["class"] == name
    readable = name.encode("utf-8", "backslashreplace").decode()
    assert [row["class"] for row in rows_of(files[".csv"])] == [readable, "car", readable]


@pytest.mark.parametrize("start", FORMULA_STARTS)
def test_p3_54_no_class_name_becomes_a_formula(tmp_path, start):
    files = written(tmp_path, names={1: f'{start}HYPERLINK("x"),1', 3: "a=b"})
    names = [row["class"] for row in rows_of(files[".csv"])]
    assert names == [f'\'{start}HYPERLINK("x"),1', "a=b", f'\'{start}HYPERLINK("x"),1']


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))))
def test_csv_lines_are_read_back(names):
    line = csv_lines([[*map(as_text, names), "end"]])
    (read,) = csv.reader(io.StringIO(line, newline=""))
    assert [name.removeprefix("'") for name in read[:-1]] == [n.removeprefix("'") for n in names]
    assert not any(name.startswith(FORMULA_STARTS) for name in read)


def test_a_class_without_a_name(tmp_path):
    files = written(tmp_path, names={})
    assert rows_of(files[".csv"])[1]["class"] == "class 3"
    content = json.loads(files[".tracks.json"].read_text())
    assert content["frames"][0]["tracks"][1]["class"] == "class 3"


def test_events_have_a_file_of_their_own(tmp_path):
    output = tmp_path / "run.mp4"
    crossing = Event(0.04, 2, "line", "=gate, north", 7, "person", "left_to_right")
    entry = Event(0.08, 3, "enter", "yard", 7, "person", None)
    with TrackWriters(output, NAMES, VIDEO, with_events=True) as writers:
        writers.write(1, 0.0, FIRST)
        writers.write(2, 0.04, EMPTY, [crossing])
        writers.write(3, 0.08, EMPTY, [entry])
    files = track_files(output, with_events=True)
    assert [path.name for path in files] == names_in_order(files)
    first, second = rows_of(tmp_path / "run.events.csv")
    assert tuple(first) == EVENT_COLUMNS
    assert tuple(first.values()) == (
        *("2", "0.0400", "line", "'=gate, north", "7", "person"),
        "left_to_right",
    )
    assert (second["kind"], second["direction"]) == ("enter", "")


def names_in_order(files: list[Path]) -> list[str]:
    """The names of those that are there."""
    return [path.name for path in files if path.is_file()]


def test_events_without_a_file_are_a_mistake(tmp_path):
    event = Event(0, 1, "line", "gate", 7, "person", "left_to_right")
    with (
        pytest.raises(ValueError, match="with_events"),
        TrackWriters(tmp_path / "a.mp4", NAMES, VIDEO) as writers,
    ):
        writers.write(1, 0, EMPTY, [event])
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_an_exception_leaves_the_older_files(tmp_path, error):
    old = {path: path.read_bytes() for path in written(tmp_path).values()}

    def interrupted_run():
        with TrackWriters(tmp_path / "run.mp4", NAMES, VIDEO) as writers:
            writers.write(1, 0.0, SECOND)
            raise error

    with pytest.raises(error):
        interrupted_run()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == old


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("column", [0, 3, 6])
def test_a_number_json_does_not_have_is_refused(tmp_path, value, column):
    tracks = FIRST.copy()
    tracks[1, column] = value
    with pytest.raises(ValueError, match="JSON"):
        written(tmp_path, [FIRST, tracks])
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("suffix", [".mot.txt", ".csv", ".tracks.json", ".coco.json"])
def test_a_folder_in_the_way_is_told_before_anything_is_written(tmp_path, suffix):
    (tmp_path / f"run{suffix}").mkdir()
    with pytest.raises(UserError, match=rf"run{suffix}: is a folder"):
        written(tmp_path)
    assert names_in(tmp_path) == [f"run{suffix}"]


def test_files_appear_at_the_end_only(tmp_path):
    with TrackWriters(tmp_path / "run.mp4", NAMES, VIDEO) as writers:
        writers.write(1, 0.0, FIRST)
        assert not any(path.exists() for path in track_files(tmp_path / "run.mp4"))
    assert all(path.exists() for path in track_files(tmp_path / "run.mp4"))


def test_p3_50_memory_is_flat(tmp_path):
    with TrackWriters(tmp_path / "run.mp4", NAMES, VIDEO) as writers:
        for number in range(1, 501):
            writers.write(number, number / 25, FIRST)
        tracemalloc.start()
        for number in range(501, 5001):
            writers.write(number, number / 25, FIRST)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 200_000  # bytes; the files have more than two million
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) > 2_000_000


@pytest.mark.parametrize("successes", range(4))
def test_p3_33_space_that_runs_out_at_the_last_moment(tmp_path, monkeypatch, successes):
    """Some file systems look for room only when they are told to write."""
    old = {path: path.read_bytes() for path in written(tmp_path).values()}
    left = iter(range(successes))

    def fsync(handle: int) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fsync)
    file = track_files(tmp_path / "run.mp4")[successes].name
    with pytest.raises(UserError, match=rf"{file}: cannot be written \(No space left on device\)"):
        written(tmp_path, [SECOND])
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == old


WRITE_WITH_LITTLE_SPACE = """
import resource, sys
from pathlib import Path
import numpy as np
from common.cli import UserError
from phase3_tracking.results.track_formats import VideoFacts
from phase3_tracking.results.track_writers import TrackWriters
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
tracks = np.array([[1, 2, 30, 40, 5, 1, 0.5]] * 5)
try:
    with TrackWriters(Path(sys.argv[1]), {1: "person"}, VideoFacts("v", 64, 48, 9)) as writers:
        for number in range(1, int(sys.argv[3]) + 1):
            writers.write(number, number / 9, tracks)
except UserError as error:
    print(error)
"""


# In the middle of the run, with the last flush, and in the first bytes.
@pytest.mark.parametrize(("limit", "frames"), [(20_000, 500), (4096, 10), (1, 0)])
def test_p3_33_a_full_disk_is_one_line_and_leaves_the_older_files(tmp_path, limit, frames):
    old = {path: path.read_bytes() for path in written(tmp_path).values()}
    done = subprocess.run(
        [
            *(sys.executable, "-X", "dev", "-c", WRITE_WITH_LITTLE_SPACE),
            *(str(tmp_path / "run.mp4"), str(limit), str(frames)),
        ],
        cwd=paths.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    file = "run.csv" if limit == 1 else "run.tracks.json"
    assert f"{file}: cannot be written (File too large) – free some space there" in done.stdout
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == old
