"""Checkpoints of a run, written by Orbax in the background, and what else of a run its folder must tell.

    WORKDIR/config.json             the model's config and whatever else the run was started with
    WORKDIR/checkpoints/STEP/params     the whole parameter tree, trainable and frozen: all that evaluation needs
                            /optimizer  step and optimizer state
                            /loader     position in the training data, of every process
                            /checksums  of params and optimizer: storage that decays does not go unnoticed

Paths go through etils.epath, so WORKDIR may be a bucket.
"""

import base64
import dataclasses
import json
import math
import os
import typing
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

from stgt_jax.checks import did_you_mean
from stgt_jax.config import ModelConfig
from stgt_jax.errors import STGTError
from stgt_jax.exported import WEIGHTS_NAME, is_exported, read_weights
from stgt_jax.models.stgt import STGT
from stgt_jax.sharding import param_shardings
from stgt_jax.train.state import TrainState, abstract_params, merge_params, param_shapes, split_params

_PREEMPTED = "preempted"  # among what Orbax keeps beside a checkpoint: whether it was saved because the run must stop
BEST_METRIC = "t2v_r1"  # of the validation: the checkpoints where it is highest are kept
PathLike = str | os.PathLike[str]


class _Manager(ocp.CheckpointManager):
    """Counts the steps of this start of the run alone.

    Of several processes JAX takes the step after the highest that any has named as the one to stop at. Were the first
    one named that of a resumed run, a notice that came before would be for step 1, which never follows.
    """

    first_step = 0

    def reached_preemption(self, step: int) -> bool:
        return super().reached_preemption(step - self.first_step)


class Checkpoints:
    """The checkpoints of one run: the last `keep_last` and the `keep_best` best, each a folder named by its step."""

    def __init__(self, workdir: PathLike, keep_last: int = 3, keep_best: int = 1) -> None:
        policy = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(keep_last),
                checkpoint_managers.BestN(get_metric_fn=_score, n=keep_best),
            ]
        )
        options = ocp.CheckpointManagerOptions(best_fn=_score, preservation_policy=policy)
        self._folder = _absolute(workdir) / "checkpoints"
        self._manager = _Manager(self._folder, options=options)
        self._manager.first_step = self._manager.latest_step() or 0

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, or None where there is none."""
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """Step of the checkpoint with the highest `BEST_METRIC`; the newest where none was validated."""
        return self._manager.best_step()

    @property
    def latest_is_of_preemption(self) -> bool:
        """Whether there is a checkpoint and the newest was saved because the run was asked to stop."""
        step = self._manager.latest_step()
        return step is not None and bool((self._manager.metadata(step).custom_metadata or {}).get(_PREEMPTED))

    def reached_preemption(self, step: int) -> bool:
        """Whether the run's processes are to stop after `step`, on which they agree.

        For that each must ask after every step. One of them was sent SIGTERM, or its TPU is to be taken away. A
        process alone, without `jax.distributed`, is never told.
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
        """Begins to write a checkpoint; `state` may be consumed as soon as this returns.

        Args:
          step: its name; one that exists is not written again.
          state: of the training.
          loader_state: of this process' training data: bytes or anything JSON can hold.
          metrics: of a validation of this very state, to choose the best checkpoint by.
          preempted: it is saved because the run was asked to stop, and should go on by itself when started again.
        """
        if step in self._manager.all_steps():
            return
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

    def restore(self, template: TrainState, config: ModelConfig) -> tuple[TrainState, Any]:
        """Reads the newest checkpoint.

        Args:
          template: of `abstract_state`; the state returned has its shapes, dtypes and layout.
          config: of the model, which says what is frozen.

        Returns:
          The state and this process' loader state. Raises STGTError for a checkpoint of another model or training, for
          one of another number of processes that were not all at the same place in the data, and for a damaged one.
        """
        folder = self.path(self._manager.latest_step())
        params = _restore(folder / "params", merge_params(template.params, template.frozen))
        template_opt = flax.serialization.to_state_dict(template.opt_state)
        optimizer = _restore(folder / "optimizer", {"step": template.step, "opt_state": template_opt})
        loaders = _restore_json(folder / "loader")["processes"]
        if len(loaders) != jax.process_count():
            if any(loader != loaders[0] for loader in loaders):
                raise STGTError(
                    f"{folder}: was written by {len(loaders)} processes, each at its own place in the data, and cannot"
                    f" be resumed by {jax.process_count()}; run as many, or start anew with"
                    f" --weights.initial {folder}"
                )
            loaders = loaders[:1] * jax.process_count()
        trainable, frozen = split_params(params, config)
        opt_state = flax.serialization.from_state_dict(template.opt_state, optimizer["opt_state"])
        state = TrainState(step=optimizer["step"], params=trainable, frozen=frozen, opt_state=opt_state)
        return state, _unpack(loaders[jax.process_index()])

    def wait(self) -> None:
        """Returns when every checkpoint begun is written."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finishes writing and frees the threads."""
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
        _check_same_shapes(_absolute(path) / WEIGHTS_NAME, saved, template)
        return jax.tree.map(lambda x, y: jax.device_put(x.astype(y.dtype), y.sharding), saved, template)
    return _restore(_checkpoint_folder(_absolute(path)) / "params", template)


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
    folder = _checkpoint_folder(_absolute(path)) / "params"
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), _saved_shapes(folder))
    template = jax.tree.map(
        lambda x, layout: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), shapes, param_shardings(shapes, mesh)
    )
    return _read(folder, template)


