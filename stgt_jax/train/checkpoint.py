"""Checkpoints of a run, written by Orbax in the background.

    WORKDIR/checkpoints/STEP/params     all parameters, trainable and frozen: evaluation needs nothing else
                            /optimizer  step and optimizer state
                            /loader     position in the training data, of every process
                            /checksums  of all three, so that damage is noticed
           /damaged_checkpoints/STEP    was found damaged when the run was resumed

WORKDIR may be a folder in a bucket.
"""

import base64
import contextlib
import functools
import itertools
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.serialization
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh, SingleDeviceSharding
from orbax.checkpoint import checkpoint_managers

from stgt_jax.config import ModelConfig
from stgt_jax.errors import STGTError, StorageError
from stgt_jax.exported import WEIGHTS_NAME, is_exported, read_weights
from stgt_jax.models.stgt import STGT, param_shapes
from stgt_jax.run_folder import PathLike, existing_folder, folder_path, read_run
from stgt_jax.sharding import param_shardings
from stgt_jax.storage import cause_of, in_time
from stgt_jax.train.saved_arrays import (
    DamagedCheckpoint,
    cast_arrays,
    check_same_shapes,
    check_written,
    checksum,
    json_checksum,
    quiet_storage_library,
    read_arrays,
    read_json,
    restore_arrays,
    saved_shapes,
    spare_memory_of_storage_library,
    verify,
)
from stgt_jax.train.state import TrainState, abstract_params, merge_params, split_params

_log = logging.getLogger(__name__)
_PREEMPTED = "preempted"  # a note beside a checkpoint: it was saved because the run had to stop


class _Manager(ocp.CheckpointManager):
    """Orbax's, but for how processes agree on a step to stop at, and for damaged scores.

    JAX chooses the step after the highest one that a process has reported. A notice that arrives before a resumed run
    has reported any would choose step 1, which never comes. So steps count from `first_step`, that of the start.
    """

    first_step = 0

    def reached_preemption(self, step: int) -> bool:
        return super().reached_preemption(step - self.first_step)

    def _get_metrics(self, step: int) -> Any:
        try:
            return super()._get_metrics(step)
        except ValueError:
            _log.warning("warning: %s/%d: the scores of its validation are damaged; it counts as not validated",
                         self.directory, step)  # fmt: skip
            return None


