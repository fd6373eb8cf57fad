"""Other anchor sizes: arranged by level, kept in checkpoints, obeyed by every forward pass."""

import pytest
import torch

from common import models
from common.anchors import arrange_sizes, flat_sizes, set_anchor_sizes
from common.cli import UserError

CPU = torch.device("cpu")
ONE_EACH = ((32,), (64,), (128,), (256,), (512,))
ALL_EACH = ((32, 64, 128),) * 3


def test_small_sizes_go_to_fine_levels():
    assert arrange_sizes([90, 10, 20, 40, 300], ONE_EACH) == ((10,), (20,), (40,), (90,), (300,))
    assert arrange_sizes([4, 1, 3, 2], ((0,), (0, 0), (0,))) == ((1,), (2, 3), (4,))
    assert arrange_sizes([9, 5, 7], ALL_EACH) == ((5, 7, 9),) * 3


@pytest.mark.parametrize("levels", [ONE_EACH, ALL_EACH, ((1,), (2, 3), (4,))])
def test_flat_sizes_are_the_way_back(levels):
    assert arrange_sizes(flat_sizes(levels), levels) == levels


@pytest.mark.parametrize(("sizes", "like"), [([1, 2], ONE_EACH), ([1, 2, 3, 4], ALL_EACH)])
def test_another_number_of_sizes_is_one_line(sizes, like):
    with pytest.raises(UserError, match=f"{len(sizes)} sizes, the architecture has"):
        arrange_sizes(sizes, like)


def test_the_anchors_of_the_model_have_the_sizes():
    model = models.build_model("fasterrcnn_resnet50_fpn", 3, anchor_sizes=[8, 16, 24, 48, 96])
    areas = [cell[:, 2:] - cell[:, :2] for cell in model.rpn.anchor_generator.cell_anchors]
    for size, sides in zip((8, 16, 24, 48, 96), areas, strict=True):
        assert len(sides) == 3
        assert sides.prod(dim=1).sqrt().tolist() == pytest.approx([size] * 3, rel=0.1)
    with pytest.raises(ValueError, match="do not have the form"):
        set_anchor_sizes(model, [[8], [16]])


def test_a_checkpoint_remembers_them(tmp_path):
    sizes = [8, 12, 20, 32, 48, 72, 100, 140]
    model = models.build_model("demo", 3, anchor_sizes=sizes).eval()
    path = tmp_path / "model.pth"
    models.save_model(
        path, model, architecture="demo", class_names=["a", "b"], category_ids=[1, 2], summary={}
    )
    loaded = models.load_model(path, CPU).model
    assert loaded.rpn.anchor_generator.sizes == ((8, 12), (20, 32), (48, 72), (100, 140))
    image = [torch.rand(3, 96, 128)]
    with torch.no_grad():
        assert torch.equal(model(image)[0]["boxes"], loaded(image)[0]["boxes"])
        plain = models.build_model("demo", 3).eval()
        plain.load_state_dict(model.state_dict())
        assert not torch.equal(model(image)[0]["boxes"], plain(image)[0]["boxes"])
