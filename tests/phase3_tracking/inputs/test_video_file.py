"""VideoFile behind open_source: which files are taken and which are refused."""

import os
from fractions import Fraction
from pathlib import Path

import av
import cv2
import pytest

from common.cli import UserError
from phase3_tracking.inputs.sources import open_source
from tests.phase3_tracking.made_videos import (
    FAST_START,
    HEIGHT,
    WIDTH,
    add_tone,
    encode,
    noisy_video,
    picture,
    read,
)

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT.parent / "shared" / "data" / "video"


def test_sound_is_announced_for_the_writer(tmp_path):
    with_sound = encode(tmp_path / "a.mp4", 5, audio="aac")
    assert read(with_sound)[1].audio_path == with_sound
    assert read(with_sound, fps=Fraction(3))[1].audio_path is None  # its times are others
    assert read(encode(tmp_path / "b.mp4", 5))[1].audio_path is None


def test_p3_27_a_file_that_grows_while_read_ends_and_is_noted(tmp_path):
    whole = noisy_video(tmp_path / "whole.mp4", container_options=FAST_START).read_bytes()
    path = tmp_path / "growing.mp4"
    path.write_bytes(whole[: len(whole) // 2])
    with open_source(path) as source:
        count = 0
        for _ in source:
            count += 1
            if count == 1:
                path.write_bytes(whole[: len(whole) * 3 // 4])
    assert 15 < count < 60
    assert source.truncated
    assert any("changed while it was read" in note for note in source.notes)


# --- what is refused --------------------------------------------------------------------------


def no_video(folder: Path, kind: str) -> Path:
    path = folder / "bad.mp4"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("frame,id,x,y\n" * 50)
    elif kind == "text file":
        path = folder / "bad.txt"
        path.write_text("frame,id,x,y\n" * 50)
    elif kind == "picture":
        path.write_bytes(cv2.imencode(".jpg", picture(0))[1].tobytes())
    elif kind == "list":
        encode(folder / "other.mp4", 3)
        path = folder / "bad.ffconcat"
        path.write_text("ffconcat version 1.0\nfile other.mp4\n")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind in ("sound", "sound with a cover"):
        path = folder / "bad.m4a" if kind == "sound" else folder / "bad.mp3"
        with av.open(str(path), "w") as container:
            codec = "aac" if kind == "sound" else "libmp3lame"
            add_tone(container, container.add_stream(codec, rate=48000, layout="stereo"), 1)
        if kind == "sound with a cover":
            cover = cv2.imencode(".jpg", picture(0))[1].tobytes()
            body = b"\0image/jpeg\0\x03\0" + cover
            tag = b"APIC" + len(body).to_bytes(4, "big") + b"\0\0" + body
            size = bytes((len(tag) >> shift) & 0x7F for shift in (21, 14, 7, 0))
            path.write_bytes(b"ID3\x03\0\0" + size + tag + path.read_bytes())
    elif kind == "no frame":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            container.start_encoding()
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        pytest.param("absent", "no such file", id="p3_01_absent"),
        pytest.param("empty", "is empty", id="p3_03_empty"),
        pytest.param("text", "damaged or holds no video", id="p3_04_text"),
        pytest.param("text file", "is text", id="p3_04_text_file"),
        pytest.param("sound", "holds sound, but no video", id="p3_08_sound"),
        pytest.param("sound with a cover", "holds sound, but no video", id="p3_08_cover"),
        pytest.param("picture", "is a picture", id="p3_09_picture"),
        pytest.param("no frame", "not one frame|no video|frame rate", id="p3_12_no_frame"),
        pytest.param("pipe", "not a regular file", id="p3_24_pipe"),
        pytest.param("device", "not a regular file", id="p3_24_device"),
        pytest.param("list", "list of other files", id="list"),
    ],
)
def test_what_is_no_video_is_refused_in_one_line(tmp_path, capfd, kind, reason):
    path = no_video(tmp_path, kind)
    with pytest.raises(UserError, match=reason) as error:
        open_source(path)
    assert str(path) in str(error.value)
    assert capfd.readouterr() == ("", "")  # FFmpeg itself is silent


def test_p3_26_a_file_without_permission_is_refused(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp4", 2)
    monkeypatch.setattr(os, "access", lambda *_: False)  # the superuser may read anything
    with pytest.raises(UserError, match="may not be read"):
        open_source(path)


@pytest.mark.parametrize(
    "name",
    ["-a.mp4", "straße 100%03d 日本.mp4", "line\nbreak.mp4", "a:b.mp4", "http:.mp4", "'\".mp4"],
)
def test_p3_23_names_of_any_kind(tmp_path, monkeypatch, name):
    (tmp_path / name).write_bytes(encode(tmp_path / "plain.mp4", 3).read_bytes())
    monkeypatch.chdir(tmp_path)
    assert len(read(Path(name))[0]) == 3
    assert len(read(tmp_path / name)[0]) == 3
