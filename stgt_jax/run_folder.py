"""The folder of a run: the files that describe the run, so that its weights can be used with nothing else.

    WORKDIR/config.json        every option of the run, and what its data and weights came from
           /vocab.txt          the vocabulary of its captions, one token a line
           /checkpoints/STEP   the weights (`stgt_jax.train.checkpoint`)

A run is resumed, evaluated or used as the start of another one only with the same model and the same vocabulary. The
checks are here; whoever reads a folder calls them.
"""

import dataclasses
import fnmatch
import hashlib
import json
import os
import pathlib
import shlex
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from etils import epath
from etils.epath.gpath import PosixGPath

from stgt_jax.checks import did_you_mean, in_bucket, parse_json
from stgt_jax.config import ModelConfig, TrainConfig
from stgt_jax.errors import STGTError

CONFIG_NAME, VOCAB_NAME = "config.json", "vocab.txt"
PathLike = str | os.PathLike[str]

# Fields of config.json that do not change what a run computes.
_ONLY_HOW = ("model.graph.implementation", "model.scan_layers", "model.remat")
_FREE_ON_RESUME = (
    *_ONLY_HOW, "train.mesh.*", "train.log_every", "train.eval_every", "train.checkpoint_every", "train.keep_*",
    "train.on_nonfinite", "train.max_skipped_steps",
    "data.num_workers", "data.shards", "data.mix_shards", "data.max_bad_records", "data.wait_limit",
    "weights.*", "weights_origin.*", "vocab_from_data", "needs_initial_weights",
)  # fmt: skip
# Fields of the model that a second stage may set as it likes, and those it may set if the user says so.
_FREE_ON_START = (
    *_ONLY_HOW, "model.dtype", "model.vision.freeze", "model.vision.open_blocks", "model.*.dropout",
    "model.*.time_embed_std", "model.*.pos_embed_std", "model.num_answers",
)  # fmt: skip
_ALLOWED_ON_START = ("model.graph.sim_threshold", "model.num_frames")


@dataclass(frozen=True)
class Preparation:
    """How the clips and captions of a run were prepared when its shards were built."""

    num_kept_frames: int  # K, the frames kept of each clip
    resize: int  # pixels of their short side, or of both sides
    max_text_length: int  # S, the tokens of a caption
    frame_shape: str = "keep_aspect"  # or "stretch"; runs of older versions kept the aspect and did not say so
    clean_text: str = "none"  # how captions were cleaned: also "lavis" or "stgt"


@dataclass(frozen=True)
class Provenance:
    """What a run's data, vocabulary and first weights came from: written to its folder, beside model and training."""

    sections: Mapping[str, Any] = field(default_factory=dict)  # of config.json; values that JSON can hold
    vocab: bytes = b""  # content of vocab.txt


@dataclass(frozen=True)
class Run:
    """A run's folder as it was read: `content` is that of its config.json."""

    folder: epath.Path
    content: Mapping[str, Any]

    @cached_property
    def model(self) -> ModelConfig:
        """The config of the model. Raises STGTError where the file does not hold one."""
        return _from_json(ModelConfig, self._section("model"), self.folder / CONFIG_NAME, "model")

    @property
    def preparation(self) -> Preparation:
        """How its clips and captions were prepared. Raises STGTError where the file does not say."""
        return _from_json(Preparation, self._section("preparation"), self.folder / CONFIG_NAME, "preparation")

    @property
    def answers(self) -> tuple[str, ...]:
        """The answers that its model chooses among. Raises STGTError where it answers no questions."""
        if not self.content.get("answers"):
            raise STGTError(
                f"'{self.folder}' has no list of answers; train it with `stgt finetune msrvtt_qa`, for example"
            )
        return tuple(self.content["answers"])

    @property
    def question_length(self) -> int:
        """The tokens of a question. Raises STGTError where the file does not say."""
        return self._section("question_length")

    @property
    def vocab_sha256(self) -> str:
        """The hash of its vocab.txt. Raises STGTError where the file does not say."""
        return self._section("vocab_sha256")

    @property
    def vocab_file(self) -> epath.Path:
        """Its vocab.txt. Raises STGTError where that is missing or is not the one the run was trained with."""
        file = self.folder / VOCAB_NAME
        if not file.exists() or hashlib.sha256(file.read_bytes()).hexdigest() != self.vocab_sha256:
            raise STGTError(f"'{file}' is missing or was changed; copy the vocabulary of the run's shard set there")
        return file

    def _section(self, name: str) -> Any:
        if name not in self.content:
            raise STGTError(
                f"'{self.folder / CONFIG_NAME}' has no \"{name}\", as in runs of older versions; train again with"
                " `stgt pretrain`, or give another folder"
            )
        return self.content[name]


