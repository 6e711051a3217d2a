"""Search over a folder of videos: what an index holds after every change, and that the right clips are found."""

import itertools
import json
import os
import shutil

import numpy as np
import pytest

import stgt_jax as stgt
from data_pipeline.moving_shapes import make_moving_shapes
from data_pipeline.moving_shapes.write import write_mp4
from data_pipeline.segments import plan_segments, video_seconds
from experiments.commands.main import main
from stgt_jax.errors import STGTError
from stgt_jax.video_index import IndexedFile, VideoIndex

pytestmark = pytest.mark.slow
WEIGHTS = "moving_shapes"
LONG = 6  # seconds of the long clip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Clips of moving shapes, with their captions by file name."""
    folder = tmp_path_factory.mktemp("made")
    make_moving_shapes(folder, num_train=1, num_test=6, progress=False)
    lines = (folder / "test" / "captions.csv").read_text().splitlines()[1:]
    return folder / "test", {line.split(",")[0]: line.split(",", 1)[1].rsplit(",", 1)[0].strip('"') for line in lines}


@pytest.fixture
def videos(made, tmp_path):
    folder = tmp_path / "videos"
    shutil.copytree(made[0], folder)
    return folder


def paths(index):
    return sorted(index.store.files)


def test_clips_are_found_by_their_captions(made, videos, tmp_path):
    index = stgt.index(videos, tmp_path / "index", weights=WEIGHTS)
    assert paths(index) == sorted(made[1]) and index.changes.added == 6 and not index.changes.unreadable
    model = stgt.load(WEIGHTS)
    files, texts = sorted(made[1]), [made[1][name] for name in sorted(made[1])]
    expected = model.similarity([videos / name for name in files], texts)
    for text, column in zip(texts, expected.T, strict=True):
        hits = index.search(text, count=6, rerank=0)
        assert [hit.path for hit in hits] == [files[i] for i in np.argsort(-column, kind="stable")]
        np.testing.assert_allclose([hit.similarity for hit in hits], -np.sort(-column), atol=2e-3)  # half precision
        assert all(hit.match is None and hit.score == hit.similarity for hit in hits)
        ranked = index.search(text, count=3, rerank=4)
        assert len(ranked) == 3 and [hit.score for hit in ranked] == sorted((h.score for h in ranked), reverse=True)
        match = model.match([videos / hit.path for hit in ranked], text)[:, 0]
        np.testing.assert_allclose([hit.match for hit in ranked], match, atol=1e-5)
        np.testing.assert_allclose([hit.score for hit in ranked], [h.similarity + h.match for h in ranked], atol=1e-6)


def test_index_follows_the_folder(made, videos, tmp_path):
    out = tmp_path / "index"
    first = stgt.index(videos, out, weights=WEIGHTS)
    before = first.search("a red circle grows", count=6, rerank=0)
    names = paths(first)
    (videos / names[0]).unlink()
    shutil.copy(videos / names[2], videos / names[1])
    os.utime(videos / names[1], ns=(1, 1))
    (videos / "more").mkdir()
    shutil.copy(videos / names[3], videos / "more" / "new [1].mp4")
    (videos / "notes.txt").write_text("no video")
    (videos / "broken.mp4").write_bytes(b"no video")
    second = stgt.index(videos, out, weights=WEIGHTS)
    changes = second.changes
    assert (changes.added, changes.changed, changes.removed, changes.unchanged) == (2, 1, 1, 4)
    assert list(changes.unreadable) == ["broken.mp4"] and "not a video" in changes.unreadable["broken.mp4"]
    assert second.store.num_clips == 6 and len(second.store.embeddings()) == 6  # no row is left over
    after = {hit.path: hit.similarity for hit in second.search("a red circle grows", count=9, rerank=0)}
    known = {hit.path: hit.similarity for hit in before}
    assert names[0] not in after and after["more/new [1].mp4"] == after[names[3]] == known[names[3]]
    assert after[names[1]] == after[names[2]] == known[names[2]]
    third = stgt.index(videos, out, weights=WEIGHTS)
    assert (third.changes.unchanged, third.changes.added) == (7, 0)
    assert list(third.changes.unreadable) == ["broken.mp4"]  # named every time


