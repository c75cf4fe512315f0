"""Item ``engine``: the rollout engine beside a trainer: it answers, sleeps, wakes, takes new weights, and says true log-probs.

On a CPU the transformers engine stands for vLLM: the same interface, so that every line of this file runs.
"""

from __future__ import annotations

import importlib.util
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from tests.gpu.place import GPU, Place, Skipped

TOLERANCE = 5e-2  # nats a token, `rollout.probe_tolerance`
CACHE = 1 << 30


def engine(place: Place) -> None:
    from vold_nemo.megatron import parallel

    if place.kind == GPU and importlib.util.find_spec("vllm") is None:
        raise Skipped("vLLM is not installed: slurm/build_gpu.sh installs it (WITH_VLLM=1)")
    parallel.join(place.device.type)
    with tempfile.TemporaryDirectory() as folder:
        _engine(place, _checkpoint(Path(folder) / "model"))


def _checkpoint(path: Path) -> Path:
    from vold_nemo.miniature.random_models import TINY_TEACHER, write_random_teacher

    return write_random_teacher(path, replace(TINY_TEACHER, hidden=256, heads=4, kv_heads=2, head_dim=64, ffn=512))


def _built(place: Place, path: Path):
    dtype = torch.float32 if place.small else torch.bfloat16
    if place.small:
        from vold_nemo.rollout.transformers_engine import TransformersEngine

        return TransformersEngine(path, device=place.device, dtype=dtype, batch=16)
    from vold_nemo.config import VLLMConfig
    from vold_nemo.rollout.vllm_engine import VLLMEngine

    settings = VLLMConfig(cache_bytes=CACHE, max_length=256, eager=True)
    return VLLMEngine(path, device=place.device, dtype=dtype, settings=settings, batch=16)


def _engine(place: Place, path: Path) -> None:
    from safetensors.torch import load_file

    from vold_nemo.rollout.engine import EnginePrompt, Sampling
    from vold_nemo.rollout.sync import deliver

    engine = _built(place, path)
    prompts = [EnginePrompt([12 + (3 * row + place_) % 30 for place_ in range(8 + row)], key=row) for row in range(8)]
    greedy, drawn = Sampling(temperature=0, max_tokens=24), Sampling(samples=4, max_tokens=24, seed=5)
    before = [one.ids for one in engine.generate(prompts, greedy)]
    held, free = engine.device_bytes(), _free(place)
    asleep = place.seconds_of(engine.sleep)
    freed = _free(place) - free
    awake = place.seconds_of(engine.wake)
    place.say(device_bytes=held, sleep_seconds=asleep, wake_seconds=awake)
    place.check(
        "bytes_freed", freed, "of weights and cache, which are given back to the device; a tenth for what the engine keeps",
        at_least=0.9 * held, kind="bytes",
    )  # fmt: skip
    after = [one.ids for one in engine.generate(prompts, greedy)]
    because = "the same weights and prompts (wake compares their checksums itself)"
    place.check("answers_changed_by_sleep", sum(a != b for a, b in zip(before, after, strict=True)), because, at_most=0)
    stored = load_file(path / "model.safetensors")
    moved = {name: tensor * (1 + 0.3 * (number % 7) / 7) for number, (name, tensor) in enumerate(sorted(stored.items()))}
    report = deliver(moved.items(), engine, 1)  # raises unless live weights are those sent, bit for bit
    place.say(sync_bytes=report.bytes, sync_seconds=report.seconds)
    sampled = engine.generate(prompts, drawn, expect_version=1)
    mean, worst = _gap(place, path, moved, engine.dtype, prompts, sampled)
    place.check(
        "logprob_gap", mean,
        "nats a token in the mean between the engine and transformers on the new weights, in the same type: what a run allows "
        "(rollout.probe_tolerance)", at_most=TOLERANCE,
    )  # fmt: skip
    place.say(logprob_gap_worst=worst, tokens=sum(len(one.ids) for one in sampled))
    engine.close()


def _gap(place: Place, path: Path, weights, dtype, prompts, sampled) -> tuple[float, float]:
    """Mean and largest |log-prob of the engine - that of transformers' own forward pass| over the sampled tokens."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path).to(place.device, dtype).eval()
    left = model.load_state_dict({name: tensor.to(dtype) for name, tensor in weights.items()}, strict=False)
    if left.unexpected_keys:
        raise RuntimeError(f"transformers has no {left.unexpected_keys[:3]}")
    gaps = []
    for one in sampled:
        ids = torch.tensor([prompts[one.prompt_index].ids + one.ids], device=place.device)
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, -len(one.ids) - 1 : -1].float()
        found = torch.log_softmax(logits, -1)[torch.arange(len(one.ids)), one.ids]
        gaps.append((found.cpu() - torch.tensor(one.logprobs)).abs())
    whole = torch.cat(gaps)
    return float(whole.mean()), float(whole.max())


def _free(place: Place) -> int:
    if place.device.type == "cpu":
        return 0
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(place.device)[0]
