import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.tokenizer import SPECIAL_TOKENS, decode, encode, load_tokenizer, num_tokens, train_vocab, vocab_size

CAPTIONS = ["A red circle moves left", "a blue square moves right, then left", "Café"]


@pytest.fixture
def tokenizer(tmp_path):
    train_vocab(CAPTIONS, tmp_path / "vocab.txt")
    return load_tokenizer(tmp_path / "vocab.txt")


def test_trained_vocabulary_is_the_same_every_time_with_special_tokens_first(tmp_path):
    sizes = [train_vocab(captions, tmp_path / name) for name, captions in (("a", CAPTIONS), ("b", CAPTIONS[::-1]))]
    tokens = (tmp_path / "a").read_text().split("\n")[:-1]
    assert tuple(tokens[:5]) == SPECIAL_TOKENS
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sizes == [len(tokens)] * 2


def test_vocabulary_size_is_bounded(tmp_path):
    assert train_vocab(CAPTIONS, tmp_path / "vocab.txt", vocab_size=12) == 12
    assert vocab_size(load_tokenizer(tmp_path / "vocab.txt")) == 12


def test_ids_stand_between_cls_and_sep_and_are_padded_with_zero(tokenizer):
    ids, mask = encode(tokenizer, ["a red circle", "left"], 8)
    assert ids.dtype == mask.dtype == np.int32 and ids.shape == mask.shape == (2, 8)
    np.testing.assert_array_equal(mask.sum(1), [5, 3])
    np.testing.assert_array_equal(ids[:, 0], 2)
    assert ids[0, 4] == ids[1, 2] == 3
    assert not ids[mask == 0].any()


def test_case_and_accents_do_not_matter(tokenizer):
    np.testing.assert_array_equal(encode(tokenizer, ["RED Cafe"], 8)[0], encode(tokenizer, ["red café"], 8)[0])


def test_decode_gives_the_text_back(tokenizer):
    ids, _ = encode(tokenizer, ["a blue square moves left"], 16)
    assert decode(tokenizer, ids[0]) == "a blue square moves left"


def test_decode_stops_at_sep_and_leaves_out_ids_beyond_the_vocabulary(tokenizer):
    red, blue = (int(encode(tokenizer, [word], 3)[0][0, 1]) for word in ("red", "blue"))
    assert decode(tokenizer, [vocab_size(tokenizer), red, 3, blue]) == "red"


def test_unseen_word_is_spelt_in_characters(tokenizer):
    ids, mask = encode(tokenizer, ["tram"], 16)
    assert mask.sum() == 2 + len("tram") and 1 not in ids
    assert decode(tokenizer, ids[0]) == "tram"


def test_long_caption_is_cut_and_keeps_sep(tokenizer):
    ids, mask = encode(tokenizer, [CAPTIONS[1]], 5)
    assert num_tokens(tokenizer, [CAPTIONS[1]]) == [10]
    assert ids[0, 0] == 2 and ids[0, -1] == 3 and mask.all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nb\n", r"lacks \[PAD\]"),
        ("\n".join(["a", *SPECIAL_TOKENS]), r"must start with \[PAD\]"),
        ("\n".join([*SPECIAL_TOKENS, "a", "a"]), "twice"),
    ],
)
def test_file_that_is_no_vocabulary_is_an_error(tmp_path, text, message):
    (tmp_path / "vocab.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        load_tokenizer(tmp_path / "vocab.txt")


def test_missing_or_binary_vocabulary_is_an_error(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        load_tokenizer(tmp_path / "none.txt")
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        load_tokenizer(tmp_path / "vocab.txt")


def test_bert_vocabulary_gives_bert_ids(tmp_path):
    words = {
        0: "[PAD]",
        100: "[UNK]",
        101: "[CLS]",
        102: "[SEP]",
        103: "[MASK]",
        1037: "a",
        2417: "red",
        4418: "circle",
    }
    (tmp_path / "vocab.txt").write_text("".join(f"{words.get(i, f'[unused{i}]')}\n" for i in range(4419)))
    ids, _ = encode(load_tokenizer(tmp_path / "vocab.txt"), ["A red circle"], 6)
    np.testing.assert_array_equal(ids, [[101, 1037, 2417, 4418, 102, 0]])


@pytest.mark.parametrize("line", ["", "  ", "\t", "\r"])
def test_blank_line_within_a_vocabulary_is_named(tmp_path, line):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, "a", line, "b"]) + "\n", newline="")
    with pytest.raises(DataError, match="line 7 is empty"):
        load_tokenizer(tmp_path / "vocab.txt")


@pytest.mark.parametrize(
    ("start", "end_of_line", "end"),
    [("\ufeff", "\n", ""), ("", "\r\n", ""), ("", " \n", ""), ("", "\n", "\n \n\t\n"), ("\ufeff", "\r\n", "\r\n \r\n")],
    ids=["byte order mark", "CRLF", "spaces behind tokens", "blank lines at the end", "all"],
)
def test_vocabulary_that_an_editor_saved_gives_the_same_ids(tmp_path, start, end_of_line, end):
    tokens = [*SPECIAL_TOKENS, "a", "\u2028", "\x85", "b"]
    text = start + "".join(f"{token}{end_of_line}" for token in tokens) + end
    (tmp_path / "vocab.txt").write_text(text, encoding="utf-8", newline="")
    vocab = load_tokenizer(tmp_path / "vocab.txt").get_vocab()
    assert vocab == {token: index for index, token in enumerate(tokens)}
