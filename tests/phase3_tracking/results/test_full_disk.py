"""A run whose disk is full, at ever other moments: older results stay, and frames can be played."""

import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[3]

# Runs the command under ever larger limits on the size of a file, until it succeeds. After each
# failure every older result has to be there as it was, and nothing else but frames to be played.
LITTLE_SPACE = """
import resource, sys
from pathlib import Path
from common import video_remux
from phase3_tracking import video_detector

folder, names, step = Path(sys.argv[1]), sys.argv[2].split(), int(sys.argv[3])
arguments = sys.argv[4:]
for name in names:
    (folder / name).write_text(f"older {name}")
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
limit = 0
while True:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited))
    status = video_detector.main([*arguments, "--overwrite", "--quiet"])
    resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))
    if status == 0:
        break
    assert status == 2, (limit, status)
    partial = folder / "out.partial.mp4"
    if partial.exists():
        assert video_remux.check_video(partial) > 0, limit
        partial.unlink()
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert found == {name: f"older {name}".encode() for name in names}, (limit, sorted(found))
    limit += step
print(limit // step)
"""
TEXTS = ["out.mot.txt", "out.csv", "out.tracks.json", "out.coco.json", "out.events.csv", "out.json"]


@pytest.mark.parametrize(
    ("options", "more", "step", "told"),
    [
        (("--no-heatmap", "--no-contact-sheet"), ["out.mp4"], 4000, {"out.mp4"}),
        (("--no-heatmap",), ["out.mp4", "out.contact.jpg"], 8000, {"out.contact.jpg"}),
        (("--no-video",), ["out.heatmap.png"], 40_000, {"out.heatmap.png"}),
        (("--no-video", "--no-heatmap"), [], 500, {"out.mot.txt", "out.tracks.json", "out.json"}),
    ],
)
@pytest.mark.fault("C-11")
def test_p3_33_a_full_disk_leaves_every_older_result(tmp_path, options, more, step, told):
    """Whichever file is the first that does not fit, named in one line each time."""
    folder, pictures, names = tmp_path / "out", tmp_path / "in", [*TEXTS, *more]
    folder.mkdir()
    pictures.mkdir()
    rng = np.random.default_rng(0)  # pictures of noise are large
    for index in range(8):
        picture = rng.integers(0, 255, (90, 160, 3), np.uint8)
        cv2.imwrite(str(pictures / f"{index}.png"), picture)
    rows = [f"{i + 1},-1,{10 + 9 * i},20,24,24,0.9,3,1\n" for i in range(8)]
    (tmp_path / "det.txt").write_text("".join(rows))
    inputs = ("--input", pictures, "--detections", tmp_path / "det.txt")
    arguments = (*inputs, "--output", folder / "out.mp4", "--line", "60,0,60,89", *options)
    command = (folder, " ".join(names), step, *arguments)
    done = subprocess.run(
        [sys.executable, "-c", LITTLE_SPACE, *map(str, command)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stderr.splitlines()
    assert len(lines) == int(done.stdout) >= 4  # one for each failure
    found = set()
    played = rf"(; [1-8] of 8 frames can be played in {folder}/out\.partial\.mp4)?"
    for line in lines:
        assert line.startswith(f"error: {folder}/")
        what = rf": cannot be written \(File too large\){played} – free some space there$"
        assert re.search(what, line), line
        found.add(line.removeprefix(f"error: {folder}/").split(":")[0])
    assert told <= found <= set(names)
    assert {path.name for path in folder.iterdir()} == set(names)
    for name in names:
        assert not (folder / name).read_bytes().startswith(b"older")
