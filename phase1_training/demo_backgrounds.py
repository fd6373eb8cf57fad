"""Backgrounds of the demo scenes: sky, a skyline, a road between two strips of ground, clutter.

Nothing here is an object of the demo data. Windows, doors, benches, boxes and signs are
distractors; lamp posts, bushes and planters stand in front of objects and hide parts of them.
"""

from dataclasses import dataclass

import cv2
import numpy as np

Colour = tuple[int, int, int]  # BGR


@dataclass(frozen=True)
class Style:
    """The look of one kind of place. Colours are BGR."""

    name: str
    sky: tuple[Colour, Colour]  # top, horizon
    skyline: str  # houses, towers, trees or hills
    strip: str  # the ground on both sides of the road: paving, grass or boards
    ground: Colour
    road: Colour


TRAIN_STYLES = (
    Style(
        "street",
        ((214, 160, 98), (236, 222, 204)),
        "houses",
        "paving",
        (150, 160, 168),
        (92, 90, 88),
    ),
    Style(
        "park",
        ((224, 176, 120), (238, 230, 216)),
        "trees",
        "grass",
        (74, 138, 104),
        (112, 132, 148),
    ),
    Style(
        "downtown",
        ((190, 178, 166), (220, 216, 210)),
        "towers",
        "paving",
        (134, 136, 140),
        (74, 74, 76),
    ),
    Style(
        "village",
        ((120, 128, 196), (170, 200, 240)),
        "hills",
        "grass",
        (66, 120, 122),
        (104, 112, 124),
    ),
    Style(
        "promenade",
        ((206, 150, 84), (232, 214, 178)),
        "hills",
        "boards",
        (112, 152, 184),
        (120, 122, 124),
    ),
)
VAL_STYLES = (
    Style(
        "old_town",
        ((170, 140, 130), (206, 206, 224)),
        "houses",
        "boards",
        (122, 142, 160),
        (100, 108, 118),
    ),
    Style(
        "business_park",
        ((226, 190, 150), (240, 234, 226)),
        "towers",
        "grass",
        (84, 150, 120),
        (84, 84, 88),
    ),
    Style(
        "lakeside",
        ((150, 136, 168), (190, 204, 236)),
        "trees",
        "paving",
        (140, 150, 150),
        (96, 94, 98),
    ),
)
VIDEO_STYLE = Style(
    "main_street",
    ((222, 170, 110), (240, 226, 206)),
    "houses",
    "paving",
    (146, 158, 170),
    (88, 88, 90),
)

ROAD_TOP, ROAD_BOTTOM = 0.20, 0.64  # share of the ground's depth, from the horizon down


@dataclass(frozen=True)
class Prop:
    """A static thing that hides objects standing further back than `foot_y`."""

    sprite: np.ndarray  # uint8 (h, w, 4), colour multiplied by alpha
    left: int
    top: int
    foot_y: float


@dataclass(frozen=True)
class Background:
    image: np.ndarray  # uint8 (height, width, 3) BGR
    horizon: float  # pixels from the top
    props: tuple[Prop, ...]


def fractal_noise(
    rng: np.random.Generator, width: int, height: int, coarsest: int, octaves: int
) -> np.ndarray:
    """Sum of smooth noises of doubling frequency and halving strength, float32 in about ±1.

    `coarsest` is the number of cells across the width in the first octave.
    """
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        columns = coarsest << octave
        rows = max(2, round(columns * height / width))
        grid = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR) / (1 << octave)
    return total / 1.5


def jitter(rng: np.random.Generator, colour: Colour, amount: float) -> Colour:
    """The colour made brighter or darker as a whole and a little per channel."""
    factors = rng.uniform(1 - amount, 1 + amount) * rng.uniform(0.94, 1.06, 3)
    blue, green, red = np.clip(np.array(colour) * factors, 0, 255).astype(int).tolist()
    return blue, green, red


def make_background(
    rng: np.random.Generator, style: Style, width: int, height: int, prop_count: int
) -> Background:
    """Draws one place of the given style, different for every state of `rng`."""
    horizon = round(height * rng.uniform(0.36, 0.44))
    image = np.empty((height, width, 3), np.uint8)
    _sky(rng, image, style, horizon)
    SKYLINES[style.skyline](rng, image, horizon)
    _ground(rng, image, style, horizon)
    _clutter(rng, image, horizon)
    grain = 1 + 0.07 * fractal_noise(rng, width, height, 6, 6)
    image = np.clip(image * grain[..., None], 0, 255).astype(np.uint8)
    props = tuple(_prop(rng, width, height, horizon) for _ in range(prop_count))
    return Background(image, horizon, props)


