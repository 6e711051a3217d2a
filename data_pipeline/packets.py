"""The packets of a video file, read with PyAV's demuxer, and the damage that FFmpeg reports on the way.

A packet holds a compressed frame. Of the video streams the one is chosen that a player shows.
"""

import array
import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import av.logging
import numpy as np

from data_pipeline import containers
from data_pipeline.config import MAX_PIXELS
from data_pipeline.errors import DataError

# A title that is not UTF-8 must not make the clip unreadable. PyAV 19 ignores such titles and has no such option.
_OPEN_OPTIONS: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.partition(".")[0]) < 19 else {}
_DECODER_OPTIONS = {"max_pixels": str(MAX_PIXELS)}
# FFmpeg's errors that are no damage: the stream drops a reference frame that was never decoded, as after seeking.
_HARMLESS = ("mmco: unref short failure",)
_SEGMENT_MARGIN = 2.0  # seconds read beyond a segment: packets are not in the order in which they are shown


class ClipError(DataError):
    """A clip that cannot be used. The message is the reason, `kind` or `kind: detail`."""


@dataclasses.dataclass(frozen=True)
class Packets:
    """The packets of the chosen video stream, [n] each, in the order of the file; frames to be shown only."""

    stream: int  # its index in the container
    times: np.ndarray  # int64, presentation times in ticks; -1 if unknown
    decode_times: np.ndarray  # int64, when they are to be decoded; the presentation time if unknown
    is_key: np.ndarray  # bool
    num_damaged: int


class Session:
    """The reading of one clip: its limits, and what FFmpeg reports meanwhile in this thread.

    FFmpeg reports much damage only as a message, such as that an element is not valid and the next one is searched for.
    """

    def __init__(self, path: Path, messages: list[Any], *, max_damage: float, time_limit: float) -> None:
        self.path = path
        self._messages = messages
        self._max_damage = max_damage
        self._time_limit, self._end = time_limit, time.monotonic() + time_limit

    def check_time(self) -> None:
        """Raises ClipError when the time is over."""
        if time.monotonic() > self._end:
            raise ClipError(f"too slow: not read within the limit of {self._time_limit:g} seconds")

    def check_damage(self, reason: str, share: float) -> None:
        """Raises ClipError for more damage than is allowed."""
        if share > self._max_damage:
            raise ClipError(f"{reason} ({share:.1%} of the clip)")

    def take_reports(self, source: str = "") -> list[str]:
        """Returns the reports since the last call, of all parts of FFmpeg or of the one called `source`."""
        texts = [
            " ".join(text.split())
            for level, name, text in self._messages
            if level <= av.logging.ERROR and source in ("", name) and not text.startswith(_HARMLESS)
        ]
        self._messages.clear()
        return texts


class Damage:
    """Counts the packets at which the demuxer or the decoder reports damage."""

    def __init__(self, session: Session, at_opening: list[str]) -> None:
        self._session = session
        self.restart()
        self.num_damaged = len(at_opening)
        self.first_report = at_opening[0] if at_opening else ""

    def restart(self) -> None:
        """Begins anew at another place of the file."""
        self._starts_without_key = False
        self._first_key: float | None = None

    def note(self, packet: Any, is_damaged: bool, num_frames: int) -> None:
        """Notes what was reported while `packet` was read or decoded; `num_frames` are decoded by now."""
        # Until the first key frame is shown complaints are natural: the file was cut out of a longer one. Frames that
        # come after a key frame in the file, and are shown before it, belong to the part that was cut off.
        if packet.is_keyframe and self._first_key is None:
            self._first_key = packet.pts if packet.pts is not None else -math.inf
        is_leading = self._first_key is None or (packet.pts is not None and packet.pts < self._first_key)
        reports = self._session.take_reports()
        if (is_damaged or reports) and (self._starts_without_key or not is_leading):
            self.num_damaged += 1
            self.first_report = self.first_report or (reports[0] if reports else "a part is marked as damaged")
        self._starts_without_key |= self._first_key is None and num_frames > 0  # some decoders start anywhere


@contextlib.contextmanager
def opened(session: Session, stream: int | None = None) -> Iterator[tuple[Any, Any, Damage]]:
    """Yields the container, the stream with that index, if one is given, and the count of damage."""
    session.take_reports()
    with _open(session.path) as container:
        # A short file is read whole to find its streams, and the demuxer reports its damage only then.
        damage = Damage(session, session.take_reports(container.format.name))
        chosen = None if stream is None else container.streams[stream]
        if chosen is not None:
            chosen.codec_context.thread_count = 1  # clips are decoded in parallel, not frames
            chosen.codec_context.options = _DECODER_OPTIONS
        yield container, chosen, damage


@contextlib.contextmanager
def captured_messages() -> Iterator[list[Any]]:
    """Yields the list to which FFmpeg's messages of this thread are added."""
    level = av.logging.get_level()
    if level is None or level < av.logging.ERROR:
        av.logging.set_level(av.logging.ERROR)  # else no message arrives
    av.logging.set_skip_repeated(False)  # two clips may have the same damage
    with av.logging.Capture() as messages:
        yield messages


