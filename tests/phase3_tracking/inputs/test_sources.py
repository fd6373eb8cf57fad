"""open_source and expand_inputs: what a text stands for."""

from pathlib import Path

import pytest

from common.cli import UserError
from phase3_tracking.inputs.sources import (
    check_exists,
    expand_inputs,
    open_source,
    output_stem,
)
from tests.phase3_tracking.made_videos import encode


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("a\0b.mp4", "NUL"),
        ("ftp://host/a.mp4", "no address of a known kind"),
        ("file:///etc/passwd", "no address of a known kind"),
        ("concat://a|b", "no address of a known kind"),
        ("absent.mp4", "no such file"),
        ("٣", "no such file"),  # a digit, but not of a camera's number
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, monkeypatch, text, reason):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=reason) as error:
        open_source(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["0", "rtsp://absent/1", "", "a\0b", "."])
def test_what_is_no_missing_path_is_left_to_open_source(text):
    check_exists(text)


@pytest.mark.parametrize("text", ["absent.mp4", "absent/", "٣"])
def test_a_missing_path_is_told_before_anything_is_opened(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no such file – check the path"):
        check_exists(text)


def test_an_address_that_is_refused_is_told_without_its_password():
    with pytest.raises(UserError, match=r"^rtmp://host/live: no address") as error:
        open_source("rtmp://user:word@host/live?key=secret")
    assert "word" not in str(error.value)


def test_a_path_object_is_taken_too(tmp_path):
    with open_source(encode(tmp_path / "a.mp4", 2)) as source:
        assert (source.path, source.name) == (tmp_path / "a.mp4", str(tmp_path / "a.mp4"))


def test_a_list_of_inputs_is_expanded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(Path("clips"), "10.mp4", "9.MOV", "notes.txt", ".hidden.mp4")
    touch(Path("pictures"), "1.png", "2.png", "notes.txt")
    touch(Path(), "a[1].mp4", "b2.mp4", "b10.mp4")
    assert expand_inputs(["clips"]) == ["clips/9.MOV", "clips/10.mp4"]
    assert expand_inputs(["pictures"]) == ["pictures"]
    assert expand_inputs(["b*.mp4"]) == ["b2.mp4", "b10.mp4"]
    assert expand_inputs(["a[1].mp4"]) == ["a[1].mp4"]  # it exists, so it is no pattern
    assert expand_inputs(["*s"]) == ["clips/9.MOV", "clips/10.mp4", "pictures"]
    same = ["0", "rtsp://host/a*", "absent.mp4", "0", "b2.mp4", "b?.mp4"]
    assert expand_inputs(same) == ["0", "rtsp://host/a*", "absent.mp4", "b2.mp4"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("*.avi", "nothing matches"),
        ("empty", "neither videos nor pictures"),
        ("mixed", "holds 1 videos and 2 pictures"),
    ],
)
def test_inputs_that_stand_for_nothing_are_one_line(tmp_path, monkeypatch, text, reason):
    monkeypatch.chdir(tmp_path)
    touch(Path("empty"))
    touch(Path("mixed"), "a.mp4", "1.png", "2.png")
    with pytest.raises(UserError, match=reason):
        expand_inputs([text])


@pytest.mark.parametrize(
    ("text", "stem"),
    [
        ("street.mp4", "street"),
        ("a/b.c.mov", "b.c"),
        ("rtsp://user:wo/rd@host/live", "host_live"),
        ("http://[broken/a.mp4", "broken_a"),
        ("0", "camera_0"),
        ("rtsp://user:word@host:554/live/cam1", "host_live_cam1"),
        ("https://host/a%20b/street.mp4?token=secret", "host_a_20b_street"),
        ("http://host", "host"),
    ],
)
def test_output_stem(text, stem):
    assert output_stem(text) == stem


def test_output_stem_of_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seq.01").mkdir()
    assert output_stem("seq.01/") == "seq.01"
