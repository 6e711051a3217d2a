"""The training loop: one stage, from random or given weights to its last checkpoint.

Steps count from 1, so that step n, line n of metrics.jsonl and checkpoint n all belong to the n-th update.
"""

import contextlib
import errno
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from tqdm import tqdm

from stgt_jax.config import ModelConfig, TrainConfig
from stgt_jax.distributed import ending_with_its_peers
from stgt_jax.errors import STGTError, StorageError
from stgt_jax.models.stgt import STGT
from stgt_jax.run_folder import PathLike, Provenance, check_resume, folder_path, read_run, write_run
from stgt_jax.sharding import shard_batch
from stgt_jax.train.checkpoint import Checkpoints
from stgt_jax.train.log import RunLog
from stgt_jax.train.loss_watch import LossWatch
from stgt_jax.train.memory import HeldBatches, Shapes, fitting_train_step
from stgt_jax.train.out_of_memory import OF_STATE, OF_STEP, out_of_memory_named
from stgt_jax.train.performance import StepTimer
from stgt_jax.train.profile import StepTrace
from stgt_jax.train.run_lock import locked
from stgt_jax.train.state import TrainState, abstract_state, init_state, mesh_for
from stgt_jax.train.stop_requests import stop_requests
from stgt_jax.train.supervisor import Evaluate, Supervisor

_OF_STORAGE = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.ENOENT, errno.ESTALE, errno.EACCES)
InitialParams = Callable[[Mesh], Any]

_log = logging.getLogger(__name__)


class TrainIterator(Protocol):
    """The training data of this process, without end."""

    @property
    def num_held_batches(self) -> int:
        """The batches in memory at a time, those of worker processes included."""

    @property
    def fewest_held_batches(self) -> int:
        """The same without worker processes, with `data.num_workers` 0."""

    def __next__(self) -> Mapping[str, np.ndarray]: ...

    def batch_shapes(self) -> Shapes:
        """Returns the shape and the dtype of every array of a batch."""

    def get_state(self) -> Any:
        """Returns the position in the data."""

    def origin(self) -> Callable[[], Mapping[str, Any]]:
        """Returns a function that tells, in values for JSON, what the last global batch was made of."""

    def set_state(self, state: Any) -> None:
        """Continues from a position that `get_state` returned."""


