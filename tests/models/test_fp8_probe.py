"""The probe before the first step: it lets a sound FP8 teacher pass and stops a broken one, with the numbers."""

import pytest

from tests.models.fp8_jobs import probed


@pytest.mark.parametrize(
    "ranks, layout, virtual",
    [(1, "single", 1), (2, "pp2", 1), (2, "tp2_sp", 1), pytest.param(2, "pp2", 2, marks=pytest.mark.long)],
)
def test_a_sound_teacher_passes_in_every_layout_and_says_the_same(gloo, world, ranks, layout, virtual):
    keys = f"parallel={layout}", f"parallel.virtual={virtual}", "teacher.fp8.probe_layers=4"
    found = gloo(ranks).run(probed, world, None, *keys)
    assert {verdict for verdict, _, _ in found} == {"passed"} and len({said for _, said, _ in found}) == 1
    assert "mean KL(bf16 || fp8)" in found[0][1] and {tokens for *_, tokens in found} == {0}


@pytest.mark.parametrize("broken, ranks, layout", [("scale", 1, "single"), ("nan", 2, "pp2")])
def test_broken_scales_stop_every_rank_with_the_numbers(gloo, world, broken, ranks, layout):
    for verdict, said, _ in gloo(ranks).run(probed, world, broken, f"parallel={layout}"):
        assert verdict == "teacher.precision"
        assert ("max_drift = 0.1" in said) if broken == "scale" else ("not finite" in said)
        assert "bf16" in said


def test_no_tokens_means_no_probe(gloo, world):
    assert gloo(1).run(probed, world, "nan", "teacher.fp8.probe_tokens=0")[0] == ("passed", None, 0)
