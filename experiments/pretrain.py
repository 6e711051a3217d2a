"""One stage of training from a recipe: builds loader and validation, checks that all fits, and calls `train`."""

import functools
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from data_pipeline.config import TEST_SPLIT, TRAIN_SPLIT, VALIDATION_SPLITS
from data_pipeline.loader import eval_batches, num_epoch_examples, train_loader
from data_pipeline.questions import choose_answers, question_tokenizer, read_answers, read_questions
from data_pipeline.shards import VOCAB_NAME, ShardSource, list_splits, open_shards
from data_pipeline.tokenizer import decode, load_tokenizer, read_vocab
from experiments.cache_tokens import check_tokens, check_tokens_for_training
from experiments.recipe_fields import replace_fields
from experiments.recipes import Recipe, get_recipe
from experiments.steps import Steps
from stgt_jax.config import WeightsConfig
from stgt_jax.convert.report import format_report
from stgt_jax.encoder import Encoder
from stgt_jax.errors import STGTError
from stgt_jax.eval.captioning import evaluate_captions
from stgt_jax.eval.metrics import RECALLS
from stgt_jax.eval.question_answering import evaluate_answers
from stgt_jax.eval.retrieval import evaluate_retrieval, time_order_metrics
from stgt_jax.exported import model_folder
from stgt_jax.run_folder import (
    Preparation,
    Provenance,
    check_initial_weights,
    check_vocabulary,
    folder_path,
    read_run,
    write_whole,
)
from stgt_jax.storage import check_storage
from stgt_jax.train.checkpoint import checkpoint_folder, has_checkpoint, is_own
from stgt_jax.train.loop import train
from stgt_jax.train.weights import ORIGINS_NAME, OTHERS, check_weights, initial_params

VALIDATION_BATCH = 32
FEW_EDGES = 1.0  # percent; with fewer edges between frames there is a warning
Measure = Callable[[Recipe, Encoder, Iterable[Mapping[str, Any]]], dict[str, float]]  # of a model on validation clips
logger = logging.getLogger("stgt_jax")


def pretrain(
    recipe: Recipe,
    workdir: str | Path,
    *,
    resume: bool = False,
    allow_changes: bool = False,
    allow_other_graph: bool = False,
    profile_steps: tuple[int, int] | None = None,
) -> dict[str, float]:
    """Trains one stage.

    Args:
      recipe: of the stage, with data.shards set.
      workdir: folder for checkpoints, logs and metrics; local or in a bucket.
      resume: continue from the newest checkpoint in `workdir`.
      allow_changes: resume although options of the training or the data have changed, or start from weights that were
        trained with another graph threshold or number of frames.
      allow_other_graph: start from weights that were trained with another graph threshold or number of frames, as
        fine-tuning does.
      profile_steps: first and last step of a trace, which is written to WORKDIR/tensorboard.

    Returns:
      The losses of the last step and the scores of the last validation, named "validation/...".

    Raises:
      STGTError: shards, weights or devices are missing or do not fit the recipe, or a bucket cannot be reached.
    """
    check_storage(
        workdir, *recipe.data.shard_sets, recipe.weights.initial, recipe.weights.vision, recipe.weights.qformer
    )
    if recipe.weights.initial:
        recipe = replace_fields(recipe, {"weights.initial": str(model_folder(recipe.weights.initial))})
    is_new = not has_checkpoint(workdir)
    if is_new:
        check_weights(recipe.weights, recipe.model, needs_initial=recipe.needs_initial_weights)
    if not recipe.data.shards:
        raise STGTError("data.shards is not set; make a shard set with `stgt data build` and give --data.shards DIR")
    sources = _open_splits(recipe)
    recipe = _count_steps(_fit_to_shards(recipe, sources), sources)
    recipe, answers = _with_answers(recipe, sources)
    for source in sources.values():
        check_tokens_for_training(source, recipe.model)
    provenance = _provenance(recipe, sources, answers, is_new)
    if is_new and recipe.weights.initial:
        first_stage = read_run(recipe.weights.initial)
        check_vocabulary(first_stage, recipe.data.shards, provenance.sections["vocab_sha256"])
        check_initial_weights(first_stage, recipe.model, allow_changes=allow_changes or allow_other_graph)
    per_process, rest = divmod(recipe.train.batch_size, jax.process_count())
    if rest:
        raise STGTError(
            f"train.batch_size={recipe.train.batch_size} does not divide by the {jax.process_count()} processes"
        )
    with train_loader(
        recipe.data,
        TRAIN_SPLIT,
        per_process,
        recipe.train.seed,
        num_frames=recipe.model.num_frames,
        image_size=recipe.model.vision.image_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        answers=answers,
    ) as loader:
        return train(
            recipe.model,
            recipe.train,
            loader,
            workdir,
            resume=resume,
            allow_changes=allow_changes,
            evaluate=_validation(recipe, answers),
            initial_params=_initial_params(recipe, sources, workdir),
            provenance=provenance,
            profile_steps=profile_steps,
        )


