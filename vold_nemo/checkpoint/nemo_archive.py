""".nemo archives of a model that is spread over ranks.

NeMo's own connector lets rank 0 write ``model.state_dict()``: under tensor or pipeline parallelism that is rank 0's
shard, and ``restore_from`` then loads it into every rank without a word.  This one lets every rank write its shards::

    manifest.json          size and SHA-256 of all that follows, ``model.archive_about``, its own digest (config/manifest.py)
    model_config.yaml      the model's configuration; folders below as "nemo:folders/<key>"
    weights/               from all ranks, loads at any tensor x pipeline size (sharded.py)
    folders/<key>/         small files of the folders that the configuration names: tokenizer, config.json, templates;
                           added tokens of the lineage that the tokenizer there lacks are appended to it
    lineage.json           ``model.lineage``, if the class has one (checkpoint/lineage.py)

The model class brings two collective methods, usually one line each, and one list::

    def save_weights(self, folder): sharded.save_model(self.model, folder)
    def load_weights(self, folder): sharded.load_model(self.model, folder)
    nemo_folders = ("path",)             # configuration keys (dotted) that name Hugging Face folders

Nothing of an archive is believed before it has been compared with its manifest (archive_file.py), and what its configuration
says is taken as it stands: ``${oc.env:...}`` in it is a text.

NeMo and Lightning are imported by :func:`sharded_connector`, not by this module.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch.distributed as dist

from vold_nemo.checkpoint import archive_file, lineage
from vold_nemo.checkpoint.archive_file import pack, unpack
from vold_nemo.config import ConfigError, manifest
from vold_nemo.config.launcher import launch
from vold_nemo.config.literal import literal, read_yaml
from vold_nemo.megatron import tensors
from vold_nemo.megatron.adoption import append_tokens

CONFIG, WEIGHTS, FOLDERS = "model_config.yaml", "weights", "folders"
_WEIGHT_FILES = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".distcp", ".h5", ".msgpack", ".gguf", ".onnx", ".index.json",
)


def attach(model, layout) -> None:
    """Make ``model.save_to`` use the sharded connector on every rank.

    ``ModelPT.save_to`` calls its connector on all ranks only where AppState knows of a model-parallel size.
    """
    from nemo.utils.app_state import AppState

    state = AppState()
    state.tensor_model_parallel_size = layout.tensor
    state.pipeline_model_parallel_size = layout.pipeline
    state.model_parallel_size = layout.tensor * layout.pipeline
    model._save_restore_connector = sharded_connector()()


@lru_cache(maxsize=1)
def sharded_connector():
    """The class ``ShardedConnector(SaveRestoreConnector)``; importing NeMo takes seconds, so only on demand."""
    from nemo.core.connectors.save_restore_connector import SaveRestoreConnector
    from nemo.utils.app_state import AppState

    class ShardedConnector(SaveRestoreConnector):
        """See the module's docstring."""

        def save_to(self, model, save_path: str) -> None:
            """Write ``save_path`` (or, with ``pack_nemo_file = False``, its folder).  Collective over the world.

            Everything is staged beside ``save_path``, on storage that all ranks share, and renamed when whole.

            :raises ArchiveNotWritten: on every rank, if one of them could not write; an earlier archive stays.
            """
            path = Path(save_path).absolute()
            stage = path.with_name(path.name + ".tmp")
            about = getattr(model, "archive_about", {})

            def make_room() -> None:
                shutil.rmtree(stage, ignore_errors=True)
                (stage / WEIGHTS).mkdir(parents=True)

            def finish() -> None:
                _stage_beside_weights(model, stage)
                pack(stage, path, about) if self.pack_nemo_file else _move_into(stage, path.parent, about)

            _write_together(stage, make_room if _rank() == 0 else None)
            _write_together(stage, lambda: model.save_weights(stage / WEIGHTS))
            _write_together(stage, finish if _rank() == 0 else None)

        def restore_from(
            self, calling_cls, restore_path, override_config_path=None, map_location=None, strict=True,
            return_config=False, trainer=None, validate_access_integrity=True,
        ):
            """The model (or its configuration) from an archive or an unpacked folder, in the present layout.

            Collective.  The class is ``calling_cls``: a ``target`` in the archive's configuration is not imported.
            ``map_location`` and ``strict`` have no say: the model places itself, and loading is always strict.
            """
            folder = Path(self.model_extracted_dir or restore_path)
            unpacked = None if folder.is_dir() else _unpack_on_each_node(folder)
            if unpacked is None:
                _on_one_rank(lambda: archive_file.check_folder(folder))
            folder = unpacked or folder
            config = _config_in(folder, override_config_path)
            if return_config:
                return config
            calling_cls._set_model_restore_state(is_being_restored=True, folder=str(folder))
            try:
                instance = calling_cls.from_config_dict(config=config, trainer=trainer)
                instance.load_weights(folder / WEIGHTS)
            finally:
                calling_cls._set_model_restore_state(is_being_restored=False)
                AppState().nemo_file_folder = None
            _barrier()
            if unpacked is not None and launch().local_rank == 0:
                shutil.rmtree(unpacked / WEIGHTS)  # the small files stay: the model's configuration points at them
            return instance

    return ShardedConnector


