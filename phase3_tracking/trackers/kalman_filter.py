"""A constant-velocity Kalman filter of boxes, for all tracks at once.

    states = initiate(boxes_cxcywh)              # (14, K), one column for each track
    predict(states, 1.0, 1 / 160)                # in place: one thirtieth of a second later
    states = correct(states, boxes_cxcywh)       # with one measured box for each

Centre x and y, width and height move with velocities of their own (the state of BoT-SORT, Aharon
et al. 2022). Noise is proportional to the box's size, as in DeepSORT (Wojke et al. 2017) and
ByteTrack, so an object near the camera may move by more pixels than one far away. Every coordinate
is filtered by itself, and those along the same axis share their covariance, as their noise is the
same: for each axis that leaves three numbers, var(position), cov(position, velocity) and
var(velocity), and a step of the filter is a handful of array operations (Kalman 1960).

Times are in thirtieths of a second, whatever the frame rate of the video. The process is a random
walk of the position plus one of the velocity in continuous time, so one step of 3 is exactly the
same as three steps of 1.
"""

import numpy as np

STEPS_PER_SECOND = 30.0  # the unit of time is that of the usual videos, for which noise is known
POSITION_NOISE = 1 / 20  # standard deviations, as shares of width and height, per step
START_POSITION_NOISE, START_VELOCITY_NOISE = 1 / 10, 1 / 16
MIN_SIDE_PX = 1.0

STATE_ROWS = 14
CENTRE, SIZE = slice(0, 2), slice(2, 4)
MEAN, VELOCITY, SIZE_VELOCITY = slice(0, 4), slice(4, 8), slice(6, 8)
VAR_POSITION, COVARIANCE, VAR_VELOCITY = slice(8, 10), slice(10, 12), slice(12, 14)  # along x, y


def initiate(boxes_cxcywh: np.ndarray) -> np.ndarray:
    """States (14, K) of tracks just begun with boxes (4, K) centre x, centre y, width, height."""
    states = np.zeros((STATE_ROWS, boxes_cxcywh.shape[1]))
    states[MEAN] = boxes_cxcywh
    states[VAR_POSITION] = (START_POSITION_NOISE * boxes_cxcywh[SIZE]) ** 2
    states[VAR_VELOCITY] = (START_VELOCITY_NOISE * boxes_cxcywh[SIZE]) ** 2
    return states


def predict(states: np.ndarray, steps: float | np.ndarray, velocity_noise: float) -> None:
    """Moves states (14, K) on by so many thirtieths of a second, one number or (K,), in place.

    Args:
        velocity_noise: standard deviation of a velocity's change, as a share of the size, per step.
    """
    size = states[SIZE]
    area = size * size
    var_position, covariance, var_velocity = (
        states[VAR_POSITION], states[COVARIANCE], states[VAR_VELOCITY]
    )  # fmt: skip
    q_position, q_velocity = POSITION_NOISE**2, velocity_noise**2
    var_position += (2 * steps) * covariance
    var_position += (steps * steps) * var_velocity
    var_position += (q_position * steps + q_velocity * steps**3 / 3) * area
    covariance += steps * var_velocity
    covariance += (q_velocity * steps**2 / 2) * area
    var_velocity += (q_velocity * steps) * area
    states[MEAN] += steps * states[VELOCITY]
    np.maximum(size, MIN_SIDE_PX, out=size)


def correct(states: np.ndarray, measured_cxcywh: np.ndarray) -> np.ndarray:
    """The states (14, K) after each was measured once, boxes (4, K)."""
    corrected = np.empty_like(states)
    var_position, covariance = states[VAR_POSITION], states[COVARIANCE]
    noise = POSITION_NOISE * measured_cxcywh[SIZE]
    total = noise * noise
    total += var_position
    gain, velocity_gain = var_position / total, covariance / total
    surprise = (measured_cxcywh - states[MEAN]).reshape(2, 2, -1)  # centre and size, along x and y
    corrected[MEAN] = states[MEAN] + (gain * surprise).reshape(4, -1)
    corrected[VELOCITY] = states[VELOCITY] + (velocity_gain * surprise).reshape(4, -1)
    corrected[VAR_VELOCITY] = states[VAR_VELOCITY] - velocity_gain * covariance
    gain = 1 - gain
    corrected[COVARIANCE] = gain * covariance
    corrected[VAR_POSITION] = gain * var_position
    return corrected


def to_cxcywh(boxes_xyxy: np.ndarray) -> np.ndarray:
    """(4, N) x1, y1, x2, y2 -> centre x, centre y, width, height."""
    boxes = np.empty((4, boxes_xyxy.shape[1]))
    boxes[:2] = (boxes_xyxy[:2] + boxes_xyxy[2:4]) / 2
    boxes[2:] = boxes_xyxy[2:4] - boxes_xyxy[:2]
    return boxes


def to_xyxy(boxes_cxcywh: np.ndarray) -> np.ndarray:
    """(4, N) centre x, centre y, width, height -> x1, y1, x2, y2."""
    boxes = np.empty((4, boxes_cxcywh.shape[1]))
    half = boxes_cxcywh[2:4] / 2
    boxes[:2] = boxes_cxcywh[:2] - half
    boxes[2:] = boxes_cxcywh[:2] + half
    return boxes