class _LiteralPath(PosixGPath):
    """A local path whose folders may have any name.

    etils, and so Orbax, takes `[`, `]`, `*` and `?` in the path of a folder for a pattern too when it looks for files
    in that folder, and finds none. Paths made from this one are of its class.
    """

    def glob(self, pattern: str) -> Iterator["_LiteralPath"]:
        return (type(self)(path) for path in pathlib.Path(self).glob(pattern))


def folder_path(path: PathLike) -> epath.Path:
    """Returns the absolute path of a run's folder, to be used for everything in it.

    Raises:
      STGTError: Orbax cannot write to a folder of that name.
    """
    text = os.fspath(path)
    if in_bucket(text):  # absolute already; pathlib would spoil it
        if set("[]*?") & set(text):
            raise STGTError(f"'{text}': Orbax cannot read a bucket's folder with [, ], * or ? in its name; rename it")
        return epath.Path(text)
    if "\\" in text:
        raise STGTError(f"'{text}': Orbax takes the backslash for a slash; rename the folder")
    return _LiteralPath(pathlib.Path(text).absolute())


def existing_folder(path: PathLike) -> epath.Path:
    """Returns the absolute path of the folder of a run or a checkpoint. Raises STGTError where there is none."""
    folder = folder_path(path)
    if not folder.is_dir():
        raise STGTError(f"'{path}': no such folder; give that of a run (its --workdir) or one of its checkpoints/STEP")
    return folder


def read_run(path: PathLike) -> Run:
    """Reads the description of a run.

    Args:
      path: the folder of a run, of one of its checkpoints (checkpoints/STEP), or of an exported model.

    Raises:
      STGTError: there is no config.json, or it is not JSON.
    """
    folder = existing_folder(path)
    found = next((f for f in (folder, folder.parent.parent) if (f / CONFIG_NAME).exists()), None)
    if found is None:
        raise STGTError(f"{path}: has no {CONFIG_NAME}; give the folder of a run (its --workdir)")
    try:
        content = parse_json((found / CONFIG_NAME).read_text())
    except ValueError as error:
        raise STGTError(f"'{found / CONFIG_NAME}' is not JSON ({error}); restore it") from error
    if not isinstance(content, dict):
        raise STGTError(f"'{found / CONFIG_NAME}' does not hold a JSON object; restore it")
    return Run(found, content)


def write_run(folder: PathLike, content: Mapping[str, Any], vocab: bytes = b"") -> None:
    """Writes config.json, whole or not at all, and vocab.txt if there is one; does not touch a file that is the same.

    `content` is made of what JSON can hold and of dataclasses of it.
    """
    place = folder_path(folder)
    place.mkdir(parents=True, exist_ok=True)
    text = json.dumps(as_json(content), indent=2) + "\n"
    files = {CONFIG_NAME: text.encode()} | ({VOCAB_NAME: vocab} if vocab else {})
    for name, data in files.items():
        file = place / name
        if not file.exists() or file.read_bytes() != data:
            write_whole(file, data)


def write_whole(file: epath.Path, data: bytes) -> None:
    """Replaces a file at once: a process that ends on the way leaves the old one."""
    if in_bucket(file):  # its objects are always whole
        file.write_bytes(data)
        return
    partial = file.with_name(f"{file.name}.partial")
    partial.write_bytes(data)
    partial.replace(file)


