"""Every parser of a file that users bring, with small whole files to start from.

A parser may return, or raise DataError or STGTError with one line that names the file. All else is a finding.
"""

import dataclasses
import functools
import json
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from data_pipeline.build import build_shards
from data_pipeline.captions import read_captions
from data_pipeline.datasets.annotation_files import read_pickle
from data_pipeline.datasets.select import read_dataset
from data_pipeline.decode import FrameOptions, decode_clip
from data_pipeline.errors import DataError
from data_pipeline.moving_shapes import make_moving_shapes
from data_pipeline.questions import read_answers
from data_pipeline.shards import open_shards
from data_pipeline.tokenizer import SPECIAL_TOKENS, make_tokenizer, read_vocab
from experiments.results import read_results
from stgt_jax.convert.tensor_files import open_tensors
from stgt_jax.errors import STGTError
from stgt_jax.exported import read_weights
from stgt_jax.run_folder import read_run
from stgt_jax.train.json_lines import lines_until
from stgt_jax.video_index import IndexedFile, VideoIndex

LONGEST_MESSAGE = 2000  # characters


@dataclasses.dataclass(frozen=True)
class Target:
    """A parser of one kind of file."""

    file: str  # its name, in a folder of its own
    parse: Callable[[Path], object]
    seeds: Callable[[], list[bytes]]
    share: float = 1.0  # of the executions; less for slow ones
    names_itself: bool = True  # whether its messages name the file; else the list that they go to does


def check(target: Target, data: bytes, folder: Path) -> None:
    """Gives the parser this content. Raises whatever it should not raise, and AssertionError for a bad message."""
    file = folder / target.file
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    try:
        target.parse(file)
    except (DataError, STGTError) as error:
        message = str(error)
        assert "\n" not in message, f"several lines: {message[:300]!r}"
        assert len(message) < LONGEST_MESSAGE, f"{len(message)} characters: {message[:300]!r}"
        assert str(folder) in message or not target.names_itself, f"does not name the file: {message!r}"


def _rows(*rows: dict[str, Any]) -> bytes:
    return json.dumps(rows).encode()


def _dataset(name: str, split: str, variant: str | None = None) -> Callable[[Path], object]:
    def parse(file: Path) -> object:
        return read_dataset(name, annotations=file.parent, videos=None, split=split, variant=variant)

    return parse


def _answers(file: Path) -> object:
    return read_answers(str(file))


def _vocab(file: Path) -> object:
    return make_tokenizer(read_vocab(file))


def _tensors(file: Path) -> object:
    return [tensor.read() for tensor in open_tensors(file)[0].values()]


def _folder_of_tensors(file: Path) -> object:
    return open_tensors(file.parent)


def _run(file: Path) -> object:
    run = read_run(file.parent)
    return run.model, run.preparation, run.vocab_sha256


def _run_config() -> bytes:
    return (Path(__file__).parents[2] / "stgt_jax/pretrained/moving_shapes/config.json").read_bytes()


@functools.cache
def _shard_set() -> dict[str, bytes]:
    """The files of a shard set of two clips, by their names."""
    with tempfile.TemporaryDirectory() as folder:
        clips, out = Path(folder, "clips"), Path(folder, "set")
        make_moving_shapes(clips, num_train=2, num_test=1, image_size=32, num_frames=8, progress=False)
        build_shards(clips / "train" / "captions.csv", out, split="train", num_kept_frames=2, resize=32,
                     max_text_length=16, num_workers=0, progress=False)  # fmt: skip
        files = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        return files | {"clip.mp4": next(clips.rglob("*.mp4")).read_bytes()}


def _shard_name() -> str:
    return next(name for name in _shard_set() if ".array_record" in name)


def _fill_up(folder: Path, files: dict[str, bytes]) -> None:
    """Writes those of the files that are not there."""
    for name, content in files.items():
        if not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)


def _read_shards(file: Path) -> object:
    _fill_up(file.parent.parent, _shard_set())
    source = open_shards(file.parent.parent, "train")
    return [source[index].frames[np.arange(2)] for index in range(len(source))]


@functools.cache
def _index_files() -> dict[str, bytes]:
    """The files of an index of one video."""
    with tempfile.TemporaryDirectory() as folder:
        index = VideoIndex.create(Path(folder, "index"), (2, 4), {"model": "m"})
        index.add(IndexedFile("a.mp4", 10, 20, segments=((0.0, 1.5),)), np.ones((1, 2, 4), np.float32))
        return {path.name: path.read_bytes() for path in index.folder.iterdir()}


