"""Answers pictures with boxes over HTTP, with the detector beside this file.

    pip install -r requirements-serve.txt                      # once, beside requirements.txt
    python serve.py                                            # at http://127.0.0.1:8000/
    python serve.py --port 9000 --batch-size 8 --batch-wait-ms 10
    python serve.py --host 0.0.0.0 --device cuda               # for everyone who can reach it

    curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8000/detect
    curl -F file=@photo.jpg http://127.0.0.1:8000/detect

Pictures that arrive together share an inference. / is a page to drop a picture on, /health tells
what runs, /metrics is for Prometheus. Ctrl-C or SIGTERM ends it when all accepted pictures have
their answers, with status 0.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # so that it finds common/ from any directory

try:
    from common import cli
    from phase3_tracking.backends import BATCH_SIZE, of_onnx
    from phase3_tracking.live.live_address import LAST_PORT, LOOPBACK, Address, is_loopback
    from phase3_tracking.video_detector import VideoDetector
    from phase4_deployment.package.command_line import (
        REQUIREMENTS_SERVE,
        add_detector_arguments,
        check_model,
        missing_module,
    )
except Exception:  # of whatever kind: if a file is damaged, say which, not only the first
    from phase4_deployment.package.file_check import file_findings

    if not (findings := file_findings(HERE)):
        raise
    sys.stderr.writelines(f"error: {finding}\n" for finding in findings)
    sys.exit(2)

if TYPE_CHECKING:
    from phase4_deployment.package.serving.pipeline import Limits

MODEL, PORT = HERE / "model.onnx", 8000
BATCH_WAIT_MS, QUEUE_SIZE = 5.0, 64
MAX_MIB, MAX_MEGAPIXELS = 20.0, 25.0
BODY_S, ANSWER_S = 15.0, 30.0


def serve(args: argparse.Namespace) -> None:
    """Serves until a signal comes.

    Raises:
        UserError: the address, the model or the device cannot be used.
    """
    from phase4_deployment.package.package_check import measured_batch_size
    from phase4_deployment.package.serving.app import build_app
    from phase4_deployment.package.serving.metrics import Metrics
    from phase4_deployment.package.serving.pipeline import Pipeline
    from phase4_deployment.package.serving.server import (
        Ending,
        Server,
        allow_many_connections,
        listener,
    )

    check_model(args.model)
    with listener(args.host, args.port) as bound:
        detector, provider = load_detector(args)
        measured = measured_batch_size(HERE, args.model, "throughput")
        batch_size = args.batch_size or measured or BATCH_SIZE
        about = {
            "model": args.model.name,
            "provider": provider,
            "batch_size": batch_size,
            "confidence": args.confidence,
        }
        limits, ending = limits_of(args), Ending()
        pipeline = Pipeline(
            detector.detect_frames,
            detector.class_names,
            batch_size,
            args.batch_wait_ms / 1000,
            limits,
            Metrics(args.model.name, provider),
        )
        application = build_app(
            pipeline,
            about,
            is_draining=lambda: ending.is_asked_for,
            answers_host=lambda name: answers(args.host, name),
        )
        address = Address(args.host, bound.getsockname()[1])
        if not is_loopback(args.host):
            cli.log.warning("Everyone who can reach this machine at %s can use it", address)
        allow_many_connections()
        longest_s = limits.body_s + limits.answer_s
        with pipeline:
            Server(application, ending, f"http://{address}/", longest_s).run([bound])
    cli.log.info("Ended; every accepted picture has its answer")


def load_detector(args: argparse.Namespace) -> tuple[VideoDetector, str]:
    """The detector, tried on a blank picture, and the execution provider that runs it."""
    import cv2
    import numpy as np

    from common.onnx_detector import OnnxDetector

    cv2.setNumThreads(1)  # it only reorders colours, and would take cores from the session
    loaded = OnnxDetector(args.model, args.device)
    detector = VideoDetector(of_onnx(loaded, args.model), args.confidence, classes=args.classes)
    detector.detect_frame(np.zeros((480, 640, 3), np.uint8))
    cli.log.info("Model: %s in ONNX Runtime, %s", args.model.name, loaded.provider)
    return detector, loaded.provider


def limits_of(args: argparse.Namespace) -> "Limits":
    from phase4_deployment.package.serving.pipeline import Limits

    return Limits(
        queue_size=args.queue_size,
        max_bytes=round(args.max_mib * 2**20),
        max_pixels=round(args.max_megapixels * 1e6),
        body_s=args.body_timeout_s,
        answer_s=args.timeout_s,
    )


def answers(host: str, name: str) -> bool:
    """Whether a server bound to `host` answers requests for a host `name`: one that only this
    machine can reach has no other names."""
    return not is_loopback(host) or name == host.lower() or is_loopback(name)


def work(args: argparse.Namespace) -> None:
    """What was asked for; what cannot be imported is told in one line.

    Raises:
        UserError: something the user can mend.
    """
    try:
        import fastapi  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing_module(error, HERE, REQUIREMENTS_SERVE) from error
    try:
        serve(args)
    except ModuleNotFoundError as error:
        raise missing_module(error, HERE) from error


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(__doc__)
    parser.add_argument("--host", default=LOOPBACK, help="name or IP address to serve at")
    parser.add_argument("--port", type=port, default=PORT, help="0 takes any that is free")
    add_detector_arguments(parser, MODEL)
    group = parser.add_argument_group("requests")
    group.add_argument(
        "--batch-wait-ms",
        type=cli.non_negative_float,
        default=BATCH_WAIT_MS,
        help="the longest that a picture waits for others to share its inference",
    )
    group.add_argument(
        "--queue-size",
        type=cli.positive_int,
        default=QUEUE_SIZE,
        help="pictures taken on at a time; more are answered 429",
    )
    group.add_argument(
        "--max-mib", type=cli.positive_float, default=MAX_MIB, help="of a request's body"
    )
    group.add_argument(
        "--max-megapixels", type=cli.positive_float, default=MAX_MEGAPIXELS, help="of a picture"
    )
    group.add_argument(
        "--body-timeout-s",
        type=cli.positive_float,
        default=BODY_S,
        help="for a body to arrive; then 408",
    )
    group.add_argument(
        "--timeout-s",
        type=cli.positive_float,
        default=ANSWER_S,
        help="from a whole body to its answer; then 504",
    )
    group = parser.add_argument_group("common")
    group.add_argument("--quiet", action="store_true", help="print warnings and errors only")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def port(text: str) -> int:
    """The argparse type of a TCP port."""
    value = cli.non_negative_int(text)
    if value > LAST_PORT:
        raise argparse.ArgumentTypeError(f"{value} is not between 0 and {LAST_PORT}")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return cli.run(lambda: work(args), args)


if __name__ == "__main__":
    sys.exit(main())
