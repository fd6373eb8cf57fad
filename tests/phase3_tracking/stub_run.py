"""The command with a detector that finds the red square: `python -m ... CALLS PAUSE_S OPTIONS...`

For child processes that are stopped. The number of each frame is appended to the file CALLS before
it is detected, which then takes PAUSE_S seconds.
"""

import sys
import time
from pathlib import Path

from phase3_tracking import video_detector
from tests.phase3_tracking.video_files import RedSquareModel


def main(calls: Path, pause_s: float, arguments: list[str]) -> int:
    def told(number: int) -> None:
        with calls.open("a") as file:
            file.write(f"{number}\n")
        time.sleep(pause_s)

    model = RedSquareModel(told, file=Path(__file__))
    video_detector.load_backend = lambda *options: model.backend
    return video_detector.main(arguments)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
