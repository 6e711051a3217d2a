"""Every size and switch of the model and its training, as frozen dataclasses with named presets.

One source of truth: a value is checked where the dataclass is built, so a config that exists can work. Letters are
those of the paper: T frames, G patches per side, P = G*G patches per frame, L = 1 + P tokens per frame, D vision width,
Q queries, H Q-Former width, E alignment width.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from stgt_jax.errors import STGTError, nearest

GRAPH_IMPLEMENTATIONS = ("auto", "dense", "banded", "pallas_tpu", "pallas_gpu")


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise STGTError(message)


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    _check(value in choices, f"{option}='{value}' is not a choice{nearest(value, choices)}")


def _check_positive(section: str, config: object, *options: str) -> None:
    for option in options:
        value = getattr(config, option)
        _check(value > 0, f"{section}.{option}={value} must be greater than 0")


def _check_rate(section: str, config: object, *options: str) -> None:
    for option in options:
        value = getattr(config, option)
        _check(0.0 <= value < 1.0, f"{section}.{option}={value} must lie in [0, 1)")


def _check_heads(section: str, width: int, num_heads: int) -> None:
    divisors = [n for n in range(1, width + 1) if width % n == 0]
    close = min(divisors, key=lambda n: abs(n - num_heads))
    _check(
        width % num_heads == 0,
        f"{section}.num_heads={num_heads} does not divide {section} width {width}; use {close}, say",
    )


@dataclass(frozen=True)
class VisionConfig:
    """EVA-CLIP ViT (docs/model.md section 1); the defaults are ViT-g/14."""

    image_size: int = 224  # pixels per side
    patch_size: int = 14  # pixels per side
    width: int = 1408  # D
    depth: int = 39
    num_heads: int = 16
    mlp_dim: int = 6144
    dropout: float = 0.0
    drop_path: float = 0.0  # stochastic depth of the last block; grows linearly from 0
    freeze: bool = False
    open_blocks: int = 0  # the last n blocks keep training though the encoder is frozen

    def __post_init__(self) -> None:
        _check_positive("vision", self, "image_size", "patch_size", "width", "depth", "num_heads", "mlp_dim")
        _check_rate("vision", self, "dropout", "drop_path")
        _check_heads("vision", self.width, self.num_heads)
        nearest_size = max(1, round(self.image_size / self.patch_size)) * self.patch_size
        _check(
            self.image_size % self.patch_size == 0,
            f"vision.image_size={self.image_size} is not a multiple of vision.patch_size={self.patch_size};"
            f" use {nearest_size}, say",
        )
        _check(
            0 <= self.open_blocks < self.depth,
            f"vision.open_blocks={self.open_blocks} must lie in [0, vision.depth={self.depth}); to train every block"
            " set vision.freeze=false",
        )
        _check(
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
    """Spatio-temporal graph transformer (docs/model.md section 2); its width is the vision width."""

    num_layers: int = 1
    num_heads: int = 16
    num_frames: int = 8  # rows of the time embedding, and the frames of a training clip
    sim_threshold: float = 0.1  # cosine similarities below it are no edge
    dropout: float = 0.1  # on the graph attention probabilities
    # Ablations: "full"; "unweighted" keeps the edges but attends without their weights; "none" skips the module and
    # averages the ViT tokens over frames.
    variant: str = "full"
    implementation: str = "auto"  # of graph attention; "auto" is the platform's kernel where it fits, else "banded"

    def __post_init__(self) -> None:
        _check_positive("graph", self, "num_layers", "num_heads", "num_frames")
        _check_rate("graph", self, "dropout")
        _check(
            -1.0 <= self.sim_threshold <= 1.0,
            f"graph.sim_threshold={self.sim_threshold} must lie in [-1, 1]: it is compared with cosine similarities",
        )
        _check_choice("graph.variant", self.variant, ("full", "unweighted", "none"))
        _check_choice("graph.implementation", self.implementation, GRAPH_IMPLEMENTATIONS)


@dataclass(frozen=True)
class QFormerConfig:
    """BLIP-2 Q-Former (docs/model.md section 3); the defaults are its BERT-base size."""

    vocab_size: int = 30523  # the tokenizer's words plus [DEC], the last id
    max_text_length: int = 512  # rows of the position embedding
    width: int = 768  # H
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    num_queries: int = 32  # Q
    cross_attention_freq: int = 2
    dropout: float = 0.1
    pad_token_id: int = 0
    sep_token_id: int = 102  # ends a generated caption

    def __post_init__(self) -> None:
        _check_positive(
            "qformer", self, "vocab_size", "max_text_length", "width", "depth", "num_heads", "mlp_dim", "num_queries",
            "cross_attention_freq",
        )  # fmt: skip
        _check_rate("qformer", self, "dropout")
        _check_heads("qformer", self.width, self.num_heads)

    @property
    def dec_token_id(self) -> int:
        """The id of [DEC], which starts a generated caption."""
        return self.vocab_size - 1


@dataclass(frozen=True)
class ModelConfig:
    """The whole of STGT."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    graph: GraphConfig = field(default_factory=GraphConfig)
    qformer: QFormerConfig = field(default_factory=QFormerConfig)
    embed_dim: int = 256  # E
    temperature: float = 0.07  # initial value of the learned temperature
    dtype: str = "float32"  # of the computation; parameters are float32
    scan_layers: bool = True  # repeated blocks as a loop: compiles once for all of them
    remat: bool = False  # recompute the blocks' activations in the backward pass

    def __post_init__(self) -> None:
        _check_positive("model", self, "embed_dim", "temperature")
        _check_choice("model.dtype", self.dtype, ("float32", "bfloat16"))
        if self.graph.variant != "none":
            _check_heads("graph", self.vision.width, self.graph.num_heads)
            _check(
                self.vision.width % 4 == 0,
                f"vision.width={self.vision.width} must be a multiple of 4 for the graph's 2D sin-cos table",
            )


