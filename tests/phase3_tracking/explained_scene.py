"""Detections made by hand, in which everything happens that explain_tracking.py explains.

20 frames of 400x300 pixels, 10 a second:

- two boxes that stand side by side until frame 11; in frame 12 both have moved so that the best
  pair first leaves one of them without a detection; then they are gone;
- four boxes that stand alone and jump by 4 pixels in frame 8 and back in frame 9, as when the
  camera is pushed; the first of them has no detection in frames 14 and 15;
- one box that goes to the right by 3 pixels a frame, with weak detections in frames 10 to 12.
"""

from pathlib import Path

from common.video import VideoWriter
from tests.phase3_tracking.video_files import frame

WIDTH, HEIGHT, FRAMES, FPS = 400, 300, 20, 10
LONELY = ((20, 220), (110, 220), (200, 220), (290, 220))  # left, top
Row = tuple[int, float, float, float, float, float]  # frame, x1, y1, x2, y2, confidence


def rows() -> list[Row]:
    found: list[Row] = []
    for number in range(1, FRAMES + 1):
        if number < 12:
            found += [(number, 20, 20, 60, 60, 0.9), (number, 40, 20, 80, 60, 0.85)]
        if number == 12:
            found += [(number, 36, 20, 76, 60, 0.9), (number, 46, 20, 86, 60, 0.85)]
        jump = 4 if number == 8 else 0
        for index, (left, top) in enumerate(LONELY):
            if index or number not in (14, 15):
                found.append((number, left + jump, top, left + jump + 30, top + 50, 0.95))
        left = 100 + 3 * number
        confidence = 0.3 if number in (10, 11, 12) else 0.8
        found.append((number, left, 120, left + 40, 180, confidence))
    return found


def write(folder: Path, made_of: list[Row] | None = None) -> tuple[Path, Path]:
    """A video and the detection file of it."""
    video, detections = folder / "scene.mp4", folder / "scene.det.txt"
    with VideoWriter(video, WIDTH, HEIGHT, FPS) as writer:
        for index in range(FRAMES):
            writer.write(frame(index, WIDTH, HEIGHT))
    lines = [
        f"{number},-1,{x1},{y1},{x2 - x1},{y2 - y1},{confidence},0,1\n"
        for number, x1, y1, x2, y2, confidence in (rows() if made_of is None else made_of)
    ]
    detections.write_text("".join(lines), encoding="utf-8")
    return video, detections
