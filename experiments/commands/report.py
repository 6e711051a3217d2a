"""`stgt report`."""

from experiments.commands.values import Figures, Folder


def report(
    *,
    workdir: Folder,  # workdir of the demo
) -> Figures:
    """Measure a finished demo again and draw its report.

    The report includes the ablation in WORKDIR/ablation, if there is one.
    """
    from experiments.demo_report import REPORT_NAME, measure_and_draw

    figures = measure_and_draw(workdir)
    print(f"{workdir}/{REPORT_NAME}")
    return figures
