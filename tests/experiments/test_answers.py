"""Question answering from the command line: fine-tuning on questions, evaluation, and what is refused."""

import json

import pytest
from small_recipe import SMALL

import stgt_jax as stgt
from data_pipeline.build import build_shards
from experiments.recipes import get_recipe

OPTIONS = [*SMALL, "--warmup_steps=1", "--eval_every=2", "--num_answers=5"]


@pytest.fixture(scope="module")
def questions(shards, tmp_path_factory):
    """A shard set of the questions about the clips of `shards`, with the same vocabulary."""
    folder = tmp_path_factory.mktemp("questions") / "shards"
    for split in ("train", "test"):
        build_shards(
            shards.parent / "clips" / split / "questions.csv", folder, split=split,
            vocab=shards / "vocab.txt" if split == "train" else None, num_kept_frames=4, resize=32,
            max_text_length=24, num_workers=0, progress=False,
        )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def tuned(run_stgt, trained_run, questions, tmp_path_factory):
    """The folder of a run that was fine-tuned on questions."""
    workdir = tmp_path_factory.mktemp("tuned") / "run"
    words = ["finetune", "moving_shapes_qa", "--workdir", workdir, "--data.shards", questions,
             "--weights.initial", trained_run, *OPTIONS]  # fmt: skip
    done = run_stgt(*words, "--json", workdir.parent / "figures.json")
    assert done.returncode == 0, done.stderr
    return workdir


def test_run_keeps_its_answers_and_is_validated_by_them(tuned):
    content = json.loads((tuned / "config.json").read_text())
    assert len(content["answers"]) == content["model"]["num_answers"] == 5 and content["question_length"] == 24
    assert json.loads((tuned / "weights.json").read_text())["answer_head"] == "random"
    lines = [json.loads(line) for line in (tuned / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "accuracy_answer", "listed"} <= lines[0].keys() and "loss_vtg" not in lines[0]
    assert 0 <= lines[-1]["validation/answer_accuracy"] <= lines[-1]["validation/answer_coverage"] < 100


def test_evaluation_writes_every_answer_and_the_control(run_stgt, tuned, questions, tmp_path):
    words = ["eval", "qa", "--checkpoint", tuned, "--shards", questions]
    for name, options in (("first", []), ("second", ["--shuffle-frames", "--encode-batch-size", "3"])):
        done = run_stgt(*words, *options, "--results", tmp_path / f"{name}.json")
        assert done.returncode == 0, done.stderr
        assert "the question alone" in done.stdout and "among the 5 that the model knows" in done.stdout
    content = json.loads((tmp_path / "first.json").read_text())
    right = [item["answer"] == item["right"] for item in content["items"]]
    assert content["accuracy"]["all"] == {
        "questions": len(right), "accuracy": pytest.approx(100 * sum(right) / len(right)),
    }  # fmt: skip
    assert content["task"] == "qa" and set(content["controls"]) == {"the question alone"}
    done = run_stgt("eval", "compare", tmp_path / "first.json", tmp_path / "second.json", "--resamples", "100")
    assert done.returncode == 0 and "accuracy" in done.stdout


def test_any_model_answers_by_likelihood(run_stgt, trained_run, tuned, questions, tmp_path):
    (tmp_path / "answers.json").write_text('["red", "green", "two"]')
    for checkpoint, options, num_answers in (
        (trained_run, ["--num-answers", "7"], 7),
        (trained_run, ["--answers", tmp_path / "answers.json"], 3),
        (tuned, [], 5),
    ):
        words = ["eval", "qa", "--checkpoint", checkpoint, "--shards", questions, "--by", "likelihood", *options]
        done = run_stgt(*words, "--candidates", "3", "--results", tmp_path / "x.json")
        assert done.returncode == 0, done.stderr
        content = json.loads((tmp_path / "x.json").read_text())
        assert content["num_answers"] == num_answers and "--by likelihood" in content["command"]
        assert all(0 < item["probability"] <= 1 for item in content["items"])


def test_exported_model_answers_alike(run_stgt, tuned, questions, tmp_path):
    done = run_stgt("export", tuned, tmp_path / "model")
    assert done.returncode == 0, done.stderr
    answers = []
    for checkpoint in (tuned, tmp_path / "model"):
        words = ["eval", "qa", "--checkpoint", checkpoint, "--shards", questions]
        assert run_stgt(*words, "--results", tmp_path / "x.json").returncode == 0
        answers.append([item["answer"] for item in json.loads((tmp_path / "x.json").read_text())["items"]])
    assert answers[0] == answers[1]


def test_model_answers_in_python(tuned, shards):
    model = stgt.load(tuned)
    clips = sorted(str(path) for path in (shards.parent / "clips" / "test").glob("*.mp4"))
    answers = model.answer(clips, "how many shapes are there")
    assert len(answers) == len(clips) and set(answers) <= set(model.answers)
    assert model.answer(clips[1], "how many shapes are there") == answers[1:2]
    with pytest.raises(stgt.STGTError, match="question is 3 of type int; give a str"):
        model.answer(clips, 3)
    with pytest.raises(stgt.STGTError, match="moving_shapes answers no questions; fine-tune it on some"):
        stgt.load("moving_shapes").answer(clips, "how many")


def test_original_names_leave_the_head_out(run_stgt, tuned, tmp_path):
    done = run_stgt("weights", "export", tuned, tmp_path / "reference")
    assert done.returncode == 0, done.stderr
    assert "no place there for answer_head/down/bias, answer_head/down/kernel" in done.stdout
    done = run_stgt("weights", "convert", tuned, "--out", tmp_path / "converted")
    assert done.returncode == 0, done.stderr
    assert "answer_head" in done.stdout


def test_what_does_not_fit_is_one_line(error_of, run_stgt, trained_run, tuned, questions, shards, tmp_path):
    done = run_stgt("eval", "qa", "--checkpoint", trained_run, "--shards", questions)
    assert done.returncode == 2 and "has no list of answers; train it with" in done.stderr
    done = run_stgt("eval", "qa", "--checkpoint", tuned, "--shards", shards)
    assert done.returncode == 2 and "the evaluation data hold no question" in done.stderr
    words = ["finetune", "moving_shapes_qa", "--workdir", tmp_path / "run", "--weights.initial", trained_run, *OPTIONS]
    assert "has no questions; build it from rows" in error_of(*words, "--data.shards", shards)
    words += ["--data.shards", questions]
    assert "does not go with train.loss.objective=answering" in error_of(*words, "--data.epoch=captions")
    assert "give the number of answers to tell apart" in error_of(*words, "--num_answers=0")
    assert "data.question_length=40 is more than the 32 tokens" in error_of(*words, "--question_length=40")
    (tmp_path / "answers.txt").write_text("no such answer\n")
    complaint = error_of(*words, "--data.answers", tmp_path / "answers.txt")
    assert "occurs in the training questions" in complaint


@pytest.mark.parametrize(("dataset", "num_answers"), [("msrvtt", 1500), ("msvd", 2423)])
def test_recipes_have_the_settings_of_the_published_relative(dataset, num_answers):
    recipe = get_recipe(f"finetune_{dataset}_qa")
    optimizer = recipe.train.optimizer
    assert (optimizer.peak_learning_rate, optimizer.end_learning_rate, optimizer.weight_decay) == (5e-5, 1e-6, 1e-4)
    assert recipe.model.num_frames == 16 and recipe.model.num_answers == num_answers
    assert recipe.data.question_length == 44 and recipe.num_epochs == 10 and recipe.data.clean_text == "stgt"
    assert recipe.train.loss.objective == "answering" and recipe.train.best_metric == "answer_accuracy"
