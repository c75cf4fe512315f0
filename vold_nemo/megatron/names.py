"""One table per family: how Megatron's parameters are put together from Hugging Face's tensors; read both ways.

Everything rests on one statement:

    A Megatron parameter, before it is split, is a concatenation of *blocks* of Hugging Face tensors along one axis, and
    tensor rank r of T holds the r-th of T equal parts of it.

- query, key, value: rows [q_0 k_0 v_0 | q_1 k_1 v_1 | ...], one triple per key-value group, q_g holding that group's
  query heads.  With more ranks than groups an equal part begins and ends inside a triple; the statement still holds.
- gate, up: rows [gate_0 up_0 | gate_1 up_1 | ...], one pair per tensor rank.
- vocabulary: the checkpoint's rows, then rows of padding (zeros) that belong to nobody.
- a row-parallel matrix: columns, one block.  A norm, a router: not split at all.
- an expert: gate and up, or down, whole on one rank of the expert group (expert tensor parallel size is 1: experts are
  narrow, and slices of them would be narrower still).

To add an architecture, add its ``model_type`` to :data:`vold_nemo.megatron.architecture.FAMILIES` and its table to
:data:`TABLES`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from vold_nemo.megatron.architecture import HEAD, Architecture

LAYER = "decoder.layers.{layer}."

# Bytes of all tensor ranks' parts that a stream gathers at a time.  gloo puts them together in memory of its own, which malloc
# keeps; NCCL does not, and asks for long messages.
SLICE = {"cpu": 1 << 20, "cuda": 64 << 20}
# Bytes that a rank sends, or receives, in one round of a weight sync (exchange.py), and rounds that are under way while one is
# used up.  NCCL asks for long messages; gloo's ranks wait for each other once a round.
ROUND = {"cpu": 64 << 20, "cuda": 256 << 20}
AHEAD = {"cpu": 1, "cuda": 0}
# Bytes from which on a piece is a message of its own.  On gloo one costs as much as copying some 400 KiB twice; with NCCL
# copies cost next to nothing beside a message.
LONG = {"cpu": 512 << 10, "cuda": float("inf")}


@dataclass(frozen=True)
class Rule:
    """One Megatron parameter (``{layer}``, ``{expert}``: 0-based over the whole model) and the Hugging Face tensors it is of.

    ``kind``: vocabulary | qkv | gated | rows (one block, split along axis 0) | columns (split along axis 1) | whole |
    expert_gated | expert.  ``fused`` is the parameter's name where Transformer Engine keeps the norm inside the following
    linear layer, or all experts of a rank in one.
    """

    megatron: str
    hf: tuple[str, ...]
    kind: str
    fused: str | None = None


def _layer(megatron: str, hf: str | tuple[str, ...], kind: str, fused: str | None = None) -> Rule:
    names = (hf,) if isinstance(hf, str) else hf
    return Rule(LAYER + megatron, tuple("layers.{layer}." + name for name in names), kind, fused and LAYER + fused)


_QKV = ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj.")

# Hugging Face names are relative to Architecture.text_prefix.
DENSE = (
    Rule("embedding.word_embeddings.weight", ("embed_tokens.weight",), "vocabulary"),
    _layer("input_layernorm.weight", "input_layernorm.weight", "whole", "self_attention.linear_qkv.layer_norm_weight"),
    _layer("self_attention.linear_qkv.weight", tuple(name + "weight" for name in _QKV), "qkv"),
    _layer("self_attention.linear_proj.weight", "self_attn.o_proj.weight", "columns"),
    _layer("pre_mlp_layernorm.weight", "post_attention_layernorm.weight", "whole", "mlp.linear_fc1.layer_norm_weight"),
    _layer("mlp.linear_fc1.weight", ("mlp.gate_proj.weight", "mlp.up_proj.weight"), "gated"),
    _layer("mlp.linear_fc2.weight", "mlp.down_proj.weight", "columns"),
    Rule("decoder.final_layernorm.weight", ("norm.weight",), "whole"),
)
QKV_BIAS = (_layer("self_attention.linear_qkv.bias", tuple(name + "bias" for name in _QKV), "qkv"),)
QK_NORM = (
    _layer("self_attention.q_layernorm.weight", "self_attn.q_norm.weight", "whole"),
    _layer("self_attention.k_layernorm.weight", "self_attn.k_norm.weight", "whole"),
)

_GATE_UP = tuple(f"mlp.experts.{{expert}}.{name}_proj.weight" for name in ("gate", "up"))
_ROUTER = _layer("mlp.router.weight", "mlp.gate.weight", "whole")
_EXPERT_IN = ("mlp.experts.local_experts.{expert}.linear_fc1.weight", "mlp.experts.linear_fc1.weight{expert}")
_EXPERT_OUT = ("mlp.experts.local_experts.{expert}.linear_fc2.weight", "mlp.experts.linear_fc2.weight{expert}")
_ATTENTION = tuple(rule for rule in DENSE if ".mlp." not in rule.megatron)
SEPARATE_EXPERTS = (
    _ROUTER,
    _layer(_EXPERT_IN[0], _GATE_UP, "expert_gated", _EXPERT_IN[1]),
    _layer(_EXPERT_OUT[0], "mlp.experts.{expert}.down_proj.weight", "expert", _EXPERT_OUT[1]),
)
PACKED_EXPERTS = (  # [E, out, in] or transposed; out = [gate up]
    _ROUTER,
    _layer(_EXPERT_IN[0], "mlp.experts.gate_up_proj", "expert", _EXPERT_IN[1]),
    _layer(_EXPERT_OUT[0], "mlp.experts.down_proj", "expert", _EXPERT_OUT[1]),
)

TABLES: dict[str, tuple[Rule, ...]] = {
    "qwen2": DENSE + QKV_BIAS,
    "qwen2_5_vl": DENSE + QKV_BIAS,
    "qwen2_5_vl_text": DENSE + QKV_BIAS,
    "qwen3": DENSE + QK_NORM,
    "qwen3_vl": DENSE + QK_NORM,
    "qwen3_vl_text": DENSE + QK_NORM,
    "qwen3_moe": _ATTENTION + QK_NORM,
    "qwen3_vl_moe": _ATTENTION + QK_NORM,
    "qwen3_vl_moe_text": _ATTENTION + QK_NORM,
}


def table(arch: Architecture) -> tuple[Rule, ...]:
    """The rules of ``arch``; those of experts follow how its files keep them."""
    experts = (PACKED_EXPERTS if arch.experts_packed else SEPARATE_EXPERTS) if arch.experts else ()
    return TABLES[arch.family] + experts


@dataclass(frozen=True)
class Block:
    """``size`` entries of Hugging Face tensor ``source`` from ``start`` on; ``source`` None: padding."""

    source: int | None  # index into Placement.hf
    start: int
    size: int


@dataclass(frozen=True)
class Placement:
    """A rule applied to one model: real names, shapes, and the blocks of the unsplit parameter along ``axis``."""

    megatron: str
    fused: str | None
    layer: int | None
    hf: tuple[str, ...]  # as on disk
    shapes: tuple[tuple[int, ...], ...]  # of the Hugging Face tensors
    blocks: tuple[Block, ...]
    axis: int
    split: bool  # over tensor ranks
    expert: int | None = None
    packed: bool = False  # the Hugging Face tensor holds all experts along axis 0 ...
    transposed: bool = False  # ... each of them transposed

    def part(self, rank: int, ranks: int) -> list[Block]:
        """The blocks of ``rank``'s part, cut at its borders."""
        if not self.split:
            return list(self.blocks)
        share = sum(block.size for block in self.blocks) // ranks
        low, high, at, cut = rank * share, (rank + 1) * share, 0, []
        for block in self.blocks:
            a, z = max(low, at), min(high, at + block.size)
            if a < z:
                cut.append(Block(block.source, block.start + a - at, z - a))
            at += block.size
        return cut


