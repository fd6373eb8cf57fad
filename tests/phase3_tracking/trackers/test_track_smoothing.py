"""Offline smoothing of finished tracks."""

import numpy as np
import pytest

from phase3_tracking.mot_files import MotBoxes, from_rows
from phase3_tracking.trackers.track_smoothing import smooth, smooth_frames


def track(*frames_and_x: tuple[int, float], name: int = 1, score: float = 0.9) -> MotBoxes:
    return from_rows(np.array([[f, name, x, 5, 10, 20, score, 3] for f, x in frames_and_x]))


def joined(*tracks: MotBoxes) -> MotBoxes:
    rows = [
        np.column_stack(
            [
                one.frames,
                one.ids,
                one.boxes_xyxy[:, :2],
                one.boxes_xyxy[:, 2:] - one.boxes_xyxy[:, :2],
                one.confidences,
                one.classes,
            ]
        )
        for one in tracks
    ]
    return from_rows(np.concatenate(rows))


def test_gaps_are_filled_along_a_line():
    smoothed = smooth(track((1, 0), (4, 30)), 30, sigma_s=0)
    assert smoothed.frames.tolist() == [1, 2, 3, 4]
    assert smoothed.boxes_xyxy[:, 0].tolist() == pytest.approx([0, 10, 20, 30])
    assert smoothed.boxes_xyxy[1].tolist() == pytest.approx([10, 5, 20, 25])
    assert smoothed.ids.tolist() == [1] * 4
    assert smoothed.classes.tolist() == [3] * 4


@pytest.mark.parametrize(("frame", "count"), [(31, 31), (32, 2)])
def test_gaps_longer_than_a_second_stay_open(frame, count):
    assert len(smooth(track((1, 0), (frame, 0)), 30)) == count


def test_a_filled_box_has_the_lower_confidence_of_its_neighbours():
    both = joined(track((1, 0), score=0.9), track((3, 0), score=0.4))
    assert smooth(both, 30).confidences.tolist() == [0.9, 0.4, 0.4]


def test_tracks_do_not_mix():
    both = joined(track((1, 0), (3, 0)), track((1, 500), (3, 500), name=2))
    smoothed = smooth(both, 30)
    assert smoothed.frames.tolist() == [1, 1, 2, 2, 3, 3]
    np.testing.assert_allclose(smoothed.boxes_xyxy[smoothed.ids == 2, 0], 500)


def test_jitter_shrinks_and_a_steady_motion_stays():
    rng = np.random.default_rng(0)
    truth = 2.0 * np.arange(100)
    noisy = truth + rng.normal(0, 3, 100)
    frames = np.arange(1, 101)
    smoothed = smooth(track(*zip(frames, noisy, strict=True)), 30, sigma_s=0.1)
    inside = slice(10, -10)
    error = np.abs(smoothed.boxes_xyxy[:, 0] - truth)[inside].mean()
    assert error < 0.6 * np.abs(noisy - truth)[inside].mean()
    straight = smooth(track(*zip(frames, truth, strict=True)), 30, sigma_s=0.1)
    np.testing.assert_allclose(straight.boxes_xyxy[:, 0], truth, atol=1e-9)  # to its very ends


def test_a_box_alone_stays_as_it_is():
    alone = track((7, 3))
    assert smooth(alone, 30).boxes_xyxy.tolist() == alone.boxes_xyxy.tolist()


def test_nothing_stays_nothing():
    assert len(smooth(from_rows(np.empty((0, 8))), 30)) == 0


def tracked(*boxes: tuple[float, int]) -> np.ndarray:
    """(M, 7) of boxes given by x and track id."""
    return np.array([[x, 5, x + 10, 25, name, 3, 0.9] for x, name in boxes]).reshape(-1, 7)


def test_frames_of_a_tracker_keep_their_form():
    """Track 1 misses the second frame, where track 2 is; the fourth has none at all."""
    before = [tracked((0, 1)), tracked((50, 2)), tracked((20, 1), (50, 2)), tracked()]
    after = smooth_frames(before, 30)
    assert [len(tracks) for tracks in after] == [1, 2, 2, 0]
    assert all(tracks.shape[1] == 7 for tracks in after)
    assert [tracks[:, 4].tolist() for tracks in after] == [[1], [1, 2], [1, 2], []]
    assert after[1][0].tolist() == pytest.approx([10, 5, 20, 25, 1, 3, 0.9])
    assert after[0][0].tolist() == pytest.approx(before[0][0].tolist())  # a line stays a line


@pytest.mark.parametrize("frames", [0, 1, 3])
def test_frames_without_tracks_stay_without(frames):
    after = smooth_frames([tracked()] * frames, 30)
    assert [tracks.shape for tracks in after] == [(0, 7)] * frames
