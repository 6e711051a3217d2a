"""How shapes and backgrounds of the embedded data sets look. Lengths are fractions of the image side or in pixels."""

import numpy as np
from PIL import Image, ImageDraw

_RGB = {
    "red": (228, 40, 40),
    "green": (40, 185, 65),
    "blue": (35, 115, 255),
    "yellow": (250, 222, 40),
    "purple": (178, 60, 215),
    "white": (242, 242, 242),
}
_SUPERSAMPLE = 4


def shade(colour: str, rng: np.random.Generator) -> tuple[int, ...]:
    """Returns an RGB value that anybody would call by that name."""
    rgb = np.array(_RGB[colour]) * rng.uniform(0.92, 1.0) + rng.uniform(-10, 10, size=3)
    return tuple(int(value) for value in rgb.clip(0, 255))


def background(size: int, rng: np.random.Generator) -> Image.Image:
    """A dark background with a gradient, a soft texture and a few thin lines, which never resembles a shape."""
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
        grey = 255 * (tint + rng.uniform(0.06, 0.14)).clip(0, 0.45)
        draw.line(tuple(ends), fill=tuple(int(value) for value in grey))
    return image


def outline(shape: str, diameter: float, angle: float) -> np.ndarray:
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


def fill(frame: Image.Image, points: np.ndarray, colour: tuple[int, ...]) -> None:
    """Paints an antialiased polygon: draws its mask at a larger size, within its bounding box, and averages it."""
    corner = np.floor(points.min(axis=0)).astype(int) - 1
    width, height = np.ceil(points.max(axis=0)).astype(int) + 1 - corner
    mask = Image.new("L", (int(width) * _SUPERSAMPLE, int(height) * _SUPERSAMPLE))
    ImageDraw.Draw(mask).polygon([tuple(p) for p in (points - corner) * _SUPERSAMPLE], fill=255)
    frame.paste(colour, (int(corner[0]), int(corner[1])), mask.reduce(_SUPERSAMPLE))
