"""VideoStream behind open_source: every kind of container and pixels, whole and damaged."""

import contextlib
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from common.cli import UserError
from phase3_tracking.inputs.sources import open_source
from tests.phase3_tracking.made_videos import (
    FAST_START,
    HEIGHT,
    WIDTH,
    cut,
    encode,
    noisy_video,
    number_in,
    picture,
    read,
    rot,
    rotate,
)

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT.parent / "shared" / "data" / "video"


# --- kinds of files ---------------------------------------------------------------------------

KINDS = {
    "h264.mp4": {},
    "h264.mov": {},
    "h264.mkv": {},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "ffv1.mkv": {"codec": "ffv1"},
    "h264.ts": {},
    "h264 fragments.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
}


@pytest.mark.parametrize("name", KINDS)
def test_every_frame_of_every_container_comes_once_in_order_with_its_time(tmp_path, name):
    frames, source = read(encode(tmp_path / name, 20, **KINDS[name]))
    assert [number_in(frame.image_bgr) for frame in frames] == list(range(20))
    assert [frame.index for frame in frames] == list(range(20))
    times = [frame.time_s for frame in frames]
    assert times == pytest.approx([index / 10 for index in range(20)], abs=1e-3)
    assert (source.width, source.height, source.fps) == (WIDTH, HEIGHT, 10)
    assert (source.frames_read, source.frames_decoded, source.truncated) == (20, 20, False)
    assert source.frames_promised in (20, None)
    assert source.notes == []
    assert source.decode_seconds > 0
    assert not source.live


@pytest.mark.parametrize(("suffix", "codec"), [(".h264", "libx264"), (".hevc", "libx265")])
def test_p3_10_bare_stream_without_a_frame_count(tmp_path, suffix, codec):
    quiet = {"options": {"x265-params": "log-level=none"}} if codec == "libx265" else {}
    frames, source = read(encode(tmp_path / f"a{suffix}", 20, codec=codec, fps=12, **quiet))
    assert [number_in(frame.image_bgr) for frame in frames] == list(range(20))
    assert [frame.time_s for frame in frames] == [i / source.fps for i in range(20)]
    assert (source.frames_promised, source.truncated) == (None, False)
    assert any("no timestamps" in note for note in source.notes)


def test_p3_10_bare_stream_with_the_rate_given(tmp_path):
    frames, source = read(encode(tmp_path / "a.h264", 6), fps=Fraction(5))
    assert [frame.time_s for frame in frames] == [Fraction(i, 5) for i in range(6)]
    assert (source.fps, source.notes) == (5, [])


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.webm", "a.mkv"])
def test_p3_11_one_frame(tmp_path, name):
    codec = {"a.avi": "mpeg4", "a.webm": "libvpx-vp9"}.get(name, "libx264")
    frames, source = read(encode(tmp_path / name, 1, codec=codec))
    assert [number_in(frame.image_bgr) for frame in frames] == [0]
    assert (frames[0].time_s, source.truncated) == (0, False)


@pytest.mark.parametrize(
    "fps", [Fraction(30000, 1001), Fraction(24000, 1001), Fraction(60000, 1001), 25, 12]
)
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_p3_13_the_rate_is_exact(tmp_path, name, fps):
    codec = "mpeg4" if name.endswith("avi") else "libx264"
    _, source = read(encode(tmp_path / name, 12, fps=fps, codec=codec))
    assert source.fps == source.source_fps == fps
    assert source.notes == []


def test_p3_13_a_rounded_ntsc_rate_is_made_exact(tmp_path):
    path = tmp_path / "a.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 29.97, (WIDTH, HEIGHT))
    for index in range(4):
        writer.write(picture(index))
    writer.release()
    assert read(path)[1].fps == Fraction(30000, 1001)


def test_p3_14_an_absurd_rate_needs_one_given(tmp_path):
    path = encode(tmp_path / "a.mp4", 8, fps=100_000)
    with pytest.raises(UserError, match=r"unusable frame rate \(100000\).*--fps"):
        open_source(path)
    frames, source = read(path, fps=Fraction(20))
    assert [frame.time_s for frame in frames] == [Fraction(i, 20) for i in range(8)]
    assert (source.fps, source.truncated, len(frames)) == (20, False, 8)


