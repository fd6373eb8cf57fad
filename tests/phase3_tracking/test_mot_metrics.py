"""HOTA, CLEAR and identity scores: by hand, against TrackEval, and in the empty cases."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phase3_tracking import mot_files
from phase3_tracking.mot_metrics import (
    count_matches,
    iou_matrix,
    scores,
    sum_counts,
    without_distractors,
)
from phase3_tracking.object_tracker import IOUTracker
from phase3_tracking.results.track_formats import MotFormat, box_texts

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared test data is not here")


def boxes(*rows: tuple) -> mot_files.MotBoxes:
    """Rows (frame, id, x) of boxes of 10 x 10 pixels, or complete rows of eight numbers."""
    return mot_files.from_rows(
        np.array([row if len(row) == 8 else (*row, 0, 10, 10, 1, 1) for row in rows])
    )


def test_perfect_tracks():
    truth = boxes((1, 1, 0), (1, 2, 50), (2, 1, 1), (2, 2, 51))
    result = scores(count_matches(truth, boxes((1, 9, 0), (1, 4, 50), (2, 9, 1), (2, 4, 51))))
    for name in ("hota", "deta", "assa", "mota", "motp", "idf1"):
        assert result[name] == pytest.approx(1), name
    for name in ("id_switches", "fragments", "fp", "fn"):
        assert result[name] == 0, name


def test_one_switch_in_the_middle():
    # One object in four frames, followed by track 1 for two frames and by track 2 for two.
    truth = boxes(*[(frame, 1, 0) for frame in (1, 2, 3, 4)])
    tracks = boxes((1, 1, 0), (2, 1, 0), (3, 2, 0), (4, 2, 0))
    result = scores(count_matches(truth, tracks))
    assert result["id_switches"] == 1
    assert result["fragments"] == 0
    assert result["mota"] == pytest.approx(1 - 1 / 4)
    assert result["idf1"] == pytest.approx(2 * 2 / (4 + 4))  # the better half is explained
    assert result["deta"] == pytest.approx(1)
    assert result["assa"] == pytest.approx(0.5)  # each match: 2 common / (4 + 2 - 2)
    assert result["hota"] == pytest.approx(np.sqrt(0.5))


def test_miss_false_positive_and_fragment():
    truth = boxes((1, 1, 0), (2, 1, 0), (2, 2, 50), (3, 1, 0))
    tracks = boxes((1, 1, 0), (2, 3, 50), (3, 1, 0), (3, 4, 90))
    result = scores(count_matches(truth, tracks))
    assert (result["fp"], result["fn"]) == (1, 1)
    assert result["fragments"] == 1  # the object is lost in frame 2 and found again
    assert result["id_switches"] == 0
    assert result["mota"] == pytest.approx((4 - 1 - 1) / 4)


def test_overlap_below_one_half_is_no_match():
    result = scores(count_matches(boxes((1, 1, 0)), boxes((1, 1, 4))))  # IoU 60 / 140
    assert (result["fp"], result["fn"], result["mota"]) == (1, 1, -1)
    assert result["hota"] == pytest.approx(8 / 19)  # 0.05 ... 0.40 of the 19 thresholds


@pytest.mark.parametrize(
    ("truth", "tracks", "fp", "fn"),
    [
        (boxes(), boxes(), 0, 0),
        (boxes((1, 1, 0)), boxes(), 0, 1),
        (boxes(), boxes((1, 1, 0)), 1, 0),
    ],
)
def test_p3_52_nothing_on_one_side_or_both(truth, tracks, fp, fn):
    result = scores(count_matches(truth, tracks))
    assert (result["fp"], result["fn"]) == (fp, fn)
    for name in ("hota", "deta", "assa", "motp", "idf1"):
        assert result[name] == 0, name
    assert result["mota"] == (-1 if fp else 0)


def test_p3_52_frames_in_common_are_not_needed():
    result = scores(count_matches(boxes((1, 1, 0)), boxes((5, 1, 0))))
    assert (result["fp"], result["fn"], result["hota"]) == (1, 1, 0)


def test_ground_truth_marked_zero_is_left_out():
    truth = boxes((1, 1, 0, 0, 10, 10, 0, 1))
    assert scores(count_matches(truth, boxes()))["fn"] == 0


def test_pooling_weighs_boxes_not_sequences():
    good = count_matches(*[boxes(*[(frame, 1, 0) for frame in range(1, 10)])] * 2)
    bad = count_matches(boxes((1, 1, 0)), boxes())
    assert scores(sum_counts([good, bad]))["mota"] == pytest.approx(9 / 10)
    assert scores(sum_counts([])) == scores(count_matches(boxes(), boxes()))


def test_boxes_without_area_overlap_nothing():
    a = np.array([[0, 0, 10, 10], [5, 5, 5, 9], [4, 4, 2, 2]], float)
    np.testing.assert_array_equal(iou_matrix(a, a), np.diag([1.0, 0, 0]))


def test_distractors_take_their_tracks_along():
    truth = boxes(
        (1, 1, 0, 0, 10, 10, 1, 1),  # pedestrian
        (1, 2, 50, 0, 10, 10, 1, 7),  # static person: its track is removed
        (1, 3, 90, 0, 10, 10, 0, 1),  # pedestrian marked zero: its track stays, and is wrong
        (1, 4, 130, 0, 10, 10, 1, 3),  # car: the same
    )
    tracks = boxes((1, 1, 0), (1, 2, 50), (1, 3, 90), (1, 4, 130))
    truth, tracks = without_distractors(truth, tracks)
    assert truth.ids.tolist() == [1]
    assert tracks.ids.tolist() == [1, 3, 4]


# --- against TrackEval ------------------------------------------------------------------------


def trackeval_scores(*args, **kwargs) -> dict:
    pytest.importorskip("trackeval", reason="trackeval is not installed: see requirements-dev.txt")
    from tests.phase3_tracking import trackeval_oracle

    return trackeval_oracle.trackeval_scores(*args, **kwargs)


def assert_equal(ours: dict, theirs: dict) -> None:
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, abs=1e-6), name


def tracked(sequence: mot_files.MotSequence, target: Path, last: int) -> Path:
    """The tracks of IOUTracker on the sequence's own detections, all of class 1."""
    detections = mot_files.read(sequence.detections, unique_ids=False)
    tracker = IOUTracker()
    lines = []
    for frame in range(1, last + 1):
        tracks = tracker.update(detections.detections(frame))
        tracks[:, 5] = 1
        lines.append(MotFormat().frame(frame, 0.0, box_texts(tracks.tolist())))
    target.write_text("".join(lines))
    return target


