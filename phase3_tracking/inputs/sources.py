"""What a text given to --input stands for: a file, a folder, a camera or an address.

for text in expand_inputs(["street.mp4", "clips/*.mp4", "pictures/", "0"]):
    with open_source(text, SourceOptions(frame_skip=2)) as source:
        ...
"""

import contextlib
import glob
import queue
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from common import paths
from common.addresses import ADDRESS, without_secrets
from common.cli import UserError, log
from phase3_tracking.inputs.frame_source import POLL_S, BufferedSource, Decoder, FrameSource
from phase3_tracking.inputs.image_folder import ImageFolder, natural_order, pictures_in
from phase3_tracking.inputs.live_source import Camera, NetworkStream
from phase3_tracking.inputs.source_options import SourceOptions
from phase3_tracking.inputs.video_file import VideoFile

VIDEO_SUFFIXES = {
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts",
    ".wmv", ".flv", ".ogv", ".3gp", ".mxf", ".h264", ".264", ".h265", ".265", ".hevc",
}  # fmt: skip
NETWORK_ADDRESS = re.compile(r"(rtsps?|https?)://", re.IGNORECASE)


def open_source(
    text: str | Path,
    options: SourceOptions | None = None,
    *,
    should_stop: Callable[[], bool] | None = None,
) -> FrameSource:
    """Opens a video file, a folder of pictures, a camera ("0") or an rtsp://, http(s):// address.

    Args:
        should_stop: asked while no frame comes; True ends the iteration.

    Raises:
        UserError: naming the input, when it cannot be read or has no frame to give.
        KeyboardInterrupt: `should_stop` said so before there was a frame.
    """
    options, stop = options or SourceOptions(), threading.Event()

    def opened() -> FrameSource:
        decoder = _decoder(str(text), options, stop)
        return BufferedSource(decoder, options, should_stop=should_stop, stop=stop)

    if should_stop is None or not NETWORK_ADDRESS.match(str(text)):
        return opened()
    return _watched(opened, should_stop, stop)


def _watched(
    opened: Callable[[], FrameSource], should_stop: Callable[[], bool], stop: threading.Event
) -> FrameSource:
    """What `opened` returns or raises, unless it is to stop: FFmpeg, which waits for a network,
    would not let the caller notice that. Its thread is then left behind, and closes what it opens.
    """
    results: queue.Queue[FrameSource | BaseException] = queue.Queue()

    def work() -> None:
        try:
            results.put(opened())
        except BaseException as error:  # noqa: BLE001 – raised again in the caller's thread
            results.put(error)

    threading.Thread(target=work, name="open", daemon=True).start()
    try:
        while True:
            with contextlib.suppress(queue.Empty):
                result = results.get(timeout=POLL_S)
                break
            if should_stop():
                raise KeyboardInterrupt
    except BaseException:  # raised by a signal's handler, too
        stop.set()
        raise
    if isinstance(result, BaseException):
        raise result
    return result


def _decoder(text: str, options: SourceOptions, stop: threading.Event) -> Decoder:
    if _is_camera(text):
        return Camera(int(text), fps=options.fps, stop=stop)
    if NETWORK_ADDRESS.match(text):
        return NetworkStream(text, fps=options.fps, limits=options.network, stop=stop)
    if not text.strip():
        raise UserError("--input", "is empty", "give a video file")
    if "\0" in text:
        raise UserError("--input", "holds a NUL byte, which no path has", "give a video file")
    path = Path(text)
    if ADDRESS.match(text) and not path.exists():
        remedy = "give rtsp://, http:// or https://"
        raise UserError(without_secrets(text), "no address of a known kind", remedy)
    if path.is_dir():
        return ImageFolder(path, fps=options.fps)
    return VideoFile(path, fps=options.fps)


def demo_video() -> str:
    """The video to take when none was asked for.

    Raises:
        UserError: it has not been made yet.
    """
    log.info("Video: %s", paths.display(paths.DEMO_VIDEO))
    if not paths.DEMO_VIDEO.is_file():
        remedy = "make it with: python phase1_training/make_demo_data.py"
        raise UserError(paths.DEMO_VIDEO, "no such file", remedy)
    return str(paths.DEMO_VIDEO)


def expand_inputs(texts: Sequence[str]) -> list[str]:
    """Replaces patterns (`clips/*.mp4`) and folders of videos by what is in them.

    Files come in the natural order of their names, each input once. Folders of pictures, cameras
    and addresses stay as they are, and so does a path that does not exist.

    Raises:
        UserError: a pattern that nothing matches, or a folder with neither videos nor pictures,
            or with both.
    """
    found: dict[str, None] = {}
    for text in texts:
        for one in _expanded(text):
            found[one] = None
    return list(found)


def _expanded(text: str) -> list[str]:
    if _is_camera(text) or ADDRESS.match(text) or not text or "\0" in text:
        return [text]
    path = Path(text)
    if path.is_dir():
        return _of_folder(path)
    if not path.exists() and glob.has_magic(text):
        matches = sorted(glob.glob(text), key=natural_order)
        if not matches:
            raise UserError(text, "nothing matches this pattern", "check the path")
        return [one for match in matches for one in _expanded(match)]
    return [text]


def _of_folder(folder: Path) -> list[str]:
    """The videos in it, or the folder itself when it holds pictures."""
    pictures = pictures_in(folder)
    videos = [
        file
        for file in folder.iterdir()
        if file.suffix.lower() in VIDEO_SUFFIXES and not file.name.startswith(".")
    ]
    if pictures and videos:
        what = f"holds {len(videos)} videos and {len(pictures)} pictures"
        raise UserError(folder, what, "give a pattern such as FOLDER/*.mp4, or separate them")
    if not pictures and not videos:
        raise UserError(folder, "holds neither videos nor pictures", "give another folder")
    return [str(file) for file in sorted(videos, key=natural_order)] or [str(folder)]


def check_exists(text: str) -> None:
    """Refuses a path that leads nowhere, before a model is loaded for it.

    Raises:
        UserError: naming the path.
    """
    is_path = not _is_camera(text) and not ADDRESS.match(text) and "\0" not in text
    if is_path and text.strip() and not Path(text).exists():
        raise UserError(Path(text), "no such file", "check the path")


def output_stem(text: str) -> str:
    """A file name, without suffix, for the results of an input."""
    if _is_camera(text):
        return f"camera_{int(text)}"
    if ADDRESS.match(text):
        _, _, place = without_secrets(text).partition("://")
        host, slash, rest = place.partition("/")
        path = Path(slash + rest)
        host = re.sub(r":\d*$", "", host).lower()
        plain = f"{host}{path.with_suffix('') if path.name else ''}"
        return re.sub(r"[^\w.-]+", "_", plain).strip("_.") or "stream"
    path = Path(text).resolve()
    return path.name if path.is_dir() else path.stem


def _is_camera(text: str) -> bool:
    return text.isascii() and text.isdecimal()
