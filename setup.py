"""What pyproject.toml cannot say: conf/, slurm/ and recipes/ lie beside the package and ship inside it.

A wheel holds them as ``vold_nemo/_shipped/``; ``vold_nemo/config/places.py`` finds them there, or in the checkout.
"""

from setuptools import find_namespace_packages, setup

SHIPPED = ("conf", "slurm", "recipes")


def below(*folders: str) -> list[str]:
    """The folders and those inside them, as dotted names: a folder of files alone is a package, too."""
    wanted = [name for folder in folders for name in (folder, f"{folder}.*")]
    return find_namespace_packages(include=wanted, exclude=["*.__pycache__"])


setup(
    packages=[*below("vold_nemo"), *(f"vold_nemo._shipped.{name}" for name in below(*SHIPPED))],
    package_dir={f"vold_nemo._shipped.{folder}": folder for folder in SHIPPED},
    package_data={"": ["*.json", "*.yaml", "*.sh", "*.sbatch", "*.def", "*.md", "*.html", "*.css"]},
)
