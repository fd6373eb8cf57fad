"""What a loader process does: reads, augments and pads the images of one batch.

What a sample looks like depends on the seed, the epoch and its index in the data alone: neither
the number of loader processes, nor that of training processes, nor where an interrupted run goes
on changes a pixel.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.cli import UserError
from common.coco import COCODataset, CocoSplit, ImageRecord
from common.models import resized_size
from phase1_training.augmentation import TrainTransform
from phase1_training.batch import Batch
from phase1_training.batch_plan import PlannedBatch


class BatchReader:
    """A data set of batches: its index is a PlannedBatch. A UserError is returned: raised in a
    loader process, it would arrive as a RuntimeError with a traceback inside."""

    def __init__(self, split: CocoSplit, max_size: int, transform: TrainTransform, seed: int):
        self.images = COCODataset(split)
        self.images.records = PackedRecords(split.records)
        self.transform = transform
        self.max_size = max_size
        self.seed = seed

    def __getitem__(self, planned: PlannedBatch) -> Batch | UserError:
        shape = (len(planned.indices), 3, *planned.canvas)
        images = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last).zero_()
        records = [self.images.records[index] for index in planned.indices]
        sizes, targets, seeds = [], [], []
        try:
            for padded, index in zip(images, planned.indices, strict=True):
                image, target, seed = self._sample(index, planned)
                padded[:, : image.shape[1], : image.shape[2]] = image
                sizes.append((image.shape[1], image.shape[2]))
                targets.append(target)
                seeds.append(seed)
        except UserError as error:
            return error
        image_ids = [record.image_id for record in records]
        return Batch(images, sizes, targets, image_ids, [str(r.path) for r in records], seeds)

    def _sample(self, index: int, planned: PlannedBatch) -> tuple[Tensor, dict[str, Tensor], int]:
        image, target = self.images[index]
        height, width = image.shape[1:]
        size = resized_size(height, width, planned.min_size, self.max_size)
        augmentation_seed, sampling_seed = sample_seeds(self.seed, planned.epoch, index)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(augmentation_seed)  # and no CUDA generator
            image, target = self.transform(image, target, size)
        return image, target, sampling_seed


def sample_seeds(seed: int, epoch: int, index: int) -> tuple[int, int]:
    """Two independent seeds of a sample in an epoch, 0 <= seed < 2**63: of its augmentation and of
    its proposal sampling."""
    sequence = np.random.SeedSequence((seed % 2**64, epoch, index))
    first, second = sequence.generate_state(2, np.uint64).tolist()
    return first >> 1, second >> 1


class PackedRecords(Sequence[ImageRecord]):
    """The records of a split in a few flat arrays; a record is made when it is asked for.

    A forked process shares the parent's memory until a page is written to, and merely looking at a
    Python object writes its reference count: with a record of six objects per image, every loader
    process would come to hold a copy of the annotations.
    """

    def __init__(self, records: Sequence[ImageRecord]):
        paths = [os.fsencode(record.path) for record in records]
        self.image_ids = tuple(record.image_id for record in records)  # of any size, so no array
        self.sizes = np.array([(r.width, r.height) for r in records], dtype=np.int64)
        self.paths = np.frombuffer(b"".join(paths), dtype=np.uint8)
        self.path_ends = np.cumsum([0, *map(len, paths)])
        self.box_ends = np.cumsum([0, *(len(record.labels) for record in records)])
        self.boxes_xyxy = np.concatenate([r.boxes_xyxy for r in records])
        self.labels = np.concatenate([r.labels for r in records])
        self.is_crowd = np.concatenate([r.is_crowd for r in records])
        self.areas = np.concatenate([r.areas for r in records])

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index):
        path = self.paths[self.path_ends[index] : self.path_ends[index + 1]].tobytes()
        boxes = slice(self.box_ends[index], self.box_ends[index + 1])
        width, height = self.sizes[index].tolist()
        return ImageRecord(
            self.image_ids[index],
            Path(os.fsdecode(path)),
            width,
            height,
            self.boxes_xyxy[boxes],
            self.labels[boxes],
            self.is_crowd[boxes],
            self.areas[boxes],
        )
