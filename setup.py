"""What pyproject.toml cannot say: conf/, slurm/, recipes/ and the lists of versions lie beside the package and ship inside it.

A wheel holds them as ``vold_nemo/_shipped/``; ``vold_nemo/config/places.py`` finds them there, or in the checkout.
"""

from pathlib import Path

from setuptools import find_namespace_packages, setup
from setuptools.command.build_py import build_py

SHIPPED = ("conf", "slurm", "recipes")


def below(*folders: str) -> list[str]:
    """The folders and those inside them, as dotted names: a folder of files alone is a package, too."""
    wanted = [name for folder in folders for name in (folder, f"{folder}.*")]
    return find_namespace_packages(include=wanted, exclude=["*.__pycache__"])


class WithLists(build_py):
    """The lists of versions go along: they lie in no folder that could be a package."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for file in Path(__file__).parent.glob("constraints*.txt"):
                self.copy_file(str(file), str(Path(self.build_lib, "vold_nemo", "_shipped", file.name)))


setup(
    cmdclass={"build_py": WithLists},
    packages=[*below("vold_nemo"), *(f"vold_nemo._shipped.{name}" for name in below(*SHIPPED))],
    package_dir={f"vold_nemo._shipped.{folder}": folder for folder in SHIPPED},
    package_data={"": ["*.json", "*.yaml", "*.sh", "*.sbatch", "*.def", "Dockerfile", "*.md", "*.html", "*.css"]},
)
