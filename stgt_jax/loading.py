"""Loads weights of any kind: this project's runs and models, other projects' files, and mixtures of them.

What is needed besides the weights, a vocabulary and how clips and texts are prepared, comes from a run of this project,
from the files beside the weights, or from the options. Weights of others are used with the original's preparation:
frames stretched to a square, T of them at equal distances, captions cleaned as LAVIS does.
"""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from data_pipeline.tokenizer import read_vocab
from stgt_jax.checks import check
from stgt_jax.config import ModelConfig
from stgt_jax.convert.assemble import Assembly, assemble
from stgt_jax.convert.export import Naming, export_weights
from stgt_jax.convert.options import Conversion
from stgt_jax.convert.own import own_source
from stgt_jax.convert.source import Source, open_source
from stgt_jax.convert.stored_tensor import StoredTensor, held
from stgt_jax.convert.tensor_files import is_weights, open_safetensors
from stgt_jax.errors import STGTError
from stgt_jax.exported import WEIGHTS_NAME, is_exported, write_model
from stgt_jax.hub import PREFIX, download
from stgt_jax.run_folder import PathLike, Preparation, Run, folder_path, read_run
from stgt_jax.train.checkpoint import is_own, load_params
from stgt_jax.train.weights import CONVERSION_NAME, OTHERS, weights_of_others


@dataclass(frozen=True)
class Converted:
    """A model made of files of weights, and what is needed to use it.

    Attributes:
      assembly: the parameters and where they come from.
      model: its config, with what the vocabulary tells.
      words: of its vocabulary, in the order of their ids.
      preparation: of clips and texts.
      weights_of_others: the files of other projects that are in it.
    """

    assembly: Assembly
    model: ModelConfig
    words: Sequence[str]
    preparation: Preparation
    weights_of_others: Sequence[str]


def local(path: PathLike) -> PathLike:
    """Returns `path`, or for one of the Hugging Face Hub, hf://..., the folder that it was downloaded to."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
    return download(text) if text.startswith(PREFIX) else path


def is_foreign(path: PathLike) -> bool:
    """Whether `path` is a file of weights, or a folder of them that is not of this project."""
    return isinstance(path, str | os.PathLike) and is_weights(path) and not is_own(path)


def convert(paths: Sequence[PathLike], options: Conversion) -> Converted:
    """Puts the weights in `paths` together to a model; later ones replace those of earlier ones.

    Args:
      paths: files and folders of weights, of this project or of others (`stgt_jax.convert.source`).
      options: what the files do not tell.

    Raises:
      STGTError: a file cannot be read, the weights do not make a model, or the vocabulary is missing or another one.
    """
    check(bool(paths), "name at least one file or folder of weights")
    paths = [local(path) for path in paths]
    runs = [read_run(path) for path in paths if is_own(path)]
    sources = [_own(path) if is_own(path) else open_source(os.fspath(path), options) for path in paths]
    assembly = assemble(sources, options=options)
    vocab_file = _vocab_file(sources, runs, options)
    words = read_vocab(vocab_file)
    qformer, image_size = assembly.config.qformer, assembly.config.vision.image_size
    if len(words) + 1 != qformer.vocab_size:
        raise STGTError(
            f"'{vocab_file}' has {len(words)} words, and the weights have rows for {qformer.vocab_size - 1} and [DEC];"
            " give the vocabulary that the weights were trained with (--vocab)"
        )
    check(
        options.max_text_length <= qformer.max_text_length,
        f"--max-text-length={options.max_text_length} is more than the {qformer.max_text_length} tokens that the model"
        " has positions for",
    )
    model = dataclasses.replace(
        assembly.config, qformer=dataclasses.replace(qformer, sep_token_id=words.index("[SEP]"))
    )
    preparation = Preparation(model.num_frames, image_size, options.max_text_length, "stretch", "lavis")
    if len(runs) == len(paths):
        preparation = runs[-1].preparation
        if options.image_size is not None:
            preparation = dataclasses.replace(preparation, resize=max(image_size, preparation.resize))
    others = [name for path in paths for name in (weights_of_others(path) if is_own(path) else [os.fspath(path)])]
    return Converted(assembly, model, words, preparation, list(dict.fromkeys(others)))


def write_converted(converted: Converted, folder: PathLike) -> dict[str, Any]:
    """Writes a converted model as `stgt export` writes one, and its report as conversion.json; returns the report.

    One layer is in memory at a time.
    """
    vocab = "".join(f"{word}\n" for word in converted.words).encode()
    content = {
        "model": converted.model,
        "preparation": converted.preparation,
        "vocab_sha256": hashlib.sha256(vocab).hexdigest(),
        "random_parameters": converted.assembly.random,
    }
    report = converted.assembly.report() | {OTHERS: converted.weights_of_others}
    write_model(
        folder, content, vocab, converted.assembly.shapes(), converted.assembly.parameters(),
        {CONVERSION_NAME: report},
    )  # fmt: skip
    return report


def export_as(checkpoint: PathLike, folder: PathLike, names: Naming) -> dict[str, Any]:
    """Writes a model of this project under other names; see `stgt_jax.convert.export.export_weights`."""
    run = read_run(checkpoint)
    vocab = run.vocab_file.read_bytes()
    return export_weights(Path(folder), names, run.model, _own_parameters(checkpoint, run), vocab)


def _own(path: PathLike) -> Source:
    run = read_run(path)
    return own_source(os.fspath(path), run.model, _own_parameters(path, run))


def _own_parameters(path: PathLike, run: Run) -> dict[str, StoredTensor]:
    """The parameters of an exported model, which are read when they are needed, or of a checkpoint, read at once."""
    if is_exported(path):
        return open_safetensors(Path(os.fspath(folder_path(path) / WEIGHTS_NAME)))
    flat = flatten_dict(jax.device_get(load_params(path, run.model)), sep="/")
    return {name: held(np.asarray(leaf)) for name, leaf in flat.items()}


def _vocab_file(sources: Sequence[Source], runs: Sequence[Run], options: Conversion) -> PathLike:
    if options.vocab:
        return options.vocab
    beside = [source.vocab for source in sources if source.vocab]
    if beside:
        return beside[-1]
    if runs:
        return runs[-1].vocab_file
    raise STGTError(
        "these weights come without a vocabulary; give the one they were trained with, for BLIP-2 and STGT the"
        " vocab.txt of bert-base-uncased, with --vocab FILE"
    )
