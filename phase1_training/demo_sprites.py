"""The objects of the demo scenes: people, cars, buses and dogs drawn from random parts.

Every sprite is drawn three times too large with hard edges and averaged down, which gives smooth
silhouettes. Coordinates inside a sprite are in units of its height: x to the right from the
middle, y down from 0 (top) to 1 (ground); sprites face right and are mirrored to face left.
"""

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

SUPERSAMPLING = 3
MARGIN = 3  # pixels around the unit box for parts that swing out of it

Colour = tuple[int, int, int]  # BGR
Point = tuple[float, float]

GLASS: Colour = (128, 104, 78)
HUES = (0.0, 0.03, 0.09, 0.13, 0.30, 0.42, 0.55, 0.59, 0.63, 0.76, 0.93)  # of paint and cloth
RUBBER: Colour = (38, 36, 36)
METAL: Colour = (176, 176, 172)


@dataclass(frozen=True)
class Category:
    """One class of the demo data; the ids are those of COCO, so they have gaps."""

    id: int
    name: str
    supercategory: str
    relative_height: float  # compared with a person at the same place
    half_width: float  # of the drawing, in units of the object's height
    stride: float  # how far one cycle of legs or wheels carries it, in units of its height


CATEGORIES = (
    Category(1, "person", "person", 1.0, 0.40, 0.80),
    Category(3, "car", "vehicle", 0.72, 1.40, 1.25),
    Category(6, "bus", "vehicle", 1.28, 1.35, 0.85),
    Category(18, "dog", "animal", 0.52, 1.05, 1.30),
)


@dataclass(frozen=True)
class Look:
    """The appearance of one individual, constant over its life.

    `colours` are BGR; `variant` chooses between body shapes or patterns; `stretch` is a change of
    aspect of a few percent; `texture_seed` seeds its surface noise.
    """

    category: Category
    colours: tuple[Colour, ...]
    skin: Colour
    variant: int
    stretch: float
    texture_seed: int


def random_colour(rng: np.random.Generator, saturation: tuple[float, float]) -> Colour:
    hue = (rng.choice(HUES) + rng.uniform(-0.03, 0.03)) % 1
    value = rng.uniform(0.35, 0.95)
    red, green, blue = colorsys.hsv_to_rgb(hue, rng.uniform(*saturation), value)
    return int(255 * blue), int(255 * green), int(255 * red)


def random_look(rng: np.random.Generator, category: Category) -> Look:
    saturation = (0.05, 0.45) if category.name == "dog" else (0.25, 0.85)
    colours = [random_colour(rng, saturation) for _ in range(4)]
    if category.name == "dog":
        coats = ((52, 88, 140), (40, 56, 84), (150, 190, 218), (58, 56, 60), (205, 218, 226))
        order = rng.permutation(len(coats))
        colours[:2] = [coats[order[0]], coats[order[1]]]
    elif rng.uniform() < 0.25:  # white, grey and black clothes and cars are common
        grey = int(rng.choice([45, 130, 225]))
        colours[0] = (grey, grey, grey)
    if category.name == "person":
        cloth = ((92, 66, 44), (60, 60, 62), (120, 92, 60), (86, 118, 140), (50, 44, 70))
        colours[1] = scaled(cloth[rng.integers(len(cloth))], rng.uniform(0.7, 1.4))
        hair = ((36, 34, 40), (40, 62, 96), (70, 130, 176), (60, 84, 150), (150, 150, 150))
        colours[3] = hair[rng.integers(len(hair))]
    tone = rng.uniform(0.35, 1.0)
    skin = (int(150 * tone), int(178 * tone), int(228 * tone))
    return Look(
        category=category,
        colours=tuple(colours),
        skin=skin,
        variant=int(rng.integers(12)),
        stretch=rng.uniform(0.93, 1.07),
        texture_seed=int(rng.integers(1 << 31)),
    )


def scaled(colour: Colour, factor: float) -> Colour:
    blue, green, red = (min(255, int(channel * factor)) for channel in colour)
    return blue, green, red


