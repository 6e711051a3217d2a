"""The folder of a run: what it tells, and what of it a run that goes on, or a second stage, may change."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from models_for_tests import tiny

from stgt_jax.config import LossConfig, ModelConfig, TrainConfig
from stgt_jax.errors import STGTError
from stgt_jax.run_folder import (
    Preparation,
    Run,
    as_json,
    check_initial_weights,
    check_resume,
    check_vocabulary,
    folder_path,
    read_run,
    write_run,
)

MODEL, TRAIN = tiny(), TrainConfig(num_steps=9000)
VOCAB = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n"
SHA = hashlib.sha256(VOCAB).hexdigest()


def content(model: ModelConfig = MODEL, train: TrainConfig = TRAIN, **sections: Any) -> dict[str, Any]:
    """What the config.json of a run with these options holds."""
    return {
        "model": model,
        "train": train,
        "data": {"shards": "shards/a", "flip": True, "crop_scale": (0.5, 1.0), "num_workers": 2},
        "weights": {"initial": "", "vision": ""},
        "preparation": Preparation(num_kept_frames=16, resize=72, max_text_length=12),
        "shards": {"train": {"manifest_sha256": 64 * "a", "num_records": 100}},
        "vocab_sha256": SHA,
    } | sections


@pytest.fixture
def run(tmp_path: Path) -> Run:
    write_run(tmp_path, content(), VOCAB)
    return read_run(tmp_path)


def graph(**options: Any) -> ModelConfig:
    return dataclasses.replace(MODEL, graph=dataclasses.replace(MODEL.graph, **options))


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_folder_tells_model_preparation_and_vocabulary(run: Run, tmp_path: Path) -> None:
    assert run.model == MODEL
    assert run.preparation == Preparation(num_kept_frames=16, resize=72, max_text_length=12)
    assert run.vocab_sha256 == SHA and run.vocab_file.read_bytes() == VOCAB
    (tmp_path / "checkpoints" / "7").mkdir(parents=True)
    assert read_run(tmp_path / "checkpoints" / "7") == run


def test_changed_vocabulary_file_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes(VOCAB + b"c\n")
    with pytest.raises(STGTError, match=r"vocab\.txt' is missing or was changed"):
        run.vocab_file  # noqa: B018


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(STGTError, match="nowhere': no such folder"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(STGTError, match=r"has no config\.json"):
        read_run(tmp_path)
    file = tmp_path / "config.json"
    file.write_text('{"model"')
    with pytest.raises(STGTError, match=r"config\.json' is not JSON"):
        read_run(tmp_path)
    file.write_text('{"model": {"vision": {"widht": 3}}}')
    with pytest.raises(STGTError, match=r"config\.json': vision\.widht is not an option; did you mean 'width'"):
        read_run(tmp_path).model  # noqa: B018
    file.write_text('{"preparation": {"resize": 3}}')
    with pytest.raises(STGTError, match='"preparation" is not complete'):
        read_run(tmp_path).preparation  # noqa: B018
    with pytest.raises(STGTError, match='has no "model"'):
        read_run(tmp_path).model  # noqa: B018


def test_names_of_folders_are_no_patterns_and_what_orbax_cannot_write_is_refused(tmp_path: Path) -> None:
    folder = folder_path(tmp_path / "runs [1]*?")
    (folder / "x").mkdir(parents=True)
    assert [path.name for path in folder.glob("*")] == ["x"]
    assert folder_path("gs://bucket/run") == folder_path("gs://bucket") / "run"
    with pytest.raises(STGTError, match="backslash"):
        folder_path("a\\b")
    with pytest.raises(STGTError, match="bucket's folder with"):
        folder_path("gs://bucket/run[1]")


def test_other_vocabulary_is_refused_with_both_folders_and_hashes(run: Run) -> None:
    check_vocabulary(run, "shards/b", SHA)
    other = hashlib.sha256(b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nb\na\n").hexdigest()  # the same words
    with pytest.raises(STGTError, match="another vocabulary") as error:
        check_vocabulary(run, "shards/b", other)
    assert all(word in one_line(error) for word in ("shards/b", str(run.folder), SHA[:8], other[:8]))
    with pytest.raises(STGTError, match="'shards/b' has another vocabulary"):
        check_resume(run, content(vocab_sha256=other, data={"shards": "shards/b"}), 4, allow_changes=True)


def test_what_changes_no_number_is_free_when_a_run_goes_on(run: Run) -> None:
    model = dataclasses.replace(graph(implementation="dense"), scan_layers=False, remat=True)
    mesh = dataclasses.replace(TRAIN.mesh, fsdp=2)
    train = dataclasses.replace(TRAIN, mesh=mesh, log_every=1, eval_every=2, checkpoint_every=3, keep_last=4)
    data = content()["data"] | {"shards": "shards/elsewhere", "num_workers": 0}
    now = check_resume(run, content(model, train, data=data, weights={"initial": "gone", "vision": ""}), 4)
    assert now["model"] == as_json(content())["model"]
    assert now["weights"]["initial"] == "" and now["data"]["shards"] == "shards/elsewhere"
    assert now["train"]["log_every"] == 1


@pytest.mark.parametrize("allow_changes", [False, True])
@pytest.mark.parametrize("option", [{"sim_threshold": 0.5}, {"num_heads": 2}, {"variant": "none"}, {"dropout": 0.0}])
def test_model_of_a_run_never_changes(run: Run, option: dict[str, Any], allow_changes: bool) -> None:
    (name, value), old = next(iter(option.items())), dataclasses.asdict(MODEL.graph)
    with pytest.raises(STGTError, match="cannot change its model") as error:
        check_resume(run, content(graph(**option)), 4, allow_changes=allow_changes)
    change = f"model.graph.{name} was {json.dumps(old[name])}, now {json.dumps(value)}"
    assert change in one_line(error) and "--weights.initial" in one_line(error)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"train": dataclasses.replace(TRAIN, loss=LossConfig(contrastive="csal"))},
         'train.loss.contrastive was "vtc", now "csal"'),
        ({"train": dataclasses.replace(TRAIN, seed=3)}, "train.seed was 0, now 3"),
        ({"train": dataclasses.replace(TRAIN, batch_size=8)}, "train.batch_size was 256, now 8"),
        ({"train": dataclasses.replace(TRAIN, num_steps=9001)}, "train.num_steps was 9000, now 9001"),
        ({"data": content()["data"] | {"flip": False}}, "data.flip was true, now false"),
        ({"data": content()["data"] | {"crop_scale": (0.8, 1.0)}}, "data.crop_scale was [0.5, 1.0], now [0.8, 1.0]"),
        ({"preparation": Preparation(16, 256, 12)}, "preparation.resize was 72, now 256"),
        ({"shards": {"train": {"manifest_sha256": 64 * "b", "num_records": 100}}},
         "shards.train.manifest_sha256 was aaaaaaaa, now bbbbbbbb"),
    ],
)  # fmt: skip
def test_other_changes_are_named_and_need_the_option(run: Run, changed: dict[str, Any], named: str) -> None:
    with pytest.raises(STGTError, match="was started with other options") as error:
        check_resume(run, content(**changed), 4)
    assert named in one_line(error) and one_line(error).count(", now ") == 1 and "--allow-changes" in one_line(error)
    now = check_resume(run, content(**changed), 4, allow_changes=True)
    assert now == as_json(content(**changed))


def test_fewer_steps_than_a_run_has_done_are_refused(run: Run) -> None:
    check_resume(run, content(), 9000)
    fewer = content(train=dataclasses.replace(TRAIN, num_steps=8000))
    with pytest.raises(STGTError, match=r"num_steps=8000 is less than the 8500 steps"):
        check_resume(run, fewer, 8500, allow_changes=True)


def test_same_content_is_not_written_again(run: Run) -> None:
    file = run.folder / "config.json"
    before = Path(file).stat().st_mtime_ns
    write_run(run.folder, check_resume(run, content(), 4), VOCAB)
    assert Path(file).stat().st_mtime_ns == before
    write_run(run.folder, content(train=dataclasses.replace(TRAIN, seed=1)))
    assert read_run(run.folder).content["train"]["seed"] == 1 and run.vocab_file.read_bytes() == VOCAB


@pytest.mark.parametrize("option", [{"num_heads": 2}, {"variant": "unweighted"}])
def test_weights_of_another_model_are_refused(run: Run, option: dict[str, Any]) -> None:
    check_initial_weights(run, MODEL)
    with pytest.raises(STGTError, match="are of another model: model") as error:
        check_initial_weights(run, graph(**option), allow_changes=True)
    assert str(run.folder) in one_line(error) and "--allow-changes" not in one_line(error)
    check_initial_weights(run, graph(**option), part="vision")


def test_second_stage_may_set_dropout_freezing_and_dtype_and_if_allowed_the_threshold(run: Run) -> None:
    vision = dataclasses.replace(MODEL.vision, freeze=True)
    check_initial_weights(run, dataclasses.replace(graph(dropout=0.3), vision=vision, dtype="bfloat16"))
    with pytest.raises(STGTError, match=r"sim_threshold was 0.1, now 0.5; give the same, or --allow-changes"):
        check_initial_weights(run, graph(sim_threshold=0.5))
    check_initial_weights(run, graph(sim_threshold=0.5), allow_changes=True)
