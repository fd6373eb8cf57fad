"""The batched Kalman filter against textbook matrices, one track at a time."""

import numpy as np
import pytest

from phase3_tracking.trackers import kalman_filter as kf

VELOCITY_NOISE = 1 / 160


class MatrixFilter:
    """One track: 8 states, full matrices, continuous-time noise integrated over each step."""

    def __init__(self, box: np.ndarray):
        size = np.tile(box[2:], 2)
        self.state = np.concatenate([box, np.zeros(4)])
        start = np.concatenate([kf.START_POSITION_NOISE * size, kf.START_VELOCITY_NOISE * size])
        self.covariance = np.diag(start**2)

    def predict(self, steps: float) -> None:
        size = np.tile(self.state[2:4], 2)
        transition = np.eye(8) + steps * np.eye(8, k=4)
        position, velocity = (kf.POSITION_NOISE * size) ** 2, (VELOCITY_NOISE * size) ** 2
        noise = np.zeros((8, 8))
        noise[:4, :4] = np.diag(position * steps + velocity * steps**3 / 3)
        noise[:4, 4:] = noise[4:, :4] = np.diag(velocity * steps**2 / 2)
        noise[4:, 4:] = np.diag(velocity * steps)
        self.state = transition @ self.state
        self.covariance = transition @ self.covariance @ transition.T + noise

    def correct(self, box: np.ndarray) -> None:
        observe = np.eye(4, 8)
        noise = np.diag((kf.POSITION_NOISE * np.tile(box[2:], 2)) ** 2)
        total = observe @ self.covariance @ observe.T + noise
        gain = self.covariance @ observe.T @ np.linalg.inv(total)
        self.state = self.state + gain @ (box - observe @ self.state)
        self.covariance = (np.eye(8) - gain @ observe) @ self.covariance


def test_equal_to_the_matrix_filter():
    rng = np.random.default_rng(3)
    boxes = rng.uniform([0, 0, 30, 60], [500, 500, 60, 120], (6, 4)).T
    velocity = rng.normal(0, 2, boxes.shape)
    one_by_one = [MatrixFilter(box) for box in boxes.T]
    states = kf.initiate(boxes)
    for number in range(20):
        steps = rng.uniform(0.5, 3)
        boxes = boxes + steps * velocity * np.array([[1], [1], [0.1], [0.1]])
        kf.predict(states, steps, VELOCITY_NOISE)
        measured = rng.random(6) < 0.7
        noisy = boxes + rng.normal(0, 1, boxes.shape)
        states[:, measured] = kf.correct(states[:, measured], noisy[:, measured])
        for index, one in enumerate(one_by_one):
            one.predict(steps)
            if measured[index]:
                one.correct(noisy[:, index])
        expected = np.array([one.state for one in one_by_one]).T
        np.testing.assert_allclose(states[:8], expected, rtol=1e-9, err_msg=str(number))
    for index, one in enumerate(one_by_one):
        for axis in (0, 1):  # size along the axis has the covariance of its centre
            for row in (axis, axis + 2):
                assert states[8 + axis, index] == pytest.approx(one.covariance[row, row])
                assert states[10 + axis, index] == pytest.approx(one.covariance[row, row + 4])
                assert states[12 + axis, index] == pytest.approx(one.covariance[row + 4, row + 4])


def test_one_step_by_hand():
    states = kf.initiate(np.array([[50.0], [80], [20], [40]]))
    kf.predict(states, 1.0, 0.0)
    # var(position) = (20/10)^2 + (20/16)^2 + (20/20)^2, cov = var(velocity) = (20/16)^2
    assert states[8, 0] == pytest.approx(4 + 1.5625 + 1)
    assert states[10, 0] == states[12, 0] == pytest.approx(1.5625)
    states = kf.correct(states, np.array([[58.5625], [80], [20], [40]]))
    # total = 6.5625 + 1: the centre goes 6.5625/7.5625 of the way, the velocity 1.5625/7.5625
    assert states[0, 0] == pytest.approx(50 + 8.5625 * 6.5625 / 7.5625)
    assert states[4, 0] == pytest.approx(8.5625 * 1.5625 / 7.5625)
    assert states[[1, 2, 3, 5, 6, 7], 0] == pytest.approx([80, 20, 40, 0, 0, 0])


def test_three_steps_are_one_of_three():
    states = kf.initiate(np.array([[50.0, 0], [80, 9], [20, 7], [40, 5]]))
    states[4:6] = 3.0  # the size has no velocity, so noise is the same in every step
    together = states.copy()
    for _ in range(3):
        kf.predict(states, 1.0, VELOCITY_NOISE)
    kf.predict(together, 3.0, VELOCITY_NOISE)
    np.testing.assert_allclose(states, together, rtol=1e-12)


def test_each_track_may_have_steps_of_its_own():
    boxes = np.array([[50.0, 0], [80, 9], [20, 7], [40, 5]])
    states = kf.initiate(boxes)
    kf.predict(states, np.array([1.0, 4.0]), VELOCITY_NOISE)
    for index, steps in enumerate((1.0, 4.0)):
        alone = kf.initiate(boxes[:, [index]])
        kf.predict(alone, steps, VELOCITY_NOISE)
        np.testing.assert_allclose(states[:, [index]], alone)


def test_boxes_never_vanish():
    states = kf.initiate(np.array([[0.0], [0], [10], [10]]))
    states[kf.SIZE_VELOCITY] = -100
    kf.predict(states, 1.0, VELOCITY_NOISE)
    assert states[kf.SIZE].tolist() == [[1], [1]]


def test_box_forms_are_inverse():
    boxes = np.array([[1.0, 2.0, 5.0, 10.0], [0.0, 0.0, 1.0, 1.0]]).T
    assert kf.to_cxcywh(boxes)[:, 0].tolist() == [3.0, 6.0, 4.0, 8.0]
    np.testing.assert_array_equal(kf.to_xyxy(kf.to_cxcywh(boxes)), boxes)
