"""Puts the weights of several sources together to one model, later sources over earlier ones.

Nothing is left out in silence: `Assembly.report` tells for every tensor whether it was taken, and if not, why; and for
every parameter that no source has, what was done.
"""

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from stgt_jax.config import ModelConfig
from stgt_jax.convert.interpolate import resample_positions
from stgt_jax.convert.options import Conversion
from stgt_jax.convert.reference import Leaf, leaves
from stgt_jax.convert.sizes import model_config
from stgt_jax.convert.source import Source
from stgt_jax.convert.stored_tensor import StoredTensor
from stgt_jax.errors import STGTError
from stgt_jax.models.stgt import STGT, init_params, param_shapes

_GRAPH_TABLE, _PATCH_POSITIONS = "graph/pos_2d_embed", ("vision/pos_embed", "graph/pos_2d_embed")
_RELEASE_STD = 0.02  # of the noise that the release has in place of its table of positions


_TOP = {  # first part of the reference's names -> that of ours
    "visual_encoder": "vision", "graph_cross_model": "graph", "ln_vision": "ln_vision", "query_tokens": "qformer",
    "Qformer": "qformer", "vision_proj": "vision_proj", "text_proj": "text_proj", "itm_head": "itm_head",
    "temp": "temperature",
}  # fmt: skip


