"""Sharded weights on disk: every rank writes what it holds, any layout reads it back.

megatron-core's ``dist_checkpointing`` describes a model as pieces of global tensors, so that what TP2 x PP2 wrote loads
at any other tensor and pipeline parallel size.  The format is its ``torch_dist``; only the writer is ours.
"""

from __future__ import annotations

import pickle
from functools import lru_cache
from pathlib import Path
from typing import Any

from vold_nemo.config import ConfigError
from vold_nemo.megatron.training import unwrap

# All that a torch_dist index may name.  It is the one pickle in the format: tensors and the common part are read with
# weights_only=True.
_INDEX_NAMES = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
        "TensorProperties", "_MEM_FORMAT_ENCODING", "StorageMeta",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.planner": {"SavePlan", "WriteItem", "WriteItemType", "TensorWriteData"},
    "torch": {"Size", "device", "float32", "bfloat16", "float16", "float64", "int64", "int32", "uint8", "bool"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "PurePosixPath", "WindowsPath"},
    "collections": {"OrderedDict"},
}


@lru_cache(maxsize=1)
def _strategy():
    import torch.distributed.checkpoint as dcp
    from megatron.core.dist_checkpointing.strategies.torch import (
        MCoreSavePlanner,
        TorchDistSaveShardedStrategy,
        _replace_state_dict_keys_with_sharded_keys,
        mcore_to_pyt_state_dict,
    )

    class SynchronousSave(TorchDistSaveShardedStrategy):
        """torch_dist written by each rank's own process.

        megatron-core's writer forks worker processes and starts a spawn Manager even for a synchronous save: it hangs
        without psutil, in scripts without a ``__main__`` guard, and cannot run in daemonic processes.
        """

        def save(self, sharded_state_dict, checkpoint_dir) -> None:
            state, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, self.keep_only_main_replica)
            dcp.save(
                mcore_to_pyt_state_dict(state, False),
                storage_writer=dcp.FileSystemWriter(checkpoint_dir, thread_count=1),
                planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
            )

    return SynchronousSave("torch_dist", 1)


def save_shards(state: dict[str, Any], folder: Path) -> None:
    """Write a sharded state dict into ``folder`` (which exists and is empty).  Collective."""
    from megatron.core import dist_checkpointing

    dist_checkpointing.save(state, str(folder), sharded_strategy=_strategy())


def load_shards(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Read what ``state`` asks for from ``folder``.  Collective.  A missing key is an error, never a default."""
    from megatron.core import dist_checkpointing

    check_index(folder)
    return dist_checkpointing.load(state, str(folder))


def model_state(model) -> dict[str, Any]:
    """The sharded weights of ``model`` (wrapped or not), without what kernels keep beside them (``_extra_state``)."""
    return {k: v for k, v in unwrap(model).sharded_state_dict().items() if not k.endswith("_extra_state")}


def save_model(model, folder: str | Path) -> None:
    """Write the weights of ``model`` into ``folder``; all ranks take part, each writing its own shards."""
    save_shards({"model": model_state(model)}, Path(folder))


def load_model(model, folder: str | Path) -> None:
    """Read weights that any layout wrote into ``model``, laid out as it now is.  Collective.

    An optimizer with master weights must be told afterwards: ``optimizer.reload_model_params()``.
    """
    set_model(model, load_shards({"model": model_state(model)}, Path(folder))["model"])


def set_model(model, state: dict[str, Any]) -> None:
    """Copy loaded weights into ``model``; a weight that is missing or left over is an error."""
    missing, unexpected = unwrap(model).load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("_extra_state")]
    if missing or unexpected:
        raise ConfigError(
            "checkpoint", {"missing": missing, "unexpected": unexpected}, "exactly the model's weights",
            "this checkpoint is of another architecture: start from the model it was made with",
        )


class _Index(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if name not in _INDEX_NAMES.get(module, ()):
            raise ConfigError(
                "checkpoint index", f"{module}.{name}", "names of torch's checkpoint format only",
                "this file was not written by vold_nemo or has been tampered with: do not load it",
            )
        return super().find_class(module, name)


def check_index(folder: Path) -> None:
    """Refuse an index (``.metadata``) that could run code when it is unpickled."""
    path = Path(folder) / ".metadata"
    if not path.is_file():
        raise ConfigError("checkpoint", str(folder), "a folder with a .metadata index", "choose a complete checkpoint")
    with path.open("rb") as file:
        _Index(file).load()