@needs_data
@pytest.mark.parametrize("own_tracks", [True, False], ids=["iou_tracker", "published_tracks"])
def test_equal_to_trackeval_on_mot15(tmp_path, own_tracks):
    files, counts = {}, {}
    for sequence in mot_files.find_sequences(DATA / "mot15"):
        truth = mot_files.read(sequence.ground_truth, unique_ids=True)
        path = sequence.folder / "motmetrics_test.txt"
        if own_tracks:
            last = int(truth.frames.max())
            path = tracked(sequence, tmp_path / f"{sequence.name}.txt", last)
        tracks = mot_files.read(path, unique_ids=True)
        files[sequence.name] = (
            sequence.ground_truth,
            path,
            int(max(truth.frames.max(), tracks.frames.max())),
        )
        counts[sequence.name] = count_matches(truth, tracks)
    expected = trackeval_scores(tmp_path / "trackeval", files, benchmark="MOT15")
    for name, one in counts.items():
        assert_equal(scores(one), expected[name])
    assert_equal(scores(sum_counts(counts.values())), expected["combined"])


@needs_data
def test_equal_to_trackeval_on_mot17_with_its_preprocessing(tmp_path):
    files, counts = {}, {}
    for sequence in mot_files.find_sequences(DATA / "mot17_frcnn"):
        path = tracked(sequence, tmp_path / f"{sequence.name}.txt", sequence.frame_count)
        files[sequence.name] = (sequence.ground_truth, path, sequence.frame_count)
        truth = mot_files.read(sequence.ground_truth, unique_ids=True)
        counts[sequence.name] = count_matches(
            *without_distractors(truth, mot_files.read(path, unique_ids=True))
        )
    assert len(files) == 5
    expected = trackeval_scores(tmp_path / "trackeval", files, benchmark="MOT17")
    for name, one in counts.items():
        assert_equal(scores(one), expected[name])
    assert_equal(scores(sum_counts(counts.values())), expected["combined"])


random_rows = st.dictionaries(  # (frame, id) -> x, y, side; coarse, so that ties are common
    st.tuples(st.integers(1, 5), st.integers(1, 4)),
    st.tuples(st.integers(0, 6), st.integers(0, 3), st.integers(2, 4)),
    max_size=14,
)
labels = st.lists(st.sampled_from([1, 1, 1, 2, 3, 7, 8, 12, 13]), min_size=14, max_size=14)
marks = st.lists(st.sampled_from([0, 1, 1]), min_size=14, max_size=14)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(truth=random_rows, tracks=random_rows, labels=labels, marks=marks)
@pytest.mark.parametrize("benchmark", ["MOT15", "MOT17"])
def test_equal_to_trackeval_on_random_tracks(
    benchmark, tmp_path_factory, truth, tracks, labels, marks
):
    folder = tmp_path_factory.mktemp("random")
    truth_file, tracks_file = folder / "gt.txt", folder / "tracks.txt"
    truth_file.write_text(
        "".join(
            f"{frame},{name},{x},{y},{side},{side},{mark},{label},1\n"
            for ((frame, name), (x, y, side)), mark, label in zip(
                truth.items(), marks, labels, strict=False
            )
        )
    )
    tracks_file.write_text(
        "".join(
            f"{frame},{name},{x},{y},{side},{side},1,1,1\n"
            for (frame, name), (x, y, side) in tracks.items()
        )
    )
    pair = [mot_files.read(file, unique_ids=True) for file in (truth_file, tracks_file)]
    if benchmark == "MOT17":
        pair = without_distractors(*pair)
    files = {"random": (truth_file, tracks_file, 5)}
    expected = trackeval_scores(folder / "trackeval", files, benchmark=benchmark)
    assert_equal(scores(count_matches(*pair)), expected["combined"])
