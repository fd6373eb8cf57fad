"""One exported file in several runtimes, each compared with the same reference."""

from pathlib import Path
from typing import Any

from common import artifacts, paths, timing
from common.cli import UserError, log
from phase4_deployment.checks import onnx_runtimes, parity
from phase4_deployment.checks.onnx_runtimes import Batches, Run, Tools

BASE = "onnxruntime"  # what the others are compared with where there is no checkpoint


class OnnxCheck:
    """Runs a file in runtimes, and tells of each whether it finds what the reference finds.

    Args:
        checkpoint: whose detections are the reference; None takes ONNX Runtime's on the CPU.
        batches: uint8 RGB images (H, W, 3), those of one batch of one size.
        tools: where the browser and its runtime are.

    Attributes:
        reference_name: file name of the checkpoint, or "onnxruntime".
    """

    def __init__(self, onnx_path: Path, checkpoint: Path | None, batches: Batches, tools: Tools):
        self.onnx_path, self.batches, self.tools = onnx_path, batches, tools
        self._is_judged = not holds_fewer_bits(onnx_path)
        self._base: Run | None = None
        if checkpoint is None:
            log.info("Compared with %s on the CPU, as no checkpoint of this file is known", BASE)
            self.reference_name = BASE
            self._base = onnx_runtimes.run(BASE, onnx_path, batches, tools)
            self._reference = parity.Reference(self._base.detections)
        else:
            log.info("Compared with PyTorch, %s", paths.display(checkpoint))
            self.reference_name = checkpoint.name
            self._reference = _of_checkpoint(checkpoint, batches, max_proposals(onnx_path))
        if not any(len(found.scores) for found in self._reference.expected):
            log.warning("Nothing is found in these images: give --test-images with objects")

    def row(self, name: str, *, is_asked: bool) -> dict[str, Any]:
        """Runs one of onnx_runtimes.RUNTIMES.

        Args:
            is_asked: whether it was asked for by name, so that it must not be skipped.

        Returns:
            a row of the report with `status`: "ok", "differs", "reference" (of the others),
            "not judged", "failed" or "skipped", the last three with a `reason`.

        Raises:
            UserError: a runtime that was asked for cannot be used on this machine.
        """
        row: dict[str, Any] = {"name": name, "status": "skipped", "reason": None}
        row |= dict.fromkeys(("provider", "version", "detections", "latency_ms", "parity"))
        try:
            row |= self._outcome(name)
        except UserError as error:
            if is_asked:
                raise
            row["reason"] = str(error)
        except onnx_runtimes.RuntimeFailureError as error:
            row |= {"status": "failed", "reason": str(error)}
        _log_row(row)
        return row

    def _outcome(self, name: str) -> dict[str, Any]:
        if self._base is not None and name == BASE:
            return {**self._found(self._base), "status": "reference"}
        run = onnx_runtimes.run(name, self.onnx_path, self.batches, self.tools)
        measured = self._reference.judge(run.detections)
        outcome = {**self._found(run), "parity": measured}
        if self._is_judged:
            return {**outcome, "status": "ok" if measured["holds"] else "differs"}
        measured["holds"] = None
        reason = "fewer bits round differently in every runtime: judge such a file by its mAP"
        return {**outcome, "status": "not judged", "reason": reason}

    def _found(self, run: Run) -> dict[str, Any]:
        batches = zip(run.latency_ms, self.batches, strict=True)
        return {
            "provider": run.provider,
            "version": run.version,
            "detections": sum(len(found.scores) for found in run.detections),
            "latency_ms": timing.summarise([ms for ms, batch in batches if len(batch) == 1]),
        }


def _of_checkpoint(checkpoint: Path, batches: Batches, proposals: int | None) -> parity.Reference:
    """What PyTorch finds, with as many proposals as the file looks at (None: the model's own)."""
    import torch

    from common.models import limit_proposals, load_model

    model = load_model(checkpoint, torch.device("cpu")).model
    if proposals:
        limit_proposals(model, proposals)
    return parity.torch_reference(model, batches)


def max_proposals(onnx_path: Path) -> int | None:
    """That a file says it looks at; None where it says nothing."""
    import onnx

    described = onnx.load(onnx_path, load_external_data=False).metadata_props
    found = [entry.value for entry in described if entry.key == "max_proposals"]
    return int(found[0]) if found and found[0].isdecimal() else None


def find_checkpoint(metadata: dict[str, Any]) -> Path | None:
    """The checkpoint in outputs/models that a file was exported from; None where it is not there,
    or another one by now."""
    name = Path(metadata.get("source_checkpoint", "")).name
    path = paths.MODELS / name
    if not name or not path.is_file():
        return None
    return path if artifacts.sha256(path) == metadata.get("source_sha256") else None


def holds_fewer_bits(onnx_path: Path) -> bool:
    """Whether weights are stored in less than 32 bits (INT8, FP16)."""
    import onnx

    graph = onnx.load(onnx_path, load_external_data=False).graph
    few = {onnx.TensorProto.INT8, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    return any(tensor.data_type in few and len(tensor.dims) > 1 for tensor in graph.initializer)


def _log_row(row: dict[str, Any]) -> None:
    if row["provider"] is None:
        log.info("%-17s %s: %s", row["name"], row["status"], row["reason"])
        return
    agreement = (
        parity.describe(row["parity"]) if row["parity"] else "the others are compared with it"
    )
    log.info(
        "%-17s %s, %s: %d detections, p50 %.1f ms, p90 %.1f, p99 %.1f; %s – %s",
        row["name"],
        row["provider"],
        row["version"],
        row["detections"],
        *(row["latency_ms"][key] for key in ("p50", "p90", "p99")),
        agreement,
        row["status"],
    )
