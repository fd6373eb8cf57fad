"""The texts of the track formats, against what `json` and `csv` make of the same rows."""

import csv
import io
import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from phase3_tracking.results import track_formats
from phase3_tracking.results.spreadsheet_text import as_text
from phase3_tracking.results.track_formats import (
    CocoFormat,
    CsvFormat,
    JsonFormat,
    MotFormat,
    VideoFacts,
    box_texts,
    short,
)

VIDEO = VideoFacts("street.mp4", 640, 360, 25.0)
NAMES = {1: "person", 2: "", 3: 'a,"b"\r\nc', 4: "=1+1", 5: "日本\ud800"}
ROWS = st.lists(
    st.tuples(
        *[st.floats(-1e20, 1e20) | st.floats(-2000, 2000)] * 4,
        *(st.integers(1, 10**6).map(float), st.integers(-1, 7).map(float), st.floats(0, 1)),
    ),
    max_size=4,
)


def json_text(content) -> str:
    return json.dumps(content, allow_nan=False, ensure_ascii=False)


@given(st.floats(allow_nan=False, allow_infinity=False))
@example(-0.001)
@example(1e22)
@example(99999999999.995)
@example(0.1 + 0.2)
def test_short_is_what_json_makes_of_the_rounded_number(value):
    assert short(f"{value:.2f}") == json_text(round(value, 2))
    assert short(f"{value:.4f}") == json_text(round(value, 4))


@given(ROWS)
def test_json_texts_are_those_of_the_library(rows):
    tracks = [
        {
            "track_id": int(track_id),
            "category_id": int(label),
            "class": NAMES.get(int(label), f"class {int(label)}"),
            "box_xyxy": [round(value, 2) for value in corners],
            "confidence": round(confidence, 4),
        }
        for *corners, track_id, label, confidence in rows
    ]
    frame = {"frame": 7, "time_s": 0.3333, "tracks": tracks}
    written = JsonFormat(NAMES, VIDEO).frame(7, 1 / 3, box_texts(rows))
    assert written == "\n" + json_text(frame)
    entries = [
        {
            "image_id": 7,
            "category_id": int(label),
            "bbox": [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
            "score": round(confidence, 4),
            "track_id": int(track_id),
        }
        for x1, y1, x2, y2, track_id, label, confidence in rows
    ]
    expected = "\n" + ",\n".join(map(json_text, entries)) if rows else ""
    assert CocoFormat().frame(7, 1 / 3, box_texts(rows)) == expected


@given(ROWS)
def test_table_rows_are_those_of_the_library(rows):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    for *corners, track_id, label, confidence in rows:
        name = as_text(NAMES.get(int(label), f"class {int(label)}"))
        numbers = [*(f"{value:.2f}" for value in corners), f"{confidence:.4f}"]
        writer.writerow([7, "0.3333", int(track_id), name, int(label), *numbers])
    written = CsvFormat(NAMES).frame(7, 1 / 3, box_texts(rows))
    library = text.getvalue()
    name = '"a,""b""\r\nc"'  # its line end stays
    assert written == library.replace(name, "NAME").replace("\r\n", "\n").replace("NAME", name)


def test_the_mot_line():
    boxes = box_texts([(1, 2.25, 4.5, 10, 3, 1, 0.87654)])
    assert MotFormat().frame(7, 0, boxes) == "7,3,1.00,2.25,3.50,7.75,0.8765,1,1\n"


@pytest.mark.parametrize("row", [(-1.7e308, 0, 1.7e308, 1, 1, 1, 0.5), (0, 0, 1, np.inf, 1, 1, 1)])
def test_a_box_of_no_finite_size_is_refused(row):
    with pytest.raises(ValueError, match="JSON"):
        box_texts([row])


def test_names_are_turned_into_text_once_and_not_for_every_box(monkeypatch):
    calls = []

    def counted(content, **options):
        calls.append(content)
        return json_text(content)

    form, table = JsonFormat({1: "person"}, VIDEO), CsvFormat({1: "person"})
    monkeypatch.setattr(track_formats.json, "dumps", counted)
    monkeypatch.setattr(track_formats, "csv_lines", lambda rows: pytest.fail("not for a box"))
    boxes = box_texts([(0, 0, 1, 1, 1, 1, 0.5)] * 4)
    for number in range(20):
        for one in (form, table, CocoFormat(), MotFormat()):
            assert one.frame(number, 0, boxes)
    assert calls == []
