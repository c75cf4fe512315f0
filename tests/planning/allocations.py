"""Counting bytes where they are made: a tracker of live tensor storages, and the jobs that worker ranks run under it."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Bytes of storages born inside the context and still alive: ``now``, and their most, ``peak``.

    Every operator's outputs pass here, the backward pass's too; a storage is counted once, and given back when it dies.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        inputs = {id_of(t) for t in tree_leaves((args, kwargs or {})) if isinstance(t, torch.Tensor)}
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and not leaf.is_meta and id_of(leaf) not in inputs:
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def id_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _copied(model, optimizer) -> tuple[int, int]:
    """Bytes that are copied when training goes on after a checkpoint is staged, and that stand before they are.

    Nothing else stays than these copies, each of which begins at a multiple of some bytes.
    """
    from vold_nemo.checkpoint.optimizer_state import sharded_state
    from vold_nemo.checkpoint.sharded import Staged, model_state
    from vold_nemo.megatron.pinned import ALIGNMENT, Room

    class Noted(Room):
        def __init__(self):
            super().__init__()
            self.sizes = {}

        def of(self, sizes, device):
            self.sizes = sizes
            return super().of(sizes, device)

    weights, room = model_state(model), Noted()
    with LiveBytes() as live:
        state = {"model": weights, "optimizer": sharded_state(optimizer, weights)}
        gathered = live.now
        staged = Staged(state, room=room)
        del state
        gc.collect()
        kept = live.now
    del staged
    copied = sum(room.sizes.values())
    assert 0 <= kept - copied <= ALIGNMENT * len(room.sizes)
    return copied, gathered


def allocated(path: str, tensor: int, pipeline: int, bf16: bool, distributed: bool) -> tuple:
    """(stage, data rank, tensor rank, names and sizes, bytes) as megatron-core made them on this rank.

    Bytes: of parameters, gradients, optimizer; of a checkpoint's copy; of what is gathered for it.
    """
    from tests.megatron.steps import trainer
    from vold_nemo.megatron import parallel
    from vold_nemo.megatron.training import unwrap

    dtype = torch.bfloat16 if bf16 else torch.float32
    model, _, layout, optimizer, _ = trainer(path, tensor, pipeline, dtype=dtype, distributed=distributed)
    try:
        named = [(name, parameter.numel()) for name, parameter in unwrap(model).named_parameters()]
        own = {id_of(p): p.untyped_storage().nbytes() for p in model.module.parameters()}
        gradients = sum(buffer.grad_data.untyped_storage().nbytes() for buffer in model.buffers)
        held = {}
        for part in optimizer.chained_optimizers:
            for group in part.optimizer.param_groups:
                for master in group["params"]:
                    state = part.optimizer.state[master]
                    for t in (master.data, state["exp_avg"], state["exp_avg_sq"]):
                        held[id_of(t)] = t.untyped_storage().nbytes()
        optimizer_bytes = sum(size for key, size in held.items() if key not in own)
        sizes = [sum(own.values()), gradients, optimizer_bytes, *_copied(model, optimizer)]
        return layout.pipeline_rank, layout.data_rank, layout.tensor_rank, named, sizes
    finally:
        parallel.destroy()


def export_peak(source: Path, folder: Path, precision: str) -> int:
    """Bytes that an export of ``source``'s weights needs at most, once they lie in ``folder`` as a run writes them."""
    from tests.megatron import tiny
    from vold_nemo.checkpoint import export, shard_stream, sharded
    from vold_nemo.megatron import architecture, parallel

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    (folder / "shards").mkdir(parents=True)
    model, _, layout = tiny.built(source, 1, 1, dtype=dtype)
    try:
        sharded.save_model(model, folder / "shards")
        del model
        with LiveBytes() as live:
            stream = shard_stream.stream_shards(folder / "shards", architecture.read(source), layout, dtype)
            export.export_hf(stream, source, folder / "hf", 2**30)
        return live.peak
    finally:
        parallel.destroy()


def training_peak(
    shape: dict, tensor: int, sequence: bool, precision: str, length: int, sequences: int, chunk: int, estimator: str,
    recompute: str = "none",
) -> dict:
    """Bytes that one micro-batch of stage 2 needs beyond weights and gradient buffers: kept after the forward, and at most."""
    from vold_nemo.megatron import build, parallel
    from vold_nemo.megatron.architecture import Architecture
    from vold_nemo.megatron.heads import meet_head
    from vold_nemo.megatron.training import unwrap, wrap_ddp
    from vold_nemo.objective import KLTerm, Objective, TeacherStates, TokenBatch, vold_loss
    from vold_nemo.objective.vocabulary import VocabularyShard

    layout = parallel.initialize(tensor, 1, sequence=sequence, seed=1, device="cpu")
    try:
        arch = Architecture(**shape)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        model = wrap_ddp(build.build_model(arch, layout, padded_vocabulary=arch.vocabulary, dtype=dtype, recompute=recompute))
        head = build.lm_head_weight(unwrap(model))
        for parameter in model.module.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        ids = torch.randint(0, arch.vocabulary, (sequences, length))
        count = sequences * length
        whole = torch.ones(arch.vocabulary, dtype=torch.bool)
        shard = VocabularyShard.of(layout.tensor_rank, tensor, whole, whole, layout.tensor_group)
        teacher_head = torch.randn(len(head), 2 * arch.hidden).to(dtype)
        teacher_hidden = torch.randn(count, 2 * arch.hidden).to(dtype)
        ones = torch.full((count,), 1.0 / count)
        tokens = TokenBatch(ids.T.flatten(), torch.zeros(count, dtype=torch.long), ones, ones, ones, None, None)
        with LiveBytes() as live:
            output = model(ids, torch.arange(length).expand_as(ids), None)
            after = live.now
            hidden = meet_head(output, layout).index_select(0, torch.arange(count))
            loss, said = vold_loss(
                hidden, head, tokens, shard, Objective(kl=KLTerm(estimator), chunk_tokens=chunk),
                teacher=TeacherStates(teacher_hidden.index_select(0, torch.arange(count)), teacher_head),
                head_gradient=head.main_grad,
            )  # fmt: skip
            at_loss = live.peak
            del hidden, output, said
            loss.backward()
        return {"saved": after, "at_loss": at_loss, "peak": live.peak}
    finally:
        parallel.destroy()
