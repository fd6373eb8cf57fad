"""The package's server under load, against the bare ONNX Runtime session at the same batch size.

    apt-get install apache2-utils                                       # brings ab
    python benchmarks/serving_load.py                                   # outputs/deployment
    python benchmarks/serving_load.py --serve model.onnx --image street.jpg --batch-size 8

The load comes from ab (ApacheBench), a public tool: it sends the bytes of one JPEG again and again,
`--concurrency` at a time, and times it from the first byte sent to the last one received. Arms take
turns in every round, all on this machine: ab's own work is a part of the server's time.

    bare            session.run on a batch of pictures that are decoded already
    bare (again)    its second self: how far equal arms are apart
    decode + bare   JPEGs decoded one after the other, then session.run
    server          HTTP, decoding, batching, session.run, boxes as JSON

`server / bare` is the share of the session's throughput that reaches clients, although the server
decodes and the session does not; `server / (decode + bare)` compares what does the same work. At
last --burst requests come at once: each must be answered 200 or 429.
"""

import argparse
import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python benchmarks/serving_load.py` finds common/

from benchmarks.http_load import SERVE, all_answered, is_orderly, served
from common import artifacts, cli, paths
from common.cli import UserError, log
from common.comparison import MIN_ROUNDS, compare, interval_text

if TYPE_CHECKING:
    from common.onnx_detector import OnnxDetector

BARE, AGAIN, DECODED, SERVER = "bare", "bare (again)", "decode + bare", "server"
BATCH_SIZE, IMAGES, ROUNDS, BURST = 4, 128, MIN_ROUNDS + 2, 1000


# --- the bare session -------------------------------------------------------------------------


class Bare:
    """The session alone, on the pictures that the server is sent.

    Args:
        data: a JPEG.
    """

    def __init__(self, detector: "OnnxDetector", data: bytes, batch_size: int, images: int):
        import cv2
        import numpy as np

        cv2.setNumThreads(1)  # as the server does
        self._session, self._data = detector.session, data
        self._batches, self._batch_size = images // batch_size, batch_size
        self._decoded = np.stack([self._decode()] * batch_size)
        self.size = self._decoded.shape[2], self._decoded.shape[1]

    def _decode(self) -> Any:
        import cv2

        from phase4_deployment.package.serving.pictures import decoded

        bgr = decoded("image/jpeg", self._data, sys.maxsize)
        return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)

    def run(self) -> None:
        for _ in range(self._batches):
            self._session.run(None, {"images": self._decoded})

    def decode_and_run(self) -> None:
        import numpy as np

        for _ in range(self._batches):
            batch = np.stack([self._decode() for _ in range(self._batch_size)])
            self._session.run(None, {"images": batch})


# --- measuring --------------------------------------------------------------------------------


def measure(arms: dict[str, Callable[[], float]], rounds: int, seed: int) -> dict[str, Any]:
    """Seconds of every arm in every round, in a new order each time, shape (rounds,)."""
    import numpy as np

    order = np.random.default_rng(seed)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 1):  # the first round warms up
        for name in order.permutation(list(arms)).tolist():
            took = arms[name]()
            if number:
                seconds[name].append(took)
        log.info("round %d of %d", number, rounds)
    return {name: np.array(times) for name, times in seconds.items()}


def timed(work: Callable[[], None]) -> Callable[[], float]:
    def call() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return call


def report(seconds: dict[str, Any], images: int) -> dict[str, Any]:
    """Images per second of every arm, and what share of the session's reaches clients."""
    import numpy as np

    return {
        "rounds": len(seconds[BARE]),
        "images_per_round": images,
        "images_per_s": {
            name: images / float(np.median(times)) for name, times in seconds.items()
        },
        "round_s": {name: times.tolist() for name, times in seconds.items()},
        "server_over_bare": compare(seconds[BARE], seconds[SERVER], seconds[AGAIN]).as_dict(),
        "server_over_decode_and_bare": compare(seconds[DECODED], seconds[SERVER]).as_dict(),
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    lines = [f"{'':16}{'images/s':>10}"]
    lines += [f"{name:16}{rate:10.2f}" for name, rate in result["images_per_s"].items()]
    for key, text in (
        ("server_over_bare", "of the bare session's throughput, with decoding"),
        ("server_over_decode_and_bare", "of decoding and the session in turn"),
    ):
        one = result[key]
        lines.append(f"{interval_text(one['ratio'], one['ci95'])} {text}")
    noise = result["server_over_bare"]["noise"]
    if noise:
        lines.append(f"{interval_text(noise['ratio'], noise['ci95'])} between equal arms")
    load, burst = result["load"], result["burst"] or {}
    latency = ", ".join(f"{q} {ms:.0f} ms" for q, ms in load["latency_ms"].items())
    lines.append(
        f"{result['concurrency']} at a time: {latency}; batches of {load['batch_size']:.2f}"
    )
    if burst:
        statuses = ", ".join(f"{n} x {status}" for status, n in sorted(burst["statuses"].items()))
        lines.append(f"{burst['requests']} at once: {statuses}; {burst['failed']} failed")
    return "\n".join(lines)


def benchmark(args: argparse.Namespace) -> None:
    """Measures, writes the report, and refuses a burst with other errors than 429.

    Raises:
        UserError: ab is missing, inputs are, or the server does not start.
        RuntimeError: a request was answered otherwise than it should be.
    """
    from common.onnx_detector import OnnxDetector

    if not shutil.which("ab"):
        raise UserError("ab", "is not installed", "install Debian's apache2-utils or httpd-tools")
    script, model = what_to_serve(args.serve)
    image = args.image or demo_image()
    detector = OnnxDetector(model, args.device)
    device = "cuda:0" if detector.provider.startswith("CUDA") else "cpu"
    result = {
        **artifacts.provenance("serving_load", device, [model, image]),
        "versions": versions(),
        "provider": detector.provider,
        **run(args, script, model, detector, jpeg(image)),
    }
    artifacts.write_json(args.output, result)
    log.info(table(result))
    if result["burst"] and not is_orderly(result["burst"]):
        raise RuntimeError("a request of the burst was answered otherwise than 200 or 429")
    cli.finished([args.output], None)


def run(
    args: argparse.Namespace, script: Path, model: Path, detector: "OnnxDetector", data: bytes
) -> dict[str, Any]:
    """Starts the server and lets the arms take turns; then the burst.

    Args:
        script, model: see `what_to_serve`.
        data: the JPEG to send.

    Raises:
        RuntimeError: the server runs on another device, or some picture gets no boxes.
    """
    from phase4_deployment.package.serving.server import allow_many_connections

    size = args.batch_size
    images = -(-args.images // size) * size  # whole batches
    concurrency = args.concurrency or 2 * size
    queue_size = max(64, concurrency)
    bare = Bare(detector, data, size, images)
    loads: list[dict[str, Any]] = []
    allow_many_connections()
    with (
        tempfile.TemporaryDirectory() as folder,
        served(script, model, args.device, size, queue_size) as server,
    ):
        sent = Path(folder) / "picture.jpg"
        sent.write_bytes(data)

        def load() -> float:
            loads.append(all_answered(server.load(sent, images, concurrency)))
            return loads[-1]["seconds"]

        provider = json.loads(server.get("/health"))["provider"]
        if provider != detector.provider:
            raise RuntimeError(f"the server runs on {provider}, not on {detector.provider}")
        arms = {BARE: timed(bare.run), AGAIN: timed(bare.run), DECODED: timed(bare.decode_and_run)}
        seconds = measure({**arms, SERVER: load}, args.rounds, args.seed)
        burst = server.load(sent, args.burst, args.burst) if args.burst else None
    return {
        "picture": {"width": bare.size[0], "height": bare.size[1], "bytes": len(data)},
        "batch_size": size,
        "concurrency": concurrency,
        "queue_size": queue_size,
        **report(seconds, images),
        "load": loads[-1],
        "burst": burst,
    }


def what_to_serve(path: Path) -> tuple[Path, Path]:
    """serve.py and the model of a package; the project's own serve.py for an .onnx file.

    Raises:
        UserError: it is neither.
    """
    if path.is_dir() and (path / "serve.py").is_file():
        return path / "serve.py", path / "model.onnx"
    if path.suffix.lower() == ".onnx" and path.is_file():
        return SERVE, path
    remedy = "make one with: python phase4_deployment/export_all.py"
    raise UserError(path, "is neither a package with serve.py nor an .onnx file", remedy)


def demo_image() -> Path:
    """The first val image of the demo data."""
    from common.coco import training_split

    return training_split(paths.DEMO, "val").records[0].path


def jpeg(image: Path) -> bytes:
    """A JPEG as it is; another picture as a JPEG."""
    import io

    from PIL import Image

    if image.suffix.lower() in (".jpg", ".jpeg"):
        return image.read_bytes()
    out = io.BytesIO()
    with Image.open(image) as opened:
        opened.convert("RGB").save(out, "JPEG", quality=90)
    return out.getvalue()


def versions() -> dict[str, str]:
    import importlib.metadata

    done = subprocess.run(["ab", "-V"], capture_output=True, text=True, check=False)
    found = re.search(r"Version ([\d.]+)", done.stdout)
    names = ("onnxruntime", "onnxruntime-gpu", "fastapi", "starlette", "uvicorn", "Pillow")
    told = {"ab": found[1] if found else "unknown"}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            told[name] = importlib.metadata.version(name)
    return told


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--serve", type=Path, default=paths.DEPLOYMENT, help="a package, or an .onnx file"
    )
    parser.add_argument("--image", type=Path, help="picture to send (default: one of the demo's)")
    parser.add_argument(
        "--batch-size", type=cli.positive_int, default=BATCH_SIZE, help="of server and session"
    )
    parser.add_argument(
        "--concurrency", type=cli.positive_int, help="requests at a time (default: two batches)"
    )
    parser.add_argument(
        "--images", type=cli.positive_int, default=IMAGES, help="of each arm in a round"
    )
    parser.add_argument("--rounds", type=cli.positive_int, default=ROUNDS, help="after a warm-up")
    parser.add_argument(
        "--burst", type=cli.non_negative_int, default=BURST, help="requests at once, at last"
    )
    cli.add_common_arguments(
        parser, output=paths.METRICS / "serving_load.json", output_help="report to write"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return cli.run(lambda: benchmark(args), args)


if __name__ == "__main__":
    sys.exit(main())
