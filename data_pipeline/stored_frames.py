"""The kept frames of a video as a record stores them: JPEG files, plain pixels, or tokens of a vision encoder.

JPEG needs about a tenth of the bytes of pixels, and only the frames that a clip takes are decoded. docs/data.md tells
what it costs in accuracy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from data_pipeline.config import StoredEncoding


def encode_jpeg(frames: np.ndarray, quality: int) -> list[bytes]:
    """Encodes uint8 [K, h, w, 3] RGB as K JPEG files; `quality` is 1 to 100."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    return [cv2.imencode(".jpg", frame[..., ::-1], options)[1].tobytes() for frame in frames]  # OpenCV writes BGR


def decode_jpeg(files: Sequence[bytes]) -> np.ndarray:
    """Decodes JPEG files of one size: uint8 [n, h, w, 3] RGB.

    Raises:
      ValueError: one is not a whole JPEG file.
    """
    frames: list[np.ndarray] = []
    for file in files:
        frame = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR_RGB)
        if frame is None or file[-2:] != b"\xff\xd9":  # OpenCV fills up a file without its end marker
            raise ValueError("a stored frame is not a whole JPEG file")
        frames.append(frame)
    return np.stack(frames)


@dataclass(frozen=True)
class StoredFrames:
    """K frames of a video. `frames[indices]` decodes those that are asked for."""

    stored: Any  # uint8 [K, h, w, 3], bfloat16 [K, L, D], or a sequence of K JPEG files
    encoding: StoredEncoding

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """Returns uint8 [n, h, w, 3] or bfloat16 [n, L, D]. Raises ValueError where a frame cannot be decoded."""
        if self.encoding != "jpeg":
            return self.stored[indices]
        distinct, places = np.unique(indices, return_inverse=True)  # a short clip repeats its last frame
        frames = decode_jpeg([self.stored[index] for index in distinct.tolist()])
        return frames if len(distinct) == len(indices) and (np.diff(indices) > 0).all() else frames[places]
