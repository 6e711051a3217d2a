"""Files that others reported as troublesome: the right frames of the good ones, a reason for the damaged ones."""

import json
import shutil
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from data_pipeline import containers, decode
from data_pipeline.decode import FrameOptions, decode_clip
from data_pipeline.packets import ClipError

TROUBLESOME = Path(__file__).parent / "troublesome"
EXPECTED = json.loads((TROUBLESOME / "expected.json").read_text())
COLOURS = {"red": (253, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 254), "yellow": (253, 253, 0)}
GOOD = {
    "h264.mp4": ("libx264", {}),
    "h264_sound.mkv": ("libx264", {}),
    "open_gop.mkv": ("libx264", {"x264-params": "open-gop=1:bframes=3:keyint=12"}),
    "hevc.mkv": ("libx265", {"x265-params": "log-level=none:open-gop=1:keyint=12"}),
    "mpeg2.mkv": ("mpeg2video", {"bf": "2"}),
    "mpeg4.avi": ("mpeg4", {}),
    "vp9.webm": ("libvpx-vp9", {}),
    "h264.ts": ("libx264", {}),
    "mpeg2.ts": ("mpeg2video", {"bf": "2"}),
}
KEEP_8 = FrameOptions(num_kept_frames=8, resize=48)


def write_moving(path, codec, options, num_frames=48):
    """Encodes a moving pattern at 24 frames/s with a key frame every 12 frames; with sound where the name says so."""
    rng = np.random.default_rng(0)
    pattern = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=24, options=options)
        video.height, video.width, video.pix_fmt = 96, 128, "yuv420p"
        video.codec_context.gop_size = 12
        sound = container.add_stream("aac", rate=48000) if "sound" in path.name else None
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(np.roll(pattern, (index, 2 * index), (0, 1)), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 24)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if sound:  # a second longer than the picture
            samples = rng.normal(0, 0.1, (1, 48000 * num_frames // 24 + 48000)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate = 48000
            container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
    return path


def write_without_start(source, path, num_skipped):
    """Copies the packets of a file but for the first few, as a cut without decoding does."""
    with av.open(str(source)) as given, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(given.streams.video[0])
        packets = [packet for packet in given.demux(video=0) if packet.size]
        for packet in packets[num_skipped:]:
            if packet.dts is None:
                packet.dts = packet.pts
            packet.stream = stream
            container.mux(packet)
    return path


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Whole files of several codecs and containers, by name."""
    folder = tmp_path_factory.mktemp("good")
    return {name: write_moving(folder / name, *how) for name, how in GOOD.items()}


def with_matrix(path, to, matrix):
    """Writes the display matrix, nine numbers, into the header of the track of an MP4 file."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44  # after the type: version and flags, times, id, duration, layer, volume
    data[at : at + 36] = struct.pack(">9i", *(round(value) for value in matrix))
    to.write_bytes(data)
    return to


@pytest.mark.parametrize("name", [name for name, expected in EXPECTED.items() if "frames" in expected])
def test_troublesome_clip_gives_the_right_frames(name):
    expected = EXPECTED[name]
    clip = decode_clip(TROUBLESOME / name, FrameOptions(num_kept_frames=expected["frames"], resize=96))
    assert clip.num_frames == expected["frames"]
    assert clip.frame_numbers.tolist() == list(range(expected["frames"]))
    height, width = clip.frames.shape[1:3]
    assert width / height == pytest.approx(expected["display_width_over_height"], rel=0.01)
    corners = [clip.frames[:, y, x] for y in (6, -7) for x in (6, -7)]  # [n, 3] each
    for corner, colour in zip(corners, expected["corners"], strict=True):
        np.testing.assert_allclose(corner, np.broadcast_to(COLOURS[colour], corner.shape), atol=12)
    # Frame i of the source is grey at 20 + 3 i.
    middle = clip.frames[:, height // 2, width // 2].mean(-1)
    if name != "pixel_aspect_64_45.mp4":
        np.testing.assert_allclose(middle, 20 + 3 * np.array(expected["source_frames"]), atol=2.5)


@pytest.mark.parametrize("name", [name for name, expected in EXPECTED.items() if "refused" in expected])
def test_troublesome_clip_that_is_damaged_is_refused_unless_so_much_is_allowed(name):
    with pytest.raises(ClipError, match=r"^(damaged|truncated): "):
        decode_clip(TROUBLESOME / name, KEEP_8)
    clip = decode_clip(TROUBLESOME / name, FrameOptions(num_kept_frames=8, resize=48, max_damage=0.5))
    assert 0 < clip.damage < 0.5 and clip.frames.shape[0] == 8


@pytest.mark.parametrize("folder", [".", "12:00", "a[1] *?", "file:x"])
@pytest.mark.parametrize("name", ["12:30:05.mp4", "concat:a.mp4", "-a.mp4", "%03d.mp4", "http:x.mp4"])
def test_any_file_name_will_do(tmp_path, monkeypatch, folder, name):
    monkeypatch.chdir(tmp_path)
    Path(folder).mkdir(exist_ok=True)
    shutil.copy(TROUBLESOME / "plain.mp4", Path(folder) / name)
    assert decode_clip(Path(folder) / name, KEEP_8).num_frames == 60


ONE, HALF = 1 << 16, 0.5**0.5 * (1 << 16)
MATRICES = {
    "as it is": (ONE, 0, 0, ONE),
    "a quarter": (0, ONE, -ONE, 0),
    "a half": (-ONE, 0, 0, -ONE),
    "three quarters": (0, -ONE, ONE, 0),
    "mirrored": (-ONE, 0, 0, ONE),
    "upside down": (ONE, 0, 0, -ONE),
    "transposed": (0, ONE, ONE, 0),
    "transposed the other way": (0, -ONE, -ONE, 0),
    "an eighth": (HALF, HALF, -HALF, HALF),
}


def autorotated(image, matrix):
    """Turns uint8 [h, w, 3] by the filters that the ffmpeg command inserts for a display matrix (a, b, c, d)."""
    a, b, c, d = matrix
    angle = np.degrees(np.arctan2(b, a)) % 360
    if abs(angle - 90) < 1:
        filters = [("transpose", "cclock_flip" if c > 0 else "clock")]
    elif abs(angle - 180) < 1:
        filters = [(name, None) for name, sign in (("hflip", a), ("vflip", d)) if sign < 0]
    elif abs(angle - 270) < 1:
        filters = [("transpose", "clock_flip" if c < 0 else "cclock")]
    elif 1 < angle < 359:
        filters = [("rotate", f"{angle}*PI/180")]
    else:
        filters = [("vflip", None)] if d < 0 else []
    graph = av.filter.Graph()
    steps = [graph.add_buffer(width=image.shape[1], height=image.shape[0], format="rgb24", time_base=Fraction(1))]
    steps += [graph.add(*one) for one in [*filters, ("format", "rgb24"), ("buffersink", None)]]
    graph.link_nodes(*steps).configure()
    graph.push(av.VideoFrame.from_ndarray(image, format="rgb24"))
    return graph.pull().to_ndarray()


@pytest.mark.parametrize("name", MATRICES)
def test_frames_are_turned_and_mirrored_as_ffmpeg_does(tmp_path, name):
    a, b, c, d = matrix = MATRICES[name]
    path = with_matrix(TROUBLESOME / "plain.mp4", tmp_path / "turned.mp4", (a, b, 0, c, d, 0, 0, 0, 1 << 30))
    shown = decode_clip(path, FrameOptions(num_kept_frames=1, resize=96)).frames[0]
    plain = decode_clip(TROUBLESOME / "plain.mp4", FrameOptions(num_kept_frames=1, resize=96)).frames[0]
    expected = autorotated(plain, matrix)
    if name == "an eighth":  # another bilinear filter at the edges
        assert np.mean(np.abs(shown.astype(int) - expected)) < 3
    else:
        np.testing.assert_array_equal(shown, expected)
    square = decode_clip(path, FrameOptions(num_kept_frames=1, resize=32, shape="stretch")).frames[0]
    assert square.shape == (32, 32, 3)


def test_pixels_of_a_turned_square_frame_are_turned_too(tmp_path):
    source = tmp_path / "square.mp4"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.height = stream.width = 64
        stream.pix_fmt = "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
        container.mux(stream.encode(None))
    assert decode_clip(source, FrameOptions(1, 32)).frames.shape == (1, 32, 64, 3)
    for name, shape in (("a quarter", (1, 64, 32, 3)), ("a half", (1, 32, 64, 3))):
        a, b, c, d = MATRICES[name]
        path = with_matrix(source, tmp_path / "turned.mp4", (a, b, 0, c, d, 0, 0, 0, 1 << 30))
        assert decode_clip(path, FrameOptions(1, 32)).frames.shape == shape


def test_stretched_frames_are_those_of_ffmpegs_bilinear_scaler():
    for name in ("plain.mp4", "pixel_aspect_64_45.mp4"):
        clip = decode_clip(TROUBLESOME / name, FrameOptions(num_kept_frames=4, resize=56, shape="stretch"))
        with av.open(str(TROUBLESOME / name)) as container:
            stream = container.streams.video[0]
            frames = list(container.decode(stream))
            graph = av.filter.Graph()
            steps = [("scale", "56:56:flags=bilinear"), ("format", "rgb24"), ("buffersink", None)]
            graph.link_nodes(graph.add_buffer(template=stream), *(graph.add(*step) for step in steps)).configure()
            for picture, number in zip(clip.frames, clip.frame_numbers, strict=True):
                graph.push(frames[number])
                np.testing.assert_array_equal(picture, graph.pull().to_ndarray())


def test_hdr_clip_is_marked(tmp_path):
    for transfer, is_hdr in ((1, False), (16, True), (18, True)):
        with av.open(str(tmp_path / "a.mkv"), "w") as container:
            stream = container.add_stream("libx264", rate=24)
            stream.height = stream.width = 64
            stream.pix_fmt = "yuv420p"
            stream.codec_context.color_trc = transfer
            for _ in range(3):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
            container.mux(stream.encode(None))
        assert decode_clip(tmp_path / "a.mkv", KEEP_8).is_hdr is is_hdr


@pytest.mark.parametrize("name", GOOD)
def test_whole_file_is_accepted(good, name):
    clip = decode_clip(good[name], KEEP_8)
    assert (clip.num_frames, clip.damage) == (48, 0)


@pytest.mark.parametrize("container", ["mkv", "mp4"])
@pytest.mark.parametrize("name", ["open_gop.mkv", "hevc.mkv", "mpeg2.mkv"])
def test_file_cut_out_of_a_longer_one_begins_at_its_first_key_frame(good, tmp_path, name, container):
    path = write_without_start(good[name], tmp_path / f"cut.{container}", 5)
    clip = decode_clip(path, FrameOptions(num_kept_frames=48, resize=96))
    whole = decode_clip(good[name], FrameOptions(num_kept_frames=48, resize=96))
    assert clip.damage == 0 and 30 <= clip.num_frames < 48
    np.testing.assert_array_equal(clip.frames[clip.num_frames - 1], whole.frames[-1])


@pytest.mark.parametrize("name", ["h264.ts", "mpeg2.ts"])
def test_transport_stream_joined_of_parts_is_accepted(good, tmp_path, name):
    joined = tmp_path / "joined.ts"
    joined.write_bytes(good[name].read_bytes() * 3)
    assert decode_clip(joined, KEEP_8).num_frames == 3 * 48


def test_avi_whose_writer_left_out_the_padding_is_accepted(good, tmp_path):
    data = good["mpeg4.avi"].read_bytes()
    start = data.index(b"movi") + 4
    at, packed = start, data[:start]
    while data[at : at + 4] == b"00dc":
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        packed += data[at : at + 8 + length]
        at += 8 + length + length % 2
    packed = packed[:4] + (len(packed) - 8).to_bytes(4, "little") + packed[8:]
    packed = packed[: start - 8] + (len(packed) - start + 4).to_bytes(4, "little") + packed[start - 4 :]
    assert len(packed) < at, "some chunks have an odd length"
    (tmp_path / "a.avi").write_bytes(packed)
    assert containers.broken_chunks(tmp_path / "a.avi") == 0
    assert containers.missing_bytes(tmp_path / "a.avi") == 0


@pytest.mark.parametrize("name", ["h264.mp4", "open_gop.mkv", "mpeg4.avi", "vp9.webm"])
def test_bytes_after_the_end_do_no_harm(good, tmp_path, name):
    for tail in (bytes(3000), b"some other text " * 20):
        (tmp_path / name).write_bytes(good[name].read_bytes() + tail)
        assert decode_clip(tmp_path / name, KEEP_8).num_frames == 48


@pytest.mark.parametrize("name", [name for name in GOOD if not name.endswith(".ts")])
@pytest.mark.parametrize("share", [0.05, 0.1, 0.15])
def test_end_that_is_cut_off_is_noticed(good, tmp_path, name, share):
    data = good[name].read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * (1 - share))])
    with pytest.raises(ClipError, match=r"^(damaged|truncated): "):
        decode_clip(tmp_path / name, KEEP_8)


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("kind", ["hole", "zeros", "random"])
def test_damage_in_the_middle_is_noticed(good, tmp_path, name, kind):
    data, rng = good[name].read_bytes(), np.random.default_rng(1)
    for share in (0.05, 0.1):
        length, at = int(share * len(data)), int(rng.uniform(0.3, 0.7) * len(data))
        inserted = {"hole": b"", "zeros": bytes(length), "random": rng.bytes(length)}[kind]
        (tmp_path / name).write_bytes(data[:at] + inserted + data[at + length :])
        with pytest.raises(ClipError, match=r"^(damaged|truncated): "):
            decode_clip(tmp_path / name, KEEP_8)


