"""The Python interface: load a trained model, encode videos and texts, compare them, describe videos.

    import stgt_jax as stgt

    model = stgt.load("moving_shapes")
    scores = model.similarity(["a.mp4", "b.mp4"], ["a red circle grows", "a blue square turns clockwise"])  # [2, 2]

Letters: V videos, T frames that the model sees of each, Q queries, E alignment width, C texts.
"""

import dataclasses
import fnmatch
import itertools
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.sharding import Mesh
from tokenizers import BertWordPieceTokenizer
from tqdm import tqdm

from data_pipeline.config import FrameShape, TextCleaning
from data_pipeline.moving_shapes import make_moving_shapes
from data_pipeline.prepare import ClipReader, Video, list_videos
from data_pipeline.text_cleaning import clean_caption, clean_question
from data_pipeline.tokenizer import SPECIAL_TOKENS, decode, encode, load_tokenizer, make_tokenizer, num_tokens
from stgt_jax.checks import did_you_mean
from stgt_jax.config import GenerationConfig, MeshConfig, ModelConfig
from stgt_jax.convert.options import Conversion
from stgt_jax.encoder import Encoder, score_similarity
from stgt_jax.errors import STGTError
from stgt_jax.exported import model_folder
from stgt_jax.hub import push_to_hub
from stgt_jax.loading import convert, is_foreign, local
from stgt_jax.mesh import make_mesh
from stgt_jax.run_folder import Preparation, read_run
from stgt_jax.sharding import param_shardings
from stgt_jax.storage import check_storage
from stgt_jax.train.checkpoint import load_params

__all__ = ["GenerationConfig", "Model", "STGTError", "load", "make_moving_shapes", "push_to_hub"]

Videos = Video | Iterable[Video]
Texts = str | Iterable[str]
Weights = str | os.PathLike[str]
_BAR_AFTER = 2.0  # seconds
_Item = TypeVar("_Item")


def load(
    model: Weights | list[Weights] | tuple[Weights, ...],
    *,
    batch_size: int = 32,
    devices: Sequence[jax.Device] | None = None,
    **conversion: Any,
) -> "Model":
    """Loads a trained model.

    Args:
      model: one of
        - the name of a model that comes with this package: "moving_shapes" (for a folder of that name:
          "./moving_shapes");
        - the folder of a run, the --workdir of `stgt pretrain`, for its newest checkpoint;
        - the folder of one of its checkpoints, WORKDIR/checkpoints/STEP;
        - the folder of a model that `stgt export` or `stgt weights convert` wrote;
        - "hf://ORGANISATION/NAME", a model on the Hugging Face Hub, of this project or Hugging Face's BLIP-2;
        - files of another project's weights, or a list of files and folders that make a model together, later ones
          over earlier ones: EVA's ViT, BLIP-2 of LAVIS and of Hugging Face, STGT, BERT (docs/weights.md).
      batch_size: videos to encode at a time, over all devices.
      devices: to compute on; by default all of this process. With those of several processes, all of them must make the
        same calls.
      **conversion: options of `stgt weights convert` for other projects' weights, such as vocab="vocab.txt",
        sim_threshold=0.5, init_missing=["temperature"].

    Raises:
      STGTError: there is no such model, a file of it is missing or damaged, the weights do not make a model, or there
        is no such option.

    >>> load("moving_shapes")
    Model('moving_shapes', 6 frames of 64x64 pixels, 1.0 million parameters)
    """
    devices = jax.local_devices() if devices is None else list(devices)
    mesh = make_mesh(MeshConfig(), devices) if len(devices) > 1 else None
    if isinstance(model, list | tuple):
        return _load_converted(" + ".join(os.fspath(path) for path in model), model, conversion, mesh, batch_size)
    folder = local(model_folder(model))
    if conversion or is_foreign(folder):
        return _load_converted(os.fspath(model), [folder], conversion, mesh, batch_size)
    check_storage(folder)
    run = read_run(folder)
    encoder = Encoder(run.model, load_params(folder, run.model, mesh), mesh=mesh, batch_size=batch_size)
    answering = (run.answers, run.question_length) if run.content.get("answers") else ()
    random = run.content.get("random_parameters", ())
    return Model(os.fspath(model), encoder, load_tokenizer(run.vocab_file), run.preparation, random, *answering)