def has_checkpoint(workdir: PathLike) -> bool:
    """Whether a run's folder holds a checkpoint."""
    folder = _absolute(workdir) / "checkpoints"
    return folder.exists() and bool(ocp.utils.checkpoint_steps(folder))


def save_config(workdir: PathLike, **sections: Any) -> None:
    """Writes dataclasses, such as `model=ModelConfig(...)`, into WORKDIR/config.json; other sections there stay."""
    file = epath.Path(workdir) / "config.json"
    content = json.loads(file.read_text()) if file.exists() else {}
    content |= {name: dataclasses.asdict(section) for name, section in sections.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n")


def load_config(path: PathLike) -> ModelConfig:
    """The model's config from config.json in the folder of a run, or beside the checkpoint folder given."""
    folder = _absolute(path)
    file = next((f for f in (folder / "config.json", _config_file(folder)) if f.exists()), None)
    if file is None:
        raise STGTError(f"{path}: has no config.json; give the folder of a run (its --workdir)")
    try:
        return _dataclass_from(ModelConfig, json.loads(file.read_text())["model"], "model")
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise STGTError(f"{file}: is no config of a model ({error!r}); restore it or write it anew") from error


def _dataclass_from(cls: type, values: Mapping[str, Any], section: str) -> Any:
    types = typing.get_type_hints(cls)
    for name in values:
        if name not in types:
            raise STGTError(f"config.json: {section}.{name} is not an option{did_you_mean(name, types)}")
    nested = {n: _dataclass_from(types[n], v, n) for n, v in values.items() if dataclasses.is_dataclass(types[n])}
    return cls(**{**values, **nested})


def _absolute(path: PathLike) -> epath.Path:
    given = epath.Path(path)
    return given if given.is_absolute() else given.absolute()  # absolute() would spoil the address of a bucket


def _score(metrics: Mapping[str, float]) -> float:
    return metrics.get(BEST_METRIC, -math.inf)


def _config_file(checkpoint: epath.Path) -> epath.Path:
    return checkpoint.parent.parent / "config.json"


def _checkpoint_folder(path: epath.Path) -> epath.Path:
    """The folder of one checkpoint: `path` itself, or the newest of the run at `path`."""
    if not path.exists():
        raise STGTError(f"{path}: no such folder; give that of a run (its --workdir) or one of its checkpoints/STEP")
    if (path / "params").exists():
        return path
    steps = ocp.utils.checkpoint_steps(path / "checkpoints") if (path / "checkpoints").exists() else []
    if not steps:
        raise STGTError(f"{path}: has no checkpoints; give the folder of a run that wrote one, or a checkpoints/STEP")
    return path / "checkpoints" / str(max(steps))


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
        f" {folder.parent} to go on from the checkpoint before, or give another"
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
        mend = "these weights are of another model size; use the config.json that belongs to them"
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
