"""Configuration: the schema with its one default a key, composition, the launcher's environment and the exit codes."""

from vold_nemo.config.schema import *  # noqa: F403
