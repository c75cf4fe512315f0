"""Virtual pipeline stages: a rank's layers in several pieces, each a model of its own (megatron-core's *model chunks*).

With ``parallel.pipeline=P parallel.virtual=V`` the layers are cut into V x P chunks in their order, and stage p holds chunks
p, P + p, 2P + p, ...  The first chunk of the first stage has the embedding, the last of the last the LM head.  Without virtual
stages a rank's model is the one GPTModel that it always was; whoever walks over a model asks :func:`chunks_of`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


class Chunks(torch.nn.ModuleList):
    """A rank's chunks, in the order of their layers: what is asked of a model as a whole, wrapped (DDP) or not."""

    @property
    def config(self):
        """megatron-core's; one object for all chunks."""
        return self[0].config

    @property
    def vocab_size(self) -> int:
        """Rows of embedding and LM head, padding included."""
        return self[0].vocab_size


def chunks_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The chunks of a rank's ``model``; without virtual stages it is the only one."""
    return list(model) if isinstance(model, Chunks) else [model]


def each_chunk(model: torch.nn.Module, change: Callable[[torch.nn.Module], torch.nn.Module]) -> torch.nn.Module:
    """``model`` with every chunk wrapped, or unwrapped, by ``change``."""
    return Chunks(map(change, model)) if isinstance(model, Chunks) else change(model)
