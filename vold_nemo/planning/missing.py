"""Files that the stages of a chain read and that neither lie there nor are made by a stage before them.  No torch.

What a job would end with hours later, in its first second, is said on the login node.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vold_nemo.config import Config, ConfigError, DatasetConfig
from vold_nemo.config.sources import local_folder
from vold_nemo.data.traces import trace_files
from vold_nemo.planning.chain import Decision


def findings(config: Config, decided: Sequence[Decision]) -> Iterator[ConfigError]:
    """Of the stages that are to be submitted; the ones that are done or queued have found theirs, or will say so."""
    names = {decision.wish.stage.name: decision for decision in decided}
    submitted = {name for name, decision in names.items() if decision.action == "submit"}
    made = {name for name, decision in names.items() if decision.action != "done"}  # a done one has left its files
    for key, dataset in _sets(config, submitted):
        if not Path(local_folder(dataset.path, dataset.revision, "dataset")).exists():
            mend = "correct the path, or fetch it where there is a network: recipes/prefetch.py"
            yield ConfigError(f"{key}.path", dataset.path, "a file, a folder, or a hub id in the local cache", mend)
    if "sft" in submitted and "traces" not in made:
        try:
            trace_files(config.traces.path)
        except ConfigError as error:
            yield error
    outputs = Path(config.outputs)
    wanted = [
        ("export_sft", "sft", "sft.run", outputs / config.sft.run, "a run folder"),
        ("vold", "export_sft", "vold.start", Path(config.vold.start), "a checkpoint folder"),
        ("export_vold", "vold", "vold.run", outputs / config.vold.run, "a run folder"),
        ("evaluate", "export_sft", "sft.run", outputs / config.sft.run / "hf", "a run with its export in hf/"),
        ("evaluate", "export_vold", "vold.run", outputs / config.vold.run / "hf", "a run with its export in hf/"),
    ]
    for stage, maker, key, folder, allowed in wanted:
        own = maker in made and (key != "vold.start" or folder == outputs / config.sft.run / "hf")
        if stage in submitted and not own and not folder.is_dir():
            yield ConfigError(key, str(folder), allowed, f"let {maker} run before {stage}, or correct {key}")
    yield from _site(config)


def _sets(config: Config, submitted: set[str]) -> Iterator[tuple[str, DatasetConfig]]:
    data, validation, asked = config.data, config.vold.validation, config.evaluate
    if "traces" in submitted:
        yield ("data.prompts", data.prompts) if data.trace_prompts is None else ("data.trace_prompts", data.trace_prompts)
    if "vold" in submitted:
        yield "data.prompts", data.prompts
        if validation.every:
            yield from ((f"vold.validation.{key}", one) for key in ("data", "text") if (one := getattr(validation, key)))
    if "evaluate" in submitted:
        yield from ((f"evaluate.{key}", one) for key in ("text", "image") if (one := getattr(asked, key)))


def _site(config: Config) -> Iterator[ConfigError]:
    """What the site's own keys name and a login node can see."""
    launch = config.cluster.launch
    if launch.container is not None and launch.container.startswith(("/", "./")) and not Path(launch.container).exists():
        yield ConfigError("cluster.launch.container", launch.container, "an image that is there", "build it: slurm/README.md")
    if launch.runtime == "bare" and (launch.python or "").startswith("/") and not Path(launch.python or "").exists():
        yield ConfigError("cluster.launch.python", launch.python, "an interpreter that is there", "correct the path")
