"""Video files to frames, with PyAV: K frames kept uniformly over the clip, the short side resized, aspect kept.

The frame count in the header is missing or wrong in many files, so the packets are counted first. Then the clip is
decoded as a stream, and only the kept frames stay in memory. An incomplete clip is refused with the reason.
"""

import dataclasses
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from data_pipeline.errors import DataError

# A title that is not UTF-8 must not make the clip unreadable. PyAV 19 ignores such titles and has no such option.
_OPEN_OPTIONS: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.partition(".")[0]) < 19 else {}
# (offset, bytes) at the start of video files. They tell a video whose index was cut off from another kind of file.
_SIGNATURES = ((4, b"ftyp"), (4, b"moov"), (4, b"mdat"), (0, b"\x1a\x45\xdf\xa3"), (0, b"RIFF"), (0, b"FLV"))


class ClipError(DataError):
    """A clip that cannot be used. The message is the reason, `kind` or `kind: detail`."""


@dataclasses.dataclass(frozen=True)
class _Packets:
    """Packets of the video stream."""

    num_packets: int  # to be shown; an edit list may discard others
    num_expected: int  # frames that must decode; 0 if the container does not say


def kept_indices(num_frames: int, num_kept: int) -> np.ndarray:
    """Returns int [K]: floor(i * n / K). A clip of n < K frames gives all of them, the last one repeated."""
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
    except (
        av.error.FFmpegError,
        OSError,
        ValueError,
        MemoryError,
    ) as error:  # a single bad clip must not end a long build
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
    """Opens a container and its first video stream that is not a cover picture."""
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
    """Reads all packets without decoding; refuses a container that ends before its stream does."""
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
    """Refuses a stream whose packets, [n] times and lengths in seconds, cover less than the declared duration."""
    if lacks_packets:  # or an edit list leaves out the end, but then the duration leaves it out, too
        seconds, slack = lengths.sum(), 0.5 * lengths.mean()
    else:  # lengths may be unknown, and at a variable frame rate the last frame may be shown as long as any other
        gaps = np.diff(np.sort(times))
        seconds, slack = (times + lengths).max() - times.min(), 1.5 * gaps.max(initial=duration / 10)
    if seconds < duration - slack:
        raise ClipError(f"truncated: {seconds:.2f} of {duration:.2f} seconds are there")


def _declared_duration(container: Any, stream: Any) -> float | None:
    """Returns the duration in seconds that the header states (Matroska: in a tag), or None."""
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
                # The size may change within a stream.
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
