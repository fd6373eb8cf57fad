"""Drawing tracks on video frames: box, label and a short trail for each, and a status line."""

from collections import deque
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

Color = tuple[int, int, int]
Place = tuple[int, int, int, int]  # x1, y1, x2, y2

# BGR. A search has made the closest two of them as different as it could, for normal sight and for
# the red-green blind, and has ordered them so that those of consecutive ids differ more still.
PALETTE_BGR = (
    *((184, 28, 232), (204, 224, 8), (128, 64, 112), (112, 124, 196), (160, 255, 88)),
    *((120, 72, 192), (255, 0, 24), (8, 84, 148), (196, 128, 224), (255, 255, 132)),
    *((0, 216, 160), (255, 116, 136), (0, 132, 140), (140, 156, 255), (160, 128, 0)),
    *((255, 196, 128), (72, 0, 160), (184, 0, 120), (0, 192, 36), (20, 243, 236)),
)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
FONT = cv2.FONT_HERSHEY_SIMPLEX
TRAIL_SECONDS = 2.0
REFERENCE_HEIGHT = 720  # pixels; text and lines grow with frames larger than this
FONT_SCALE, MIN_FONT_SCALE = 0.6, 0.42  # below this the strokes run together
PADDING = 3  # pixels around text
MAX_AVOIDED = 200  # labels that later ones keep off; with more there is no room anyway