def as_json(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `content`, dataclasses in it included, as json.loads will give it back."""
    return json.loads(json.dumps(content, default=dataclasses.asdict))


def check_vocabulary(run: Run, shards: PathLike, vocab_sha256: str) -> None:
    """Raises STGTError where the token ids of `shards`, of the vocabulary with that hash, mean other words to `run`."""
    if run.vocab_sha256 != vocab_sha256:
        raise STGTError(
            f"'{shards}' has another vocabulary ({vocab_sha256[:8]}) than the run in '{run.folder}'"
            f" ({run.vocab_sha256[:8]}): its captions mean other words to the model; build the shards with --vocab"
            f" {_quoted(run.folder / VOCAB_NAME)}"
        )


def check_resume(run: Run, content: Mapping[str, Any], step: int, *, allow_changes: bool = False) -> dict[str, Any]:
    """Compares a run with the options with which it is to be resumed.

    Args:
      run: as it was started.
      content: what config.json would hold if the run started now.
      step: the step it has reached.
      allow_changes: of options that are not the model's.

    Returns:
      What config.json is to hold now: its model and the origin of its weights stay what they were.

    Raises:
      STGTError: another model or vocabulary, fewer steps than it has done, or another change that is not allowed.
    """
    now = as_json(content)
    if "vocab_sha256" in now:
        check_vocabulary(run, now.get("data", {}).get("shards", ""), now["vocab_sha256"])
    if now["train"]["num_steps"] < step:
        raise STGTError(
            f"train.num_steps={now['train']['num_steps']} is less than the {step} steps that the run in '{run.folder}'"
            " has done; give at least as many"
        )
    changes = _changes(run.content, now, _FREE_ON_RESUME)
    model = [change for name, change in changes.items() if name.startswith("model.")]
    if model:
        raise STGTError(
            f"'{run.folder}': a resumed run cannot change its model: {'; '.join(model)}; give the same options, or"
            f" train in another --workdir from these weights: --weights.initial {_quoted(run.folder)}"
        )
    if changes and not allow_changes:
        raise STGTError(
            f"'{run.folder}' was started with other options: {'; '.join(changes.values())}; give the same, or"
            " --allow-changes to continue with these"
        )
    kept = {name: run.content[name] for name in ("model", "weights", "weights_origin") if name in run.content}
    return {**run.content, **now, **kept}


def check_initial_weights(run: Run, model: ModelConfig, *, part: str = "", allow_changes: bool = False) -> None:
    """Raises STGTError where weights of `run` would compute something else in `model` than in their own.

    Args:
      run: whose weights are taken.
      model: of the run that they are for.
      part: of the model that takes them, such as "vision"; by default all of it.
      allow_changes: also of the threshold of the graph and of the number of frames.
    """
    changes = _changes({"model": run.content.get("model", {})}, as_json({"model": model}), _FREE_ON_START)
    changes = {name: change for name, change in changes.items() if name.startswith(f"model.{part}")}
    allowed = {name for name in changes if _matches(name, _ALLOWED_ON_START)}
    refused = [change for name, change in changes.items() if name not in allowed or not allow_changes]
    if refused:
        mend = (
            "give the same" if changes.keys() - allowed else "give the same, or --allow-changes to train with another"
        )
        raise STGTError(f"the weights in '{run.folder}' are of another model: {'; '.join(refused)}; {mend}")


def _quoted(path: epath.Path) -> str:
    """The path as it is written on a command line."""
    return shlex.quote(str(path))


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], free: tuple[str, ...]) -> dict[str, str]:
    """What differs in the sections that `now` has, by name and in words, but for the fields that match `free`."""
    old, new = (dict(_flat(content)) for content in ({name: before.get(name) for name in now}, now))
    for section, default in (("model", ModelConfig()), ("train", TrainConfig())):
        if before.get(section):  # a run of an older version may lack fields that were added later
            old = dict(_flat(as_json({section: default}))) | old
    names = [name for name in {**new, **old} if old.get(name) != new.get(name) and not _matches(name, free)]
    return {name: f"{name} was {_shown(old.get(name))}, now {_shown(new.get(name))}" for name in names}


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _shown(value: Any) -> str:
    is_hash = isinstance(value, str) and len(value) == 64
    return value[:8] if is_hash else json.dumps(value)


def _from_json(cls: type, values: Any, file: epath.Path, section: str) -> Any:
    """Builds a dataclass from a section of config.json."""
    types = typing.get_type_hints(cls)
    if not isinstance(values, Mapping):
        raise STGTError(f"'{file}': \"{section}\" is not a group of options; restore the file")
    for name in values:
        if name not in types:
            raise STGTError(f"'{file}': {section}.{name} is not an option{did_you_mean(name, types)}")
    nested = {n: _from_json(types[n], v, file, n) for n, v in values.items() if dataclasses.is_dataclass(types[n])}
    try:
        return cls(**{**values, **nested})
    except STGTError as error:
        raise STGTError(f"'{file}': \"{section}\": {error}") from error
    except TypeError as error:
        raise STGTError(f"'{file}': \"{section}\" is not complete ({error}); restore the file") from error
