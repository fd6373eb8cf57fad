"""VideoWriter: what a player and OpenCV read back, and that failures leave nothing behind.

A killed process and a full disk are in test_video_cut_short.py.
"""

import os
import subprocess
import sys
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from common import artifacts, paths
from common.cli import UserError
from common.video import VideoWriter

NTSC = Fraction(30000, 1001)


def frames(count: int, width: int = 64, height: int = 48) -> list[np.ndarray]:
    """A bright square that moves 2 px a frame over a gradient."""
    result = []
    for index in range(count):
        frame = np.zeros((height, width, 3), np.uint8)
        frame[:, :, 0] = np.linspace(0, 200, width, dtype=np.uint8)
        frame[8:24, 2 * index : 2 * index + 16, 2] = 250
        result.append(frame)
    return result


def write(path, images, fps=NTSC, *, size=None, then=None):
    """Writes `images`; raises `then` inside the block afterwards when it is given."""
    height, width = size or images[0].shape[:2]
    with VideoWriter(path, width, height, fps) as writer:
        for image in images:
            writer.write(image)
        if then is not None:
            raise then


def read_with_opencv(path) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    images = []
    while (answer := capture.read())[0]:
        images.append(answer[1])
    return images


def test_is_h264_yuv420p_with_the_exact_rate_and_count(tmp_path):
    path = tmp_path / "new" / "clip.mp4"
    write(path, frames(11))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == NTSC
        assert stream.frames == 11
        times = [frame.time for frame in container.decode(stream)]
    assert times == pytest.approx([i * 1001 / 30000 for i in range(11)], abs=1e-4)


def test_opencv_reads_the_same_pictures_back(tmp_path):
    path = tmp_path / "clip.mp4"
    images = frames(11)
    write(path, images, Fraction(12))
    assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS) == 12
    returned = read_with_opencv(path)
    assert len(returned) == 11
    for image, read in zip(images, returned, strict=True):
        assert np.abs(image.astype(int) - read).mean() < 8  # lossy, chroma at half resolution


def test_index_comes_before_the_pictures(tmp_path):
    path = tmp_path / "clip.mp4"
    write(path, frames(5))
    content = path.read_bytes()
    assert 0 < content.find(b"moov") < content.find(b"mdat")


@pytest.mark.parametrize(("width", "height"), [(63, 48), (64, 47), (33, 31)])
def test_odd_sizes_gain_a_copied_edge(tmp_path, width, height):
    path = tmp_path / "clip.mp4"
    images = frames(4, width, height)
    write(path, images)
    read = read_with_opencv(path)[0]
    assert read.shape == (height + height % 2, width + width % 2, 3)
    last = read[:height, width - 1].astype(int) if width % 2 else read[height - 1, :width]
    added = read[:height, width] if width % 2 else read[height, :width]
    assert np.abs(last - added.astype(int)).mean() < 8


