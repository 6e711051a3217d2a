"""How a wheel is laid out: `data_pipeline` and `experiments` lie inside `stgt_jax`, the one package it installs.

As packages of their own their names would collide with those of other projects. Only a wheel is changed: a checkout,
and an editable installation of it, imports the folders from where they stand. All other settings are in pyproject.toml.
"""

import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.egg_info import egg_info

MOVED = ("data_pipeline", "experiments")
IMPORT = re.compile(rf"^(\s*(?:from|import) )({'|'.join(MOVED)})\b", re.MULTILINE)


def place(package: str) -> str:
    """Returns a package's name in the wheel."""
    return f"stgt_jax.{package}" if package.split(".")[0] in MOVED else package


class BuildOnePackage(build_py):
    """Copies the folders to their places in the wheel and changes the imports of what is moved."""

    def run(self) -> None:
        """Gives each package its place, then builds."""
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)  # modules deleted since the last build
            self.packages = self.distribution.packages = [place(package) for package in self.packages]
            self.package_dir = {place(folder): folder for folder in MOVED}
        super().run()

    def build_module(self, module: str, module_file: str, package: str) -> tuple[str, bool]:
        """Copies a module and changes its imports."""
        copy, copied = super().build_module(module, module_file, package)
        text = Path(copy).read_text(encoding="utf-8")
        Path(copy).write_text(IMPORT.sub(r"\1stgt_jax.\2", text), encoding="utf-8")
        return copy, copied


class OneTopLevelName(egg_info):
    """Names the one package in the wheel's metadata, which are written before `BuildOnePackage` runs."""

    def run(self) -> None:
        """Writes the metadata."""
        super().run()
        Path(self.egg_info, "top_level.txt").write_text("stgt_jax\n", encoding="utf-8")


setup(cmdclass={"build_py": BuildOnePackage, "egg_info": OneTopLevelName})
