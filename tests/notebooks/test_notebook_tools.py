"""The helper of the notebooks: scripts that fail are told, results fit through Jupyter."""

import io
import math
import subprocess
import sys
import textwrap
from fractions import Fraction

import av
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from common import paths
from common.cli import UserError
from common.video import VideoWriter
from notebooks import notebook_tools
from notebooks.notebook_tools import Demo, ScriptError, quick_mode


@pytest.fixture
def demo(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "OUTPUTS", tmp_path / "outputs")
    return Demo("phase1")


@pytest.fixture
def script(tmp_path):
    """Makes a script of these lines, which know `sys` and `os`."""

    def write(text):
        path = tmp_path / "script.py"
        path.write_text("import os, sys\n" + textwrap.dedent(text), encoding="utf-8")
        return path

    return write


@pytest.fixture
def shown(monkeypatch):
    """What was displayed."""
    outputs = []
    monkeypatch.setattr(notebook_tools, "display", outputs.append)
    return outputs


# --- sizes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "cuda", "quick"),
    [
        (None, True, False),
        (None, False, True),
        ("", False, True),
        ("1", True, True),
        ("0", False, False),
    ],
)
def test_the_size_follows_cuda_unless_a_person_decides(variable, cuda, quick, monkeypatch):
    monkeypatch.delenv("DEMO_QUICK", raising=False)
    if variable is not None:
        monkeypatch.setenv("DEMO_QUICK", variable)
    assert quick_mode(cuda) is quick


def test_another_value_is_no_guess(monkeypatch):
    monkeypatch.setenv("DEMO_QUICK", "yes")
    with pytest.raises(ValueError, match="DEMO_QUICK=yes"):
        quick_mode(False)


# --- running scripts --------------------------------------------------------------------------


def test_a_notebook_works_in_a_folder_of_its_own(demo, tmp_path):
    assert demo.outputs == tmp_path / "outputs" / "notebooks" / "phase1"
    assert demo.best_model == demo.outputs / "models" / "best_model.pth"
    assert demo.data == demo.outputs / "demo"


def test_a_script_gets_its_arguments_and_the_folder(demo, script, capsys):
    path = script("print(sys.argv[1:], os.environ['OUTPUTS_DIR'], os.environ['MPLBACKEND'])")
    demo.run(path, "--epochs", 3, "--name", "Größe ✓")
    command, output = capsys.readouterr().out.splitlines()
    assert command == f"$ python {path} --epochs 3 --name 'Größe ✓'"
    assert output == f"['--epochs', '3', '--name', 'Größe ✓'] {demo.outputs} Agg"


def test_the_command_is_shown_as_a_person_would_type_it(demo, capsys):
    demo.run("phase1_training/train.py", "--help", paths.ROOT / "common")
    assert capsys.readouterr().out.startswith("$ python phase1_training/train.py --help common\n")


def test_both_streams_come_in_order_and_without_the_next_command(demo, script, capsys):
    demo.run(
        script(
            """
            print("first", flush=True)
            print("second", file=sys.stderr, flush=True)
            print("Next:  python phase2_optimization/benchmark_inference.py")
            print("third")
            """
        )
    )
    captured = capsys.readouterr()
    assert captured.out.splitlines()[1:] == ["first", "second", "third"]
    assert captured.err == ""


def test_output_is_shown_while_the_script_runs(demo, script, monkeypatch, tmp_path):
    """The script ends only after its first line has been printed here."""
    seen = tmp_path / "seen"
    path = script(
        f"""
        import pathlib, time
        print("ready", flush=True)
        began = time.monotonic()
        while not pathlib.Path({str(seen)!r}).exists():
            assert time.monotonic() - began < 60, "nobody saw the line"
            time.sleep(0.01)
        """
    )

    def look(*words, **_):
        if words[0] == "ready\n":
            seen.touch()

    monkeypatch.setattr("builtins.print", look)
    demo.run(path)
    assert seen.exists()


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("print('fine'); sys.exit('error: x.jpg: cannot be decoded – replace it')", "status 1: er"),
        ("sys.exit(2)", "ended with exit status 2: it printed nothing"),
        ("print('last words\\n'); os.kill(os.getpid(), 9)", "exit status -9: last words"),
    ],
)
def test_a_script_that_fails_is_one_clear_error(demo, script, lines, told):
    with pytest.raises(ScriptError) as caught:
        demo.run(script(lines))
    assert told in str(caught.value)
    assert caught.value._render_traceback_() == [f"ScriptError: {caught.value}"]


def test_a_script_that_is_not_there_is_an_error(demo):
    with pytest.raises(ScriptError, match=r"no_such\.py"):
        demo.run("phase1_training/no_such.py")


