"""Runs a trained model: clips and token ids in, embeddings, match probabilities and captions out.

Validation, evaluation, the report and `stgt_jax.api` all use `Encoder`. It takes any number of clips, texts or pairs
and cuts them into batches of a few fixed sizes, each of which is compiled once. A batch is split over the devices of a
mesh. Encoders of equal models share compiled code. In a run of several processes, all must make the same calls.

A clip is its frames, uint8 [T, H, W, 3], or the ViT's tokens of them, [T, L, D]. Letters: V videos, T frames, L tokens
a frame, Q queries, E alignment width, C texts, S text length, M graph tokens, D vision width, N graph nodes.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from stgt_jax.checks import check
from stgt_jax.config import Dtype, GenerationConfig, ModelConfig
from stgt_jax.contrastive import similarity
from stgt_jax.errors import STGTError
from stgt_jax.models.answer_ranking import TokenizedAnswers, rank_answers
from stgt_jax.models.generation import generate
from stgt_jax.models.graph_statistics import edge_shares, graph_statistics
from stgt_jax.models.stgt import STGT
from stgt_jax.ops.graph_attention import adjacency
from stgt_jax.sharding import batch_sharding

PAIRS_PER_CLIP = 2  # a batch has twice as many pairs as clips, as a pair takes less memory
TEXTS_PER_VIDEO = 8  # of a video that are matched with it at once, where it has as many
_GROWTH = 8  # ratio of the batch sizes: few, as each is compiled, and yet a single clip is not padded to a full batch


@dataclass(frozen=True)
class EncodedVideos:
    """V encoded videos."""

    embed: np.ndarray  # [V, Q, E] float32, of norm 1
    graph_tokens: jax.Array  # [V or more, M, D], on the devices, for `Encoder.match`; rows beyond V are padding


class Encoder:
    """A model with its parameters.

    Args:
      config: of the model.
      params: its parameters, laid out on `mesh` where one is given.
      mesh: devices to split each batch over; by default one device does all.
      batch_size: clips or texts at a time, rounded up to a multiple of the mesh's devices; twice as many pairs.
    """

    def __init__(self, config: ModelConfig, params: Any, *, mesh: Mesh | None = None, batch_size: int = 32) -> None:
        self.model, self.params = STGT(config), params
        self._mesh = mesh
        self._num_devices = 1 if mesh is None else mesh.size
        if not isinstance(batch_size, int) or batch_size < 1:
            raise STGTError(f"batch_size={batch_size!r} must be an int of at least 1")
        self.batch_size = _round_up(batch_size, self._num_devices)

    def with_dtype(self, dtype: Dtype) -> "Encoder":
        """The same model, computed in another dtype."""
        config = dataclasses.replace(self.model.config, dtype=dtype)
        return Encoder(config, self.params, mesh=self._mesh, batch_size=self.batch_size)

    def embed_videos(self, clips: Iterable[np.ndarray]) -> np.ndarray:
        """Encodes clips: float32 [V, Q, E], of norm 1."""
        batches = self._run(_encode_videos, _one_column(clips), self.batch_size)
        shape = self.model.config.qformer.num_queries, self.model.config.embed_dim
        return _gather(((num_clips, embed) for num_clips, (embed, _) in batches), shape)

    def encode_videos(self, clips: Iterable[np.ndarray]) -> EncodedVideos:
        """Encodes at least one clip, as `embed_videos` does, and keeps what `match` needs in the devices' memory."""
        embeds, tokens = [], []
        for num_clips, (embed, graph_tokens) in self._run(_encode_videos, _one_column(clips), self.batch_size):
            embeds.append(_to_host(embed)[:num_clips])
            tokens.append(graph_tokens)
        with self._on_mesh():
            return EncodedVideos(np.concatenate(embeds), jnp.concatenate(tokens))

    def encode_frames(self, clips: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yields the ViT's tokens of each clip, uint8 [T, H, W, 3]: bfloat16 [T, L, D]."""
        for num_clips, tokens in self._run(_encode_frames, _one_column(clips), self.batch_size):
            yield from _to_host(tokens)[:num_clips]

    def encode_texts(self, input_ids: Iterable[np.ndarray], attention_mask: np.ndarray) -> np.ndarray:
        """Encodes texts: ids and mask [C, S] -> float32 [C, E], of norm 1."""
        rows = zip(input_ids, attention_mask, strict=True)
        return _gather(self._run(_encode_texts, rows, self.batch_size), (self.model.config.embed_dim,))

    def match(
        self,
        videos: EncodedVideos,
        input_ids: np.ndarray,
        attention_mask: np.ndarray,
        pairs: Iterable[tuple[int, int]],
        *,
        as_logit: bool = False,
    ) -> np.ndarray:
        """Returns P(match) float32 [P] of P pairs (index of a video, index of a text with its ids and mask [C, S]).

        The pairs of a video are matched together, so that its keys and values are computed once for several texts.
        With `as_logit`, the logit of the class "match" instead.
        """
        logits = self._of_pairs(_match, videos, input_ids, attention_mask, pairs)
        no_match, match = logits.T
        return match if as_logit else np.exp(match - np.logaddexp(no_match, match))

    def answer(
        self,
        videos: EncodedVideos,
        input_ids: np.ndarray,
        attention_mask: np.ndarray,
        pairs: Iterable[tuple[int, int]],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Answers P questions, given as for `match`: the number of each answer, int [P], and its probability [P]."""
        found = self._of_pairs(_answer, videos, input_ids, attention_mask, pairs)
        return found[:, 0].astype(np.int64), found[:, 1]

    def rank_answers(
        self,
        videos: EncodedVideos,
        input_ids: np.ndarray,
        attention_mask: np.ndarray,
        pairs: Iterable[tuple[int, int]],
        answers: TokenizedAnswers,
        *,
        num_candidates: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Answers P questions like `answer`, by the likelihood of each answer (`models.answer_ranking`).

        The probability is the answer's share among its candidates.

        Raises:
          STGTError: a question and an answer together have more tokens than the model reads.
        """
        longest, needed = self.model.config.qformer.max_text_length, input_ids.shape[1] + answers.ids.shape[1]
        check(
            needed <= longest,
            f"a question and an answer have up to {needed} tokens, and the model reads {longest}"
            " (qformer.max_text_length); shorten the questions",
        )
        function = partial(_rank, answers, num_candidates)
        found = self._of_pairs(function, videos, input_ids, attention_mask, pairs, share=num_candidates)
        return found[:, 0].astype(np.int64), found[:, 1]

    def _of_pairs(
        self,
        function: Callable[..., Any],
        videos: EncodedVideos,
        input_ids: np.ndarray,
        attention_mask: np.ndarray,
        pairs: Iterable[tuple[int, int]],
        *,
        share: int = 1,
    ) -> np.ndarray:
        """The two results of `function` for each of P pairs, float32 [P, 2]; a video's pairs are computed together.

        A batch holds a `share`-th of the usual number of pairs, but at least one group of them.
        """
        videos_and_texts = np.array(list(pairs), np.int32).reshape(-1, 2)
        groups, num_texts = _group_by_video(videos_and_texts[:, 0])
        size = _round_up(max(1, PAIRS_PER_CLIP * self.batch_size // (num_texts * share)), self._num_devices)
        rows = ((videos_and_texts[group[0], 0], *(x[videos_and_texts[group, 1]] for x in (input_ids, attention_mask)))
                for group in groups)  # fmt: skip
        result = np.zeros((len(videos_and_texts), 2), np.float32)
        result[groups] = _gather(self._run(function, rows, size, videos.graph_tokens), (num_texts, 2))
        return result

    def write_captions(
        self, clips: Iterable[np.ndarray], config: GenerationConfig, *, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Captions clips: token ids int32 [V, N, S] and scores float32 [V, N], see `generate`.

        With the method "nucleus" the captions of a clip depend on `seed` and the clip's place among those of a batch.

        Raises:
          STGTError: captions may be longer than the model can write.
        """
        longest = self.model.config.qformer.max_text_length
        check(
            config.max_length <= longest,
            f"generation.max_length={config.max_length} is more than the {longest} tokens that the model can write"
            " (qformer.max_text_length)",
        )
        first = (config, jax.random.key(seed))
        batches = list(self._run(_write_captions, _one_column(clips), self.batch_size, *first))
        shape = (config.num_captions, config.max_length)
        return (
            _gather(((count, ids) for count, (ids, _) in batches), shape, np.int32),
            _gather(((count, scores) for count, (_, scores) in batches), shape[:1]),
        )

    def adjacency(self, clips: Iterable[np.ndarray]) -> np.ndarray:
        """Returns the edge weights of the first graph block, float32 [V, N, N]."""
        nodes = self.model.config.num_frames * self.model.config.vision.grid**2
        return _gather(self._run(_adjacency, _one_column(clips), self.batch_size), (nodes, nodes))

    def edge_shares(self, clips: Iterable[np.ndarray]) -> np.ndarray:
        """Returns the share of the pairs of nodes in neighbouring frames that have an edge, float32 [V]."""
        return _gather(self._run(_edge_shares, _one_column(clips), self.batch_size), ())

    def graph_statistics(self, clips: Iterable[np.ndarray], objects: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
        """Returns what the graph links and where its attention goes, by name, float32 [V] each (`graph_statistics`).

        `objects` says which object each patch of a clip shows, int [T, P]; -1 for none.
        """
        batches = list(self._run(_graph_statistics, zip(clips, objects, strict=True), self.batch_size))
        names = batches[0][1] if batches else ()
        return {name: _gather(((count, figures[name]) for count, figures in batches), ()) for name in names}

    def _run(
        self, function: Callable[..., Any], rows: Iterable[tuple[Any, ...]], size: int, *first: Any
    ) -> Iterator[tuple[int, Any]]:
        """Calls `function(model, params, *first, *columns)` for batches of rows; yields (number of rows, result).

        An incomplete batch is padded by its last row: to the size of the batches before it or, if it is the first, to
        1, 8, 64, ... rows per device.
        """
        rows, padded_size = iter(rows), self._num_devices
        before: list[tuple[int, Any]] = []  # what the devices still compute while the next batch is put together
        while batch := list(itertools.islice(rows, size)):
            num_rows = len(batch)
            while padded_size < num_rows:
                padded_size = min(_GROWTH * padded_size, size)
            batch += batch[-1:] * (padded_size - num_rows)
            columns = [np.stack(column) for column in zip(*batch, strict=True)]
            if self._mesh is not None:
                columns = jax.device_put(columns, batch_sharding(self._mesh))
            with self._on_mesh():
                result = function(self.model, self.params, *first, *columns)
            yield from before
            before = [(num_rows, result)]
        yield from before

    def _on_mesh(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)


def score_similarity(video_embed: np.ndarray, text_embed: np.ndarray, *, chunk: int = 32) -> np.ndarray:
    """Similarities of all videos [V, Q, E] with all texts [C, E]: the maximum over the queries, float32 [V, C].

    A few videos at a time: the similarities of all queries would take Q times the memory.
    """
    rows = [np.zeros((0, len(text_embed)), np.float32)]
    for start in range(0, len(video_embed), chunk):
        videos = video_embed[start : start + chunk]
        padding = np.repeat(videos[-1:], chunk - len(videos), axis=0)
        rows.append(np.asarray(_similarity(np.concatenate([videos, padding]), text_embed))[: len(videos)])
    return np.concatenate(rows)


@partial(jax.jit, static_argnums=0)
def _encode_videos(model: STGT, params: Any, video: jax.Array) -> tuple[jax.Array, jax.Array]:
    out = _apply(model, params, video, method="encode_video")
    return out["video_embed"].astype(jnp.float32), out["graph_tokens"]


@partial(jax.jit, static_argnums=0)
def _encode_frames(model: STGT, params: Any, video: jax.Array) -> jax.Array:
    return _apply(model, params, video, method="encode_frames").astype(jnp.bfloat16)


@partial(jax.jit, static_argnums=0)
def _encode_texts(model: STGT, params: Any, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
    return _apply(model, params, input_ids, attention_mask, method="encode_text")["text_embed"].astype(jnp.float32)


def _match(
    model: STGT, params: Any, graph_tokens: jax.Array, videos: jax.Array, ids: jax.Array, mask: jax.Array
) -> jax.Array:
    """Logits [B, n, 2] of n texts, [B, n, S], with each of B videos, given by their rows; class 1 is "match"."""
    return _match_batch(model, params, graph_tokens[videos], ids, mask)  # compiled for any number of rows


@partial(jax.jit, static_argnums=0)
def _match_batch(model: STGT, params: Any, graph_tokens: jax.Array, ids: jax.Array, mask: jax.Array) -> jax.Array:
    ids, mask = (rearrange(x, "b n s -> (b n) s") for x in (ids, mask))
    logits = _apply(model, params, graph_tokens, ids, mask, method="match")
    return rearrange(logits, "(b n) c -> b n c", b=len(graph_tokens))


def _answer(
    model: STGT, params: Any, graph_tokens: jax.Array, videos: jax.Array, ids: jax.Array, mask: jax.Array
) -> jax.Array:
    """The best answer to n questions, [B, n, S], about each of B videos, and its probability: [B, n, 2]."""
    return _answer_batch(model, params, graph_tokens[videos], ids, mask)


@partial(jax.jit, static_argnums=0)
def _answer_batch(model: STGT, params: Any, graph_tokens: jax.Array, ids: jax.Array, mask: jax.Array) -> jax.Array:
    ids, mask = (rearrange(x, "b n s -> (b n) s") for x in (ids, mask))
    probabilities = jax.nn.softmax(_apply(model, params, graph_tokens, ids, mask, method="answer"))
    # Numbers of answers are exact in float32, up to 16 million.
    best = jnp.stack([probabilities.argmax(axis=1).astype(jnp.float32), probabilities.max(axis=1)], axis=1)
    return rearrange(best, "(b n) two -> b n two", b=len(graph_tokens))


def _rank(
    answers: TokenizedAnswers, num_candidates: int, model: STGT, params: Any, graph_tokens: jax.Array,
    videos: jax.Array, ids: jax.Array, mask: jax.Array,
) -> jax.Array:  # fmt: skip
    """Like `_answer`, by the likelihood of each answer."""
    return _rank_batch(model, params, graph_tokens[videos], ids, mask, answers, num_candidates)


@partial(jax.jit, static_argnums=(0, 6))
def _rank_batch(
    model: STGT, params: Any, graph_tokens: jax.Array, ids: jax.Array, mask: jax.Array, answers: TokenizedAnswers,
    num_candidates: int,
) -> jax.Array:  # fmt: skip
    ids, mask = (rearrange(x, "b n s -> (b n) s") for x in (ids, mask))
    candidates, scores = rank_answers(model, params, graph_tokens, ids, mask, answers, num_candidates)
    best = jnp.stack([candidates[:, 0].astype(jnp.float32), jax.nn.softmax(scores)[:, 0]], axis=1)
    return rearrange(best, "(b n) two -> b n two", b=len(graph_tokens))


@partial(jax.jit, static_argnums=(0, 2))
def _write_captions(
    model: STGT, params: Any, config: GenerationConfig, rng: jax.Array, video: jax.Array
) -> tuple[jax.Array, jax.Array]:
    query_cache = _apply(model, params, video, method="encode_video")["query_cache"]
    return generate(model, params, query_cache, config, rng)


@partial(jax.jit, static_argnums=0)
def _adjacency(model: STGT, params: Any, video: jax.Array) -> jax.Array:
    nodes = _apply(model, params, video, method="encode_video")["edge_nodes"][0]
    return adjacency(nodes, num_frames=video.shape[1], sim_threshold=model.config.graph.sim_threshold)


_similarity = jax.jit(similarity)
_edge_shares = jax.jit(edge_shares, static_argnums=0)
_graph_statistics = jax.jit(graph_statistics, static_argnums=0)


def _apply(model: STGT, params: Any, *inputs: jax.Array, method: str) -> Any:
    return model.apply({"params": params}, *inputs, method=method)


def _group_by_video(videos: np.ndarray) -> tuple[np.ndarray, int]:
    """Groups pairs, whose videos [P] are given, by video.

    Returns:
      int [groups, n], the pairs of each group; an incomplete group repeats its last one. And n, the pairs of a group.
    """
    order = np.argsort(videos, kind="stable")
    starts = np.flatnonzero(np.diff(videos[order], prepend=-1))  # of each video's pairs in `order`
    num_texts = TEXTS_PER_VIDEO if 2 * len(videos) > TEXTS_PER_VIDEO * len(starts) else 1
    groups = [
        np.minimum(np.arange(first, first + num_texts), end - 1)
        for start, end in itertools.pairwise([*starts, len(videos)])
        for first in range(start, end, num_texts)
    ]
    return order[np.array(groups, np.int64).reshape(-1, num_texts)], num_texts


def _one_column(values: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray]]:
    return ((value,) for value in values)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _gather(
    batches: Iterable[tuple[int, jax.Array]], row: tuple[int, ...], dtype: type[np.generic] = np.float32
) -> np.ndarray:
    """The rows of all batches, without the padding; `row` is the shape of one."""
    rows = [_to_host(values)[:num_rows] for num_rows, values in batches]
    return np.concatenate(rows) if rows else np.zeros((0, *row), dtype)


def _to_host(array: jax.Array) -> np.ndarray:
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
