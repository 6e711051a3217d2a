"""`stgt ablate`."""

from experiments.commands.values import Figures, Folder, RecipeFields

RESULTS = Folder("")


def ablate(
    *,
    workdir: Folder,  # folder for the data and the trainings; `stgt report` shows the tables if this is DEMO/ablation
    results: Folder = RESULTS,  # folder for a file of figures for each arm and seed; by default WORKDIR/results
    arms: tuple[str, ...] = (),  # of those in the table of docs/ablation.md; by default all
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),  # one training of each arm for each
    num_train: int = 6000,  # training clips
    num_val: int = 200,  # validation clips
    num_test: int = 1000,  # test clips
    side_by_side: int = 0,  # trainings side by side, each on one core; by default one for each core
    fields: RecipeFields,  # of both stages
) -> Figures:
    """Train models with and without the graph, its weights and CSAL over seeds, and compare them.

    Started again, it continues after what it finished; trainings continue from their newest checkpoint.
    """
    from experiments.ablation.ablate import run_ablation

    sizes = {"num_train": num_train, "num_val": num_val, "num_test": num_test}
    return run_ablation(
        workdir,
        results or f"{workdir}/results",
        arms=arms,
        seeds=seeds,
        sizes=sizes,
        num_processes=side_by_side,
        fields=fields,
    )
