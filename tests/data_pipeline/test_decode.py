import struct

import av
import numpy as np
import pytest
from clips import frame_level

from data_pipeline import decode
from data_pipeline.decode import FrameOptions
from data_pipeline.packets import ClipError
from data_pipeline.sampling import uniform_frames


def decode_clip(path, num_kept_frames, resize):
    return decode.decode_clip(path, FrameOptions(num_kept_frames, resize)).frames


def levels(video):
    return video.astype(float).mean((1, 2, 3))


def cut(path, keep):
    """Leaves the first `keep` (a fraction) of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def test_kept_frames_are_uniform_and_repeat_the_last_frame_of_short_clips():
    np.testing.assert_array_equal(uniform_frames(24, 4), [0, 6, 12, 18])
    np.testing.assert_array_equal(uniform_frames(7, 4), [0, 1, 3, 5])
    np.testing.assert_array_equal(uniform_frames(3, 5), [0, 1, 2, 2, 2])
    np.testing.assert_array_equal(uniform_frames(1, 2), [0, 0])


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("a.mkv", "libx264"),
        ("a.ts", "libx264"),
        ("a.webm", "libvpx-vp9"),
        ("b.webm", "libvpx"),
        ("a.avi", "mpeg4"),
    ],
)
def test_kept_frames_are_the_right_ones_whatever_the_container(make_clip, name, codec):
    video = decode_clip(make_clip(name, 24, codec=codec), 8, 32)
    assert video.dtype == np.uint8 and video.shape == (8, 32, 43, 3)
    np.testing.assert_allclose(levels(video), [frame_level(3 * i, 24) for i in range(8)], atol=4)


def test_title_that_is_no_utf8_loses_nothing(make_clip):
    path = make_clip("a.mkv", title="TITLE IN LATIN-1")
    assert b"TITLE IN" in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(b"TITLE IN", b"\xff\xfeTLE IN"))
    assert decode_clip(path, 4, 32).shape[0] == 4


def test_short_clip_repeats_its_last_frame(make_clip):
    video = decode_clip(make_clip(num_frames=3), 5, 48)
    np.testing.assert_allclose(levels(video), [20, 120, 220, 220, 220], atol=4)


@pytest.mark.parametrize("name", ["vfr.mp4", "vfr.mkv"])
def test_variable_frame_rate_counts_frames_not_time(make_clip, name):
    video = decode_clip(make_clip(name, 6, times=[0, 1, 2, 14, 15, 40]), 6, 48)
    np.testing.assert_allclose(levels(video), [frame_level(i, 6) for i in range(6)], atol=4)


@pytest.mark.parametrize(("height", "width", "shape"), [(64, 96, (32, 48)), (96, 48, (64, 32)), (16, 16, (32, 32))])
def test_short_side_is_resized_and_the_aspect_kept(make_clip, height, width, shape):
    assert decode_clip(make_clip(num_frames=2, height=height, width=width), 2, 32).shape == (2, *shape, 3)


def test_display_rotation_is_applied(make_clip):
    path = make_clip(num_frames=2, height=32, width=64)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44  # after the type: version and flags, times, id, duration, layer, volume
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    assert decode_clip(path, 2, 32).shape == (2, 64, 32, 3)


@pytest.mark.parametrize(
    ("name", "options", "keep"),
    [
        ("index_at_end.mp4", {}, 0.5),
        ("index_first.mp4", {"faststart": True}, 0.9),
        ("a.mkv", {}, 0.6),
        ("a.webm", {"codec": "libvpx-vp9"}, 0.6),
        ("a.avi", {"codec": "mpeg4"}, 0.6),
    ],
)
def test_truncated_file_is_refused(make_clip, name, options, keep):
    with pytest.raises(ClipError, match=r"^truncated: "):
        decode_clip(cut(make_clip(name, **options), keep), 4, 32)


def test_file_cut_between_two_frames_is_refused(make_clip):
    path = make_clip(num_frames=24, faststart=True)
    with av.open(str(path)) as container:
        position = max(packet.pos for packet in container.demux(video=0) if packet.size)
    path.write_bytes(path.read_bytes()[:position])
    with pytest.raises(ClipError, match=r"^truncated: "):
        decode_clip(path, 4, 32)


def test_file_whose_end_is_zeros_is_refused(make_clip):
    path = make_clip(num_frames=24, faststart=True)
    data = path.read_bytes()
    path.write_bytes(data[:-200] + bytes(200))
    with pytest.raises(ClipError, match=r"^(truncated|damaged): "):
        decode_clip(path, 4, 32)


def test_each_kind_of_unusable_file_has_its_own_reason(tmp_path, make_sound):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("this is no video\n" * 100)
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "folder.mp4").mkdir()
    make_sound("sound.mp4")
    reasons = {}
    for name in ("none", "empty", "text", "noise", "folder", "sound"):
        with pytest.raises(ClipError) as error:
            decode_clip(tmp_path / f"{name}.mp4", 4, 32)
        reasons[name] = str(error.value)
    assert reasons == {
        "none": "missing: no such file",
        "empty": "empty: zero bytes",
        "text": "not a video",
        "noise": "not a video",
        "folder": "not a file",
        "sound": "no video stream",
    }