@dataclass(frozen=True)
class Assembly:
    """A model made of several sources. Its parameters are read when they are asked for.

    Attributes:
      config: of the model.
      origins: where the values of the config came from that shapes do not tell.
      sources: in the order given.
      taken: the reference's name -> the index of the source that it is taken from.
      random: paths of parameters, or layers of them, that are drawn at random.
      notes: what was changed on the way.
    """

    config: ModelConfig
    origins: Mapping[str, str]
    sources: Sequence[Source]
    taken: Mapping[str, int]
    random: Sequence[str]
    notes: Sequence[str]
    options: Conversion
    by_path: Mapping[str, Sequence[Leaf]]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter by its path; all are float32."""
        return {path: tuple(leaf.shape) for path, leaf in _flat_shapes(self.config).items()}

    def parameters(self, paths: Iterable[str] | None = None) -> Iterator[tuple[str, Iterator[np.ndarray]]]:
        """Yields each parameter's path and its layers, float32, one after the other; one array if it has no layers.

        Raises:
          STGTError: a tensor holds a number that is not finite, or its file is damaged.
        """
        wanted = list(self.by_path if paths is None else paths)
        drawn = self._draw({name.partition("[")[0] for name in self.random} & set(wanted))
        for path in wanted:
            yield path, (self._layer(leaf, drawn) for leaf in self.by_path[path])

    def tree(self, parts: Sequence[str] = ()) -> dict[str, Any]:
        """The parameters as a tree of numpy arrays in memory; with `parts`, only these of its top level."""
        paths = [path for path in self.by_path if not parts or path.partition("/")[0] in parts]
        shapes = self.shapes()
        flat = {}
        for path, layers in self.parameters(paths):
            stacked = np.empty(shapes[path], np.float32)
            rows = stacked if self.by_path[path][0].layer is not None else stacked[None]
            for index, layer in enumerate(layers):
                rows[index] = layer
            flat[path] = stacked
        return unflatten_dict(flat, sep="/")

    def report(self) -> dict[str, Any]:
        """What became of every tensor, and where every parameter came from: for JSON, and for `format_report`."""
        sources = []
        for index, source in enumerate(self.sources):
            replaced: dict[str, list[str]] = {}
            for here, name in source.names.items():
                if (by := self.taken[here]) != index:
                    replaced.setdefault(self.sources[by].path, []).append(name)
            taken = sorted({source.names[here] for here, by in self.taken.items() if by == index})
            left_out: dict[str, list[str]] = {}
            for name, reason in source.left_out.items():
                left_out.setdefault(reason, []).append(name)
            sources.append(
                {
                    "path": source.path,
                    "kind": source.kind,
                    "taken": taken,
                    "left_out": {reason: sorted(names) for reason, names in sorted(left_out.items())},
                    "replaced_by": {path: sorted(names) for path, names in replaced.items()},
                    "notes": list(source.notes),
                }
            )
        parts: dict[str, dict[str, int]] = {}
        for path, of_path in self.by_path.items():
            part = parts.setdefault(_part(path), {})
            for leaf in of_path:
                where = self.sources[self.taken[leaf.name]].path if leaf.name in self.taken else self._made(leaf)
                part[where] = part.get(where, 0) + 1
        return {
            "sources": sources,
            "parameters": parts,
            "random": list(self.random),
            "settings": {name: {"from": where} for name, where in self.origins.items()},
            "notes": list(self.notes),
            "options": asdict(self.options),
        }

    def _made(self, leaf: Leaf) -> str:
        return f"none: {self.options.position_table}" if leaf.path == _GRAPH_TABLE else "none: random"

    def _layer(self, leaf: Leaf, drawn: Mapping[str, np.ndarray]) -> np.ndarray:
        if leaf.name in self.taken:
            source = self.sources[self.taken[leaf.name]]
            array = leaf.convert(source.tensors[leaf.name].read())
            if leaf.path in _PATCH_POSITIONS:
                array = resample_positions(array, self.config.vision.grid)
            array = np.asarray(array, np.float32)
            if not np.isfinite(array).all():
                raise STGTError(f"'{source.path}': {source.names[leaf.name]} holds numbers that are not finite")
            return array
        if leaf.path == _GRAPH_TABLE and leaf.path not in drawn:
            shape = (self.config.vision.tokens_per_frame, self.config.vision.width)
            if self.options.position_table == "zeros":
                return np.zeros(shape, np.float32)
            noise = np.random.default_rng(self.options.seed).normal(0.0, _RELEASE_STD, shape)
            return noise.astype(np.float32)
        array = drawn[leaf.path]
        return array if leaf.layer is None else array[leaf.layer]

    def _draw(self, paths: set[str]) -> dict[str, np.ndarray]:
        """Draws parameters as those of a new model are drawn; only these are computed."""
        if not paths:
            return {}
        model, rng = STGT(self.config), jax.random.key(self.options.seed)

        @jax.jit
        def draw() -> dict[str, jax.Array]:
            flat = flatten_dict(init_params(model, rng), sep="/")
            return {path: flat[path] for path in sorted(paths)}

        return {path: np.asarray(array) for path, array in draw().items()}


def assemble(
    sources: Sequence[Source],
    *,
    options: Conversion | None = None,
    config: ModelConfig | None = None,
    parts: Sequence[str] = (),
) -> Assembly:
    """Puts sources together to a model.

    Args:
      sources: later ones replace the tensors of earlier ones.
      options: what shapes do not tell, what to do about missing parameters, and what is wanted otherwise.
      config: of the model, where it is known; by default the shapes tell it.
      parts: of the model's top level that are wanted, such as "vision"; by default all of it.

    Raises:
      STGTError: the sources do not make a model, a shape does not fit it, or a parameter is missing.
    """
    options = options or Conversion()
    taken = {name: index for index, source in enumerate(sources) for name in source.tensors}
    tensors = {name: sources[index].tensors[name] for name, index in taken.items()}
    origins: dict[str, str] = {}
    said = {option: value for source in sources for option, value in source.settings.items()}
    if config is None:
        config, origins = model_config(tensors, options, said)
    else:
        _check_said(config, said, parts)
    by_path: dict[str, list[Leaf]] = {}
    for leaf in leaves(config):
        if not parts or leaf.path.partition("/")[0] in parts:
            by_path.setdefault(leaf.path, []).append(leaf)
    used = {leaf.name for of_path in by_path.values() for leaf in of_path}
    beyond = sorted(name for name in tensors.keys() - used if not parts or _TOP[name.partition(".")[0]] in parts)
    if beyond:
        where = sources[taken[beyond[0]]]
        raise STGTError(
            f"'{where.path}' holds {len(beyond)} tensors for which the model has no place, the first is"
            f" {where.names[beyond[0]]}"
            + ("; is the model of another depth?" if parts else "; name them with --leave-out if they are not wanted")
        )
    _check_shapes(by_path, config, sources, taken)
    random = _random(by_path, tensors, options, has_table_policy=any(s.kind == "STGT" for s in sources))
    notes = _notes(config, tensors, by_path, options)
    return Assembly(
        config, origins, tuple(sources), {n: i for n, i in taken.items() if n in used}, random, notes, options, by_path
    )


def _check_said(config: ModelConfig, said: Mapping[str, Any], parts: Sequence[str]) -> None:
    """Raises STGTError where the config.json beside the weights says something else than the model's."""
    names = {
        "vision_heads": "vision.num_heads",
        "vision_norm_epsilon": "vision.norm_epsilon",
        "qformer_heads": "qformer.num_heads",
        "qformer_norm_epsilon": "qformer.norm_epsilon",
        "cross_attention_freq": "qformer.cross_attention_freq",
        "ln_vision_epsilon": "ln_vision_epsilon",
    }
    for option, name in names.items():
        section, _, field = name.rpartition(".")
        ours = getattr(getattr(config, section) if section else config, field)
        if (section or name.removesuffix("_epsilon")) in parts and said.get(option, ours) != ours:
            raise STGTError(
                f"model.{name}={ours}, and the config.json of the weights says {said[option]}; give --model.{name}"
                f" {said[option]}"
            )


