"""common.cli: exit statuses, one-line errors and argument types, seen from outside."""

import argparse
import io
import logging
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import cli, paths
from common.cli import UserError

PROGRAM = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from common import cli
from common.cli import UserError, log

def work():
{body}

parser = cli.ArgumentParser("A script")
parser.add_argument("--epochs", type=cli.positive_int, default=3, help="passes over the data")
parser.add_argument("--lr", type=cli.positive_float, default=None, help="learning rate")
cli.add_common_arguments(parser, output=Path({root!r}) / "outputs", output_help="folder")
args = parser.parse_args()
sys.exit(cli.run(work, args))
"""


@pytest.fixture
def write_program(tmp_path):
    """Writes a script whose work is `body`; returns its path."""

    def write(body: str) -> Path:
        script = tmp_path / "script.py"
        indented = textwrap.indent(textwrap.dedent(body), "    ")
        script.write_text(PROGRAM.format(root=str(paths.ROOT), body=indented), encoding="utf-8")
        return script

    return write


@pytest.fixture
def run_program(write_program, run_script):
    return lambda body, *arguments, **options: run_script(
        write_program(body), *arguments, **options
    )


# --- exit statuses ----------------------------------------------------------------------------


def test_done(run_program):
    done = run_program('log.info("working"); cli.finished([Path("/x/a.json")], "python b.py")')
    assert done.returncode == 0
    assert done.stdout == "working\nSaved /x/a.json\nNext:  python b.py\n"
    assert done.stderr == ""


def test_quiet_keeps_warnings_only(run_program):
    done = run_program('log.info("working"); log.warning("careful")', "--quiet")
    assert done.stdout == "careful\n"


def test_information_of_other_packages_is_left_out(run_program):
    done = run_program('import logging; logging.getLogger("other").info("chatter")')
    assert done.stdout == ""


def test_user_error_is_one_line_and_status_2(run_program, outputs_dir):
    done = run_program('raise UserError(Path("/x/a.json"), "no such\\nfile", "check the path")')
    assert done.returncode == 2
    assert done.stderr == "error: /x/a.json: no such file – check the path\n"
    assert not (outputs_dir / "crash.log").exists()


def test_debug_shows_the_traceback(run_program):
    done = run_program('raise UserError("--lr", "too high", "lower it")', "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("error: --lr: too high – lower it\n")


def test_bug_is_one_line_with_the_traceback_in_a_file(run_program, outputs_dir):
    done = run_program('raise KeyError("some\\nthing")')
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: internal error (KeyError")
    log_text = (outputs_dir / "crash.log").read_text(encoding="utf-8")
    assert "Traceback" in log_text
    assert "script.py" in log_text


def test_a_bug_tells_no_password_of_a_camera(run_program, outputs_dir):
    done = run_program(
        'raise OSError("no answer: rtsp://user:hidden@host/live")',
        *("--output", "rtsp://user:hidden@host/1?key=secret"),
    )
    assert done.returncode == 1
    told = done.stderr + (outputs_dir / "crash.log").read_text(encoding="utf-8")
    assert "hidden" not in told
    assert "secret" not in told
    assert "no answer: rtsp://host/live" in done.stderr
    assert "rtsp://host/1" in told


def test_a_misplaced_address_is_told_without_its_password(run_program):
    done = run_program("pass", "rtsp://user:hidden@host/live")
    assert done.returncode == 2
    assert done.stderr == "error: rtsp://host/live: unknown option – see --help\n"


def test_bug_is_still_told_when_the_log_cannot_be_written(run_program, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = run_program("1 / 0", env={"OUTPUTS_DIR": str(blocked / "sub")})
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: internal error (ZeroDivisionError")


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_signal_lets_the_work_be_saved(write_program, tmp_path, number, status, word):
    script = write_program("""
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & job ignores it
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            Path("saved").write_text("work")
    """)
    child = subprocess.Popen(
        [sys.executable, script], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(number)
        _, errors = child.communicate(timeout=30)
    assert child.returncode == status
    assert errors.decode() == f"{word}\n"
    assert (tmp_path / "saved").exists()


@pytest.mark.fault("C-05")
def test_work_goes_on_when_the_reader_has_gone(write_program, tmp_path):
    script = write_program("""
        for line in range(5000):
            log.info("line %d", line)
        Path("done").write_text("all of it")
    """)
    command = f"'{sys.executable}' '{script}' | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "line 0\n", "")
    assert (tmp_path / "done").exists()


def test_a_terminal_without_utf8_gets_escapes(run_program):
    done = run_program(
        'log.info("caf\\u00e9 – 犬"); raise UserError("x", "y", "z")',
        env={"LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 2
    assert done.stdout == "caf\\xe9 \\u2013 \\u72ac\n"
    assert done.stderr == "error: x: y \\u2013 z\n"


# --- arguments --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("trian", "error: --split: 'trian' is unknown – did you mean train? choose from train, 7"),
        ("zzz", "error: --split: 'zzz' is unknown – choose from train, 7"),
    ],
)
def test_a_misspelt_choice_is_answered_with_the_nearest(capsys, value, line):
    parser = cli.ArgumentParser(None)
    parser.add_argument("--split", choices=("train", 7))
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(["--split", value])
    assert (stopped.value.code, capsys.readouterr().err) == (2, f"{line}\n")
    assert parser.parse_args(["--split", "train"]).split == "train"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--epoch", "3"], "error: --epoch: unknown option – did you mean --epochs?"),
        (["--epcohs=3"], "error: --epcohs=3: unknown option – did you mean --epochs?"),
        (["--zzz"], "error: --zzz: unknown option – see --help"),
        (["stray"], "error: stray: unknown option – see --help"),
        (["--epochs", "0"], "error: --epochs: 0 is not 1 or more"),
        (["--epochs", "x"], "error: --epochs: 'x' is not a whole number"),
        (["--epochs"], "error: --epochs: expected one argument"),
        (["--lr", "nan"], "error: --lr: 'nan' is not finite"),
        (["--lr", "-1"], "error: --lr: -1 is not above 0"),
    ],
)
@pytest.mark.fault("C-02")
def test_a_bad_argument_is_one_line_and_status_2(run_program, arguments, line):
    done = run_program('Path("side effect").touch()', *arguments)
    assert (done.returncode, done.stderr, done.stdout) == (2, line + "\n", "")


def test_help_shows_defaults_and_no_folder_of_this_machine(run_program):
    done = run_program("pass", "--help")
    text = " ".join(done.stdout.split())
    assert done.returncode == 0
    assert "passes over the data (default: 3)" in text
    assert "folder (default: outputs)" in text
    assert "learning rate --" in text.replace(" common:", " --"), "None is no default to show"
    assert str(paths.ROOT) not in text


def test_the_command_line_needs_no_torch():
    program = (
        "import sys; from common import cli, paths, artifacts, environment; print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=paths.ROOT, capture_output=True, text=True, check=True
    )
    assert not {"torch", "cv2", "numpy", "onnx", "matplotlib"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("convert", "text", "value"),
    [
        (cli.positive_int, "1", 1),
        (cli.positive_int, "2147483647", 2**31 - 1),
        (cli.non_negative_int, "0", 0),
        (cli.finite_float, "-1e308", -1e308),
        (cli.positive_float, "1e-9", 1e-9),
        (cli.non_negative_float, "0", 0.0),
        (cli.fraction, "0", 0.0),
        (cli.fraction, "1", 1.0),
        (cli.positive_int_list, "4, 1,2,1", [1, 2, 4]),
        (cli.names, "person, traffic light,", ["person", "traffic light"]),
    ],
)
def test_accepted_values(convert, text, value):
    assert convert(text) == value


@pytest.mark.parametrize(
    ("convert", "text"),
    [
        (cli.positive_int, "0"),
        (cli.positive_int, "1.5"),
        (cli.positive_int, ""),
        (cli.positive_int, "2147483648"),
        (cli.positive_int, "1" + "0" * 400),
        (cli.positive_int, "9" * 5000),
        (cli.non_negative_int, "-1"),
        (cli.non_negative_int, "2147483648"),
        (cli.finite_float, "-inf"),
        (cli.finite_float, "nan"),
        (cli.positive_float, "0"),
        (cli.positive_float, "inf"),
        (cli.non_negative_float, "-0.1"),
        (cli.non_negative_float, "nan"),
        (cli.fraction, "1.01"),
        (cli.fraction, "-0.01"),
        (cli.positive_int_list, ""),
        (cli.positive_int_list, "1,,2"),
        (cli.positive_int_list, "0,1"),
        (cli.positive_int_list, "a,b"),
        (cli.names, ""),
        (cli.names, " , "),
    ],
)
def test_refused_values(convert, text):
    with pytest.raises(argparse.ArgumentTypeError):
        convert(text)


@given(st.text(max_size=12))
def test_a_type_gives_a_value_or_one_kind_of_error(text):
    for convert in (cli.positive_int, cli.fraction, cli.positive_float, cli.positive_int_list):
        try:
            convert(text)
        except argparse.ArgumentTypeError:
            continue


# --- progress ---------------------------------------------------------------------------------


@pytest.mark.fault("C-04")
def test_progress_passes_every_item_on(caplog, monkeypatch):
    monkeypatch.setattr(cli, "PROGRESS_INTERVAL_S", 0.0)
    with caplog.at_level(logging.INFO, logger=cli.log.name):
        assert list(cli.progress(iter("abc"), total=3, label="frames")) == ["a", "b", "c"]
    assert caplog.messages == ["frames: 0 of 3", "frames: 1 of 3", "frames: 2 of 3"]


def test_progress_shows_a_status_in_its_lines_and_beside_its_bar(caplog, monkeypatch):
    monkeypatch.setattr(cli, "PROGRESS_INTERVAL_S", 0.0)
    with caplog.at_level("INFO", logger="detection"):
        list(cli.progress(range(2), total=2, label="steps", status=lambda: "loss 0.5"))
    assert caplog.messages == ["steps: 0 of 2, loss 0.5", "steps: 1 of 2, loss 0.5"]
    shown = io.StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(cli, "STATUS_INTERVAL_S", 0.0)
    with caplog.at_level("INFO", logger="detection"):
        list(cli.progress(range(2), total=2, label="steps", status=lambda: "loss 0.5"))
    assert "steps" in shown.getvalue()
    assert "loss 0.5" in shown.getvalue()


def test_quiet_progress_says_nothing(caplog):
    with caplog.at_level(logging.WARNING, logger=cli.log.name):
        assert list(cli.progress(range(3), total=3, label="frames")) == [0, 1, 2]
    assert caplog.messages == []


def test_the_previous_signal_handler_returns():
    before = signal.getsignal(signal.SIGTERM)
    level = cli.log.level
    try:
        assert cli.run(lambda: None, argparse.Namespace(quiet=True, debug=False)) == 0
    finally:
        cli.log.setLevel(level)
    assert signal.getsignal(signal.SIGTERM) is before


def test_where_is_shown_relative_to_the_repository():
    error = UserError(paths.ROOT / "outputs" / "a.json", "is missing", "make it")
    assert str(error) == f"outputs{os.sep}a.json: is missing – make it"


def test_a_value_of_3000_characters_is_not_repeated_in_full(capsys):
    parser = cli.ArgumentParser("a script")
    parser.add_argument("--steps", type=cli.positive_int)
    with pytest.raises(SystemExit):
        parser.parse_args(["--steps", "x" * 3000])
    assert capsys.readouterr().err == f"error: --steps: '{'x' * 199}… is not a whole number\n"


def test_a_user_error_is_the_same_in_another_process():
    error = UserError(Path("a.json"), "is missing", "make it")
    other = pickle.loads(pickle.dumps(error))
    assert (str(other), vars(other)) == (str(error), vars(error))


def test_a_list_in_a_help_text_breaks_behind_its_commas(monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    names = [f"a_format_{number}" for number in range(12)]
    parser = cli.ArgumentParser("a script")
    parser.add_argument("--formats", default=",".join(names), help=f"of {', '.join(names)}")
    lines = parser.format_help().splitlines()
    assert max(map(len, lines)) <= 70
    text = " ".join(line.strip() for line in lines).replace(", a_", ",a_")
    assert f"of {','.join(names)} (default: {','.join(names)})" in text
