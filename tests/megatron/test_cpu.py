"""The CPU stand-ins reach megatron-core and nobody else."""


def stand_ins():
    import torch
    from megatron.core.optimizer import clip_grads
    from megatron.core.pipeline_parallel import schedules
    from megatron.core.tensor_parallel import random

    from vold_nemo.megatron import cpu

    cpu.enable()
    cpu.enable()
    kind = torch.zeros(1).type()
    seen_by_optimizer = eval("tensor.type()", clip_grads.__dict__ | {"tensor": torch.zeros(1)})
    try:
        torch.zeros(1, device="cuda")
        elsewhere = "made"
    except (AssertionError, RuntimeError):
        elsewhere = "refused"
    torch.manual_seed(5)
    state = random._get_cuda_rng_state()
    first = torch.rand(3)
    random._set_cuda_rng_state(state)
    return {
        "absent": not torch.cuda.is_available(),
        "schedules": schedules.torch.zeros([], dtype=torch.int, device="cuda").device.type,
        "named device": schedules.torch.zeros(2, device="cuda:0").device.type,
        "same classes": schedules.torch.Tensor is torch.Tensor and schedules.torch.distributed is torch.distributed,
        "elsewhere": elsewhere,
        "types": (kind, seen_by_optimizer),
        "cast": torch.zeros(1).type(torch.int64).dtype is torch.int64,
        "replayed": torch.equal(first, torch.rand(3)),
    }


def test_stand_ins_answer_megatron_and_nobody_else(gloo):
    assert gloo(1).run(stand_ins)[0] == {
        "absent": True, "schedules": "cpu", "named device": "cpu", "same classes": True, "elsewhere": "refused",
        "types": ("torch.FloatTensor", "torch.cuda.FloatTensor"), "cast": True, "replayed": True,
    }
