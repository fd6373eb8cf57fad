"""Any text: boxes that are those of the file, or one line that names what is wrong."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.cli import UserError
from phase3_tracking import mot_files
from phase3_tracking.recorded_detections import RecordedDetections
from tests.damage import assert_one_line_about, damaged_text
from tests.long_runs import count, examples, times

WHOLE = "".join(
    f"{frame},{-1 if frame % 2 else frame},{frame * 1.5},{frame},20,30.25,0.{frame},3,1\n"
    for frame in range(1, 9)
)
NUMBERS = (
    st.integers(-2, 40).map(str)
    | st.floats(width=32).map(str)
    | st.sampled_from(
        ["", " ", "1e308", "-1e308", "nan", "inf", "1_0", "٣", "0x1", "10" * 200, "-1"]
    )
)
LINES = st.lists(NUMBERS, max_size=11).map(",".join) | st.text(max_size=20)
TEXTS = st.lists(LINES, max_size=6).flatmap(
    lambda lines: st.sampled_from(["\n", "\r\n", "\r", "\n\n"]).map(lambda end: end.join(lines))
)


def naive_rows(text: str) -> list[list[float]]:
    """[frame, id, x1, y1, x2, y2] of every line, sorted by frame."""
    lines = [line.split(",") for line in text.removeprefix("\ufeff").splitlines() if line.strip()]
    rows = [[float(field) for field in line[:6]] for line in lines]
    boxes = [[*row[:4], row[2] + row[4], row[3] + row[5]] for row in rows]
    return sorted(boxes, key=lambda row: row[0])


def assert_read_as_it_stands_or_refused(path, content: bytes, *, unique_ids: bool) -> bool:
    """Whether it was read."""
    path.write_bytes(content)
    try:
        boxes = mot_files.read(path, unique_ids=unique_ids)
    except UserError as error:
        assert_one_line_about(path, error)
        return False
    columns = (boxes.frames, boxes.ids, boxes.boxes_xyxy)
    rows = np.column_stack(columns) if len(boxes) else np.empty((0, 6))
    np.testing.assert_array_equal(
        rows, np.array(naive_rows(content.decode("utf-8"))).reshape(-1, 6)
    )
    assert np.isfinite(boxes.boxes_xyxy).all()
    assert np.isfinite(boxes.confidences).all()
    assert (boxes.frames >= 1).all()
    if unique_ids:
        keys = set(zip(boxes.frames.tolist(), boxes.ids.tolist(), strict=True))
        assert len(keys) == len(boxes)
    return True


@pytest.mark.long
@examples(200, 2000)
@given(text=TEXTS, unique_ids=st.booleans())
def test_p3_51_any_text(tmp_path, text, unique_ids):
    count("examples")
    content = text.encode("utf-8", "surrogatepass")
    assert_read_as_it_stands_or_refused(tmp_path / "det.txt", content, unique_ids=unique_ids)


@pytest.mark.long
def test_p3_51_a_damaged_file(tmp_path):
    """Also in the place of a model: what it then says of a frame is what the file says."""
    path, read = tmp_path / "det.txt", 0
    for seed in range(times(200, 2000)):
        count("damaged files")
        content = damaged_text(WHOLE.encode(), seed)
        if not assert_read_as_it_stands_or_refused(path, content, unique_ids=False):
            continue
        read += 1
        recorded = RecordedDetections(path, {3: "car"})
        rows = [row for row in naive_rows(content.decode("utf-8")) if row[0] == 4]
        found = recorded.of_frame(4)
        expected = np.array([row[2:] for row in rows], np.float32).reshape(-1, 4)
        np.testing.assert_array_equal(found.boxes_xyxy, expected)
        assert all(0 <= score <= 1 and math.isfinite(score) for score in found.scores)
        assert all(1 <= label <= len(recorded.class_names) for label in found.labels)
    assert read > times(20, 300)
