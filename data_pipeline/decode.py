"""Video files to frames, with PyAV: K frames kept uniformly over the clip, or over a segment of it.

The number of frames in the header is missing or wrong in many files, so the packets are read first, without decoding.
A clip of up to `LONG_CLIP` frames is then decoded from beginning to end. Of a longer one, and of a segment, only what
leads to the kept frames is decoded. Either way only the kept frames are held in memory.

A clip is refused where the decoder or the demuxer reports damage, or where the file is shorter than its container says.
Frames at the start that cannot be decoded because their key frame is missing are no damage: players skip them as well.
"""

import dataclasses
from pathlib import Path
from typing import Any

import av
import numpy as np

from data_pipeline import containers
from data_pipeline.config import CLIP_TIME_LIMIT, MAX_ASPECT, MAX_PIXELS, FrameShape
from data_pipeline.packets import (
    ClipError,
    Damage,
    Packets,
    Session,
    captured_messages,
    check_file,
    demux,
    is_seekable,
    opened,
    read_packets,
    read_segment,
)
from data_pipeline.picture import Stretcher, is_hdr, kept_size, lies_on_its_side, resize_bicubic, upright
from data_pipeline.sampling import uniform_frames

LONG_CLIP = 10_000  # frames; more are read by seeking to the kept ones


@dataclasses.dataclass(frozen=True)
class FrameOptions:
    """Which frames of a clip are kept, and how."""

    num_kept_frames: int  # K
    resize: int  # pixels: the short side, or both sides
    shape: FrameShape = "keep_aspect"
    max_damage: float = 0.0  # share of a clip that may be damaged or missing
    time_limit: float = CLIP_TIME_LIMIT  # seconds


@dataclasses.dataclass(frozen=True)
class Clip:
    """The kept frames of a clip."""

    frames: np.ndarray  # uint8 [K, h, w, 3], RGB
    frame_numbers: np.ndarray  # int32 [K], which of the clip's frames they are, from 0; repeated where n < K
    num_frames: int  # n, of the clip
    damage: float = 0.0  # share that is damaged or missing
    is_hdr: bool = False


def decode_clip(
    path: str | Path, options: FrameOptions, *, start: float | None = None, end: float | None = None
) -> Clip:
    """Decodes a video file.

    Args:
      path: the file.
      options: which frames to keep, and how.
      start: of a segment, seconds after the first frame; by default the start of the clip.
      end: end of the segment, likewise; by default that of the clip. The numbers of frames count from the segment's
        first.

    Raises:
      ClipError: missing, empty, not a video, no video stream, truncated, damaged, not supported, an empty segment, or
        the time limit is over.
    """
    try:
        check_file(Path(path))
        with captured_messages() as messages:
            session = Session(Path(path), messages, max_damage=options.max_damage, time_limit=options.time_limit)
            if start is None and end is None:
                packets, times = read_packets(session), None
            else:
                packets, times = read_segment(session, start or 0.0, float("inf") if end is None else end)
            missing = _missing_share(session)
            if times is None and len(packets.times) > LONG_CLIP and is_seekable(packets):
                times = np.sort(packets.times)
            if times is None:
                clip = _decode_whole(session, options, packets)
            else:
                clip = _decode_by_seeking(session, options, packets, times)
            return dataclasses.replace(clip, damage=min(1.0, clip.damage + missing))
    except ClipError:
        raise
    except (av.error.FFmpegError, ValueError, MemoryError) as error:  # one bad clip must not end a long build
        raise ClipError(f"damaged: {getattr(error, 'strerror', None) or error}") from error
    except OSError as error:
        raise ClipError(f"not readable: {error.strerror or error}") from error


def _missing_share(session: Session) -> float:
    """Returns the share of the file that is missing by what its container says."""
    size = session.path.stat().st_size
    num_missing, num_broken = containers.missing_bytes(session.path), containers.broken_chunks(session.path)
    share = (num_missing + num_broken) / (size + num_missing)
    what = f"truncated: {num_missing} bytes are missing at the end of the file"
    session.check_damage(what if num_missing else f"damaged: {num_broken} bytes of the file are no valid chunk", share)
    return share


