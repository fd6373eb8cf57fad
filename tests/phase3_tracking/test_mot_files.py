"""MOTChallenge text files: everything that must be accepted, and one line for everything else."""

import numpy as np
import pytest

from common.cli import UserError
from phase3_tracking import mot_files
from phase3_tracking.results.track_formats import MotFormat, box_texts


def written(folder, text: str | bytes):
    path = folder / "boxes.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_p3_51_columns_and_any_order(tmp_path):
    path = written(tmp_path, "2,7,10,20,30,40,0.5,3,1\n1,8,1,2,3,4,1,1,1\n2,6,0,0,5,5,1,2,1\n")
    boxes = mot_files.read(path, unique_ids=True)
    assert boxes.frames.tolist() == [1, 2, 2]
    assert boxes.ids.tolist() == [8, 7, 6]  # within a frame as in the file
    assert boxes.boxes_xyxy[1].tolist() == [10, 20, 40, 60]
    assert boxes.confidences.tolist() == [1, 0.5, 1]
    assert boxes.classes.tolist() == [1, 3, 2]


@pytest.mark.parametrize(
    "text",
    [
        "1,1,0,0,5,5\n",
        "1,1,0,0,5,5",
        "1,1,0,0,5,5,1,-1,-1,-1,17,some text\n",
        "\ufeff1, 1, 0, 0, 5, 5, 1\r\n\r\n",
        "1.0,1.0,0,0,5,5,1\n\n  \n",
        "1,1,0,0,5,5,1,2.5,3.5,0\n",  # MOT15 with world coordinates
    ],
)
def test_p3_51_variants_of_one_box_without_a_class(tmp_path, text):
    boxes = mot_files.read(written(tmp_path, text), unique_ids=True)
    assert boxes.boxes_xyxy.tolist() == [[0, 0, 5, 5]]
    assert boxes.classes.tolist() == [mot_files.NO_CLASS]
    assert boxes.confidences.tolist() == [1]


def test_p3_51_rows_of_different_length(tmp_path):
    boxes = mot_files.read(
        written(tmp_path, "1,1,0,0,5,5\n2,1,0,0,5,5,0.25,4,1\n"), unique_ids=True
    )
    assert boxes.classes.tolist() == [-1, 4]
    assert boxes.confidences.tolist() == [1, 0.25]


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_p3_52_an_empty_file_holds_no_boxes(tmp_path, text):
    boxes = mot_files.read(written(tmp_path, text), unique_ids=True)
    assert len(boxes) == 0
    assert boxes.boxes_xyxy.shape == (0, 4)
    assert boxes.detections(1).shape == (0, 6)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1,1,0,0,5", "5 columns"),
        ("1;1;0;0;5;5", "not numbers"),
        ("frame,id,x,y,w,h", "not numbers"),
        ("1,1,0,0,5,", "not numbers"),
        ("1,1,0,nan,5,5", "not finite"),
        ("1,1,0,0,inf,5", "not finite"),
        ("1,1,0,0,1e200,5", "too large"),
        ("1,1,-1e200,0,5,5", "too large"),
        ("0,1,0,0,5,5", "frame 0"),
        ("-3,1,0,0,5,5", "frame -3"),
        ("1.5,1,0,0,5,5", "frame 1.5"),
        ("1e300,1,0,0,5,5", "frame 1e"),
        ("1,1.5,0,0,5,5", "id 1.5"),
        ("1,1e300,0,0,5,5", "id 1e"),
        ("2,7,9,9,5,5", "id 7 occurs twice in frame 2 (first in line 1)"),
    ],
)
def test_p3_51_a_bad_line_is_named(tmp_path, line, reason):
    path = written(tmp_path, f"2,7,0,0,5,5\n\n1,7,0,0,5,5\n{line}\n1,2,0,0,5,5\n")
    with pytest.raises(UserError) as error:
        mot_files.read(path, unique_ids=True)
    assert f"{path}, line 4: " in str(error.value)
    assert reason in str(error.value)


