"""What the four notebooks share: running scripts, reading their reports, showing results inline.

    demo = Demo("phase1")
    demo.run("phase1_training/train.py", "--epochs", 4)  # streams its output, raises if it fails
    demo.report("training")["best"]["map_50"]
    show_picture(demo.metrics / "training_curves.png", "Losses and mAP by epoch")

Every notebook works in a folder of its own, outputs/notebooks/phaseN, so a person's own models and
reports are never replaced. OUTPUTS_DIR moves that as it moves everything else.
"""

import io
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from IPython.display import Image, Markdown, Video, display

from common import artifacts, paths

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Jupyter drops what a kernel sends beyond 1 MB/s, over three seconds, and base64 adds a third.
MAX_VIDEO_BYTES = 1_800_000
MAX_PICTURE_BYTES, MAX_PICTURE_WIDTH = 300_000, 1400


class ScriptError(RuntimeError):
    """A script did not end with exit status 0. Jupyter shows its text, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


def quick_mode(cuda_available: bool) -> bool:
    """Whether to work at a size for two CPU cores: without CUDA, unless DEMO_QUICK says 1 or 0.

    Raises:
        ValueError: DEMO_QUICK is neither.
    """
    wanted = os.environ.get("DEMO_QUICK", "")
    if wanted not in ("", "0", "1"):
        raise ValueError(f"DEMO_QUICK={wanted}: set it to 1 or 0, or leave it out")
    return wanted == "1" if wanted else not cuda_available


@dataclass(frozen=True)
class Demo:
    """The place where one notebook works, and the scripts it runs there.

    Args:
        name: "phase1" to "phase4".
    """

    name: str

    @property
    def outputs(self) -> Path:
        return paths.OUTPUTS / "notebooks" / self.name

    @property
    def metrics(self) -> Path:
        return self.outputs / "metrics"

    @property
    def best_model(self) -> Path:
        return self.outputs / "models" / "best_model.pth"

    @property
    def data(self) -> Path:
        return self.outputs / "demo"

    def report(self, name: str) -> dict[str, Any]:
        """What is in metrics/NAME.json; raises UserError where it is missing."""
        return artifacts.read_json(self.metrics / f"{name}.json")

    def run(self, script: str | Path, *arguments: object) -> None:
        """Runs a script of the project as a shell would, and shows its output as it comes.

        The command stands above the output. "Next:" lines are left out: what comes next is the
        next cell.

        Args:
            script: relative to the repository, such as "phase1_training/train.py", or anywhere.

        Raises:
            ScriptError: its exit status is not 0.
        """
        words = [str(argument) for argument in arguments]
        shown = [paths.display(word) if Path(word).is_absolute() else word for word in words]
        print("$", shlex.join(["python", paths.display(paths.ROOT / script), *shown]), flush=True)
        process = subprocess.Popen(
            [sys.executable, str(paths.ROOT / script), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=paths.ROOT,
            env={
                **os.environ,
                "OUTPUTS_DIR": str(self.outputs),
                "PYTHONIOENCODING": "utf-8",
                "MPLBACKEND": "Agg",  # the kernel's own draws into the notebook
            },
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        with process:
            last_line = _finish(process)
        if process.returncode != 0:
            name = paths.display(paths.ROOT / script)
            raise ScriptError(f"{name} ended with exit status {process.returncode}: {last_line}")


def _finish(process: subprocess.Popen[str]) -> str:
    """Prints what the process prints until it has ended; the last line of it."""
    try:
        return _print_lines(process)
    except KeyboardInterrupt:  # Jupyter interrupts the script too, which saves its work and ends
        _print_lines(process)
        raise
    finally:
        process.terminate()  # only a second interrupt finds it still at work


def _print_lines(process: subprocess.Popen[str]) -> str:
    last_line = ""
    for line in process.stdout or ():
        if line.startswith("Next:"):
            continue
        print(line, end="", flush=True)
        last_line = line.strip() or last_line
    process.wait()
    return last_line or "it printed nothing"


# --- a detector for the later phases ----------------------------------------------------------

SMALL_DATA = ("--train-images", 96, "--val-images", 16, "--video-frames", 90, "--overwrite")
SMALL_RECIPE = ("--batch-size", 2, "--lr", 0.002, "--warmup-steps", 20)


def trained_detector(demo: Demo, epochs: int) -> Demo:
    """Where the detector to go on with is: that of phase 1's notebook, or one made in `demo`.

    Args:
        epochs: of the small training where neither has one yet.

    Returns:
        A Demo with a `best_model` and the `data` it was trained on.
    """
    for made in (Demo("phase1"), demo):
        if made.best_model.is_file() and made.data.is_dir():
            print(f"Taking the detector and the data in {paths.display(made.outputs)}")
            return made
    print("phase1_demo.ipynb has left no detector yet, so a small one is trained here.")
    demo.run("phase1_training/make_demo_data.py", *SMALL_DATA)
    demo.run("phase1_training/train.py", "--epochs", epochs, *SMALL_RECIPE, "--overwrite")
    return demo


# --- showing ----------------------------------------------------------------------------------


def show_picture(path: Path, description: str) -> None:
    """Shows a picture, as a JPEG of moderate width where the file is large.

    Args:
        description: for those who cannot see it.
    """
    from PIL import Image as PillowImage

    content, kind = Path(path).read_bytes(), Path(path).suffix[1:]
    if len(content) > MAX_PICTURE_BYTES:
        with PillowImage.open(path) as picture:
            smaller = picture.convert("RGB")
        smaller.thumbnail((MAX_PICTURE_WIDTH, 4 * MAX_PICTURE_WIDTH))
        buffer = io.BytesIO()
        smaller.save(buffer, "JPEG", quality=88)
        content, kind = buffer.getvalue(), "jpeg"
    display(Image(content, format=kind, alt=description))


def show_figure(figure: "Figure", description: str) -> None:
    """Shows a matplotlib figure, whichever backend is in use."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    display(Image(buffer.getvalue(), format="png", alt=description))


def show_video(path: Path) -> None:
    """Plays an H.264 video inside of the notebook: as much as Jupyter lets through at a time."""
    content = Path(path).read_bytes()
    if len(content) > MAX_VIDEO_BYTES:
        content = _beginning(path)
        print(f"The beginning; the whole video is {paths.display(path)}")
    attributes = 'controls loop muted playsinline style="max-width: 100%"'
    display(Video(content, embed=True, mimetype="video/mp4", html_attributes=attributes))


def _beginning(path: Path) -> bytes:
    """The first packets of a video as an mp4 of at most MAX_VIDEO_BYTES, not encoded anew."""
    import av

    buffer, size = io.BytesIO(), 0
    with av.open(str(path)) as source, av.open(buffer, "w", format="mp4") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            size += packet.size
            if packet.dts is None or size > 0.95 * MAX_VIDEO_BYTES:  # the index needs some, too
                break
            packet.stream = stream
            target.mux(packet)
    return buffer.getvalue()


def show_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Shows a table; floats with three decimals, None as a dash."""
    lines = [head, ["---"] * len(head), *rows]
    display(Markdown("\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)))


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value).replace("|", "\\|")
