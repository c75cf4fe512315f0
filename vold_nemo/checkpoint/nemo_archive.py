""".nemo archives of a model that is spread over ranks.

NeMo's own connector lets rank 0 write ``model.state_dict()``: under tensor or pipeline parallelism that is rank 0's
shard, and ``restore_from`` then loads it into every rank without a word.  This one lets every rank write its shards::

    model_config.yaml      the model's configuration; folders below as "nemo:folders/<key>"
    weights/               torch_dist, from all ranks, loads at any tensor x pipeline size (sharded.py)
    folders/<key>/         small files of the folders that the configuration names: tokenizer, config.json, templates;
                           added tokens of the lineage that the tokenizer there lacks are appended to it
    lineage.json           ``model.lineage``, if the class has one (checkpoint/lineage.py)

The model class brings two collective methods, usually one line each, and one list::

    def save_weights(self, folder): sharded.save_model(self.model, folder)
    def load_weights(self, folder): sharded.load_model(self.model, folder)
    nemo_folders = ("path",)             # configuration keys (dotted) that name Hugging Face folders

NeMo and Lightning are imported by :func:`sharded_connector`, not by this module.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tarfile
import tempfile
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import torch.distributed as dist

from vold_nemo.checkpoint import lineage
from vold_nemo.config import ConfigError
from vold_nemo.config.launcher import launch
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
            """
            path = Path(save_path).absolute()
            stage = path.with_name(path.name + ".tmp")
            if _rank() == 0:
                shutil.rmtree(stage, ignore_errors=True)
                (stage / WEIGHTS).mkdir(parents=True)
            _barrier()
            model.save_weights(stage / WEIGHTS)
            if _rank() == 0:
                _stage_beside_weights(model, stage)
                _pack(stage, path) if self.pack_nemo_file else _move_into(stage, path.parent)
            _barrier()

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

    config = OmegaConf.create(OmegaConf.to_container(model.cfg, resolve=True))
    origin = getattr(model, "lineage", {})
    if origin:
        lineage.write(origin, stage / lineage.IN_RUN)
    for key in getattr(model, "nemo_folders", ()):
        source = OmegaConf.select(config, key)
        if source is not None:
            _copy_small_files(Path(source), stage / FOLDERS / key, key)
            append_tokens(stage / FOLDERS / key, origin.get("added_tokens", ()))
            OmegaConf.update(config, key, f"nemo:{FOLDERS}/{key}")
    OmegaConf.save(config, stage / CONFIG)


def _pack(stage: Path, archive: Path) -> None:
    packed = archive.with_name(archive.name + ".part")
    with tarfile.open(packed, "w:") as tar:
        tar.add(stage, arcname=".")
    os.replace(packed, archive)
    shutil.rmtree(stage)


def _move_into(stage: Path, folder: Path) -> None:
    """What is staged takes the place of what bears its names in ``folder``."""
    for entry in sorted(stage.iterdir()):
        target = folder / entry.name
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        entry.rename(target)
    stage.rmdir()


def _config_in(folder: Path, override):
    """The model's configuration of an unpacked archive (or ``override``, a path or a DictConfig), pointing at its folders."""
    from omegaconf import DictConfig, OmegaConf, open_dict

    config = override if isinstance(override, DictConfig) else OmegaConf.load(override or folder / CONFIG)
    config = config.model if "model" in config else config
    with open_dict(config):
        config.pop("target", None)
    for key, value in _leaves(config):
        if isinstance(value, str) and value.startswith(f"nemo:{FOLDERS}/"):
            OmegaConf.update(config, key, str(folder / value.removeprefix("nemo:")))
    return config


def unpack(archive: str | Path, folder: str | Path) -> Path:
    """Extract ``archive`` into ``folder``; refuse it whole if any member would land elsewhere or is no plain file."""
    folder = Path(folder)
    with tarfile.open(archive, "r:*") as tar:
        members = tar.getmembers()
        for member in members:
            parts = PurePosixPath(member.name)
            if parts.is_absolute() or ".." in parts.parts or not (member.isfile() or member.isdir()):
                raise ConfigError(
                    str(archive), member.name, "plain files inside the archive",
                    "this .nemo file reaches outside its own folder: do not use it",
                )
        tar.extractall(folder, members=members, filter="data")
    return folder


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
        except (ConfigError, OSError, tarfile.TarError) as error:
            failure = [error]
    if dist.is_initialized():  # all ranks fail together, or some would wait in the next collective for ever
        failures: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(failures, failure[0] and (type(failure[0]).__name__, str(failure[0])))
        failure = failure if failure[0] else [f for f in failures if f][:1] or [None]
    if isinstance(failure[0], tuple):
        raise RuntimeError(f"another node could not unpack {archive}: {': '.join(failure[0])}")
    if failure[0] is not None:
        raise failure[0]
    return folder


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
