"""Draws the scenes of `moving_shapes`: a static background, and on it antialiased shapes that follow their tracks.

Lengths are fractions of the image side and times fractions of the clip, so a scene looks the same at any size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from PIL import ImageDraw

from data_pipeline.moving_shapes.drawing import background, fill, outline, shade
from data_pipeline.moving_shapes.scenes import DIRECTIONS, Actor, Scene

_DIAMETERS = {"small": (0.24, 0.28), "large": (0.42, 0.48), "": (0.30, 0.42)}
_TURNS = {"square": 130.0, "triangle": 170.0, "star": 105.0}  # degrees a clip; see _turn
_FLOOR = 0.88  # y of the floor that shapes bounce on


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
    ground = background(scene.image_size, rng)
    if scene.kind == "bounce":
        side = scene.image_size
        ImageDraw.Draw(ground).rectangle((0, round(_FLOOR * side), side, side), fill=(96, 96, 100))
    colours = [shade(actor.colour, rng) for actor in scene.actors]
    tracks = _TRACKS[scene.kind](scene, np.linspace(0.0, 1.0, scene.num_frames), rng)
    frames = []
    for t in range(scene.num_frames):
        frame = ground.copy()
        for actor, colour, track in zip(scene.actors, colours, tracks, strict=True):
            if track.visible[t]:
                centre = np.array([track.x[t], track.y[t]])
                points = centre + outline(actor.shape, track.diameter[t], track.angle[t])
                fill(frame, points * scene.image_size, colour)
        frames.append(np.asarray(frame))
    return np.stack(frames[::-1] if scene.backward else frames)


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
