"""Every size and switch of the model and its training, as frozen dataclasses.

Each value has one place, and a dataclass checks its values when it is built. An option is named in error messages by
its dataclass and field, as in `vision.width`.

Letters, as in the paper: T frames of a clip, G patches per side of a frame, L = 1 + G*G tokens per frame, D vision
width, Q queries, H Q-Former width, E alignment width.
"""

import dataclasses
import typing
from dataclasses import dataclass, field
from typing import Literal

from stgt_jax.checks import check, check_choices, check_not_negative, check_positive, check_rate

GraphVariant = Literal["full", "unweighted", "none"]
GraphImplementation = Literal["auto", "dense", "banded", "pallas_tpu", "pallas_gpu"]
Objective = Literal["alignment", "captioning", "answering"]
BestMetric = Literal["t2v_r1", "reranked_t2v_mean_recall", "cider_d", "answer_accuracy"]
Dtype = Literal["float32", "bfloat16"]
NonfinitePolicy = Literal["stop", "skip"]

BEST_METRICS: dict[str, tuple[str, ...]] = {  # by objective
    "alignment": ("t2v_r1", "reranked_t2v_mean_recall"),
    "captioning": ("cider_d",),
    "answering": ("answer_accuracy",),
}
GRAPH_IMPLEMENTATIONS: tuple[str, ...] = typing.get_args(GraphImplementation)


@dataclass(frozen=True)
class VisionConfig:
    """The EVA-CLIP ViT (docs/model.md section 1). The defaults are the sizes of ViT-g/14."""

    image_size: int = 224  # pixels per side of a frame
    patch_size: int = 14  # pixels per side of a patch
    width: int = 1408  # D
    depth: int = 39  # blocks
    num_heads: int = 16
    mlp_dim: int = 6144
    norm_epsilon: float = 1e-6  # of every LayerNorm
    pos_embed_std: float = 0.02  # of the normal distribution that the position embedding is drawn from
    freeze: bool = False  # do not train the encoder
    open_blocks: int = 0  # with freeze: the last n blocks are trained all the same

    def __post_init__(self) -> None:
        check_positive("vision", self, "image_size", "patch_size", "width", "depth", "num_heads", "mlp_dim",
                       "norm_epsilon", "pos_embed_std")  # fmt: skip
        _check_heads("vision", self.width, self.num_heads)
        nearest_size = max(1, round(self.image_size / self.patch_size)) * self.patch_size
        check(
            self.image_size % self.patch_size == 0,
            f"vision.image_size={self.image_size} is not a multiple of vision.patch_size={self.patch_size};"
            f" use {nearest_size}, for example",
        )
        check(
            0 <= self.open_blocks < self.depth,
            f"vision.open_blocks={self.open_blocks} must lie in [0, vision.depth={self.depth}); to train every block"
            " set vision.freeze=false",
        )
        check(
            self.freeze or self.open_blocks == 0,
            f"vision.open_blocks={self.open_blocks} needs vision.freeze=true",
        )

    @property
    def grid(self) -> int:
        """G, patches per side."""
        return self.image_size // self.patch_size

    @property
    def tokens_per_frame(self) -> int:
        """L = 1 + G*G."""
        return 1 + self.grid**2


@dataclass(frozen=True)
class GraphConfig:
    """The spatio-temporal graph transformer (docs/model.md section 2). Its width is the vision width."""

    num_layers: int = 1
    num_heads: int = 16
    time_embed_rows: int = 8  # a clip of another length takes its rows by nearest-neighbour resampling
    time_embed_std: float = 0.02  # of the normal distribution that the rows are drawn from
    sim_threshold: float = 0.1  # nodes with a cosine similarity below it are not linked
    # What edges are computed from: "nodes", as published, or "vision", the nodes' vision tokens without time and place.
    edges_from: Literal["nodes", "vision"] = "nodes"
    residual: bool = False  # add the input of graph attention to its result; the published model does not
    dropout: float = 0.1  # of the graph attention probabilities
    # "unweighted" keeps the graph's edges but not their weights in attention; "none" replaces the module by the mean
    # of the ViT tokens over frames. Both are for ablations.
    variant: GraphVariant = "full"
    implementation: GraphImplementation = "auto"  # "auto": the platform's kernel if it fits, else "banded"

    def __post_init__(self) -> None:
        check_positive("graph", self, "num_layers", "num_heads", "time_embed_rows")
        check_not_negative("graph", self, "time_embed_std")
        check_rate("graph", self, "dropout")
        check(
            -1.0 <= self.sim_threshold <= 1.0,
            f"graph.sim_threshold={self.sim_threshold} must lie in [-1, 1]: it is compared with cosine similarities",
        )
        check_choices("graph", self)


