"""Where things live. Every script reads and writes below outputs/, from any working directory.

The environment variable OUTPUTS_DIR moves the whole tree elsewhere; tests and notebooks use it so
that they never touch a person's results.
"""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUTPUTS = Path(os.environ.get("OUTPUTS_DIR") or ROOT / "outputs").resolve()
MODELS = OUTPUTS / "models"
METRICS = OUTPUTS / "metrics"
VIDEOS = OUTPUTS / "videos"
DEPLOYMENT = OUTPUTS / "deployment"
DEMO = OUTPUTS / "demo"
DEMO_VIDEO = DEMO / "demo_video.mp4"
DEMO_VIDEO_GT = DEMO / "demo_video_gt.txt"
BEST_MODEL = MODELS / "best_model.pth"


def display(path: Path | str) -> str:
    """The path as a person would type it: relative to the repository when it lies inside it."""
    path = Path(path)
    try:
        return str(path.resolve().relative_to(ROOT))
    except ValueError:
        return str(path)