def pretrain_step(steps: Steps, name: str, recipe: Recipe, workdir: Path) -> dict[str, float]:
    """Runs `pretrain` as a step of a longer run, and resumes it if an earlier start was interrupted."""
    resume = (workdir / "checkpoints").exists()
    title = f"training {name}, {recipe.train.num_steps} steps"
    return steps.run(name, title, lambda: pretrain(recipe, workdir, resume=resume), output=workdir / "checkpoints")


def _fit_to_shards(recipe: Recipe, sources: Mapping[str, ShardSource]) -> Recipe:
    """Checks that the shards fit the recipe; returns it, with their vocabulary if `vocab_from_data` is set."""
    shards, text = recipe.data.shards, recipe.model.qformer
    for split, source in sources.items():
        if source.settings.max_text_length > text.max_text_length:
            raise STGTError(
                f"model.qformer.max_text_length={text.max_text_length} is less than the"
                f" {source.settings.max_text_length} tokens of a caption in split '{split}' of data.shards='{shards}'"
            )
    words = read_vocab(sources[TRAIN_SPLIT].shards / VOCAB_NAME)
    ours = {"vocab_size": len(words) + 1, "sep_token_id": words.index("[SEP]")}  # the model adds [DEC]
    if recipe.vocab_from_data:
        return replace_fields(recipe, {f"model.qformer.{name}": value for name, value in ours.items()})
    for name, value in ours.items():
        wanted = getattr(text, name)
        if wanted != value:
            raise STGTError(
                f"model.qformer.{name}={wanted}, but the vocabulary of data.shards='{shards}' makes it {value}; build"
                " the shards with the model's vocabulary (--vocab), or use --vocab_from_data true"
            )
    return recipe


def stage_recipe(name: str, fields: Mapping[str, Any], fixed: Mapping[str, Any]) -> Recipe:
    """Returns the recipe of one stage of a longer run.

    Args:
      name: of the recipe.
      fields: the user's values, full name -> value.
      fixed: values that the calling command sets, likewise. The user cannot change them.

    Raises:
      STGTError: the recipe refuses a value, the user sets a fixed field, or weights are missing.
    """
    for field in fixed.keys() & fields.keys():
        raise STGTError(f"--{field} is set by this command itself; leave it out, or use `stgt pretrain`")
    stage = get_recipe(name, {**fields, **fixed})
    check_weights(stage.weights, stage.model, needs_initial=stage.needs_initial_weights)
    return stage


def _with_answers(recipe: Recipe, sources: Mapping[str, ShardSource]) -> tuple[Recipe, tuple[str, ...]]:
    """Returns the recipe with the number of its answers, and the answers; none if it does not train on questions.

    Raises:
      STGTError: its objective, its data and the number of answers do not fit each other.
    """
    asks, objective = recipe.data.epoch == "questions", recipe.train.loss.objective
    if asks != (objective == "answering"):
        raise STGTError(f"data.epoch={recipe.data.epoch} does not go with train.loss.objective={objective}")
    if not asks:
        return recipe, ()
    longest = recipe.model.qformer.max_text_length
    if recipe.data.question_length > longest:
        raise STGTError(
            f"data.question_length={recipe.data.question_length} is more than the {longest} tokens that the model"
            " reads (model.qformer.max_text_length)"
        )
    asked = read_questions(sources[TRAIN_SPLIT])
    if recipe.data.answers:
        answers = read_answers(recipe.data.answers)
    else:
        if not recipe.model.num_answers:
            raise STGTError("model.num_answers=0: give the number of answers to tell apart, or a file, --data.answers")
        answers = choose_answers(asked, recipe.model.num_answers)
    share = sum(asked.answers[answer] for answer in answers) / asked.answers.total()
    if not share:
        raise STGTError(f"none of the answers in data.answers='{recipe.data.answers}' occurs in the training questions")
    logger.info("answers: %d, which answer %.1f %% of the training questions", len(answers), 100 * share)
    return replace_fields(recipe, {"model.num_answers": len(answers)}), answers


