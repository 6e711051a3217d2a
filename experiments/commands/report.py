"""`stgt report`."""

from dataclasses import dataclass

from experiments.commands.values import Figures, Folder


@dataclass(frozen=True, kw_only=True)
class Report:
    """Measure a finished demo again and draw its report.

    The report includes the ablation in WORKDIR/ablation, if there is one.
    """

    workdir: Folder  # workdir of the demo

    def run(self) -> Figures:
        from experiments.demo_report import REPORT_NAME, measure_and_draw

        figures = measure_and_draw(self.workdir)
        print(f"{self.workdir}/{REPORT_NAME}")
        return figures
