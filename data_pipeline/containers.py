"""What the container of a video file says of its own length, and whether its chain of parts is whole.

A decoder does not notice an end that was cut off between two frames. The sizes in the file tell: those of the boxes of
an MP4 file, of the segment of a Matroska file, of the lists of an AVI file. In a transport stream each packet has a
counter. The duration says nothing: the sound may be longer than the picture.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

_EBML, _SEGMENT, _CLUSTER = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"
_CHECKSUM = b"\xbf\x84"  # the element of 4 bytes that may stand first in a cluster
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"sidx", b"moof")
_SYNC_BYTE, _CHECKED_PACKETS = 0x47, 5
_PACKETS_AT_A_TIME = 1 << 17


def is_video_container(path: Path) -> bool:
    """Whether a file begins as MP4, Matroska, AVI, WebP or FLV files do, even if it cannot be opened."""
    head = _head(path)
    return head[4:8] in _MP4_BOXES or head.startswith((_EBML, b"RIFF", b"FLV"))


def is_animated_webp(path: Path) -> bool:
    """Whether a file is a moving WebP picture."""
    head = _head(path)
    return head.startswith(b"RIFF") and head[8:16] == b"WEBPVP8X" and bool(head[20] & 2)


def missing_bytes(path: Path) -> int:
    """Returns how many bytes the file is shorter than its container says; 0 if nothing is missing or it does not say.

    Raises:
      OSError: the file cannot be read.
    """
    size, head = path.stat().st_size, _head(path)
    with path.open("rb") as file:
        if head.startswith(_EBML):
            end = _matroska_end(file, size)
        elif head.startswith(b"RIFF"):
            end = _riff_end(file, size)
        elif head[4:8] in _MP4_BOXES:
            end = _mp4_end(file, size)
        else:
            return 0
    return end - size if end > size + 1 else 0  # some writers leave out the byte that makes a length even


def broken_chunks(path: Path) -> int:
    """Returns how many bytes among the frames of an AVI file belong to no valid chunk.

    FFmpeg searches for the next valid chunk without a word.

    Raises:
      OSError: the file cannot be read.
    """
    if not _head(path).startswith(b"RIFF"):
        return 0
    size = path.stat().st_size
    with path.open("rb") as file:
        return sum(_broken_in_list(file, start, min(end, size)) for start, end in _movi_lists(file, size))


def damaged_clusters(path: Path) -> int:
    """Returns how many clusters of a Matroska file do not have the checksum that is stored with them.

    FFmpeg and mkvmerge can store one with each cluster of some seconds. FFmpeg does not compare it.

    Raises:
      OSError: the file cannot be read.
    """
    if not _head(path).startswith(_EBML):
        return 0
    num_damaged = 0
    with path.open("rb") as file:
        file.seek(4)
        file.seek(_ebml_number(file) or 0, 1)
        if file.read(4) != _SEGMENT:
            return 0
        _ebml_number(file)
        # Where no valid element follows the search ends: the demuxer reports it.
        while (kind := _ebml_id(file)) and (length := _ebml_number(file)) is not None:
            content = file.tell()
            if kind == _CLUSTER and file.read(2) == _CHECKSUM:
                stored = int.from_bytes(file.read(4), "little")
                num_damaged += stored != zlib.crc32(file.read(length - 6))
            file.seek(content + length)
    return num_damaged


def lost_transport_packets(path: Path, pid: int) -> int:
    """Returns how often packets with the identifier `pid` are missing in an MPEG transport stream.

    Where parts of a stream are joined the counters start anew. There a program association table (PAT) stands first
    and the packet begins a new frame, so such places do not count.

    Raises:
      OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        layout = _packet_layout(file.read(204 * (_CHECKED_PACKETS + 1)))
        if layout is None:
            return 0  # none of the known sizes of a packet
        offset, stride = layout
        file.seek(offset)
        scan, num_lost = _ContinuityScan(pid), 0
        while data := file.read(stride * _PACKETS_AT_A_TIME):
            num_packets = len(data) // stride
            packets = np.frombuffer(data, np.uint8, num_packets * stride).reshape(num_packets, stride)
            num_lost += scan.count_lost(packets[:, :188])
    return num_lost


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(32).ljust(32, b"\0")


def _ebml_id(file: BinaryIO) -> bytes:
    """Reads the name of an element; empty at the end of the file and where it is not valid."""
    first = file.read(1)
    return first + file.read(8 - first[0].bit_length()) if first and first[0] >= 0x10 else b""


def _ebml_number(file: BinaryIO) -> int | None:
    """Reads the size of an element; None if it is unknown (a live recording) or not valid."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    length = 9 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & (0xFF >> length)]) + file.read(length - 1), "big")
    return None if value == (1 << 7 * length) - 1 else value


def _matroska_end(file: BinaryIO, size: int) -> int:
    """Where the last segment says that it ends; `size` if it does not say."""
    file.seek(4)
    header = _ebml_number(file)
    if header is None:
        return size
    at = file.tell() + header
    while at + 4 < size:
        file.seek(at)
        kind, length = file.read(4), _ebml_number(file)
        if kind != _SEGMENT or length is None:
            return size
        at = file.tell() + length
    return at


def _riff_end(file: BinaryIO, size: int) -> int:
    """Where the last RIFF list says that it ends. A large AVI file has several; one not finished has a size of 0."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        kind, length = struct.unpack("<4sI", file.read(8))
        if kind != b"RIFF" or length in (0, 0xFFFFFFFF):
            return size
        at += 8 + length
    return at


