"""Checkpoints of a run, written by Orbax in the background.

    WORKDIR/checkpoints/STEP/params     all parameters, trainable and frozen: evaluation needs nothing else
                            /optimizer  step and optimizer state
                            /loader     position in the training data, of every process
                            /checksums  of params and optimizer, so that damage is noticed

WORKDIR may be a folder in a bucket.
"""

import base64
import contextlib
import json
import math
from collections.abc import Mapping
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils
from jax.sharding import Mesh, SingleDeviceSharding
from orbax.checkpoint import checkpoint_managers

from stgt_jax.config import ModelConfig
from stgt_jax.errors import STGTError
from stgt_jax.exported import WEIGHTS_NAME, is_exported, read_weights
from stgt_jax.models.stgt import STGT, param_shapes
from stgt_jax.run_folder import CONFIG_NAME, PathLike, existing_folder, folder_path, read_run
from stgt_jax.sharding import param_shardings
from stgt_jax.train.state import TrainState, abstract_params, merge_params, split_params

_PREEMPTED = "preempted"  # a note beside a checkpoint: it was saved because the run had to stop


class _Manager(ocp.CheckpointManager):
    """Counts steps from the start of this process, not of the run, when processes agree on a step to stop at.

    JAX chooses the step after the highest one that a process has reported. A notice that arrives before a resumed run
    has reported any would choose step 1, which never comes.
    """

    first_step = 0

    def reached_preemption(self, step: int) -> bool:
        return super().reached_preemption(step - self.first_step)


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
        self._manager = _Manager(self._folder, options=options, item_handlers=handlers)
        self._manager.first_step = self._manager.latest_step() or 0
        self._unchecked: int | None = None  # the step of a checkpoint that was not yet read back

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
        return step is not None and bool((self._manager.metadata(step).custom_metadata or {}).get(_PREEMPTED))

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

        Args:
          step: its name; one that exists is not written again.
          state: of the training.
          loader_state: of this process' training data: bytes or anything JSON can hold.
          metrics: of a validation of this state, to choose the best checkpoint by.
          preempted: it is saved because the run was asked to stop, and is to be resumed when it is started again.

        Raises:
          STGTError: the checkpoint before this one cannot be read back.
        """
        if step in self._manager.all_steps():
            return
        self.wait()
        params = merge_params(state.params, state.frozen)
        optimizer = {"step": state.step, "opt_state": flax.serialization.to_state_dict(state.opt_state)}
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(params),
            optimizer=ocp.args.StandardSave(optimizer),
            checksums=ocp.args.JsonSave({"params": int(_checksum(params)), "optimizer": int(_checksum(optimizer))}),
            loader=ocp.args.JsonSave({"processes": _from_all_processes(_pack(loader_state))}),
        )
        notes = {_PREEMPTED: True} if preempted else None
        self._manager.save(step, args=items, metrics=dict(metrics or {}), custom_metadata=notes)
        self._unchecked = step

    def restore(self, template: TrainState, config: ModelConfig) -> tuple[TrainState, Any]:
        """Reads the newest checkpoint.

        Args:
          template: of `abstract_state`; the state returned has its shapes, dtypes and layout.
          config: of the model, which says what is frozen.

        Returns:
          The state and this process' loader state. Raises STGTError for a checkpoint of another model or training, for
          a damaged one, and for one of another number of processes that were not all at the same position in the data.
        """
        folder = self.path(self._manager.latest_step())
        params = _restore(folder / "params", merge_params(template.params, template.frozen))
        template_opt = flax.serialization.to_state_dict(template.opt_state)
        optimizer = _restore(folder / "optimizer", {"step": template.step, "opt_state": template_opt})
        loaders = _restore_json(folder / "loader")["processes"]
        if len(loaders) != jax.process_count():
            if any(loader != loaders[0] for loader in loaders):
                raise STGTError(
                    f"{folder}: was written by {len(loaders)} processes, each at its own position in the data, and"
                    f" cannot be resumed by {jax.process_count()}; run as many, or start a new run with"
                    f" --weights.initial {folder}"
                )
            loaders = loaders[:1] * jax.process_count()
        trainable, frozen = split_params(params, config)
        opt_state = flax.serialization.from_state_dict(template.opt_state, optimizer["opt_state"])
        state = TrainState(step=optimizer["step"], params=trainable, frozen=frozen, opt_state=opt_state)
        return state, _unpack(loaders[jax.process_index()])

    def wait(self) -> None:
        """Returns when every checkpoint is written; raises STGTError where one cannot be found again."""
        self._manager.wait_until_finished()
        step, self._unchecked = self._unchecked, None
        if step is None or jax.process_index() != 0:
            return
        try:
            for item in ("params", "optimizer"):
                _saved_shapes(self.path(step) / item)
        except STGTError as error:
            raise STGTError(
                f"the checkpoint of step {step} was written, but cannot be read back; the run ends before more is lost:"
                f" {error}"
            ) from error

    def close(self) -> None:
        """Waits for what is being written and ends the threads."""
        self._manager.close()


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
        _check_same_shapes(folder_path(path) / WEIGHTS_NAME, saved, template)
        return jax.tree.map(lambda x, y: jax.device_put(x.astype(y.dtype), y.sharding), saved, template)
    return _restore(checkpoint_folder(path) / "params", template)


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
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), _saved_shapes(folder))
    template = jax.tree.map(
        lambda x, layout: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), shapes, param_shardings(shapes, mesh)
    )
    return _read(folder, template)


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


def _restore(folder: epath.Path, template: Any) -> Any:
    """Reads nested dicts of arrays into the shapes, dtypes and layout of `template`.

    They are read in the dtypes that were saved, as their checksum is of those numbers: a frozen matrix in bfloat16 may
    train in this run, or the other way round.
    """
    saved = _saved_shapes(folder)
    _check_same_shapes(folder, saved, template)
    as_saved = jax.tree.map(lambda x, y: jax.ShapeDtypeStruct(x.shape, y.dtype, sharding=x.sharding), template, saved)
    return jax.tree.map(lambda x, y: x if x.dtype == y.dtype else x.astype(y.dtype), _read(folder, as_saved), template)


def _saved_shapes(folder: epath.Path) -> Any:
    try:
        return ocp.StandardCheckpointHandler().metadata(folder).tree
    except Exception as error:  # whatever the storage library makes of a damaged file
        raise _damaged(folder, error) from error


def _read(folder: epath.Path, template: Any) -> Any:
    """Reads nested dicts of arrays and checks their checksum; `template` has the shapes and dtypes that were saved."""
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            restored = checkpointer.restore(folder, template)
    except Exception as error:
        raise _damaged(folder, error) from error
    if int(_checksum(restored)) != _restore_json(folder.parent / "checksums")[folder.name]:
        raise _damaged(folder, ValueError("its numbers are not those that were saved"))
    return restored


def _restore_json(folder: epath.Path) -> Any:
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
            return checkpointer.restore(folder)
    except Exception as error:
        raise _damaged(folder, error) from error


def _damaged(folder: epath.Path, error: Exception) -> STGTError:
    reason = next(iter(str(error).splitlines()), "")[:200]
    return STGTError(
        f"{folder}: cannot be read, it is incomplete or damaged ({type(error).__name__}: {reason}); remove"
        f" {folder.parent} to continue from the checkpoint before, or give another"
    )


@jax.jit
def _checksum(tree: Any) -> jax.Array:
    """A uint32 that any one damaged number changes, the same in every layout; leaves have dtypes of 4 or 2 bytes.

    It sums the bits of the numbers times odd weights, which differ by position: sums of integers have no rounding, and
    an odd weight loses no bit modulo 2**32.
    """
    total = jnp.uint32(0)
    for index, leaf in enumerate(jax.tree.leaves(tree)):
        position = jnp.zeros(leaf.shape, jnp.uint32)
        for axis, size in enumerate(leaf.shape):
            position = position * size + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")).astype(jnp.uint32)
        total += (2 * index + 1) * jnp.sum(bits * (2 * position + 1), dtype=jnp.uint32)
    return total


def _check_same_shapes(folder: epath.Path, saved: Any, template: Any) -> None:
    """Raises STGTError naming the first array whose shape in the checkpoint is not that of the template."""
    there = {"/".join(path): tuple(leaf.shape) for path, leaf in flatten_dict(saved).items()}
    here = {"/".join(path): tuple(leaf.shape) for path, leaf in flatten_dict(template).items()}
    different = next((name for name in [*here, *there] if here.get(name) != there.get(name)), None)
    if different is None:
        return
    if folder.name == "optimizer":
        mend = f"it was trained with other frozen parts or options; use --weights.initial {folder.parent}"
    else:
        place = folder.parent if folder.name == WEIGHTS_NAME else folder.parents[2]
        mend = f"these weights are of another model size; use the config in {place / CONFIG_NAME}"
    shapes = [f"shape {tree[different]}" if different in tree else "missing" for tree in (there, here)]
    raise STGTError(f"{folder.parent}: {different} is {shapes[0]} there and {shapes[1]} in this model: {mend}")


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
