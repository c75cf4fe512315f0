"""What a checkpoint can be asked: refusals before a token is sampled, the same for every engine."""

from __future__ import annotations

from dataclasses import dataclass

from vold_nemo.config import ConfigError
from vold_nemo.rollout.engine import EnginePrompt


def require_ready(awake: bool, version: int | None, expected: int | None) -> None:
    """RuntimeError when an engine sleeps, or does not hold the weights that the trainer is at."""
    if not awake:
        raise RuntimeError("the rollout engine is asleep: wake() it before generate()")
    if version is None or (expected is not None and version != expected):
        raise RuntimeError(f"stale rollout weights: the engine is at version {version}, asked for {expected}")


@dataclass(frozen=True)
class Limits:
    """Of the checkpoint at ``path``; ``image_token`` None means a text-only model."""

    path: str
    vocabulary: int
    positions: int
    image_token: int | None

    def has_images(self, index: int, prompt: EnginePrompt) -> bool:
        """Whether the prompt must be read with its images.  ConfigError for images that the model cannot see."""
        if prompt.images and self.image_token is None:
            allowed, mend = f"none: {self.path} is a text-only model", "use a vision-language checkpoint"
            raise ConfigError(f"prompt {index}: images", len(prompt.images), allowed, mend)
        return self.image_token is not None and bool(prompt.images or self.image_token in prompt.asked)

    def refusal(self, prompt: EnginePrompt, max_tokens: int) -> str | None:
        """Why a prompt of text cannot be asked, or None: without an error, so that the others of its batch can be."""
        try:
            if self.image_token is not None and self.image_token in prompt.asked:
                return "it holds the image placeholder and no image"
            self.check(0, prompt.ids, len(prompt.ids), max_tokens)
        except ConfigError as error:
            return f"{error.key} {error.value}: {error.allowed}"
        return None

    def check(self, index: int, ids: list[int], length: int, max_tokens: int) -> None:
        """``length``: tokens of the prompt with its images, ids of which may stand for several.  ConfigError."""
        if not ids or not 0 <= min(ids) <= max(ids) < self.vocabulary:
            allowed = f"at least one id, each in 0..{self.vocabulary - 1}"
            mend = "render prompts with the checkpoint's own tokenizer"
            raise ConfigError(f"prompt {index}: ids", ids[:8], allowed, mend)
        if length + max_tokens > self.positions:
            allowed = f"at most {self.positions - length} after prompt {index} of {length} tokens (room for {self.positions})"
            raise ConfigError("max_tokens", max_tokens, allowed, "lower max_tokens or drop long prompts")
