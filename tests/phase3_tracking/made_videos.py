"""Videos of every kind, made on the spot; frame `i` can be told from its neighbours by `number_in`.

The pictures are dark with a bright bar whose left side is at `2 * i` pixels, wrapped.
"""

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from phase3_tracking.inputs.frame_source import Frame, FrameSource
from phase3_tracking.inputs.source_options import SourceOptions
from phase3_tracking.inputs.sources import open_source

WIDTH, HEIGHT, STEP = 128, 72, 2
FAST_START = {"movflags": "+faststart"}
NOISE = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)


def picture(index: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Upper half: the bar. Lower half: dark on the left, brighter on the right."""
    image = np.full((height, width, 3), 40, np.uint8)
    left = index * STEP % max(1, width - 8)
    image[: height // 2, left : left + 8] = (30, 220, 220)
    image[height // 2 :, width // 2 :] = 90
    return image


def number_in(image: np.ndarray) -> int:
    """The index of a `picture`, below (width - 8) / STEP, from its pixels."""
    columns = image[: image.shape[0] // 2, :, 1].astype(float).mean(axis=0)
    return round(float(np.flatnonzero(columns > 130)[0]) / STEP)


def encode(
    path: Path,
    count: int = 20,
    *,
    codec: Any = "libx264",
    pix_fmt: str = "yuv420p",
    fps: Fraction | int = 10,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    times: Sequence[Fraction | int] | None = None,
    time_base: Fraction | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    audio: Any = None,
    audio_s: float | None = None,
    images: Sequence[np.ndarray] | None = None,
) -> Path:
    """Writes `count` pictures; the suffix chooses the container.

    Args:
        times: of the frames in units of `time_base`; None spaces them evenly.
        audio: name of an audio encoder; its track is a tone of `audio_s` seconds, None as long as
            the video.
    """
    width, height = size
    images = images or [picture(index, width, height) for index in range(count)]
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=Fraction(fps), options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        if pix_fmt == "gray":
            stream.codec_context.color_range = 2  # full, as the conversion to it makes it
        base = time_base or 1 / Fraction(fps)
        stream.codec_context.time_base = base
        sound = container.add_stream(audio, rate=48000, layout="stereo") if audio else None
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="bgr24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = int(times[index]) if times else index, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            length = audio_s if audio_s is not None else len(images) / float(fps)
            add_tone(container, sound, length)
    return path


def add_tone(container: Any, stream: Any, seconds: float) -> None:
    """A 440 Hz tone that grows louder each second, so that a shift in time can be heard."""
    rate, chunk = 48000, 960
    kind = "s16" if stream.codec_context.name.startswith(("pcm", "flac")) else "fltp"
    for start in range(0, int(seconds * rate), chunk):
        t = (start + np.arange(chunk)) / rate
        wave = (0.1 + 0.08 * np.floor(t)) * np.sin(2 * np.pi * 440 * t)
        if kind == "s16":
            samples = np.repeat((wave * 32767).astype(np.int16), 2)[None]
        else:
            samples = np.stack([wave, wave]).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format=kind, layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def rotate(path: Path, degrees: int) -> Path:
    """Sets the display matrix of an mp4 or mov, as a phone does: clockwise degrees."""
    content = bytearray(path.read_bytes())
    matrix = {
        0: (1, 0, 0, 1),
        90: (0, 1, -1, 0),
        180: (-1, 0, 0, -1),
        270: (0, -1, 1, 0),
    }[degrees]
    a, b, c, d = (value << 16 for value in matrix)
    at = content.index(b"tkhd") + 44  # after the fixed fields of a version 0 header
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def cut(path: Path, share: float, name: str) -> Path:
    """The first `share` of a file's bytes, as the file `name` beside it."""
    content = path.read_bytes()
    shorter = path.with_name(name)
    shorter.write_bytes(content[: int(len(content) * share)])
    return shorter


def rot(path: Path, name: str, first: float = 0.4, last: float = 0.6) -> Path:
    """A copy whose bytes between two shares of it are changed here and there."""
    content = bytearray(path.read_bytes())
    generator = np.random.default_rng(0)
    for position in generator.integers(int(first * len(content)), int(last * len(content)), 60):
        content[position] ^= 0xFF
    rotten = path.with_name(name)
    rotten.write_bytes(content)
    return rotten


def read(path: Path, **options) -> tuple[list[Frame], FrameSource]:
    with open_source(path, SourceOptions(**options)) as source:
        return list(source), source


def noisy_video(path: Path, count: int = 60, **more) -> Path:
    """Much data in every frame, so that damage hits some of them."""
    images = [np.roll(NOISE, 3 * index, axis=1) for index in range(count)]
    return encode(path, images=images, options={"g": "10", "crf": "30"}, **more)
