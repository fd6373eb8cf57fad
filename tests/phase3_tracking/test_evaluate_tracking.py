"""The evaluation command: protocols, classes, the tracker run, the report."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from phase3_tracking.evaluate_tracking import COLUMNS, main

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
SCRIPT = "phase3_tracking/evaluate_tracking.py"
SCORES = {"hota", "deta", "assa", "mota", "motp", "idf1", "id_switches", "fp", "fn"}
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared test data is not here")


def mot(*rows: tuple) -> str:
    """Rows (frame, id, x, class) of boxes of 10 x 10 pixels."""
    return "".join(f"{f},{name},{x},0,10,10,1,{label},1\n" for f, name, x, label in rows)


def evaluated(folder: Path, *arguments) -> dict:
    output = folder / "report.json"
    assert main([*map(str, arguments), "--output", str(output), "--quiet"]) == 0
    return json.loads(output.read_text(encoding="utf-8"))


@pytest.fixture
def two_classes(tmp_path):
    """A person tracked well and a car tracked as a bus."""
    truth, tracks = tmp_path / "gt.txt", tmp_path / "run.mot.txt"
    truth.write_text(mot(*[(f, 1, f, 1) for f in (1, 2, 3)], *[(f, 2, 90, 3) for f in (1, 2, 3)]))
    tracks.write_text(mot(*[(f, 1, f, 1) for f in (1, 2, 3)], *[(f, 2, 90, 6) for f in (1, 2, 3)]))
    return tracks, truth


def test_classes_are_scored_apart_and_pooled(tmp_path, two_classes):
    tracks, truth = two_classes
    report = evaluated(tmp_path, "--tracks", tracks, "--ground-truth", truth)
    classes = {one["name"]: one for one in report["classes"]}
    assert set(classes) == {"class 1", "class 3", "class 6"}
    assert classes["class 1"]["mota"] == 1
    assert (classes["class 3"]["fn"], classes["class 6"]["fp"]) == (3, 3)
    combined = report["combined"]
    assert (combined["fn"], combined["fp"]) == (3, 3)
    assert combined["mota"] == pytest.approx((3 - 3) / 6)
    assert combined["idf1"] == pytest.approx(0.5)
    assert report["class_agnostic"]["mota"] == 1
    assert report["protocols"] == ["classes"]


def test_report_keys(tmp_path, two_classes):
    tracks, truth = two_classes
    report = evaluated(tmp_path, "--tracks", tracks, "--ground-truth", truth)
    assert report["schema"] == "tracking_eval/1"
    assert set(report["inputs"]) == {str(tracks), str(truth)}
    assert [one["name"] for one in report["sequences"]] == ["run"]
    assert set(report["sequences"][0]) >= SCORES
    assert set(report["combined"]) >= SCORES
    assert report["tracker"] is None


def test_class_names_come_from_the_report_beside_the_tracks(tmp_path, two_classes):
    tracks, truth = two_classes
    (tmp_path / "run.json").write_text(json.dumps({"categories": {"1": "person", "3": "car"}}))
    report = evaluated(tmp_path, "--tracks", tracks, "--ground-truth", truth)
    assert [one["name"] for one in report["classes"]] == ["car", "class 6", "person"]


def test_ground_truth_without_classes_is_one_class(tmp_path):
    (tmp_path / "gt.txt").write_text(mot((1, 1, 0, -1)))
    (tmp_path / "tracks.txt").write_text(mot((1, 5, 0, 3)))
    files = ("--tracks", tmp_path / "tracks.txt", "--ground-truth", tmp_path / "gt.txt")
    report = evaluated(tmp_path, *files)
    assert report["combined"]["mota"] == report["class_agnostic"]["mota"] == 1
    assert [one["name"] for one in report["classes"]] == ["object"]


def sequence(folder: Path, name: str, frames: int = 5) -> Path:
    for part in ("det", "gt"):
        (folder / name / part).mkdir(parents=True)
    (folder / name / "seqinfo.ini").write_text(f"[Sequence]\nname={name}\nseqLength={frames}\n")
    truth = [(f, 1, 0, 1) for f in range(1, 6)] + [(f, 2, 50, 8) for f in range(1, 6)]
    (folder / name / "gt" / "gt.txt").write_text(mot(*truth))
    found = [(f, -1, x, 1) for f in (1, 2, 4, 5) for x in (0, 50)]
    (folder / name / "det" / "det.txt").write_text(mot(*found))
    return folder / name


def test_a_folder_of_sequences_is_tracked_with_the_protocol_of_each(tmp_path):
    sequence(tmp_path / "train", "MOT17-90")
    sequence(tmp_path / "train", "street")
    report = evaluated(tmp_path, "--detections", tmp_path / "train")
    mot17, street = report["sequences"]
    assert (mot17["name"], mot17["fp"], mot17["fn"]) == ("MOT17-90", 0, 1)  # the distractor is gone
    assert (street["name"], street["fp"], street["fn"]) == ("street", 4, 6)
    assert report["protocols"] == ["classes", "mot17"]
    assert report["combined"]["fn"] == 7
    assert report["tracker"] == {"tracker": "cmcsort", "smooth": False}


def test_smoothing_fills_the_frame_without_detections(tmp_path):
    """Frame 3 has none, so online two boxes of the truth are missed in it, but for coasting."""
    folder = sequence(tmp_path, "street")
    options = ("--detections", folder, "--tracker", "sort", "--min-hits", "1", "--max-age", "5")
    online = evaluated(tmp_path, *options)
    smoothed = evaluated(tmp_path, *options, "--smooth")
    assert smoothed["tracker"]["smooth"] is True
    assert smoothed["combined"]["fn"] == online["combined"]["fn"] - 1  # of the class that matches


def test_smoothing_is_for_tracks_made_here(tmp_path, capsys):
    files = tmp_path / "gt.txt", tmp_path / "tracks.txt"
    for file in files:
        file.write_text(mot((1, 1, 0, 1)))
    arguments = ["--ground-truth", str(files[0]), "--tracks", str(files[1]), "--smooth"]
    assert main([*arguments, "--output", str(tmp_path / "out.json")]) == 2
    assert capsys.readouterr().err.startswith("error: --smooth: is for tracks made here")


def test_frames_without_detections_age_the_tracks(tmp_path):
    folder = sequence(tmp_path, "MOT17-90")
    assert evaluated(tmp_path, "--detections", folder)["combined"]["id_switches"] == 0
    report = evaluated(tmp_path, "--detections", folder, "--max-age", 0)
    assert report["combined"]["id_switches"] == 1


def test_one_detection_file(tmp_path):
    folder = sequence(tmp_path, "MOT17-90")
    found = evaluated(tmp_path, "--detections", folder / "det" / "det.txt")
    assert found["combined"]["fn"] == 1
    given = ("--detections", folder / "det" / "det.txt", "--ground-truth", folder / "gt" / "gt.txt")
    assert evaluated(tmp_path, *given)["combined"] == found["combined"]
    assert evaluated(tmp_path, *given, "--protocol", "classes")["combined"]["fn"] == 6
    assert evaluated(tmp_path, *given, "--confidence", 1.5)["combined"]["fn"] == 5


@needs_data
def test_mot15_files_as_published(tmp_path):
    folder = DATA / "mot15" / "TUD-Campus"
    tracks, truth = folder / "motmetrics_test.txt", folder / "gt" / "gt.txt"
    combined = evaluated(tmp_path, "--tracks", tracks, "--ground-truth", truth)["combined"]
    assert combined["mota"] == pytest.approx(0.526, abs=5e-4)  # as printed by py-motmetrics
    assert combined["idf1"] == pytest.approx(0.558, abs=5e-4)
    assert combined["motp"] == pytest.approx(1 - 0.277, abs=5e-4)
    assert (combined["id_switches"], combined["fragments"]) == (7, 7)
    assert (combined["fp"], combined["fn"]) == (13, 150)


def test_the_table(tmp_path, capsys):
    sequence(tmp_path, "MOT17-90")
    sequence(tmp_path, "street")
    output = tmp_path / "report.json"
    assert main(["--detections", str(tmp_path), "--output", str(output)]) == 0
    heading, *lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert heading == list(COLUMNS)
    rows = {name: values for name, *values in lines}
    # 4 of 5 boxes are found. Losing the object in a frame without any track is no fragment.
    assert " ".join(rows["MOT17-90"]) == "80.0 80.0 80.0 80.0 100.0 88.9 0 0 0 1"
    assert list(rows)[:6] == [
        "MOT17-90",
        "street",
        "class",
        "pedestrian",
        "class-agnostic",
        "combined",
    ]


def csv_rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_csv_has_all_figures_of_the_report(tmp_path):
    sequence(tmp_path / "train", "MOT17-90")
    sequence(tmp_path / "train", "street, north")
    report = evaluated(tmp_path, "--detections", tmp_path / "train")
    rows = csv_rows(tmp_path / "report.csv")
    assert [(row["kind"], row["name"]) for row in rows] == [
        ("sequence", "MOT17-90"),
        ("sequence", "street, north"),
        *(("class", one["name"]) for one in report["classes"]),
        ("class_agnostic", ""),
        ("combined", ""),
    ]
    scores = [
        *report["sequences"],
        *report["classes"],
        report["class_agnostic"],
        report["combined"],
    ]
    for row, expected in zip(rows, scores, strict=True):
        numbers = {key: float(value) for key, value in row.items() if key not in ("kind", "name")}
        assert numbers == {key: value for key, value in expected.items() if key != "name"}
    assert set(rows[0]) >= SCORES
    assert rows[0]["fn"] == "1"  # counts are whole numbers


def test_p3_54_class_names_in_the_csv(tmp_path, two_classes):
    tracks, truth = two_classes
    names = {"1": '=1+1,"x"', "3": "日本\n語", "6": "bus"}
    (tmp_path / "run.json").write_text(json.dumps({"categories": names}), encoding="utf-8")
    evaluated(tmp_path, "--tracks", tracks, "--ground-truth", truth)
    found = {row["name"] for row in csv_rows(tmp_path / "report.csv") if row["kind"] == "class"}
    assert found == {'\'=1+1,"x"', "日本\n語", "bus"}


@pytest.mark.parametrize(
    ("truth_rows", "track_rows"), [((), ()), (((1, 1, 0, 1),), ()), ((), ((1, 1, 0, 1),))]
)
def test_p3_52_an_empty_side_in_the_csv(tmp_path, truth_rows, track_rows):
    (tmp_path / "gt.txt").write_text(mot(*truth_rows))
    (tmp_path / "tracks.txt").write_text(mot(*track_rows))
    files = ("--tracks", tmp_path / "tracks.txt", "--ground-truth", tmp_path / "gt.txt")
    evaluated(tmp_path, *files)
    combined = csv_rows(tmp_path / "report.csv")[-1]
    assert (combined["fn"], combined["fp"]) == (str(len(truth_rows)), str(len(track_rows)))
    assert float(combined["hota"]) == 0


def test_the_csv_replaces_neither_an_input_nor_the_report(tmp_path, capsys):
    for name in ("gt.csv", "tracks.csv"):
        (tmp_path / name).write_text(mot((1, 1, 0, 1)))
    files = ["--tracks", str(tmp_path / "tracks.csv"), "--ground-truth", str(tmp_path / "gt.csv")]
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for output, reason in [
        ("tracks.json", "tracks.csv: is also an input"),
        ("gt.json", "gt.csv: is also an input"),
        ("new.csv", "new.csv: the report is JSON"),
    ]:
        assert main([*files, "--output", str(tmp_path / output)]) == 2
        error = capsys.readouterr().err
        assert reason in error
        assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["gt.txt", "run.mot.txt", "link.txt", "run.json"])
def test_the_report_replaces_no_input(tmp_path, monkeypatch, capsys, name):
    """`link.txt` is another name of the ground truth, `run.json` tells the tracks' classes."""
    monkeypatch.chdir(tmp_path)
    for file in ("gt.txt", "run.mot.txt"):
        Path(file).write_text(mot((1, 1, 0, 1)))
    Path("run.json").write_text('{"categories": {"1": "car"}}')
    Path("link.txt").symlink_to("gt.txt")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    files = ("--tracks", "run.mot.txt", "--ground-truth", "gt.txt")
    assert main([*files, "--output", name]) == 2
    error = capsys.readouterr().err
    assert error == f"error: {name}: is also an input – choose another --output\n"
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["gt/gt.txt", "det/det.txt"])
def test_the_report_replaces_no_file_of_a_sequence(tmp_path, capsys, name):
    sequence(tmp_path, "MOT17-90")
    output = tmp_path / "MOT17-90" / name
    before = output.read_bytes()
    assert main(["--detections", str(tmp_path), "--output", str(output)]) == 2
    assert f"{name}: is also an input" in capsys.readouterr().err
    assert output.read_bytes() == before


