"""A weight sync by formula (``megatron/exchange.py``): bytes that a rank receives, and what lies beside the model meanwhile."""

from __future__ import annotations

from vold_nemo.config import Config
from vold_nemo.megatron.architecture import Architecture
from vold_nemo.megatron.names import ROUND
from vold_nemo.planning.allocation import BYTES, parameter_count


def received(config: Config, student: Architecture) -> float:
    """Bytes that reach a rank: what its engine keeps, without what the rank holds itself.

    A stage holds one of ``parallel.pipeline`` parts of it; of that, a tensor rank holds its own slice and no other's.  Where an
    engine has more ranks than a tensor group, a slice that it keeps may lie with another one; it is supposed not to.
    """
    kept = BYTES[config.precision] * parameter_count(student) / ranks_of_an_engine(config)
    own = config.parallel.pipeline * max(1, config.parallel.tensor / ranks_of_an_engine(config))
    return kept * (1 - 1 / own)


def beside(config: Config, student: Architecture) -> int:
    """Bytes beyond the model: what one round sends and receives, and the largest tensor that arrives in pieces.

    The latter is the embedding's share, which is cut into parts or split otherwise by an engine, whose vocabulary is padded to
    other rows; on a rank that holds a model alone the query's rows, which are cut out of the fused qkv matrix.
    """
    size, ranks = BYTES[config.precision], ranks_of_an_engine(config)
    if config.parallel.tensor * config.parallel.pipeline == 1:
        return size * student.heads * student.head_dim * student.hidden // ranks
    kept = size * parameter_count(student) // ranks
    widest = student.vocabulary if ranks == config.parallel.tensor else max(student.vocabulary, student.ffn)
    return 2 * min(ROUND["cuda"], kept) + size * widest * student.hidden // ranks


def ranks_of_an_engine(config: Config) -> int:
    return config.rollout.vllm.tensor_parallel if config.rollout.engine == "vllm" else 1
