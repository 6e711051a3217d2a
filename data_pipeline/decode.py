"""Video files to frames, with PyAV: K frames kept uniformly over the clip, the short side resized, aspect kept.

Frame counts in headers are absent or wrong in many files, so the packets are counted first; a clip is decoded as a
stream and only the kept frames stay in memory. A clip that is not whole is refused, with the reason.
"""

import dataclasses
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from data_pipeline.errors import DataError

# A title that is no UTF-8 must not lose the clip. PyAV 19 copes by itself and no longer knows the option.
_OPEN_OPTIONS: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.partition(".")[0]) < 19 else {}
# What a video file starts with, at which byte: tells a file cut before its index from one that never was a video.
_SIGNATURES = ((4, b"ftyp"), (4, b"moov"), (4, b"mdat"), (0, b"\x1a\x45\xdf\xa3"), (0, b"RIFF"), (0, b"FLV"))


class ClipError(DataError):
    """A clip that cannot be used. The message is the reason: `kind` or `kind: detail`."""


@dataclasses.dataclass(frozen=True)
class _Packets:
    """What the container holds of the video stream."""

    num_packets: int  # to be shown: those that an edit list discards are not counted
    num_expected: int  # frames that must decode; 0 where the container does not say


def kept_indices(num_frames: int, num_kept: int) -> np.ndarray:
    """Returns int [K]: floor(i * n / K), or for a clip of fewer than K frames all of them, the last one repeated."""
    if num_frames < num_kept:
        return np.minimum(np.arange(num_kept), num_frames - 1)
    return np.arange(num_kept) * num_frames // num_kept


def decode_clip(path: str | Path, num_kept_frames: int, resize: int) -> np.ndarray:
    """Decodes a video file to uint8 [K, h, w, 3] RGB with min(h, w) = `resize`.

    Raises:
      ClipError: missing, empty, not a video, no video stream, truncated, damaged.
    """
    path = Path(path)
    try:
        _check_file(path)
        packets = _count_packets(path)
        indices = kept_indices(packets.num_packets, num_kept_frames)
        frames, num_decoded = _decode_frames(path, indices, resize)
        if num_decoded < packets.num_expected:
            raise ClipError(f"truncated: {num_decoded} of {packets.num_expected} frames decode")
        if num_decoded == 0:
            raise ClipError("damaged: no frame can be decoded")
        if num_decoded != packets.num_packets:  # codecs with hidden or merged packets
            indices = kept_indices(num_decoded, num_kept_frames)
            frames, _ = _decode_frames(path, indices, resize)
    except ClipError:
        raise
    except (av.error.FFmpegError, OSError, ValueError, MemoryError) as error:  # one odd clip must not end a long build
        raise ClipError(f"damaged: {getattr(error, 'strerror', None) or error}") from error
    return np.stack([frames[index] for index in indices.tolist()])


def _check_file(path: Path) -> None:
    if not path.exists():
        raise ClipError("missing: no such file")
    if not path.is_file():
        raise ClipError("not a file")
    if path.stat().st_size == 0:
        raise ClipError("empty: zero bytes")
    if not path.stat().st_mode & 0o444:
        raise ClipError("not readable: permission denied")


def _open(path: Path) -> tuple[Any, Any]:
    """Opens a container and its first real video stream (a song's cover picture is none)."""
    try:
        container = av.open(f"file:{path}", **_OPEN_OPTIONS)  # else FFmpeg takes "a:b.mp4" for an address
    except PermissionError as error:
        raise ClipError("not readable: permission denied") from error
    except av.error.FFmpegError as error:
        with path.open("rb") as file:
            head = file.read(16)
        if any(head[at:].startswith(magic) for at, magic in _SIGNATURES):
            raise ClipError("truncated: its index (moov atom) or header is missing") from error
        raise ClipError("not a video") from error
    cover = av.stream.Disposition.attached_pic
    stream = next((s for s in container.streams.video if not s.disposition & cover), None)
    if stream is None or stream.codec_context is None:
        container.close()
        raise ClipError("no video stream" if stream is None else "unknown codec")
    stream.codec_context.thread_count = 1  # clips are decoded in parallel, not frames
    return container, stream


def _count_packets(path: Path) -> _Packets:
    """Reads the container through without decoding; refuses one that ends before the stream does."""
    container, stream = _open(path)
    num_discarded = 0
    times: list[float] = []
    lengths: list[float] = []
    with container:
        duration = _declared_duration(container, stream)
        num_declared = stream.frames if "mp4" in container.format.name else 0
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise ClipError(f"truncated: the file ends within frame {len(times) + 1}")
            if packet.is_discard:
                num_discarded += 1
            elif packet.size:
                ticks = packet.pts if packet.pts is not None else packet.dts
                times.append(float((ticks or 0) * packet.time_base))
                lengths.append(float((packet.duration or 0) * packet.time_base))
    if not times:
        raise ClipError("truncated: it holds no frames")
    if duration and max(times) > 0:
        lacks_packets = len(times) + num_discarded < num_declared
        _check_seconds(np.array(times), np.array(lengths), duration, lacks_packets)
    return _Packets(len(times), min(num_declared, len(times)))


def _check_seconds(times: np.ndarray, lengths: np.ndarray, duration: float, lacks_packets: bool) -> None:
    """Refuses a stream whose packets [n] (times and lengths in seconds) cover less than the declared duration."""
    if lacks_packets:  # so it is also where an edit list leaves the end out; but then the duration leaves it out, too
        seconds, slack = lengths.sum(), 0.5 * lengths.mean()
    else:  # lengths may be unknown, and at a variable frame rate the last frame may stay as long as any other
        gaps = np.diff(np.sort(times))
        seconds, slack = (times + lengths).max() - times.min(), 1.5 * gaps.max(initial=duration / 10)
    if seconds < duration - slack:
        raise ClipError(f"truncated: {seconds:.2f} of {duration:.2f} seconds are there")


def _declared_duration(container: Any, stream: Any) -> float | None:
    """Returns the seconds that the header gives the video stream (Matroska writes them into a tag), if it does."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    try:
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except (KeyError, ValueError):
        only_stream = len(container.streams) == 1
        return container.duration / av.time_base if only_stream and container.duration else None


def _decode_frames(path: Path, indices: np.ndarray, resize: int) -> tuple[dict[int, np.ndarray], int]:
    """Decodes all frames and keeps those of `indices`: ({index: uint8 [h, w, 3]}, number of frames decoded)."""
    container, stream = _open(path)
    wanted, frames, num_decoded = set(indices.tolist()), {}, 0
    size: tuple[int, int] | None = None
    with container:
        for frame in container.decode(stream):
            if num_decoded in wanted:
                image = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                # A stream may change its size on the way.
                size = size or _resized(image, resize)
                frames[num_decoded] = _resize(image, size)
            num_decoded += 1
    return frames, num_decoded


def resize_short_side(image: np.ndarray, resize: int) -> np.ndarray:
    """Returns an image, uint8 [h, w, 3], resized as frames of a file are: min(h, w) becomes `resize`, aspect kept."""
    return _resize(image, _resized(image, resize))


def _resized(image: np.ndarray, resize: int) -> tuple[int, int]:
    height, width = image.shape[:2]
    scale = resize / min(height, width)
    return max(resize, round(height * scale)), max(resize, round(width * scale))


def _resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bicubic, antialiased: uint8 [h, w, 3] -> uint8 [*size, 3]."""
    if image.shape[:2] == size:
        return np.ascontiguousarray(image)
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC))