@dataclass(frozen=True)
class QFormerConfig:
    """The BLIP-2 Q-Former (docs/model.md section 3). The defaults are its BERT-base sizes."""

    vocab_size: int = 30523  # the tokenizer's words, and [DEC] as the last id
    max_text_length: int = 512  # rows of the position embedding
    width: int = 768  # H
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    num_queries: int = 32  # Q
    cross_attention_freq: int = 2  # every n-th layer, from the first on, has cross attention
    norm_epsilon: float = 1e-12  # of every LayerNorm
    dropout: float = 0.1
    sep_token_id: int = 102  # ends a generated caption

    def __post_init__(self) -> None:
        check_positive(
            "qformer", self, "vocab_size", "max_text_length", "width", "depth", "num_heads", "mlp_dim", "num_queries",
            "cross_attention_freq", "norm_epsilon",
        )  # fmt: skip
        check_rate("qformer", self, "dropout")
        _check_heads("qformer", self.width, self.num_heads)

    @property
    def dec_token_id(self) -> int:
        """The id of [DEC], which starts a generated caption."""
        return self.vocab_size - 1


@dataclass(frozen=True)
class ModelConfig:
    """The whole of STGT."""

    num_frames: int = 8  # T, frames of a clip
    vision: VisionConfig = field(default_factory=VisionConfig)
    graph: GraphConfig = field(default_factory=GraphConfig)
    qformer: QFormerConfig = field(default_factory=QFormerConfig)
    ln_vision_epsilon: float = 1e-5  # of the LayerNorm between the graph and the Q-Former
    embed_dim: int = 256  # E
    num_answers: int = 0  # A, answers that the head for questions chooses among; 0 for no such head
    dtype: Dtype = "float32"  # of the computation; trained parameters are float32
    scan_layers: bool = True  # run repeated blocks as a loop, which compiles faster
    remat: bool = False  # recompute the blocks' activations in the backward pass, which saves memory

    def __post_init__(self) -> None:
        check_positive("model", self, "num_frames", "embed_dim", "ln_vision_epsilon")
        check_not_negative("model", self, "num_answers")
        check_choices("model", self)
        if self.graph.variant != "none":
            _check_heads("graph", self.vision.width, self.graph.num_heads)
            check(
                self.vision.width % 4 == 0,
                f"vision.width={self.vision.width} must be a multiple of 4 for the graph's 2D sin-cos table",
            )


def vit_g() -> ModelConfig:
    """The published model: frozen ViT-g/14, one graph block, the BLIP-2 Q-Former."""
    return ModelConfig(vision=VisionConfig(freeze=True), dtype="bfloat16")


@dataclass(frozen=True)
class GenerationConfig:
    """How captions are written. Lengths count tokens, [DEC] and [SEP] included, as in LAVIS."""

    method: Literal["greedy", "beam", "nucleus"] = "beam"  # nucleus draws at random among the most probable tokens
    num_beams: int = 3  # captions that a beam search follows at a time
    num_captions: int = 1  # of each video, the best first
    min_length: int = 10  # tokens before [SEP]
    max_length: int = 30  # tokens at most
    repetition_penalty: float = 1.0  # more than 1 makes tokens that were written already less probable
    length_penalty: float = 1.0  # a beam's score is its log-probability over its length to this power
    top_p: float = 0.9  # nucleus: the probability that the tokens drawn from have together

    def __post_init__(self) -> None:
        check_choices("generation", self)
        check_positive("generation", self, "num_beams", "num_captions", "repetition_penalty", "top_p")
        check_not_negative("generation", self, "min_length")
        check(self.max_length > 1, f"generation.max_length={self.max_length} must be at least 2")
        check(
            self.min_length < self.max_length,
            f"generation.min_length={self.min_length} must be less than generation.max_length={self.max_length}",
        )
        check(
            self.method != "beam" or self.num_captions <= self.num_beams,
            f"generation.num_captions={self.num_captions} is more than generation.num_beams={self.num_beams}",
        )
        check(
            self.method != "greedy" or self.num_captions == 1,
            f"generation.num_captions={self.num_captions}: greedy decoding writes one; use beam or nucleus",
        )