def _gradient(top: Colour, bottom: Colour, rows: int) -> np.ndarray:
    share = np.linspace(0, 1, rows, dtype=np.float32)[:, None, None]
    return np.array(top, np.float32) * (1 - share) + np.array(bottom, np.float32) * share


def _sky(rng: np.random.Generator, image: np.ndarray, style: Style, horizon: int) -> None:
    width = image.shape[1]
    sky = _gradient(jitter(rng, style.sky[0], 0.15), jitter(rng, style.sky[1], 0.08), horizon)
    clouds = np.clip(fractal_noise(rng, width, horizon, 3, 5) * 1.4 - 0.15, 0, 0.75)[..., None]
    image[:horizon] = np.clip(sky * (1 - clouds) + 246 * clouds, 0, 255)


def _houses(rng: np.random.Generator, image: np.ndarray, horizon: int) -> None:
    """A closed row of houses with roofs, windows and doors."""
    width = image.shape[1]
    left = -int(rng.integers(40))
    while left < width:
        right = left + round(width * rng.uniform(0.12, 0.26))
        top = round(horizon * rng.uniform(0.22, 0.60))
        wall = jitter(rng, (150, 170, 190), 0.35)
        cv2.rectangle(image, (left, top), (right, horizon), wall, -1)
        middle, eaves = (left + right) // 2, max(6, horizon // 12)
        roof = np.array([[left - 3, top], [middle, top - 2 * eaves], [right + 3, top]])
        cv2.fillPoly(image, [roof], jitter(rng, (64, 74, 128), 0.3), cv2.LINE_AA)
        _windows(rng, image, (left + 5, top + 5, right - 4, horizon - 6), wall)
        left = right + int(rng.integers(3))


def _windows(
    rng: np.random.Generator, image: np.ndarray, area: tuple[int, int, int, int], wall: Colour
) -> None:
    left, top, right, bottom = area
    size = max(7, round((bottom - top) * rng.uniform(0.14, 0.24)))
    glass = jitter(rng, (110, 92, 80), 0.4)
    frame = jitter(rng, wall, 0.3)
    for y in range(top + 2, bottom - size, round(1.7 * size)):
        for x in range(left + 2, right - size, round(1.6 * size)):
            lit = rng.uniform() < 0.12
            pane = (150, 214, 240) if lit else jitter(rng, glass, 0.15)
            cv2.rectangle(image, (x, y), (x + round(0.75 * size), y + size), pane, -1)
            cv2.rectangle(image, (x, y), (x + round(0.75 * size), y + size), frame, 1)