def _decode_whole(session: Session, options: FrameOptions, packets: Packets) -> Clip:
    num_packets, num_kept = len(packets.times), options.num_kept_frames
    indices = uniform_frames(num_packets, num_kept)
    decoded = _decode_all(session, options, packets.stream, indices)
    if decoded.num_frames == 0:
        raise ClipError("damaged: no frame can be decoded")
    if decoded.num_frames != num_packets:  # codecs with hidden or merged packets; no key frame at the start
        indices = uniform_frames(decoded.num_frames, num_kept)
        decoded = _decode_all(session, options, packets.stream, indices)
    pictures = np.stack([decoded.pictures[index] for index in indices.tolist()])
    return Clip(pictures, indices.astype(np.int32), decoded.num_frames, decoded.damage, decoded.is_hdr)


@dataclasses.dataclass
class _Decoded:
    """What was decoded: pictures by the number or time of their frame."""

    pictures: dict[int, np.ndarray]
    num_frames: int
    damage: float = 0.0
    is_hdr: bool = False


class _Keeper:
    """Makes the kept pictures of one video."""

    def __init__(self, options: FrameOptions, pixel_aspect: float) -> None:
        self._options, self._pixel_aspect = options, pixel_aspect
        self._stretch = Stretcher(options.resize)
        self._size: tuple[int, int] | None = None
        self.is_hdr = False

    def keep(self, frame: Any) -> np.ndarray:
        """Returns the picture of a frame, uint8 [h, w, 3]."""
        self.is_hdr |= is_hdr(frame)
        if self._options.shape == "stretch":
            return self._stretch(frame)
        image = upright(frame)
        aspect = 1 / self._pixel_aspect if lies_on_its_side(frame) else self._pixel_aspect
        # The size may change within a stream.
        height, width = image.shape[:2]
        self._size = self._size or kept_size(height, width, self._options.resize, pixel_aspect=aspect)
        if max(self._size) > MAX_ASPECT * self._options.resize:
            raise ClipError(
                f"not supported: frames of {width} x {height} pixels, each {aspect:.4g} times as wide as high; one side"
                f" would be {max(self._size) / self._options.resize:.0f} times the other, and {MAX_ASPECT} is the limit"
            )
        return resize_bicubic(image, self._size)


def _decode_all(session: Session, options: FrameOptions, index: int, indices: np.ndarray) -> _Decoded:
    """Decodes all frames and keeps those with the numbers `indices`."""
    wanted, decoded, num_packets = set(indices.tolist()), _Decoded({}, 0), 0
    with opened(session, index) as (container, stream, damage):
        keeper = _Keeper(options, float(stream.sample_aspect_ratio or 1))
        for packet in demux(session, container, [stream]):
            frames, is_damaged = _decode(stream, packet)
            for frame in frames:
                if decoded.num_frames in wanted:
                    decoded.pictures[decoded.num_frames] = keeper.keep(frame)
                decoded.num_frames += 1
            num_packets += 1
            damage.note(packet, is_damaged, decoded.num_frames)
        is_transport_stream, pid = container.format.name == "mpegts", stream.id
    num_lost = containers.lost_transport_packets(session.path, pid) if is_transport_stream else 0
    num_damaged = max(damage.num_damaged + num_lost, containers.damaged_clusters(session.path))
    decoded.damage, decoded.is_hdr = min(1.0, num_damaged / max(num_packets, 1)), keeper.is_hdr
    session.check_damage(
        f"damaged: {damage.first_report or 'a part of the file is missing or changed'}", decoded.damage
    )
    return decoded