def check_file(path: Path) -> None:
    """Raises ClipError where there is no file, or one that cannot hold a video."""
    if not path.exists():
        raise ClipError("missing: no such file")
    if not path.is_file():
        raise ClipError("not a file")
    if path.stat().st_size == 0:
        raise ClipError("empty: zero bytes")
    if not path.stat().st_mode & 0o444:
        raise ClipError("not readable: permission denied")
    if containers.is_animated_webp(path):
        raise ClipError("not supported: an animated WebP picture; convert it to MP4 or WebM")


def _open(path: Path) -> Any:
    try:
        # With "file:" FFmpeg does not take "a:b.mp4" for an address.
        return av.open(f"file:{path.absolute()}", options=_DECODER_OPTIONS, **_OPEN_OPTIONS)
    except PermissionError as error:
        raise ClipError("not readable: permission denied") from error
    except av.error.FFmpegError as error:
        if containers.is_video_container(path):
            raise ClipError("truncated: its index (moov atom) or header is missing") from error
        raise ClipError("not a video") from error


def read_packets(session: Session) -> Packets:
    """Reads all packets without decoding, and chooses the video stream."""
    with opened(session) as (container, _, damage):
        candidates = _video_streams(session, container)
        rows = {stream.index: array.array("q") for stream in candidates}
        for packet in demux(session, container, candidates):
            damage.note(packet, False, 0)
            if packet.size and not packet.is_discard:
                rows[packet.stream_index].extend(_row(packet))
        index = _choose_stream(candidates, {index: len(of_stream) // 3 for index, of_stream in rows.items()})
    if not rows[index]:
        raise ClipError("truncated: it holds no frames")
    return _to_packets(index, rows[index], damage)


def _row(packet: Any) -> tuple[int, int, bool]:
    """Presentation time, decoding time, whether it is a key frame. An hour of video has 100,000 packets or more."""
    return _first_known(packet.pts, packet.dts), _first_known(packet.dts, packet.pts), packet.is_keyframe


def _to_packets(index: int, rows: Sequence[int], damage: Damage) -> Packets:
    times, decode_times, is_key = np.array(rows, np.int64).reshape(-1, 3).T
    return Packets(index, times, decode_times, is_key.astype(bool), damage.num_damaged)


def _first_known(*times: int | None) -> int:
    return next((time for time in times if time is not None), -1)


def demux(session: Session, container: Any, streams: list[Any]) -> Iterator[Any]:
    """Yields the packets of streams, and at the end those without content that make the decoder give its last frames.

    What cannot be read ends the file, as for a player; it is reported.
    """
    packets = container.demux(*streams)
    for number in itertools.count():
        if number % 64 == 0:
            session.check_time()
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.error.InvalidDataError as error:
            av.logging.log(av.logging.ERROR, container.format.name, f"the rest cannot be read: {error.strerror}")
            packets = iter([av.Packet() for _ in streams])
            continue
        yield packet


def _video_streams(session: Session, container: Any) -> list[Any]:
    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        is_cut = containers.missing_bytes(session.path) > 0
        raise ClipError("truncated: its index (moov atom) or header is missing" if is_cut else "no video stream")
    known = [stream for stream in streams if stream.codec_context is not None]
    if not known:
        raise ClipError("not supported: unknown codec")
    return known


def _choose_stream(streams: list[Any], num_packets: dict[int, int]) -> int:
    """Returns the index of the stream that is meant: one that moves, the default one, the largest, the first."""
    default = av.stream.Disposition.default

    def rank(stream: Any) -> tuple[Any, ...]:
        context = stream.codec_context
        is_moving, is_default = num_packets[stream.index] > 1, bool(stream.disposition & default)
        return is_moving, is_default, context.width * context.height, -stream.index

    return max(streams, key=rank).index


def is_seekable(packets: Packets) -> bool:
    """Whether every frame can be told by its time, and key frames are known."""
    times = packets.times
    return bool(packets.is_key.any() and times.min() >= 0 and len(np.unique(times)) == len(times))


def read_segment(session: Session, start: float, end: float) -> tuple[Packets, np.ndarray]:
    """Returns the packets about a segment and the presentation times [n] of its frames, in the order of showing."""
    if not 0 <= start < end:
        raise ClipError(f"segment: start={start:g} and end={end:g} must be 0 <= start < end seconds")
    with opened(session) as (container, _, damage):
        streams = _video_streams(session, container)
        counts = {stream.index: stream.frames or 2 for stream in streams}  # unknown: taken for a moving one
        index = _choose_stream(streams, counts)
        stream = container.streams[index]
        tick, origin = float(stream.time_base), stream.start_time or 0
        if start > _SEGMENT_MARGIN:
            container.seek(origin + int((start - _SEGMENT_MARGIN) / tick), stream=stream, backward=True)
        rows = array.array("q")
        for packet in demux(session, container, [stream]):
            damage.note(packet, False, 0)
            if packet.size and not packet.is_discard and packet.pts is not None:
                rows.extend(_row(packet))
            if packet.dts is not None and (packet.dts - origin) * tick > end + _SEGMENT_MARGIN:
                break
    packets = _to_packets(index, rows, damage)
    seconds = (packets.times - origin) * tick
    half = tick / 2  # so that a frame at the very start belongs to the segment in spite of rounding
    inside = np.sort(packets.times[(seconds > start - half) & (seconds < end - half)])
    if not len(inside):
        raise ClipError(f"segment: no frame between {start:g} and {end:g} seconds")
    return packets, inside
