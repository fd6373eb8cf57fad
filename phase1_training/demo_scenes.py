"""Scenes of the demo data: who is where, how they move, what is drawn and what is annotated.

A scene has a ground plane: things further down in the picture are nearer and larger. Sizes follow
from that one rule, so an object that walks towards the camera grows.
"""

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np

from phase1_training.demo_backgrounds import (
    ROAD_BOTTOM,
    ROAD_TOP,
    Background,
    Prop,
    Style,
    make_background,
)
from phase1_training.demo_sprites import CATEGORIES, Category, Look, draw, random_look

# An object is annotated when this share of it is inside the frame, and this share of the part
# inside is not hidden.
MIN_INSIDE, MIN_UNHIDDEN = 0.15, 0.25
SOLID = 127  # alpha above which a pixel belongs to the object

# Where each class can stand (share of the ground's depth) and its speed in own heights per frame
# at 12 frames a second: at most a tenth of a box's width, so that boxes of successive frames
# overlap well.
DEPTHS = {"person": (0.06, 0.97), "car": (0.24, 0.74), "bus": (0.22, 0.56), "dog": (0.10, 0.97)}
SPEEDS = {"person": (0.028, 0.050), "car": (0.10, 0.19), "bus": (0.09, 0.14), "dog": (0.06, 0.13)}


SHARES = (0.36, 0.25, 0.15, 0.24)  # of the classes among the objects of the pictures


# Video: frames before a class enters again where one of it left. Without appearance a tracker
# could not tell the newcomer from the one that left, and the tracks would test nothing else.
REENTRY_FRAMES = 36
EDGE = 0.12  # share of the width that counts as leaving


@dataclass(frozen=True)
class Camera:
    gain: float  # overall brightness
    blur: float  # standard deviation in pixels
    noise: float  # standard deviation in grey levels
    light: float  # strength of the light from the right


@dataclass
class Actor:
    """One individual at one moment. `x` is in pixels, `depth` in 0 (horizon) to 1 (camera)."""

    track_id: int
    look: Look
    x: float
    depth: float
    facing: int
    phase: float
    speed: float = 0.0  # own heights per frame
    approach: float = 0.0  # depth per frame

    @property
    def category(self) -> Category:
        return self.look.category


@dataclass(frozen=True)
class Annotation:
    """Ground truth of one object in one frame.

    `box_xywh` is the extent of the whole silhouette, hidden parts included, clipped to the frame:
    left, top, width, height in whole pixels. `visibility` is the share of the silhouette that is
    neither hidden nor outside the frame, `area` the number of those pixels.
    """

    track_id: int
    category_id: int
    box_xywh: tuple[int, int, int, int]
    visibility: float
    area: int


def random_camera(rng: np.random.Generator) -> Camera:
    blur = rng.uniform(0.4, 1.0) if rng.uniform() < 0.5 else 0.0
    return Camera(rng.uniform(0.78, 1.15), blur, rng.uniform(1.5, 6.5), rng.uniform(-0.13, 0.13))


def object_height(category: Category, depth: float, frame_height: int) -> float:
    """Height in pixels of an object of this class standing at this depth."""
    return frame_height * (0.125 + 0.22 * depth) * category.relative_height


def render(
    background: Background, actors: list[Actor], camera: Camera, rng: np.random.Generator
) -> tuple[np.ndarray, list[Annotation]]:
    """Draws one frame, far things first.

    Returns:
        the frame, uint8 (height, width, 3) BGR, and the annotations of the objects of which
        enough is seen (MIN_INSIDE, MIN_UNHIDDEN), in the order of `actors`.
    """
    frame = background.image.copy()
    height, width = frame.shape[:2]
    owner = np.zeros((height, width), np.uint8)  # 1 + index of the actor seen at each pixel
    extents: dict[int, tuple[tuple[int, int, int, int], int, int]] = {}
    ground = height - background.horizon
    layers: list[tuple[float, int, Prop | None]] = [(p.foot_y, -1, p) for p in background.props]
    layers += [(background.horizon + a.depth * ground, i, None) for i, a in enumerate(actors)]
    for foot_y, index, prop in sorted(layers, key=lambda layer: layer[:2]):
        if prop is not None:
            _paste(frame, owner, prop.sprite, prop.left, prop.top, 0)
            continue
        actor = actors[index]
        size = object_height(actor.category, actor.depth, height)
        column, row = math.floor(actor.x), math.floor(foot_y)
        offset = (actor.x - column, foot_y - row)
        sprite, (anchor_x, anchor_y) = draw(
            actor.look, size, actor.phase, facing=actor.facing, light=camera.light, offset=offset
        )
        left, top = column - round(anchor_x), row - round(anchor_y)
        solid = sprite[..., 3] > SOLID
        x, y, w, h = cv2.boundingRect(solid.astype(np.uint8))
        inside = solid[max(0, -top) : height - top, max(0, -left) : max(0, width - left)]
        extents[index] = ((left + x, top + y, w, h), int(solid.sum()), int(inside.sum()))
        _shadow(frame, (actor.x, foot_y), 0.46 * w, 0.055 * size)
        _paste(frame, owner, sprite, left, top, index + 1)
    seen = np.bincount(owner.ravel(), minlength=len(actors) + 1)
    annotations = []
    for index, actor in enumerate(actors):
        extent, pixels, inside_pixels = extents[index]
        area = int(seen[index + 1])
        if inside_pixels >= MIN_INSIDE * pixels and area >= max(1, MIN_UNHIDDEN * inside_pixels):
            box = clip(extent, width, height)
            visibility = area / pixels
            annotations.append(Annotation(actor.track_id, actor.category.id, box, visibility, area))
    return _expose(frame, camera, rng), annotations


