"""The Triton kernels give what the torch path gives, in Triton's interpreter on a CPU (make test-trl has the package)."""

import os
from importlib.util import find_spec

import pytest
import torch

from tests.objective.cases import make_case, ours, reference
from vold_nemo.objective import KLTerm, PolicyTerm

pytestmark = pytest.mark.skipif(
    find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1",
    reason="needs the triton package and TRITON_INTERPRET=1: make test-trl has both",
)
ESTIMATORS = ("k2", "k3", "vopd", "k1_reward", "reverse", "forward", "jsd", "topk")


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
    from vold_nemo.objective import kernels

    monkeypatch.setattr(kernels, "_BLOCK", 16)


@pytest.mark.parametrize("one_sided", [True, False])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_loss_and_gradients_equal_the_torch_path_and_the_dense_reference(estimator, one_sided):
    case = make_case(3, n=20, V=53, dtype=torch.float32, one_sided=one_sided)
    options = {
        "policy": PolicyTerm(), "kl": KLTerm(estimator, top_k=4), "temperature": 0.7, "teacher_temperature": 1.3,
        "chunk_tokens": 8,
    }  # fmt: skip
    loss, said, *gradients = ours(case, kernels="triton", **options)
    expected, usual, *others = ours(case, **options)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(said.entropy, usual.entropy, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(said.kl, usual.kl, rtol=1e-5, atol=1e-5)
    for got, same, exact in zip(gradients, others, reference(case, **options)[2:], strict=True):
        largest = exact.abs().max()
        assert (got - same).abs().max() < 1e-5 * largest and (got - exact).abs().max() < 1e-4 * largest


@pytest.mark.parametrize("estimator", ["vopd", "reverse", "forward"])
def test_logits_of_ten_thousand_stay_as_the_torch_path_has_them(estimator):
    case = make_case(3, n=12, scale=4000.0, dtype=torch.float32, old=False)
    options = {"policy": PolicyTerm(), "kl": KLTerm(estimator), "chunk_tokens": 8}
    for got, want in zip(ours(case, kernels="triton", **options)[2:], ours(case, **options)[2:], strict=True):
        assert got.isfinite().all() and (got - want).abs().max() < 1e-4 * want.abs().max()


def test_a_step_without_a_teacher_runs_too():
    case = make_case(5, dtype=torch.float32)
    case[1].kl_weight.zero_()
    found = (ours(case, kernels=kernels, policy=PolicyTerm())[2:] for kernels in ("triton", "torch"))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want)


def test_other_types_than_float32_are_refused():
    with pytest.raises(ValueError, match=r"objective.kernels = triton: logits are torch.float64"):
        ours(make_case(), kernels="triton", policy=PolicyTerm(), kl=KLTerm("reverse"))