def _provenance(recipe: Recipe, sources: Mapping[str, ShardSource], answers: Sequence[str], is_new: bool) -> Provenance:
    """Returns what the run's folder records of its data, vocabulary and first weights."""
    settings = sources[TRAIN_SPLIT].settings
    sections: dict[str, Any] = {
        "data": recipe.data,
        "weights": recipe.weights,
        "needs_initial_weights": recipe.needs_initial_weights,
        "vocab_from_data": recipe.vocab_from_data,
        "preparation": Preparation(
            settings.num_kept_frames,
            settings.resize,
            settings.max_text_length,
            settings.frame_shape,
            settings.clean_text,
        ),
        "vocab_sha256": settings.vocab_sha256,
        "shards": {
            split: {"manifest_sha256": source.manifest_sha256, "num_records": len(source)}
            for split, source in sources.items()
        },
    }
    if answers:
        sections |= {"answers": list(answers), "question_length": recipe.data.question_length}
    if settings.tokens:
        sections["tokens"] = settings.tokens
    if is_new:  # a resumed run has its own weights, and those it started from may be gone
        given = {name: getattr(recipe.weights, name) for name in ("initial", "vision", "qformer")}
        sections["weights_origin"] = {
            name: str(checkpoint_folder(path) if is_own(path) else path) for name, path in given.items() if path
        }
    return Provenance(sections, sources[TRAIN_SPLIT].vocab)


def _open_splits(recipe: Recipe) -> dict[str, ShardSource]:
    """Returns the split to train on, those of further shard sets and, if there is one, the split to validate on.

    Raises:
      STGTError: a further shard set has another vocabulary or longer captions.
    """
    data = recipe.data
    names = [TRAIN_SPLIT, *filter(None, [_validation_split(recipe)])]
    sources = {name: open_shards(data.shards, name) for name in names}
    first = sources[TRAIN_SPLIT].settings
    for number, shards in enumerate(data.mix_shards, 2):
        source = open_shards(shards, TRAIN_SPLIT)
        for option in ("vocab_sha256", "max_text_length"):
            ours, other = getattr(first, option), getattr(source.settings, option)
            if ours != other:
                raise STGTError(
                    f"data.mix_shards: '{shards}' has {option}={other!s:.12}, and '{data.shards}' {ours!s:.12}; build"
                    f" it with the same, --vocab {data.shards}/{VOCAB_NAME} and --max-text-length"
                    f" {first.max_text_length}"
                )
        sources[f"{TRAIN_SPLIT} of shard set {number}"] = source
    return sources


def _count_steps(recipe: Recipe, sources: Mapping[str, ShardSource]) -> Recipe:
    """Returns the recipe with the steps of its `num_epochs`, if it has any.

    Raises:
      STGTError: the data fill no batch.
    """
    if not recipe.num_epochs:
        return recipe
    of_training = [source for name, source in sources.items() if name not in (*VALIDATION_SPLITS, TEST_SPLIT)]
    num_examples = sum(num_epoch_examples(recipe.data, source) for source in of_training)
    per_epoch = num_examples // recipe.train.batch_size
    if not per_epoch:
        raise STGTError(
            f"the {num_examples} training {recipe.data.epoch} fill no batch of train.batch_size="
            f"{recipe.train.batch_size}; give a smaller --batch_size"
        )
    values = {"num_steps": recipe.num_epochs * per_epoch, "eval_every": per_epoch, "checkpoint_every": per_epoch}
    return replace_fields(recipe, {f"train.{name}": value for name, value in values.items()})


def _validation_split(recipe: Recipe) -> str | None:
    """Returns the split to validate on. Raises STGTError where the recipe needs one that is not for the final test."""
    known = list_splits(recipe.data.shards)
    found = next((name for name in VALIDATION_SPLITS if name in known), None)
    if found is None and recipe.needs_validation_split:
        raise STGTError(
            f"data.shards='{recipe.data.shards}' has no split called {' or '.join(VALIDATION_SPLITS)}, on which the"
            " best checkpoint is chosen; build one with `stgt data build ... --split val`"
        )
    return found or (TEST_SPLIT if TEST_SPLIT in known else None)


def _record_origins(origins: Mapping[str, Any], workdir: Path | str) -> None:
    """Logs where the first weights came from, and writes it to WORKDIR/weights.json."""
    for name, value in origins.items():
        if name != OTHERS:
            logger.info("%s: %s", name, value if isinstance(value, str) else f"\n{format_report(value)}")
    folder_path(workdir).mkdir(parents=True, exist_ok=True)
    write_whole(folder_path(workdir) / ORIGINS_NAME, (json.dumps(origins, indent=2) + "\n").encode())