def test_detections_need_no_ids(tmp_path):
    boxes = mot_files.read(
        written(tmp_path, "1,-1,0,0,5,5,1\n1,-1,9,0,5,5,0.5\n"), unique_ids=False
    )
    assert boxes.detections(1).tolist() == [[0, 0, 5, 5, 1, -1], [9, 0, 14, 5, 0.5, -1]]
    assert boxes.detections(2).shape == (0, 6)


def test_p3_51_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        mot_files.read(tmp_path / "absent.txt", unique_ids=True)
    with pytest.raises(UserError, match="cannot be read"):
        mot_files.read(tmp_path, unique_ids=True)
    with pytest.raises(UserError, match="not text at byte 2"):
        mot_files.read(written(tmp_path, b"1,\xff"), unique_ids=True)


def test_written_tracks_come_back(tmp_path):
    tracks = np.array([[1.25, 2, 11.5, 22, 3, 18, 0.875], [0, 0, 5, 5, 4, 1, 0.5]])
    path = tmp_path / "tracks.txt"
    frames = [tracks, tracks[:0], tracks[:1]]
    lines = [
        MotFormat().frame(n, 0.0, box_texts(rows.tolist()))
        for n, rows in enumerate(frames, start=1)
    ]
    path.write_text("".join(lines))
    assert path.read_text().splitlines()[0] == "1,3,1.25,2.00,10.25,20.00,0.8750,18,1"
    boxes = mot_files.read(path, unique_ids=True)
    assert boxes.frames.tolist() == [1, 1, 3]
    np.testing.assert_allclose(boxes.boxes_xyxy[:2], tracks[:, :4])
    assert boxes.classes.tolist() == [18, 1, 18]


def test_p3_39_no_tracks_make_a_valid_empty_file(tmp_path):
    path = tmp_path / "tracks.txt"
    path.write_text(MotFormat().frame(1, 0.0, []))
    assert path.read_bytes() == b""
    assert len(mot_files.read(path, unique_ids=True)) == 0


def sequence_folder(parent, name: str, info: str | None = None):
    folder = parent / name
    (folder / "det").mkdir(parents=True)
    (folder / "det" / "det.txt").write_text("")
    if info is not None:
        (folder / "seqinfo.ini").write_text(info)
    return folder


def test_p3_53_sequences_are_found_by_name_with_or_without_seqinfo(tmp_path):
    sequence_folder(tmp_path, "b")
    sequence_folder(tmp_path, "a", "[Sequence]\nname=MOT17-02\nseqLength=600\n")
    (tmp_path / "notes").mkdir()
    first, second = mot_files.find_sequences(tmp_path)
    assert (first.name, first.frame_count) == ("MOT17-02", 600)
    assert (second.name, second.frame_count) == ("b", None)
    assert [one.name for one in mot_files.find_sequences(tmp_path / "b")] == ["b"]


@pytest.mark.parametrize(
    "info",
    [
        "",
        "seqLength=5\n",
        "[Sequence]\nname=x\n",
        "[Sequence]\nseqLength=many\n",
        "[Sequence]\nseqLength=0\n",
        "[Sequence]\nseqLength=5\nframeRate=nan\n",
        "[Sequence]\nseqLength=5\nframeRate=-25\n",
        "[Sequence]\nseqLength=5\nseqLength=6\n",
        "[Sequence]\nname=100%\nseqLength=5\n",
    ],
)
def test_p3_53_a_useless_seqinfo_is_named(tmp_path, info):
    folder = sequence_folder(tmp_path, "a", info)
    with pytest.raises(UserError, match=r"seqinfo\.ini"):
        mot_files.find_sequences(folder)


def test_p3_53_a_folder_without_sequences(tmp_path):
    with pytest.raises(UserError, match=r"holds no det/det\.txt"):
        mot_files.find_sequences(tmp_path)


@pytest.mark.parametrize("name", ["absent", "file.txt", "empty", "only_gt"])
def test_p3_53_a_missing_sequence_is_one_line(tmp_path, name):
    (tmp_path / "file.txt").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "only_gt" / "gt").mkdir(parents=True)
    (tmp_path / "only_gt" / "gt" / "gt.txt").write_text("1,1,0,0,5,5\n")
    with pytest.raises(UserError, match=rf"{name}: holds no det/det\.txt"):
        mot_files.find_sequences(tmp_path / name)
