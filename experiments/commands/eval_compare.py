"""`stgt eval compare`."""

from experiments.commands.values import Figures


def eval_compare(
    first: str,  # results file, from `stgt eval ... --results`
    second: str,  # another one, of the same task and data
    *,
    resamples: int = 10_000,  # draws of the bootstrap
    seed: int = 0,  # of the draws
) -> Figures:
    """Compare two results files of the same task and data: how each figure differs.

    The interval of 95 % is that of a paired bootstrap over videos. Where it does not contain 0, the models differ.
    """
    import dataclasses

    from experiments.results import compare_results, read_results
    from experiments.tables import format_table
    from stgt_jax.checks import check

    check(resamples > 0, f"--resamples={resamples} must be greater than 0")
    found = compare_results(read_results(first), read_results(second), resamples=resamples, seed=seed)
    rows = [
        {
            "metric": one.metric,
            "first": f"{one.first:.1f}",
            "second": f"{one.second:.1f}",
            "difference": f"{one.second - one.first:+.1f}",
            "95 % interval": f"{one.low:+.1f} to {one.high:+.1f}",
        }
        for one in found
    ]
    print(format_table(rows, left=("metric",)))
    return {one.metric: dataclasses.asdict(one) for one in found}
