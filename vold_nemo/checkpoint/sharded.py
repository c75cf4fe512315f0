"""Sharded weights on disk: every rank writes what it holds, any layout reads it back.

megatron-core's ``dist_checkpointing`` describes a model as pieces of global tensors, so that what TP2 x PP2 wrote loads
at any other tensor and pipeline parallel size.  The files are those of its ``torch_dist``; writer and index are ours.
"""

from __future__ import annotations

import io
import itertools
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from vold_nemo.checkpoint import index
from vold_nemo.checkpoint.shares import owners
from vold_nemo.config import ConfigError
from vold_nemo.megatron import device as devices
from vold_nemo.megatron.chunks import Chunks
from vold_nemo.megatron.pinned import Room
from vold_nemo.megatron.training import unwrap

_MODEL = ("embedding.", "decoder.", "output_layer.")  # what the keys of weights begin with


class Staged:
    """A sharded state dict that this rank is about to write into a folder (which exists and is empty).

    Making one is collective over the world.  The format is megatron-core's ``torch_dist``; the writing is ours: its own forks
    worker processes and starts a spawn Manager even for a synchronous save (it hangs without psutil, in scripts without a
    ``__main__`` guard, and cannot run in daemonic processes), and ends in a barrier of the default group, in which ranks wait
    for rank 0 even if that one met a full disk, and which from a thread would meet training's collectives.

    Args:
        room: what is written are the tensors of now, whatever becomes of them: this rank's part is copied into host memory
            of this.  None = they are read when they are written, one by one.
        checked: a state of these very shapes has been looked at before.  Else all ranks exchange what each means to write,
            which at a thousand of them is hundreds of megabytes of names that each unpacks.
    """

    def __init__(self, state: dict[str, Any], *, room: Room | None = None, checked: bool = False):
        from megatron.core.dist_checkpointing import ShardedTensor
        from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
        from megatron.core.dist_checkpointing.strategies.torch import (
            _replace_state_dict_keys_with_sharded_keys,
            mcore_to_pyt_state_dict,
        )

        sharded, common = save_preprocess(state, validate_access_integrity=not checked)
        by_key, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded, keep_only_main_replica=True)
        if room is not None:
            _copy([one for one in itertools.chain.from_iterable(by_key.values()) if isinstance(one, ShardedTensor)], room)
        self._common = io.BytesIO()
        torch.save(common, self._common)
        self._state = mcore_to_pyt_state_dict(by_key, False)

    def write_common(self, folder: Path) -> None:
        """What is the same on all ranks, and which format this is.  For one rank, without collectives."""
        from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
        from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME

        (folder / COMMON_STATE_FNAME).write_bytes(self._common.getbuffer())
        save_config(CheckpointingConfig("torch_dist", 1), str(folder))

    def write(self, folder: Path, group=None) -> dict[str, str]:
        """The tensors; returns the SHA-256 of each file of them that this rank wrote, by name.

        Every rank calls it, once; the copies are let go of.  Its collectives are of ``group`` alone (None = the default
        group), which spans the world and has a CPU backend.
        """
        import torch.distributed.checkpoint as dcp

        from vold_nemo.checkpoint.shard_files import Planner, Writer

        state, self._state = self._state, None
        writer = Writer(folder)
        dcp.save(state, storage_writer=writer, planner=Planner(), process_group=group)
        return writer.checksums


def _copy(pieces: list, room: Room) -> None:
    """Put host copies in the place of the tensors of ``pieces`` (``ShardedTensor``), which lie on one device.

    From a GPU they are copied one behind the other, and waited for once.
    """
    if not pieces:
        return
    device = pieces[0].data.device
    slab = room.of({number: piece.data.nbytes for number, piece in enumerate(pieces)}, device)
    for number, piece in enumerate(pieces):
        copied = slab[number].view(piece.data.dtype).view(piece.data.shape)
        copied.copy_(piece.data.detach(), non_blocking=True)
        piece.data = copied
    devices.synchronize(device)


def save_shards(state: dict[str, Any], folder: Path) -> None:
    """Write a sharded state dict into ``folder`` (which exists and is empty).  Collective."""
    staged = Staged(state)
    staged.write(folder)  # before what only the first rank writes: alone with a full disk it would leave the others waiting
    if dist.get_rank() == 0:
        staged.write_common(folder)


def load_shards(state: dict[str, Any], folder: Path, *, part: bool = False, strategy: Any = None) -> dict[str, Any]:
    """Read what ``state`` asks for from ``folder``.  Collective.  A missing key is an error, never a default.

    ``part``: the ranks together need not ask for the whole of a tensor.  ``strategy``: megatron-core's ``LoadShardedStrategy``
    that reads the tensors; None = that of the format.
    """
    from megatron.core import dist_checkpointing

    _check_common(folder)
    strategy = strategy or strategy_of(folder)
    return dist_checkpointing.load(state, str(folder), strategy, validate_access_integrity=not part)


def strategy_of(folder: Path) -> Any:
    """What reads tensors of ``folder``, whose index it has read.

    :raises ConfigError: as :func:`index.read`.
    """
    from vold_nemo.checkpoint.shard_files import Reader, Strategy

    known = index.read(folder)
    return Strategy(lambda path: Reader(path, known))