def _load_converted(
    name: str, paths: Sequence[Weights], options: Mapping[str, Any], mesh: Mesh | None, batch_size: int
) -> "Model":
    converted = convert(paths, _options(options))
    params = converted.assembly.tree()
    params = jax.device_put(params, None if mesh is None else param_shardings(params, mesh))
    encoder = Encoder(converted.model, params, mesh=mesh, batch_size=batch_size)
    return Model(name, encoder, make_tokenizer(converted.words), converted.preparation, converted.assembly.random)


def _options(values: Mapping[str, Any]) -> Conversion:
    known = {field.name for field in dataclasses.fields(Conversion)}
    for option in values:
        if option not in known:
            raise STGTError(f"load has no option '{option}'{did_you_mean(option, known)}")
    options: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return Conversion(**options)


class Model:
    """A trained model and its vocabulary; `load` makes it.

    `videos` is the path of a video file; or the frames of one video, uint8 [frames, height, width, 3] in RGB; or the
    frames of several videos, uint8 [V, frames, height, width, 3]; or an iterable of paths and arrays of frames.
    `texts` is a str or an iterable of str.

    Videos are prepared as in evaluation. T frames are taken at equal distances; a video with fewer frames repeats its
    last one. They are resized as the model's training data was: by their short side, and their centre is cropped; or
    stretched to a square, as models of other projects want them. Arrays whose frames have the model's size already are
    not resized.

    Every method raises STGTError, with a message of one line that names the video or text, for a file that is missing,
    damaged or not a video, for an array of another shape or dtype, and for a text that is not a str.

    Attributes:
      config: ModelConfig, the sizes of the model.
      params: its parameters, nested dicts of jax.Array.
      answers: what it chooses among as an answer to questions; empty if it answers none.
      encoder: Encoder, which does the same for arrays of frames and token ids.
    """

    def __init__(
        self,
        name: str,
        encoder: Encoder,
        tokenizer: BertWordPieceTokenizer,
        preparation: Preparation,
        random_parameters: Sequence[str] = (),
        answers: Sequence[str] = (),
        question_length: int = 0,
    ) -> None:
        self.config: ModelConfig = encoder.model.config
        self.params: Any = encoder.params
        self.encoder = encoder
        self.answers = tuple(answers)
        self._question_length = question_length  # tokens
        self._name = name
        self._random = random_parameters  # that a conversion drew, as no source had them
        self._tokenizer = tokenizer
        self._max_text_length = preparation.max_text_length
        self._clean_text = cast(TextCleaning, preparation.clean_text)
        self._reader = ClipReader(
            num_kept_frames=preparation.num_kept_frames,
            resize=preparation.resize,
            frame_shape=cast(FrameShape, preparation.frame_shape),
            num_frames=self.config.num_frames,
            image_size=self.config.vision.image_size,
        )

    def encode_video(self, videos: Videos) -> np.ndarray:
        """Encodes videos.

        Returns:
          float32 [V, Q, E]: for each video Q vectors of norm 1.

        >>> model = load("moving_shapes")
        >>> frames = np.zeros((24, 96, 96, 3), np.uint8)
        >>> model.encode_video(frames).shape
        (1, 8, 64)
        """
        self._warn_if_random("vision_proj", "qformer/query_tokens", "qformer/*/cross_attention*")
        return self.encoder.embed_videos(self._clips(videos))

    def encode_text(self, texts: Texts) -> np.ndarray:
        """Encodes texts, cleaned as those of training. Texts that are too long are cut and counted in a warning.

        Returns:
          float32 [C, E]: for each text a vector of norm 1.

        >>> model = load("moving_shapes")
        >>> model.encode_text(["a red circle grows", "a red circle shrinks"]).shape
        (2, 64)
        """
        self._warn_if_random("text_proj", "qformer/word_embed", "qformer/*/text_mlp*")
        ids, mask = self._tokenize(texts)
        return self.encoder.encode_texts(self._bar(ids, len(ids), "texts"), mask)

    def similarity(self, videos: Videos, texts: Texts) -> np.ndarray:
        """Compares every video with every text, each encoded by itself: the score to rank large collections by.

        Args:
          videos: videos, or what `encode_video` returned for them, [V, Q, E].
          texts: texts, or what `encode_text` returned for them, [C, E].

        Returns:
          float32 [V, C], cosine similarities: the maximum over the video's Q vectors (docs/model.md section 4.1).

        >>> model = load("moving_shapes")
        >>> videos = model.encode_video(np.zeros((3, 24, 96, 96, 3), np.uint8))
        >>> model.similarity(videos, ["a red circle grows", "a red circle shrinks"]).shape
        (3, 2)
        """
        queries, width = self.config.qformer.num_queries, self.config.embed_dim
        video_embed = _embeddings(videos, (queries, width), "encode_video")
        text_embed = _embeddings(texts, (width,), "encode_text")
        if text_embed is None:  # before the videos: what is wrong with a text shows at once
            text_embed = self.encode_text(texts)
        if video_embed is None:
            video_embed = self.encode_video(videos)
        return score_similarity(video_embed, text_embed)

    def match(self, videos: Videos, texts: Texts) -> np.ndarray:
        """Scores every video with every text by the matching head, which sees both at once; slower than `similarity`.

        Returns:
          float32 [V, C], the probability that the text describes the video, 0 to 1.

        >>> model = load("moving_shapes")
        >>> model.match(np.zeros((24, 96, 96, 3), np.uint8), ["a red circle grows", "a red circle shrinks"]).shape
        (1, 2)
        """
        self._warn_if_random("itm_head")
        ids, mask = self._tokenize(texts)
        clips = self._clips(videos)
        rows = [np.zeros((0, len(ids)), np.float32)]
        while batch := list(itertools.islice(clips, self.encoder.batch_size)):
            pairs = np.ndindex(len(batch), len(ids))
            matched = self.encoder.match(self.encoder.encode_videos(batch), ids, mask, pairs)
            rows.append(matched.reshape(len(batch), len(ids)))
        return np.concatenate(rows)

    def caption(self, videos: Videos, generation: GenerationConfig | None = None, *, seed: int = 0) -> list[str]:
        """Describes each video by a caption.

        Args:
          videos: videos.
          generation: how; by default greedily, each word the most probable next one, at most as long as the captions of
            the training data. `GenerationConfig()` is a search with 3 beams, as in LAVIS.
          seed: of the method "nucleus".

        Returns:
          V captions; the best one of each video.

        >>> model = load("moving_shapes")
        >>> len(model.caption(np.zeros((24, 96, 96, 3), np.uint8)))
        1
        """
        return [of_video[0] for of_video in self.caption_candidates(videos, generation, seed=seed)]

    def caption_candidates(
        self, videos: Videos, generation: GenerationConfig | None = None, *, seed: int = 0
    ) -> list[list[str]]:
        """Like `caption`, but returns for each video all `generation.num_captions` captions, the best first."""
        self._warn_if_random("qformer/lm_*", "qformer/word_embed", "qformer/*/text_mlp*")
        if generation is None:
            generation = GenerationConfig("greedy", min_length=0, max_length=self._max_text_length)
        captions, _ = self.encoder.write_captions(self._clips(videos), generation, seed=seed)
        return [[decode(self._tokenizer, caption) for caption in of_video] for of_video in captions]

    def answer(self, videos: Videos, question: str) -> list[str]:
        """Answers a question about each video, if the model was fine-tuned on questions (`stgt finetune msrvtt_qa`).

        Returns:
          V answers, each one of those that the model knows, `answers`.

        Raises:
          STGTError: the model answers no questions, or the question is not a str.
        """
        if not self.answers:
            raise STGTError(f"{self._name} answers no questions; fine-tune it on some, as by `stgt finetune msrvtt_qa`")
        if not isinstance(question, str):
            raise STGTError(f"question is {question!r:.40} of type {type(question).__name__}; give a str")
        text = clean_question(question, self._clean_text)
        ids, mask = encode(self._tokenizer, [text], self._question_length)
        clips, found = self._clips(videos), list[str]()
        while batch := list(itertools.islice(clips, self.encoder.batch_size)):
            encoded = self.encoder.encode_videos(batch)
            numbers, _ = self.encoder.answer(encoded, ids, mask, [(row, 0) for row in range(len(batch))])
            found += [self.answers[number] for number in numbers]
        return found

    def read_clip(self, path: str | os.PathLike[str], times: tuple[float, float] | None = None) -> np.ndarray:
        """Reads a video file, or the part of it from `times[0]` to `times[1]` seconds, as the model sees it.

        Returns:
          uint8 [T, H, W, 3].
        """
        return self._reader.read(path) if times is None else self._reader.read_segment(path, *times)

    def read_clips(self, paths: Iterable[str | os.PathLike[str]]) -> Iterator[np.ndarray | str]:
        """Reads video files like `read_clip`, in order; in place of one that cannot be read comes the reason."""
        return self._reader.try_all(paths)

    def graph(self, videos: Videos) -> tuple[np.ndarray, np.ndarray]:
        """Computes the graph between the patches of neighbouring frames, for pictures of it.

        Returns:
          The frames that the model sees, uint8 [V, T, H, W, 3], and the edge weights of the first graph block, float32
          [V, T*P, T*P], of P patches a frame; 0 where two patches have no edge.

        Raises:
          STGTError: the model was trained without a graph (model.graph.variant=none).

        >>> frames, weights = load("moving_shapes").graph(np.zeros((24, 96, 96, 3), np.uint8))
        >>> frames.shape, weights.shape
        ((1, 6, 64, 64, 3), (1, 96, 96))
        """
        if self.config.graph.variant == "none":
            raise STGTError(f"{self._name} has no graph: it was trained with model.graph.variant=none")
        clips = list(self._clips(videos))
        size = self.config.vision.image_size
        frames = np.array(clips, np.uint8).reshape(-1, self.config.num_frames, size, size, 3)
        return frames, self.encoder.adjacency(clips)

    def __repr__(self) -> str:
        size, count = self.config.vision.image_size, sum(leaf.size for leaf in jax.tree.leaves(self.params))
        frames = f"{self.config.num_frames} frames of {size}x{size} pixels"
        return f"Model({self._name!r}, {frames}, {count / 1e6:.1f} million parameters)"

    def _warn_if_random(self, *needed: str) -> None:
        found = [
            path for path in self._random for name in needed
            if any(fnmatch.fnmatchcase(path, form) for form in (name, f"{name}/*"))
        ]  # fmt: skip
        if found:
            message = (
                f"the result means nothing: {found[0]} of {self._name} is random, as no source of its weights has it"
            )
            warnings.warn(message, stacklevel=3)

    def _clips(self, videos: Videos) -> Iterator[np.ndarray]:
        """The frames of each video, uint8 [T, H, W, 3], as the model takes them."""
        listed = list_videos(videos)
        count = len(listed) if isinstance(listed, Sized) else None
        return self._bar(self._reader.read_all(listed), count, "videos")

    def _tokenize(self, texts: Texts) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and mask, int32 [C, S] each."""
        if isinstance(texts, bytes | Mapping) or not isinstance(texts, Iterable):
            raise STGTError(f"texts is of type {type(texts).__name__}; give a str or a list of them")
        texts = [texts] if isinstance(texts, str) else list(texts)
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise STGTError(f"text {index} is {text!r:.40} of type {type(text).__name__}; give a str")
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                message = f"text {index} is {text!r:.40}, which is not valid Unicode; decode it as UTF-8"
                raise STGTError(message) from error
        texts = [clean_caption(text, self._clean_text) for text in texts]
        length = self._max_text_length
        if num_cut := sum(tokens > length for tokens in num_tokens(self._tokenizer, texts)):
            warnings.warn(f"{num_cut} of {len(texts)} texts have more than {length} tokens and were cut", stacklevel=3)
        ids, mask = encode(self._tokenizer, texts, length)
        special = [self._tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
        if num_unknown := int(np.isin(ids, special).all(axis=1).sum()):
            warnings.warn(f"{num_unknown} of {len(texts)} texts have no word of the model's vocabulary", stacklevel=3)
        return ids, mask

    def _bar(self, items: Iterable[_Item], count: int | None, unit: str) -> Iterator[_Item]:
        """The items, with a progress bar if they are many and take long."""
        few = count is not None and count <= self.encoder.batch_size
        return iter(tqdm(items, total=count, unit=f" {unit}", delay=_BAR_AFTER, disable=few, leave=False))


def _embeddings(values: Any, shape: tuple[int, ...], method: str) -> np.ndarray | None:
    """Returns `values` if they are embeddings, floats [n, *shape]; None if they are still to be encoded."""
    array = np.asarray(values) if hasattr(values, "__array__") else None
    if array is None or not np.issubdtype(array.dtype, np.floating) or array.ndim > 3:  # beyond that they are frames
        return None
    if array.ndim != len(shape) + 1 or array.shape[1:] != shape:
        expected = ", ".join(map(str, ("n", *shape)))
        raise STGTError(f"an array of floats of shape {array.shape} is not what {method} returns, [{expected}]")
    return array.astype(np.float32)