class Canvas:
    """An enlarged BGRA drawing surface addressed in units of the object's height."""

    def __init__(self, height: float, half_width: float, stretch: float, offset: Point):
        self.unit_y = height * SUPERSAMPLING
        self.unit_x = self.unit_y * stretch
        self.half = math.ceil(half_width * stretch * height) + MARGIN
        rows = math.ceil(height) + 2 * MARGIN
        self.origin_x = (self.half + offset[0]) * SUPERSAMPLING
        self.origin_y = (MARGIN + offset[1]) * SUPERSAMPLING
        shape = (rows * SUPERSAMPLING, 2 * self.half * SUPERSAMPLING, 4)
        self.bgra = np.zeros(shape, np.uint8)

    def pixel(self, x: float, y: float) -> tuple[int, int]:
        return round(x * self.unit_x + self.origin_x), round(y * self.unit_y + self.origin_y)

    def stand_on(self, lowest: float) -> None:
        """Moves what is drawn from now on down, so that `lowest` comes to lie on the ground."""
        self.origin_y += (1 - lowest) * self.unit_y

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        corners = np.array([self.pixel(x, y) for x, y in points], np.int32)
        cv2.fillPoly(self.bgra, [corners], (*colour, 255))

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        cv2.rectangle(
            self.bgra, self.pixel(left, top), self.pixel(right, bottom), (*colour, 255), -1
        )

    def ellipse(
        self, x: float, y: float, radius_x: float, radius_y: float, colour: Colour, tilt: float = 0
    ) -> None:
        radii = max(1, round(radius_x * self.unit_x)), max(1, round(radius_y * self.unit_y))
        cv2.ellipse(self.bgra, self.pixel(x, y), radii, tilt, 0, 360, (*colour, 255), -1)

    def limb(self, points: Sequence[Point], thickness: float, colour: Colour) -> None:
        corners = np.array([self.pixel(x, y) for x, y in points], np.int32)
        width = max(2, round(thickness * self.unit_y))
        cv2.polylines(self.bgra, [corners], False, (*colour, 255), width)

    def finish(self, look: Look, light: float) -> np.ndarray:
        """Averages down, then shades: light from one side and above, surface noise, dark rim.

        Returns:
            uint8 (height, width, 4), colour already multiplied by alpha.
        """
        height, width = (n // SUPERSAMPLING for n in self.bgra.shape[:2])
        sprite = cv2.resize(self.bgra, (width, height), interpolation=cv2.INTER_AREA)
        noise = np.random.default_rng(look.texture_seed).uniform(-0.1, 0.1, (14, 10))
        surface = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
        vertical = np.linspace(1.12, 0.86, height)[:, None]
        rim = cv2.GaussianBlur(sprite[..., 3], (0, 0), max(0.8, height / 45))
        shade = surface + vertical + np.linspace(-light, light, width)
        shade = (shade * (0.45 + rim * (0.55 / 255))).astype(np.float32)
        colour = np.minimum(sprite[..., :3] * shade[..., None], sprite[..., 3:])
        return np.dstack([colour.astype(np.uint8), sprite[..., 3]])


def draw(
    look: Look, height: float, phase: float, *, facing: int, light: float, offset: Point
) -> tuple[np.ndarray, Point]:
    """Draws one individual.

    Args:
        height: pixels from top to ground.
        phase: position in the walking or rolling cycle, in cycles.
        facing: 1 to the right, -1 to the left.
        light: strength of the light from the right, about -0.15 to 0.15.
        offset: sub-pixel shift (x, y), each in [0, 1).

    Returns:
        the sprite, uint8 (rows, columns, 4) BGRA with colour multiplied by alpha, and the (x, y)
        of its ground point within it for an offset of zero.
    """
    shift = offset if facing > 0 else (-offset[0], offset[1])
    canvas = Canvas(height, look.category.half_width, look.stretch, shift)
    DRAWINGS[look.category.name](canvas, look, phase)
    sprite = canvas.finish(look, light * facing)
    if facing < 0:
        sprite = sprite[:, ::-1]
    return sprite, (canvas.half, MARGIN + height)


def _swing(phase: float, amplitude: float) -> float:
    return amplitude * math.sin(2 * math.pi * phase)


def _leg(
    hip: Point, cycle: float, swing: float, bend: float, lengths: tuple[float, float]
) -> list[Point]:
    """Hip, knee and ankle of a walking leg; `swing` and `bend` are the largest angles in rad."""
    thigh, lift = _swing(cycle, swing), max(0.0, _swing(cycle + 0.3, bend))
    knee = (hip[0] + lengths[0] * math.sin(thigh), hip[1] + lengths[0] * math.cos(thigh))
    shin = thigh - lift
    return [
        hip,
        knee,
        (knee[0] + lengths[1] * math.sin(shin), knee[1] + lengths[1] * math.cos(shin)),
    ]


def _person(canvas: Canvas, look: Look, phase: float) -> None:
    shirt, trousers, extra, hair = look.colours
    hip_y, shoulder_y = 0.50, 0.205
    bare_arms = look.variant % 2 == 0

    def arm(cycle: float, shade: float) -> None:
        angle = _swing(cycle, 0.6)
        elbow = (0.155 * math.sin(angle), shoulder_y + 0.04 + 0.155 * math.cos(angle))
        hand = (elbow[0] + 0.13 * math.sin(angle + 0.4), elbow[1] + 0.13 * math.cos(angle + 0.4))
        canvas.limb([elbow, hand], 0.05, scaled(look.skin if bare_arms else shirt, shade))
        canvas.limb([(0, shoulder_y + 0.03), elbow], 0.062, scaled(shirt, shade))
        canvas.ellipse(*hand, 0.028, 0.028, scaled(look.skin, shade))

    legs = [_leg((0, hip_y), phase + half, 0.48, 0.75, (0.24, 0.215)) for half in (0.5, 0)]
    canvas.stand_on(max(ankle[1] for *_, ankle in legs) + 0.035)
    arm(phase, 0.7)
    for joints, colour in zip(legs, (scaled(trousers, 0.7), trousers), strict=True):
        canvas.limb(joints, 0.085, colour)
        x, y = joints[-1]
        canvas.limb([(x, y), (x + 0.06, y + 0.012)], 0.05, scaled(extra, 0.45))
    if look.variant % 3 == 0:  # a backpack
        canvas.ellipse(-0.10, 0.31, 0.062, 0.105, scaled(extra, 0.9))
    torso = [(-0.10, 0.20), (-0.05, 0.175), (0.06, 0.175), (0.105, 0.21), (0.09, 0.54)]
    canvas.polygon([*torso, (-0.085, 0.54)], shirt)
    if look.variant % 4 == 1:  # a striped shirt
        for top in (0.25, 0.33, 0.41):
            canvas.box(-0.085, top, 0.085, top + 0.03, extra)
    elif look.variant % 4 == 2:  # an open jacket
        canvas.polygon([(0.02, 0.18), (0.075, 0.18), (0.085, 0.54), (0.045, 0.54)], extra)
    if look.variant % 5 == 4:  # a skirt
        canvas.polygon([(-0.085, 0.47), (0.085, 0.47), (0.13, 0.68), (-0.13, 0.68)], trousers)
    arm(phase + 0.5, 0.88)
    canvas.limb([(0.005, 0.15), (0.01, 0.19)], 0.06, scaled(look.skin, 0.85))
    canvas.ellipse(-0.004, 0.078, 0.068, 0.078, hair)
    canvas.ellipse(0.018, 0.094, 0.053, 0.066, look.skin)
    if look.variant % 6 == 5:  # a cap
        canvas.ellipse(0.005, 0.05, 0.07, 0.05, shirt)
        canvas.limb([(0.0, 0.065), (0.095, 0.07)], 0.022, scaled(shirt, 0.7))


def _wheel(canvas: Canvas, x: float, radius: float, phase: float) -> None:
    y = 1 - radius
    canvas.ellipse(x, y, radius, radius, RUBBER)
    canvas.ellipse(x, y, 0.62 * radius, 0.62 * radius, METAL)
    for spoke in range(3):
        angle = 2 * math.pi * phase + spoke * math.pi / 3
        dx, dy = 0.55 * radius * math.cos(angle), 0.55 * radius * math.sin(angle)
        canvas.limb([(x - dx, y - dy), (x + dx, y + dy)], 0.14 * radius, (88, 86, 84))
    canvas.ellipse(x, y, 0.18 * radius, 0.18 * radius, RUBBER)


# Roof lines of the cars: rear bottom, rear top, front top, front bottom (x) of the cabin.
CABINS = ((-0.86, -0.52, 0.16, 0.55), (-1.10, -0.92, 0.12, 0.52), (-0.72, -0.40, 0.22, 0.58))


def _car(canvas: Canvas, look: Look, phase: float) -> None:
    paint = look.colours[0]
    rear, rear_top, front_top, front = CABINS[look.variant % len(CABINS)]
    length, beltline = 1.24, 0.40
    canvas.polygon(
        [(rear, beltline), (rear_top, 0.02), (front_top, 0.02), (front, beltline)],
        scaled(paint, 0.82),
    )
    pane = [(rear + 0.10, beltline - 0.01), (rear_top + 0.06, 0.09), (-0.24, 0.09)]
    canvas.polygon([*pane, (-0.24, beltline - 0.01)], GLASS)
    pane = [(-0.17, beltline - 0.01), (-0.17, 0.09), (front_top - 0.03, 0.09)]
    canvas.polygon([*pane, (front - 0.12, beltline - 0.01)], scaled(GLASS, 1.15))
    canvas.limb([(-0.02, 0.12), (0.14, beltline - 0.04)], 0.035, scaled(GLASS, 1.7))
    canvas.polygon(
        [
            (-length, 0.47),
            (-length + 0.08, beltline),
            (front, beltline - 0.01),
            (length - 0.14, 0.49),
            (length, 0.60),
            (length, 0.80),
            (-length, 0.80),
        ],
        paint,
    )
    canvas.polygon(
        [(-length, 0.74), (length, 0.74), (length - 0.03, 0.85), (-length + 0.03, 0.85)],
        scaled(paint, 0.5),
    )
    canvas.limb([(-0.20, beltline), (-0.21, 0.74)], 0.018, scaled(paint, 0.55))
    canvas.limb([(-0.38, 0.50), (-0.27, 0.50)], 0.03, scaled(paint, 0.45))
    if look.variant % 4 == 3:  # a stripe along the side
        canvas.box(-length + 0.02, 0.56, length - 0.02, 0.63, look.colours[1])
    canvas.ellipse(length - 0.07, 0.575, 0.075, 0.05, (190, 240, 250))
    canvas.box(-length, 0.48, -length + 0.07, 0.60, (40, 40, 205))
    for x in (-0.74, 0.74):
        canvas.ellipse(x, 0.77, 0.25, 0.25, scaled(paint, 0.35))
        _wheel(canvas, x, 0.205, phase)


def _bus(canvas: Canvas, look: Look, phase: float) -> None:
    paint, trim = look.colours[:2]
    length, windows = 1.22, 5 + look.variant % 2
    canvas.box(-length, 0.05, length, 0.88, paint)
    canvas.polygon(
        [(-length, 0.06), (-length + 0.06, 0.01), (length - 0.08, 0.01), (length, 0.08)],
        scaled(paint, 1.15),
    )
    canvas.box(-length, 0.60, length, 0.67, trim)
    if look.variant % 3 == 0:  # a slanted band of the operator's second colour
        canvas.polygon([(-0.95, 0.88), (-0.55, 0.54), (-0.30, 0.54), (-0.70, 0.88)], trim)
    canvas.box(-length, 0.80, length, 0.89, scaled(paint, 0.5))
    pitch = (2 * length - 0.62) / windows
    for index in range(windows):
        left = -length + 0.07 + index * pitch
        tone = 0.85 + 0.35 * ((index * 7 + look.variant) % 3) / 2
        canvas.box(left, 0.17, left + pitch - 0.06, 0.50, scaled(GLASS, tone))
        canvas.limb([(left + 0.05, 0.47), (left + 0.15, 0.21)], 0.02, scaled(GLASS, 1.6))
    canvas.box(length - 0.50, 0.16, length - 0.24, 0.84, scaled(paint, 0.55))
    canvas.box(length - 0.47, 0.20, length - 0.385, 0.78, GLASS)
    canvas.box(length - 0.355, 0.20, length - 0.27, 0.78, GLASS)
    canvas.polygon(
        [(length - 0.17, 0.14), (length, 0.14), (length, 0.56), (length - 0.17, 0.56)],
        scaled(GLASS, 1.2),
    )
    canvas.box(length - 0.62, 0.045, length - 0.10, 0.115, (38, 34, 30))
    canvas.box(length - 0.56, 0.062, length - 0.20, 0.098, (60, 190, 250))
    canvas.box(length - 0.05, 0.68, length, 0.76, (190, 240, 250))
    canvas.box(-length, 0.66, -length + 0.04, 0.77, (40, 40, 205))
    for x in (-0.72, 0.60):
        canvas.ellipse(x, 0.85, 0.18, 0.17, scaled(paint, 0.3))
        _wheel(canvas, x, 0.145, phase)


def _dog(canvas: Canvas, look: Look, phase: float) -> None:
    coat, patch = look.colours[:2]

    hips = ((-0.46, 0.5), (0.34, 0.0), (-0.50, 0.0), (0.36, 0.5))  # x and cycle: far pair, near
    legs = [_leg((x, 0.55), phase + cycle, 0.50, 0.6, (0.22, 0.19)) for x, cycle in hips]
    canvas.stand_on(max(paw[1] for *_, paw in legs) + 0.04)

    def draw_legs(pair: list[list[Point]], colour: Colour) -> None:
        for hip, knee, paw in pair:
            canvas.limb([hip, knee], 0.14, colour)
            canvas.limb([knee, paw, (paw[0] + 0.05, paw[1])], 0.08, colour)

    draw_legs(legs[:2], scaled(coat, 0.66))
    wag = _swing(1.5 * phase, 0.12)
    canvas.limb([(-0.58, 0.40), (-0.78, 0.24), (-0.86 + wag, 0.04)], 0.075, coat)
    canvas.ellipse(-0.10, 0.46, 0.54, 0.185, coat, tilt=-3)
    canvas.ellipse(0.30, 0.45, 0.22, 0.215, coat)
    if look.variant % 2:  # patches on the back
        canvas.ellipse(-0.28, 0.40, 0.17, 0.11, patch, tilt=12)
        canvas.ellipse(0.12, 0.45, 0.10, 0.13, patch)
    canvas.limb([(-0.35, 0.61), (0.20, 0.64)], 0.05, scaled(coat, 1.2))
    draw_legs(legs[2:], coat)
    canvas.limb([(0.36, 0.40), (0.56, 0.22)], 0.22, coat)
    canvas.limb([(0.40, 0.30), (0.52, 0.40)], 0.06, look.colours[2])  # the collar
    canvas.ellipse(0.60, 0.17, 0.175, 0.145, coat)
    canvas.limb([(0.68, 0.20), (0.88, 0.235)], 0.12, scaled(coat, 1.1))
    canvas.ellipse(0.935, 0.215, 0.045, 0.04, RUBBER)
    canvas.ellipse(0.67, 0.13, 0.03, 0.03, (20, 20, 20))
    if look.variant % 3:  # hanging ears, otherwise pricked ones
        canvas.ellipse(0.51, 0.21, 0.065, 0.14, scaled(patch, 0.8), tilt=14)
    else:
        canvas.polygon([(0.46, 0.10), (0.48, 0.0), (0.62, 0.05)], scaled(patch, 0.8))


DRAWINGS = {"person": _person, "car": _car, "bus": _bus, "dog": _dog}
