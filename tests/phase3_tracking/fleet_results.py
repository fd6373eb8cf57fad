"""What a fleet has left in a folder."""

import json
from pathlib import Path

from phase3_tracking.fleet.manifest import FILE

OF_THE_MOMENT = ("command", "created", "fps_end_to_end", "stage_ms")


def results(folder: Path) -> dict[str, object]:
    """Every result but the fleet's own files, of reports what is not of the moment."""
    found: dict[str, object] = {}
    for path in folder.glob("*_tracked.*"):
        found[path.name] = path.read_bytes()
        if path.suffixes == [".json"]:
            report = json.loads(path.read_text(encoding="utf-8"))
            del report["environment"]["git_commit"]  # somebody may commit meanwhile
            found[path.name] = {k: v for k, v in report.items() if k not in OF_THE_MOMENT}
    return found


def rows(folder: Path) -> list[dict]:
    """The manifest's, without its first line."""
    lines = (folder / FILE).read_text(encoding="utf-8").splitlines()[1:]
    return [json.loads(line) for line in lines]


def same_but_for_the_fleet(folder: Path, alone: Path) -> bool:
    return results(folder) == results(alone) != {}
