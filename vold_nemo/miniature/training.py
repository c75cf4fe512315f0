"""From random weights to a teacher that reasons and a base student that reads: plain transformers, one process each.

Every phase runs on freshly drawn lessons; equal settings and seed give equal weights.  Matrices inside transformer layers are
trained with Muon (torch.optim), everything else with AdamW: with AdamW alone the arithmetic tables take several times as
many steps (80 steps of isolated facts: + - x right in .15 .15 .40 of cases with AdamW, in 1.0 1.0 1.0 with Muon).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from vold_nemo.miniature.lessons import IGNORE, Classroom, cards_batch, collate
from vold_nemo.miniature.models import build_student, build_teacher, student_config, teacher_config
from vold_nemo.miniature.renderer import CellBank
from vold_nemo.miniature.task import OPERATORS, WORD
from vold_nemo.miniature.tokenizer import ID, build_tokenizer

BATCH = 128
TEACHER_RATE, BASE_RATE = 3e-3, 2e-3
TOWER_RATE = 0.3  # of BASE_RATE, in the joint phase
MUON_RATE = 5.0  # Muon's learning rate in units of AdamW's
WARMUP = 10
FACTS_SHARE, FACTS_UNTIL = 0.3, 0.5  # the teacher sees isolated facts in the first half of its steps
CELL_VARIANTS = 1000
CARDS = 256  # a step of the vision phase


def train_teacher(steps: int, seed: int, bar: int = 0):
    """``Qwen3ForCausalLM`` trained on right traces and, early on, isolated facts."""
    model = build_teacher(teacher_config(), seed)
    classroom, generator = Classroom(build_tokenizer(qwen3=True), f"{seed}/teacher"), np.random.default_rng([seed, 10])

    def loss(progress: float):
        share = FACTS_SHARE if progress < FACTS_UNTIL else 0.0
        return lesson_loss(model, collate([classroom.teacher(share) for _ in range(BATCH)], None, generator))

    optimise("teacher", loss, [(model.parameters(), TEACHER_RATE)], steps, bar, in_layers(model))
    return model.eval()


def train_base(text_steps: int, vision_steps: int, joint_steps: int, *, seed: int, bar: int = 0):
    """``Qwen2_5_VLForConditionalGeneration`` in three phases: text; tower alone; all on text and cards."""
    model = build_student(student_config(), seed + 1)
    classroom, generator = Classroom(build_tokenizer(), f"{seed}/base"), np.random.default_rng([seed, 11])
    bank = CellBank(CELL_VARIANTS, seed)
    tower = model.model.visual
    text = [p for p in model.parameters() if all(p is not q for q in tower.parameters())]
    muon = in_layers(model)

    def lessons(images_share: float):
        return collate([classroom.base(images_share) for _ in range(BATCH)], bank, generator)

    optimise("base: text", lambda _: lesson_loss(model, lessons(0.0)), [(text, BASE_RATE)], text_steps, bar, muon)
    words = model.get_input_embeddings().weight.detach().clone()
    optimise(
        "base: vision",
        lambda _: perception_loss(tower, words, bank, generator),
        [(tower.parameters(), BASE_RATE)],
        vision_steps,
        bar,
    )
    groups = [(text, BASE_RATE), (tower.parameters(), TOWER_RATE * BASE_RATE)]
    optimise("base: joint", lambda _: lesson_loss(model, lessons(0.5)), groups, joint_steps, bar, muon)
    return model.eval()


def lesson_loss(model, batch: dict):
    r"""Mean next-token NLL over the labelled tokens: :math:`-\frac1n\sum_t \log p(y_t \mid y_{<t})`."""
    import torch

    labels = batch.pop("labels")[:, 1:]
    hidden = model.model(**batch, use_cache=False).last_hidden_state[:, :-1]
    learned = labels != IGNORE
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[learned]), labels[learned])


def perception_loss(tower, words, bank: CellBank, generator: np.random.Generator):
    """Mean squared distance of each cell's image token to its word's embedding, in units of their variance.

    This regression of the tower on the embedding table is a crutch: it takes the place of pre-training on captions.
    """
    import torch

    cards = []
    for _ in range(CARDS):
        operator = OPERATORS[generator.integers(len(OPERATORS))] if generator.random() < 0.8 else ""
        cards.append(operator + str(generator.integers(10)))
    images = cards_batch(cards, bank, generator)
    seen = tower(images["pixel_values"], grid_thw=images["image_grid_thw"]).pooler_output
    meant = words[[ID[WORD[glyph]] for card in cards for glyph in card]]
    return torch.nn.functional.mse_loss(seen, meant) / meant.var()


def in_layers(model) -> set[int]:
    """Ids of the matrices that Muon trains: two-dimensional weights of transformer layers, no embedding, no head."""
    return {
        id(parameter)
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and (".layers." in name or ".blocks." in name)
    }


def optimise(
    name: str, loss: Callable[[float], object], groups: Iterable[tuple], steps: int, bar: int, muon: set[int] = frozenset()
) -> None:
    """``steps`` of Muon and AdamW (.9/.95), weight decay .01, gradients clipped to 1; ``loss`` is given the progress.

    ``groups``: (parameters, AdamW learning rate); parameters whose id is in ``muon`` take Muon at ``MUON_RATE`` times it.
    Rates warm up, stay, and fall linearly over the second half.  ``bar`` is the line of the progress bar, for phases side by
    side.
    """
    import torch
    from tqdm import tqdm

    matrices, others = [], []
    for parameters, rate in groups:
        parameters = list(parameters)
        matrices.append({"params": [p for p in parameters if id(p) in muon], "lr": MUON_RATE * rate})
        others.append({"params": [p for p in parameters if id(p) not in muon], "lr": rate})
    optimizers = [torch.optim.AdamW([g for g in others if g["params"]], betas=(0.9, 0.95), weight_decay=0.01)]
    if any(group["params"] for group in matrices):
        matrices = [group for group in matrices if group["params"]]
        optimizers.append(torch.optim.Muon(matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    trained = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / WARMUP, max(0.02, 2 * (steps - step) / steps))

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, rate) for optimizer in optimizers]
    shown = tqdm(range(steps), desc=name, unit="step", position=bar)
    for step in shown:
        value = loss(step / steps)
        for optimizer in optimizers:
            optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        if step % 10 == 0 or step == steps - 1:
            shown.set_postfix(loss=f"{value.item():.3f}", refresh=False)
