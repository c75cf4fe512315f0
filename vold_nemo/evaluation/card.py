"""The scores that an export's model card shows: those of an evaluation of exactly these weights."""

from __future__ import annotations

from pathlib import Path

from vold_nemo.evaluation.answers import model_fingerprint
from vold_nemo.evaluation.results import Results


def card_scores(file: Path, export: Path) -> list[tuple[str, str]]:
    """(set, accuracy with its interval) of each set that the checkpoint ``export`` answered in ``results.json``; else none.

    An arm counts if it was evaluated from this folder and its fingerprint is the folder's, whose bytes are read for it.

    :raises ConfigError: for a file that is no ``results.json``.
    """
    if not file.is_file():
        return []
    results = Results.of_file(file)
    arms = [arm for arm, model in results.models.items() if Path(model.path).resolve() == export.resolve()]
    if not arms:
        return []
    weights = model_fingerprint(export)
    return [
        (kind, f"{100 * one.value:.1f} % ({100 * one.low:.1f} to {100 * one.high:.1f}) of {one.n}, greedy")
        for arm in arms if results.models[arm].weights == weights for kind, one in results.accuracy[arm].items()
    ]  # fmt: skip
