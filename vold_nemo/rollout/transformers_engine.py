"""Rollouts on plain transformers: the default on a CPU, and the yardstick for any other engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vold_nemo.config import ConfigError, staged
from vold_nemo.data.templates import eos_ids, load_tokenizer
from vold_nemo.rollout.arrivals import EMBEDDING, Arrivals, disk_name
from vold_nemo.rollout.engine import Completion, EnginePrompt, LoadReport, Sampling
from vold_nemo.rollout.fingerprints import WHOLE, Fingerprints, Part
from vold_nemo.rollout.images import ImagePreparer, PreparedPrompt
from vold_nemo.rollout.limits import Limits, require_ready
from vold_nemo.rollout.preserve_rng import preserve_rng
from vold_nemo.rollout.shares import Box, whole

VISION_MODELS = ("qwen2_5_vl", "qwen3_vl")


class TransformersEngine:
    """A Hugging Face checkpoint folder (causal LM, Qwen2.5-VL or dense Qwen3-VL) that answers prompts.

    ``batch`` is the number of sequences decoded at a time; ``stop_ids`` None takes the checkpoint's own
    (``data/templates.eos_ids``).  Completions are a function of (weights, prompts in their order,
    sampling, batch): torch's, numpy's and Python's global random numbers are neither used nor moved.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        batch: int = 64,
        stop_ids: Iterable[int] | None = None,
    ):
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

        path = staged.here(path)
        if not (Path(path) / "config.json").is_file():
            raise ConfigError(
                "checkpoint",
                str(path),
                "a folder with config.json and safetensors",
                "run the recipe that writes it first, or correct the path",
            )
        if batch < 1:
            raise ConfigError("rollout.batch", batch, "a whole number of at least 1", "correct rollout.batch")
        config = AutoConfig.from_pretrained(str(path))
        self._vision = hasattr(config, "vision_config")
        if self._vision and config.model_type not in VISION_MODELS:
            raise ConfigError(
                f"{path}: model_type",
                config.model_type,
                " | ".join(VISION_MODELS) + " | any text-only causal LM",
                "choose a student of a supported family",
            )
        text = config.get_text_config()
        windows = set(getattr(text, "layer_types", None) or ["full_attention"]) - {"full_attention"}
        if windows:
            raise ConfigError(
                f"{path}: layer_types",
                sorted(windows),
                "full_attention in every layer",
                "set use_sliding_window to false, or choose another checkpoint",
            )
        self.path, self.device, self.dtype, self.batch = str(path), torch.device(device), dtype, batch
        image_token = config.image_token_id if self._vision else None
        self.limits = Limits(str(path), text.vocab_size, text.max_position_embeddings, image_token)
        self._layers = text.num_hidden_layers
        auto = AutoModelForImageTextToText if self._vision else AutoModelForCausalLM
        with preserve_rng(self.device):
            self._model = auto.from_pretrained(str(path), dtype=dtype, attn_implementation="sdpa", use_safetensors=True)
        self._model.eval().requires_grad_(False).to(self.device)
        self.stop_ids = tuple(eos_ids(path, load_tokenizer(path)) if stop_ids is None else stop_ids)
        self._tokenizer = None  # read at the first stop text
        self._images = None  # made at the first image, since a text-only run needs no preprocessor_config.json
        self._live = dict(self._language_parameters())
        self._streamed = {name: name for name in self._live}  # name in the last weight stream: name in _live
        self.version: int | None = 0
        self._awake, self._slept_on = True, ""

    # -- generation ---------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: list[EnginePrompt],
        sampling: Sampling,
        *,
        expect_version: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        """See :class:`RolloutEngine`.  ``progress(n)`` is called as n further completions are done.

        Prompts of like length share a batch; a prompt is read once for all of its samples.  ConfigError for a prompt that with
        ``max_tokens`` does not fit the model's positions, for images without placeholders, for ids out of the vocabulary.
        """
        require_ready(self._awake, self.version, expect_version)
        prepared = [self._prepare(i, prompt, sampling.max_tokens) for i, prompt in enumerate(prompts)]
        order = sorted(
            range(len(prompts)), key=lambda i: -len(prepared[i].ids)
        )  # the largest batch first: memory fails early
        stop = torch.tensor(self.stop_ids if sampling.stop_ids is None else sampling.stop_ids, dtype=torch.long)
        stop = stop.to(self.device)
        found: list[Completion] = []
        for first in range(0, sampling.samples, self.batch):
            samples = range(first, min(first + self.batch, sampling.samples))
            together = max(1, self.batch // len(samples))
            for at in range(0, len(order), together):
                members = order[at : at + together]
                found += self._answer(prompts, prepared, members, samples, sampling, stop)
                if progress is not None:
                    progress(len(members) * len(samples))
        return sorted(found, key=lambda c: (c.prompt_index, c.sample))

    def _prepare(self, index: int, prompt: EnginePrompt, max_tokens: int) -> PreparedPrompt:
        if self.limits.has_images(index, prompt):
            self._images = self._images or ImagePreparer(self.path, self.limits.image_token)
            prepared = self._images(prompt)
        else:
            prepared = PreparedPrompt(prompt.ids)
        self.limits.check(index, prepared.ids, len(prepared.ids), max_tokens)
        return prepared

    def _answer(self, prompts, prepared, members, samples, sampling: Sampling, stop: Tensor) -> list[Completion]:
        """One batch: every prompt in ``members`` (places in the list) continued once for each of ``samples``."""
        from vold_nemo.rollout.decoding import StopTexts, decode, uniforms

        uniform = None
        if sampling.temperature > 0:
            keys = [i if prompts[i].key is None else prompts[i].key for i in members]
            uniform = torch.stack(
                [uniforms(sampling.seed, key, k, sampling.max_tokens) for key in keys for k in samples]
            )
            uniform = uniform.to(self.device)
        batch = self._collate([prepared[i] for i in members], len(samples))
        texts = None
        if sampling.stop:
            self._tokenizer = self._tokenizer or load_tokenizer(self.path)
            texts = StopTexts(sampling.stop, self._tokenizer)
        ids, logprobs, lengths, stopped = decode(
            self._model, batch, self._layers, sampling.max_tokens, sampling.temperature, uniform, stop, texts
        )
        completions = []
        for row, (i, k) in enumerate((i, k) for i in members for k in samples):
            tokens = ids[row, : lengths[row]].tolist()
            reason = "stop" if stopped[row] else "length"
            completions.append(Completion(i, k, tokens, logprobs[row, : lengths[row]].tolist(), reason))
        return completions

    def _collate(self, prompts: list[PreparedPrompt], repeats: int):
        """Left padding, so that every row's next token is at the same place of the cache."""
        from vold_nemo.rollout.decoding import Batch

        longest = max(len(prompt.ids) for prompt in prompts)
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt.ids) :] = torch.tensor(prompt.ids)
            mask[row, longest - len(prompt.ids) :] = 1
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        following, extra = mask.sum(-1), {}
        grids = [prompt.grids for prompt in prompts if prompt.grids is not None]
        if grids:  # the model's own rule for image positions, whose next text position is not the token count
            kinds = ((ids == self._model.config.image_token_id) & mask.bool()).int()
            extra = {"image_grid_thw": torch.cat(grids), "mm_token_type_ids": kinds}
            positions, delta = self._model.model.get_rope_index(ids, attention_mask=mask, **extra)
            following = following + delta.squeeze(-1)
            extra["pixel_values"] = torch.cat([prompt.pixels for prompt in prompts if prompt.pixels is not None])
        elif self._vision:
            positions = positions.expand(3, -1, -1)
        extra = {name: tensor.to(self.device) for name, tensor in extra.items()}
        return Batch(*(t.to(self.device) for t in (ids, mask, positions, following)), repeats, extra)

    # -- weights ------------------------------------------------------------------------------------------------------

    def _language_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """(name on disk, live parameter) of the language model; a tied head is its embedding and comes once."""
        for name, parameter in self._model.named_parameters(remove_duplicate=True):
            if not (self._vision and name.startswith("model.visual.")):
                yield disk_name(name), parameter

    def keeps(self, name: str, shape: Sequence[int], rank: int) -> Box:
        """Every rank has the whole model."""
        return whole(shape)

    def room(self, name: str) -> Tensor | None:
        """The live parameter."""
        return self._live.get(disk_name(name))

    @torch.no_grad()
    def load(self, named_tensors: Iterable[tuple[str, Tensor]], version: int, part: Part = WHOLE) -> LoadReport:
        """Copy the whole language model, named as on disk, into the live weights; the vision tower stays.

        Each parameter must come exactly once.  A tied head may come too, as some checkpoints store it, and must equal the
        embedding.  RuntimeError for an unknown name, a second copy, a shape that differs, a parameter that never came, a
        value that is not finite, or while asleep.  ``version`` is None meanwhile, and stays so if the load breaks off:
        half-loaded weights are never sampled from.  ``part`` of every tensor is read back and searched for such values.
        """
        if not self._awake:
            raise RuntimeError("the rollout engine is asleep: wake() it before load()")
        began = time.perf_counter()
        self.version, self._streamed = None, {}
        shapes = {name: live.shape for name, live in self._live.items()}
        arrivals = Arrivals(named_tensors, shapes, self.dtype, self.path, part)
        with arrivals.draining():
            for name, tensor in arrivals:
                self._live[arrivals.names[name]].copy_(tensor)
            arrivals.complete()
            arrivals.check_tied(lambda: self._live[EMBEDDING])
        self._streamed = arrivals.names
        live = self.fingerprints(part, totals=True)
        arrivals.check_finite(live)
        self.version = version
        return LoadReport(arrivals.bytes, time.perf_counter() - began, live, version)

    def fingerprints(self, part: Part = WHOLE, *, totals: bool = False) -> Fingerprints:
        """Of the live language weights, under the names of the last load."""
        named = ((name, self._live[live]) for name, live in self._streamed.items())
        return Fingerprints.of(named, part, totals=totals)

    def device_bytes(self) -> int:
        """Weights (vision tower, too) on the engine's device; on a CPU, where host memory is the device, sleep frees none."""
        return sum(p.numel() * p.element_size() for p in self._model.parameters() if p.device.type == self.device.type)

    def close(self) -> None:
        """Nothing outlives this object."""

    def sleep(self) -> None:
        """Move the weights to host memory; the key-value cache lives only inside :meth:`generate`."""
        if self._awake:
            self._slept_on, self._awake = self.fingerprints().checksum(), False
            if self.device.type == "cuda":
                self._model.to("cpu")
                torch.cuda.empty_cache()

    def wake(self) -> None:
        """Bring the weights back.  RuntimeError if they are not those that went to sleep."""
        if not self._awake:
            self._model.to(self.device)
            self._live = dict(self._language_parameters())
            self._awake = True
            if self.fingerprints().checksum() != self._slept_on:
                self.version = None
                raise RuntimeError("the rollout engine's weights changed while it slept: load() them anew")
