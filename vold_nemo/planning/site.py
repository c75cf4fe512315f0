"""What can be known of a site's ``cluster.launch`` without its nodes: which variables it sets, and which cannot be right."""

from __future__ import annotations

from collections.abc import Iterator

from vold_nemo.config import ConfigError, LaunchConfig, network

_NAMED = {network.IFNAME: "interface", network.HCA: "hca"}


def variables(launch: LaunchConfig) -> dict[str, str]:
    """What a script exports: ``environment``, and what the keys of their own stand for."""
    own = {name: getattr(launch, key) for name, key in _NAMED.items()}
    return {**launch.environment, **{name: value for name, value in own.items() if value is not None}}


STAGED = ("traces", "sft", "vold")  # stages of a chain whose weights are copied


def findings(launch: LaunchConfig) -> Iterator[ConfigError]:
    """Contradictions and slips that a login node sees; what a node has, each node looks at itself (config/network.py)."""
    prefix = "cluster.launch.environment."
    for name, key in _NAMED.items():
        asked, beside = getattr(launch, key), launch.environment.get(name)
        if asked is not None and beside is not None and asked != beside:
            mend = f"leave one of the two out: cluster.launch.{key} becomes this variable"
            yield ConfigError(f"{prefix}{name}", beside, f"cluster.launch.{key} = {asked!r}", mend)
    if launch.stage is not None and not launch.stage.startswith(("/", "$")):
        mend = "give a folder on each node's own disk: /local/scratch/$SLURM_JOB_ID, $TMPDIR/vold"
        yield ConfigError("cluster.launch.stage", launch.stage, "an absolute path, or one that begins with $VARIABLE", mend)
    for error in network.findings(variables(launch), prefix=prefix):
        own = _NAMED.get(error.key.removeprefix(prefix))
        given = own is not None and getattr(launch, own) is not None
        mend = error.mend.replace(error.key, f"cluster.launch.{own}")
        yield ConfigError(f"cluster.launch.{own}", error.value, error.allowed, mend) if given else error
