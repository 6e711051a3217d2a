"""Captions to token ids and back: BERT WordPiece, lower-cased, `[CLS] ... [SEP]` padded with [PAD] (id 0).

A vocabulary is a text file with one token on each line; its id is the line's number, from 0. It is BERT's own or made
from captions. The model's token [DEC] is not in the file: its id follows the last one.
"""

import collections
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from etils import epath
from tokenizers import BertWordPieceTokenizer
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from data_pipeline.errors import DataError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def train_vocab(captions: Iterable[str], path: str | Path, *, vocab_size: int = 8192) -> int:
    """Writes a vocabulary of at most `vocab_size` tokens made from captions, and returns its size.

    It has the special tokens, then every character (as the start of a word and within one), then whole words, the most
    frequent first. A word that is not in it is spelled in characters. The same captions always give the same file; the
    trainer of `tokenizers` breaks ties by hash order, so its vocabulary differs from run to run.
    """
    normalizer, splitter = BertNormalizer(lowercase=True), BertPreTokenizer()
    words: collections.Counter[str] = collections.Counter()
    for caption in captions:
        words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(caption)))
    pieces: collections.Counter[str] = collections.Counter()
    for word, count in words.items():
        for character in word:
            pieces.update({character: count, f"##{character}": count})
    ordered = [*SPECIAL_TOKENS, *_by_frequency(pieces), *(word for word in _by_frequency(words) if len(word) > 1)]
    vocab = ordered[:vocab_size]
    Path(path).write_text("".join(f"{token}\n" for token in vocab), encoding="utf-8")
    return len(vocab)


def _by_frequency(counts: collections.Counter[str]) -> list[str]:
    return sorted(counts, key=lambda token: (-counts[token], token))


def read_vocab(path: str | os.PathLike[str]) -> list[str]:
    """Returns the tokens of a vocabulary file.

    A byte order mark, CRLF, spaces at the ends of lines and blank lines at the end do no harm.

    Raises:
      DataError: no such file, or not a WordPiece vocabulary ([PAD] first, all special tokens, no token twice or empty).
    """
    try:
        text = epath.Path(path).read_text(encoding="utf-8").removeprefix("\ufeff").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"vocabulary '{path}' is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"vocabulary '{path}' cannot be read: {error.strerror}") from error
    # Only line feeds end lines: a token may be a character that `splitlines` cuts at, such as U+2028.
    tokens = [line.rstrip(" \t") for line in text.rstrip("\n \t").split("\n")]
    missing = [token for token in SPECIAL_TOKENS if token not in tokens]
    if missing:
        raise DataError(f"'{path}' is not a BERT vocabulary; it lacks {', '.join(missing)}")
    if "" in tokens:
        raise DataError(f"vocabulary '{path}', line {tokens.index('') + 1} is empty; each line is a token")
    if tokens[0] != "[PAD]":
        raise DataError(f"vocabulary '{path}' must start with [PAD], not {tokens[0]!r:.40}")
    if num_twice := len(tokens) - len(set(tokens)):
        raise DataError(f"vocabulary '{path}' lists {num_twice} tokens twice")
    return tokens


def copy_vocab(source: str | Path, target: str | Path) -> None:
    """Writes the tokens of a vocabulary file to another, one a line. Raises what `read_vocab` raises."""
    Path(target).write_text("".join(f"{token}\n" for token in read_vocab(source)), encoding="utf-8")


def load_tokenizer(vocab_path: str | os.PathLike[str]) -> BertWordPieceTokenizer:
    """Loads a vocabulary file. Raises what `read_vocab` raises."""
    return make_tokenizer(read_vocab(vocab_path))


def make_tokenizer(words: Sequence[str]) -> BertWordPieceTokenizer:
    """Returns the tokenizer of a vocabulary, whose tokens are in the order of their ids."""
    return BertWordPieceTokenizer(vocab={token: index for index, token in enumerate(words)}, lowercase=True)


def vocab_size(tokenizer: BertWordPieceTokenizer) -> int:
    """Returns the number of ids, special tokens included (the lines of the vocabulary file)."""
    return tokenizer.get_vocab_size()


def num_tokens(tokenizer: BertWordPieceTokenizer, captions: Sequence[str]) -> list[int]:
    """Returns each caption's full length in tokens, [CLS] and [SEP] included."""
    return [len(encoding.ids) for encoding in tokenizer.encode_batch(list(captions))]


def encode(
    tokenizer: BertWordPieceTokenizer, captions: Sequence[str], max_text_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tokenises captions. One longer than S = `max_text_length` is cut, but keeps its [SEP].

    Returns:
      input_ids int32 [N, S], attention_mask int32 [N, S] (1 = token, 0 = padding).
    """
    if max_text_length < 2:
        raise DataError(f"max_text_length={max_text_length} must be at least 2, for [CLS] and [SEP]")
    input_ids = np.zeros((len(captions), max_text_length), np.int32)
    attention_mask = np.zeros_like(input_ids)
    for row, encoding in enumerate(tokenizer.encode_batch(list(captions))):
        ids = encoding.ids
        if len(ids) > max_text_length:
            ids = [*ids[: max_text_length - 1], ids[-1]]
        input_ids[row, : len(ids)] = ids
        attention_mask[row, : len(ids)] = 1
    return input_ids, attention_mask


def decode(tokenizer: BertWordPieceTokenizer, ids: Sequence[int] | np.ndarray) -> str:
    """Returns the text of token ids [S], up to [SEP], without special tokens and ids beyond the vocabulary."""
    ids = [int(token) for token in ids]
    end = tokenizer.token_to_id("[SEP]")
    ids = ids[: ids.index(end)] if end in ids else ids
    return tokenizer.decode([token for token in ids if token < vocab_size(tokenizer)], skip_special_tokens=True)
