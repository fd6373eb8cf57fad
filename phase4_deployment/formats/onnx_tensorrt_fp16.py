"""ONNX Runtime's TensorRT provider: the FP32 file, run in FP16 by engines made for this GPU.

Nothing is shipped of its own, as engines fit one kind of GPU and one TensorRT only. TensorRT leaves
some operators to CUDA. ONNX Runtime takes profile shapes (trt_profile_min_shapes, ...) for every
input of every part that this cuts the graph into, or for none: so it is given none, and makes its
engines anew when a size comes that they do not reach to. All val images come before any timing, and
batches in the warm-up.
"""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from common import environment
from common.cli import UserError, log
from phase4_deployment.formats import onnx_fp32
from phase4_deployment.formats.base import Format, Ingredients, unavailable

if TYPE_CHECKING:
    from common.models import Predictor

NAME = "onnx_tensorrt_fp16"
RUNTIME = onnx_fp32.RUNTIME
PROVIDER = "TensorrtExecutionProvider"
OPTIONS = {"trt_fp16_enable": "1"}
OTHERS = ("CUDAExecutionProvider", "CPUExecutionProvider")  # for operators that TensorRT has not
REMEDY = "it takes an NVIDIA GPU, onnxruntime-gpu, and the TensorRT that this was built with"


def build(ingredients: Ingredients) -> Format:
    """Runs model.onnx on the GPU, where that can be."""
    import onnxruntime

    if PROVIDER not in onnxruntime.get_available_providers():
        return unavailable(NAME, RUNTIME, f"this onnxruntime has no {PROVIDER} – {REMEDY}")
    file = ingredients.onnx()
    try:
        predict = load(file, 0)
    except UserError as error:
        return unavailable(NAME, RUNTIME, f"{error.what} – {error.remedy}")
    log.info("Building TensorRT's engines for %s, which takes minutes", file.name)
    predict(ingredients.val.images[:1])  # what TensorRT cannot build fails here, not while timing
    facts = {"size_mib": file.stat().st_size / 2**20, "runs": file.name, "provider": PROVIDER}
    return Format(
        NAME,
        None,
        RUNTIME,
        predict,
        max_map_drop=ingredients.max_map_drop,
        extra={**facts, "device_name": environment.device_name("cuda:0")},
    )


def import_libraries() -> None:
    onnx_fp32.import_libraries()
    with contextlib.suppress(ImportError):
        import tensorrt  # noqa: F401  (loads the libraries of that package, else not found)


def load(file: Path, threads: int) -> "Predictor":
    """A Predictor over a shipped model.onnx.

    Raises:
        UserError: the provider cannot be started, or the session silently took another one.
    """
    import onnxruntime

    from common.onnx_detector import PROVIDER_OPTIONS
    from common.predictors import batch_predictor

    import_libraries()
    onnxruntime.set_default_logger_severity(4)  # what is missing is told in one line
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    providers = [PROVIDER, *OTHERS]
    settings = [OPTIONS, *(PROVIDER_OPTIONS.get(name, {}) for name in OTHERS)]
    try:
        session = onnxruntime.InferenceSession(
            str(file), options, providers, settings, enable_fallback=0
        )
    except Exception as error:  # noqa: BLE001 (a dozen kinds without a common base)
        log.debug("", exc_info=error)
        raise UserError("TensorRT", f"{PROVIDER} cannot be started", REMEDY) from None
    if (first := session.get_providers()[0]) != PROVIDER:
        raise UserError("TensorRT", f"{first} would run instead of {PROVIDER}", REMEDY)
    session.disable_fallback()
    return batch_predictor(lambda batch: session.run(None, {"images": batch}))
