"""What a fingerprint sees, whole and in parts, by the hash of a CPU and by the sums that stand in for it on a GPU."""

import pytest
import torch

from vold_nemo.rollout import fingerprints
from vold_nemo.rollout.fingerprints import (
    BLOCK,
    WHOLE,
    Fingerprints,
    Part,
    block_sums,
    fingerprint,
    fingerprint_and_total,
    total,
)


@pytest.fixture(params=["xxh3", "sums"])
def mark(request):
    """``mark(tensor, part)``: one of the two ways, both on this CPU."""
    if request.param == "xxh3":
        return fingerprint
    return lambda tensor, part=WHOLE: block_sums(tensor.contiguous().reshape(-1).view(torch.uint8), part)


def weights(blocks: float = 6.5) -> torch.Tensor:
    """Random bf16 [rows, 256] of about so many blocks, and a last row that fills no block."""
    rows = int(blocks * BLOCK) // 512
    return torch.randn(rows, 256, generator=torch.Generator().manual_seed(0)).bfloat16()


CHANGES = {
    "one bit": lambda w: w.view(torch.int16)[rows(w) // 3, 7].bitwise_xor_(1),
    "the last byte": lambda w: w.view(torch.int16)[-1, -1].bitwise_xor_(1),
    "two neighbours": lambda w: w[5, 8:16].copy_(w[5, 8:16].roll(4)),
    "two rows": lambda w: w[:2].copy_(w[:2].flip(0)),
    "two heads": lambda w: w[:256].copy_(w[:256].roll(128, 0)),
    "halves": lambda w: w.copy_(w.roll(rows(w) // 2, 0)),
    "columns": lambda w: w.copy_(w.roll(128, 1)),
    "two blocks": lambda w: w.view(-1)[: BLOCK].copy_(w.view(-1)[: BLOCK].roll(BLOCK // 2)),
    "signs": lambda w: w.neg_(),
    "a row lost": lambda w: w[1:].copy_(w[:-1].clone()),
}


def rows(tensor: torch.Tensor) -> int:
    return len(tensor)


@pytest.mark.parametrize("name", CHANGES)
def test_the_whole_is_seen_to_change(mark, name):
    changed = weights()
    CHANGES[name](changed)
    assert not torch.equal(mark(changed), mark(weights()))


@pytest.mark.parametrize("name", ["halves", "columns", "signs", "a row lost"])
def test_each_part_sees_what_befalls_tensors_in_a_copy(mark, name):
    changed = weights()
    CHANGES[name](changed)
    for k in range(4):
        assert not torch.equal(mark(changed, Part(k, 4)), mark(weights(), Part(k, 4)))


@pytest.mark.parametrize("blocks", [0.1, 2.5, 6.5, 9.0])
def test_the_parts_together_see_every_byte(mark, blocks):
    before = weights(blocks)
    marks = [mark(before, Part(k, 4)) for k in range(4)]
    for row in range(0, len(before), 97):
        changed = before.clone()
        changed.view(torch.int16)[row, row % 256].bitwise_xor_(1)
        seen = [not torch.equal(mark(changed, Part(k, 4)), marks[k]) for k in range(4)]
        assert any(seen)
        if blocks > 4 and row < int(blocks) * BLOCK // 512 - 1:
            assert sum(seen) == 1  # each block is read by one part: that is what makes it cheap


def test_both_ways_are_the_same_at_every_alignment_and_stride(mark):
    tensor = weights(1.2)
    assert torch.equal(mark(tensor), mark(tensor.t().contiguous().t()))
    for shift in range(1, 9):
        memory = torch.empty(tensor.numel() + shift, dtype=tensor.dtype)
        memory[shift:].copy_(tensor.reshape(-1))
        assert torch.equal(mark(memory[shift:]), mark(tensor.reshape(-1)))


def test_a_value_that_is_not_finite_is_found_by_the_part_that_reads_it():
    tensor = weights()
    tensor[200, 3] = float("nan")
    assert [bool(torch.isfinite(total(tensor, Part(k, 4)))) for k in range(4)].count(False) == 1
    both = [fingerprint_and_total(tensor, Part(k, 4)) for k in range(4)]
    assert [bool(torch.isfinite(found)) for _, found in both].count(False) == 1
    assert all(torch.equal(seen, fingerprint(tensor, Part(k, 4))) for k, (seen, _) in enumerate(both))
    named = {"good": weights(0.1), "bad": torch.full((3,), float("inf"))}
    assert Fingerprints.of(named.items(), Part(1, 4), totals=True).not_finite() == ["bad"]


def test_differences_are_named_by_bits_shape_dtype_and_absence():
    named = {name: torch.arange(12.0).view(3, 4) for name in "abcde"}
    other = named | {"b": named["b"].view(4, 3), "c": named["c"].double(), "d": named["d"] + 1}
    del other["e"]
    assert Fingerprints.of(named.items()).differences(Fingerprints.of(other.items())) == ["b", "c", "d", "e"]
    parts = [Fingerprints.of(named.items(), Part(k, 2)) for k in range(2)]
    assert parts[0].differences(parts[1]) == list("abcde")  # two parts are not to be compared


def test_words_a_stride_apart_are_no_neighbours_in_any_power_of_two():
    assert all((64 * 2**n * m) % fingerprints.STRIDE for n in range(16) for m in (1, 3, 5, 7))
