"""Cuts long videos into overlapping segments, in which a search finds the moment rather than the film."""

import math
from pathlib import Path

import av

from data_pipeline.config import CLIP_TIME_LIMIT
from data_pipeline.packets import ClipError, Session, captured_messages, check_file, opened, read_packets

Times = tuple[float, float]  # start and end, seconds after the first frame
_WHOLE = 1.5  # a video of up to so many segment lengths stays whole


def plan_segments(path: Path, seconds: float) -> list[Times]:
    """Returns the segments of a video, in order; each overlaps half of the next one. The last ends with the video.

    Args:
      path: of the file. Its packets are counted, as the length that its header states is often missing or wrong.
      seconds: length of a segment. A video of up to one and a half such lengths is one segment.

    Raises:
      ClipError: the file is missing or no video.
    """
    duration = video_seconds(path)
    if duration <= _WHOLE * seconds:
        return [(0.0, duration)]
    count = math.ceil((duration - seconds) / (seconds / 2)) + 1
    starts = [min(i * seconds / 2, duration - seconds) for i in range(count)]
    return [(round(start, 3), round(start + seconds, 3)) for start in starts]


def video_seconds(path: Path) -> float:
    """Returns the time from the first frame of a video to the end of its last. Raises what `plan_segments` raises."""
    try:
        check_file(path)
        with captured_messages() as messages:
            session = Session(path, messages, max_damage=1.0, time_limit=CLIP_TIME_LIMIT)
            packets = read_packets(session)
            with opened(session, packets.stream) as (_, stream, _):
                tick, rate = float(stream.time_base), float(stream.average_rate or 25)
    except ClipError:
        raise
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise ClipError(f"damaged: {getattr(error, 'strerror', None) or error}") from error
    known = packets.times[packets.times >= 0]
    if not len(known):
        return len(packets.times) / rate
    return float(known.max() - known.min()) * tick + 1 / rate
