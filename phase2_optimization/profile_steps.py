"""Steps to profile, their measurement by stage, and their trace."""

import functools
import gzip
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity
from torchvision.transforms import v2

from common import artifacts, timing
from common.coco import COCODataset, CocoSplit, collate, read_image
from common.models import LoadedModel
from phase2_optimization.stages import OperationCounter, StageClock

if TYPE_CHECKING:
    from phase2_optimization.gpu_profiler import GPUProfiler

WARMUP_STEPS = 2


def _endless(loader: torch.utils.data.DataLoader) -> Iterator[tuple]:
    while True:
        yield from loader


def training_steps(
    loaded: LoadedModel, split: CocoSplit, device: torch.device, batch_size: int, workers: int
) -> Callable[[StageClock], None]:
    """Returns a function that makes one FP32 training step (SGD, no augmentation) by stages."""
    to_float = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()])
    loader: torch.utils.data.DataLoader = torch.utils.data.DataLoader(
        COCODataset(split, to_float),  # type: ignore[arg-type]
        batch_size=min(batch_size, len(split.records)),
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        collate_fn=collate,
    )
    batches = _endless(loader)
    model = loaded.model
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-4, momentum=0.9)

    def step(clock: StageClock) -> None:
        with clock.stage("data wait"):
            images, targets = next(batches)
        with clock.stage("copy to device"):
            images = [image.to(device, non_blocking=True) for image in images]
            targets = [
                {key: target[key].to(device, non_blocking=True) for key in ("boxes", "labels")}
                for target in targets
            ]
        loss = sum(model(images, targets).values())
        with clock.stage("backward"):
            loss.backward()
        with clock.stage("optimizer"):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


def inference_steps(
    loaded: LoadedModel, split: CocoSplit, device: torch.device, batch_size: int
) -> Callable[[StageClock], None]:
    """Returns a function that reads images and detects objects in them with the stock model."""
    records = itertools.cycle(split.records)
    model = loaded.model

    def step(clock: StageClock) -> None:
        with clock.stage("data wait"):
            images = [
                read_image(record.path, (record.width, record.height))
                for record in itertools.islice(records, batch_size)
            ]
        with clock.stage("copy to device"):
            inputs = [torch.from_numpy(image).to(device) for image in images]
        with clock.stage("transform"):
            inputs = [image.permute(2, 0, 1).to(torch.float32) / 255 for image in inputs]
        with torch.inference_mode():
            outputs = model(inputs)
        with clock.stage("results to host"):
            for output in outputs:
                for value in output.values():
                    value.cpu()

    return step


def measure_stages(
    profiler: "GPUProfiler",
    tag: str,
    model: torch.nn.Module,
    step: Callable[[StageClock], None],
    steps: int,
) -> dict[str, Any]:
    """Times `steps` steps by stage and as many whole ones, and counts the operations of one.

    The whole steps wait for the device at their ends only and go into `profiler` under `tag`.

    Returns:
        `stages` [{name, ms, share}], the largest first; `step_ms` of the steps timed by stage and
        `free_step_ms` of the whole ones; their peak memory; and how many operations, copies and
        forced waits one step holds.
    """
    free = StageClock(profiler.device, wait_at_stages=False)
    staged = StageClock(profiler.device)
    for _ in range(WARMUP_STEPS):
        step(free)
    for _ in range(steps):  # interleaved, so that a drift of the machine hits both alike
        with profiler.profile(tag):
            step(free)
        with staged.watch(model), staged.step():
            step(staged)
    with OperationCounter(profiler.device) as counter:
        step(free)
    stage_ms = staged.mean_ms()
    total_ms = sum(stage_ms.values())
    whole = profiler.summary()[tag]
    return {
        "stages": [
            {"name": name, "ms": ms, "share": ms / total_ms} for name, ms in stage_ms.items()
        ],
        "step_ms": timing.summarise(staged.step_ms()),
        "free_step_ms": {key: whole[f"{key}_ms"] for key in ("p50", "p90", "p99", "mean")},
        "peak_memory_mib": whole["peak_memory_mib"],
        "operations_per_step": counter.operations,
        "host_device_copies_per_step": counter.copies,
        "host_syncs_per_step": sum(counter.waits.values()),
        "host_syncs_by_operation": dict(counter.waits.most_common()),
    }


def traceable(
    model: torch.nn.Module,
    steps_of: Mapping[str, Callable[[StageClock], None]],
    device: torch.device,
) -> dict[str, Callable[[], None]]:
    """Each step as a function without arguments that labels its stages in a trace; the step named
    "training" runs with the model in training mode."""

    def run(name: str) -> None:
        model.train(name == "training")
        clock = StageClock(device, wait_at_stages=False)
        with clock.watch(model), clock.step():
            steps_of[name](clock)

    return {name: functools.partial(run, name) for name in steps_of}


def write_trace(
    path: Path, works: Mapping[str, Callable[[], None]], device: torch.device, max_mib: float
) -> dict[str, Any]:
    """Writes a chrome trace (gzipped JSON) of each work done once.

    A trace above `max_mib` keeps its longest events only.

    Returns:
        {"events": written, "events_dropped": n, "size_mib": of the file}
    """
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        for name, work in works.items():
            with torch.profiler.record_function(name):
                work()
        timing.synchronize(device)
    with artifacts.atomic_path(path) as temporary:
        profiler.export_chrome_trace(str(temporary))
        dropped, kept = 0, _read_trace(temporary)["traceEvents"]
        while (size_mib := temporary.stat().st_size / timing.MIB) > max_mib and len(kept) > 1:
            trace = _read_trace(temporary)
            by_length = sorted(trace["traceEvents"], key=lambda e: -e.get("dur", float("inf")))
            kept = by_length[: max(1, int(len(by_length) * 0.9 * max_mib / size_mib))]
            dropped += len(by_length) - len(kept)
            with gzip.open(temporary, "wt", encoding="utf-8") as file:
                json.dump({**trace, "traceEvents": kept}, file)
    return {"events": len(kept), "events_dropped": dropped, "size_mib": size_mib}


def _read_trace(path: Path) -> dict[str, Any]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)