def _mp4_end(file: BinaryIO, size: int) -> int:
    """Where the last box says that it ends. A box of size 0 goes to the end of the file."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        length, kind = struct.unpack(">I4s", file.read(8))
        if length == 1:
            length = int.from_bytes(file.read(8), "big")
        if length < 8 or not kind.isascii():  # to the end, or bytes after the last box, which players ignore
            return size
        if at + length > size and kind not in _MP4_BOXES:
            return size
        at += length
    return at


def _movi_lists(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """Yields the start and end of each list of frames."""
    at = 12
    while at + 12 <= size:
        file.seek(at)
        kind, length, name = struct.unpack("<4sI4s", file.read(12))
        if kind == b"RIFF":
            at += 12
        elif kind == b"LIST" and name == b"movi":
            yield at + 12, at + 8 + (length or size)
            at += 8 + (length or size) + length % 2
        else:
            at += 8 + length + length % 2


def _broken_in_list(file: BinaryIO, at: int, end: int) -> int:
    num_broken = 0
    while at + 8 <= end:
        file.seek(at)
        kind, length = struct.unpack("<4sI", file.read(8))
        if kind == b"LIST":
            at += 12  # a list of records: its chunks follow
        elif _is_chunk(kind) and at + 8 + length <= end + 1:
            at = _after_chunk(file, at + 8 + length, length)
        else:
            following = _next_chunk(file, at + 1, end)
            num_broken, at = num_broken + following - at, following
    return num_broken


def _after_chunk(file: BinaryIO, at: int, length: int) -> int:
    """Returns where the next chunk begins: at an even place, unless the writer left out the byte that makes it so."""
    if length % 2:
        file.seek(at)
        names = file.read(5)
        at += 0 if _is_chunk(names[:4]) and not _is_chunk(names[1:]) else 1
    return at


def _next_chunk(file: BinaryIO, at: int, end: int) -> int:
    """Returns where, from `at` on, the next chunk begins that another one or the end follows; else `end`."""
    file.seek(at)
    data = file.read(end - at)
    for found in re.finditer(rb"\d\d(dc|db|wb)", data):
        start = found.start()
        length = int.from_bytes(data[start + 4 : start + 8], "little")
        after = start + 8 + length + length % 2
        if after >= len(data) - 1 or (after + 4 <= len(data) and _is_chunk(data[after : after + 4])):
            return at + start
    return end


def _is_chunk(kind: bytes) -> bool:
    """Whether it is the name of a chunk: "00dc" (stream 0), "ix00" (index), "JUNK", "idx1"."""
    return (kind[:2].isdigit() and kind[2:].isalnum()) or kind[:2] == b"ix" or kind in (b"JUNK", b"idx1", b"junk")


def _packet_layout(head: bytes) -> tuple[int, int] | None:
    """Returns the offset of the first packet and the distance from packet to packet."""
    for stride, before in ((188, 0), (192, 4), (204, 0)):
        syncs = head[before : before + stride * _CHECKED_PACKETS : stride]
        if len(syncs) > 1 and set(syncs) == {_SYNC_BYTE}:
            return before, stride
    return None


class _ContinuityScan:
    """Counts the breaks in the counter of one stream, in one block of packets after the other."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._num_packets = 0
        self._counter, self._position, self._last_table = -1, -1, -1

    def count_lost(self, packets: np.ndarray) -> int:
        """Counts in `packets`, uint8 [n, 188]."""
        ids = (packets[:, 1].astype(int) & 0x1F) << 8 | packets[:, 2]
        positions = np.arange(len(packets)) + self._num_packets
        self._num_packets += len(packets)
        tables = np.concatenate([[self._last_table], positions[ids == 0]])
        self._last_table = int(tables[-1])
        is_valid = packets[:, 0] == _SYNC_BYTE
        is_ours = is_valid & (ids == self._pid)
        # Where bytes are missing all following packets are shifted, and count as one.
        num_shifts = np.sum(np.diff(is_valid, prepend=True) & ~is_valid)
        num_lost = int(num_shifts + np.sum(is_ours & (packets[:, 1] & 0x80 > 0)))  # marked as wrong

        is_ours &= packets[:, 3] & 0x10 > 0  # only packets with content are counted
        ours, at = packets[is_ours], positions[is_ours]
        if not len(ours):
            return num_lost
        counters = ours[:, 3].astype(int) & 0x0F
        if self._counter < 0:
            self._counter, self._position = (counters[0] - 1) % 16, at[0]
        steps = np.diff(counters, prepend=self._counter) % 16
        after_table = tables[np.searchsorted(tables, at) - 1] >= np.concatenate([[self._position], at[:-1]])
        is_join = (ours[:, 1] & 0x40 > 0) & after_table
        # A field of the packet may announce that its counter starts anew.
        is_announced = (ours[:, 3] & 0x20 > 0) & (ours[:, 4] > 0) & (ours[:, 5] & 0x80 > 0)
        self._counter, self._position = int(counters[-1]), int(at[-1])
        return num_lost + int(np.sum((steps > 1) & ~is_join & ~is_announced))  # a step of 0: sent twice
