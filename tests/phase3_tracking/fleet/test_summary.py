"""The page of a fleet."""

import json
import re

import pytest

from phase3_tracking.fleet import summary

EVIL = "clips/<script>alert(1)</script> & co.mp4"


def done(name: str, **more) -> dict:
    return {
        **{"name": f"{name}_tracked.mp4", "input": f"{name}.mp4", "state": "done", "attempts": 1},
        **{
            "frames": 1200,
            "tracks": 7,
            "class_counts": {"person": 5, "car": 2},
            "truncated": False,
        },
        **{"fps_end_to_end": 31.25, "seconds": 40.0, "node": "n"},
        **more,
    }


ROWS = [
    done("a"),
    done("b", truncated=True, attempts=2),
    {"name": "c_tracked.mp4", "input": EVIL, "state": "failed", "attempts": 3, "error": EVIL},
    {"name": "d_tracked.mp4", "input": "d.mp4", "state": "planned"},
]


@pytest.fixture
def written(tmp_path):
    content = summary.contents(ROWS, "cpu", [], {"--tracker": "iou"}, 50.0)
    page, numbers = summary.write(tmp_path, content)
    return page.read_text(encoding="utf-8"), json.loads(numbers.read_text(encoding="utf-8"))


def test_the_json_holds_sums_and_every_row(written):
    _, numbers = written
    counts = {name: numbers[name] for name in ("videos", "done", "failed", "frames", "tracks")}
    assert counts == {"videos": 4, "done": 2, "failed": 1, "frames": 2400, "tracks": 14}
    assert numbers["class_counts"] == {"person": 10, "car": 4}
    assert (numbers["task_seconds"], numbers["run_seconds"]) == (80.0, 50.0)
    assert numbers["rows"] == ROWS


def test_the_page_escapes_names_and_stands_alone(written):
    page, _ = written
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt; &amp; co.mp4") == 2
    assert not re.search(r"(src|href)=\"(?!#)", page)
    assert 'name="viewport"' in page


def test_the_page_says_what_failed_what_is_open_and_what_was_cut_short(written):
    page, _ = written
    text = re.sub(r"<[^>]+>", " ", page)
    for words in ("1 of 4 videos failed.", "1 of 4 videos have not been tracked yet."):
        assert words in text
    assert "of 4, 1 of them cut short" in text
    assert re.search(r"b\.mp4\s+1,200\s+7\s+31\.2\s+40\.0\s+2\s+cut short", text)


def test_a_page_of_very_many_videos_names_the_first_ones(tmp_path):
    rows = [done(str(number)) for number in range(summary.SHOWN + 3)]
    page, numbers = summary.write(tmp_path, summary.contents(rows, "cpu", [], {}, 1.0))
    text = page.read_text(encoding="utf-8")
    assert text.count(".mp4</td>") == summary.SHOWN
    assert "3 more are in fleet.json." in text
    assert len(json.loads(numbers.read_text(encoding="utf-8"))["rows"]) == summary.SHOWN + 3