@dataclass(frozen=True)
class LossConfig:
    """The losses of a stage (docs/model.md section 4)."""

    # Contrastive + VTM + VTG; VTG alone, to fine-tune for captioning; the cross-entropy of answers to questions.
    objective: Objective = "alignment"
    contrastive: Literal["vtc", "csal"] = "vtc"  # stage 1 uses "vtc", stage 2 "csal"
    vtc_label_smoothing: float = 0.1
    csal_label_smoothing: float = 0.01
    csal_stop_gradient: bool = False  # keep the gradient out of the CSAL targets
    csal_sharpness: float = 5.0  # factor in the softmax of the CSAL targets; 5 in the paper
    vtg_label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        check_choices("loss", self)
        check_positive("loss", self, "csal_sharpness")
        check_rate("loss", self, "vtc_label_smoothing", "csal_label_smoothing", "vtg_label_smoothing")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a linear warm-up and a cosine decay (docs/model.md section 6)."""

    peak_learning_rate: float = 1e-4
    end_learning_rate: float = 1e-5
    warmup_start_learning_rate: float = 1e-6
    warmup_steps: int = 5000
    beta1: float = 0.9
    beta2: float = 0.98
    weight_decay: float = 0.05
    clip_norm: float = 0.0  # largest norm of the whole gradient; 0 does not clip

    def __post_init__(self) -> None:
        check_positive("optimizer", self, "peak_learning_rate")
        check_rate("optimizer", self, "beta1", "beta2")
        check_not_negative(
            "optimizer", self, "end_learning_rate", "warmup_start_learning_rate", "warmup_steps", "weight_decay",
            "clip_norm",
        )  # fmt: skip


@dataclass(frozen=True)
class MeshConfig:
    """Number of devices along each axis of the mesh; -1 on one axis takes all devices that are left.

    With "auto" (`stgt_jax.mesh`) parameters are split over as many devices as their memory requires, and frames
    are split if there are more devices than clips.
    """

    data: int = -1  # splits the batch
    fsdp: int | Literal["auto"] = 1  # splits the batch and the parameters
    sequence: int | Literal["auto"] = 1  # splits the frames of long videos
    tensor: int = 1  # splits the matrix products

    def __post_init__(self) -> None:
        check_choices("mesh", self)
        sizes = dataclasses.asdict(self)
        numbers = [n for n in sizes.values() if n != "auto"]
        check(all(n == -1 or n > 0 for n in numbers), f"mesh={sizes}: every axis must be positive or -1")
        check(numbers.count(-1) <= 1, f"mesh={sizes}: only one axis can be -1 (all devices left)")
        check(
            len(numbers) == len(sizes) or -1 not in (self.fsdp, self.sequence, self.tensor),
            f"mesh={sizes}: where an axis is auto only data can be -1 (all devices left)",
        )


@dataclass(frozen=True)
class TrainConfig:
    """One stage of training."""

    num_steps: int = 100_000
    batch_size: int = 256  # clips of an optimizer step, over all devices and accumulation steps
    accumulation_steps: int = 1  # parts of a batch that are computed one after the other
    seed: int = 0
    log_every: int = 50  # steps
    eval_every: int = 5000  # steps; 0 never evaluates
    checkpoint_every: int = 1000  # steps
    keep_last: int = 3  # newest checkpoints to keep
    keep_best: int = 1  # checkpoints to keep for their validation
    # Of the validation. reranked_t2v_mean_recall is the mean of R@1, 5 and 10 of videos, after re-ranking; cider_d is
    # for the objective captioning, answer_accuracy for answering.
    best_metric: BestMetric = "t2v_r1"
    # A step whose loss or gradient is not finite ends the run, or changes nothing and is skipped.
    on_nonfinite: NonfinitePolicy = "stop"
    max_skipped_steps: int = 10  # of a run, with on_nonfinite="skip"; one more ends it
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        check_positive("train", self, "num_steps", "batch_size", "accumulation_steps", "log_every",
                       "checkpoint_every", "keep_last", "keep_best")  # fmt: skip
        check_not_negative("train", self, "eval_every", "max_skipped_steps")
        check_choices("train", self)
        check(
            self.batch_size % self.accumulation_steps == 0,
            f"train.accumulation_steps={self.accumulation_steps} does not divide train.batch_size={self.batch_size}",
        )
        check(
            self.batch_size // self.accumulation_steps > 1 or self.loss.objective != "alignment",
            f"train.batch_size={self.batch_size} over {self.accumulation_steps} accumulation steps leaves one clip at a"
            " time; the contrastive losses need at least 2",
        )
        check(
            self.best_metric in BEST_METRICS[self.loss.objective],
            f"train.best_metric={self.best_metric} does not belong to train.loss.objective={self.loss.objective};"
            f" take {' or '.join(BEST_METRICS[self.loss.objective])}",
        )
        check(
            self.optimizer.warmup_steps < self.num_steps,
            f"optimizer.warmup_steps={self.optimizer.warmup_steps} must be less than train.num_steps={self.num_steps}",
        )


@dataclass(frozen=True)
class WeightsConfig:
    """The weights that training starts from; without any, they are random. A run that is resumed needs none.

    Each is the folder of a run, of which the newest checkpoint is read, of one checkpoint, or of an exported model;
    `vision` and `qformer` may also be another project's file or folder of weights (docs/weights.md).
    """

    initial: str = ""  # all parameters, as from the first stage for the second
    vision: str = ""  # the vision encoder's parameters alone, as EVA's; they replace those of `initial`
    qformer: str = ""  # those of the Q-Former, the LayerNorm before it and the heads after it, as BLIP-2's; likewise
    init_missing: tuple[str, ...] = ()  # parameters to draw at random where those files lack them, as qformer/lm_*


def _check_heads(section: str, width: int, num_heads: int) -> None:
    divisors = [n for n in range(1, width + 1) if width % n == 0]
    close = min(divisors, key=lambda n: abs(n - num_heads))
    check(
        width % num_heads == 0,
        f"{section}.num_heads={num_heads} does not divide {section} width {width}; use {close}, for example",
    )