def placements(arch: Architecture, tensor: int, padded_vocabulary: int) -> Iterator[Placement]:
    """Every parameter of the model, in the order embedding, layers, final norm, head.

    The head of a tied model is not a parameter of its own: see :func:`head`.
    """
    for rule, layer in _ordered(arch):
        place = _place(rule, layer, arch, tensor, padded_vocabulary)
        if rule.kind.startswith("expert"):
            yield from (_of_expert(place, expert, arch) for expert in range(arch.experts))
        else:
            yield place
    if not arch.tied:
        yield head(arch, padded_vocabulary)


def head(arch: Architecture, padded_vocabulary: int) -> Placement:
    """``output_layer.weight``: from the LM head, or, tied, from the embedding (the last pipeline stage's copy)."""
    source = arch.text_prefix + "embed_tokens.weight" if arch.tied else HEAD
    blocks = _blocks("vocabulary", arch, 1, padded_vocabulary, ())
    return Placement("output_layer.weight", None, None, (source,), ((arch.vocabulary, arch.hidden),), blocks, 0, True)


def chunk_of(place: Placement, arch: Architecture, pipeline: int, virtual: int = 1) -> int:
    """Which of :meth:`Architecture.chunks` holds ``place``; a tied head has a copy on the last one besides."""
    if place.layer is not None:
        return arch.chunk_of(place.layer, pipeline, virtual)
    return 0 if place.megatron.startswith("embedding.") else pipeline * virtual - 1


def stage_of(place: Placement, arch: Architecture, pipeline: int, virtual: int = 1) -> int:
    """Pipeline stage that holds ``place``; a tied head has a copy on the last stage besides."""
    return chunk_of(place, arch, pipeline, virtual) % pipeline


