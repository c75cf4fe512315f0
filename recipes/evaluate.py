"""Accuracy of Hugging Face checkpoints on text and image questions.

    python recipes/evaluate.py experiment=miniature
    python recipes/evaluate.py evaluate.models.mine=/path/to/checkpoint evaluate.image.path=geo3k.parquet

Every checkpoint of ``evaluate.models`` (arm: folder) answers the questions of ``evaluate.text`` and ``evaluate.image``,
greedily and, with ``evaluate.samples``, also at temperature 1.  Writes ``results.json`` (accuracies with 95 % intervals, paired
differences) and every answer to ``answers/<arm>.jsonl`` under ``evaluate.path``.  An interrupted evaluation goes on where it
stopped; a finished arm is not answered again unless its weights, the questions or the settings changed.
"""

from pathlib import Path

from vold_nemo.command import recipe
from vold_nemo.config import Config


@recipe()
def main(config: Config) -> None:
    from vold_nemo.evaluation.benchmark import evaluate, summary

    print(summary(evaluate(config)))
    print(f"results: {Path(config.evaluate.path) / 'results.json'}")


if __name__ == "__main__":
    main()