class TrackDrawer:
    """Draws tracks and remembers where each has been, for its trail.

    Args:
        class_names: category id -> name; an id without a name is drawn as `class 7`.
        frame_height: pixels; decides line width and text size.
        fps: frames per second; decides how many frames a trail reaches back.
    """

    def __init__(self, class_names: Mapping[int, str], frame_height: int, fps: float):
        self._class_names = {label: drawable(name) for label, name in class_names.items()}
        scale = frame_height / REFERENCE_HEIGHT
        self._line_width = max(1, round(3 * scale))
        self._font_scale = max(MIN_FONT_SCALE, FONT_SCALE * scale)
        self._text_width = max(1, round(1.3 * scale))
        self._trail_frames = max(2, round(TRAIL_SECONDS * fps))
        self._trails: dict[int, deque[tuple[int, int, int]]] = {}  # id -> (frame, x, y)
        self._frame = 0
        self._taken: list[Place] = []  # by texts on the last frame, the status first

    def draw(
        self,
        frame_bgr: np.ndarray,
        tracks: np.ndarray,
        status: str,
        avoided: Sequence[Place] = (),
    ) -> None:
        """Draws onto the frame itself.

        Args:
            frame_bgr: uint8 (H, W, 3).
            tracks: (M, 7) [x1, y1, x2, y2, track_id, class_id, confidence] in pixels.
            status: text for the top left corner.
            avoided: what labels of tracks keep off where there is room, as they do off each other.
        """
        self._frame += 1
        height, width = frame_bgr.shape[:2]
        # Outlines of boxes that leave the frame stay just outside it; int32 is what OpenCV takes.
        limits = np.array([width, height, width, height])
        boxes = np.clip(np.rint(tracks[:, :4]), -self._line_width, limits).astype(int).tolist()
        ids, classes = tracks[:, 4].astype(int).tolist(), tracks[:, 5].astype(int).tolist()
        self._extend_trails(ids, boxes)
        for track_id in ids:
            self._draw_trail(frame_bgr, track_id)
        for track_id, (x1, y1, x2, y2) in zip(ids, boxes, strict=True):
            cv2.rectangle(frame_bgr, (x1, y1), (x2, y2), color_of(track_id), self._line_width)
        taken = self._taken = list[Place]()
        self._draw_text(frame_bgr, status, (0, 0, 0, 0), BLACK, taken)
        taken += avoided
        for row, (track_id, class_id) in enumerate(zip(ids, classes, strict=True)):
            name = self._class_names.get(class_id, f"class {class_id}")
            text = f"ID:{track_id} {name} {tracks[row, 6]:.2f}"
            self._draw_text(frame_bgr, text, boxes[row], color_of(track_id), taken)

    def draw_speed(self, frame_bgr: np.ndarray, fps: float) -> None:
        """Writes how fast a run is, in frames per second, to the right of the status, or below it
        in a narrow frame; after `draw`. A run that has not begun to count has no speed yet."""
        if fps <= 0:
            return
        right = frame_bgr.shape[1]
        self._draw_text(frame_bgr, f"FPS: {fps:.1f}", (right, 0, right, 0), BLACK, self._taken[:1])

    def _extend_trails(self, ids: list[int], boxes: list[list[int]]) -> None:
        """Adds the bottom centres of the boxes and forgets points that are too old."""
        for track_id, (x1, _, x2, y2) in zip(ids, boxes, strict=True):
            trail = self._trails.setdefault(track_id, deque())
            trail.append((self._frame, (x1 + x2) // 2, y2))
        oldest = self._frame - self._trail_frames
        for track_id, trail in list(self._trails.items()):
            while trail and trail[0][0] <= oldest:
                trail.popleft()
            if not trail:
                del self._trails[track_id]

    def _draw_trail(self, frame_bgr: np.ndarray, track_id: int) -> None:
        """A line through the points; it is interrupted where the object was not seen."""
        trail = np.array(self._trails[track_id])
        breaks = np.flatnonzero(np.diff(trail[:, 0]) > 1) + 1
        lines = [part[:, 1:] for part in np.split(trail, breaks)]
        color = color_of(track_id)
        cv2.polylines(frame_bgr, lines, False, color, self._line_width, cv2.LINE_AA)

    def _draw_text(
        self,
        frame_bgr: np.ndarray,
        text: str,
        box: Sequence[int],
        background: Color,
        taken: list[Place],
    ) -> None:
        """Text on a filled rectangle by a box: inside the frame, off the others if there is room.

        The rectangle is added to `taken`.
        """
        (text_width, ascent), descent = cv2.getTextSize(
            text, FONT, self._font_scale, self._text_width
        )
        width, height = text_width + 2 * PADDING, ascent + descent + 2 * PADDING
        x1, y1, _, y2 = box
        x = max(0, min(x1, frame_bgr.shape[1] - width))
        lowest = max(0, frame_bgr.shape[0] - height)
        tops = (y1 - height, y2, y1, y1 - 2 * height, y2 + height)  # above, below, inside, ...
        places = [(x, y, x + width, y + height) for y in tops if 0 <= y <= lowest]
        others = taken[:MAX_AVOIDED]
        free = [place for place in places if not any(overlap(place, other) for other in others)]
        y = min(max(0, y1 - height), lowest)
        place = next(iter(free or places), (x, y, x + width, y + height))
        taken.append(place)
        cv2.rectangle(frame_bgr, place[:2], place[2:], background, cv2.FILLED)
        origin = (place[0] + PADDING, place[1] + PADDING + ascent)
        color = text_color_on(background)
        cv2.putText(
            frame_bgr, text, origin, FONT, self._font_scale, color, self._text_width, cv2.LINE_AA
        )


def drawable(text: str) -> str:
    """A name as one line that OpenCV can draw: it crashes on half of a surrogate pair."""
    return " ".join(text.encode("utf-8", "replace").decode().split())


def overlap(a: Place, b: Place) -> bool:
    """Whether two rectangles share a pixel."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def color_of(track_id: int) -> Color:
    """The BGR colour a track keeps for its whole life; twenty consecutive ids have twenty."""
    return PALETTE_BGR[track_id % len(PALETTE_BGR)]


def text_color_on(background_bgr: Color) -> Color:
    """Black or white, whichever has more contrast there (WCAG 2.1)."""
    blue, green, red = ((value / 255) ** 2.2 for value in background_bgr)
    luminance = 0.0722 * blue + 0.7152 * green + 0.2126 * red
    return BLACK if luminance > 0.179 else WHITE
