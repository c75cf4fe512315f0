"""Rollouts on vLLM 0.32, in this process, on the trainer's own device.

Every rank of the world runs :class:`VLLMEngine`; ``tensor_parallel`` ranks in a row are one engine (vLLM's "external
launcher": each rank schedules the same requests and they meet in the layers' collectives).  The whole vision-language model
lives here, text prompts and image prompts go to the same engine, and only language weights are ever changed.

Differences from the transformers engine: completions hang on (weights, seed, prompt key, sample), but which other
sequences share a step changes the last bits of a log-prob, so that the same plan of prompts and seeds is promised after a
resume and not the same tokens.  On a CPU vLLM has no sleep mode: :meth:`VLLMEngine.sleep` drops its caches there and frees
nothing.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vold_nemo.config import ConfigError, VLLMConfig, staged
from vold_nemo.data.templates import eos_ids, load_tokenizer
from vold_nemo.rollout.arrivals import EMBEDDING, Arrivals
from vold_nemo.rollout.engine import Completion, EnginePrompt, LoadReport, Sampling
from vold_nemo.rollout.fingerprints import WHOLE, Fingerprints, Part
from vold_nemo.rollout.images import ImagePreparer
from vold_nemo.rollout.limits import Limits, require_ready
from vold_nemo.rollout.preserve_rng import preserve_rng
from vold_nemo.rollout.shares import Box, Partial, share
from vold_nemo.rollout.vllm_setup import quieten, request_seed, require_build, require_vllm
from vold_nemo.rollout.vllm_weights import Live, read_live

WEIGHTS, CACHE = ["weights"], ["kv_cache"]  # vLLM's names for what sleeps


class VLLMEngine:
    """A checkpoint folder that answers prompts.  The world must have been joined, and Megatron not yet been built.

    vLLM measures free memory when it is built and seeds every generator: it comes first, and the generators are put back.

    Args:
        settings: ``rollout.vllm``; ``tensor_parallel`` must divide the world.
        batch: sequences that decode at a time, for each rank.
        stop_ids: as in :class:`TransformersEngine`.

    Raises:
        ConfigError: vLLM is missing, was built for another kind of device, or cannot be laid out like this.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: torch.device,
        dtype: torch.dtype,
        settings: VLLMConfig,
        batch: int,
        stop_ids: Iterable[int] | None = None,
    ):
        require_vllm("rollout.engine")
        if not dist.is_initialized():
            raise RuntimeError("join the world (megatron.parallel.join) before the vLLM engine is built")
        world, size = dist.get_world_size(), settings.tensor_parallel
        if world % size:
            allowed = f"a divisor of the {world} ranks"
            raise ConfigError("rollout.vllm.tensor_parallel", size, allowed, "one engine takes whole ranks: lower it")
        self.path, self.device, self.dtype = str(staged.here(path)), device, dtype
        self.rank, self.size = dist.get_rank() % size, size
        groups = [dist.new_group(list(range(r, r + size)), backend="gloo") for r in range(0, world, size)] if size > 1 else []
        self._group = groups[dist.get_rank() // size] if groups else None
        with preserve_rng(device), _environment(device):
            self._llm = self._build(settings, batch)
        self._model = self._llm.llm_engine.model_executor.driver_worker.model_runner.get_model()
        self.stop_ids = tuple(eos_ids(path, load_tokenizer(path)) if stop_ids is None else stop_ids)
        self._shapes = {live.name: live.shape for live in self._live()}
        self._streamed = {name: name for name in self._shapes}  # name in the last weight stream: name on disk
        self._images, self._most_images = None, settings.images  # the former is made at the first image
        self.version: int | None = 0
        self._awake, self._cache_awake, self._slept_on = True, True, ""

    def _build(self, settings: VLLMConfig, batch: int):
        from transformers import AutoConfig
        from vllm import LLM
        from vllm.platforms import current_platform

        require_build("rollout.engine", self.device.type)
        config = AutoConfig.from_pretrained(self.path)
        text, image_token = config.get_text_config(), getattr(config, "image_token_id", None)
        if text.num_attention_heads % self.size:
            allowed = f"a divisor of the student's {text.num_attention_heads} heads"
            raise ConfigError("rollout.vllm.tensor_parallel", self.size, allowed, "lower it")
        positions = min(settings.max_length or text.max_position_embeddings, text.max_position_embeddings)
        self.limits, self._groups = Limits(self.path, text.vocab_size, positions, image_token), text.num_key_value_heads
        self._sleeps = current_platform.is_sleep_mode_available()
        options: dict[str, Any] = {
            "model": self.path,
            "load_format": "safetensors",
            "dtype": str(self.dtype).removeprefix("torch."),
            "distributed_executor_backend": "external_launcher",
            "tensor_parallel_size": self.size,
            "enable_sleep_mode": self._sleeps,
            "gpu_memory_utilization": settings.memory_share,
            "kv_cache_memory_bytes": settings.cache_bytes,
            "max_model_len": positions,
            "max_num_seqs": batch * self.size,
            "enforce_eager": settings.eager,
            "logprobs_mode": "processed_logprobs",  # of the distribution that was sampled from: after the temperature
            "generation_config": "vllm",  # none of the checkpoint's own sampling habits (top-k, repetition penalty)
            "seed": dist.get_rank() // self.size,
            "disable_log_stats": True,
        }
        if image_token is not None:
            options |= {"limit_mm_per_prompt": {"image": settings.images, "video": 0}, "mm_processor_cache_gb": 0}
        with _on_cpu() if self.device.type == "cpu" else contextlib.nullcontext():
            return LLM(**options)

    def _live(self) -> Iterator[Live]:
        return read_live(self._model, self.limits.image_token is not None)

    # -- generation ---------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: list[EnginePrompt],
        sampling: Sampling,
        *,
        expect_version: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        """See :class:`RolloutEngine`.

        With tensor parallelism the prompts of an engine's ranks are answered together and each rank gets its own back (one
        object all-gather before): all of them must call.  A prompt that one rank refuses is refused by all.
        """
        require_ready(self._awake, self.version, expect_version)
        try:
            mine: Any = [(self._request(i, p, sampling), self._parameters(i, p, sampling)) for i, p in enumerate(prompts)]
        except ConfigError as error:
            if self._group is None:
                raise
            mine = error
        shares = self._gathered(mine)
        for asked in shares:
            if isinstance(asked, ConfigError):
                raise asked
        if not self._cache_awake:
            self._llm.wake_up(CACHE)
            self._cache_awake = True
        asked = [request for share in shares for request in share]
        if not asked:
            return []
        requests, parameters = zip(*asked, strict=True)
        with preserve_rng(self.device):
            answers = self._llm.generate(list(requests), list(parameters), use_tqdm=False)
        first = sum(len(share) for share in shares[: self.rank])
        found = []
        for index, answer in enumerate(answers[first : first + len(prompts)]):
            for sample, output in enumerate(answer.outputs):
                kept = output.logprobs  # flat: entry start_indices[t] is the token sampled at t
                logprobs = [kept.logprobs[start] for start in kept.start_indices]
                found.append(Completion(index, sample, list(output.token_ids), logprobs, output.finish_reason))
        if progress is not None:
            progress(len(found))
        return found

    def _request(self, index: int, prompt: EnginePrompt, sampling: Sampling) -> dict[str, Any]:
        length, request = len(prompt.ids), {"prompt_token_ids": prompt.ids}
        if self.limits.has_images(index, prompt):
            if self.limits.image_token in prompt.ids[len(prompt.asked) :]:
                allowed = "an answer without the image placeholder, which vLLM would take for an image"
                mend = "unset rollout.token_budget for prompts with images"
                raise ConfigError(f"prompt {index}: answered", prompt.answered, allowed, mend)
            self._images = self._images or ImagePreparer(self.path, self.limits.image_token)
            images = self._images.open(prompt)
            if len(images) > self._most_images:
                mend = "raise rollout.vllm.images"
                raise ConfigError(f"prompt {index}: images", len(images), f"at most {self._most_images}", mend)
            length = self._images.length(prompt, images)
            request |= {"multi_modal_data": {"image": images}}
        self.limits.check(index, prompt.ids, length, sampling.max_tokens)
        return request

    def _parameters(self, index: int, prompt: EnginePrompt, sampling: Sampling):
        from vllm import SamplingParams

        key = index if prompt.key is None else prompt.key
        return SamplingParams(
            n=sampling.samples, temperature=sampling.temperature, max_tokens=sampling.max_tokens, logprobs=0,
            flat_logprobs=True, detokenize=bool(sampling.stop), stop=list(sampling.stop) or None, ignore_eos=True,
            stop_token_ids=list(self.stop_ids if sampling.stop_ids is None else sampling.stop_ids),
            seed=request_seed(sampling.temperature, sampling.seed, key),
        )  # fmt: skip

    def _gathered(self, mine: Any) -> list:
        """``mine`` of every rank of this engine."""
        if self._group is None:
            return [mine]
        shares: list = [None] * self.size
        dist.all_gather_object(shares, mine, group=self._group)
        return shares

    # -- weights ------------------------------------------------------------------------------------------------------

    def keeps(self, name: str, shape: Sequence[int], rank: int) -> Box:
        """The share of a rank of a tensor-parallel engine (``shares.py``)."""
        return share(name, shape, rank % self.size, self.size, self._groups)

    def room(self, name: str) -> None:
        """vLLM's own loader says where a part belongs."""

    @torch.no_grad()
    def load(self, named_tensors: Iterable[tuple[str, Tensor]], version: int, part: Part = WHOLE) -> LoadReport:
        """Write the whole language model in place, tensor by tensor; the vision tower stays.  Errors as in TransformersEngine.

        Of each tensor comes what this rank :meth:`keeps`, and vLLM's own loader says where it belongs.  Cached prefixes and
        image encodings are of the old weights: dropped.  Collective over the engine's ranks; if one of them fails, all do.
        """
        if not self._awake:
            raise RuntimeError("the rollout engine is asleep: wake() it before load()")
        began = time.perf_counter()
        self.version, self._streamed = None, {}
        boxes = {name: self.keeps(name, shape, self.rank) for name, shape in self._shapes.items()}
        shapes = {name: [stop - start for start, stop in box] for name, box in boxes.items()}
        arrivals = Arrivals(named_tensors, shapes, self.dtype, self.path, part)
        failure = None
        try:
            with arrivals.draining():
                self._model.load_weights(self._whole(arrivals, boxes))
                arrivals.complete()
        except RuntimeError as error:
            failure = error
        failures = [error for error in self._gathered(failure) if error is not None]
        if failures:
            raise failure or failures[0]
        arrivals.check_tied(lambda: next(live.part for live in self._live() if live.name == EMBEDDING))
        engine = self._llm.llm_engine
        engine.reset_prefix_cache()
        engine.reset_encoder_cache()
        self._streamed = arrivals.names
        live = self.fingerprints(part, totals=True)
        arrivals.check_finite(live)
        self.version = version
        return LoadReport(arrivals.bytes, time.perf_counter() - began, live, version)

    def _whole(self, arrivals: Arrivals, boxes: dict[str, Box]) -> Iterator[tuple[str, Tensor]]:
        """What vLLM's loader is handed: tensors that are whole, or stand for whole ones."""
        for name, tensor in arrivals:
            held = arrivals.names[name]
            partial = tuple(tensor.shape) != self._shapes[held]
            yield name, Partial(name, tensor, boxes[held], self._shapes[held]) if partial else tensor

    @torch.no_grad()
    def fingerprints(self, part: Part = WHOLE, *, totals: bool = False) -> Fingerprints:
        """As in :class:`TransformersEngine`, over what is read back of this rank's live parameters (``vllm_weights.py``)."""
        sent: dict[str, list[str]] = {}
        for name, held in self._streamed.items():
            sent.setdefault(held, []).append(name)
        named = ((name, live.part) for live in self._live() for name in sent.get(live.name, ()))
        return Fingerprints.of(named, part, totals=totals)

    # -- the device ---------------------------------------------------------------------------------------------------

    def sleep(self) -> None:
        """Weights to host memory, the key-value cache given up (vLLM's level 1: level 2 has lost buffers, vLLM #29341)."""
        if self._awake:
            self._slept_on, self._awake = self.fingerprints().checksum(), False
            if self._sleeps:
                self._llm.sleep(level=1)
                self._cache_awake = False
            else:
                self._llm.llm_engine.reset_prefix_cache()

    def wake(self) -> None:
        """Bring the weights back; the cache follows at the next :meth:`generate`, so that a load has its memory to itself.

        Collective over the engine's ranks: one whose weights are others fails all.
        """
        if not self._awake:
            if self._sleeps:
                self._llm.wake_up(WEIGHTS)
            self._awake = True
            if any(self._gathered(self.fingerprints().checksum() != self._slept_on)):
                self.version = None
                raise RuntimeError("the rollout engine's weights changed while it slept: load() them anew")

    def close(self) -> None:
        """Free the device and close vLLM's process groups.  Its own way, when the process ends, closes the whole world, too."""
        from vllm.distributed import parallel_state

        client = self._llm.llm_engine.engine_core
        client._finalizer.detach()
        client.engine_core.model_executor.shutdown()
        parallel_state.destroy_model_parallel()
        if parallel_state._WORLD is not None:
            parallel_state._WORLD.destroy()
            parallel_state._WORLD = None
        gc.unfreeze()  # vLLM took every object of this process out of the collector's sight
        self._awake = False
        del self._llm, self._model

    def device_bytes(self) -> int:
        """Weights and key-value cache on the device now."""
        weights = sum(p.numel() * p.element_size() for p in self._model.parameters())
        if not self._sleeps:
            return weights + self._cache_bytes()
        return weights * self._awake + self._cache_bytes() * self._cache_awake

    def _cache_bytes(self) -> int:
        runner = self._llm.llm_engine.model_executor.driver_worker.model_runner
        each = (cache if isinstance(cache, list | tuple) else [cache] for cache in runner.kv_caches)
        return sum(tensor.numel() * tensor.element_size() for layer in each for tensor in layer)


@contextlib.contextmanager
def _environment(device: torch.device):
    """What vLLM reads from the environment while it is imported and built: plain srun sets no RANK, and a process that sees
    one GPU calls it 0 whatever its LOCAL_RANK."""
    place = {"RANK": dist.get_rank(), "WORLD_SIZE": dist.get_world_size(), "LOCAL_RANK": device.index or 0}
    before = {key: os.environ.get(key) for key in place}
    os.environ.update({key: str(value) for key, value in place.items()})
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine must live in this process
    quieten()
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


@contextlib.contextmanager
def _on_cpu():
    """What vLLM's CPU build does otherwise while a model is built inside this block.

    It packs each matrix for its kernels and throws the parameter away, so that nothing could be updated in place: layers keep
    their parameters and multiply with torch's own kernel.  It names the shared memory of a tensor group alike in every job
    that an external launcher starts, so that a job finds another's, or what a killed one left: groups talk through gloo.
    """
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator
    from vllm.model_executor.layers import utils

    packing, sharing = utils.dispatch_cpu_unquantized_gemm, CpuCommunicator._all_group_ranks_share_shm_group_name

    def keep(layer: torch.nn.Module, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    utils.dispatch_cpu_unquantized_gemm = keep
    CpuCommunicator._all_group_ranks_share_shm_group_name = lambda self: False
    try:
        yield
    finally:
        utils.dispatch_cpu_unquantized_gemm = packing
        CpuCommunicator._all_group_ranks_share_shm_group_name = sharing
