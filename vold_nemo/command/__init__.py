"""The command line: what every verb in ``recipes/`` starts from."""

from vold_nemo.command.recipe import recipe

__all__ = ["recipe"]
