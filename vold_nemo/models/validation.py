"""Questions that stage 2 is validated on and never trained on: images, and text beside them (the paper's figure 3)."""

from __future__ import annotations

import random
from collections.abc import Sequence

from vold_nemo.config import Config, ConfigError
from vold_nemo.data.prompts import Prompt, load_prompts, question_text
from vold_nemo.data.rejected import Rejected
from vold_nemo.rewards.answer_keys import refusal


def split_off_validation(
    prompts: Sequence[Prompt], config: Config, rejected: Rejected
) -> tuple[list[Prompt], dict[str, list[Prompt]]]:
    """Training prompts, and the held-out questions by name: ``image``, ``text``, whichever are asked for.

    ``vold.validation.hold_out=n`` takes n of the prompts, chosen by a stream of its own from the run's seed, out of training.

    Raises:
        ConfigError: nothing would be left to train on, or a question of ``validation.text`` is trained on.
    """
    asked, kept, found = config.vold.validation, list(prompts), {}
    if not asked.every:
        return kept, {}
    for name, dataset in (("image", asked.data), ("text", asked.text)):
        if dataset is not None:
            found[name] = load_prompts(
                dataset, config.data.system_prompt, rejected, instruction=config.data.instruction,
                refuse=refusal(config.reward, parse=False), verifier=config.reward.verifier,
                listed=config.reward.verifiers,
            )  # fmt: skip
    if asked.text is not None:
        trained = {question_text(prompt) for prompt in kept}
        known = [prompt.id for prompt in found["text"] if question_text(prompt) in trained]
        if known:
            allowed = "questions that are not among data.prompts"
            mend = f"take them out of one of the two ({len(known)} are in both), or use vold.validation.hold_out"
            raise ConfigError("vold.validation.text", known[:3], allowed, mend)
    elif asked.hold_out:
        if asked.hold_out >= len(kept):
            allowed = f"fewer than the {len(kept)} prompts of data.prompts"
            raise ConfigError("vold.validation.hold_out", asked.hold_out, allowed, "hold out fewer")
        chosen = set(random.Random(f"hold out/{config.seed}").sample(range(len(kept)), asked.hold_out))
        found["text"] = [prompt for index, prompt in enumerate(kept) if index in chosen]
        kept = [prompt for index, prompt in enumerate(kept) if index not in chosen]
    return kept, found