@dataclass(frozen=True)
class LossConfig:
    """The three losses of a stage (docs/model.md section 4)."""

    contrastive: str = "vtc"  # stage 1 "vtc", stage 2 "csal"
    vtc_label_smoothing: float = 0.1
    csal_label_smoothing: float = 0.01
    csal_stop_gradient: bool = False  # True: no gradient flows into the CSAL targets
    vtg_label_smoothing: float = 0.1
    vtm_weight: float = 1.0
    vtg_weight: float = 1.0

    def __post_init__(self) -> None:
        _check_choice("loss.contrastive", self.contrastive, ("vtc", "csal"))
        _check_rate("loss", self, "vtc_label_smoothing", "csal_label_smoothing", "vtg_label_smoothing")
        for option in ("vtm_weight", "vtg_weight"):
            _check(getattr(self, option) >= 0, f"loss.{option}={getattr(self, option)} must not be negative")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay (docs/model.md section 6)."""

    peak_learning_rate: float = 1e-4
    end_learning_rate: float = 1e-5
    warmup_start_learning_rate: float = 1e-6
    warmup_steps: int = 5000
    beta1: float = 0.9
    beta2: float = 0.98
    weight_decay: float = 0.05
    clip_norm: float = 1.0  # of the global gradient; 0 clips nothing

    def __post_init__(self) -> None:
        _check_positive("optimizer", self, "peak_learning_rate")
        _check_rate("optimizer", self, "beta1", "beta2")
        for option in ("end_learning_rate", "warmup_start_learning_rate", "warmup_steps", "weight_decay", "clip_norm"):
            _check(getattr(self, option) >= 0, f"optimizer.{option}={getattr(self, option)} must not be negative")


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; -1 on one axis takes all that are left.

    "auto" (`stgt_jax.train.mesh`) splits parameters over as many devices as their memory asks for, and frames where
    there are more devices than clips.
    """

    data: int = -1
    fsdp: int | Literal["auto"] = 1
    sequence: int | Literal["auto"] = 1  # frames, for long videos
    tensor: int = 1

    def __post_init__(self) -> None:
        sizes = dataclasses.asdict(self)
        for axis, size in sizes.items():
            if isinstance(size, str):
                _check_choice(f"mesh.{axis}", size, ("auto",))
        numbers = [n for n in sizes.values() if n != "auto"]
        _check(all(n == -1 or n > 0 for n in numbers), f"mesh={sizes}: every axis must be positive or -1")
        _check(numbers.count(-1) <= 1, f"mesh={sizes}: only one axis can be -1 (all devices left)")
        _check(
            len(numbers) == len(sizes) or -1 not in (self.fsdp, self.sequence, self.tensor),
            f"mesh={sizes}: where an axis is auto only data can be -1 (all devices left)",
        )


@dataclass(frozen=True)
class TrainConfig:
    """One stage of training."""

    num_steps: int = 100_000
    batch_size: int = 256  # clips per optimizer step, over all devices and accumulation steps
    accumulation_steps: int = 1
    seed: int = 0
    log_every: int = 50  # steps
    eval_every: int = 5000  # steps; 0 never
    checkpoint_every: int = 1000  # steps
    keep_last: int = 3  # checkpoints, the newest
    keep_best: int = 1  # checkpoints, those of the highest validation t2v_r1
    initial_weights: str = ""  # a checkpoint folder of an earlier stage, or empty: random weights
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        _check_positive("train", self, "num_steps", "batch_size", "accumulation_steps", "log_every",
                        "checkpoint_every", "keep_last", "keep_best")  # fmt: skip
        _check(self.eval_every >= 0, f"train.eval_every={self.eval_every} must not be negative")
        _check(
            self.batch_size % self.accumulation_steps == 0,
            f"train.accumulation_steps={self.accumulation_steps} does not divide train.batch_size={self.batch_size}",
        )
        _check(
            self.batch_size // self.accumulation_steps > 1,
            f"train.batch_size={self.batch_size} over {self.accumulation_steps} accumulation steps leaves one clip at a"
            " time; the contrastive losses need at least 2",
        )
        _check(
            self.optimizer.warmup_steps < self.num_steps,
            f"optimizer.warmup_steps={self.optimizer.warmup_steps} must be less than train.num_steps={self.num_steps}",
        )


def tiny() -> ModelConfig:
    """A model for tests: seconds on one CPU core."""
    return ModelConfig(
        vision=VisionConfig(image_size=32, patch_size=8, width=32, depth=2, num_heads=4, mlp_dim=64),
        graph=GraphConfig(num_heads=4, num_frames=4),
        qformer=QFormerConfig(vocab_size=64, max_text_length=16, width=32, depth=2, num_heads=4, mlp_dim=64,
                              num_queries=4, sep_token_id=3),
        embed_dim=16,
    )  # fmt: skip


def base() -> ModelConfig:
    """ViT-B/16-sized vision with the full Q-Former: fits one GPU, trained along."""
    return ModelConfig(
        vision=VisionConfig(patch_size=16, width=768, depth=12, num_heads=12, mlp_dim=3072, drop_path=0.1),
        graph=GraphConfig(num_heads=12),
    )


def vit_g() -> ModelConfig:
    """The published model: frozen ViT-g/14, one graph block, the BLIP-2 Q-Former."""
    return ModelConfig(vision=VisionConfig(freeze=True), dtype="bfloat16")


PRESETS = {"tiny": tiny, "base": base, "vit_g": vit_g}
