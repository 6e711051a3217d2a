"""Draws the scenes of `crowded_shapes`, and tells which shape is where.

Lengths are fractions of the image side and times fractions of the clip, so a scene looks the same at any size.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from data_pipeline.crowded_shapes.scenes import Crowd
from data_pipeline.moving_shapes.drawing import background, fill, outline, shade
from data_pipeline.moving_shapes.scenes import COLOURS, SHAPES, Actor

_DIAMETERS = (0.13, 0.17)
_MARGIN = 0.09  # that a shape keeps to the edges, before the camera moves
_WAY = (0.30, 0.40)  # of a shape that moves, if there is room
_BAR = 0.10  # width: narrower than any shape, so it hides none
_PAN = (0.08, 0.16)  # way of the camera
_SHOWN = 0.25  # share of a patch that a shape must cover to count
_STEPS = {"moves left": (-1, 0), "moves right": (1, 0), "moves up": (0, -1), "moves down": (0, 1)}


@dataclass(frozen=True)
class _Path:
    """A shape on its way through F frames."""

    actor: Actor
    colour: tuple[int, ...]
    diameter: float
    angle: float  # degrees
    centres: np.ndarray  # float [F, 2], x and y
    visible: np.ndarray  # bool [F]

    def corners(self, t: int, pan: np.ndarray, size: int) -> np.ndarray:
        """Where its corners are in frame t, in pixels: float [n, 2]."""
        return (self.centres[t] - pan + outline(self.actor.shape, self.diameter, self.angle)) * size


@dataclass(frozen=True)
class _Stage:
    """All that is drawn."""

    paths: list[_Path]  # from the one behind to the one in front
    ground: Image.Image  # larger than a frame
    pan: np.ndarray  # float [F, 2], where the camera looks
    bar: tuple[bool, float] | None  # whether it stands upright, and where


def render(crowd: Crowd) -> np.ndarray:
    """Returns the clip, uint8 [F, S, S, 3] RGB. The same scene always gives the same clip."""
    stage, size = _stage(crowd), crowd.image_size
    frames = []
    for t, pan in enumerate(stage.pan):
        corner = np.round((np.array(stage.ground.size) - size) / 2 + pan * size).astype(int)
        frame = stage.ground.crop((*corner, *(corner + size)))
        for path in stage.paths:
            if path.visible[t]:
                fill(frame, path.corners(t, pan, size), path.colour)
        if stage.bar:
            ImageDraw.Draw(frame).rectangle(_bar(stage.bar, pan, size), fill=(112, 112, 116))
        frames.append(np.asarray(frame))
    return np.stack(frames)


def shape_numbers(crowd: Crowd, patch_size: int) -> np.ndarray:
    """Returns which shape each patch shows: int [F, S / patch_size, S / patch_size].

    0 and 1 are the two like shapes, 2 is the witness, higher ones are not named; -1 is ground, or nothing for sure.
    """
    stage, size = _stage(crowd), crowd.image_size
    numbers = []
    for t, pan in enumerate(stage.pan):
        mask = Image.new("L", (size, size))
        draw = ImageDraw.Draw(mask)
        for behind, path in enumerate(stage.paths):
            if path.visible[t]:
                corners = [tuple(corner) for corner in path.corners(t, pan, size)]
                draw.polygon(corners, fill=len(stage.paths) - behind)
        if stage.bar:
            draw.rectangle(_bar(stage.bar, pan, size), fill=0)
        numbers.append(_of_patches(np.asarray(mask), patch_size, len(stage.paths)))
    return np.stack(numbers)


def _of_patches(mask: np.ndarray, patch_size: int, num_shapes: int) -> np.ndarray:
    """The number of the shape that covers most of each patch, from a mask [S, S] with 0 for none: int [G, G]."""
    grid = mask.shape[0] // patch_size
    patches = mask.reshape(grid, patch_size, grid, patch_size)
    shares = np.stack([(patches == number).mean((1, 3)) for number in range(1, num_shapes + 1)])
    return np.where(shares.max(0) >= _SHOWN, shares.argmax(0), -1)


def _stage(crowd: Crowd) -> _Stage:
    rng = np.random.default_rng(crowd.look)
    t = np.linspace(0.0, 1.0, crowd.num_frames)
    pan = np.zeros((crowd.num_frames, 2))
    if rng.random() < 0.5:
        turn = rng.uniform(0, 2 * np.pi)
        pan = (t[:, None] - 0.5) * rng.uniform(*_PAN) * np.array([np.cos(turn), np.sin(turn)])
    bar = (bool(rng.random() < 0.5), rng.uniform(0.3, 0.7)) if rng.random() < 0.5 else None
    ground = background(round(1.4 * crowd.image_size), rng)
    colour = shade(crowd.like.colour, rng)  # of both: nothing but their places tells the two like shapes apart
    diameter, angle = rng.uniform(*_DIAMETERS), rng.uniform(-8, 8)
    starts, ways = _starts(crowd.place, rng), [_way(t, rng) for _ in range(2)]
    lengths, ends = rng.uniform(*_WAY, size=2), rng.uniform(0.35, 0.65, size=2)
    like = [
        _Path(crowd.like, colour, diameter, angle, *_follow(fate, starts[i], ways[i], lengths[i], t < ends[i]))
        for i, fate in enumerate(crowd.fates)
    ]
    named = {(actor.colour, actor.shape) for actor in (crowd.like, crowd.witness)}
    free = [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in named]
    others = [Actor(*free[i]) for i in rng.choice(len(free), size=rng.integers(1, 3), replace=False)]
    witness = _bystander(crowd.witness, crowd.witness_fate == "passes by", t, rng)
    unnamed = [_bystander(actor, bool(rng.random() < 0.5), t, rng) for actor in others]
    return _Stage([*unnamed[::-1], witness, like[1], like[0]], ground, pan, bar)


def _bar(bar: tuple[bool, float], pan: np.ndarray, size: int) -> tuple[float, ...]:
    is_upright, place = bar
    low = (place - pan[0 if is_upright else 1] - _BAR / 2) * size
    return (low, 0, low + _BAR * size - 1, size) if is_upright else (0, low, size, low + _BAR * size - 1)


def _starts(place: int, rng: np.random.Generator) -> np.ndarray:
    """Where the two like shapes are at first, [2, 2]: one beside the other, or above it."""
    apart = np.array([-1, 1]) * rng.uniform(0.16, 0.24, size=2) + 0.5
    across = rng.uniform(0.35, 0.65, size=2)
    return np.stack([apart, across] if place == 0 else [across, apart], axis=-1)


def _way(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Share of the way that is done at each time: a shape rests before and after, so its speed varies."""
    start, end = rng.uniform(0.0, 0.2), rng.uniform(0.8, 1.0)
    return np.clip((t - start) / (end - start), 0, 1)


def _follow(
    fate: str, start: np.ndarray, way: np.ndarray, length: float, before: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the centres [F, 2] and whether the shape is visible [F]."""
    end = np.clip(start + length * np.array(_STEPS.get(fate, (0, 0))), _MARGIN, 1 - _MARGIN)
    return start + way[:, None] * (end - start), before if fate == "disappears" else np.ones(len(way), bool)


def _bystander(actor: Actor, passes: bool, t: np.ndarray, rng: np.random.Generator) -> _Path:
    """A shape in a corner, which stays there or passes along an edge to the next corner."""
    corner, axis = rng.integers(2, size=2), rng.integers(2)
    near, far = rng.uniform(0.09, 0.17), rng.uniform(0.55, 0.70)
    start = np.where(corner, 1 - near, near)
    end = start.copy()
    end[axis] += far if start[axis] < 0.5 else -far
    way = _way(t, rng)
    centres = start + way[:, None] * (end - start) * passes
    return _Path(actor, shade(actor.colour, rng), rng.uniform(*_DIAMETERS), rng.uniform(-8, 8), centres,
                 np.ones(len(t), bool))  # fmt: skip