WRITE_A_CLIP = """
import sys
from fractions import Fraction
from pathlib import Path
import numpy as np
from common.video import VideoWriter
path, width, height = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
picture = np.zeros((height, width, 3), np.uint8)
picture[:, :, 0] = np.linspace(0, 200, width, dtype=np.uint8)
with VideoWriter(path, width, height, Fraction(25)) as writer:
    for left in range(0, 40, 2):
        frame = picture.copy()
        frame[8:24, left : left + 16, 2] = 250
        writer.write(frame)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="MALLOC_PERTURB_ is glibc's")
@pytest.mark.parametrize(("width", "height"), [(64, 48), (200, 120), (336, 240)])
def test_equal_input_gives_equal_bytes_whatever_the_memory_held(tmp_path, width, height):
    digests = set()
    for fill in (0, 85, 170):
        clip = tmp_path / f"{fill}.mp4"
        environment = {**os.environ, "MALLOC_PERTURB_": str(fill), "PYTHONPATH": str(paths.ROOT)}
        arguments = [str(clip), str(width), str(height)]
        subprocess.run(
            [sys.executable, "-c", WRITE_A_CLIP, *arguments], env=environment, check=True
        )
        digests.add(artifacts.sha256(clip))
    assert len(digests) == 1


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((48, 66, 3), np.uint8),
        np.zeros((48, 64), np.uint8),
        np.zeros((48, 64, 3), np.float32),
    ],
)
def test_a_frame_of_another_kind_raises_and_leaves_nothing(tmp_path, bad):
    with pytest.raises(ValueError, match="frame 3 is"):
        write(tmp_path / "clip.mp4", [*frames(3), bad])
    assert list(tmp_path.iterdir()) == []


def test_failure_keeps_the_older_file(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"older")
    with pytest.raises(RuntimeError, match="detector failed"):
        write(path, frames(1), then=RuntimeError("detector failed"))
    assert path.read_bytes() == b"older"
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]


def test_no_frame_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no frame"):
        write(tmp_path / "clip.mp4", [], size=(48, 64))
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_folder_s_place_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write(tmp_path / "file" / "clip.mp4", frames(1))


@pytest.mark.parametrize(("width", "height", "fps"), [(0, 48, 12), (64, -1, 12), (64, 48, 0)])
def test_sizes_and_rate_must_be_positive(tmp_path, width, height, fps):
    with pytest.raises(ValueError, match="not positive"):
        VideoWriter(tmp_path / "clip.mp4", width, height, Fraction(fps))


def test_importing_the_module_loads_no_codec():
    check = "import common.video, sys; sys.exit('av' in sys.modules or 'cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=paths.ROOT).returncode == 0


# --- times ------------------------------------------------------------------------------------


def times_in(path) -> list[Fraction]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [image.pts * image.time_base for image in container.decode(stream)]


def write_timed(path, times, fps=Fraction(25)):
    with VideoWriter(path, 64, 48, fps) as writer:
        for image, time_s in zip(frames(len(times)), times, strict=True):
            writer.write(image, time_s)


@pytest.mark.parametrize(
    "milliseconds", [[0, 40, 80, 200, 240, 500, 1000, 1033], [7000, 7040, 7300]]
)
def test_p3_15_given_times_are_kept_from_the_first_one_on(tmp_path, milliseconds):
    write_timed(tmp_path / "a.mp4", [Fraction(ms, 1000) for ms in milliseconds])
    first = milliseconds[0]
    assert times_in(tmp_path / "a.mp4") == [Fraction(ms - first, 1000) for ms in milliseconds]


@pytest.mark.parametrize("fps", [NTSC, Fraction(12), Fraction(25, 2), Fraction(24000, 1001)])
def test_p3_13_even_times_give_the_exact_rate(tmp_path, fps):
    write_timed(tmp_path / "a.mp4", [index / fps for index in range(11)], fps)
    assert times_in(tmp_path / "a.mp4") == [index / fps for index in range(11)]
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].average_rate == fps


def test_times_may_be_floats_and_very_close(tmp_path):
    write_timed(tmp_path / "a.mp4", [0.0, 1e-7, 2e-7, 0.5])
    times = times_in(tmp_path / "a.mp4")
    assert len(set(times)) == 4
    assert float(times[-1]) == 0.5


@pytest.mark.parametrize("times", [[0, 0], [1, Fraction(1, 2)]])
def test_times_must_grow(tmp_path, times):
    with pytest.raises(ValueError, match="does not come after"):
        write_timed(tmp_path / "a.mp4", times)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("times", [[0, None], [None, 0]])
def test_all_frames_have_a_time_or_none(tmp_path, times):
    with pytest.raises(ValueError, match="either every frame has a time"):
        write_timed(tmp_path / "a.mp4", times)


# --- faults -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.avi", "a.gif", "a", "a.mp4.txt"])
def test_p3_31_another_suffix_is_a_user_error(tmp_path, name):
    with pytest.raises(UserError, match=r"is no \.mp4"):
        VideoWriter(tmp_path / name, 64, 48, NTSC)


def test_p3_36_as_many_frames_come_out_as_went_in(tmp_path):
    for count in (1, 2, 3, 30, 61):
        write(tmp_path / "a.mp4", frames(count))
        assert len(read_with_opencv(tmp_path / "a.mp4")) == count


@pytest.mark.parametrize(("width", "height"), [(1, 1), (767, 431)])
def test_p3_18_p3_19_odd_and_tiny_sizes_can_be_written(tmp_path, width, height):
    write(tmp_path / "a.mp4", [np.full((height, width, 3), 120, np.uint8)] * 3)
    images = read_with_opencv(tmp_path / "a.mp4")
    assert [image.shape for image in images] == [(height + 1, width + 1, 3)] * 3


def test_the_folder_can_hold_names_of_any_kind(tmp_path):
    for name in ("a:b.mp4", "-x.mp4", "100%03d ü.mp4", "line\nbreak.mp4"):
        write(tmp_path / name, frames(2))
        assert (tmp_path / name).stat().st_size > 0


def test_p3_30_a_folder_in_the_way_is_a_user_error(tmp_path):
    (tmp_path / "a.mp4").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        write(tmp_path / "a.mp4", frames(2))
    (tmp_path / "b.partial.mp4").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        write(tmp_path / "b.mp4", frames(2))


def test_a_partial_file_that_is_being_read_is_not_replaced(tmp_path):
    write(tmp_path / "a.partial.mp4", frames(3))
    with (
        pytest.raises(UserError, match="would be replaced"),
        VideoWriter(tmp_path / "a.mp4", 64, 48, NTSC, audio_from=tmp_path / "a.partial.mp4"),
    ):
        pass
    assert len(read_with_opencv(tmp_path / "a.partial.mp4")) == 3
