"""The section about tracking: which files it takes for reports, its pictures and its counts."""

import json

import cv2
import numpy as np
import pytest

from common import paths, recorded_files, report
from common.reporting import tracking
from common.reporting.blocks import Note, Pictures, Table
from phase3_tracking import explain_tracking
from tests.common import made_up_reports
from tests.common.test_report import HOSTILE, Page, build_pages

STATISTICS = {
    "unique_tracks": 6,
    "boxes": 90,
    "mean_at_a_time": 1.5,
    "max_at_a_time": 4,
    "classes": [
        {"class": "car", "unique_tracks": 4, "boxes": 70, "mean_at_a_time": 7 / 6}
        | {"max_at_a_time": 3},
        {"class": "person", "unique_tracks": 2, "boxes": 20, "mean_at_a_time": 1 / 3}
        | {"max_at_a_time": 2},
    ],
}
REGIONS = {
    "lines": [
        {"name": "gate", "net": -2, "left_to_right": {"total": 3}, "right_to_left": {"total": 5}}
    ],
    "zones": [
        {"name": "yard", "entries": {"total": 4}, "exits": {"total": 3}, "occupancy": 1}
        | {"appeared_inside": 5, "vanished_inside": 5}
        | {"max_occupancy": 2, "dwell_median_s": 1.25, "dwell_max_s": 9.0},
        {"name": "empty", "entries": {"total": 0}, "exits": {"total": 0}, "occupancy": 0}
        | {"appeared_inside": 0, "vanished_inside": 0}
        | {"max_occupancy": 0, "dwell_median_s": None, "dwell_max_s": None},
    ],
}


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """An outputs folder that common.report reads, with a result of every kind."""
    for name in ("MODELS", "METRICS", "VIDEOS", "DEPLOYMENT"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    made_up_reports.write_all(tmp_path, ["car", "person"])
    return tmp_path


def tables(**changed) -> dict[str, Table]:
    """The tables of a newest video with these contents, by their first heading."""
    newest, evaluation = made_up_reports.tracking(["car"])
    older = made_up_reports.tracking(["car"])[0] | {"statistics": {}, "regions": REGIONS}
    videos = {"street": newest | changed, "older": older}
    blocks = tracking.section(evaluation, videos, paths.VIDEOS / "none").blocks
    return {block.columns[0]: block for block in blocks if isinstance(block, Table)}


def test_tracks_are_no_reports(outputs):
    """A list, and a file too large to be read for nothing: here it is no JSON at all."""
    videos = outputs / "videos"
    (videos / "demo_video.coco.json").write_text("[\n]\n")
    (videos / "demo_video.tracks.json").write_text("{")
    (videos / "a.b.json").write_text(json.dumps(made_up_reports.tracking(["bus"])[0]))
    assert set(report.read_inputs().videos) == {"demo_video", "a.b"}
    Page(build_pages()[0])


def test_the_pictures_of_the_newest_video_are_shown(outputs):
    before = Page(build_pages()[0]).tags.count("img")
    for suffix in (".heatmap.png", ".contact.jpg"):
        cv2.imwrite(str(outputs / "videos" / f"demo_video{suffix}"), np.zeros((9, 16, 3), np.uint8))
        cv2.imwrite(str(outputs / "videos" / f"older{suffix}"), np.zeros((9, 16, 3), np.uint8))
    html, markdown = build_pages()
    assert Page(html).tags.count("img") == before + 2
    assert 'alt="Where objects were in demo_video, and for how long."' in html
    assert 'alt="Frames from all over demo_video, each with its time."' in html
    assert "base64" not in markdown


@pytest.mark.parametrize("suffix", [".mp4", ".heatmap.png", ".contact.jpg"])
def test_a_file_of_another_run_is_not_shown_but_told(outputs, suffix):
    videos, captions = outputs / "videos", []
    for name in (".heatmap.png", ".contact.jpg"):
        cv2.imwrite(str(videos / f"demo_video{name}"), np.zeros((9, 16, 3), np.uint8))
    files = [videos / f"demo_video{name}" for name in (".mp4", ".heatmap.png", ".contact.jpg")]
    content = {"demo_video": {"frames_read": 3, "files": recorded_files.record(files)}}
    other = videos / f"demo_video{suffix}"
    for _ in range(2):
        section = tracking.section(None, content, videos)
        captions.append([block.caption for block in section.blocks if isinstance(block, Pictures)])
        other.write_bytes(other.read_bytes() + b"\0")  # still a picture or a video
    (note,) = [b.text for b in section.blocks if isinstance(b, Note) and "not of the run" in b.text]
    assert note == f"demo_video{suffix} is not of the run that demo_video.json tells of."
    assert len(captions[0]) == 3
    assert len(captions[1]) == 2
    assert set(captions[1]) < set(captions[0])


def test_how_a_tracker_decides_is_shown_by_the_pictures_of_the_last_run(outputs):
    folder = outputs / "metrics" / "tracking_explained"
    cv2.imwrite(str(folder / "2_assignment.png"), np.zeros((9, 16, 3), np.uint8))  # not recorded
    explained = report.read_inputs().explained
    section = tracking.explained_section(explained, outputs / "metrics")
    captions = [block.caption for block in section.blocks if isinstance(block, Pictures)]
    assert captions == [tracking.EXPLAINING[name] for name in ("1_iou.png", "4_low_score.png")]
    missing = tracking.explained_section(None, outputs / "metrics").missing
    assert missing == "python phase3_tracking/explain_tracking.py"


def test_what_is_explained_is_what_explain_tracking_draws():
    assert list(tracking.EXPLAINING) == list(explain_tracking.PICTURES)
    assert paths.METRICS / tracking.EXPLAINED == explain_tracking.FOLDER / explain_tracking.NUMBERS


def test_an_unreadable_picture_is_left_out(outputs):
    (outputs / "videos" / "demo_video.heatmap.png").write_text("no picture")
    section = tracking.section(None, report.read_inputs().videos, outputs / "videos")
    assert all(block.sources for block in section.blocks if isinstance(block, Pictures))
    assert "for how long" not in build_pages()[0]


def test_statistics_by_class():
    found = tables(statistics=STATISTICS)["Class in street"]
    assert found.columns == ("Class in street", "Tracks", "Boxes", "At a time", "At most")
    assert found.rows == (
        ("car", "4", "70", "1.17", "3"),
        ("person", "2", "20", "0.33", "2"),
        ("all together", "6", "90", "1.50", "4"),
    )
    one = STATISTICS | {"classes": STATISTICS["classes"][:1]}
    assert [row[0] for row in tables(statistics=one)["Class in street"].rows] == ["car"]


def test_counts_at_lines_and_zones():
    found = tables(statistics=STATISTICS, regions=REGIONS)
    assert found["Line"].rows == (("gate", "3", "5", "-2"),)
    assert found["Zone"].columns[1:6] == (
        *("Entries", "Appeared inside", "Exits", "Vanished inside", "Inside at the end"),
    )
    assert found["Zone"].rows == (
        ("yard", "4", "5", "3", "5", "1", "2", "1.2", "9.0"),
        ("empty", "0", "0", "0", "0", "0", "0", "–", "–"),
    )


def test_one_sequence_is_not_shown_again_as_all_together():
    evaluation = made_up_reports.tracking(["car"])[1]
    (one,), scores = evaluation["sequences"], evaluation["combined"]
    classes = [{**scores, "name": "car"}, {**scores, "name": "bus"}]

    def names(sequences):
        scored = {**evaluation, "sequences": sequences, "classes": classes}
        found = tracking.section(scored, {}, paths.VIDEOS)
        return [row[0] for block in found.blocks if isinstance(block, Table) for row in block.rows]

    assert names([one]) == ["demo_video", "car", "bus"]
    other = {**one, "name": "other"}
    assert names([one, other]) == ["demo_video", "other", "all together", "car", "bus"]


@pytest.mark.parametrize(("times", "words"), [(0, "0 identity switches"), (1, "1 identity switch")])
def test_one_switch_is_not_called_switches(times, words):
    evaluation = made_up_reports.tracking(["car"])[1]
    evaluation["combined"]["id_switches"] = times
    (card,) = tracking.cards(evaluation, {})
    assert card.note.endswith(words)


def test_what_was_not_counted_has_no_table():
    assert set(tables()) == {"Video", "Milliseconds per frame", "Scored"}
    assert "Line" not in tables(regions={"lines": [], "zones": None}, statistics=None)


def test_hostile_names_in_counts_are_shown_as_they_are(outputs):
    content = made_up_reports.tracking(["car"])[0]
    content["statistics"] = STATISTICS | {
        "classes": [{"class": name, "unique_tracks": 1} for name in HOSTILE]
    }
    content["regions"] = {"lines": [{"name": name, "net": 0} for name in HOSTILE], "zones": []}
    (outputs / "videos" / "demo_video.json").write_text(json.dumps(content))
    html, markdown = build_pages()
    for name in HOSTILE:
        assert Page(html).text.count(" ".join(name.split())) >= 2
    assert "<script" not in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("| ") and "犬" in line]
    assert len(rows) >= 2
    assert all(line.endswith(" |") for line in rows)
