"""The files of a checkpoint's tensors, as torch writes them, in one pass over the bytes.

What torch's writer would do twice is done once: a tensor that is a part of another is written from where it lies (torch copies
it first), and a file is summed up on its way to the disk (else it is read again for its checksum).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from megatron.core.dist_checkpointing.strategies.torch import MCoreSavePlanner
from torch import Tensor
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.filesystem import FileSystem


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
