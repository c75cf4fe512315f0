"""What a packed row tells the attention."""

from types import SimpleNamespace

import pytest
import torch

from vold_nemo.megatron import sequences


@pytest.mark.parametrize(("context", "fused"), [(1, False), (2, False), (2, True)])
def test_padded_starts_are_the_starts_themselves_and_there_under_context_parallelism_alone(context, fused):
    """Transformer Engine's context parallelism divides them, and tells by identity that no padding lies between sequences."""
    seen = {}

    def model(ids, positions, mask, packed_seq_params):
        seen["packed"] = packed_seq_params

    model.config = SimpleNamespace(apply_rope_fusion=fused)

    class Batch(SimpleNamespace):
        def to(self, device):
            return self

    batch = Batch(ids=torch.zeros(1, 12), position_ids=None, bounds=(0, 4, 12))
    step = sequences.through(lambda output, batch, index: None, SimpleNamespace(device="cpu", context=context))
    step(model, batch)
    packed = seen["packed"]
    assert packed.cu_seqlens_q.tolist() == [0, 4, 12] and packed.max_seqlen_q == 8
    there = (packed.cu_seqlens_q, packed.cu_seqlens_kv) if context > 1 else (None, None)
    assert packed.cu_seqlens_q_padded is there[0] and packed.cu_seqlens_kv_padded is there[1]
    batch.bounds = None
    step(model, batch)
    assert seen["packed"] is None