def _check_common(folder: Path) -> None:
    """Read what is common to all ranks as data.  megatron-core reads it as the environment says (``TORCH_FORCE_...``).

    :raises ConfigError: it is missing, no such file, or would run code.
    """
    from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME

    read_data(folder / COMMON_STATE_FNAME)


def read_data(path: Path) -> Any:
    """What ``torch.save`` wrote, of tensors and plain Python values alone.

    :raises ConfigError: it cannot be read, names anything that could run, or is packed: what torch writes is as long as it is.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as members:
                if sum(member.file_size for member in members.infolist()) > path.stat().st_size:
                    raise ValueError("it is packed")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise ConfigError(
            "checkpoint", f"{path}: {(str(error).strip() or repr(error)).splitlines()[0][:200]}", "tensors and plain values",
            "this file was not written by vold_nemo or has been changed since: do not load it",
        ) from None


def model_state(model) -> dict[str, Any]:
    """The sharded weights of ``model`` (wrapped or not), without what kernels keep beside them (``_extra_state``).

    What data-parallel ranks hold alike is shared out among them to be written (:mod:`shares`), and with a parameter its state
    in a plain optimizer; megatron-core would leave all to the first.
    """
    state = _unshared(unwrap(model))
    _share_out(state)
    return state


def _unshared(model) -> dict[str, Any]:
    if isinstance(model, Chunks):  # under the names of their own state_dict; on disk layers are numbered over the model
        return {f"{number}.{k}": v for number, chunk in enumerate(model) for k, v in _unshared(chunk).items()}
    return {k: v for k, v in model.sharded_state_dict().items() if not k.endswith("_extra_state")}


def _share_out(state: dict[str, Any]) -> None:
    from megatron.core import parallel_state

    ranks = parallel_state.get_data_parallel_world_size(with_context_parallel=True)
    # Experts are other groups' copies; of what tensor-parallel ranks and tied stages hold alike the first writes.
    ours = [one for key, one in state.items() if ".experts." not in key and not any(one.replica_id[:-1])]
    for one, owner in zip(ours, owners([one.data.numel() for one in ours], ranks), strict=True):
        one.replica_id = (*one.replica_id[:-1], (one.replica_id[-1] - owner) % ranks)


def save_model(model, folder: str | Path) -> None:
    """Write the weights of ``model`` into ``folder``; all ranks take part, each writing its own shards."""
    save_shards({"model": model_state(model)}, Path(folder))


def load_model(model, folder: str | Path) -> None:
    """Read weights that any layout wrote into ``model``, laid out as it now is.  Collective.

    An optimizer with master weights must be told afterwards: ``optimizer.reload_model_params()``.
    """
    state = {"model": model_state(model)}
    check_weights(state, Path(folder))
    set_model(model, load_shards(state, Path(folder))["model"])


def check_weights(state: Any, folder: Path) -> None:
    """Compare the weights that ``state`` describes (on any stage) with those in ``folder``, by name and whole shape.

    megatron-core would end in a traceback for some, and leave others (the head of an untied model that is read into a tied
    one) unread without a word.  Collective over the pipeline, whose stages each hold a part.

    :raises ConfigError: for weights that are missing or misshapen there, and for weights there that the model has no place
        for.
    """
    from megatron.core import parallel_state

    # a run's checkpoint holds the optimizer's, too
    found = {key: shape for key, shape in index.shapes(folder).items() if key.startswith(_MODEL)}
    wanted = {piece.key: piece for piece in pieces(state)}
    told: list = [(list(wanted), _unmet(wanted, found))] * parallel_state.get_pipeline_model_parallel_world_size()
    if len(told) > 1:  # no stage may go on to the next collective alone
        dist.all_gather_object(told, told[0], group=parallel_state.get_pipeline_model_parallel_group())
    problems = [problem for _, problem in told if problem]
    if over := sorted(found.keys() - {key for keys, _ in told for key in keys}):
        problems.append((over[0], "weights that the model has a place for: this would be lost"))
    if problems:
        raise ConfigError(str(folder), *problems[0], "name the model that trained them (student.path, export.source)")


def _unmet(wanted: dict, found: dict[str, tuple[int, ...]]) -> tuple[str, str] | None:
    """(what is there, what should be) of the first of ``wanted`` that ``found`` lacks or has in another shape."""
    for key, piece in wanted.items():
        should = f"{key} {list(piece.global_shape)}, as the model has it"
        if key not in found:
            return f"no {key}", should
        padded = int(piece.allow_shape_mismatch)  # the rows of the vocabulary, by whatever layout wrote them
        if found[key][padded:] != piece.global_shape[padded:]:
            return f"{key} {list(found[key])}", should
    return None


def pieces(state: Any) -> Iterator:
    """Every ``ShardedTensor`` in ``state``; a fused one (gate and up) is cut into those that lie on disk."""
    from megatron.core.dist_checkpointing import ShardedTensor
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory

    for value in nested_values(state):
        if isinstance(value, ShardedTensorFactory):
            yield from pieces(value.build())
        elif isinstance(value, ShardedTensor):
            yield value


def set_model(model, state: dict[str, Any]) -> None:
    """Copy loaded weights into ``model``; a weight that is missing or left over is an error."""
    missing, unexpected = unwrap(model).load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("_extra_state")]
    if missing or unexpected:
        raise ConfigError(
            "checkpoint", {"missing": missing, "unexpected": unexpected}, "exactly the model's weights",
            "this checkpoint is of another architecture: start from the model it was made with",
        )
