"""What the plan says of activations and of the objective is within a tenth of what a tracker of every allocation counts."""

import pytest

from tests.planning.allocations import training_peak
from vold_nemo.config import ParallelConfig
from vold_nemo.megatron.architecture import Architecture
from vold_nemo.objective import head, softmax
from vold_nemo.planning import activations
from vold_nemo.planning.activations import Heads, Numerics, Tokens
from vold_nemo.planning.allocation import Placement

SHAPE = dict(family="qwen3", layers=2, heads=8, kv_groups=2, head_dim=32, tied=True, qkv_bias=False, rope_theta=1e4,
             rms_eps=1e-6, max_positions=4096)  # fmt: skip
CASES = {  # vocabulary, hidden, feed-forward, length of two sequences, chunk, query and key norms, estimator
    "activations dominate": (512, 256, 768, 128, 64, True, "reverse"),
    "LM head dominates": (16384, 256, 512, 64, 64, False, "k2"),
    "logits dominate": (8192, 64, 128, 256, 256, False, "reverse"),
}


@pytest.mark.parametrize("tensor, sequence", [(1, False), (2, False), (2, True)], ids=["tp1", "tp2", "tp2_sp"])
@pytest.mark.parametrize("case, precision, size, recompute", [
    ("activations dominate", "bf16", 2, "none"), ("LM head dominates", "bf16", 2, "none"),
    ("logits dominate", "fp32", 4, "none"),
    ("activations dominate", "bf16", 2, "selective"), ("activations dominate", "bf16", 2, "full"),
])  # fmt: skip
def test_peaks_are_those_of_the_tracker(gloo, case, precision, size, recompute, tensor, sequence):
    vocabulary, hidden, ffn, length, chunk, qk_norm, estimator = CASES[case]
    shape = dict(SHAPE, vocabulary=vocabulary, hidden=hidden, ffn=ffn, qk_norm=qk_norm)
    args = (shape, tensor, sequence, precision, length, 2, chunk, estimator, recompute)
    measured = max(gloo(tensor).run(training_peak, *args), key=lambda found: found["peak"])

    arch, tokens, how = Architecture(**shape), Tokens(2 * length, length), Numerics(size, cuda=False)
    rows, parallel = vocabulary // tensor, ParallelConfig(tensor=tensor, sequence=sequence, recompute=recompute)
    kept = activations.saved(arch, Placement(tensor, 1, 1, 0), tokens, parallel, how)
    loss = activations.objective(
        Heads(rows, hidden, 2 * hidden), tokens.count, chunk, how, gathered=sequence, exact=estimator == "reverse"
    )
    behind = activations.layer_backward(arch, tokens, tensor, how)
    again = behind + activations.recomputed(arch, tokens, parallel, how)
    peak = max(kept + max(loss.peak, loss.kept + behind, again), activations.embedding_backward(arch, rows, how))
    assert kept == pytest.approx(measured["saved"], rel=0.05)
    assert peak == pytest.approx(measured["peak"], rel=0.10)


def test_the_plan_knows_the_objectives_blocks():
    assert activations._CPU_BLOCK == softmax._CACHE_BYTES and activations._GPU_BLOCK == softmax._GPU_BYTES
    assert activations._HEAD_ROWS == head._ROWS
