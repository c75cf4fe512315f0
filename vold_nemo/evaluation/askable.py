"""Which questions every model of an evaluation can be asked: those that one of them cannot are left out for all.

Accuracies are compared question by question, so a question that does not fit one model is no question of this evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping

from vold_nemo.config import Config, ConfigError
from vold_nemo.data.prompts import Prompt
from vold_nemo.data.rejected import Rejected
from vold_nemo.data.rendering import Renderer, Room, admit, reach_of
from vold_nemo.data.templates import load_tokenizer


def askable(
    config: Config, questions: Mapping[str, list[Prompt]], rejected: Rejected, *, writes: bool = True
) -> dict[str, list[Prompt]]:
    """``questions`` without those that a model of ``evaluate.models`` cannot be asked; these go to ``rejected``.

    Raises:
        ConfigError: images for a model of text, or too many such questions.
    """
    from vold_nemo.rollout.images import widening_of

    options, found = config.evaluate, dict(questions)
    for arm, path in options.models.items():
        renderer, (positions, image) = Renderer(load_tokenizer(path)), reach_of(path)
        if options.engine == "vllm" and config.rollout.vllm.max_length is not None:
            positions = min(positions or config.rollout.vllm.max_length, config.rollout.vllm.max_length)
        widening = widening_of(path, image) if image is not None else None
        room = Room(options.max_tokens, "evaluate.max_tokens", positions, f"{arm} ({path})", image, widening)
        for kind, prompts in found.items():
            if image is None and any(prompt.images for prompt in prompts):
                allowed = f"a vision-language checkpoint: the set {kind} has images"
                raise ConfigError(f"evaluate.models.{arm}", path, allowed, "take the arm, or the set, out")
            source = source_of(config, kind)
            found[kind] = admit(prompts, renderer, room, rejected, source, cache=config.data.cache, writes=writes)
    return found


def source_of(config: Config, kind: str) -> str:
    """What :class:`Rejected` calls the rows of a set."""
    return str(getattr(config.evaluate, kind).path) if kind in ("text", "image") else kind
