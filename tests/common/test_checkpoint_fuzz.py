"""Checkpoints whose bytes or values are not those that were saved, loaded in child processes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from common import artifacts, models
from common.cli import UserError
from common.models import load_model, stock_predictor
from tests.child_processes import run_ranks
from tests.damage import assert_one_line_about, damaged
from tests.long_runs import count, times

CHUNK = 250  # files a child process loads; one that it hangs at is told after a minute
CONTENT = {
    "model_state_dict": {"weight": torch.arange(200.0), "counts": torch.arange(9)},
    "class_names": ["a", "Fußgänger"],
    "num_classes": 3,
}
CPU = torch.device("cpu")


def same(first, second) -> bool:
    if isinstance(second, dict):
        is_alike = isinstance(first, dict) and first.keys() == second.keys()
        return is_alike and all(same(first[key], second[key]) for key in second)
    if isinstance(second, torch.Tensor):
        return isinstance(first, torch.Tensor) and torch.equal(first, second)
    return bool(first == second)


def load_damaged(path: Path, whole: bytes, seeds: range) -> tuple[int, list[int]]:
    """How many files were loaded as they had been saved, and the seeds of those that were not."""
    loaded, wrong = 0, []
    for seed in seeds:
        path.with_suffix(".seed").write_text(str(seed))
        path.write_bytes(damaged(whole, seed))
        try:
            content = artifacts.load_checkpoint(path)
        except UserError as error:
            assert_one_line_about(path, error)
            continue
        loaded += 1
        if not same(content, CONTENT):
            wrong.append(seed)
    return loaded, wrong


@pytest.mark.long
@pytest.mark.fault("P1-52")
def test_damage_is_noticed_also_without_a_sidecar(tmp_path):
    """Some bytes are padding: only there a damaged file may be loaded, and is as it was."""
    path, all_loaded = tmp_path / "best.pth", 0
    artifacts.save_checkpoint(path, CONTENT, {})
    whole = path.read_bytes()
    artifacts.sidecar(path).unlink()
    for start in range(0, times(CHUNK, 3000), CHUNK):
        count("damaged files", CHUNK)
        seeds = range(start, start + CHUNK)
        (result,) = run_ranks(load_damaged, 1, path, whole, seeds)
        assert isinstance(result, tuple), (result, path.with_suffix(".seed").read_text())
        loaded, wrong = result
        assert wrong == []
        all_loaded += loaded
    assert 0 < all_loaded < times(CHUNK, 3000) // 2


@pytest.mark.fault("P1-52")
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    """An archive of a few kB whose parts are 64 MB of zeros."""
    import zipfile

    path, bomb = tmp_path / "best.pth", tmp_path / "bomb.pth"
    torch.save({"model_state_dict": {"weight": torch.zeros(1 << 24)}}, path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as sink:
        for part in source.infolist():
            sink.writestr(part.filename, source.read(part))
    assert bomb.stat().st_size < 100_000
    torch.load(bomb, weights_only=True)  # the attack itself has to work
    with pytest.raises(UserError, match=r"bomb\.pth: not a checkpoint, damaged"):
        artifacts.load_checkpoint(bomb)


# --- values -----------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
VALUES = [
    *(None, True, False, 0, -1, 1, 2, 3, 10**6, 10**9, 10**30, 1.5, NAN, INF, "", "a", "demo"),
    *(b"x", [], [1], [1, 2], [1.5, 2], ["a", "b"], ["a", 2], [None, None], ["3", "7"], [3, 3]),
    *({}, {"a": 1}, {1: torch.zeros(2)}, torch.zeros(2), torch.full((2,), NAN), "ab", (4, 9)),
    *([[16, 24]], [[1e30] * 2] * 4, [[0, 8]] * 4, [[-1, 2]] * 4, [[NAN, 1]] * 4, [["a", 1]] * 4),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "model.pth"
    model = models.build_model("demo", 3, min_size=64, max_size=96)
    names = {"class_names": ["a", "b"], "category_ids": [3, 7]}
    models.save_model(path, model, architecture="demo", summary={}, **names)
    return path


def load_with(path: Path, entry: str, numbers: list[int]) -> list[str]:
    """What is wrong with models loaded from checkpoints with other values of one entry."""
    content, wrong = artifacts.load_checkpoint(path), []
    other = path.with_name("other.pth")
    picture = np.zeros((40, 50, 3), np.uint8)
    for number in numbers:
        value = VALUES[number]
        torch.save({**content, entry: value}, other)
        try:
            loaded = load_model(other, CPU)
        except UserError as error:
            assert_one_line_about(other, error)
            continue
        (found,) = stock_predictor(loaded.model, CPU)([picture])
        if not usable(loaded) or not np.isfinite(found.boxes_xyxy).all():
            wrong.append(f"{entry} {value!r:.80}")
    return wrong


def usable(loaded: models.LoadedModel) -> bool:
    names, ids = loaded.class_names, loaded.category_ids
    return (
        len(names) == len(ids) == len(set(ids)) == 2
        and all(isinstance(name, str) for name in names)
        and all(isinstance(category, int) for category in ids)
        and loaded.model.transform.max_size >= 1
    )


ENTRIES = (
    *("architecture", "num_classes", "min_size", "max_size", "anchor_sizes", "frozen_norm_eps"),
    *("frozen", "class_names", "category_ids", "model_state_dict"),
)


@pytest.mark.long
@pytest.mark.parametrize("entry", ENTRIES)
def test_values_that_no_training_writes_are_refused_at_once(saved, entry):
    """Ten million classes would be a model of 10 GB, a text in the place of names one name each."""
    numbers = list(range(len(VALUES)))[:: times(3, 1)]
    count("examples", len(numbers))
    (wrong,) = run_ranks(load_with, 1, saved, entry, numbers)
    assert wrong == []


def test_weights_that_are_no_numbers_are_refused(saved, tmp_path):
    """They find nothing, silently."""
    content = artifacts.load_checkpoint(saved)
    state = dict(content["model_state_dict"])
    name = "roi_heads.box_predictor.cls_score.bias"
    state[name] = torch.full_like(state[name], NAN)
    torch.save({**content, "model_state_dict": state}, tmp_path / "model.pth")
    with pytest.raises(UserError, match=rf"{name} holds values that are no finite numbers"):
        load_model(tmp_path / "model.pth", CPU)