def _flat_shapes(config: ModelConfig) -> dict[str, Any]:
    return flatten_dict(param_shapes(STGT(config)), sep="/")


def _check_shapes(
    by_path: Mapping[str, Sequence[Leaf]], config: ModelConfig, sources: Sequence[Source], taken: Mapping[str, int]
) -> None:
    shapes = _flat_shapes(config)
    for path, of_path in by_path.items():
        for leaf in of_path:
            if leaf.name not in taken:
                continue
            source = sources[taken[leaf.name]]
            stored = source.tensors[leaf.name]
            there = _converted_shape(leaf, stored)
            here = tuple(shapes[path].shape[0 if leaf.layer is None else 1 :])
            if path in _PATCH_POSITIONS:  # of another grid, perhaps
                there, here = (*there[:-2], there[-1]), (*here[:-2], here[-1])
            if there != here:
                raise STGTError(
                    f"'{source.path}': {source.names[leaf.name]} has the shape {stored.shape}, and {path} in this model"
                    f" needs {here}; are these weights of another model?"
                )


def _converted_shape(leaf: Leaf, stored: StoredTensor) -> tuple[int, ...]:
    nothing = np.broadcast_to(np.zeros((), np.float32), stored.shape)
    try:
        return leaf.convert(nothing).shape
    except ValueError:  # other dimensions than the layout has
        return stored.shape


def _random(
    by_path: Mapping[str, Sequence[Leaf]],
    tensors: Mapping[str, StoredTensor],
    options: Conversion,
    *,
    has_table_policy: bool,
) -> list[str]:
    """Returns the parameters to draw, `path` or `path[layer]`. Raises STGTError for one that is not to be drawn."""
    absent, refused = [], []
    for path, of_path in by_path.items():
        layers = [leaf for leaf in of_path if leaf.name not in tensors]
        if not layers or (path == _GRAPH_TABLE and has_table_policy):
            continue
        absent += [path] if len(layers) == len(of_path) else [f"{path}[{leaf.layer}]" for leaf in layers]
        if not any(fnmatch.fnmatchcase(path, p) or fnmatch.fnmatchcase(path, f"{p}/*") for p in options.init_missing):
            refused.append(path)
    if refused:
        whole = [path for path, of_path in by_path.items() if not any(leaf.name in tensors for leaf in of_path)]
        names = _shortest(refused, [path for path in by_path if path not in whole])
        raise STGTError(
            f"no source has {len(refused)} of the model's parameters: {', '.join(names)}; add a source, or draw them at"
            f" random with --init-missing '{','.join(names)}'"
        )
    return absent


def _shortest(missing: Sequence[str], present: Sequence[str]) -> list[str]:
    """Names for missing paths, each the shortest under which nothing is present; layers of a kind become one `*`."""
    names: dict[str, None] = {}
    for path in missing:
        parts = re.sub(r"/(groups|tail)/layer_\d+/", r"/\1/*/", path).split("/")
        of_kind = [re.sub(r"/(groups|tail)/layer_\d+/", r"/\1/*/", one) for one in present]
        for end in range(1, len(parts) + 1):
            name = "/".join(parts[:end])
            if not any(one == name or one.startswith(f"{name}/") for one in of_kind):
                break
        names["/".join(parts[:end])] = None
    return list(names)


def _notes(
    config: ModelConfig, tensors: Mapping[str, StoredTensor], by_path: Mapping[str, Sequence[Leaf]], options: Conversion
) -> list[str]:
    notes = []
    for path in _PATCH_POSITIONS:
        stored = tensors.get(by_path[path][0].name) if path in by_path else None
        if stored is not None and stored.shape[-2] != config.vision.tokens_per_frame:
            notes.append(
                f"{path} was resampled (bicubic) from {stored.shape[-2]} to {config.vision.tokens_per_frame} tokens"
            )
    if _GRAPH_TABLE in by_path and by_path[_GRAPH_TABLE][0].name not in tensors:
        notes.append(
            f"{_GRAPH_TABLE}: {options.position_table}. The files of the release lack this table, which was noise of"
            " standard deviation 0.02 there; published figures may not be met to the last digit"
        )
    if config.graph.variant != "none" and config.num_frames != config.graph.time_embed_rows:
        notes.append(
            f"graph/time_embed: the model takes its {config.graph.time_embed_rows} rows for {config.num_frames} frames"
            " by nearest-neighbour resampling, as the original does"
        )
    return notes


def _part(path: str) -> str:
    """The part of the model that a table of parameters names: two levels of the tree where there are more."""
    first, _, rest = path.partition("/")
    return f"{first}/{rest.partition('/')[0]}" if "/" in rest else first
