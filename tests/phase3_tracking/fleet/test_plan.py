"""Which videos a fleet is of."""

from pathlib import Path

import pytest

from common.cli import UserError
from phase3_tracking.fleet.plan import Video, read_videos


@pytest.fixture
def clips(tmp_path, monkeypatch) -> Path:
    """clips/a.mp4, clips/b.mp4, more/a.mp4 in the working directory; nobody opens them."""
    monkeypatch.chdir(tmp_path)
    for name in ("clips/a.mp4", "clips/b.mp4", "more/a.mp4"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    return tmp_path


def found(*texts: str) -> dict[str, str]:
    """Input -> name of the result."""
    return {video.text: video.name for video in read_videos(texts, Path("out"))}


@pytest.mark.parametrize("text", ["clips", "clips/", "clips/*.mp4"])
def test_a_folder_and_a_pattern(clips, text):
    assert found(text) == {"clips/a.mp4": "a_tracked.mp4", "clips/b.mp4": "b_tracked.mp4"}


def test_results_lie_in_the_output_folder(clips):
    (video,) = read_videos(["clips/a.mp4"], Path("out"))
    assert video == Video("clips/a.mp4", "a_tracked.mp4", Path("out/a_tracked.mp4"))
    assert video.report_path == Path("out/a_tracked.json")


def test_an_input_given_twice_is_tracked_once(clips):
    assert list(found("clips/a.mp4", "clips", "clips/a.mp4")) == ["clips/a.mp4", "clips/b.mp4"]


def test_a_text_list(clips):
    """Paths are relative to its folder; files that are not there yet are told by their task."""
    Path("clips/list.txt").write_text("# good ones\n a.mp4 \n\n../more/missing.mp4\r\n")
    assert found("clips/list.txt") == {
        "clips/a.mp4": "a_tracked.mp4",
        "clips/../more/missing.mp4": "missing_tracked.mp4",
    }


def test_a_csv_list_names_results(clips):
    Path("list.csv").write_text(
        '\ufeffname,input\n,"clips/a.mp4"\nnorth/a,more/a.mp4\n,\n', "utf-8"
    )
    assert found("list.csv") == {
        "clips/a.mp4": "a_tracked.mp4",
        "more/a.mp4": "north/a_tracked.mp4",
    }


def test_one_input_under_two_names_is_tracked_twice(clips):
    Path("list.csv").write_text("input,name\nclips/a.mp4,one\nclips/a.mp4,two\n")
    names = [video.name for video in read_videos(["list.csv"], Path("out"))]
    assert names == ["one_tracked.mp4", "two_tracked.mp4"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "names no video"),
        ("input,name\n", "names no video"),
        ("video,name\na.mp4,b\n", "has no column input (but video, name)"),
        ("input,name\na.mp4,../b\n", "'../b' is no name for a result"),
        ("input,name\na.mp4,/b\n", "'/b' is no name for a result"),
        ("input,name\na.mp4,b\\c\n", "is no name for a result"),
        ("input,name\nrtsp://camera/1,b\n", "is no file or folder"),
    ],
)
def test_a_list_that_is_refused(clips, content, reason):
    Path("list.csv").write_text(content)
    with pytest.raises(UserError) as caught:
        read_videos(["list.csv"], Path("out"))
    assert reason in str(caught.value)


@pytest.mark.parametrize("text", ["0", "rtsp://user:secret@camera/1", "http://host/a.mp4"])
def test_what_is_live_is_refused(clips, text):
    with pytest.raises(UserError, match="is no file or folder") as caught:
        read_videos([text], Path("out"))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("text", ["missing.mp4", "missing/*.mp4", "missing.txt"])
def test_what_is_missing_on_the_command_line_is_refused(clips, text):
    with pytest.raises(UserError):
        read_videos([text], Path("out"))


@pytest.mark.parametrize("names", [("more/a.mp4",), ("clips/A.mp4",)])
def test_two_results_of_one_name_are_refused(clips, names):
    """Also those that are one only where a disk makes no difference of case."""
    for name in names:
        Path(name).touch()
    with pytest.raises(UserError, match=r"would be the result of clips/a\.mp4 and of ") as caught:
        read_videos(["clips/a.mp4", *names], Path("out"))
    assert "input,name" in str(caught.value)


@pytest.mark.parametrize("output", ["clips", "more/../clips"])
def test_results_do_not_come_among_the_inputs(clips, output):
    with pytest.raises(UserError, match="holds inputs"):
        read_videos(["clips/*.mp4"], Path(output))


def test_results_do_not_come_into_a_folder_of_pictures(clips):
    Path("pictures").mkdir()
    Path("pictures/1.png").touch()
    with pytest.raises(UserError, match="holds inputs"):
        read_videos(["pictures"], Path("pictures"))
    assert found("pictures") == {"pictures": "pictures_tracked.mp4"}


def test_an_input_is_known_again_by_size_and_time(clips):
    (video,) = read_videos(["clips/a.mp4"], Path("out"))
    before = video.input_facts()
    Path("clips/a.mp4").write_text("more")
    assert before is not None
    assert (before[0], video.input_facts()[0]) == (0, 4)
    Path("clips/a.mp4").unlink()
    assert video.input_facts() is None
    assert Video("a\0b", "n", Path("n")).input_facts() is None