def _towers(rng: np.random.Generator, image: np.ndarray, horizon: int) -> None:
    width = image.shape[1]
    for _ in range(int(rng.integers(7, 12))):
        left, span = int(rng.integers(-20, width)), round(width * rng.uniform(0.07, 0.17))
        top = round(horizon * rng.uniform(0.05, 0.65))
        wall = jitter(rng, (150, 142, 134), 0.35)
        cv2.rectangle(image, (left, top), (left + span, horizon), wall, -1)
        pane = jitter(rng, (132, 116, 100), 0.3)
        pitch = int(rng.integers(6, 11))
        for y in range(top + 4, horizon - 3, pitch):
            cv2.line(image, (left + 3, y), (left + span - 3, y), pane, max(1, pitch // 3))
        for x in range(left + 8, left + span - 3, 2 * pitch):
            cv2.line(image, (x, top + 2), (x, horizon), wall, 2)


def _foliage(
    rng: np.random.Generator, image: np.ndarray, centre: tuple[int, int], radius: int
) -> None:
    """Overlapping leafy blobs, darker below."""
    channels = image.shape[2]
    green = jitter(rng, (58, 122, 84), 0.3)
    for index in range(60):
        angle, reach = rng.uniform(0, 2 * np.pi), radius * np.sqrt(rng.uniform())
        x = round(centre[0] + 0.85 * reach * np.cos(angle))
        y = round(centre[1] + 0.75 * reach * np.sin(angle))
        shade = 0.62 + 0.5 * index / 60 - 0.25 * (y - centre[1]) / max(1, radius)
        colour = [min(255, int(shade * c)) for c in jitter(rng, green, 0.1)] + [255]
        blob = max(2, round(radius * rng.uniform(0.16, 0.32) * (1.2 - index / 90)))
        cv2.circle(image, (x, y), blob, colour[:channels], -1, cv2.LINE_AA)


def _trees(rng: np.random.Generator, image: np.ndarray, horizon: int) -> None:
    width = image.shape[1]
    _hills(rng, image, horizon)
    for x in range(-10, width + 30, max(24, round(width * rng.uniform(0.09, 0.15)))):
        x += int(rng.integers(-12, 13))
        radius = round(horizon * rng.uniform(0.20, 0.34))
        crown = horizon - round(radius * rng.uniform(1.5, 2.1))
        trunk = jitter(rng, (52, 72, 98), 0.2)
        cv2.line(image, (x, crown), (x, horizon), trunk, max(3, radius // 6))
        _foliage(rng, image, (x, crown), radius)


def _hills(rng: np.random.Generator, image: np.ndarray, horizon: int) -> None:
    width = image.shape[1]
    x = np.arange(width)
    for layer in range(3):
        waves = np.zeros(width)
        for k in (1, 2, 3):
            cycles, shift = rng.uniform(0.5, 1.4) * k, rng.uniform(0, 6)
            waves += np.sin(2 * np.pi * cycles * x / width + shift) / k
        ridge = horizon * (0.62 + 0.13 * layer) + 0.09 * horizon * waves
        colour = jitter(rng, ((150, 140, 118), (118, 138, 104), (84, 124, 92))[layer], 0.15)
        outline = np.column_stack([x, ridge]).astype(np.int32)
        corners = np.array([[width, horizon], [0, horizon]], np.int32)
        cv2.fillPoly(image, [np.vstack([outline, corners])], colour, cv2.LINE_AA)


SKYLINES = {"houses": _houses, "towers": _towers, "trees": _trees, "hills": _hills}


def _ground(rng: np.random.Generator, image: np.ndarray, style: Style, horizon: int) -> None:
    height, width = image.shape[:2]
    depth = height - horizon
    near = jitter(rng, style.ground, 0.15)
    far = jitter(rng, near, 0.1)
    image[horizon:] = np.clip(_gradient(far, near, depth), 0, 255)
    vanishing = round(width * rng.uniform(0.3, 0.7))
    if style.strip in ("paving", "boards"):
        joint = tuple(int(0.84 * c) for c in near)
        step = rng.uniform(0.08, 0.14) * width
        for k in range(-24, 25):  # joints that run towards the vanishing point
            foot = (round(vanishing + k * step * 2.2), height)
            top = (round(vanishing + k * step * 0.45), horizon)
            cv2.line(image, top, foot, joint, 1, cv2.LINE_AA)
        if style.strip == "paving":
            for share in np.linspace(0.05, 1, 12) ** 1.6:
                y = horizon + round(share * depth)
                cv2.line(image, (0, y), (width, y), joint, 1)
    else:
        blades = fractal_noise(rng, width, depth, 40, 3)[..., None]
        image[horizon:] = np.clip(image[horizon:] * (1 + 0.16 * blades), 0, 255)
    _road(rng, image, style, horizon, depth)


def _road(
    rng: np.random.Generator, image: np.ndarray, style: Style, horizon: int, depth: int
) -> None:
    width = image.shape[1]
    top, bottom = horizon + round(ROAD_TOP * depth), horizon + round(ROAD_BOTTOM * depth)
    road = jitter(rng, style.road, 0.15)
    tar = fractal_noise(rng, width, bottom - top, 24, 4)[..., None]
    image[top:bottom] = np.clip(np.array(road) * (1 + 0.10 * tar), 0, 255)
    kerb = jitter(rng, (186, 188, 188), 0.12)
    cv2.line(image, (0, top), (width, top), kerb, max(1, depth // 90))
    cv2.line(image, (0, bottom), (width, bottom), kerb, max(2, depth // 50))
    middle, dash = (top + bottom) // 2 - depth // 40, round(width * rng.uniform(0.05, 0.09))
    paint = jitter(rng, (214, 222, 224), 0.1)
    for x in range(-int(rng.integers(dash)), width, 2 * dash):
        cv2.line(image, (x, middle), (x + dash, middle), paint, max(2, depth // 70))


def _clutter(rng: np.random.Generator, image: np.ndarray, horizon: int) -> None:
    """Flat distractors along the far strip and on the ground: crates, signs, benches, drains."""
    height, width = image.shape[:2]
    depth = height - horizon
    for _ in range(int(rng.integers(4, 9))):
        kind = int(rng.integers(4))
        x = int(rng.integers(0, width))
        size = round(height * rng.uniform(0.035, 0.08))
        y = horizon + round(depth * rng.uniform(0.02, 0.16))
        colour = jitter(rng, (120, 130, 140), 0.5)
        dark = tuple(c // 2 for c in colour)
        if kind == 0:  # a crate
            cv2.rectangle(image, (x, y - size), (x + size, y), colour, -1)
            cv2.rectangle(image, (x, y - size), (x + size, y), dark, 1)
            cv2.line(image, (x, y - size), (x + size, y), dark, 1, cv2.LINE_AA)
        elif kind == 1:  # a round sign on a post
            cv2.line(image, (x, y), (x, y - 2 * size), (120, 120, 120), 2)
            cv2.circle(image, (x, y - 2 * size), size // 2, (60, 60, 190), -1, cv2.LINE_AA)
            cv2.circle(image, (x, y - 2 * size), size // 3, (230, 230, 230), -1, cv2.LINE_AA)
        elif kind == 2:  # a bench
            for level in (size // 3, size // 2, 2 * size // 3):
                cv2.line(image, (x, y - level), (x + 2 * size, y - level), (58, 88, 120), 2)
            for post in (x + 2, x + 2 * size - 2):
                cv2.line(image, (post, y), (post, y - 2 * size // 3), (50, 50, 52), 2)
        else:  # a drain grate in the ground
            left, top = x, horizon + round(depth * rng.uniform(0.66, 0.97))
            bar = max(2, size // 6)
            for offset in range(0, size, 2 * bar):
                slot = (left + offset, top), (left + offset + bar, top + size // 4)
                cv2.rectangle(image, *slot, (70, 70, 72), -1)


def _prop(rng: np.random.Generator, width: int, height: int, horizon: int) -> Prop:
    """A lamp post, a bush or a planter on the edge of the road or in the foreground."""
    share = ROAD_TOP - 0.01 if rng.uniform() < 0.4 else rng.uniform(ROAD_BOTTOM, 0.97)
    foot_y = horizon + share * (height - horizon)
    size = round(height * (0.125 + 0.22 * share))  # as tall as a person there
    kind = int(rng.integers(3))
    rows, columns = (2 * size, size) if kind == 0 else (size, size)
    sprite = np.zeros((rows, columns, 4), np.uint8)
    middle = columns // 2
    if kind == 0:
        steel = (*jitter(rng, (82, 84, 80), 0.2), 255)
        thick = max(3, size // 13)
        cv2.line(sprite, (middle, rows), (middle, size // 6), steel, thick)
        cv2.line(sprite, (middle, size // 6), (columns - thick, size // 9), steel, thick // 2 + 1)
        cv2.ellipse(
            sprite, (columns - 2 * thick, size // 7), (2 * thick, thick), 0, 0, 360,
            (200, 236, 250, 255), -1,
        )  # fmt: skip
    elif kind == 1:
        _foliage(rng, sprite, (middle, round(0.66 * size)), round(0.40 * size))
    else:
        _foliage(rng, sprite, (middle, round(0.5 * size)), round(0.24 * size))
        clay = (*jitter(rng, (84, 112, 160), 0.25), 255)
        pot = [(0.30, 0.62), (0.70, 0.62), (0.64, 1.0), (0.36, 1.0)]
        corners = np.array([(round(x * size), round(y * size)) for x, y in pot], np.int32)
        cv2.fillPoly(sprite, [corners], clay)
    left = int(rng.integers(0, width)) - middle
    return Prop(cv2.GaussianBlur(sprite, (3, 3), 0), left, round(foot_y) - rows, foot_y)
