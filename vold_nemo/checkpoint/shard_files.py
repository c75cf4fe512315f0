"""The files of a checkpoint's tensors, as torch writes them, in one pass over the bytes; the index beside them is ours.

What torch's writer would do twice is done once: a tensor that is a part of another is written from where it lies (torch copies
it first), and a file is summed up on its way to the disk (else it is read again for its checksum).  torch's index is a pickle:
what stands in its place, in both directions, is ``index.py``.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.strategies import torch as torch_dist
from megatron.core.dist_checkpointing.strategies.torch import MCoreSavePlanner
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from vold_nemo.checkpoint import index


class Planner(MCoreSavePlanner):
    """megatron-core's; each rank's tensors are its own already."""

    def __init__(self) -> None:
        super().__init__(dedup_replicated_tensors=False, flatten_state_dict=False)

    def resolve_data(self, write_item):
        found = super().resolve_data(write_item)
        return alone(found) if isinstance(found, Tensor) else found


def alone(tensor: Tensor) -> Tensor:
    """``tensor`` over a storage that ends where it ends, in the same memory: what is saved is all of the storage.

    One on a device, or with gaps, is left as it is: it becomes one when it is copied.
    """
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        return tensor
    first = tensor.storage_offset() * tensor.itemsize
    own = tensor.untyped_storage()[first : first + tensor.nbytes]  # keeps the whole alive
    return torch.empty(0, dtype=tensor.dtype).set_(own, 0, tensor.shape, tensor.stride())


class Writer(FileSystemWriter):
    """torch's, one file a rank.  ``checksums``: SHA-256 of each that is written, by name.

    Nothing is copied ahead: that goes through pinned memory, which torch rounds up and keeps, and uses a CUDA stream even for
    what lies in host memory: in a new thread that would be device 0's.
    """

    def __init__(self, folder: Path):
        super().__init__(folder, thread_count=1, per_thread_copy_ahead=0)
        self.fs = _Summing()
        self.checksums = self.fs.checksums

    def finish(self, metadata: Metadata, results: list[list[Any]]) -> None:
        """The coordinator's last word: torch would pickle it."""
        metadata.storage_data = {said.index: said.storage_data for of_rank in results for said in of_rank}
        index.write(metadata, Path(self.path))


class Reader(FileSystemReader):
    """torch's, for an index of ours that has been read and found good (``known``; None = it is read now)."""

    def __init__(self, folder: str | Path, known: Metadata | None = None):
        super().__init__(folder)
        self._known = known if known is not None else index.read(folder)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        self._known.storage_meta = StorageMeta(load_id=self.load_id)
        return self._known


class _LoadPlanner(torch_dist.MCoreLoadPlanner):
    def load_bytes(self, read_item, value) -> None:  # torch would unpickle it, whatever it is
        raise RuntimeError(f"{read_item.dest_index.fqn} is no tensor")


class Strategy(torch_dist.TorchDistLoadShardedStrategy):
    """megatron-core's, which makes its reader itself; this one is handed it.

    Args:
        reader: makes one from a folder.
        alone: no other rank takes part.
    """

    def __init__(self, reader: Callable[[Path], FileSystemReader] = Reader, *, alone: bool = False):
        super().__init__()
        self._reader, self._alone = reader, alone

    def load(self, sharded_state_dict, checkpoint_dir, async_strategy="mcore"):
        """As megatron-core's, but for the reader; ``async_strategy``, which chooses it there, is of 0.19.2."""
        pieces = list(torch_dist.nested_values(sharded_state_dict))
        if not all(isinstance(piece, ShardedTensor) for piece in pieces):
            raise TypeError("a checkpoint holds tensors alone")
        state, flat, renamed = torch_dist._replace_state_dict_keys_with_sharded_keys(sharded_state_dict)
        planner = _LoadPlanner(
            shapes_validation_sharded_tensors=[piece for piece in pieces if not piece.allow_shape_mismatch],
            allow_shape_mismatch_sharded_tensors={piece.key: piece for piece in pieces if piece.allow_shape_mismatch},
        )
        asked = torch_dist.mcore_to_pyt_state_dict(state, True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # where it is meant
            warnings.filterwarnings("ignore", ".*load_state_dict.*deprecated", FutureWarning)  # what megatron-core calls, too
            dcp.load_state_dict(asked, self._reader(checkpoint_dir), no_dist=self._alone, planner=planner)
        loaded = {key: torch_dist._unwrap_pyt_sharded_tensor(value) for key, value in asked.items()}
        loaded = torch_dist._replace_sharded_keys_with_state_dict_keys(loaded, flat, renamed)
        torch_dist._restore_dict_types(loaded, sharded_state_dict)
        return loaded


class _Summing(FileSystem):
    def __init__(self) -> None:
        self.checksums: dict[str, str] = {}

    @contextmanager
    def create_stream(self, path, mode: str) -> Iterator[io.IOBase]:
        with super().create_stream(path, mode) as stream:
            if mode != "wb":
                yield stream
                return
            summed = _Summed(stream)
            yield summed
        self.checksums[Path(path).name] = summed.sum.hexdigest()


class _Summed:
    """A file that is written from its beginning to its end, and its sum so far.

    A zip archive, which torch saves a tensor as, is written in one go; going back would be an error here, not another sum.
    """

    def __init__(self, file):
        self._file = file
        self.sum = hashlib.sha256()
        self.tell, self.flush, self.fileno, self.close = file.tell, file.flush, file.fileno, file.close

    def write(self, data) -> int:
        """All of ``data``: a buffered file of Python takes it whole or raises."""
        written = self._file.write(data)
        self.sum.update(data)
        return written