class Checkpoints:
    """The checkpoints of one run: the last `keep_last` and the `keep_best` best, each a folder named by its step.

    The best have the highest `best_metric` of the validation.
    """

    def __init__(self, workdir: PathLike, keep_last: int = 3, keep_best: int = 1, best_metric: str = "t2v_r1") -> None:
        def score(metrics: Mapping[str, float]) -> float:
            return metrics.get(best_metric, -math.inf)

        policy = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(keep_last),
                checkpoint_managers.BestN(get_metric_fn=score, n=keep_best),
            ]
        )
        options = ocp.CheckpointManagerOptions(best_fn=score, preservation_policy=policy)
        self._folder = folder_path(workdir) / "checkpoints"
        # Named here, or Orbax warns of items that it cannot read.
        handlers = {"params": ocp.StandardCheckpointHandler(), "optimizer": ocp.StandardCheckpointHandler(),
                    "checksums": ocp.JsonCheckpointHandler(), "loader": ocp.JsonCheckpointHandler()}  # fmt: skip
        quiet_storage_library()
        spare_memory_of_storage_library()
        self._manager = _Manager(self._folder, options=options, item_handlers=handlers)
        self._manager.first_step = self._manager.latest_step() or 0
        self._unchecked: int | None = None  # the step of a checkpoint that was not yet read back
        self._failed = False  # whether a write has failed

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, or None where there is none."""
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """Step of the best checkpoint; the newest where none was validated."""
        return self._manager.best_step()

    @property
    def latest_is_of_preemption(self) -> bool:
        """Whether there is a checkpoint and the newest was saved because the run was asked to stop."""
        step = self._manager.latest_step()
        if step is None:
            return False
        try:
            notes = self._manager.metadata(step).custom_metadata
        except Exception:  # of a damaged checkpoint, which `restore` will name
            return False
        return bool((notes or {}).get(_PREEMPTED))

    def reached_preemption(self, step: int) -> bool:
        """Whether all processes of the run are to stop after `step`: one got SIGTERM, or its TPU is to be taken away.

        Each process must ask after every step, so that they agree. Without `jax.distributed` it is always False.
        """
        return self._manager.reached_preemption(step)

    def path(self, step: int) -> epath.Path:
        """Folder of the checkpoint of `step`."""
        return self._folder / str(step)

    def save(
        self,
        step: int,
        state: TrainState,
        loader_state: Any,
        metrics: Mapping[str, float] | None = None,
        *,
        preempted: bool = False,
    ) -> None:
        """Begins to write a checkpoint; `state` may be overwritten as soon as this returns.

        It first waits until the checkpoint before this one is written, and then until storage has places for the files
        of this one, `STORAGE_LIMIT` seconds at most for each.

        Args:
          step: its name; one that exists is not written again.
          state: of the training.
          loader_state: of this process' training data: bytes or anything JSON can hold.
          metrics: of a validation of this state, to choose the best checkpoint by.
          preempted: it is saved because the run was asked to stop, and is to be resumed when it is started again.

        Raises:
          StorageError: this checkpoint or the one before cannot be written, or not be read back.
        """
        if step in self._manager.all_steps():
            return
        self.wait()
        arrays = {
            "params": merge_params(state.params, state.frozen),
            "optimizer": {"step": state.step, "opt_state": flax.serialization.to_state_dict(state.opt_state)},
        }
        loader = {"processes": _from_all_processes(_pack(loader_state))}
        checksums = {name: int(checksum(tree)) for name, tree in arrays.items()} | {"loader": json_checksum(loader)}
        items = ocp.args.Composite(
            **{name: ocp.args.StandardSave(tree) for name, tree in arrays.items()},
            checksums=ocp.args.JsonSave(checksums),
            loader=ocp.args.JsonSave(loader),
        )
        notes = {_PREEMPTED: True} if preempted else None
        save = functools.partial(
            self._manager.save, step, args=items, metrics=dict(metrics or {}), custom_metadata=notes
        )
        with self._failure_named(step):
            in_time(save, str(self.path(step)))
        self._unchecked = step

    def restore(self, template: TrainState, config: ModelConfig) -> tuple[TrainState, Any]:
        """Reads the newest whole checkpoint. Damaged ones after it are moved to `damaged_checkpoints`, with a warning.

        Args:
          template: of `abstract_state`; the state returned has its shapes, dtypes and layout.
          config: of the model, which says what is frozen.

        Returns:
          The state and this process' loader state.

        Raises:
          STGTError: a checkpoint of another model or training, one of another number of processes that were not all at
            the same position in the data, or no whole checkpoint.
        """
        damaged: dict[int, DamagedCheckpoint] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._restore(self.path(step), template, config)
            except DamagedCheckpoint as error:
                damaged[step] = error
                continue
            self._set_aside(damaged, step)
            return restored
        raise STGTError(
            f"{self._folder}: holds no whole checkpoint; start the run again in another --workdir"
            f" ({'; '.join(map(str, damaged.values()))})"
        )

    def _restore(self, folder: epath.Path, template: TrainState, config: ModelConfig) -> tuple[TrainState, Any]:
        opt_template = {"step": template.step, "opt_state": flax.serialization.to_state_dict(template.opt_state)}
        templates = {"params": merge_params(template.params, template.frozen), "optimizer": opt_template}

        def read() -> tuple[dict[str, Any], Any, list[Any]]:
            checksums, loader = read_json(folder / "checksums"), read_json(folder / "loader")
            # Checkpoints of earlier versions have no checksum of it.
            if "loader" in checksums and checksums["loader"] != json_checksum(loader):
                raise DamagedCheckpoint(f"{folder / 'loader'}: is damaged: it is not what was saved")
            arrays = {name: read_arrays(folder / name, template) for name, template in templates.items()}
            return arrays, checksums, loader["processes"]

        arrays, checksums, loaders = _in_all_processes_or_none(read, folder)
        for name in templates:
            verify(folder / name, arrays[name], checksums)
            arrays[name] = cast_arrays(arrays[name], templates[name])
        if len(loaders) != jax.process_count():
            if any(loader != loaders[0] for loader in loaders):
                raise STGTError(
                    f"{folder}: was written by {len(loaders)} processes, each at its own position in the data, and"
                    f" cannot be resumed by {jax.process_count()}; run as many, or start a new run with"
                    f" --weights.initial {folder}"
                )
            loaders = loaders[:1] * jax.process_count()
        trainable, frozen = split_params(arrays["params"], config)
        opt_state = flax.serialization.from_state_dict(template.opt_state, arrays["optimizer"]["opt_state"])
        state = TrainState(step=arrays["optimizer"]["step"], params=trainable, frozen=frozen, opt_state=opt_state)
        return state, _unpack(loaders[jax.process_index()])

    def _set_aside(self, damaged: Mapping[int, DamagedCheckpoint], whole: int) -> None:
        """Moves damaged checkpoints out of the way of the run, which will reach their steps again."""
        if not damaged:
            return
        if jax.process_index() == 0:
            for step, error in damaged.items():
                place = _free_name(self._folder.parent / "damaged_checkpoints" / str(step))
                place.parent.mkdir(exist_ok=True)
                self.path(step).rename(place)
                _log.warning(
                    "warning: %s; it is now %s, and the run continues from step %d", _reason(error), place, whole
                )
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints set aside")
        self._manager.reload()
        self._manager.first_step = whole

    def wait(self) -> None:
        """Returns when every checkpoint is written.

        Raises:
          StorageError: one cannot be written within `STORAGE_LIMIT`, or cannot be read back.
        """
        step, self._unchecked = self._unchecked, None
        with self._failure_named(step):
            in_time(self._manager.wait_until_finished, f"{self._folder}/{step}")
        if step is None or jax.process_index() != 0:
            return
        try:
            for item in ("params", "optimizer"):
                check_written(self.path(step) / item)
        except StorageError:
            self._failed = True
            raise
        except STGTError as error:
            self._failed = True
            raise StorageError(
                f"the checkpoint of step {step} was written, but cannot be read back; the run ends before more is lost:"
                f" {error}"
            ) from error

    def check(self) -> None:
        """Raises StorageError where a checkpoint that is written in the background has failed."""
        with self._failure_named(self._unchecked):
            self._manager.check_for_errors()

    def close(self) -> None:
        """Waits for what is being written and ends the threads, unless a write has failed: they might never end."""
        if not self._failed:
            self.wait()
            self._manager.close()

    @contextlib.contextmanager
    def _failure_named(self, step: int | None) -> Iterator[None]:
        """Turns whatever the storage library makes of a failed write into StorageError."""
        if self._failed:
            raise StorageError(f"{self._folder}: an earlier checkpoint could not be written")
        try:
            yield
        except StorageError:
            self._failed = True
            raise
        except Exception as error:
            self._failed = True
            whole = [s for s in _steps(self._folder) if s != step]
            last = f"the last whole checkpoint is {self.path(max(whole))}" if whole else "no checkpoint is there"
            raise StorageError(
                f"{self.path(step) if step is not None else self._folder}: the checkpoint cannot be written"
                f" ({cause_of(error)}); {last}; mend that and continue with --resume"
            ) from None


def load_params(path: PathLike, config: ModelConfig, mesh: Mesh | None = None) -> Any:
    """Reads the parameters of a checkpoint.

    Args:
      path: a run's folder, whose newest checkpoint is read, the folder of one checkpoint, or that of an exported model.
      config: of the model the parameters are for.
      mesh: to lay them out on; by default they go to one device.

    Returns:
      The whole parameter tree. Raises STGTError where there is no checkpoint, it is of another model size or damaged.
    """
    model = STGT(config)
    if mesh is not None:
        template = abstract_params(model, mesh)
    else:
        device = SingleDeviceSharding(jax.local_devices()[0])
        shapes = param_shapes(model)
        template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)
    if is_exported(path):
        saved = read_weights(path)
        check_same_shapes(folder_path(path) / WEIGHTS_NAME, saved, template)
        return jax.tree.map(lambda x, y: jax.device_put(x.astype(y.dtype), y.sharding), saved, template)
    return restore_arrays(checkpoint_folder(path) / "params", template)


def load_saved_params(path: PathLike, mesh: Mesh) -> Any:
    """Reads the parameters of a checkpoint of any model, in the shapes and dtypes that were saved, laid out on `mesh`.

    Args:
      path: as for `load_params`.
      mesh: of `make_mesh`.

    Raises:
      STGTError: there is no checkpoint, or it is damaged.
    """
    if is_exported(path):
        saved = read_weights(path)
        return jax.device_put(saved, param_shardings(saved, mesh))
    folder = checkpoint_folder(path) / "params"
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved_shapes(folder))
    template = jax.tree.map(
        lambda x, layout: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), shapes, param_shardings(shapes, mesh)
    )
    return restore_arrays(folder, template)


def checkpoint_folder(path: PathLike) -> epath.Path:
    """Returns the folder that holds the weights: `path` itself, or the newest checkpoint of the run at `path`.

    Raises:
      STGTError: there is none.
    """
    folder = existing_folder(path)
    if (folder / "params").exists() or is_exported(folder):
        return folder
    if not has_checkpoint(folder):
        raise STGTError(f"{path}: has no checkpoints; give the folder of a run that wrote one, or a checkpoints/STEP")
    return folder / "checkpoints" / str(max(ocp.utils.checkpoint_steps(folder / "checkpoints")))


def best_checkpoint(workdir: PathLike) -> epath.Path:
    """Returns the folder of a run's best checkpoint by its own `train.best_metric`; the newest if none was validated.

    Raises:
      STGTError: the run has no checkpoint.
    """
    newest = checkpoint_folder(workdir)
    metric = read_run(workdir).content.get("train", {}).get("best_metric", "t2v_r1")
    with contextlib.closing(Checkpoints(workdir, best_metric=metric)) as checkpoints:
        step = checkpoints.best_step
    return newest if step is None else newest.parent / str(step)


def is_own(path: PathLike) -> bool:
    """Whether `path` is the folder of a run, a checkpoint or a model of this project."""
    folder = folder_path(path)
    return folder.is_dir() and (is_exported(folder) or has_checkpoint(folder) or (folder / "params").exists())


def has_checkpoint(workdir: PathLike) -> bool:
    """Whether a run's folder holds a checkpoint."""
    folder = folder_path(workdir) / "checkpoints"
    return folder.exists() and bool(ocp.utils.checkpoint_steps(folder))