EVALUATE_WITH_LITTLE_SPACE = """
import resource, sys
from phase3_tracking.evaluate_tracking import main
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
sys.exit(main(sys.argv[1:]))
"""


def test_p3_33_a_full_disk_leaves_the_older_report_and_csv(tmp_path, two_classes):
    tracks, truth = two_classes
    evaluated(tmp_path, "--tracks", tracks, "--ground-truth", truth)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    arguments = ["--tracks", tracks, "--ground-truth", truth, "--output", tmp_path / "report.json"]
    done = subprocess.run(
        [sys.executable, "-c", EVALUATE_WITH_LITTLE_SPACE, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "report.json: cannot be written (File too large)" in done.stderr
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--tracks", "run.mot.txt"), "give --ground-truth too"),
        (("--ground-truth", "gt.txt"), "give --tracks or --detections too"),
        (("--tracks", "absent.txt", "--ground-truth", "gt.txt"), "absent.txt: no such file"),
        (("--tracks", "bad.txt", "--ground-truth", "gt.txt"), "bad.txt, line 2: "),
        (("--detections", "."), r"holds no det/det.txt"),
        (("--detections", "MOT17-90", "--ground-truth", "gt.txt"), "not used with a folder"),
        (("--detections", "MOT17-91"), "seqinfo.ini says 4 frames"),
        (("--detections", "run.mot.txt"), "gt.txt: no such file"),
        (("--tracks", "gt.txt", "--ground-truth", "gt.txt", "--output", "gt.txt/x.json"), "x.json"),
    ],
)
def test_mistakes_are_told_in_one_line(
    tmp_path, two_classes, monkeypatch, capsys, arguments, reason
):
    sequence(tmp_path, "MOT17-90")
    sequence(tmp_path, "MOT17-91", frames=4)
    for folder in ("MOT17-90", "MOT17-91"):
        if arguments == ("--detections", "."):
            (tmp_path / folder / "det" / "det.txt").unlink()
    (tmp_path / "bad.txt").write_text("1,1,0,0,5,5\n1,1,zero,0,5,5\n")
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, *(() if "--output" in arguments else ("--output", "r.json"))]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert reason in error
    assert not (tmp_path / "r.json").exists()


def test_without_results_it_says_how_to_make_them(run_script):
    done = run_script(SCRIPT)
    assert done.returncode == 2
    assert "make_demo_data.py" in done.stderr