def clip(box_xywh: tuple[int, int, int, int], width: int, height: int) -> tuple[int, int, int, int]:
    """The part of an xywh box inside a width x height frame."""
    left, top, w, h = box_xywh
    x1, y1 = max(left, 0), max(top, 0)
    return x1, y1, min(left + w, width) - x1, min(top + h, height) - y1


def _paste(
    frame: np.ndarray, owner: np.ndarray, sprite: np.ndarray, left: int, top: int, key: int
) -> None:
    x, y, w, h = clip((left, top, sprite.shape[1], sprite.shape[0]), *frame.shape[1::-1])
    if w <= 0 or h <= 0:
        return
    part = sprite[y - top : y - top + h, x - left : x - left + w]
    target = frame[y : y + h, x : x + w]
    kept = target * (255 - part[..., 3:].astype(np.uint16)) // 255
    target[:] = np.minimum(kept + part[..., :3], 255)
    owner[y : y + h, x : x + w][part[..., 3] > SOLID] = key


def _shadow(
    frame: np.ndarray, centre: tuple[float, float], radius_x: float, radius_y: float
) -> None:
    reach_x, reach_y = math.ceil(1.3 * radius_x), math.ceil(2 * radius_y) + 1
    left, top = round(centre[0]) - reach_x, round(centre[1]) - reach_y
    x, y, w, h = clip((left, top, 2 * reach_x + 1, 2 * reach_y + 1), *frame.shape[1::-1])
    if w <= 0 or h <= 0:
        return
    dx = (np.arange(x, x + w, dtype=np.float32) - centre[0]) / radius_x
    dy = (np.arange(y, y + h, dtype=np.float32) - centre[1]) / radius_y
    darkness = np.clip(1.25 - dx**2 - dy[:, None] ** 2, 0, 0.55)
    target = frame[y : y + h, x : x + w]
    target[:] = target * (1 - darkness)[..., None]


def _expose(frame: np.ndarray, camera: Camera, rng: np.random.Generator) -> np.ndarray:
    if camera.blur:
        frame = cv2.GaussianBlur(frame, (0, 0), camera.blur)
    noise = rng.standard_normal(frame.shape[:2], np.float32)[..., None] * camera.noise
    return np.clip(frame * np.float32(camera.gain) + noise, 0, 255).astype(np.uint8)


def random_scene(
    rng: np.random.Generator, styles: tuple[Style, ...], width: int, height: int
) -> tuple[np.ndarray, list[Annotation]]:
    """One independent picture with 3 to 7 objects, as `render` returns it.

    Fewer are annotated where some are nearly hidden.
    """
    style = styles[rng.integers(len(styles))]
    background = make_background(rng, style, width, height, int(rng.integers(0, 4)))
    actors: list[Actor] = []
    for track_id in range(1, int(rng.integers(3, 8)) + 1):
        category = CATEGORIES[rng.choice(len(CATEGORIES), p=SHARES)]
        candidates = [_random_actor(rng, track_id, category, width) for _ in range(4)]
        crowding = [_crowding(candidate, actors, height) for candidate in candidates]
        # Mostly the freest of a few places; now and then the first, hidden or hiding or not.
        choice = 0 if rng.uniform() < 0.15 else int(np.argmin(crowding))
        actors.append(candidates[choice])
    return render(background, actors, random_camera(rng), rng)


def _random_actor(rng: np.random.Generator, track_id: int, category: Category, width: int) -> Actor:
    return Actor(
        track_id=track_id,
        look=random_look(rng, category),
        x=rng.uniform(0.02, 0.98) * width,
        depth=rng.uniform(*DEPTHS[category.name]),
        facing=int(rng.choice([-1, 1])),
        phase=rng.uniform(),
    )


def _crowding(actor: Actor, others: list[Actor], frame_height: int) -> float:
    """Sum of the overlaps with the others, each relative to the smaller of the two."""

    def extent(one: Actor) -> tuple[float, float, float, float]:
        size = object_height(one.category, one.depth, frame_height)
        half = 0.9 * one.category.half_width * size
        foot = one.depth * 0.6 * frame_height
        return one.x - half, foot - size, one.x + half, foot

    x1, y1, x2, y2 = extent(actor)
    total = 0.0
    for other in others:
        left, top, right, bottom = extent(other)
        overlap = max(0.0, min(x2, right) - max(x1, left)) * max(
            0.0, min(y2, bottom) - max(y1, top)
        )
        total += overlap / min((x2 - x1) * (y2 - y1), (right - left) * (bottom - top))
    return total


