"""Small videos that claim to be far more. Each is refused or read, in bounded time and memory."""

import resource
import struct
import time
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import write_clip

from data_pipeline.config import MAX_PIXELS
from data_pipeline.decode import Clip, FrameOptions, decode_clip
from data_pipeline.packets import ClipError

SECONDS, MEGABYTES = 20.0, 700  # a frame of MAX_PIXELS may take so much, decoded and as RGB


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    assert time.process_time() - began < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MEGABYTES


def decode(path: Path, resize: int = 32) -> Clip:
    return decode_clip(path, FrameOptions(4, resize))


def png(width: int, height: int, pixel_aspect: tuple[int, int] = (1, 1)) -> bytes:
    """A black picture, one bit a pixel: a thousandth of what it unfolds into."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    row, packer = bytes(1 + (width + 7) // 8), zlib.compressobj(9)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    aspect = chunk(b"pHYs", struct.pack(">IIB", pixel_aspect[1], pixel_aspect[0], 0))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + aspect + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def write_pictures(path: Path, claimed: tuple[int, int], pictures: list[bytes]) -> Path:
    """A video of PNG pictures, in a container that claims they have a size of its own."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=12)
        stream.width, stream.height, stream.pix_fmt = *claimed, "gray"
        container.start_encoding()
        for number, picture in enumerate(pictures):
            packet = av.Packet(picture)
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 12)
            packet.is_keyframe = True
            container.mux(packet)
    return path


@pytest.mark.parametrize(
    ("claimed", "size"),
    [((64, 48), (100_000, 1_000)), ((64, 48), (16_000, 16_000)), ((64, 48), (9_000, 9_000)), ((9_000, 9_000),) * 2],
)
def test_frames_of_too_many_pixels_are_refused(tmp_path: Path, claimed: tuple[int, int], size: tuple[int, int]) -> None:
    path = write_pictures(tmp_path / "a.mov", claimed, [png(*size)])
    assert path.stat().st_size < MAX_PIXELS / 500 < size[0] * size[1] / 500
    with pytest.raises(ClipError, match=f"not supported: a frame of more than {MAX_PIXELS} pixels"):
        decode(path)


def test_frames_as_large_as_those_of_8k_are_read(tmp_path: Path) -> None:
    clip = decode(write_pictures(tmp_path / "a.mov", (8192, 4320), [png(8192, 4320)] * 2))
    assert clip.num_frames == 2 and clip.frames.shape == (4, 32, 61, 3)


def test_size_that_grows_within_a_video_is_refused(tmp_path: Path) -> None:
    path = write_pictures(tmp_path / "a.mov", (64, 48), [png(64, 48), png(10_000, 10_000), png(64, 48)])
    with pytest.raises(ClipError, match="not supported"):
        decode(path)


@pytest.mark.parametrize(
    ("size", "pixel_aspect"), [((60_000, 2), (1, 1)), ((2, 60_000), (1, 1)), ((64, 48), (1, 30_000))]
)
def test_strip_that_resizing_would_unfold_is_refused(
    tmp_path: Path, size: tuple[int, int], pixel_aspect: tuple[int, int]
) -> None:
    path = write_pictures(tmp_path / "a.mov", size, [png(*size, pixel_aspect)])
    with pytest.raises(ClipError, match=r"not supported: frames of .* and 32 is the limit"):
        decode(path, resize=224)


def test_video_of_ten_hours_is_read_to_its_end(tmp_path: Path) -> None:
    """30 frames a second, the packets of one second again and again."""
    second, path, num_seconds = write_clip(tmp_path / "second.mp4", 30, height=16, width=16), tmp_path / "a.mkv", 36_000
    with av.open(str(second)) as source, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        contents = [(bytes(packet), packet.is_keyframe) for packet in packets]
        for number in range(num_seconds):
            for place, (content, is_key) in enumerate(contents):
                packet = av.Packet(content)
                packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 30), is_key
                packet.pts = packet.dts = 30 * number + place
                container.mux(packet)
    clip = decode(path)
    assert clip.num_frames == 30 * num_seconds
    np.testing.assert_array_equal(clip.frame_numbers, np.arange(4) * clip.num_frames // 4)
