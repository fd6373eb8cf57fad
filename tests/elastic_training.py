"""`train.py` under torchrun, keeping a log of what each rank trains on, with ranks that get killed.

    torchrun ... tests/elastic_training.py FOLDER RANK:EPOCH:STEP,... [options of train.py]

At each of these places the rank kills itself, once, before the step can be saved.
"""

import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phase1_training import engine, train


def log_and_kill(folder: Path, kills: list[str]) -> None:
    train_step = engine.Trainer.train_step

    def logged(trainer, batch):
        losses = train_step(trainer, batch)
        rank, totals = trainer.ranks.rank, trainer.totals
        row = {
            "epoch": totals.epoch,
            "step": totals.step,
            "images": list(batch.image_ids),
            "losses": {name: value.item() for name, value in losses.items()},
        }
        with open(folder / f"rank_{rank}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        here = f"{rank}:{totals.epoch}:{totals.step}"
        killed = folder / f"killed_{here.replace(':', '_')}"
        if here in kills and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return losses

    engine.Trainer.train_step = logged


if __name__ == "__main__":
    folder, kills, *words = sys.argv[1:]
    log_and_kill(Path(folder), kills.split(","))
    raise SystemExit(train.main(words))
