"""Questions: an epoch asks every one once, with its answer; and lists of answers are read as files hold them."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from test_loader import NUM_KEPT, SIZES, TEXT_LENGTH, _record

from data_pipeline.config import DataConfig
from data_pipeline.errors import DataError
from data_pipeline.loader import eval_batches, train_loader
from data_pipeline.moving_shapes.scenes import SYMMETRIC_KINDS, sample_scenes
from data_pipeline.questions import choose_answers, read_answers, read_questions
from data_pipeline.shard_writer import write_split
from data_pipeline.shards import ShardSettings, hash_file, open_shards
from data_pipeline.tokenizer import encode, load_tokenizer

NUM_CLIPS = 8
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "ball", *map(str, range(NUM_CLIPS)), "red", "blue"]


def record(clip):
    """Of clip n, with n % 3 + 1 questions: what 0 n, what 1 n, ...; the answers alternate, and the last one is rare."""
    questions = tuple(f"what {number} {clip}" for number in range(clip % 3 + 1))
    answers = tuple(
        "green" if number == 2 else ("red", "blue")[(clip + number) % 2] for number in range(len(questions))
    )
    nothing = np.zeros((0, TEXT_LENGTH), np.int32)
    return dataclasses.replace(
        _record(clip), captions=(), input_ids=nothing, attention_mask=nothing, questions=questions, answers=answers
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    shards = tmp_path_factory.mktemp("questions")
    (shards / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    settings = ShardSettings(NUM_KEPT, 12, "keep_aspect", "raw", None, TEXT_LENGTH, hash_file(shards / "vocab.txt"))
    (shards / "train").mkdir()
    write_split(shards / "train", "train", map(record, range(NUM_CLIPS)), settings)
    return DataConfig(shards=str(shards), num_workers=0, epoch="questions", question_length=6)


def take(config, count, **processes):
    with train_loader(config, "train", 3, 0, answers=("red", "blue"), **SIZES, **processes) as loader:
        return list(itertools.islice(loader, count))


def test_epoch_asks_every_question_once_with_its_answer(config):
    tokenizer = load_tokenizer(f"{config.shards}/vocab.txt")
    expected = {}
    for clip in range(NUM_CLIPS):
        of_clip = record(clip)
        for ids, answer in zip(encode(tokenizer, of_clip.questions, 6)[0], of_clip.answers, strict=True):
            expected[tuple(ids.tolist())] = {"red": 0, "blue": 1}.get(answer, -1)
    assert len(expected) == 15
    seen = {}
    for batch in take(config, 5):  # 15 questions in batches of 3
        assert batch["video"].shape == (3, 4, 8, 8, 3) and batch["answer"].dtype == np.int32
        assert batch["attention_mask"].sum(axis=1).tolist() == [5, 5, 5]
        for ids, answer in zip(batch["input_ids"].tolist(), batch["answer"].tolist(), strict=True):
            assert tuple(ids) not in seen
            seen[tuple(ids)] = answer
            assert expected[tuple(ids)] == answer


def test_workers_and_a_resumed_loader_give_the_same_questions(config):
    whole = take(config, 4)
    for batch, other in zip(whole, take(dataclasses.replace(config, num_workers=2), 4), strict=True):
        for name, values in batch.items():
            np.testing.assert_array_equal(values, other[name])
    with train_loader(config, "train", 3, 0, answers=("red", "blue"), **SIZES) as loader:
        next(loader)
        state = loader.get_state()
    with train_loader(config, "train", 3, 0, answers=("red", "blue"), **SIZES) as loader:
        loader.set_state(state)
        np.testing.assert_array_equal(next(loader)["input_ids"], whole[1]["input_ids"])


def test_evaluation_gives_every_clip_with_its_questions(config):
    batches = list(eval_batches(config, "train", 3, **SIZES))
    asked = [
        (batch["video_id"][row], question)
        for batch in batches
        for row, question in zip(batch["question_row"], batch["question"], strict=True)
    ]
    assert asked == [(f"clip_{clip}.mp4", question) for clip in range(NUM_CLIPS) for question in record(clip).questions]


def test_most_frequent_answers_are_chosen(config):
    found = read_questions(open_shards(config.shards, "train"))
    assert found.counts.tolist() == [1, 2, 3, 1, 2, 3, 1, 2] and found.answers.total() == 15
    assert found.by_question["what 0 1"] == {"blue": 1}
    assert choose_answers(found, 2) == tuple(sorted(("red", "blue"), key=lambda a: (-found.answers[a], a)))
    assert len(choose_answers(found, 99)) == 3


def test_split_without_questions_is_refused(config, tmp_path):
    settings = open_shards(config.shards, "train").settings
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (tmp_path / "train").mkdir()
    write_split(tmp_path / "train", "train", map(_record, range(4)), settings)
    with pytest.raises(DataError, match="has no questions; build it from rows with question"):
        read_questions(open_shards(tmp_path, "train"))


@pytest.mark.parametrize(
    "text", ["red\nblue\n", '["red", "blue"]', '{"blue": 1, "red": 0}', '{"blue": "1", "red": "0"}']
)
def test_answers_are_read_from_lines_lists_and_maps(tmp_path, text):
    (tmp_path / "answers").write_text(text)
    assert read_answers(str(tmp_path / "answers")) == ("red", "blue")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("red\nred\n", "must name one answer or more, none of them empty or twice"),
        ("", "must name one answer or more"),
        ("[1, 2]", "must be a list of texts, or map texts to numbers"),
        ('{"red": 0, "blue": 2}', "must map its 2 answers to 0, 1, ..., 1"),
        ('["red"', "is not JSON"),
    ],
)
def test_bad_lists_of_answers_are_named(tmp_path, text, complaint):
    (tmp_path / "answers").write_text(text)
    with pytest.raises(DataError, match=complaint):
        read_answers(str(tmp_path / "answers"))
    with pytest.raises(DataError, match="cannot be read"):
        read_answers(str(tmp_path / "none"))


def test_only_questions_of_time_have_another_answer_backward():
    scenes, _ = sample_scenes(0, 400, 10)
    for scene in scenes:
        forward, backward = dict(scene.questions), dict(scene.reversed().questions)
        assert len(forward) == len(scene.questions)
        if scene.kind in SYMMETRIC_KINDS:
            assert forward == backward and not any(question.startswith(("where", "which")) for question in forward)
            continue
        changed = {question for question in forward if backward.get(question) != forward[question]}
        for question in forward:
            first = question.split()[0]
            assert first not in ("what", "how") or question not in changed, question
            assert first not in ("where", "which") or question in changed, question
    assert json.dumps(scenes[0].questions)
