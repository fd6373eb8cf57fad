"""Box arithmetic by hand; test_inference_graph.py compares it with torchvision."""

import torch

from common.box_arithmetic import by_class, clip, decode, has_sides, take_best


def test_decode_moves_and_grows_by_hand():
    box = torch.tensor([10.0, 20.0, 30.0, 60.0])  # 20 x 40 around (20, 40)
    deltas = torch.tensor([1.0, -1.0, 5 * torch.log(torch.tensor(2.0)), 100.0])
    moved = decode(deltas, box, (10, 10, 5, 5))
    # centre (20 + 0.1 * 20, 40 - 0.1 * 40), width twice, height at most 1000 / 16 times
    torch.testing.assert_close(moved, torch.tensor([2.0, 36 - 1250, 42.0, 36 + 1250]))


def test_clip_and_sides_by_hand():
    boxes = torch.tensor([[-5.0, 2.0, 50.0, 3.0], [4.0, 4.0, 4.5, 9.0]])
    clipped = clip(boxes, torch.tensor([40.0, 30.0, 40.0, 30.0]))
    assert clipped.tolist() == [[0, 2, 40, 3], [4, 4, 4.5, 9]]
    assert has_sides(clipped, 1.0).tolist() == [True, False]


def test_by_class_regroups_by_hand():
    boxes, scores = torch.arange(24.0).reshape(3, 2, 4), torch.arange(6.0).reshape(3, 2)
    grouped_boxes, grouped_scores = by_class(boxes, scores, batch=1)
    assert grouped_scores.tolist() == [[[0, 2, 4], [1, 3, 5]]]
    assert grouped_boxes[0, 1, 2].tolist() == [20, 21, 22, 23]


def test_take_best_fills_up_with_absent_places():
    scores = torch.tensor([[0.2, 0.9]])
    boxes = torch.arange(8.0).reshape(1, 2, 4)
    best_boxes, best_scores, index = take_best(scores, boxes, 3)
    torch.testing.assert_close(best_scores, torch.tensor([[0.9, 0.2, -1.0]]))
    assert index[0, :2].tolist() == [1, 0]
    assert best_boxes[0, 0].tolist() == [4, 5, 6, 7]