def test_an_interrupt_waits_for_the_script_to_save_its_work(demo, script, monkeypatch, tmp_path):
    """As in Jupyter, which signals kernel and script: the script catches it and ends."""
    path = script(
        f"""
        import time
        print("working", flush=True)
        time.sleep(1)
        open({str(tmp_path / "saved")!r}, "w").close()
        print("saved", flush=True)
        """
    )
    printed = []

    def interrupted(*words, **_):
        printed.append(words[0])
        if words[0] == "working\n":
            raise KeyboardInterrupt

    monkeypatch.setattr("builtins.print", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.run(path)
    assert printed[-1] == "saved\n"
    assert (tmp_path / "saved").exists()


def test_a_second_interrupt_ends_the_script(demo, script, monkeypatch):
    def interrupted(*words, **_):
        if words[0].startswith("line"):
            raise KeyboardInterrupt

    monkeypatch.setattr("builtins.print", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.run(
            script(
                """
                import time
                print("line 1", flush=True)
                print("line 2", flush=True)
                time.sleep(3600)
                """
            )
        )


def test_reports_are_read_from_the_folder(demo):
    demo.metrics.mkdir(parents=True)
    (demo.metrics / "training.json").write_text('{"best": {"map_50": 0.5}}')
    assert demo.report("training") == {"best": {"map_50": 0.5}}
    with pytest.raises(UserError, match="no such file"):
        demo.report("profile")


# --- the detector of the later phases ---------------------------------------------------------


def make_detector(demo):
    for folder in (demo.data, demo.best_model.parent):
        folder.mkdir(parents=True)
    demo.best_model.touch()


@pytest.fixture
def commands(monkeypatch):
    """Scripts that were to be run; none is."""
    ran = []
    monkeypatch.setattr(Demo, "run", lambda self, *words: ran.append((self.name, *words)))
    return ran


def test_the_detector_of_phase_1_is_taken(demo, commands, capsys):
    make_detector(Demo("phase3"))
    make_detector(demo)
    assert notebook_tools.trained_detector(Demo("phase3"), 2) == demo
    assert commands == []
    assert str(demo.outputs) in capsys.readouterr().out


def test_else_that_of_an_earlier_run(demo, commands):
    make_detector(Demo("phase3"))
    assert notebook_tools.trained_detector(Demo("phase3"), 2) == Demo("phase3")
    assert commands == []


def test_else_one_is_trained_and_that_is_said(demo, commands, capsys):
    demo.data.mkdir(parents=True)  # data without a model: the run was stopped
    assert notebook_tools.trained_detector(Demo("phase3"), 2) == Demo("phase3")
    assert [words[:2] for words in commands] == [
        ("phase3", "phase1_training/make_demo_data.py"),
        ("phase3", "phase1_training/train.py"),
    ]
    assert "--overwrite" in commands[0]
    assert commands[1][2:4] == ("--epochs", 2)
    assert "phase1_demo.ipynb" in capsys.readouterr().out


# --- showing ----------------------------------------------------------------------------------


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_small_picture_is_shown_as_it_is(tmp_path, shown):
    path = tmp_path / "small.png"
    Image.fromarray(noise(20, 30)).save(path)
    notebook_tools.show_picture(path, "noise")
    assert shown[0].data == path.read_bytes()
    assert shown[0].alt == "noise"


def test_a_large_picture_becomes_a_smaller_jpeg(tmp_path, shown):
    path = tmp_path / "large.png"
    Image.fromarray(noise(700, 2100)).save(path)
    notebook_tools.show_picture(path, "noise")
    with Image.open(io.BytesIO(shown[0].data)) as picture:
        assert (picture.format, picture.size) == ("JPEG", (1400, 467))
    assert len(shown[0].data) < path.stat().st_size / 3
    assert shown[0].format == "jpeg"


def test_a_figure_is_shown_whatever_the_backend(shown):
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([1, 2])
    notebook_tools.show_figure(figure, "a line")
    with Image.open(io.BytesIO(shown[0].data)) as picture:
        assert picture.size == (200, 100)
    assert shown[0].alt == "a line"


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "video.mp4"
    with VideoWriter(path, 320, 240, Fraction(10)) as writer:
        for seed in range(30):
            frame = np.random.default_rng(seed).integers(0, 256, (240, 320, 3), dtype=np.uint8)
            writer.write(frame)
    return path


def frames_of(content):
    with av.open(io.BytesIO(content)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        return [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]


def test_a_video_plays_inside_of_the_notebook(video, shown):
    notebook_tools.show_video(video)
    html = shown[0]._repr_html_()
    assert "controls" in html
    assert 'src="data:video/mp4;base64,' in html
    assert len(frames_of(shown[0].data)) == 30


def test_of_a_long_video_the_beginning_is_shown_and_that_is_said(video, shown, monkeypatch, capsys):
    limit = video.stat().st_size // 2
    monkeypatch.setattr(notebook_tools, "MAX_VIDEO_BYTES", limit)
    notebook_tools.show_video(video)
    assert limit / 2 < len(shown[0].data) <= limit
    some, every = frames_of(shown[0].data), frames_of(video.read_bytes())
    assert 10 <= len(some) < 20
    sure = len(some) - 3  # the last ones may lean on frames that were cut off
    assert all(np.array_equal(a, b) for a, b in zip(some[:sure], every, strict=False))
    assert str(video) in capsys.readouterr().out


def test_a_video_passes_jupyters_limit():
    """A Jupyter server drops what comes faster, averaged over its window."""
    from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection

    names = ("iopub_data_rate_limit", "rate_limit_window")
    traits = ZMQChannelsWebsocketConnection.class_traits()
    limit = math.prod(traits[name].default_value for name in names)
    assert limit > 0
    in_base64 = notebook_tools.MAX_VIDEO_BYTES * 4 / 3
    assert in_base64 < limit


def test_a_table_is_markdown(shown):
    rows = [["map", 0.47], ["a|b", None], ["n", 3]]
    notebook_tools.show_table(["what", "value"], rows)
    assert shown[0].data.splitlines() == [
        "| what | value |",
        "| --- | --- |",
        "| map | 0.470 |",
        "| a\\|b | – |",
        "| n | 3 |",
    ]


def test_the_helper_does_not_bring_torch():
    """A notebook's first cell answers before that."""
    code = "import sys, notebooks.notebook_tools; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=paths.ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
