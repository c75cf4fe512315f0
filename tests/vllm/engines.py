"""What ranks do in the tests beside this file.  A process keeps the engine that it built, since vLLM allows one at a time."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from vold_nemo.config import DatasetConfig, PromptFieldsConfig, VLLMConfig
from vold_nemo.data.prompts import load_prompts
from vold_nemo.data.rejected import Rejected
from vold_nemo.data.templates import load_tokenizer, render_prompt
from vold_nemo.rollout.engine import EnginePrompt, Sampling
from vold_nemo.rollout.sync import compare_logprobs, deliver
from vold_nemo.rollout.transformers_engine import TransformersEngine
from vold_nemo.rollout.vllm_engine import VLLMEngine

_built: dict = {}


def engine_of(path, tensor_parallel: int = 1) -> VLLMEngine:
    key = str(path), tensor_parallel
    if key not in _built:
        for other in _built.values():
            other.close()
        _built.clear()
        settings = VLLMConfig(tensor_parallel=tensor_parallel, cache_bytes=32 << 20, max_length=256, images=6, eager=True)
        _built[key] = VLLMEngine(path, device=torch.device("cpu"), dtype=torch.float32, settings=settings, batch=16)
    return _built[key]


def prompts_of(path, kind: str, count: int = 6) -> list[EnginePrompt]:
    """Rendered questions of the embedded world beside the checkpoint: ``text`` or ``image``."""
    fields = PromptFieldsConfig(image="images" if kind == "image" else None)
    file = Path(path).parent / ("image.parquet" if kind == "image" else "text.jsonl")
    rows = load_prompts(DatasetConfig(path=str(file), fields=fields), None, Rejected(None, 0.0))[:count]
    tokenizer = load_tokenizer(path)
    return [EnginePrompt(render_prompt(tokenizer, row), row.open_images()) for row in rows]


def language_weights(path, factor: float) -> dict[str, torch.Tensor]:
    """The checkpoint's language tensors, each moved a little in a way of its own."""
    stored = {name: tensor for name, tensor in load_file(Path(path) / "model.safetensors").items() if "visual" not in name}
    return {name: tensor * (1 + factor * (i % 7) / 7) for i, (name, tensor) in enumerate(sorted(stored.items()))}


def kept(engine, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What this rank's engine keeps of them."""
    boxes = {name: engine.keeps(name, tensor.shape, dist.get_rank()) for name, tensor in weights.items()}
    return {name: tensor[tuple(slice(*edge) for edge in boxes[name])] for name, tensor in weights.items()}


def held(engine: VLLMEngine) -> dict[str, torch.Tensor]:
    """vLLM's live language weights, whole: the parts of an engine's ranks put together."""
    mine = {live.name: (live.shape, live.part.clone()) for live in engine._live()}
    found = {name: torch.full(shape, float("nan")) for name, (shape, _) in mine.items()}
    first = dist.get_rank() - engine.rank
    for rank, share in enumerate(engine._gathered(mine)):
        for name, (shape, part) in share.items():
            found[name][tuple(slice(*edge) for edge in engine.keeps(name, shape, first + rank))] = part
    return found


def asked_by_loader(engine: VLLMEngine, path) -> list[str]:
    """Tensors of which vLLM's own loader, handed whole ones, takes others than this rank is said to keep; it changes nothing.

    Each element is its own index, so what lands in the live weights tells where it came from.
    """
    weights = language_weights(path, 0.0)
    before = {live.name: live.part.clone() for live in engine._live()}
    numbered = {name: torch.arange(tensor.numel()).view(tensor.shape).float() for name, tensor in weights.items()}
    with torch.no_grad():
        engine._model.load_weights(iter(numbered.items()))
        expected = kept(engine, numbered)
        wrong = [live.name for live in engine._live() if not torch.equal(live.part, expected[live.name])]
        for live in engine._live():
            live.part.copy_(before[live.name])
    return wrong


def same_as_transformers(path, kind: str, factor: float, tensor_parallel: int = 1) -> dict:
    """Greedy ids and checksum of both engines after the same load, and the largest log-prob difference on sampled ids."""
    engine, other = engine_of(path, tensor_parallel), TransformersEngine(path)
    prompts = prompts_of(path, kind)
    if kind == "text":  # vLLM finds whole blocks again, of 128 tokens on a CPU
        prompts[:2] = [EnginePrompt((prompt.ids * 20)[:200]) for prompt in prompts[:2]]
    mine = prompts[dist.get_rank() :: dist.get_world_size()]
    greedy = Sampling(temperature=0, max_tokens=10)
    deliver(kept(engine, language_weights(path, 3.0)).items(), engine, 2)
    engine.generate(mine, greedy)  # the prompts' keys and values, of weights that are then replaced, lie in vLLM's cache
    report = deliver(kept(engine, language_weights(path, factor)).items(), engine, 3)
    deliver(language_weights(path, factor).items(), other, 3)
    found, wanted = (e.generate(mine, greedy, expect_version=3) for e in (engine, other))
    largest, tokens = 0.0, 0
    for temperature in (1.0, 0.6):
        sampled = engine.generate(mine, Sampling(samples=3, temperature=temperature, max_tokens=10, seed=5), expect_version=3)
        for completion in sampled:
            if kind == "image" and other.limits.image_token in completion.ids:
                continue  # read again as a whole, transformers would look for an image where the model only wrote the id
            again = _forced(other, mine[completion.prompt_index], completion.ids, temperature)
            probe = compare_logprobs(completion.logprobs, again, 1e-3)
            largest, tokens = max(largest, probe.max), tokens + probe.tokens
    return {
        "greedy": [c.ids for c in found], "expected": [c.ids for c in wanted], "largest": largest, "tokens": tokens,
        "differ": [name for name, tensor in other._live.items() if not torch.equal(tensor, held(engine)[name])],
        "kept": report.bytes / sum(tensor.nbytes for tensor in other._live.values()), "asked": asked_by_loader(engine, path),
    }  # fmt: skip


def _forced(engine: TransformersEngine, prompt: EnginePrompt, ids: list[int], temperature: float) -> torch.Tensor:
    """Log-probs of ``ids`` after ``prompt`` in one forward pass of transformers' model."""
    prepared = engine._prepare(0, prompt, len(ids))
    batch = engine._collate([prepared], 1)
    whole = torch.tensor([prepared.ids + ids])
    extra = dict(batch.extra)
    if extra:
        zeros = torch.zeros(1, len(ids), dtype=extra["mm_token_type_ids"].dtype)
        extra["mm_token_type_ids"] = torch.cat([extra["mm_token_type_ids"], zeros], dim=1)
        following = batch.next_position + torch.arange(len(ids))
        positions = torch.cat([batch.positions, following.expand(3, 1, -1)], dim=-1)
    else:
        positions = torch.arange(whole.shape[1]).expand(*batch.positions.shape[:-1], -1)  # once, or thrice for mrope
    mask = torch.ones_like(whole)
    with torch.no_grad():
        logits = engine._model(input_ids=whole, attention_mask=mask, position_ids=positions, **extra).logits
    start = len(prepared.ids)
    return torch.log_softmax(logits[0, start - 1 : -1].double() / temperature, -1)[range(len(ids)), ids]