def _index(file: Path) -> object:
    _fill_up(file.parent, _index_files())
    return VideoIndex(file.parent).files


TARGETS: dict[str, Target] = {
    "captions_csv": Target(
        "captions.csv",
        read_captions,
        lambda: [
            b'video,caption,start\na.mp4,"a cat, here",1.5\n',
            b"\xef\xbb\xbfvideo,question,answer\r\na,b,c\r\n",
        ],
    ),
    "captions_json": Target(
        "captions.json",
        read_captions,
        lambda: [_rows({"video": "a.mp4", "caption": ["a cat", "b"], "start": 1, "end": 2.5, "group": "g"})],
    ),
    "msrvtt_csv": Target(
        "MSRVTT_JSFUSION_test.csv",
        _dataset("msrvtt", "test"),
        lambda: [b"key,video_id,sentence\nret0,video7020,a woman\n"],
    ),
    "msrvtt_json": Target(
        "MSRVTT_data.json",
        _dataset("msrvtt", "train", "full"),
        lambda: [
            json.dumps(
                {
                    "videos": [{"video_id": "video0", "split": "train"}],
                    "sentences": [{"video_id": "video0", "caption": "a car"}],
                }
            ).encode()
        ],
    ),
    "msrvtt_qa": Target(
        "train_qa.json",
        _dataset("msrvtt", "train", "qa"),
        lambda: [_rows({"video_id": 0, "question": "what?", "answer": "car"})],
    ),
    "msvd_pickle": Target(
        "captions.pkl", read_pickle, lambda: [pickle.dumps({"v1": [["a", "cat"]]}, p) for p in (0, 2, 4)]
    ),
    "didemo": Target(
        "train_data.json", _dataset("didemo", "train"), lambda: [_rows({"video": "a.avi", "description": "x"})]
    ),
    "lsmdc": Target("LSMDC16_annos_val.csv", _dataset("lsmdc", "val"), lambda: [b"1_F.00.01\t1\t2\t3\t4\tA man.\n"]),
    "webvid": Target(
        "results_10M_val.csv", _dataset("webvid", "val"), lambda: [b"videoid,page_dir,name\n12,00_01,A sea\n"]
    ),
    "vidal": Target("train.json", _dataset("vidal", "train"), lambda: [b'{"v": {"folder": "f", "polish_mplug": "a"}}']),
    "lavis": Target("train.json", _dataset("lavis", "train"), lambda: [_rows({"video": "a.mp4", "caption": "x"})]),
    "vocab": Target("vocab.txt", _vocab, lambda: ["\n".join(["[PAD]", *SPECIAL_TOKENS[1:], "cat", "##s"]).encode()]),
    "answers": Target("answers.json", _answers, lambda: [b'["yes", "no"]', b'{"yes": 0, "no": 1}']),
    "safetensors": Target(
        "model.safetensors", _tensors, lambda: [safetensors.numpy.save({"w": np.ones((2, 3), np.float32)})]
    ),
    "exported": Target(
        "weights.safetensors",
        lambda file: read_weights(file.parent),
        lambda: [safetensors.numpy.save({"a/w": np.ones((2, 3), np.float32)})],
    ),
    "torch": Target("model.pth", _tensors, list),  # the corpus has one
    "weights_index": Target(
        "model.safetensors.index.json", _folder_of_tensors, lambda: [b'{"weight_map": {"w": "a.safetensors"}}']
    ),
    "run_config": Target("config.json", _run, lambda: [_run_config()]),
    "metrics": Target("metrics.jsonl", lambda file: lines_until(file, 9), lambda: [b'{"step": 1, "loss": 0.5}\n']),
    "results": Target("results.json", read_results, lambda: [b'{"schema": 1, "queries": []}']),
    "index_header": Target("index.json", _index, lambda: [_index_files()["index.json"]]),
    "index_journal": Target("files-0.jsonl", _index, lambda: [_index_files()["files-0.jsonl"]]),
    "manifest": Target("train/manifest.json", _read_shards, lambda: [_shard_set()["train/manifest.json"]], 0.02),
    "shard": Target("train/shard", _read_shards, lambda: [_shard_set()[_shard_name()]], 0.02),
    "video": Target(
        "clip.mp4",
        lambda file: decode_clip(file, FrameOptions(2, 16)),
        lambda: [_shard_set()["clip.mp4"]],
        0.02,
        names_itself=False,
    ),
}