@dataclass(frozen=True)
class Slot:
    """A stream of individuals of one class along one lane of the video, one after the other."""

    category: Category
    depths: tuple[float, float]
    facing: int  # 0: either way
    pace: float = 1.0  # relative to SPEEDS
    pause: tuple[int, int] = (4, 26)  # frames between one individual and the next


def _slots() -> tuple[Slot, ...]:
    person, car, bus, dog = CATEGORIES
    return (
        # A stroller and, nearer and so in front, people in a hurry: while one is hidden it moves
        # less than its own width, so that overlap alone can find it again.
        Slot(person, (ROAD_BOTTOM + 0.02, 0.70), -1, pace=0.45),
        Slot(person, (0.88, 0.97), 1, pace=1.25, pause=(20, 50)),
        Slot(bus, (0.33, 0.36), -1, pause=(50, 90)),
        Slot(car, (0.38, 0.41), -1),
        Slot(car, (0.55, 0.60), 1),
        Slot(dog, (0.66, 0.71), 0),
        Slot(dog, (0.84, 0.94), 0),
    )


def _open_pavement(background: Background) -> Background:
    """Without the bushes and planters before the road, which would hide a stroller for seconds:
    lamp posts hide people and cars for a few frames."""
    road_edge = background.horizon + ROAD_TOP * (len(background.image) - background.horizon)
    kept = [
        prop
        for prop in background.props
        if prop.foot_y <= road_edge or prop.sprite.shape[0] > prop.sprite.shape[1]
    ]
    return replace(background, props=tuple(kept))


class VideoScene:
    """A street over time: `step` draws the next frame of `render`'s kind."""

    def __init__(self, rng: np.random.Generator, style: Style, width: int, height: int):
        self.rng, self.width, self.height = rng, width, height
        self.background = _open_pavement(make_background(rng, style, width, height, 5))
        self.camera = replace(random_camera(rng), gain=1.0, blur=0.5)
        self.slots = _slots()
        self.next_id = 1
        self.frame_index = 0
        self.last_exit: dict[tuple[str, int], int] = {}  # (class, side -1 or 1) -> frame
        self.waiting = [0] * len(self.slots)  # frames until the slot's next individual enters
        self.actors: list[Actor | None] = [self._new_actor(slot) for slot in self.slots]

    def step(self) -> tuple[np.ndarray, list[Annotation]]:
        actors = [actor for actor in self.actors if actor is not None]
        drift = 1 + 0.06 * math.sin(2 * math.pi * self.frame_index / 170)  # passing clouds
        camera = replace(self.camera, gain=self.camera.gain * drift)
        frame, annotations = render(self.background, actors, camera, self.rng)
        self.frame_index += 1
        for index, slot in enumerate(self.slots):
            actor = self.actors[index]
            if actor is None:
                self.waiting[index] -= 1
                if self.waiting[index] <= 0:
                    self.actors[index] = self._enter(slot)
            elif self._move(actor):
                self.actors[index] = None
                self.waiting[index] = int(self.rng.integers(*slot.pause))
        return frame, annotations

    def _new_actor(self, slot: Slot) -> Actor:
        """The slot's next individual, somewhere along its lane."""
        rng = self.rng
        actor = _random_actor(rng, self.next_id, slot.category, self.width)
        self.next_id += 1
        actor.facing = slot.facing or actor.facing
        actor.depth, target = rng.uniform(*slot.depths), rng.uniform(*slot.depths)
        actor.speed = rng.uniform(*SPEEDS[slot.category.name]) * slot.pace
        size = object_height(actor.category, actor.depth, self.height)
        actor.approach = (target - actor.depth) * actor.speed * size / self.width
        return actor

    def _enter(self, slot: Slot) -> Actor | None:
        """The slot's next individual just outside the picture; None while no side is free."""
        facings = [slot.facing] if slot.facing else self.rng.permutation([-1, 1]).tolist()
        for facing in facings:
            last_exit = self.last_exit.get((slot.category.name, -facing), -REENTRY_FRAMES)
            if self.frame_index - last_exit >= REENTRY_FRAMES:
                actor = self._new_actor(slot)
                size = object_height(actor.category, actor.depth, self.height)
                outside = 1.1 * slot.category.half_width * size
                actor.facing, actor.x = facing, -outside if facing > 0 else self.width + outside
                return actor
        return None

    def _move(self, actor: Actor) -> bool:
        """Advances one frame; True when the actor has left the picture for good."""
        size = object_height(actor.category, actor.depth, self.height)
        pace = actor.speed * (1 + 0.25 * math.sin(self.frame_index / 19 + actor.track_id))
        actor.x += actor.facing * pace * size
        actor.depth += actor.approach
        actor.phase += pace / actor.category.stride
        to_go = self.width - actor.x if actor.facing > 0 else actor.x
        if to_go < EDGE * self.width:
            self.last_exit[actor.category.name, actor.facing] = self.frame_index
        outside = 1.15 * actor.category.half_width * size
        return not -outside <= actor.x <= self.width + outside
