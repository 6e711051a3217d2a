"""An HTML page with random records of a shard set, as training and evaluation see them."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from etils import epath
from tokenizers import BertWordPieceTokenizer

from data_pipeline.config import DataConfig
from data_pipeline.errors import DataError
from data_pipeline.loader import example_clips
from data_pipeline.shards import VOCAB_NAME, VideoRecord, open_shards
from data_pipeline.tokenizer import load_tokenizer

_STYLE = (
    "body{font-family:sans-serif;margin:2em;color:#222} section{margin-bottom:2em} h2{font-size:1em} "
    "img{margin-right:2px} p{margin:.3em 0} .token{background:#eee;border-radius:3px;padding:0 .3em;margin-right:.2em} "
    ".row{color:#777;font-size:.8em}"
)


def write_contact_sheet(
    path: str | Path,
    config: DataConfig,
    split: str,
    *,
    records: Sequence[int] | None = None,
    count: int,
    seed: int,
    num_frames: int,
    image_size: int,
) -> int:
    """Writes the page, and returns the number of records on it.

    Args:
      path: of the HTML file.
      config: options of the loader, augmentation included.
      split: name of the split.
      records: their numbers; by default random ones.
      count: number of random records.
      seed: of their choice and augmentation.
      num_frames: T, frames of a clip.
      image_size: their side, pixels.

    Raises:
      DataError: the shard set does not exist or does not fit the options, or a record is damaged.
    """
    if open_shards(config.shards, split).settings.tokens:
        raise DataError(
            f"'{config.shards}' holds tokens of a vision encoder, not pictures; show the shards they are of"
        )
    examples = list(
        example_clips(config, split, count, seed, records=records, num_frames=num_frames, image_size=image_size)
    )
    tokenizer = load_tokenizer(epath.Path(config.shards) / VOCAB_NAME)
    sections = [_section(*example, tokenizer) for example in examples]
    title = html.escape(
        f"{config.shards}, split {split}: {len(sections)} {'random ' if records is None else ''}records"
    )
    page = (
        f"<!doctype html><meta charset='utf-8'><title>{title}</title><style>{_STYLE}</style>"
        f"<h1>{title}</h1>{''.join(sections)}"
    )
    Path(path).write_text(page, encoding="utf-8")
    return len(sections)


def _section(
    record: VideoRecord, example: dict[str, np.ndarray], frames: np.ndarray, tokenizer: BertWordPieceTokenizer
) -> str:
    ids = example["input_ids"][example["attention_mask"] > 0]
    tokens = "".join(f"<span class='token'>{html.escape(tokenizer.id_to_token(i) or '?')}</span>" for i in ids.tolist())
    texts = [f"“{caption}”" for caption in record.captions]
    texts += [f"{asked} — {answer}" for asked, answer in zip(record.questions, record.answers, strict=True)]
    numbers = ", ".join(map(str, record.frame_numbers.tolist()))
    return (
        f"<section><h2>{html.escape(record.video_id)}</h2>"
        f"<p class='row'>in training</p>{_images(example['video'])}"
        f"<p class='row'>in evaluation</p>{_images(frames)}"
        f"{''.join(f'<p>{html.escape(text)}</p>' for text in texts)}<p>{tokens}</p>"
        f"<p class='row'>kept frames {numbers} of {record.num_frames}</p></section>"
    )


def _images(frames: np.ndarray) -> str:
    """Returns <img> elements for uint8 [T, H, W, 3]."""
    files = (cv2.imencode(".png", frame[..., ::-1])[1].tobytes() for frame in frames)
    return "".join(f"<img src='data:image/png;base64,{base64.b64encode(file).decode()}'>" for file in files)