def _initial_params(
    recipe: Recipe, sources: Mapping[str, ShardSource], workdir: Path | str
) -> Callable[[Mesh], Any] | None:
    """Returns a function from the mesh to the initial parameters, or None for random ones."""
    if recipe.weights == WeightsConfig():
        return None

    def make(mesh: Mesh) -> Any:
        params, origins = initial_params(recipe.weights, recipe.model, recipe.train.seed, mesh)
        if jax.process_index() == 0:
            _record_origins(origins, workdir)
        for source in sources.values():
            check_tokens(source, recipe.model, params)
        return params

    return make


def _validation(recipe: Recipe, answers: Sequence[str]) -> Callable[[Any], dict[str, float]] | None:
    """Returns the function from parameters to scores on the validation clips, or None if there are none.

    Raises:
      STGTError: the validation clips have fewer frames than the model reads.
    """
    config, split = recipe.model, _validation_split(recipe)
    if recipe.train.best_metric.startswith("reranked") and recipe.validation_k_test < 2:
        raise STGTError(
            f"train.best_metric={recipe.train.best_metric} needs validation_k_test of at least 2, not"
            f" {recipe.validation_k_test}"
        )
    if split is None:
        return None
    frames = {"num_frames": config.num_frames, "image_size": config.vision.image_size}
    eval_batches(recipe.data, split, VALIDATION_BATCH, **frames)  # raises now rather than at the first validation
    measures: dict[str, Measure] = {
        "alignment": _retrieval_scores,
        "captioning": _caption_scores,
        "answering": functools.partial(_answer_scores, answers),
    }
    measure = measures[recipe.train.loss.objective]

    def evaluate(params: Any) -> dict[str, float]:
        mesh = jax.tree.leaves(params)[0].sharding.mesh
        encoder = Encoder(config, params, mesh=mesh, batch_size=VALIDATION_BATCH)
        batches = eval_batches(recipe.data, split, encoder.batch_size, **frames)
        first = list(itertools.islice(batches, 1))
        return measure(recipe, encoder, itertools.chain(first, batches)) | _edges_between(encoder, first[0])

    return evaluate


def _edges_between(encoder: Encoder, batch: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The percentage of the pairs of patches in neighbouring frames that have an edge; warns where hardly any has."""
    config = encoder.model.config
    if config.graph.variant == "none" or config.num_frames == 1:
        return {}
    share = 100.0 * float(encoder.edge_shares(batch["video"][batch["valid"]]).mean())
    if share < FEW_EDGES and jax.process_index() == 0:
        logger.warning(
            "warning: %.2g %% of the pairs of patches in neighbouring frames have an edge, so the graph carries next to"
            " nothing from frame to frame; lower graph.sim_threshold=%g or graph.time_embed_std=%g, which makes frames"
            " less alike",
            share, config.graph.sim_threshold, config.graph.time_embed_std,
        )  # fmt: skip
    return {"edges_between": share}


def _caption_scores(recipe: Recipe, encoder: Encoder, batches: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    tokenizer = load_tokenizer(epath.Path(recipe.data.shards) / VOCAB_NAME)
    return evaluate_captions(encoder, batches, functools.partial(decode, tokenizer), recipe.generation).metrics


def _answer_scores(
    answers: Sequence[str], recipe: Recipe, encoder: Encoder, batches: Iterable[Mapping[str, Any]]
) -> dict[str, float]:
    tokenize = question_tokenizer(recipe.data.shards, recipe.data.question_length)
    figures = evaluate_answers(encoder, batches, tokenize, answers).to_dict()
    return {"answer_accuracy": figures["accuracy"]["all"]["accuracy"], "answer_coverage": figures["coverage"]}


def _retrieval_scores(recipe: Recipe, encoder: Encoder, batches: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    result = evaluate_retrieval(encoder, batches, k_test=recipe.validation_k_test)
    time_order = time_order_metrics(result)["similarity"]
    metrics = result.metrics
    if time_order["num_texts"]:
        metrics["twin_accuracy"] = time_order["twin_accuracy"]
    if recipe.validation_k_test > 1:
        reranked = result.reranked_metrics
        metrics |= {f"reranked_{name}": value for name, value in reranked.items()}
        metrics["reranked_t2v_mean_recall"] = sum(reranked[f"t2v_r{k}"] for k in RECALLS) / len(RECALLS)
    return metrics
