"""How long one update() of every tracker takes, ours and public ones, on one synthetic stream.

    python benchmarks/tracker_speed.py                                     # ours alone
    python benchmarks/tracker_speed.py --peers /tmp/peers/bin/python       # may be given repeatedly

How the environments of the peers are made stands in tracker_peers.py. Only one tracker runs at a
time; they take turns in blocks of BLOCK frames, so a slow spell of the machine hits all alike. What
is timed is update() alone, in processor time; wrapping arrays into a peer's own classes is outside
the clock.

The stream: `n` boxes with constant velocity in a 1920 x 1080 picture, bounced off its borders;
corners jitter by 1.5 pixels; 8% of the boxes are missed, 12% have low scores, and 5% more are
false. Above 100 objects boxes shrink with sqrt(n), so that crowding stays what it is.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python benchmarks/tracker_speed.py` finds common/

from benchmarks.tracker_peers import DEFAULT, Arm, Make, Update, available, ours, serve

OBJECTS, FRAMES, BLOCK, WARM_UP = (20, 100, 500, 1000), 300, 20, 20
WIDTH, HEIGHT, FRAME_RATE = 1920, 1080, 30.0
JITTER_PX, MISSED, LOW_SCORES, FALSE = 1.5, 0.08, 0.12, 0.05
FLAT_FRAMES = 100_000  # of the memory check


def stream(objects: int, frames: int, seed: int) -> Iterator[np.ndarray]:
    """(N, 6) [x1, y1, x2, y2, confidence, class_id] of each frame; the same for the same seed."""
    rng = np.random.default_rng(seed)
    shrink = min(1.0, (100 / objects) ** 0.5)
    width = rng.uniform(40, 80, objects) * shrink
    size = np.stack([width, width * rng.uniform(2, 2.5, objects)], axis=1)
    room = np.array([WIDTH, HEIGHT]) - size
    corner = rng.uniform(0, 1, (objects, 2)) * room
    velocity = rng.normal(0, 3, (objects, 2)) * shrink
    for _ in range(frames):
        corner = corner + velocity
        outside = (corner < 0) | (corner > room)
        velocity = np.where(outside, -velocity, velocity)
        corner = np.clip(corner, 0, room)
        boxes = np.concatenate([corner, corner + size], axis=1)
        boxes += rng.normal(0, JITTER_PX * shrink, boxes.shape)
        score = np.where(
            rng.random(objects) < LOW_SCORES,
            rng.uniform(0.1, 0.5, objects),
            rng.uniform(0.75, 0.99, objects),
        )
        rows = np.column_stack([boxes, score, np.ones(objects)])[rng.random(objects) >= MISSED]
        false = rng.binomial(objects, FALSE)
        place = rng.uniform(0, 1, (false, 2)) * (np.array([WIDTH, HEIGHT]) - 60)
        false_size = size[rng.integers(0, objects, false)]
        false_score = rng.uniform(0.1, 0.9, false)
        false_rows = np.column_stack([place, place + false_size, false_score, np.ones(false)])
        rows = np.concatenate([rows, false_rows])
        yield rows[rng.permutation(len(rows))]


def worker(name: str) -> None:
    """Answers requests for the next `frames` of a stream; one with `objects` begins a new one."""
    update: Update | None = None
    frames: Iterator[np.ndarray] = iter(())
    ids: set[int] = set()
    number = 0

    def answer(make: Make, request: dict[str, Any]) -> dict[str, Any]:
        nonlocal update, frames, ids, number
        if "objects" in request:
            frames = stream(request["objects"], WARM_UP + FRAMES, request["seed"])
            update, ids = make(FRAME_RATE), set()
        assert update
        seconds = []
        for rows in itertools.islice(frames, request["frames"]):
            number += 1
            took, tracks = update(rows, number / FRAME_RATE)
            seconds.append(took)
            ids.update(tracks[:, 4].astype(int).tolist())
        return {"seconds": seconds, "ids": len(ids)}

    serve(name, answer)


def measure(arms: dict[str, Arm], objects: int, budget_s: float, seed: int) -> list[dict[str, Any]]:
    """Times of every arm with this many objects; an arm over its budget leaves after the block."""
    for arm in arms.values():
        arm.ask(objects=objects, seed=seed, frames=WARM_UP)
    ids = dict.fromkeys(arms, 0)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(0, FRAMES, BLOCK):
        for name, arm in arms.items():
            if sum(seconds[name]) < budget_s:
                answer = arm.ask(frames=BLOCK)
                seconds[name] += answer["seconds"]
                ids[name] = answer["ids"]
    return [
        {
            "name": name,
            "objects": objects,
            "frames": len(times),
            "ids": ids[name],
            "block_ms": (np.reshape(times, (-1, BLOCK)).mean(axis=1) * 1e3).tolist(),
            "mean_ms": float(np.mean(times) * 1e3),
            **{
                f"p{q}_ms": float(np.percentile(times, q) * 1e3)
                for q in (50, 90, 99)
            },
        }
        for name, times in seconds.items()
    ]  # fmt: skip


def compare_with_fastest(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Our default against the fastest peer at the same number of objects."""
    from common.comparison import compare

    peers = [row for row in rows if not row["name"].startswith("ours")]
    if not peers:
        return None
    fastest = min(peers, key=lambda row: row["mean_ms"])
    default = next(row for row in rows if row["name"] == f"ours {DEFAULT}")
    blocks = min(len(fastest["block_ms"]), len(default["block_ms"]))
    result = compare(np.array(fastest["block_ms"][:blocks]), np.array(default["block_ms"][:blocks]))
    return {
        "objects": default["objects"],
        "fastest_peer": fastest["name"],
        **result.as_json(),
    }