def test_little_damage_is_accepted_if_allowed_and_measured(good, tmp_path):
    data = bytearray(good["h264.ts"].read_bytes())
    # The last packet of the stream 0x100 that begins no new frame.
    at = max(at for at in range(0, len(data), 188) if data[at + 1 : at + 3] == b"\x01\x00")
    del data[at : at + 188]
    (tmp_path / "a.ts").write_bytes(data)
    with pytest.raises(ClipError, match=r"^damaged: .* of the clip\)"):
        decode_clip(tmp_path / "a.ts", KEEP_8)
    clip = decode_clip(tmp_path / "a.ts", FrameOptions(num_kept_frames=8, resize=48, max_damage=0.3))
    assert 0 < clip.damage <= 0.3


def test_webp_is_not_supported_rather_than_damaged(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"RIFF\x24\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00\x02" + bytes(23))
    with pytest.raises(ClipError, match=r"^not supported: an animated WebP"):
        decode_clip(tmp_path / "a.mp4", KEEP_8)


@pytest.mark.parametrize("name", GOOD)
def test_long_clip_read_by_seeking_gives_the_same_frames(good, monkeypatch, name):
    whole = decode_clip(good[name], KEEP_8)
    monkeypatch.setattr(decode, "LONG_CLIP", 10)
    np.testing.assert_array_equal(decode_clip(good[name], KEEP_8).frames, whole.frames)


@pytest.mark.parametrize("name", GOOD)
def test_segment_holds_the_frames_between_its_times(good, name):
    whole = decode_clip(good[name], FrameOptions(num_kept_frames=48, resize=48))
    for start, end, first, last in ((0.5, 1.5, 12, 36), (0.0, 0.25, 0, 6), (1.75, None, 42, 48), (None, 1.0, 0, 24)):
        clip = decode_clip(good[name], FrameOptions(num_kept_frames=6, resize=48), start=start, end=end)
        assert clip.num_frames == last - first
        np.testing.assert_array_equal(clip.frames, whole.frames[first + clip.frame_numbers])


def test_impossible_segment_is_refused(good):
    for start, end in ((1.0, 1.0), (-1.0, 1.0), (5.0, 6.0)):
        with pytest.raises(ClipError, match=r"^segment: "):
            decode_clip(good["h264.mp4"], KEEP_8, start=start, end=end)


def test_clip_that_takes_too_long_is_refused(good):
    with pytest.raises(ClipError, match=r"^too slow: .* 0 seconds"):
        decode_clip(good["h264.mp4"], FrameOptions(num_kept_frames=8, resize=48, time_limit=0.0))