def test_interrupted_run_goes_on(videos, tmp_path, monkeypatch):
    add, calls = VideoIndex.add, []

    def interrupted(self, file, embeddings):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(file.path)
        add(self, file, embeddings)

    with monkeypatch.context() as patch:
        patch.setattr(VideoIndex, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stgt.index(videos, tmp_path / "index", weights=WEIGHTS)
    with (tmp_path / "index" / "files-0.jsonl").open("a") as journal:
        journal.write('{"path": "cut o')
    with (tmp_path / "index" / "embeddings-0.f16").open("ab") as rows:
        rows.write(b"half a row")
    whole = stgt.index(videos, tmp_path / "index", weights=WEIGHTS)
    assert (whole.changes.unchanged, whole.changes.added) == (3, 3)
    fresh = stgt.index(videos, tmp_path / "fresh", weights=WEIGHTS)
    for one in (whole, fresh):
        assert [hit.path for hit in one.search("a blue star", rerank=0)] == [
            hit.path for hit in fresh.search("a blue star", rerank=0)
        ]


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A long clip: grey, with something moving in its last seconds."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    frames = np.full((LONG * 10, 64, 64, 3), 120, np.uint8)
    for i in range(45, 60):
        frames[i, 20:40, 4 * (i - 45) : 4 * (i - 45) + 8] = (255, 0, 0)
    write_mp4(frames, path, fps=10)
    return path


def test_long_videos_are_cut_into_overlapping_segments(film):
    assert video_seconds(film) == pytest.approx(LONG, abs=0.11)
    segments = plan_segments(film, 2.0)
    assert segments[0] == (0.0, 2.0) and segments[1] == (1.0, 3.0)
    assert segments[-1][1] == pytest.approx(LONG, abs=0.11)
    assert all(later[0] < former[1] for former, later in itertools.pairwise(segments))
    assert len(plan_segments(film, 4.5)) == 1 and len(plan_segments(film, 100.0)) == 1


def test_moment_of_a_film_is_found_with_its_times(film, tmp_path):
    index = stgt.index(film.parent, tmp_path / "index", weights=WEIGHTS, segment_seconds=1.5)
    assert index.store.num_clips == len(plan_segments(film, 1.5)) > 5
    hits = index.search("a red square moves from left to right", count=5)
    assert hits[0].start >= 3.5
    spans = sorted((hit.start, hit.end) for hit in hits)
    assert all(former[1] <= later[0] for former, later in itertools.pairwise(spans))  # none overlap
    frames = index.read(hits[0])
    assert frames.shape == (6, 64, 64, 3) and (frames[..., 0].max() > 200) and (frames[..., 0].min() < 140)


def test_commands_search_and_write_a_page(made, videos, tmp_path, capsys):
    out, page = str(tmp_path / "index"), tmp_path / "pages" / "hits.html"
    (videos / "a b&c.avi").write_bytes((videos / "000000.mp4").read_bytes())
    (videos / "broken.webm").write_bytes(b"")
    assert main(["index", str(videos), "--weights", WEIGHTS, "--out", out]) == 0
    printed = capsys.readouterr().out
    assert "not read: broken.webm: empty" in printed and "7 clips of 8 files; 8 added" in printed
    text = made[1]["000003.mp4"]
    words = ["search", out, text, "--count", "4", "--html", str(page), "--json", str(tmp_path / "hits.json")]
    assert main(words) == 0
    printed = capsys.readouterr().out
    hits = json.loads((tmp_path / "hits.json").read_text())["hits"]
    assert len(hits) == 4 and all(hit["path"] in printed for hit in hits) and "P(match)" in printed
    written = page.read_text()
    assert written.count("<video controls") == written.count("poster='data:image/jpeg") == 4
    assert main(["search", out, text, "--count", "7", "--html", str(page)]) == 0
    assert "src='../videos/a%20b%26c.avi#t=0,2'" in page.read_text()


def test_mistakes_are_one_line(videos, tmp_path, error_of, made):
    out = tmp_path / "index"
    assert "no index in" in error_of("search", str(tmp_path), "a cat")
    stgt.index(videos, out, weights=WEIGHTS)
    assert "the text to search for is empty" in error_of("search", str(out), " ")
    assert "count=0 must be greater than 0" in error_of("search", str(out), "a cat", "--count", "0")
    words = ["index", str(videos), "--weights", WEIGHTS, "--out"]
    assert "with segments of 30 seconds, now 5" in error_of(*words, str(out), "--segment-seconds", "5")
    assert "holds other files and no index" in error_of(*words, str(videos))
    assert "is not a folder of videos" in error_of(
        "index", str(tmp_path / "x"), "--weights", WEIGHTS, "--out", str(out)
    )
    assert "is an index of" in error_of("index", str(made[0]), "--weights", WEIGHTS, "--out", str(out))
    header = json.loads((out / "index.json").read_text())
    (out / "index.json").write_text(json.dumps(header | {"fingerprint": "other"}))
    assert "was made by other weights than those in moving_shapes now" in error_of("search", str(out), "a cat")
    (out / "index.json").write_text(json.dumps(header))
    (out / "files-0.jsonl").write_text('{"path": 1}\n')
    assert "line 1 is damaged" in error_of("search", str(out), "a cat")


def test_folder_of_videos_may_move(videos, tmp_path):
    stgt.index(videos, tmp_path / "index", weights=WEIGHTS)
    videos.rename(tmp_path / "moved")
    again = stgt.index(tmp_path / "moved", tmp_path / "index", weights=WEIGHTS)
    assert again.changes.unchanged == 6 and again.folder == tmp_path / "moved"
    assert again.search("a star", count=1)[0].match is not None


def located(store, rows):
    """Compares the rows that belong to a file with what was added, and returns their number."""
    found = [(row, store.locate(row)) for row in range(len(store.embeddings()))]
    for row, (file, times) in ((row, one) for row, one in found if one):
        np.testing.assert_array_equal(store.embeddings()[row], rows[file.path][int(times[0])])
    return sum(one is not None for _, one in found)


def test_store_keeps_what_was_added(tmp_path):
    rng = np.random.default_rng(0)
    store = VideoIndex.create(tmp_path / "index", (2, 4), {"folder": "x"})
    rows = {name: rng.normal(size=(n, 2, 4)).astype(np.float16) for name, n in (("a", 3), ("b", 1), ("c", 2))}
    for name, embeddings in rows.items():
        store.add(
            IndexedFile(name, 1, 2, segments=tuple((float(i), i + 1.0) for i in range(len(embeddings)))), embeddings
        )
    store.add(IndexedFile("bad", 1, 2, reason="damaged"), np.zeros((0, 2, 4)))
    store.remove("b")
    for again in (store, VideoIndex(tmp_path / "index")):
        assert located(again, rows) == 5
    store.compact()
    assert sorted(path.name for path in (tmp_path / "index").iterdir()) == [
        "embeddings-1.f16", "files-1.jsonl", "index.json",
    ]  # fmt: skip
    again = VideoIndex(tmp_path / "index")
    assert again.num_clips == len(again.embeddings()) == 5 and again.files["bad"].reason == "damaged"
    assert located(again, rows) == 5
    (tmp_path / "index" / "embeddings-1.f16").write_bytes(b"")
    with pytest.raises(STGTError, match="holds 0 of 5 rows; it is damaged"):
        VideoIndex(tmp_path / "index")
