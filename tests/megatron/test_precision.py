"""Which precision the teacher gets, over GPUs, libraries and the published sizes; no device is touched."""

import dataclasses

import pytest

from vold_nemo.config import ConfigError, FP8Config, TeacherConfig
from vold_nemo.megatron import architecture, precision
from vold_nemo.megatron.precision import Hardware, choose, pad_multiple, weight_bytes

PUBLISHED = architecture.published()
ENGINE = dict(engine=(2, 20), cuda=(13, 0))
A100, ADA, HOPPER, BLACKWELL, GB300, CONSUMER = (
    Hardware("cuda", capability, **ENGINE) for capability in ((8, 0), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0))
)


def teacher(wanted="auto", **fp8):
    return TeacherConfig(path="teacher", precision=wanted, fp8=FP8Config(**fp8))


def chosen(hardware, wanted="auto", name="Qwen3-8B", tensor=1, student="bf16", **fp8):
    return choose(teacher(wanted, **fp8), student, hardware, PUBLISHED[name], tensor)


@pytest.mark.parametrize("wanted", ["auto", "fp8"])
@pytest.mark.parametrize(
    "hardware, recipe",
    [(ADA, "tensorwise"), (HOPPER, "blockwise"), (BLACKWELL, "mxfp8"), (GB300, "mxfp8"), (CONSUMER, "tensorwise")],
)
def test_each_gpu_gets_its_recipe(hardware, recipe, wanted):
    found = chosen(hardware, wanted)
    assert (found.weights, found.recipe, found.backend, found.dtype) == ("fp8", recipe, "te", "bf16")


@pytest.mark.parametrize(
    "hardware, said",
    [
        (A100, "has 8.0"),
        (dataclasses.replace(HOPPER, engine=None), "not installed"),
        (dataclasses.replace(HOPPER, engine=(2, 1)), "2.1 is installed"),
    ],
)
def test_without_fp8_auto_takes_bf16_and_says_why_and_fp8_by_name_is_refused(hardware, said):
    found = chosen(hardware)
    assert found.weights == "bf16" and said in found.describe()
    with pytest.raises(ConfigError, match=said) as error:
        chosen(hardware, "fp8")
    assert error.value.key == "teacher.precision"


def test_on_a_cpu_auto_follows_the_student_and_fp8_asks_for_the_emulation():
    cpu = Hardware("cpu")
    assert [chosen(cpu, student=student).weights for student in ("fp32", "bf16")] == ["fp32", "bf16"]
    with pytest.raises(ConfigError, match="emulated"):
        chosen(cpu, "fp8")
    assert chosen(cpu, "fp8", backend="emulated").recipe == "blockwise"


def test_the_emulation_is_never_chosen_by_itself_and_takes_any_shape():
    with pytest.raises(ConfigError, match="slower than bf16"):
        chosen(HOPPER, "auto", backend="emulated")
    odd = dataclasses.replace(PUBLISHED["Qwen3-8B"], ffn=100)
    assert choose(teacher("fp8", backend="emulated"), "fp32", Hardware("cpu"), odd, 1).recipe == "tensorwise"


def test_delayed_scales_are_refused_with_the_reason():
    with pytest.raises(ConfigError, match="never update"):
        chosen(HOPPER, "fp8", recipe="delayed")


def test_te_cannot_leave_activations_in_bf16():
    with pytest.raises(ConfigError) as error:
        chosen(HOPPER, "fp8", activations=False)
    assert error.value.key == "teacher.fp8.activations"
    assert chosen(HOPPER, "fp8", activations=False, backend="emulated").weights == "fp8"


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("tensor", [1, 2, 4, 8])
def test_published_sizes_get_blockwise_on_hopper_exactly_where_all_shards_are_multiples_of_128(name, tensor):
    arch = PUBLISHED[name]
    if arch.heads % tensor or (not arch.experts and arch.ffn % tensor):
        pytest.skip("no such layout")
    query, key = arch.heads * arch.head_dim, arch.kv_groups * arch.head_dim
    ffn = arch.expert_ffn if arch.experts else arch.ffn // tensor
    aligned = not any(n % 128 for n in (arch.hidden, (query + 2 * key) // tensor, query // tensor, ffn, 2 * ffn))
    found = chosen(HOPPER, name=name, tensor=tensor)
    if aligned:
        assert found.recipe == "blockwise"
    else:
        assert found.recipe in ("tensorwise", None) and "multiples of 128" in found.reason
        with pytest.raises(ConfigError, match="multiples of 128"):
            chosen(HOPPER, "fp8", name=name, tensor=tensor, recipe="blockwise")


def test_the_papers_teacher_is_blockwise_at_every_size_and_qwen2_5_1_5b_is_not_at_four():
    assert all(chosen(HOPPER, tensor=tensor).recipe == "blockwise" for tensor in (1, 2, 4, 8))
    assert chosen(HOPPER, name="Qwen2.5-1.5B", tensor=1).recipe == "blockwise"
    assert chosen(HOPPER, name="Qwen2.5-1.5B", tensor=4).recipe == "tensorwise"  # 8960 / 4 = 17.5 x 128


def test_an_old_cuda_has_no_blockwise():
    old = dataclasses.replace(HOPPER, cuda=(12, 8))
    assert chosen(old).recipe == "tensorwise"
    with pytest.raises(ConfigError, match=r"12\.8"):
        chosen(old, "fp8", recipe="blockwise")


def test_a_shape_that_no_recipe_takes_gives_bf16_or_an_error():
    odd = dataclasses.replace(PUBLISHED["Qwen3-8B"], ffn=1000)  # a multiple of 8
    assert choose(teacher(), "bf16", HOPPER, odd, 1).weights == "bf16"
    with pytest.raises(ConfigError, match="linear_fc2 4096 x 1000"):
        choose(teacher("fp8"), "bf16", HOPPER, odd, 1)


def test_token_counts_are_padded_to_the_recipes_multiple_on_each_rank():
    for hardware, multiple in ((HOPPER, 128), (BLACKWELL, 32), (ADA, 16)):
        assert [pad_multiple(chosen(hardware), split) for split in (1, 4, 16)] == [multiple, 4 * multiple, 16 * multiple]
    for held in (None, chosen(A100), chosen(HOPPER, "fp8", backend="emulated")):
        assert [pad_multiple(held, split) for split in (1, 2)] == [1, 2]


def test_an_fp8_weight_takes_a_byte_a_value_and_its_scales():
    assert weight_bytes(256, 128, "tensorwise") == 256 * 128 + 4
    assert weight_bytes(256, 128, "blockwise") == 256 * 128 + 2 * 4
    assert weight_bytes(256, 128, "mxfp8") == 256 * 128 * 33 // 32


def test_a_plan_knows_what_its_cluster_has():
    assert precision.of_cluster("auto", 10.3) == Hardware("cuda", (10, 3), precision.OLDEST_ENGINE)
    assert chosen(precision.of_cluster("cuda", 8.0)).weights == "bf16"
    assert chosen(precision.of_cluster("auto", None)).weights == "bf16"
    assert chosen(precision.of_cluster("auto", None), "fp8").recipe == "blockwise"
