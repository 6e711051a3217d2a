"""Draws the scenes of `moving_shapes`: a static background, and on it antialiased shapes that follow their tracks.

Lengths are fractions of the image side and times fractions of the clip, so a scene looks the same at any size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

from data_pipeline.moving_shapes.scenes import DIRECTIONS, Actor, Scene

_RGB = {
    "red": (228, 40, 40),
    "green": (40, 185, 65),
    "blue": (35, 115, 255),
    "yellow": (250, 222, 40),
    "purple": (178, 60, 215),
    "white": (242, 242, 242),
}
_DIAMETERS = {"small": (0.24, 0.28), "large": (0.42, 0.48), "": (0.30, 0.42)}
_TURNS = {"square": 130.0, "triangle": 170.0, "star": 105.0}  # degrees a clip; see _turn
_FLOOR = 0.88  # y of the floor that shapes bounce on
_SUPERSAMPLE = 4


@dataclass(frozen=True)
class Track:
    """Where a shape is in each of F frames: float [F] each, but `visible` is bool [F]."""

    x: np.ndarray
    y: np.ndarray
    diameter: np.ndarray
    angle: np.ndarray  # degrees, clockwise
    visible: np.ndarray


def render(scene: Scene) -> np.ndarray:
    """Returns the clip, uint8 [F, S, S, 3] RGB. The same scene always gives the same clip."""
    rng = np.random.default_rng(scene.look)
    background = _background(scene, rng)
    colours = [_shade(actor.colour, rng) for actor in scene.actors]
    tracks = _TRACKS[scene.kind](scene, np.linspace(0.0, 1.0, scene.num_frames), rng)
    frames = []
    for t in range(scene.num_frames):
        frame = background.copy()
        for actor, colour, track in zip(scene.actors, colours, tracks, strict=True):
            if track.visible[t]:
                centre = np.array([track.x[t], track.y[t]])
                points = centre + _outline(actor.shape, track.diameter[t], track.angle[t])
                _fill(frame, points * scene.image_size, colour)
        frames.append(np.asarray(frame))
    return np.stack(frames[::-1] if scene.backward else frames)


def _shade(colour: str, rng: np.random.Generator) -> tuple[int, ...]:
    rgb = np.array(_RGB[colour]) * rng.uniform(0.92, 1.0) + rng.uniform(-10, 10, size=3)
    return tuple(int(value) for value in rgb.clip(0, 255))


def _background(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """A dark background with a gradient, a soft texture and a few thin lines, which never resembles a shape."""
    size = scene.image_size
    tint = rng.uniform(0.08, 0.26) + rng.uniform(-0.04, 0.04, size=3)
    direction = rng.uniform(0, 2 * np.pi)
    ys, xs = np.mgrid[-0.5 : 0.5 : size * 1j, -0.5 : 0.5 : size * 1j]
    gradient = rng.uniform(0, 0.2) * (np.cos(direction) * xs + np.sin(direction) * ys)
    cells = rng.integers(4, 13)
    texture = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    plane = gradient + rng.uniform(0, 0.04) * np.asarray(texture)
    image = Image.fromarray((255 * (tint + plane[..., None])).clip(0, 120).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(0, 4)):
        ends = rng.uniform(0, size, size=4)
        shade = 255 * (tint + rng.uniform(0.06, 0.14)).clip(0, 0.45)
        draw.line(tuple(ends), fill=tuple(int(value) for value in shade))
    if scene.kind == "bounce":
        draw.rectangle((0, round(_FLOOR * size), size, size), fill=(96, 96, 100))
    return image


def _outline(shape: str, diameter: float, angle: float) -> np.ndarray:
    """Returns the corners of a shape around the origin, float [n, 2]. All shapes look about equally large."""
    if shape == "circle":
        degrees, radii = np.arange(0, 360, 9.0), np.full(40, 0.5)
    elif shape == "square":
        degrees, radii = np.arange(45, 360, 90.0), np.full(4, 0.64)
    elif shape == "triangle":
        degrees, radii = np.array([-90.0, 35.0, 145.0]), np.array([0.68, 0.62, 0.62])
    else:  # star: deep notches tell it from a circle even when small
        degrees, radii = np.arange(-90, 270, 36.0), np.tile([0.66, 0.25], 5)
    radians = np.deg2rad(degrees + angle)
    return diameter * radii[:, None] * np.stack([np.cos(radians), np.sin(radians)], axis=-1)


def _fill(frame: Image.Image, points: np.ndarray, colour: tuple[int, ...]) -> None:
    """Paints an antialiased polygon: draws its mask at a larger size, within its bounding box, and averages it."""
    corner = np.floor(points.min(axis=0)).astype(int) - 1
    width, height = np.ceil(points.max(axis=0)).astype(int) + 1 - corner
    mask = Image.new("L", (int(width) * _SUPERSAMPLE, int(height) * _SUPERSAMPLE))
    ImageDraw.Draw(mask).polygon([tuple(p) for p in (points - corner) * _SUPERSAMPLE], fill=255)
    frame.paste(colour, (int(corner[0]), int(corner[1])), mask.reduce(_SUPERSAMPLE))


# Tracks, a function for each kind of event played forward: (scene, times [F] in 0..1, rng) -> a Track for each actor.


def _track(
    t: np.ndarray, x: ArrayLike, y: ArrayLike, diameter: ArrayLike, angle: ArrayLike, visible: ArrayLike = True
) -> Track:
    return Track(*(np.broadcast_to(value, t.shape) for value in (x, y, diameter, angle, visible)))


def _diameter(actor: Actor, rng: np.random.Generator) -> float:
    return rng.uniform(*_DIAMETERS[actor.size])


def _place(diameter: float, rng: np.random.Generator) -> np.ndarray:
    margin = 0.7 * diameter
    return rng.uniform(margin, 1 - margin, size=2)


def _travel(
    t: np.ndarray, direction: str, diameter: float, across: float, rng: np.random.Generator, visible: ArrayLike = True
) -> Track:
    """Crosses the image in one direction, from near one edge to near the other, on a slightly slanted line."""
    start, end = rng.uniform(0.0, 0.1), rng.uniform(0.9, 1.0)  # the shape rests before and after, so its speed varies
    progress = np.clip((t - start) / (end - start), 0, 1)
    margin = 0.6 * diameter
    along = margin + rng.uniform(0, 0.08) + progress * (1 - 2 * margin - rng.uniform(0.08, 0.16))
    if direction in ("from right to left", "from bottom to top"):
        along = 1 - along
    lane = across + rng.uniform(-0.05, 0.05) * (progress - 0.5)
    x, y = (along, lane) if direction in ("from left to right", "from right to left") else (lane, along)
    return _track(t, x, y, diameter, rng.uniform(-8, 8), visible)


def _move(scene: Scene, t: np.ndarray, rng: np.random.Generator) -> list[Track]:
    diameter = _diameter(scene.actors[0], rng)
    return [_travel(t, scene.motions[0], diameter, _place(diameter, rng)[0], rng)]


def _grow(scene: Scene, t: np.ndarray, rng: np.random.Generator) -> list[Track]:
    smallest, largest = rng.uniform(0.12, 0.16), rng.uniform(0.44, 0.54)
    x, y = _place(largest, rng)
    return [_track(t, x, y, smallest + t * (largest - smallest), rng.uniform(-8, 8))]


def _turn(scene: Scene, t: np.ndarray, rng: np.random.Generator) -> list[Track]:
    """Turns in place, slowly: from one of 8 uniform frames to the next by 15 (star) to 24 degrees (triangle).

    Within a third of the clip the shape turns by less than half of the angle that maps it onto itself. So the direction
    can be seen in unevenly drawn frames, too.
    """
    diameter = rng.uniform(0.42, 0.54)
    x, y = _place(diameter, rng)
    angle = rng.uniform(0, 360) + rng.uniform(0.9, 1.0) * _TURNS[scene.actors[0].shape] * t
    return [_track(t, x, y, diameter, angle)]


def _bounce(scene: Scene, t: np.ndarray, rng: np.random.Generator) -> list[Track]:
    diameter = _diameter(scene.actors[0], rng)
    height = np.abs(np.sin(np.pi * (2 * t + rng.uniform(0, 1))))  # two hops, starting anywhere in the first
    lowest = _FLOOR - 0.5 * diameter
    y = lowest - height * (lowest - 0.6 * diameter - rng.uniform(0, 0.1))
    return [_track(t, _place(diameter, rng)[0], y, diameter, rng.uniform(-8, 8))]


def _appear_in_turn(scene: Scene, t: np.ndarray, rng: np.random.Generator) -> list[Track]:
    switch, gap = rng.uniform(0.42, 0.58), rng.uniform(0, 0.04)
    tracks = []
    for actor, visible in zip(scene.actors, (t < switch - gap, t > switch + gap), strict=True):
        diameter = _diameter(actor, rng)
        x, y = _place(diameter, rng)
        tracks.append(_track(t, x, y, diameter, rng.uniform(-8, 8), visible))
    return tracks


def _move_in_turn(scene: Scene, t: np.ndarray, rng: np.random.Generator) -> list[Track]:
    tracks = []
    for actor, motion, own_time in zip(scene.actors, scene.motions, (2 * t, 2 * t - 1), strict=True):
        diameter = _diameter(actor, rng)
        visible = (own_time >= 0) & (own_time <= 1)
        tracks.append(_travel(own_time, motion, diameter, _place(diameter, rng)[0], rng, visible))
    return tracks


def _cross(scene: Scene, t: np.ndarray, rng: np.random.Generator) -> list[Track]:
    """Two shapes meet in the middle, one partly covers the other, and both move on."""
    axis, first, lane = rng.integers(2), rng.integers(2), rng.uniform(0.3, 0.7)
    tracks = []
    for i, actor in enumerate(scene.actors):
        across = lane + (i - 0.5) * rng.uniform(0.1, 0.2)
        tracks.append(_travel(t, DIRECTIONS[2 * axis + (i + first) % 2], _diameter(actor, rng), across, rng))
    return tracks


_TRACKS: dict[str, Callable[[Scene, np.ndarray, np.random.Generator], list[Track]]] = {
    "move": _move,
    "grow": _grow,
    "turn": _turn,
    "bounce": _bounce,
    "appear_in_turn": _appear_in_turn,
    "move_in_turn": _move_in_turn,
    "cross": _cross,
}
