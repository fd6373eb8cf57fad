"""The versions that are compared: their files, and what is said where one is not as it must be."""

import copy
import zipfile

import numpy as np
import pytest
import torch

from common.models import load_model
from phase4_deployment.pruned import channel_removal, pruned_models
from phase4_deployment.pruned.pruned_models import (
    KINDS,
    REMOVED_CHANNELS,
    UNPRUNED,
    ZERO_WEIGHTS,
    PruningPlan,
    compressed_bytes,
    make_all,
    parameter_count,
)
from phase4_deployment.pruned.sparsity import zero_share

CPU = torch.device("cpu")
PARTS = ("backbone", "rpn", "box_head")


def plan(method: str = "both", amounts: tuple[float, ...] = (0.5,), epochs: int = 0) -> PruningPlan:
    return PruningPlan(KINDS[method], amounts, PARTS, "global", 8, epochs, None)


@pytest.fixture
def make(exported, tmp_path):
    def call(the_plan):
        return make_all(
            exported.loaded, the_plan, tmp_path, data_path=None, device_name="cpu", seed=0
        )

    return call


def test_all_versions_are_made_and_read_back_from_their_files(make, exported):
    original = {name: v.clone() for name, v in exported.loaded.model.state_dict().items()}
    versions = make(plan(amounts=(0.3, 0.5)))
    assert [version.name for version in versions] == [
        "unpruned",
        *("zero_weights_0.3", "zero_weights_0.5"),
        *("zero_channels_0.3", "removed_channels_0.3"),
        *("zero_channels_0.5", "removed_channels_0.5"),
    ]
    counts = [parameter_count(version.model) for version in versions]
    assert [*counts[:4], counts[5]] == [counts[0]] * 5
    assert counts[6] < counts[4] < counts[0]
    for version in versions:
        again = load_model(version.file, CPU).model
        assert parameter_count(again) == parameter_count(version.model)
        assert version.fault == ""
    after = exported.loaded.model.state_dict()
    assert all(torch.equal(original[name], after[name]) for name in original)  # others use it, too


@pytest.mark.parametrize("difference", [0.1, float("nan")])
def test_a_removal_that_changes_outputs_is_a_fault(make, monkeypatch, difference):
    monkeypatch.setattr(channel_removal, "largest_difference", lambda *_: difference)
    *_, removed = make(plan("structured"))
    assert removed.kind == REMOVED_CHANNELS
    assert removed.fault.startswith("removal changed the outputs by ")


def test_training_that_fills_zeros_is_a_fault(make, monkeypatch, exported, tmp_path):
    def forget(checkpoint, folder, **_):
        return exported.model_path

    monkeypatch.setattr(pruned_models, "finetune", forget)
    _, version = make(plan("unstructured", epochs=1))
    assert version.fault == "training filled zeros: 0.0000 of 0.5000 are left"


def test_zeroed_channels_are_not_trained_apart(make, monkeypatch):
    trained = []

    def copy_of(checkpoint, folder, *, keep_zeros, **_):
        trained.append((folder.name, keep_zeros))
        folder.mkdir()
        path = folder / "best_model.pth"
        path.write_bytes(checkpoint.read_bytes())
        return path

    monkeypatch.setattr(pruned_models, "finetune", copy_of)
    versions = make(plan(epochs=2))
    assert trained == [("zero_weights_0.5", True), ("removed_channels_0.5", False)]
    before = {version.name: version.before_finetuning is not None for version in versions}
    assert before == {
        "unpruned": False,
        "zero_weights_0.5": True,
        "zero_channels_0.5": False,
        "removed_channels_0.5": True,
    }
    assert versions[-1].facts["layers_pruned"] == 9


def test_the_compressed_size_is_that_of_a_zip(tmp_path):
    numbers = np.random.default_rng(0).standard_normal(2**20).astype(np.float32)
    sparse = copy.copy(numbers)
    sparse[: 2**19] = 0
    sizes = []
    for name, values in (("dense", numbers), ("sparse", sparse)):
        path = tmp_path / name
        path.write_bytes(values.tobytes())
        sizes.append(compressed_bytes(path))
        with zipfile.ZipFile(tmp_path / "file.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(path, name)
        with zipfile.ZipFile(tmp_path / "file.zip") as archive:
            assert sizes[-1] == pytest.approx(archive.getinfo(name).compress_size, rel=1e-3)
    assert sizes[1] < 0.55 * sizes[0]


def test_no_name_stands_for_two_versions(make):
    versions = make(plan("unstructured", (0.25, 0.5)))
    assert [version.kind for version in versions] == [UNPRUNED, ZERO_WEIGHTS, ZERO_WEIGHTS]
    assert len({version.file for version in versions}) == 3
    assert [round(zero_share(version.model), 3) for version in versions] == [0, 0.25, 0.5]
