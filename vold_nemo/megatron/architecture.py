"""What a language backbone looks like, read from a Hugging Face ``config.json``.  No torch, no transformers.

The families are those of :data:`FAMILIES`; a vision-language model counts by its language backbone.  Anything that would
make our model compute something else than the checkpoint's authors did (another activation, sliding windows, scaled
RoPE) is refused here, by name.
"""

from __future__ import annotations

import functools
import json
import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from vold_nemo.config import ConfigError, ParallelConfig
from vold_nemo.config.check import check
from vold_nemo.megatron import forms, tensors
from vold_nemo.megatron.hf_config import OWN, UNBUILT, TextConfig


@dataclass(frozen=True)
class Family:
    """What ``config.json`` does not say: it follows from ``model_type``."""

    qkv_bias: bool
    qk_norm: bool
    experts: bool = False  # every layer's feed-forward part is a mixture of experts
    packed: bool = False  # all experts of a layer lie in one tensor on disk
    nested: bool = False  # the language model's keys are always in `text_config`
    head_dim: bool = False  # its config class has this key, with a default; otherwise hidden / heads
    rope: tuple[str, ...] = ("default",)  # names of the plain rotary embedding


_MROPE = ("default", "mrope")  # positions in three axes, which are the same for text
_QWEN3_VL = Family(qkv_bias=False, qk_norm=True, head_dim=True)
_QWEN3_VL_MOE = replace(_QWEN3_VL, experts=True, packed=True)
FAMILIES = {
    "qwen2": Family(qkv_bias=True, qk_norm=False),
    "qwen2_5_vl": Family(qkv_bias=True, qk_norm=False, rope=_MROPE),  # older files are flat
    "qwen2_5_vl_text": Family(qkv_bias=True, qk_norm=False, rope=_MROPE),
    "qwen3": Family(qkv_bias=False, qk_norm=True, head_dim=True),
    # DeepStack adds image features to the first layers' outputs at image positions; text has none, and is Qwen3's.
    "qwen3_vl": replace(_QWEN3_VL, nested=True),
    "qwen3_vl_text": _QWEN3_VL,
    "qwen3_moe": Family(qkv_bias=False, qk_norm=True, experts=True),
    "qwen3_vl_moe": replace(_QWEN3_VL_MOE, nested=True),
    "qwen3_vl_moe_text": _QWEN3_VL_MOE,
}

# Where a checkpoint's files keep the language backbone: the classic layout, and that of transformers 5's modules.
TEXT_PREFIXES = ("model.", "model.language_model.")
HEAD = "lm_head.weight"
_FULL = "full_attention"
_OTHER = "config.json is another model's: copy it again from where the weights came from"
PUBLISHED = Path(__file__).parent / "published"  # values of published config.json files, each saying where it was read
_SAME_SHAPE = {"Qwen3-4B": "Qwen3-4B-Instruct-2507"}  # a later training of the same model


