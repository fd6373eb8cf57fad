"""Reports with the keys the phases write and numbers nobody measured, for tests of the page."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from common.video import VideoWriter

ENVIRONMENT = {
    "device": "cpu",
    "device_name": "Made-up Processor 9000",
    "cpu": "Made-up Processor 9000",
    "cpu_count": 2,
    "threads": 2,
    "python": "3.11.7",
    "platform": "Linux-glibc",
    "packages": {"torch": "2.15.0", "torchvision": "0.29.2", "numpy": "2.4.6"},
    "git_commit": "0123456789ab",
}
VARIANTS = {
    "fp32_eager": (1.0, "ok"),
    "channels_last": (1.12, "ok"),
    "inference_graph": (1.31, "ok"),
    "inference_graph_channels_last": (1.48, "ok"),
    "bf16_channels_last": (0.83, "ok"),
    "inference_graph_bf16_channels_last": (1.62, "invalid: map 0.7100 where the baseline has 0.74"),
}


def report(schema: str, model: str = "a" * 64, **content: Any) -> dict[str, Any]:
    return {
        "schema": f"{schema}/1",
        "command": f"python phase/{schema}.py --seed 0",
        "created": "2026-01-02T03:04:05+00:00",
        "environment": ENVIRONMENT,
        "inputs": {"outputs/models/best_model.pth": model},
        **content,
    }


def percentiles(p50: float) -> dict[str, float]:
    return {"p50": p50, "p90": p50 * 1.1, "p99": p50 * 1.4, "mean": p50 * 1.02}


def training(class_names: list[str]) -> dict[str, Any]:
    epochs = [
        {
            "epoch": epoch,
            "train_loss": 1.4 / epoch,
            "losses": {"loss_classifier": 0.7 / epoch, "loss_box_reg": 0.4 / epoch},
            "val": {"map": 0.7 - 0.5 / epoch, "map_50": 0.95 - 0.4 / epoch, "map_75": 0.6},
            "learning_rate": 0.001 / epoch,
        }
        for epoch in range(1, 9)
    ]
    best = {"epoch": 8, "map": 0.6375, "map_50": 0.9, "map_75": 0.75}
    best["per_class"] = {name: 0.5 + 0.07 * index for index, name in enumerate(class_names)}
    recipe = {"epochs": 8, "batch_size": 4, "optimizer": "adamw", "learning_rate": 0.001}
    return report(
        "training",
        inputs={},
        architecture="demo",
        class_names=class_names,
        images={"train": 400, "val": 100},
        recipe=recipe,
        epochs=epochs,
        best=best,
        training_s=219.4,
        images_per_s=14.6,
        peak_memory_mib=1210.0,
    )


def evaluation(class_names: list[str]) -> dict[str, Any]:
    """Of each class 10 boxes: 6 right, 3 missed, 1 taken for the next class; 2 false alarms."""
    size = len(class_names)
    counts = [[0] * (size + 1) for _ in range(size + 1)]
    for index in range(size):
        counts[index][index], counts[index][-1], counts[-1][index] = 6, 3, 2
        counts[index][(index + 1) % size] += 1
    recalls = [step / 100 for step in range(101)]
    error = {"image": "000007.jpg", "image_id": 7, "box_xyxy": [1.0, 2.0, 30.0, 40.0]}
    error |= {"truth": class_names[0], "predicted": class_names[-1], "score": 0.93}
    error["reason"] = "badly placed box"
    return report(
        "evaluation",
        split="val",
        images=100,
        confidence=0.5,
        iou=0.5,
        map=0.6375,
        map_50=0.9,
        map_75=0.75,
        classes=[
            {"name": name, "boxes": 10, "ap": 0.5 + 0.07 * index, "ap_50": 0.7, "right": 6}
            | {"recall": 0.6, "precision": 2 / 3, "missed": 3, "false_alarms": 2}
            for index, name in enumerate(class_names)
        ],
        pr_curves={
            "recall": recalls,
            "precision": {
                name: [max(0.0, 1 - recall ** (index + 2)) for recall in recalls]
                for index, name in enumerate(class_names)
            },
        },
        confusion={"classes": [*class_names, "background"], "counts": counts},
        errors={
            kind: {"count": 3, "reasons": {"badly placed box": 3}, "worst": [error] * 5}
            for kind in ("missed", "false_alarm", "confusion")
        },
    )


def data_report(class_names: list[str]) -> dict[str, Any]:
    problem = {"split": "train", "kind": "tiny box", "severity": "warning", "image": None}
    problem |= {"message": f"a box of {class_names[0]} is 1 pixel wide", "annotation_id": 3}
    counts = {"images": 400, "images_without_boxes": 2, "boxes": 1234, "crowd_boxes": 1}
    counts["per_class"] = {name: 100 + index for index, name in enumerate(class_names)}
    return report(
        "data_report", inputs={}, counts={"train": counts, "val": counts}, problems=[problem] * 3
    )


def profile() -> dict[str, Any]:
    stages = [("backbone", 61.0), ("rpn", 22.5), ("roi_heads", 19.0), ("transform", 6.1)]
    listed = [{"name": name, "ms": ms, "share": ms / 108.6} for name, ms in stages]
    return report(
        "profile",
        stages=listed,
        batch_size=4,
        host_syncs_per_step=36,
        inference={"stages": listed[:3]},
        memory={"training": {"peak_mib": 72.8, "peak_stage": "backward"}},
        advice=["The backbone takes more than half of the step: channels_last comes first."],
    )


def benchmark() -> dict[str, Any]:
    rows = [
        {
            "variant": name,
            "batch_size": size,
            "throughput_img_s": 20 * ratio * size**0.2,
            "latency_ms": percentiles(50 * size**0.8 / ratio),
            "peak_memory_mib": 800 + 40 * size,
            "speedup": {"ratio": ratio, "ci95": [ratio * 0.96, ratio * 1.05]},
            "parity": {"matched": 0.998, "max_box_error_px": 0.41, "max_score_error": 0.01},
            "map": 0.6375 - 0.001 * ratio,
            "map_50": 0.9,
            "status": status,
        }
        for size in (1, 2, 4, 8)
        for name, (ratio, status) in VARIANTS.items()
    ]
    rows.append({"variant": "fp32_eager", "batch_size": 16, "status": "oom", "latency_ms": None})
    return report(
        "inference_benchmark",
        results=rows,
        baseline="fp32_eager",
        fastest_variant="inference_graph_channels_last",
        optimal_batch_size=4,
        complete=True,
        conclusion="Fastest: inference_graph_channels_last at batch size 4.",
    )


def amp() -> dict[str, Any]:
    speedup = {"ratio": 0.91, "ci95": [0.88, 0.94]}
    arms = [("fp32", 204.0, None), ("amp_bf16", 224.0, speedup)]
    return report(
        "amp_comparison",
        arms=[
            {
                "name": name,
                "step_ms": percentiles(p50),
                "peak_memory_mib": 1300.0,
                "final_loss": 0.412,
                "map_50": 0.881,
                "speedup": ratio,
            }
            for name, p50, ratio in arms
        ],
        speedup=speedup,
        reading="bf16 was slower than FP32 on this processor.",
    )


def tracking(class_names: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    video = report(
        "video_tracking",
        frames_read=60,
        frames_written=60,
        truncated=False,
        complete=True,
        fps_end_to_end=11.3,
        stage_ms={"decode": 2.1, "detect": 75.0, "track": 0.4, "draw": 1.9, "encode": 4.2},
        tracks=14,
        class_counts=dict.fromkeys(class_names, 3),
    )
    scores = {"idf1": 0.912, "mota": 0.853, "hota": 0.741, "deta": 0.72, "assa": 0.76}
    scores |= {"id_switches": 4, "fp": 31, "fn": 77}
    one = {"name": "demo_video", **scores}
    return video, report("tracking_eval", sequences=[one], classes=[], combined=scores)


def formats(*names: str) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "file": f"outputs/deployment/model_{index}.onnx",
            "size_mib": 12.5 / (index + 1),
            "latency_ms": percentiles(40.0 + index),
            "throughput_img_s": 25.0,
            "map": 0.637,
            "map_50": 0.9,
            "parity": {"matched": 1.0, "max_box_error_px": 0.002},
            "status": "ok",
        }
        for index, name in enumerate(names)
    ]


def onnx_test() -> dict[str, Any]:
    row = {"name": "onnxruntime", "status": "ok", "reason": None, "version": "1.31"}
    row |= {"provider": "CPUExecutionProvider", "detections": 41, "latency_ms": percentiles(17.0)}
    skipped = dict.fromkeys(row) | {"name": "browser", "status": "skipped", "reason": "no browser"}
    return report("onnx_test", runtimes=[row | {"parity": {"matched": 1.0}}, skipped])


def pruning() -> dict[str, Any]:
    def model(name: str, ratio: float | None, **changed: Any) -> dict[str, Any]:
        speedup = ratio and {"ratio": ratio, "ci95": [ratio - 0.02, ratio + 0.02]}
        return {
            **{"name": name, "zero_share": 0.3, "removed_share": 0.0, "size_mib": 7.35},
            **{"size_zip_mib": 5.5, "gflops": 9.5, "latency_ms": percentiles(30.0), "map": 0.637},
            **{"speedup": speedup, "verdict": "within noise", "status": "ok", **changed},
        }

    models = [model("unpruned", None, zero_share=0.0, verdict=None), model("zeros_0.3", 1.0)]
    rejected = "rejected: mAP drop 0.2000 over the budget of 0.02"
    models.append(model("removed_0.3", 1.4, verdict="faster", map=0.437, status=rejected))
    return report(
        "pruning",
        baseline="unpruned",
        models=models,
        noise={"ratio": 1.0, "ci95": [0.97, 1.02]},
        conclusion=["Zeros in dense tensors buy no speed."],
    )


def write_all(outputs: Path, class_names: list[str]) -> None:
    """Fills an outputs folder with one made-up result of every kind."""
    for name in ("metrics", "videos", "deployment"):
        (outputs / name).mkdir(parents=True, exist_ok=True)
    video, tracking_eval = tracking(class_names)
    files = {
        "metrics/data_report.json": data_report(class_names),
        "metrics/training.json": training(class_names),
        "metrics/evaluation.json": evaluation(class_names),
        "metrics/profile.json": profile(),
        "metrics/inference_benchmark.json": benchmark(),
        "metrics/amp_comparison.json": amp(),
        "metrics/tracking_eval.json": tracking_eval,
        "metrics/export.json": report("export", formats=formats("pytorch", "onnx", "exported")),
        "metrics/quantization.json": report("quantization", formats=formats("int8_dynamic")),
        "metrics/onnx_test.json": onnx_test(),
        "metrics/pruning.json": pruning(),
        "videos/demo_video.json": video,
        "deployment/package_info.json": report(
            "package", files={"model.onnx": {"sha256": "b" * 64}, "detect.py": {"sha256": "c" * 64}}
        ),
    }
    for name, content in files.items():
        (outputs / name).write_text(json.dumps(content), encoding="utf-8")
    explained = report("tracking_explained", pictures=["1_iou.png", "4_low_score.png"])
    (outputs / "metrics" / "tracking_explained").mkdir(exist_ok=True)
    file = outputs / "metrics" / "tracking_explained" / "explained.json"
    file.write_text(json.dumps(explained), encoding="utf-8")
    (outputs / "deployment" / "model.onnx").write_bytes(bytes(3 << 20))
    (outputs / "deployment" / "detect.py").write_text("print()\n")
    picture = np.full((120, 400, 3), 200, np.uint8)
    explaining = [f"tracking_explained/{Path(name).stem}" for name in explained["pictures"]]
    for name in ("val_predictions", "worst_misses", "profile_memory", *explaining):
        cv2.imwrite(str(outputs / "metrics" / f"{name}.png"), picture)
    with VideoWriter(outputs / "videos" / "demo_video.mp4", 96, 54, Fraction(12)) as writer:
        for frame in range(60):
            writer.write(np.full((54, 96, 3), frame * 4, np.uint8))
