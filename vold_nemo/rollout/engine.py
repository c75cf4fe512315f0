"""What a rollout engine is: token ids in, sampled ids with their log-probs out.

An engine knows nothing of the trainer.  It is handed prompts as ids (and images), and new weights as a stream of (name on
disk, the part of the tensor that it keeps).  The trainer's floor calls :meth:`RolloutEngine.load` after each step and compares
fingerprints and log-probs (``rollout/sync.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from vold_nemo.config import ConfigError
from vold_nemo.rollout.fingerprints import WHOLE, Fingerprints, Part
from vold_nemo.rollout.shares import Box


@dataclass(frozen=True)
class EnginePrompt:
    """One prompt, rendered up to where the answer begins.

    ``ids`` holds one image placeholder for each entry of ``images`` (a path, a PIL image, encoded bytes, or the ``{"bytes",
    "path"}`` of a parquet image column); the engine widens placeholders to the number of patches.  ``key`` is what the
    prompt's random numbers hang on besides the seed and the sample; None means its place in the list.  With a key of its
    own a prompt draws the same numbers whichever rank answers it.  The last ``answered`` ids are an answer that is continued:
    sampled, so that a placeholder among them stands for no image.
    """

    ids: list[int]
    images: list[Any] = field(default_factory=list)
    key: int | None = None
    answered: int = 0

    @property
    def asked(self) -> list[int]:
        """The ids that were not sampled."""
        return self.ids[: len(self.ids) - self.answered]


@dataclass(frozen=True)
class Sampling:
    """How to draw: ``samples`` completions a prompt, from softmax(logits / temperature) over all of the model's ids.

    Temperature 0 takes the most probable id (the lowest one among equals) and reports log-probs at temperature 1.
    ``stop_ids`` end a completion and belong to it; None means the checkpoint's own end-of-sequence ids.  So do the tokens
    whose text completes one of ``stop``.
    """

    samples: int = 1
    temperature: float = 1.0
    max_tokens: int = 1024
    stop_ids: tuple[int, ...] | None = None
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for key, value, bad, allowed in (
            ("samples", self.samples, self.samples < 1, "a whole number of at least 1"),
            ("max_tokens", self.max_tokens, self.max_tokens < 1, "a whole number of at least 1"),
            (
                "temperature",
                self.temperature,
                not 0 <= self.temperature < float("inf"),
                "0 (greedy) or a positive number",
            ),
        ):
            if bad:
                raise ConfigError(f"sampling.{key}", value, allowed, f"correct {key}")
        if self.temperature == 0 and self.samples > 1:
            raise ConfigError(
                "sampling.samples",
                self.samples,
                "1 at temperature 0",
                "greedy samples are all equal: draw one, or heat up",
            )


@dataclass(frozen=True)
class Completion:
    """One answer.  ``ids`` end with what stopped it when ``finish_reason`` is "stop"; ``logprobs`` runs beside ``ids``."""

    prompt_index: int
    sample: int
    ids: list[int]
    logprobs: list[float]
    finish_reason: str  # stop | length


@dataclass(frozen=True)
class LoadReport:
    """What a weight load did; ``bytes`` are those that this rank keeps, ``fingerprints`` are of the live weights after the
    load, under the names that were sent."""

    bytes: int
    seconds: float
    fingerprints: Fingerprints
    version: int


class RolloutEngine(Protocol):
    """``version`` counts weight loads: 0 is the checkpoint on disk, None a load that broke off half way."""

    version: int | None

    def generate(
        self,
        prompts: list[EnginePrompt],
        sampling: Sampling,
        *,
        expect_version: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        """All completions, ordered by (prompt_index, sample).  RuntimeError when asleep or not at ``expect_version``."""

    def keeps(self, name: str, shape: Sequence[int], rank: int) -> Box:
        """What rank ``rank`` of the world keeps of language tensor ``name``, whole ``shape``; the same said by all ranks."""

    def room(self, name: str) -> Tensor | None:
        """What this rank keeps of language tensor ``name``, live: the stream of a :meth:`load` may write there what it brings,
        and then passes this tensor.  None: the engine copies by rules of its own."""

    def load(self, named_tensors: Iterable[tuple[str, Tensor]], version: int, part: Part = WHOLE) -> LoadReport:
        """Copy what this rank :meth:`keeps` of a whole language model into the live weights; ``part`` of every tensor is
        read back."""

    def fingerprints(self, part: Part = WHOLE, *, totals: bool = False) -> Fingerprints:
        """Of the live language weights, under the names of the last load."""

    def close(self) -> None:
        """Give back what outlives the object; nothing can be asked afterwards."""

    def sleep(self) -> None:
        """Leave the device to others; weights are kept."""

    def wake(self) -> None:
        """Undo :meth:`sleep`; RuntimeError if the weights came back changed.

        Comes before :meth:`load` and before :meth:`generate`; an engine may leave its cache away until the latter.
        """

    def device_bytes(self) -> int:
        """Bytes of weights and cache on the device now."""
