"""From a decoded frame to the picture that is kept: turned as it is to be shown, with square pixels, resized.

Two shapes are known. `keep_aspect` resizes the short side, bicubic and antialiased (Pillow). `stretch` makes every
picture square with FFmpeg's bilinear scaler, as the original's decoder does, to the bit (docs/model.md section 6).
"""

import math
from fractions import Fraction
from typing import Any

import av
import numpy as np
from PIL import Image

_HDR_TRANSFERS = (16, 18)  # of ISO/IEC 23091-2: PQ and HLG


def is_hdr(frame: Any) -> bool:
    """Whether the colours of a frame are HDR (PQ or HLG). They are not tone-mapped, so the picture looks washed out."""
    return frame.color_trc in _HDR_TRANSFERS


class Stretcher:
    """Makes frames of one video square: a frame -> uint8 [size, size, 3] RGB, bilinear."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._graph: Any = None
        self._format: tuple[Any, ...] = ()

    def __call__(self, frame: Any) -> np.ndarray:
        """Returns the picture of an `av.VideoFrame`."""
        frame_format = (frame.width, frame.height, frame.format.name)
        if frame_format != self._format:
            self._graph, self._format = _scaling_graph(frame, self._size), frame_format
        self._graph.push(frame)
        return turned(self._graph.pull().to_ndarray(), display_matrix(frame))


def _scaling_graph(frame: Any, size: int) -> Any:
    graph = av.filter.Graph()
    graph.link_nodes(
        graph.add_buffer(width=frame.width, height=frame.height, format=frame.format.name, time_base=Fraction(1)),
        graph.add("scale", f"{size}:{size}:flags=bilinear"),
        graph.add("format", "rgb24"),
        graph.add("buffersink"),
    ).configure()
    return graph


def upright(frame: Any) -> np.ndarray:
    """Returns the pixels of an `av.VideoFrame`, uint8 [h, w, 3] RGB, turned as they are to be shown."""
    return turned(frame.to_ndarray(format="rgb24"), display_matrix(frame))


def display_matrix(frame: Any) -> np.ndarray | None:
    """Returns the matrix [2, 2] by which a player turns and mirrors the frame; None if the file has none."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    return np.frombuffer(bytes(data), np.int32).reshape(3, 3)[:2, :2] / 65536


def lies_on_its_side(frame: Any) -> bool:
    """Whether a player shows the rows of the frame as columns."""
    matrix = display_matrix(frame)
    return matrix is not None and bool(abs(matrix[0, 1]) > abs(matrix[0, 0]))


def turned(image: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """Turns and mirrors an image [h, w, 3] as a player does; FFmpeg's `autorotate` is the reference.

    A pixel at (x, y) is shown at (x, y) @ matrix. Other angles than multiples of 90 degrees keep the size of the
    image; its corners are cut off, and what was outside is black.
    """
    if matrix is None or not np.abs(matrix).any():
        return image
    (xx, xy), (yx, yy) = matrix
    angle = math.degrees(math.atan2(xy, xx))
    if abs(angle / 90 - round(angle / 90)) * 90 > 1:
        return np.asarray(Image.fromarray(image).rotate(-angle, Image.Resampling.BILINEAR))
    if abs(xy) > abs(xx):
        image, flip_x, flip_y = image.transpose(1, 0, 2), yx < 0, xy < 0
    else:
        flip_x, flip_y = xx < 0, yy < 0
    return image[:: -1 if flip_y else 1, :: -1 if flip_x else 1]


def kept_size(height: int, width: int, resize: int, *, pixel_aspect: float = 1.0) -> tuple[int, int]:
    """Returns the size (height, width) with min(height, width) = `resize` and the aspect that is shown.

    Args:
      height: of the picture, pixels.
      width: of the picture, pixels.
      resize: the short side, pixels.
      pixel_aspect: width of a pixel over its height.
    """
    shown_width = width * pixel_aspect
    scale = resize / min(height, shown_width)
    return max(resize, round(height * scale)), max(resize, round(shown_width * scale))


def resize_bicubic(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bicubic, antialiased: uint8 [h, w, 3] -> uint8 [*size, 3]."""
    if image.shape[:2] == size:
        return np.ascontiguousarray(image)
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC))


def resize_short_side(image: np.ndarray, resize: int) -> np.ndarray:
    """Returns an image, uint8 [h, w, 3], resized as the frames of a file are that keep their aspect."""
    return resize_bicubic(image, kept_size(image.shape[0], image.shape[1], resize))


def stretch_array(frames: np.ndarray, size: int) -> np.ndarray:
    """Returns frames of an array, uint8 [T, h, w, 3], stretched as those of a file: [T, size, size, 3].

    A file's frames are converted to RGB and scaled in one step, so they may differ by some levels.
    """
    stretch = Stretcher(size)
    return np.stack([stretch(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame))) for frame in frames])
