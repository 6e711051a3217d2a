"""Small real clips for the data tests: frame i of n is grey at `frame_level(i, n)`, so a frame tells its index."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def frame_level(index: int, num_frames: int) -> int:
    """The grey level of frame `index`: from 20 to 220 over the clip."""
    return 20 + 200 * index // max(num_frames - 1, 1)


def write_clip(
    path: Path,
    num_frames: int = 24,
    *,
    height: int = 48,
    width: int = 64,
    codec: str = "libx264",
    faststart: bool = False,
    times: list[int] | None = None,
    title: str = "",
) -> Path:
    """Encodes a clip at 12 frames/s, or with each frame at its own time (in 1/12 s)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"} if faststart else {}) as container:
        container.metadata["title"] = title
        stream = container.add_stream(codec, rate=12)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 12)
        for index in range(num_frames):
            image = np.full((height, width, 3), frame_level(index, num_frames), np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = times[index] if times else index, Fraction(1, 12)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path) -> Path:
    """Encodes half a second of silence, without a video stream."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
