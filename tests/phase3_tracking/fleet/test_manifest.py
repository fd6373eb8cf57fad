"""What is done, on the disk."""

import json
from pathlib import Path

import pytest

from common import artifacts, recorded_files
from common.cli import UserError
from phase3_tracking.fleet.manifest import FleetManifest
from phase3_tracking.fleet.plan import Video

SETTINGS = {"--confidence": "0.5", "--tracker": "iou"}


@pytest.fixture
def videos(tmp_path) -> list[Video]:
    for name in "ab":
        (tmp_path / f"{name}.mp4").write_text(name)
    out = tmp_path / "out"
    return [Video(str(tmp_path / f"{n}.mp4"), f"{n}_t.mp4", out / f"{n}_t.mp4") for n in "ab"]


def opened(videos: list[Video], settings=SETTINGS, *, overwrite=False) -> FleetManifest:
    return FleetManifest(videos[0].output_path.parent, settings, overwrite=overwrite)


def make_results(video: Video) -> dict:
    """A video and its report, and what the manifest is told of them."""
    video.output_path.parent.mkdir(exist_ok=True)
    video.output_path.write_text(f"result of {video.name}")
    report = {"complete": True, recorded_files.KEY: recorded_files.record([video.output_path])}
    artifacts.write_json(video.report_path, report)
    digest = artifacts.sha256(video.report_path)
    return {"state": "done", "input_facts": video.input_facts(), "report_sha256": digest}


def finish(videos: list[Video]) -> None:
    manifest = opened(videos)
    manifest.plan(videos)
    with manifest:
        for video in videos:
            manifest.record(video, make_results(video))


def test_what_is_recorded_is_known_to_the_next_run(videos):
    finish(videos)
    again = opened(videos)
    assert [again.still_holds(video) for video in videos] == [True, True]
    again.plan([videos[1]])  # the row of the other one stays
    third = opened(videos)
    assert [third.row(video)["state"] for video in videos] == ["done", "planned"]


def test_the_last_line_about_a_video_counts(videos):
    finish(videos)
    with opened(videos) as manifest:
        manifest.record(videos[0], {"state": "failed", "error": "broken"})
    row = opened(videos).row(videos[0])
    assert (row["state"], row["error"], row["input"]) == ("failed", "broken", videos[0].text)
    assert not opened(videos).still_holds(videos[0])


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_line_that_was_not_finished_is_left_out(videos, share):
    """A process is killed, or a machine loses its power, while the last line is written."""
    finish(videos)
    path = opened(videos).path
    *lines, last = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines) + last[: int(share * len(last))])
    again = opened(videos)
    assert [again.still_holds(video) for video in videos] == [True, False]
    assert again.row(videos[1])["state"] == "planned"
    again.plan([videos[1]])
    with again:
        again.record(videos[1], make_results(videos[1]))
    assert all(map(opened(videos).still_holds, videos))


@pytest.mark.parametrize("damage", ["result", "report", "no result", "no report", "input"])
def test_what_does_not_verify_is_not_done(videos, damage):
    finish(videos)
    video = videos[0]
    if damage == "result":  # the same length
        video.output_path.write_text(f"RESULT of {video.name}")
    elif damage == "report":
        report = artifacts.read_json(video.report_path)
        artifacts.write_json(video.report_path, report | {"complete": False})
    elif damage == "input":
        Path(video.text).write_text("another one")
    else:
        (video.output_path if damage == "no result" else video.report_path).unlink()
    assert [opened(videos).still_holds(one) for one in videos] == [False, True]


def test_an_input_that_was_put_away_does_not_undo_its_result(videos):
    finish(videos)
    Path(videos[0].text).unlink()
    assert opened(videos).still_holds(videos[0])


def test_other_settings_are_refused_by_name(videos):
    finish(videos)
    with pytest.raises(UserError, match=r"fleet\.jsonl: is of a fleet with another --confidence –"):
        opened(videos, SETTINGS | {"--confidence": "0.25"})
    anew = opened(videos, SETTINGS | {"--confidence": "0.25"}, overwrite=True)
    assert [anew.row(video) for video in videos] == [{}, {}]


@pytest.mark.parametrize("content", [b"", b"\xff\n", b"[]\n", b"{}\n", b'{"schema": "other/1"}\n'])
def test_a_file_of_another_kind_is_refused_and_kept(videos, content):
    path = videos[0].output_path.parent / "fleet.jsonl"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged or of another kind"):
        opened(videos)
    assert path.read_bytes() == content


def test_each_line_is_json_also_of_a_name_that_is_no_text(tmp_path):
    """File names of Linux are bytes."""
    video = Video("a\udcff.mp4", "a\udcff_t.mp4", tmp_path / "a_t.mp4")
    manifest = FleetManifest(tmp_path, {}, overwrite=False)
    manifest.plan([video])
    with manifest:
        manifest.record(video, {"state": "failed", "error": "line 1\nline 2"})
    lines = (tmp_path / "fleet.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["name"] for line in lines[1:]] == [video.name, video.name]
    assert FleetManifest(tmp_path, {}, overwrite=False).row(video)["error"] == "line 1\nline 2"
