"""The log for TensorBoard, read back with TensorBoard's own reader."""

import logging
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from phase1_training.tensorboard_log import STEP_INTERVAL, TensorBoardLog

LOSSES = {"loss_classifier": 0.5, "loss_box_reg": 0.25}


def row(epoch, loss=1.0):
    return {
        "epoch": epoch,
        "train_loss": loss,
        "losses": LOSSES,
        "val": {
            "map": 0.1 * epoch,
            "map_50": 0.2 * epoch,
            "map_75": 0.05 * epoch,
            "per_class": {"disc": None},
            "losses": {**LOSSES, "loss": 0.75},
        },
        "learning_rate": 0.01,
        "images_per_s": 12.5,
    }


def read(folder):
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()


def scalars(folder):
    """{tag: [(step, value), ...]}"""
    log = read(folder)
    return {
        tag: [(event.step, pytest.approx(event.value)) for event in log.Scalars(tag)]
        for tag in log.Tags()["scalars"]
    }


def test_an_epoch_is_written_whole(tmp_path):
    with TensorBoardLog(tmp_path) as log:
        log.epoch(150, row(1), peak_memory_mib=321.0)
        log.epoch(300, row(2, loss=0.5), peak_memory_mib=322.0)
    assert scalars(tmp_path) == {
        "epoch": [(150, 1), (300, 2)],
        "train/loss": [(150, 1.0), (300, 0.5)],
        "train/loss_classifier": [(150, 0.5), (300, 0.5)],
        "train/loss_box_reg": [(150, 0.25), (300, 0.25)],
        "val/loss": [(150, 0.75), (300, 0.75)],
        "val/loss_classifier": [(150, 0.5), (300, 0.5)],
        "val/loss_box_reg": [(150, 0.25), (300, 0.25)],
        "val/map": [(150, 0.1), (300, 0.2)],
        "val/map_50": [(150, 0.2), (300, 0.4)],
        "val/map_75": [(150, 0.05), (300, 0.1)],
        "learning_rate": [(150, 0.01), (300, 0.01)],
        "images_per_s": [(150, 12.5), (300, 12.5)],
        "peak_memory_mib": [(150, 321.0), (300, 322.0)],
    }


def test_some_steps_are_written_and_the_others_not_read(tmp_path):
    class Unread:
        def __getattr__(self, name):
            raise AssertionError("reading a loss waits for the GPU")

    losses = {"loss_classifier": torch.tensor(0.5), "loss_box_reg": torch.tensor(2.0)}
    with TensorBoardLog(tmp_path) as log:
        for step in range(1, 2 * STEP_INTERVAL + 1):
            due = step % STEP_INTERVAL == 0
            log.step(step, losses if due else dict.fromkeys(losses, Unread()), 0.01 * step)
    steps = (STEP_INTERVAL, 2 * STEP_INTERVAL)
    assert scalars(tmp_path) == {
        "step/loss": [(step, 2.5) for step in steps],
        "step/loss_classifier": [(step, 0.5) for step in steps],
        "step/loss_box_reg": [(step, 2.0) for step in steps],
        "step/learning_rate": [(step, 0.01 * step) for step in steps],
    }


def test_a_continued_run_has_no_step_twice(tmp_path):
    losses = {"loss_classifier": torch.tensor(1.0)}
    with TensorBoardLog(tmp_path) as log:
        log.settings({"epochs": 3})
        for step in range(1, 101):
            log.step(step, losses, 0.01)
        log.epoch(50, row(1))
        log.epoch(100, row(2))  # its checkpoint was not written: the run was killed
    with TensorBoardLog(tmp_path, steps_done=50) as log:
        for step in range(51, 151):
            log.step(step, {"loss_classifier": torch.tensor(2.0)}, 0.01)
        log.epoch(100, row(2, loss=0.7))
        log.epoch(150, row(3))
    found = scalars(tmp_path)
    assert found["train/loss"] == [(50, 1.0), (100, 0.7), (150, 1.0)]
    assert found["epoch"] == [(50, 1), (100, 2), (150, 3)]
    expected = [(step, 1.0 if step <= 50 else 2.0) for step in range(20, 151, STEP_INTERVAL)]
    assert found["step/loss_classifier"] == expected
    assert "recipe/text_summary" in read(tmp_path).Tags()["tensors"]  # of the beginning


def test_a_replaced_run_leaves_nothing(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for loss in (1.0, 0.5):
        with TensorBoardLog(tmp_path) as log:
            log.epoch(10, row(1, loss))
    assert scalars(tmp_path)["train/loss"] == [(10, 0.5)]
    assert len(list(tmp_path.glob("events*"))) == 1
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_pictures_come_back_pixel_by_pixel(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).convert("RGBA").save(tmp_path / "grid.png")  # as matplotlib writes
    with TensorBoardLog(tmp_path / "log") as log:
        log.picture("validation predictions", tmp_path / "grid.png", 70)
    found = read(tmp_path / "log")
    (tag,) = found.Tags()["images"]
    (event,) = found.Images(tag)
    assert (event.step, event.width, event.height) == (70, 30, 20)
    (tmp_path / "back.png").write_bytes(event.encoded_image_string)
    with Image.open(tmp_path / "back.png") as picture:
        assert np.array_equal(np.asarray(picture), pixels)


def test_settings_are_text_and_hyperparameters(tmp_path):
    recipe = {"optimizer": "sgd", "learning_rate": 0.02, "fused": True, "stages": None}
    with TensorBoardLog(tmp_path) as log:
        log.settings({**recipe, "name": "a|b\nc", "min_sizes": (480, 512)})
    found = read(tmp_path)
    text = found.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0].decode()
    for line in ("| learning_rate | 0.02 |", r"| name | a\|b c |", "| min_sizes | [480, 512] |"):
        assert line in text.splitlines()
    content = found.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    values = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert values["learning_rate"].number_value == 0.02
    assert values["optimizer"].string_value == "sgd"
    assert values["fused"].number_value == 1
    assert values["min_sizes"].string_value == "[480, 512]"
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_dir()] == []  # no second run


def use_all(log, picture):
    log.settings({"epochs": 1})
    log.step(STEP_INTERVAL, {"loss_classifier": torch.tensor(1.0)}, 0.01)
    log.epoch(10, row(1))
    log.picture("training batch", picture, 0)
    log.close()


@pytest.fixture
def picture(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.mark.fault("C-08")
def test_without_tensorboard_one_line_is_logged(tmp_path, picture, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with caplog.at_level(logging.INFO, logger="detection"):
        use_all(TensorBoardLog(tmp_path / "log"), picture)
    (record,) = caplog.records
    assert "pip install tensorboard" in record.getMessage()
    assert not (tmp_path / "log").exists()


def test_a_folder_that_cannot_be_made_ends_no_training(tmp_path, picture, caplog):
    (tmp_path / "log").write_text("a file")
    use_all(TensorBoardLog(tmp_path / "log"), picture)
    (record,) = caplog.records
    assert record.getMessage().startswith("No TensorBoard log: ")


def test_a_full_disk_ends_the_log_and_not_the_training(tmp_path, picture, monkeypatch, caplog):
    log = TensorBoardLog(tmp_path / "log")

    def is_full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(log._writer, "flush", is_full)
    use_all(log, picture)
    (record,) = caplog.records
    assert record.getMessage().startswith("The TensorBoard log ends here: ")
    assert "No space left" in record.getMessage()
