"""Batches as they reach the training step: equal however they are read, and honest when not."""

import argparse
import gc
import os
import pickle
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from common import cli
from common.cli import UserError
from common.coco import COCODataset, load_split
from common.models import resized_size
from phase1_training import loading
from phase1_training.loading import TrainingLoader
from tests.coco_data import annotation, image, write_annotations

SIZES = [(48, 64), (64, 48), (30, 40), (60, 60), (20, 160), (48, 64), (64, 48)]  # height, width


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Noise pictures of SIZES; picture k has k boxes."""
    folder, rng = tmp_path_factory.mktemp("loading"), np.random.default_rng(0)
    (folder / "images").mkdir()
    images, annotations = [], []
    for k, (height, width) in enumerate(SIZES):
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"bild_{k}_é.png")
        images.append(image(10 + k, f"bild_{k}_é.png", width, height))
        for n in range(k):
            annotations.append(annotation([n, n, 10 + n, 8], len(annotations) + 1, 10 + k))
    return write_annotations(folder, *annotations, images=images)


@pytest.fixture(scope="module")
def split(folder):
    return load_split(folder, "train")


def loader_of(split, **changes):
    settings = {
        "batch_size": 2,
        "min_sizes": (40, 64),
        "max_size": 96,
        "crop_probability": 0.5,
        "color_jitter": 0.2,
        "seed": 3,
        "workers": 0,
        "pin_memory": False,
    }
    return TrainingLoader(split, **{**settings, **changes})


@pytest.fixture(scope="module")
def two_workers(split):
    loader = loader_of(split, workers=2)
    yield loader
    loader.close()


def content(batch):
    """Everything of a batch that `==` can compare."""
    names = ("sizes", "box_counts", "image_ids", "paths", "seeds")
    tensors = [tensor.tolist() for tensor in (batch.images, batch.boxes, batch.labels)]
    return [*tensors, *(getattr(batch, name) for name in names)]


def contents(batches):
    return [content(batch) for batch in batches]


def samples(batches):
    """{image id: (pixels without the padding, boxes, seed)}"""
    return {
        image_id: (pixels[:, :height, :width].tolist(), target["boxes"].tolist(), seed)
        for batch in batches
        for image_id, pixels, (height, width), target, seed in zip(
            batch.image_ids, batch.images, batch.sizes, batch.targets, batch.seeds, strict=True
        )
    }


# --- what is read -----------------------------------------------------------------------------


def test_an_epoch_reads_every_image_once_onto_canvases_of_the_list(split):
    loader = loader_of(split)
    batches = list(loader.epoch(1))
    assert len(batches) == loader.batches_per_epoch == 4
    assert sorted(i for batch in batches for i in batch.image_ids) == list(range(10, 17))
    for batch in batches:
        assert (batch.images.dtype, batch.boxes.dtype) == (torch.uint8, torch.float32)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert tuple(batch.images.shape[2:]) in loader.shapes()
        assert len(batch) == len(batch.targets) == len(batch.paths) == len(batch.seeds)
        for pixels, (height, width), path, image_id in zip(
            batch.images, batch.sizes, batch.paths, batch.image_ids, strict=True
        ):
            k = image_id - 10
            assert Path(path).name == f"bild_{k}_é.png"
            assert (height, width) in {resized_size(*SIZES[k], side, 96) for side in (40, 64)}
            assert pixels[:, height:].sum() == pixels[:, :, width:].sum() == 0
            assert pixels[:, :height, :width].float().mean() > 60
    assert {b for batch in batches for b in batch.box_counts} > {0}


def test_pixels_are_those_of_the_resized_file(split):
    """Nothing between file and batch costs quality: no reduced decoding, no second resize."""
    loader = loader_of(split, crop_probability=0, min_sizes=(40,))
    loader._loader.dataset.transform.flip_and_colour = v2.Identity()
    originals = COCODataset(split)
    for image_id, (pixels, boxes, _) in samples(loader.epoch(1)).items():
        original, target = originals[image_id - 10]
        size = list(resized_size(*original.shape[1:], 40, 96))
        expected = v2.functional.resize(original, size, antialias=False)
        assert pixels == expected.tolist()
        assert boxes == v2.functional.resize(target["boxes"], size).tolist()


def test_the_number_of_workers_changes_nothing(split, two_workers):
    for epoch in (1, 2):
        assert contents(loader_of(split).epoch(epoch)) == contents(two_workers.epoch(epoch))


def test_reading_in_this_process_computes_with_one_thread_too(split):
    """The mean brightness that contrast is changed about differs in its last bits otherwise."""
    loader, seen = loader_of(split), set()
    transform = loader._loader.dataset.transform

    def watched(*sample):
        seen.add(torch.get_num_threads())
        return transform(*sample)

    loader._loader.dataset.transform = watched
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        list(loader.epoch(1))
        assert (seen, torch.get_num_threads()) == ({1}, 2)
    finally:
        torch.set_num_threads(threads)


def test_loader_processes_are_kept_for_the_whole_run(two_workers):
    list(two_workers.epoch(1))
    before = [process.pid for process in two_workers._processes]
    list(two_workers.epoch(2))
    assert [process.pid for process in two_workers._processes] == before
    assert len(before) == 2


@pytest.mark.parametrize("first", [0, 1, 3, 4])
def test_an_epoch_goes_on_in_the_middle(split, two_workers, first):
    whole = contents(two_workers.epoch(5))
    assert contents(two_workers.epoch(5, first_batch=first)) == whole[first:]
    assert contents(loader_of(split).epoch(5, first_batch=first)) == whole[first:]


def test_an_epoch_that_was_left_does_not_leak_into_the_next(two_workers):
    expected = contents(two_workers.epoch(2))
    next(two_workers.epoch(1))
    assert contents(two_workers.epoch(2)) == expected


def test_neither_seed_nor_other_draws_of_the_process_matter(split, two_workers):
    for loader in (loader_of(split), two_workers):
        torch.manual_seed(1)
        first = contents(loader.epoch(1))
        torch.manual_seed(2)
        assert contents(loader.epoch(1)) == first


def test_reading_draws_from_no_global_generator(split):
    def states():
        numpy_state = np.random.get_state()[1].tolist()  # noqa: NPY002 - the global one is meant
        return random.getstate(), numpy_state, torch.get_rng_state().tolist()

    for workers in (0, 1):
        loader = loader_of(split, workers=workers)
        before = states()
        list(loader.epoch(1))
        assert states() == before
        loader.close()


def test_samples_do_not_depend_on_their_batch_or_process(split):
    """Two training processes see together exactly what one with the doubled batch sees."""
    one = samples(loader_of(split, batch_size=4).epoch(1))
    ranks = [loader_of(split, batch_size=2, world_size=2, rank=rank) for rank in (0, 1)]
    two = [samples(rank.epoch(1)) for rank in ranks]
    assert {**two[0], **two[1]} == one
    assert not two[0].keys() & two[1].keys()
    fixed = {"min_sizes": (40,)}  # another batch size draws other scales
    assert samples(loader_of(split, **fixed, batch_size=3).epoch(1)) == samples(
        loader_of(split, **fixed, batch_size=7).epoch(1)
    )


def test_epochs_and_seeds_look_different(split):
    first = samples(loader_of(split, min_sizes=(40,)).epoch(1))
    assert samples(loader_of(split, min_sizes=(40,)).epoch(2)) != first
    assert samples(loader_of(split, min_sizes=(40,), seed=-1).epoch(1)) != first


def test_a_process_without_images_gets_empty_batches(split):
    plans = [loader_of(split, batch_size=4, world_size=9, rank=r) for r in range(9)]
    batches = [list(loader.epoch(1)) for loader in plans]
    assert [[len(batch) for batch in rank] for rank in batches] == [[1]] * 7 + [[0]] * 2
    assert len({batch.images.shape[1:] for rank in batches for batch in rank}) == 1
    assert batches[8][0].targets == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_loader_process_frees_nothing_of_the_main_one():
    freed = []

    class Decoder:
        def __del__(self):
            freed.append(os.getpid())

    def throw_away():
        decoder = Decoder()
        decoder.itself = decoder

    gc.collect()
    gc.disable()
    try:
        throw_away()
        child = os.fork()
        if child == 0:
            try:
                loading._begin_loader_process(0)
                throw_away()
                gc.collect()
            finally:
                os._exit(len(freed))  # its own, and not the one it inherits
    finally:
        gc.enable()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    gc.collect()
    assert freed == [os.getpid()]


def test_what_is_thrown_away_is_freed_before_loader_processes_begin(split, monkeypatch):
    events = []
    monkeypatch.setattr(loading.gc, "collect", lambda: events.append("freed"))
    for workers, expected in ((0, []), (1, ["freed"])):
        loader = loader_of(split, workers=workers)
        list(loader.epoch(1))
        list(loader.epoch(2))
        loader.close()
        assert events == expected


@pytest.mark.slow
def test_a_loader_process_that_is_not_forked_reads_the_same(split):
    """As on Windows and macOS, where the data set is pickled."""
    loader = loader_of(split, workers=1)
    loader._loader.multiprocessing_context = "spawn"
    batches = contents(loader.epoch(1))
    loader.close()
    assert batches == contents(loader_of(split).epoch(1))
    assert len(pickle.dumps(loader._loader.dataset)) < 10_000


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_arrive_in_page_locked_memory(split):
    for workers in (0, 2):
        loader = loader_of(split, workers=workers, pin_memory=True, world_size=5, rank=4)
        plain = loader_of(split, world_size=5, rank=4)
        batches = list(loader.epoch(1))
        loader.close()
        assert contents(batches) == contents(plain.epoch(1))
        for batch in batches:
            assert batch.images.is_pinned() or len(batch) == 0
            assert batch.boxes.is_pinned() or len(batch.boxes) == 0
            moved = batch.to(torch.device("cuda"))
            assert content(moved) == content(batch)


# --- when it goes wrong -----------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_told_in_one_line(folder, split, tmp_path, workers):
    copy = tmp_path / "data"
    shutil.copytree(folder, copy)
    (copy / "images" / "bild_4_é.png").write_bytes(b"no picture")
    loader = loader_of(load_split(copy, "train"), workers=workers)
    with pytest.raises(UserError, match=r"bild_4_é\.png: cannot be decoded .* – replace the image"):
        list(loader.epoch(1))
    loader.close()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
@pytest.mark.fault("P1-55")
def test_a_killed_loader_process_is_told_in_one_line(split, capsys):
    """And only when a batch is asked for: never in the middle of something else."""
    loader = loader_of(split, workers=2)

    def train():
        for _ in range(3):
            for _ in loader.epoch(1):
                os.kill(loader._processes[1].pid, signal.SIGKILL)
                time.sleep(0.3)  # an interrupted step would show here

    args = argparse.Namespace(quiet=True, debug=False)
    assert cli.run(train, args) == cli.EXIT_USER_ERROR
    loader.close()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --workers 2: a loader process was killed, as the system does")
    assert line.endswith("– use fewer --workers or a smaller --batch-size")


@pytest.mark.skipif(not hasattr(os, "getpgid"), reason="needs POSIX process groups")
def test_a_stop_of_the_run_leaves_the_loader_processes_to_the_main_one(two_workers):
    """Ctrl-C in a terminal reaches the whole group; the step is finished and saved first."""
    batches = two_workers.epoch(1)
    next(batches)
    for process in two_workers._processes:
        assert os.getpgid(process.pid) == process.pid
        os.kill(process.pid, signal.SIGINT)
    assert len(list(batches)) == 3
    assert len(list(two_workers.epoch(2))) == 4


def test_a_bug_in_a_loader_process_stays_a_bug(split):
    def broken(*sample):
        raise RuntimeError("a bug")

    loader = loader_of(split, workers=1)
    loader._loader.dataset.transform = broken
    with pytest.raises(RuntimeError, match="a bug"):
        list(loader.epoch(1))
    loader.close()


def test_closing_ends_the_loader_processes(split):
    loader = loader_of(split, workers=1)
    next(loader.epoch(1))
    (process,) = loader._processes
    loader.close()
    assert not process.is_alive()
    loader.close()
    assert len(list(loader.epoch(1))) == 4
    loader.close()
