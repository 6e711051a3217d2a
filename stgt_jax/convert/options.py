"""The options of a conversion: what files of weights do not tell, and what is wanted other than they have it."""

from dataclasses import dataclass
from typing import Literal

from stgt_jax.checks import check, check_choices


@dataclass(frozen=True)
class Conversion:
    """Options for weights of other projects. None leaves a value to the weights, their config.json or a known model."""

    vocab: str = ""  # vocab.txt of bert-base-uncased; needed unless it lies beside the weights
    max_text_length: int = 32  # tokens of a text
    image_size: int | None = None  # pixels; another than the weights' resamples their position embeddings
    num_frames: int | None = None  # frames of a clip
    sim_threshold: float | None = None  # of the graph: 0.1 for the release's pre-trained weights, 0.5 for fine-tuned
    vision_heads: int | None = None  # attention heads of the ViT
    graph_heads: int | None = None  # of the graph attention
    qformer_heads: int | None = None  # of the Q-Former
    vision_norm_epsilon: float | None = None  # of the ViT's LayerNorms
    ln_vision_epsilon: float | None = None  # of the LayerNorm before the Q-Former: 1e-5 in LAVIS, 1e-6 in Hugging Face
    qformer_norm_epsilon: float | None = None  # of the Q-Former's LayerNorms
    vision_depth: int | None = None  # blocks of an EVA ViT to use; of ViT-g's 40 blocks 39 are used
    init_missing: tuple[str, ...] = ()  # parameters to draw at random where no source has them, as temperature,itm_head
    position_table: Literal["zeros", "noise"] = "zeros"  # the graph's, which the release's files lack; noise: std 0.02
    seed: int = 0  # of random parameters
    leave_out: tuple[str, ...] = ()  # tensors that are not wanted: patterns of their names in the file, as extra.*

    def __post_init__(self) -> None:
        check_choices("conversion", self)
        for option in ("max_text_length", "image_size", "num_frames", "vision_heads", "graph_heads", "qformer_heads",
                       "vision_norm_epsilon", "ln_vision_epsilon", "qformer_norm_epsilon", "vision_depth"):  # fmt: skip
            value = getattr(self, option)
            check(value is None or value > 0, f"{option}={value} must be greater than 0")
