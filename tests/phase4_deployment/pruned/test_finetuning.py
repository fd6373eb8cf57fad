"""Fine-tuning is phase 1's training: it keeps shapes and zeros, and its errors are told."""

import sys
import time

import pytest
import torch

from common.cli import UserError, log
from common.coco import load_split
from common.hidden_channels import find_hidden_channels, keep_channels
from common.models import build_model, load_model, save_model
from phase4_deployment.pruned import finetuning
from phase4_deployment.pruned.sparsity import zero_share, zero_weights
from tests.phase4_deployment.test_quantization import write_data

CPU = torch.device("cpu")


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data", {"train": 4, "val": 1})


@pytest.fixture
def tune(data, tmp_path):
    """Trains a model for an epoch and returns the one that comes out."""
    split = load_split(data, "train")

    def call(model, *, data_path=data, keep_zeros=False):
        start = tmp_path / "start.pth"
        names, ids = split.class_names, split.category_ids
        save_model(
            start, model, architecture="demo", class_names=names, category_ids=ids, summary={}
        )
        best = finetuning.finetune(
            start,
            tmp_path / "run",
            data_path=data_path,
            epochs=1,
            learning_rate=1e-3,
            keep_zeros=keep_zeros,
            device_name="cpu",
            seed=0,
        )
        return load_model(best, CPU).model

    return call


def test_a_narrow_and_sparse_model_is_trained_as_it_is(tune):
    model = build_model("demo", 4, min_size=64, max_size=96)
    for channels in find_hidden_channels(model):
        keep_channels(model, channels, torch.arange(16))
    zero_weights(model, 0.6, ("backbone", "rpn", "box_head"), scope="layer")
    before = {name: values.clone() for name, values in model.state_dict().items()}
    trained = tune(model, keep_zeros=True)
    after = trained.state_dict()
    assert {n: v.shape for n, v in after.items()} == {n: v.shape for n, v in before.items()}
    assert zero_share(trained) == zero_share(model) == pytest.approx(0.6, abs=1e-3)
    for name in ("backbone.body.layer2.0.conv1.weight", "roi_heads.box_head.fc6.weight"):
        assert ((before[name] == 0) == (after[name] == 0)).all()
        assert not torch.equal(before[name], after[name])


def test_what_is_wrong_with_the_training_is_told(tune, tmp_path):
    with pytest.raises(UserError, match=r"train\.py ended with status 2: .*nowhere") as told:
        tune(build_model("demo", 4), data_path=tmp_path / "nowhere")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "run" / "best_model.pth").exists()


def test_the_training_ends_with_us(monkeypatch, tmp_path):
    """A signal while it runs: the child is told to end before the signal goes on."""
    mark = tmp_path / "ended"
    child = (
        "import pathlib, signal, sys, time\n"
        f"end = lambda *_: (pathlib.Path({str(mark)!r}).touch(), sys.exit(0))\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print('epoch 1/1', flush=True)\n"
        "time.sleep(60)\n"
    )

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(log, "info", interrupt)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        finetuning._run([sys.executable, "-c", child])
    assert mark.exists()
    assert time.monotonic() - started < 30


def test_epochs_are_told_and_other_lines_are_not(caplog):
    child = "import sys; print('Saved x'); print('epoch 1/2: loss 1'); sys.exit('error: no')"
    with caplog.at_level("INFO", logger=log.name):
        assert finetuning._run([sys.executable, "-c", child]) == (1, "error: no\n")
    assert [record.getMessage() for record in caplog.records] == ["  epoch 1/2: loss 1"]