def memory_growth(frames: int, seed: int) -> dict[str, Any]:
    """Python and numpy memory held by our default after a tenth of `frames`, and after all."""
    import tracemalloc

    update = ours(DEFAULT)(FRAME_RATE)
    rows = list(stream(20, 500, seed))
    tracemalloc.start()
    held = {}
    for number in range(frames):
        update(rows[number % len(rows)], number / FRAME_RATE)
        if number + 1 in (frames // 10, frames):
            held[str(number + 1)] = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return {"frames": frames, "held_bytes": held}


def table(result: dict[str, Any]) -> str:
    from common.comparison import interval_text

    counts = sorted({row["objects"] for row in result["rows"]})
    lines = ["ms per update (mean)".ljust(24) + "".join(f"{count:>10}" for count in counts)]
    for name in dict.fromkeys(row["name"] for row in result["rows"]):
        of_name = {row["objects"]: row for row in result["rows"] if row["name"] == name}
        lines.append(name.ljust(24) + "".join(f"{of_name[c]['mean_ms']:10.3f}" for c in counts))
    for one in result["speedup"]:
        ratio = interval_text(one["ratio"], one["ci95"])
        lines.append(
            f"{one['objects']} objects: ours {DEFAULT} is {ratio} times as fast as "
            f"{one['fastest_peer']}"
        )
    if result["memory"]:
        held = ", ".join(f"{n} frames {b}" for n, b in result["memory"]["held_bytes"].items())
        lines.append(f"bytes held after {held}")
    return "\n".join(lines)


def benchmark(
    objects: Sequence[int], peers: Sequence[str], only: str, budget_s: float, flat_frames: int,
    seed: int, output: Path,
) -> None:  # fmt: skip
    from common import artifacts, cli
    from common.cli import log

    rows: list[dict[str, Any]] = []
    speedup = []
    with ExitStack() as stack:
        arms = available(__file__, peers, only)
        for arm in arms.values():
            stack.enter_context(arm)
        for count in objects:
            rows += measure(arms, count, budget_s, seed)
            if f"ours {DEFAULT}" in arms:
                speedup.append(compare_with_fastest(rows[-len(arms) :]))
            log.info("%d objects done", count)
    result = {
        **artifacts.provenance("tracker_speed", "cpu", []),
        "versions": {name: arm.versions for name, arm in arms.items()},
        "rows": rows,
        "speedup": [one for one in speedup if one],
        "memory": memory_growth(flat_frames, seed) if flat_frames else None,
    }
    artifacts.write_json(output, result)
    log.info(table(result))
    cli.finished([output], "python -m common.report")


def build_parser() -> argparse.ArgumentParser:
    from common import cli, paths

    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--objects",
        type=cli.positive_int_list,
        default=",".join(map(str, OBJECTS)),
        help="numbers of objects, comma separated",
    )
    parser.add_argument(
        "--peers", action="append", default=[], help="a Python with peers installed; repeatable"
    )
    parser.add_argument("--only", default="", help="parts of names of trackers, comma separated")
    parser.add_argument(
        "--budget",
        type=cli.positive_float,
        default=8.0,
        help="seconds after which a slow tracker stops",
    )
    parser.add_argument(
        "--flat-frames",
        type=cli.non_negative_int,
        default=FLAT_FRAMES,
        help="frames of the memory check, 0 leaves it out",
    )
    cli.add_common_arguments(
        parser, output=paths.METRICS / "tracker_speed.json", output_help="report to write"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == ["--worker"]:  # before anything of the project is needed
        worker(arguments[1])
        return 0
    from common import cli

    args = build_parser().parse_args(arguments)
    return cli.run(
        lambda: benchmark(
            args.objects, args.peers, args.only, args.budget, args.flat_frames, args.seed,
            args.output,
        ),
        args,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