def test_p3_15_variable_rate_keeps_its_timestamps_and_is_noted(tmp_path):
    milliseconds = [0, 40, 80, 200, 240, 500, 520, 600, 1000, 1033]
    path = encode(tmp_path / "a.mp4", 10, fps=25, times=milliseconds, time_base=Fraction(1, 1000))
    frames, source = read(path)
    assert [frame.time_s for frame in frames] == [Fraction(ms, 1000) for ms in milliseconds]
    assert [number_in(frame.image_bgr) for frame in frames] == list(range(10))
    (note,) = source.notes
    assert "variable frame rate (20 to 400 ms" in note
    assert 5 < source.fps < 15  # the average, 10 frames in a little more than a second
    assert not source.truncated


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("suffix", [".mov", ".mp4"])
def test_p3_16_rotation_metadata_gives_upright_frames(tmp_path, degrees, suffix):
    path = rotate(encode(tmp_path / f"a{suffix}", 4, options={"crf": "10"}), degrees)
    frames, source = read(path)
    turned = np.rot90(picture(3), -degrees // 90)  # clockwise
    assert frames[3].image_bgr.shape == turned.shape == (source.height, source.width, 3)
    assert np.abs(frames[3].image_bgr.astype(int) - turned).mean() < 6
    opencv = cv2.VideoCapture(str(path)).read()[1]
    assert np.abs(frames[0].image_bgr.astype(int) - opencv).mean() < 2
    assert frames[0].image_bgr.flags["C_CONTIGUOUS"]


def test_p3_17_a_change_of_size_is_rescaled_and_noted(tmp_path):
    parts = [
        encode(tmp_path / "1.h264", 6, size=(128, 72)),
        encode(tmp_path / "2.h264", 5, size=(64, 36)),
    ]
    path = tmp_path / "a.h264"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    frames, source = read(path)
    assert {frame.image_bgr.shape for frame in frames} == {(72, 128, 3)}
    assert len(frames) == 11
    assert any("5 frames were rescaled to 128x72" in note for note in source.notes)


@pytest.mark.parametrize("size", [(767, 431), (95, 63), (1, 1), (16, 16), (7680, 4320)])
def test_p3_18_p3_19_odd_tiny_and_8k_sizes(tmp_path, size):
    width, height = size
    image = np.full((height, width, 3), 99, np.uint8)
    image[height // 2 :] = 200
    path = encode(tmp_path / "a.mkv", codec="ffv1", pix_fmt="bgr0", size=size, images=[image] * 2)
    frames, source = read(path)
    assert all(np.array_equal(frame.image_bgr, image) for frame in frames)
    assert (source.width, source.height, len(frames)) == (width, height, 2)


@pytest.mark.parametrize(
    ("codec", "pix_fmt"),
    [
        ("ffv1", "yuv420p10le"),
        ("ffv1", "yuv444p10le"),
        ("ffv1", "yuv444p"),
        ("ffv1", "yuv422p"),
        ("ffv1", "gray"),
        ("ffv1", "gray10le"),
        ("ffv1", "bgr0"),
        ("libx264", "yuv444p"),
        ("ffv1", "bgra"),
        ("libx265", "yuv420p10le"),
        ("libx264", "gray"),
    ],
)
def test_p3_20_every_pixel_format_becomes_8_bit_bgr(tmp_path, codec, pix_fmt):
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    path = encode(tmp_path / "a.mkv", 3, codec=codec, pix_fmt=pix_fmt, options=options)
    frames, _ = read(path)
    image = frames[2].image_bgr
    assert (image.dtype, image.shape) == (np.uint8, (HEIGHT, WIDTH, 3))
    expected = picture(2).astype(int)
    if pix_fmt.startswith("gray"):
        gray = cv2.cvtColor(picture(2), cv2.COLOR_BGR2GRAY)
        expected = np.repeat(gray[:, :, None], 3, axis=2).astype(int)
    assert np.abs(image - expected).mean() < 5


def test_p3_20_hdr_is_noted(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p10le"
        stream.codec_context.color_trc = 16  # PQ
        frame = av.VideoFrame.from_ndarray(picture(0), format="bgr24")
        container.mux(stream.encode(frame.reformat(format="yuv420p10le")))
        container.mux(stream.encode(None))
    assert any("HDR (PQ)" in note for note in read(path)[1].notes)


def test_longer_sound_does_not_make_a_video_look_cut_short(tmp_path):
    path = encode(tmp_path / "a.mkv", 10, audio="libopus", audio_s=4)
    frames, source = read(path)
    assert (len(frames), source.truncated) == (10, False)


# --- damage -----------------------------------------------------------------------------------


def test_p3_05_header_at_the_end_and_cut_is_refused(tmp_path):
    half = cut(noisy_video(tmp_path / "whole.mp4"), 0.5, "half.mp4")
    with pytest.raises(UserError, match="damaged or holds no video"):
        open_source(half)


def test_p3_06_fast_start_and_cut_is_read_as_far_as_it_goes(tmp_path):
    whole = noisy_video(tmp_path / "whole.mp4", container_options=FAST_START)
    frames, source = read(cut(whole, 0.5, "half.mp4"))
    assert 20 < len(frames) < 40
    assert (source.frames_decoded, source.frames_promised) == (len(frames), 60)
    assert source.truncated


@pytest.mark.parametrize("name", ["a.mkv", "a.avi", "a.ts"])
def test_p3_06_other_containers_cut(tmp_path, name):
    kind = {"codec": "mjpeg", "pix_fmt": "yuvj420p"} if name == "a.avi" else {}
    whole = noisy_video(tmp_path / name, **kind)
    frames, source = read(cut(whole, 0.5, f"half_{name}"))
    assert 15 < len(frames) < 45
    assert source.truncated == (name != "a.ts")  # a transport stream promises nothing


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared test data is not here")
def test_p3_06_a_real_video_that_holds_less_than_its_header_says():
    frames, source = read(DATA / "person-bicycle-car-detection.mp4")
    assert (len(frames), source.frames_promised, source.truncated) == (459, 467, True)
    assert source.fps == 12
    _, late = read(DATA / "person-bicycle-car-detection.mp4", start_s=Fraction(30))
    assert late.truncated
    _, early = read(DATA / "person-bicycle-car-detection.mp4", end_s=Fraction(5))
    assert not early.truncated


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared test data is not here")
def test_pixels_are_those_of_opencv():
    path = DATA / "vtest.mp4"
    capture = cv2.VideoCapture(str(path))
    for frame in read(path, max_frames=30)[0]:
        assert np.abs(frame.image_bgr.astype(int) - capture.read()[1]).mean() < 1


def test_p3_07_bit_rot_in_the_middle_is_skipped_and_noted(tmp_path):
    whole = noisy_video(tmp_path / "whole.mp4", container_options=FAST_START)
    frames, source = read(rot(whole, "rotten.mp4"))
    assert 40 <= len(frames) <= 60
    assert frames[-1].time_s == Fraction(59, 10)  # it goes on after the damage
    assert not source.truncated
    assert any("damaged" in note for note in source.notes)


def test_p3_07_any_byte_changed_ends_in_frames_or_one_line(tmp_path):
    whole = encode(tmp_path / "whole.mp4", 12, container_options=FAST_START).read_bytes()
    read_through = 0
    for position in range(0, len(whole), 97):
        changed = bytearray(whole)
        changed[position] ^= 0xFF
        path = tmp_path / "changed.mp4"
        path.write_bytes(changed)
        with contextlib.suppress(UserError):
            times = [frame.time_s for frame in read(path)[0]]
            assert times == sorted(set(times))
            read_through += 1
    assert read_through > 5


def test_what_is_asked_after_closing_does_not_touch_freed_memory(tmp_path):
    """PyAV frees a stream with its container: what its fields then hold is a matter of luck."""
    frames, source = read(noisy_video(tmp_path / "a.mp4", 12))
    decoder = source._decoder
    decoder._stream._stream = None  # as good as gone
    assert len(frames) == 12
    assert (source.notes, source.truncated) == ([], False)