def _decode(stream: Any, packet: Any) -> tuple[list[Any], bool]:
    """Returns the frames that a packet completes, and whether it or one of them is marked as damaged."""
    # In a transport stream the mark means a break in its counter, which is no damage where parts are joined.
    is_marked = packet.is_corrupt and stream.container.format.name != "mpegts"
    try:
        frames = stream.codec_context.decode(packet if packet.size else None)
    except av.error.InvalidDataError:
        return [], True
    except av.error.ArgumentError as error:
        if "max pixel count" in str(error):
            raise ClipError(f"not supported: a frame of more than {MAX_PIXELS} pixels") from error
        raise
    except av.error.EOFError:  # asked for its last frames a second time
        return [], False
    return frames, is_marked or any(frame.is_corrupt for frame in frames)


def _decode_by_seeking(session: Session, options: FrameOptions, packets: Packets, times: np.ndarray) -> Clip:
    """Decodes from the key frame before each kept frame on; `times` [n] are those of the clip's frames, in order."""
    session.check_damage("damaged: its container", packets.num_damaged / len(packets.times))
    indices = uniform_frames(len(times), options.num_kept_frames)
    wanted = np.unique(times[indices])
    keys = np.stack([packets.times, packets.decode_times], -1)  # [n, 2]
    keys = keys[packets.is_key] if packets.is_key.any() else keys[:1]
    keys = keys[np.argsort(keys[:, 0])]
    key_of = np.searchsorted(keys[:, 0], wanted, side="right") - 1
    pictures: dict[int, np.ndarray] = {}
    with opened(session, packets.stream) as (container, stream, damage):
        run = _Run(session, container, stream, damage, _Keeper(options, float(stream.sample_aspect_ratio or 1)))
        for key in np.unique(key_of):  # frames that need the same key frame are decoded in one go
            pictures |= run.decode(keys[: max(key, 0) + 1], wanted[key_of == key])
    share = min(1.0, damage.num_damaged / max(run.num_packets, 1))
    session.check_damage(f"damaged: {damage.first_report}", share)
    if num_lost := len(wanted) - len(pictures):
        raise ClipError(f"damaged: {num_lost} of the {len(wanted)} frames to keep cannot be decoded")
    kept = np.stack([pictures[time] for time in times[indices].tolist()])
    return Clip(kept, indices.astype(np.int32), len(times), share, run.keeper.is_hdr)


@dataclasses.dataclass
class _Run:
    """Decodes parts of a stream, each from a key frame on."""

    session: Session
    container: Any
    stream: Any
    damage: Damage
    keeper: _Keeper
    num_packets: int = 0

    def decode(self, keys: np.ndarray, wanted: np.ndarray) -> dict[int, np.ndarray]:
        """Returns the pictures of the frames at the times `wanted`; decodes from the last of the key frames on.

        Args:
          keys: [k, 2], times of presentation and of decoding of the key frames.
          wanted: [n], times of presentation.
        """
        # Some containers are searched by the one time, some by the other, and some only roughly.
        places = [*keys[-1], *keys[-2:-6:-1, 1], keys[0].min() - 10 * av.time_base]
        for place in dict.fromkeys(int(place) for place in places):
            self.container.seek(place, stream=self.stream, backward=True)
            self.damage.restart()
            pictures = self._decode_until(wanted)
            if len(pictures) == len(wanted):
                break
        return pictures

    def _decode_until(self, wanted: np.ndarray) -> dict[int, np.ndarray]:
        remaining, pictures, num_frames = set(wanted.tolist()), {}, 0
        for packet in demux(self.session, self.container, [self.stream]):
            frames, is_damaged = _decode(self.stream, packet)
            self.num_packets += 1
            num_frames += len(frames)
            if frames and num_frames == len(frames) and (frames[0].pts or 0) > wanted[0]:
                break  # begins too late
            for frame in frames:
                if frame.pts in remaining:
                    pictures[frame.pts] = self.keeper.keep(frame)
                    remaining.discard(frame.pts)
            self.damage.note(packet, is_damaged, num_frames)
            if not remaining or any(frame.pts is not None and frame.pts > wanted[-1] for frame in frames):
                break
        return pictures
