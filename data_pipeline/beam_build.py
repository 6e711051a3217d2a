"""Builds shards on Apache Beam: each worker takes whole shards, and writes them to the folder that all share."""

import contextlib
import dataclasses
import io
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath

from data_pipeline.build_plan import BuildPlan, ShardPlan
from data_pipeline.errors import DataError
from data_pipeline.finish_split import PreviousBuild
from data_pipeline.shard_build import NOTHING_KNOWN, build_shard, videos_to_read
from data_pipeline.shards import VOCAB_NAME
from data_pipeline.storage import written_locally
from data_pipeline.tokenizer import load_tokenizer
from data_pipeline.video_reader import VideoReader
from stgt_jax.checks import in_bucket


@dataclasses.dataclass(frozen=True)
class _Work:
    """What the workers of all shards share. The plan of a shard is in a file: 10 million videos fit in no message."""

    folder: Path | epath.Path
    reader: VideoReader
    previous: PreviousBuild | None

    def build(self, number: int) -> None:
        """Builds one shard, in a worker."""
        plan = ShardPlan.from_json(_plan_path(self.folder, number).read_text())
        tokenizer = load_tokenizer(self.folder / VOCAB_NAME)
        known = self.previous.known(number) if self.previous else NOTHING_KNOWN
        frames = map(self.reader.read, videos_to_read(plan, tokenizer, known))
        build_shard(plan, self.folder, tokenizer, frames, known)


def build_shards_on_beam(
    plan: BuildPlan,
    todo: Sequence[int],
    folder: Path | epath.Path,
    reader: VideoReader,
    previous: PreviousBuild | None,
    runner: str,
    options: str,
) -> None:
    """Builds shards by a Beam pipeline, and waits for its end.

    Args:
      plan: of the build.
      todo: numbers of the shards.
      folder: that all workers can write to; it holds the vocabulary.
      reader: of the videos, which all workers can read.
      previous: the build whose records are kept, if any.
      runner: such as "DirectRunner" or "DataflowRunner".
      options: of the pipeline, as on a command line.

    Raises:
      DataError: Beam is not installed, does not take the options, or a shard could not be built.
    """
    if runner.lower().startswith("dataflow") and not (in_bucket(folder) and in_bucket(reader.folder)):
        raise DataError(
            "--beam-runner: Dataflow's machines need --out and --videos in a bucket, such as gs://BUCKET/NAME"
        )
    beam, pipeline_options = _import_beam(), _read_options(options)
    for number in todo:
        with written_locally(_plan_path(folder, number)) as path:
            path.write_text(plan.shard(number).to_json(), encoding="utf-8")
    build = _Work(folder, reader, previous).build
    try:
        with beam.Pipeline(runner, pipeline_options) as pipeline:
            _ = pipeline | beam.Create(list(todo)) | beam.Reshuffle() | "build shard" >> beam.Map(build)
    except Exception as error:  # Beam wraps what a worker raises
        raise DataError(f"the Beam pipeline failed: {_last_line(str(error))}") from error
    for number in todo:
        _plan_path(folder, number).unlink()


def _import_beam() -> Any:
    logging.disable(logging.WARNING)  # it warns of parts that are not installed and not needed
    try:
        import apache_beam
    except ImportError as error:
        raise DataError("--beam-runner needs Apache Beam: pip install 'stgt-jax[beam]'") from error
    finally:
        logging.disable(logging.NOTSET)
    return apache_beam


def _read_options(options: str) -> Any:
    from apache_beam.options.pipeline_options import PipelineOptions

    usage = io.StringIO()
    try:
        with contextlib.redirect_stderr(usage):
            read = PipelineOptions(shlex.split(options))
            unknown = [word for word in shlex.split(options) if word.startswith("--") and not _is_known(read, word)]
    except (SystemExit, ValueError) as error:  # argparse exits, after it has printed how to use it
        raise DataError(f"--beam-options: {_last_line(usage.getvalue() or str(error))}") from error
    if unknown:
        raise DataError(f"--beam-options: Apache Beam has no option {unknown[0].split('=')[0]}")
    return read


def _is_known(options: Any, word: str) -> bool:
    return word.split("=")[0].removeprefix("--").removeprefix("no_") in {*options.get_all_options(), *vars(options)}


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].rpartition("error: ")[2][:300] if lines else "no message"


def _plan_path(folder: Path | epath.Path, number: int) -> epath.Path:
    return epath.Path(folder) / f"plan-{number:05d}.json"