def _steps(folder: epath.Path) -> list[int]:
    try:
        return list(ocp.utils.checkpoint_steps(folder))
    except OSError:
        return []


def _in_all_processes_or_none(read: Callable[[], Any], folder: epath.Path) -> Any:
    """Returns what `read` does. Raises DamagedCheckpoint in all processes where it does so in one.

    Each process reads other parts of the arrays. One that gave up alone would keep the others waiting.
    """
    result, error = None, None
    try:
        result = read()
    except DamagedCheckpoint as raised:
        error = raised
    failed = error is not None
    if jax.process_count() > 1:
        failed = bool(np.any(multihost_utils.process_allgather(np.bool_(failed))))
    if failed:
        raise error or DamagedCheckpoint(f"{folder}: cannot be read by another process")
    return result


def _reason(error: DamagedCheckpoint) -> str:
    """What is damaged and why, without what to do."""
    return str(error).partition("; give another")[0]


def _free_name(path: epath.Path) -> epath.Path:
    """Returns `path`, or with the first number behind it that is not taken."""
    numbered = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
    return next(place for place in itertools.chain([path], numbered) if not place.exists())


def _pack(loader_state: Any) -> Any:
    if isinstance(loader_state, bytes):
        return {"base64": base64.b64encode(loader_state).decode()}
    return {"json": loader_state}


def _unpack(packed: Mapping[str, Any]) -> Any:
    return base64.b64decode(packed["base64"]) if "base64" in packed else packed["json"]


def _from_all_processes(value: Any) -> list[Any]:
    """The JSON values of all processes, in their order."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    width = int(np.max(multihost_utils.process_allgather(np.int32(len(text)))))
    padded = np.pad(text, (0, width - len(text)), constant_values=ord(" "))
    return [json.loads(row.tobytes()) for row in np.asarray(multihost_utils.process_allgather(padded))]