@dataclass(frozen=True)
class Architecture:
    """A pre-norm, gated, rotary decoder with grouped-query attention; dense, or a mixture of experts in every layer."""

    family: str
    hidden: int
    layers: int
    heads: int
    kv_groups: int
    head_dim: int
    ffn: int
    vocabulary: int  # rows of the embedding in the checkpoint, padding rows of its authors included
    tied: bool  # the LM head is the embedding
    qkv_bias: bool
    qk_norm: bool
    rope_theta: float
    rms_eps: float
    max_positions: int
    text_prefix: str = TEXT_PREFIXES[0]  # of the names on disk
    head_on_disk: bool = True  # a tied head may still be stored; then it is written back, too
    experts: int = 0  # in each layer; 0 = dense, and `ffn` is the width of the feed-forward part
    experts_per_token: int = 0
    expert_ffn: int = 0  # width of one expert; `ffn` is unused then
    router_normalised: bool = True  # the chosen experts' probabilities are scaled to sum to 1
    experts_packed: bool = False  # on disk: one tensor [E, ...] per layer instead of one per expert
    experts_transposed: bool = False  # packed as [E, in, out] (the published Qwen3-VL files) instead of [E, out, in]

    @classmethod
    def from_hf(cls, config: dict[str, Any], source: str = "config.json") -> Architecture:
        """From a parsed ``config.json``; names on disk as the classic layout has them.

        :raises ConfigError: for a model type or a setting that the Megatron model does not have.
        """
        family = config.get("model_type")
        if not isinstance(family, str) or family not in FAMILIES:
            raise ConfigError(f"{source}: model_type", family, " | ".join(FAMILIES), "use a model of these families")
        kind = FAMILIES[family]
        text = TextConfig(config, source, flat=not kind.nested)
        text.refuse("hidden_act", ("silu",), absent="silu")
        text.refuse("use_sliding_window", (False, None), absent=None)
        text.refuse("attention_dropout", (0, None), absent=None)
        text.refuse("per_layer_config", ({}, None), absent=None)
        if not kind.qkv_bias:
            text.refuse("attention_bias", (False, None), absent=None)
        layers = text.integer("num_hidden_layers")
        types = text.said("layer_types")
        if types is not None and (not isinstance(types, list) or len(types) != layers or any(one != _FULL for one in types)):
            raise text.error("layer_types", types, f"{_FULL} for each of the {layers} layers", UNBUILT)
        heads, hidden = text.integer("num_attention_heads"), text.integer("hidden_size")
        kv_groups = text.integer("num_key_value_heads")
        if heads % kv_groups:
            raise text.error("num_key_value_heads", kv_groups, f"a divisor of the {heads} attention heads", OWN)
        by_class = kind.head_dim or text.said("head_dim") is not None
        head_dim = text.integer("head_dim") if by_class else hidden // heads
        if head_dim < 2 or head_dim % 2:
            raise text.error("head_dim", head_dim, "an even number: the rotary embedding turns pairs", OWN)
        if family.startswith("qwen2_5_vl") and head_dim * heads != hidden:
            raise text.error("hidden_size", hidden, f"{heads} heads of {head_dim}", OWN)
        tied = text.tied()
        return cls(
            family=family,
            hidden=hidden,
            layers=layers,
            heads=heads,
            kv_groups=kv_groups,
            head_dim=head_dim,
            ffn=text.integer("intermediate_size"),
            vocabulary=text.integer("vocab_size"),
            tied=tied,
            qkv_bias=kind.qkv_bias,
            qk_norm=kind.qk_norm,
            rope_theta=text.rope_theta(kind.rope),
            rms_eps=text.number("rms_norm_eps"),
            max_positions=text.integer("max_position_embeddings"),
            head_on_disk=not tied,
            **(_mixture(text, family) if kind.experts else {}),
        )

    def stages(self, pipeline: int) -> tuple[int, ...]:
        """Layers on each of ``pipeline`` stages; empty if this number of stages does not work out.

        Equal shares where they divide.  Otherwise ceil(layers / pipeline) on each middle stage and what is left halved
        between the first stage, which also holds the embedding, and the last, which also holds the head:
        94 layers on 4 stages are 23 + 24 + 24 + 23.
        """
        share = -(-self.layers // pipeline)
        if self.layers % pipeline == 0:
            return (share,) * pipeline
        left = self.layers - share * (pipeline - 2)
        if left < 2:
            return ()
        return (left - left // 2, *[share] * (pipeline - 2), left // 2)

    def virtual(self, pipeline: int, asked: int) -> int:
        """Virtual stages of each of ``pipeline`` stages: as many as ``asked`` where every stage's layers divide, else 1."""
        return 1 if any(layers % asked for layers in self.stages(pipeline)) else asked

    def chunks(self, pipeline: int, virtual: int = 1) -> tuple[range, ...]:
        """Layers of each chunk (from 0), in their order: chunk i is number i // ``pipeline`` of stage i % ``pipeline``."""
        sizes = [layers // virtual for layers in self.stages(pipeline)] * virtual
        ends = list(accumulate(sizes))
        return tuple(range(end - size, end) for size, end in zip(sizes, ends, strict=True))

    def chunk_of(self, layer: int, pipeline: int, virtual: int = 1) -> int:
        """Which of :meth:`chunks` has ``layer`` (0-based over the model)."""
        return bisect_right([chunk.stop for chunk in self.chunks(pipeline, virtual)], layer)

    def stage_of(self, layer: int, pipeline: int, virtual: int = 1) -> int:
        """Pipeline stage that holds ``layer`` (0-based over the model)."""
        return self.chunk_of(layer, pipeline, virtual) % pipeline


def _mixture(text: TextConfig, family: str) -> dict[str, Any]:
    """The fields of :class:`Architecture` that a mixture of experts has."""
    text.refuse("decoder_sparse_step", (1,), absent=1)
    text.refuse("mlp_only_layers", ([], None), absent=None)
    experts = text.either("num_experts", "num_local_experts")  # transformers 5 writes the second
    chosen = text.integer("num_experts_per_tok")
    if chosen > experts:
        raise text.error("num_experts_per_tok", chosen, f"at most the {experts} experts", OWN)
    if family == "qwen3_moe":
        normalised = text.flag("norm_topk_prob")
    else:  # Qwen3-VL's code always normalises, and its config class has no such key; other engines may read it
        text.refuse("norm_topk_prob", (True, None), absent=None)
        normalised = True
    if normalised and chosen == 1:
        raise text.error("num_experts_per_tok", 1, "2 or more where probabilities are normalised (norm_topk_prob)",
                         "one expert of weight 1 leaves its router without a gradient, and megatron-core refuses it: "
                         "use another model")
    return dict(
        experts=experts,
        experts_per_token=chosen,
        expert_ffn=text.integer("moe_intermediate_size"),
        router_normalised=normalised,
        experts_packed=FAMILIES[family].packed,
        experts_transposed=FAMILIES[family].packed,
    )


def read(path: str | Path) -> Architecture:
    """Architecture of the checkpoint folder ``path``: ``config.json``, and where its files keep the language backbone.

    The hub id of a published model that is not on this disk has its published shapes (:func:`published_config`).

    :raises ConfigError: if the folder, its config or its tensors are missing or of an unknown kind.
    """
    if known := published_config(path):
        return _published(known, str(path))
    folder = Path(path)
    file, config = folder / "config.json", forms.whole_config(folder)
    arch = Architecture.from_hf(config, source=str(file))
    names = tensors.listing(folder)
    for prefix in TEXT_PREFIXES:
        if embedding := names.get(f"{prefix}embed_tokens.weight"):
            if embedding.shape != (arch.vocabulary, arch.hidden):
                raise ConfigError(f"{file}: vocab_size, hidden_size", [arch.vocabulary, arch.hidden],
                                  f"{list(embedding.shape)}, the shape of {prefix}embed_tokens.weight",
                                  _OTHER)
            if (layers := _layers(names, prefix)) != arch.layers:
                raise ConfigError(f"{file}: num_hidden_layers", arch.layers, f"{layers}, as many as the weights have", _OTHER)
            return _with_layout(arch, prefix, names)
    expected = " | ".join(f"{prefix}embed_tokens.weight" for prefix in TEXT_PREFIXES)
    raise ConfigError(str(folder), "no token embedding", expected, "give a complete checkpoint in safetensors format")


def _layers(names: Iterable[str], prefix: str) -> int:
    """How many decoder layers there are tensors of."""
    start = f"{prefix}layers."
    numbers = {name[len(start) :].partition(".")[0] for name in names if name.startswith(start)}
    return len({number for number in numbers if number.isdecimal()})


def published() -> dict[str, Architecture]:
    """Architectures of the published checkpoints in :data:`PUBLISHED`, by hub name without the organisation."""
    names = sorted(file.stem for file in PUBLISHED.glob("*.json"))
    return {name: _published(_published_values(name), name) for name in names}


def published_config(path: str | Path) -> dict[str, Any] | None:
    """``config.json`` of a known model by its hub id (``Qwen/Qwen3-8B``); None for other names and for folders here."""
    path = str(path)
    is_hub_id = path.count("/") == 1 and not Path(path).is_dir()
    return _published_values(path.rpartition("/")[2]) if is_hub_id else None


@functools.cache
def _published_values(name: str) -> dict[str, Any] | None:
    file = PUBLISHED / f"{_SAME_SHAPE.get(name, name)}.json"
    return json.loads(file.read_text())["config"] if file.is_file() else None


def _published(config: dict[str, Any], source: str) -> Architecture:
    """Names on disk are those that the publishers' files have."""
    arch = Architecture.from_hf(config, source=source)
    return replace(arch, text_prefix=TEXT_PREFIXES[arch.family.startswith("qwen3_vl")])


def _with_layout(arch: Architecture, prefix: str, entries: dict[str, tensors.Entry]) -> Architecture:
    packed = entries.get(f"{prefix}layers.0.mlp.experts.gate_up_proj")
    return replace(
        arch,
        text_prefix=prefix,
        head_on_disk=HEAD in entries or not arch.tied,
        experts_packed=packed is not None,
        # hidden = 2 x expert_ffn fits both; then the published order holds
        experts_transposed=packed is not None and packed.shape[1:] == (arch.hidden, 2 * arch.expert_ffn),
    )


def check_layout(
    arch: Architecture, parallel: ParallelConfig, world: int, *, beside_experts: bool = False, trained: bool = True
) -> list[ConfigError]:
    """Every reason why ``arch`` cannot run in this layout on ``world`` ranks; empty if it can.

    ``beside_experts``: another model of the run has experts, so that parallel.expert > 1 is not for nothing.
    ``trained``: it is the student; a teacher whose layers virtual stages do not divide does without them.
    """
    errors = list(check(parallel, "parallel."))
    if errors:
        return errors
    tensor, pipeline = parallel.tensor, parallel.pipeline

    def need(fits: bool, key: str, allowed: str, mend: str) -> None:
        if not fits:
            errors.append(ConfigError(f"parallel.{key}", getattr(parallel, key), allowed, mend))

    def divisors(number: int) -> str:
        return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)

    need(arch.heads % tensor == 0, "tensor", f"a divisor of {arch.heads} attention heads: {divisors(arch.heads)}",
         f"lower parallel.tensor ({arch.family})")
    need(arch.kv_groups % tensor == 0 or tensor % arch.kv_groups == 0, "tensor",
         f"a divisor or a multiple of {arch.kv_groups} key-value heads", f"change parallel.tensor ({arch.family})")
    rows = (arch.heads + 2 * arch.kv_groups) * arch.head_dim  # only tiny heads fail this where the two above hold
    need(bool(errors) or rows % tensor == 0, "tensor", f"a divisor of {rows} query, key and value rows",
         f"lower parallel.tensor ({arch.family})")
    need(bool(arch.experts) or arch.ffn % tensor == 0, "tensor", f"a divisor of the feed-forward size {arch.ffn}",
         f"lower parallel.tensor ({arch.family})")
    fitting = ", ".join(str(n) for n in range(1, arch.layers + 1) if arch.stages(n))
    need(bool(arch.stages(pipeline)), "pipeline", f"what {arch.layers} layers can be shared out over: {fitting}",
         f"change parallel.pipeline ({arch.family})")
    need(parallel.virtual == 1 or pipeline > 1, "virtual", "1 where parallel.pipeline is 1",
         "raise parallel.pipeline, or set parallel.virtual=1: there is no pipeline to make less idle")
    stages = sorted(set(arch.stages(pipeline)))
    common = math.gcd(*stages)
    need(not trained or pipeline == 1 or arch.virtual(pipeline, parallel.virtual) == parallel.virtual, "virtual",
         f"a divisor of the {' and '.join(map(str, stages))} layers of a stage: {divisors(common)}",
         f"change parallel.virtual or parallel.pipeline ({arch.family})")
    if arch.experts:
        need(arch.experts % parallel.expert == 0, "expert", f"a divisor of {arch.experts} experts",
             f"lower parallel.expert ({arch.family})")
        # Without it every tensor rank would send the same tokens to the experts (and megatron-core refuses to train).
        need(tensor == 1 or parallel.sequence, "sequence", f"true where {arch.family} has parallel.tensor > 1",
             "set parallel.sequence=true")
    else:
        need(parallel.expert == 1 or beside_experts, "expert", "1", f"{arch.family} has no experts: set it to 1")
    need(not parallel.sequence or tensor > 1, "sequence", "false where parallel.tensor is 1",
         "raise parallel.tensor or turn sequence parallelism off")
    if world % parallel.model_ranks:
        sizes = {"tensor": tensor, "pipeline": pipeline} | ({"context": parallel.context} if parallel.context > 1 else {})
        errors.append(
            ConfigError("world size", world, f"a multiple of {' x '.join(sizes)} = {' x '.join(map(str, sizes.values()))}",
                        f"start as many processes as that, or lower {' or '.join(f'parallel.{name}' for name in sizes)}")
        )
    else:
        need(world // pipeline % parallel.expert == 0, "expert", f"a divisor of the {world // pipeline} ranks of a stage",
             "lower parallel.expert, or start more processes")
    return errors


def padded_vocabulary(rows: list[int], tensor: int) -> int:
    """Rows that every LM head of the run is padded to: the largest vocabulary, up to a multiple of 8 x ``tensor``.

    Student and teacher share it, so that shard i of both heads covers the same ids; 8 rows are 16 bytes of bf16, which
    matrix units ask for.
    """
    step = 8 * tensor
    return -(-max(rows) // step) * step