def train(
    model_config: ModelConfig,
    config: TrainConfig,
    train_iterator: TrainIterator,
    workdir: PathLike,
    *,
    resume: bool = False,
    allow_changes: bool = False,
    evaluate: Evaluate | None = None,
    initial_params: InitialParams | None = None,
    provenance: Provenance | None = None,
    devices: Sequence[jax.Device] | None = None,
    profile_steps: tuple[int, int] | None = None,
) -> dict[str, float]:
    """Trains one stage.

    Args:
      model_config: of the model.
      config: of the training.
      train_iterator: gives this process' part of each batch: video [B, T, H, W, 3] uint8, input_ids [B, S] int32,
        attention_mask [B, S] int32. Its state (bytes or JSON) is saved with every checkpoint.
      workdir: gets checkpoints, metrics.jsonl, performance.jsonl, TensorBoard logs and the files of
        `stgt_jax.run_folder`; one folder for all processes of a run.
      resume: continue from the newest checkpoint in `workdir`. The steps that follow are to the bit those of a run that
        was not interrupted; another mesh or number of processes changes rounding only. A run that was preempted is
        resumed without being asked.
      allow_changes: resume although options of the training or the data are not those of the run. If
        `train_iterator` raises STGTError for the saved position, the data start from the beginning.
      evaluate: validation, from the whole parameter tree to metrics; the best checkpoint has the highest
        `config.best_metric`.
      initial_params: makes the parameter tree to start from, laid out on the mesh; by default random parameters.
      provenance: what data, vocabulary and first weights came from, to be kept in `workdir` and compared on resume.
      devices: to train on; by default all.
      profile_steps: first and last step of which a trace goes to TensorBoard's folder.

    Returns:
      The metrics of the last step and, named "validation/...", of the last validation.

    Raises:
      STGTError: a workdir that is in use, was started with other options, or cannot be written to; weights that do not
        fit the model; data that ends; a loss that is not finite; steps to trace that the run does not have;
        a training that devices or host have not enough memory for.
      StorageError: the workdir cannot be written to any more.
      Preempted: the run was asked to stop, by SIGTERM or SIGHUP to any process or a TPU's maintenance event: after the
        running step and the time to write its checkpoint.
      KeyboardInterrupt: likewise, by SIGINT. The second SIGINT ends the process at once.

    A process of several that loses another one ends: see `ending_with_its_peers`.
    """
    model, workdir = STGT(model_config), folder_path(workdir)
    trace = StepTrace(workdir, profile_steps, config.num_steps)
    mesh = mesh_for(model, config, devices)
    provenance = provenance or Provenance()
    content: Mapping[str, Any] = {"model": model_config, "train": config, **provenance.sections}
    with (
        ending_with_its_peers(),
        _storage_named(workdir),
        locked(workdir),
        stop_requests() as requests,
        StepTimer() as timer,
        contextlib.closing(Checkpoints(workdir, config.keep_last, config.keep_best, config.best_metric)) as checkpoints,
    ):
        content = _checked_content(workdir, content, checkpoints, resume, allow_changes)
        held = HeldBatches(
            train_iterator.batch_shapes(), train_iterator.num_held_batches, train_iterator.fewest_held_batches
        )
        train_step = fitting_train_step(model, config, mesh, held)
        with out_of_memory_named("making the first state", OF_STATE):
            state, data_state = _first_state(model, config, mesh, checkpoints, initial_params)
        if data_state is not None:
            _restore_position(train_iterator, data_state, allow_changes)
        start = int(state.step)
        if jax.process_index() == 0:
            write_run(workdir, content, provenance.vocab)
        with (
            contextlib.closing(LossWatch(workdir, start, config)) as watch,
            RunLog(workdir, start, config, timer, resume=resume or start > 0) as log,
            trace,
        ):
            supervisor = Supervisor(
                config, checkpoints, log, timer, trace, watch,
                start=start, data_state=train_iterator.get_state, evaluate=evaluate, requests=requests,
            )  # fmt: skip
            for step in supervisor.steps:
                with supervisor.step(step):
                    with supervisor.waiting_for_input():
                        batch = shard_batch(_next_batch(train_iterator, step), mesh)
                    with out_of_memory_named("a training step", OF_STEP):
                        state, metrics = train_step(state, batch)
                supervisor.after_step(step, state, metrics, train_iterator.origin())
        checkpoints.wait()
        return log.final


@contextlib.contextmanager
def _storage_named(workdir: epath.Path) -> Iterator[None]:
    """Turns an error of the system in writing the logs into StorageError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _OF_STORAGE:
            raise
        raise StorageError(
            f"'{workdir}' cannot be written to ({error.strerror}); mend that and continue with --resume"
        ) from error


def _checked_content(
    workdir: epath.Path, content: Mapping[str, Any], checkpoints: Checkpoints, resume: bool, allow_changes: bool
) -> Mapping[str, Any]:
    """Returns what config.json is to hold; raises STGTError where the run in the folder is not this one."""
    newest = checkpoints.latest_step
    if newest is None:
        if resume and jax.process_index() == 0:
            tqdm.write(f"{workdir}: no checkpoint to resume from; starting from the beginning", file=sys.stderr)
        return content
    if not resume:
        if not checkpoints.latest_is_of_preemption:
            raise STGTError(
                f"{workdir}: has checkpoints (the newest of step {newest}); use --resume or another workdir"
            )
        if jax.process_index() == 0:
            _log.info("%s: was asked to stop after step %d; continuing from there", workdir, newest)
    return check_resume(read_run(workdir), content, newest, allow_changes=allow_changes)


def _first_state(
    model: STGT, config: TrainConfig, mesh: Mesh, checkpoints: Checkpoints, initial_params: InitialParams | None
) -> tuple[TrainState, Any]:
    """Returns the newest checkpoint's state and position in the data, or the state of step 0 and None."""
    if checkpoints.latest_step is None:
        return init_state(model, config, mesh, initial_params(mesh) if initial_params else None), None
    return checkpoints.restore(abstract_state(model, config, mesh), model.config)


def _restore_position(train_iterator: TrainIterator, data_state: Any, allow_changes: bool) -> None:
    try:
        train_iterator.set_state(data_state)
    except STGTError as error:
        if not allow_changes:
            raise
        _log.warning("warning: the training data start from the beginning: %s", error)


def _next_batch(train_iterator: TrainIterator, step: int) -> Mapping[str, np.ndarray]:
    try:
        return next(train_iterator)
    except StopIteration:
        raise STGTError(f"the training data ended before step {step}; it must repeat without end") from None
