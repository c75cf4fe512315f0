"""The drift report's numbers: against dense formulas, and the same in every layout."""

import pytest
import torch

from tests.models.fp8_jobs import drifted
from vold_nemo.models.drift import token_drift
from vold_nemo.objective.vocabulary import VocabularyShard
from vold_nemo.pages.drift import draw


def test_kl_and_first_choices_are_the_dense_ones():
    generator = torch.Generator().manual_seed(0)
    head, fp8 = (torch.randn(rows, 16, generator=generator) for rows in (40, 30))
    bf16 = fp8 + 0.3 * torch.randn(30, 16, generator=generator)
    ids = torch.arange(40) < 37
    found = token_drift(fp8, bf16, head, torch.zeros(30, dtype=torch.long), VocabularyShard.of(0, 1, ids),
                        chunk_tokens=8)  # fmt: skip
    p, q = ((hidden.double() @ head.double().T)[:, :37].log_softmax(-1) for hidden in (bf16, fp8))
    torch.testing.assert_close(found.kl.double(), (p.exp() * (p - q)).sum(-1), rtol=1e-4, atol=1e-5)
    assert found.same_top.tolist() == (p.argmax(-1) == q.argmax(-1)).tolist()
    assert 0 < found.agreement < 1 and found.mean > 0


def test_every_layout_reports_the_same_drift(gloo, world):
    # Weights alone, and blocks of 32 along a row: nothing depends on how a matrix is split.
    options = ("teacher.fp8.activations=false", "teacher.fp8.recipe=mxfp8")
    alone = gloo(1).run(drifted, world, *options)[0]
    assert alone["kl_mean"] > 0 and len(alone["layers"]) == 4 and all(0 < error < 0.5 for error in alone["layers"])
    assert 0.9 < alone["gradient_cosine"] < 1 and 0.5 < alone["same_first_choice"] <= 1
    assert alone["worst_tokens"][0]["kl"] == pytest.approx(alone["kl_max"])
    for layout in ("parallel=pp2", "parallel=tp2_sp", "parallel=dp2", "parallel.context=2"):
        for found in gloo(2).run(drifted, world, *options, layout):
            assert found["tokens"] == alone["tokens"]
            for key in ("kl_mean", "gradient_cosine"):
                assert found[key] == pytest.approx(alone[key], rel=0.1, abs=1e-3), (layout, key)
            assert found["layers"] == pytest.approx(alone["layers"], rel=0.1)


def test_the_page_holds_the_numbers_and_escapes_the_tokens(gloo, world):
    found = gloo(1).run(drifted, world)[0]
    found["worst_tokens"][0]["token"] = "<script>"
    page = draw(found | {"teacher": "a/teacher", "precision": "fp8", "layout": "tensor 1", "source": "traces.jsonl"})
    assert f"{found['gradient_cosine']:.5f}" in page and "<script>" not in page and "http" not in page