def hf_names(arch: Architecture) -> list[str]:
    """Names on disk of every tensor of the language backbone, in the order of the stream."""
    # a tensor that packs experts belongs to several placements
    names = list(dict.fromkeys(name for place in placements(arch, 1, arch.vocabulary) for name in place.hf))
    if arch.tied and arch.head_on_disk:
        names.insert(1, HEAD)  # the stream sends a stored tied head right after the embedding that it repeats
    return names


def passed_over(name: str, arch: Architecture) -> bool:
    """Whether tensor ``name``, though under the backbone's prefix, is none of its weights; an export carries it along.

    Buffers of the rotary embedding, which older tools stored in every layer and transformers computes anew; the vision tower
    where newer names (``model.visual``) stand beside older ones (``model.layers``).
    """
    sees = "vl" in arch.family.split("_")
    return name.endswith(".rotary_emb.inv_freq") or (sees and name.startswith(f"{arch.text_prefix}visual."))


def _ordered(arch: Architecture) -> Iterator[tuple[Rule, int | None]]:
    rules = table(arch)
    per_layer = [rule for rule in rules if "{layer}" in rule.megatron]
    single = [rule for rule in rules if "{layer}" not in rule.megatron]
    yield from ((rule, None) for rule in single[:1])
    yield from ((rule, layer) for layer in range(arch.layers) for rule in per_layer)
    yield from ((rule, None) for rule in single[1:])


def _place(rule: Rule, layer: int | None, arch: Architecture, tensor: int, padded: int) -> Placement:
    shapes = tuple(_shape(name, arch) for name in rule.hf)
    here = {"layer": layer, "expert": "{expert}"}
    return Placement(
        megatron=rule.megatron.format(**here),
        fused=rule.fused and rule.fused.format(**here),
        layer=layer,
        hf=tuple(arch.text_prefix + name.format(**here) for name in rule.hf),
        shapes=shapes,
        blocks=_blocks(rule.kind, arch, tensor, padded, shapes),
        axis=1 if rule.kind == "columns" else 0,
        split=rule.kind != "whole" and not rule.kind.startswith("expert"),
    )


def _of_expert(place: Placement, expert: int, arch: Architecture) -> Placement:
    return replace(
        place,
        megatron=place.megatron.format(expert=expert),
        fused=place.fused.format(expert=expert),
        hf=tuple(name.format(expert=expert) for name in place.hf),
        expert=expert,
        packed=arch.experts_packed,
        transposed=arch.experts_transposed,
    )


def _shape(name: str, arch: Architecture) -> tuple[int, ...]:
    """Shape of the Hugging Face tensor ``name``, from its last words."""
    module, kind = name.split(".")[-2:]
    width = arch.expert_ffn or arch.ffn
    if module == "experts":  # all of them in one tensor
        out, inner = (2 * width, arch.hidden) if kind == "gate_up_proj" else (arch.hidden, width)
        return (arch.experts, inner, out) if arch.experts_transposed else (arch.experts, out, inner)
    query, key = arch.heads * arch.head_dim, arch.kv_groups * arch.head_dim
    rows, columns = {
        "embed_tokens": (arch.vocabulary, arch.hidden),
        "q_proj": (query, arch.hidden),
        "k_proj": (key, arch.hidden),
        "v_proj": (key, arch.hidden),
        "o_proj": (arch.hidden, query),
        "gate_proj": (width, arch.hidden),
        "up_proj": (width, arch.hidden),
        "down_proj": (arch.hidden, width),
        "gate": (arch.experts, arch.hidden),
        "q_norm": (arch.head_dim, None),
        "k_norm": (arch.head_dim, None),
    }.get(module, (arch.hidden, None))  # every other tensor is a norm over the hidden size
    return (rows,) if kind == "bias" or columns is None else (rows, columns)


def _blocks(kind: str, arch: Architecture, tensor: int, padded: int, shapes: tuple) -> tuple[Block, ...]:
    if kind == "vocabulary":
        padding = padded - arch.vocabulary
        return (Block(0, 0, arch.vocabulary),) + ((Block(None, 0, padding),) if padding else ())
    if kind == "qkv":
        queries, keys = arch.heads // arch.kv_groups * arch.head_dim, arch.head_dim
        sizes = (queries, keys, keys)
        return tuple(Block(source, g * sizes[source], sizes[source]) for g in range(arch.kv_groups) for source in range(3))
    if kind == "gated":
        share = arch.ffn // tensor
        return tuple(Block(source, rank * share, share) for rank in range(tensor) for source in (0, 1))
    if kind == "expert_gated":
        return (Block(0, 0, arch.expert_ffn), Block(1, 0, arch.expert_ffn))
    if kind == "expert" and arch.experts_packed:
        return (Block(0, 0, shapes[0][2 if arch.experts_transposed else 1]),)
    return (Block(0, 0, shapes[0][1 if kind == "columns" else 0]),)
