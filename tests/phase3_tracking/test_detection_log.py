"""DetectionLog: what it keeps, what it takes up again, and what it refuses. See test_resume.py."""

import json

import numpy as np
import pytest

from common.cli import UserError
from phase3_tracking.detection_log import DetectionLog, log_file

SETTINGS = {"model": ["a.pth", 3, 4], "batch_size": 2, "confidence": 0.25, "classes": [1, 18]}
ROWS = {
    0: np.array([[1 / 3, 2.0, 3.0, 4.0, 0.1 + 0.2, 18.0]]),
    1: np.empty((0, 6)),
    2: np.array([[-1e20, np.float32(0.1), np.inf, np.nan, 1.0, 1.0], [0, 0, 1, 1, 0.5, 1]]),
    3: np.array([[5.0, 6, 7, 8, 1e-300, 1]]),
}


@pytest.fixture
def path(tmp_path):
    """A log of two batches, whose run was stopped."""
    path = tmp_path / "new folder" / "a.resume.jsonl"
    with DetectionLog(path, SETTINGS, resumes=False) as log:
        log.add([0, 1], [ROWS[0], ROWS[1]])
        log.add([2, 3], [ROWS[2], ROWS[3]])
    return path


def known(path, frames=range(4)) -> list[int]:
    """The frames that a resumed run need not detect."""
    with DetectionLog(path, SETTINGS, resumes=True) as log:
        return [frame for frame in frames if log.get([frame]) is not None]


def test_the_file_lies_beside_the_result(tmp_path):
    assert log_file(tmp_path / "a.b.mp4") == tmp_path / "a.b.resume.jsonl"


def test_detections_come_back_bit_by_bit(path):
    with DetectionLog(path, SETTINGS, resumes=True) as log:
        for frames in ([0, 1], [2, 3], [1], [0, 1, 2, 3]):
            found = log.get(frames)
            assert found is not None
            for frame, rows in zip(frames, found, strict=True):
                np.testing.assert_array_equal(rows, ROWS[frame], strict=True)
        assert log.get([3, 4]) is None
        assert log.get([4]) is None


def test_a_resumed_run_appends_what_is_new_only(path):
    before = path.read_bytes()
    with DetectionLog(path, SETTINGS, resumes=True) as log:
        log.add([0, 1], [ROWS[0], ROWS[1]])
        assert path.read_bytes() == before
        log.add([4, 5], [ROWS[3], ROWS[1]])
    assert path.read_bytes().startswith(before)
    assert known(path, range(7)) == [0, 1, 2, 3, 4, 5]


def test_every_batch_is_in_the_file_at_once(path):
    """Or a killed process would lose it."""
    with DetectionLog(path, SETTINGS, resumes=False) as log:
        assert len(path.read_text().splitlines()) == 1
        for count in range(1, 4):
            log.add([count], [ROWS[0]])
            assert len(path.read_text().splitlines()) == 1 + count


def test_a_torn_line_is_left_out_wherever_it_is_torn(path):
    whole = path.read_bytes()
    head, first, second = whole.splitlines(keepends=True)
    for length in range(len(head), len(whole)):
        path.write_bytes(whole[:length])
        expected = [0, 1] if length >= len(head + first) else []
        assert known(path) == expected
        assert path.read_bytes() == (head + first if expected else head)  # ready for more
    assert second.endswith(b"\n")


def test_a_torn_line_is_followed_by_a_whole_one(path):
    path.write_bytes(path.read_bytes()[:-5])
    with DetectionLog(path, SETTINGS, resumes=True) as log:
        log.add([2, 3], [ROWS[2], ROWS[3]])
    assert known(path) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "line",
    [b"\0\0\0\n", b"[1]\n", b'{"a": []}\n', b'{"4": [[1]]}\n', b'{"4": "x"}\n', b'{"4": 1}\n'],
)
def test_a_damaged_line_ends_what_is_known(path, line):
    head, first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(head + first + line + second)
    assert known(path, range(6)) == [0, 1]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file: nothing to resume"),
        (b"", "is damaged or of another kind"),
        (b'{"schema": "video_dete', "is damaged or of another kind"),
        (b'{"schema": "video_detections/0", "settings": {}}\n', "of another kind"),
        (b'{"schema": "video_detections/1"}\n', "of another kind"),
        (b'{"schema": "video_detections/1", "settings": [1]}\n', "of another kind"),
        (b"\xff\xfe\n", "of another kind"),
    ],
)
def test_nothing_to_resume(path, content, reason):
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"a.resume.jsonl: .*{reason} – .*leave out --resume"):
        known(path)
    assert path.exists() == (content is not None)  # and it is left as it was
    assert content is None or path.read_bytes() == content


@pytest.mark.parametrize("name", SETTINGS)
def test_another_setting_is_refused_by_name(path, name):
    before = path.read_bytes()
    other = DetectionLog(path, SETTINGS | {name: "other"}, resumes=True)
    with (
        pytest.raises(UserError, match=f"is of a run with another {name.replace('_', ' ')} –"),
        other,
    ):
        pass
    assert path.read_bytes() == before


def test_all_other_settings_are_named(path):
    other = DetectionLog(path, SETTINGS | {"model": None, "classes": [1]}, resumes=True)
    with pytest.raises(UserError, match="another model, another classes"), other:
        pass


def test_a_new_run_begins_anew(path):
    with DetectionLog(path, SETTINGS | {"batch_size": 3}, resumes=False) as log:
        assert log.get([0]) is None
    (head,) = path.read_text().splitlines()
    assert json.loads(head)["settings"]["batch_size"] == 3


def test_a_complete_run_leaves_no_file(path):
    with DetectionLog(path, SETTINGS, resumes=True) as log:
        log.finish()
    assert not path.exists()


def test_without_a_path_nothing_is_kept(tmp_path):
    with DetectionLog(None, {}, resumes=False) as log:
        log.add([0], [ROWS[0]])
        assert log.get([0]) is None
        log.finish()
    with pytest.raises(UserError, match="--resume: is for files"):
        DetectionLog(None, {}, resumes=True)
    assert not list(tmp_path.iterdir())


def test_p3_30_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    log = DetectionLog(tmp_path / "file" / "a.resume.jsonl", SETTINGS, resumes=False)
    with pytest.raises(UserError, match=r"a\.resume\.jsonl: cannot be written"), log:
        pass