def _stage_beside_weights(model, stage: Path) -> None:
    """Configuration, lineage and the small files of the folders that the configuration names, into ``stage``."""
    from omegaconf import OmegaConf

    config = OmegaConf.create(literal(OmegaConf.to_container(model.cfg, resolve=True)))
    origin = getattr(model, "lineage", {})
    if origin:
        lineage.write(origin, stage / lineage.IN_RUN)
    for key in getattr(model, "nemo_folders", ()):
        source = OmegaConf.select(config, key)
        if source is not None:
            _copy_small_files(Path(source), stage / FOLDERS / key, key)
            append_tokens(stage / FOLDERS / key, origin.get("added_tokens", ()))
            OmegaConf.update(config, key, f"nemo:{FOLDERS}/{key}")
    (stage / CONFIG).write_text(OmegaConf.to_yaml(config, resolve=True), encoding="utf-8")


def _move_into(stage: Path, folder: Path, about: dict[str, Any]) -> None:
    """What is staged takes the place of what bears its names in ``folder``."""
    archive_file.write_manifest(stage, about)
    for entry in sorted(stage.iterdir()):
        target = folder / entry.name
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        entry.rename(target)
    stage.rmdir()


def _config_in(folder: Path, override):
    """The model's configuration of an unpacked archive (or ``override``, a path or a DictConfig), pointing at its folders.

    :raises ConfigError: it cannot be read, or names a folder outside of the archive.
    """
    from omegaconf import DictConfig, OmegaConf, open_dict

    if isinstance(override, DictConfig):
        config = override
    else:
        config = OmegaConf.create(literal(read_yaml(Path(override) if override else folder / CONFIG)))
    config = config.model if "model" in config else config
    with open_dict(config):
        config.pop("target", None)
    for key, value in _leaves(config):
        if isinstance(value, str) and value.startswith("nemo:"):
            name = value.removeprefix("nemo:")
            if not name.startswith(f"{FOLDERS}/") or not manifest.is_inside(name):
                raise ConfigError(
                    f"{CONFIG}: {key}", value, f"nemo:{FOLDERS}/..., inside the archive", "do not use this .nemo file"
                )
            OmegaConf.update(config, key, literal(str(folder / name)))
    return config


def _unpack_on_each_node(archive: Path) -> Path:
    """One process a node extracts into a temporary folder of a name that all agree on; removed when it exits."""
    agreed = [next(tempfile._get_candidate_names())]
    if dist.is_initialized():
        dist.broadcast_object_list(agreed, src=0)
    folder = Path(tempfile.gettempdir()) / f"vold_nemo_{agreed[0]}"
    failure: list[Any] = [None]
    if launch().local_rank == 0:
        folder.mkdir(mode=0o700)
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        try:
            unpack(archive, folder)
        except (ConfigError, OSError) as error:
            failure = [error]
    _fail_together(failure[0])
    return folder


class ArchiveNotWritten(OSError):
    """A rank could not write its part: disk full, quota, permissions."""


def _write_together(stage: Path, work: Callable[[], None] | None) -> None:
    """This rank's part, and then the others': all go on, or all raise and nothing stays in ``stage``."""
    from torch.distributed.checkpoint import CheckpointException

    problem = None
    try:
        if work is not None:
            work()
    except (OSError, RuntimeError, CheckpointException) as error:  # torch reports a short write as a RuntimeError
        problem = (str(error).strip() or repr(error)).splitlines()[-1]
    problems: list[Any] = [problem]
    if dist.is_initialized():
        problems = [None] * dist.get_world_size()
        dist.all_gather_object(problems, problem)
    said = [f"rank {rank}: {text}" for rank, text in enumerate(problems) if text is not None]
    if said:
        if _rank() == 0:
            shutil.rmtree(stage, ignore_errors=True)
        raise ArchiveNotWritten("; ".join(said[:4]))


def _on_one_rank(work) -> None:
    """``work`` on the first rank; all raise what it raises."""
    failure = None
    if _rank() == 0:
        try:
            work()
        except ConfigError as error:
            failure = error
    _fail_together(failure)


def _fail_together(failure: Exception | None) -> None:
    """Raise on all ranks if it failed on one, or some would wait in the next collective for ever."""
    if dist.is_initialized():
        failures: list[Any] = [None] * dist.get_world_size()
        said = (failure.key, failure.value, failure.allowed, failure.mend) if isinstance(failure, ConfigError) else None
        dist.all_gather_object(failures, (said, str(failure)) if failure else None)
        first = next((one for one in failures if one), None)
        if failure is None and first is not None:
            raise ConfigError(*first[0]) if first[0] else RuntimeError(f"another node could not unpack it: {first[1]}")
    if failure is not None:
        raise failure


def _copy_small_files(source: Path, target: Path, key: str) -> None:
    """Tokenizer, processor, templates, configuration: what a Hugging Face folder holds beside weights, and their names."""
    if not source.is_dir():
        raise ConfigError(key, str(source), "an existing folder", f"point {key} at the Hugging Face checkpoint")
    target.mkdir(parents=True)
    for file in sorted(source.iterdir()):
        if file.is_file() and not file.name.endswith(_WEIGHT_FILES):
            shutil.copyfile(file, target / file.name)
    if any((source / name).is_file() for name in (tensors.INDEX, tensors.SINGLE)):
        tensors.write_listing(source, target)  # how the checkpoint names its tensors is part of the architecture


def _leaves(config, prefix: str = ""):
    """(dotted key, value) of every leaf of an OmegaConf tree of dicts."""
    from omegaconf import DictConfig

    for key, value in config.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, DictConfig):
            yield from _leaves(value, name)
        else:
            yield name, value


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
