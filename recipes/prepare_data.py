"""Training prompts without duplicates and without the questions that a model is later judged by.

    python recipes/prepare_data.py experiment=paper_3b data=orz_57k_geo3k
    python recipes/prepare_data.py data=my_set prepare.against.math500.path=HuggingFaceH4/MATH-500 \\
        prepare.against.math500.split=test prepare.against.math500.fields.prompt=problem
    python recipes/sft.py experiment=paper_3b data=prepared                    reads what was written

Reads ``data.prompts`` and ``data.trace_prompts`` and leaves out bad rows, questions that appear twice (the first one stays),
and questions of the evaluation sets: ``evaluate.text``, ``evaluate.image``, ``vold.validation`` and all of
``prepare.against``, by exact match and by the words that they share (docs/data.md).  Writes ``<set>.jsonl``, ``report.json``,
``rejected.jsonl`` (each row that went, with its reason) and ``contamination.html`` (both texts side by side, the shared words
marked) under ``prepare.path``.  On a CPU; the prompts are read twice, first for the phrases among them.
"""

from vold_nemo.command import recipe
from vold_nemo.config import Config


def show(config: Config) -> None:
    """The dry run: what would be compared with what."""
    from vold_nemo.data.prepare import evaluation_sets, training_sets

    for name, dataset in training_sets(config).items():
        print(f"{name}: {dataset.path}, split {dataset.split}")
    for name, dataset in evaluation_sets(config).items():
        print(f"  against {name}: {dataset.path}, split {dataset.split}")


@recipe(alone=True, reads=("prepare", "data", "evaluate", "vold", "reward", "traces"), plan=show)
def main(config: Config) -> None:
    from vold_nemo.data.prepare import prepare, summary
    from vold_nemo.pages import contamination

    report = prepare(config)
    print(summary(report))
    print("\n".join(contamination.in_words(config.prepare.path)))
    print(f"both texts side by side: {contamination.write(config.prepare.path, report)}")
    print(f"report: {config.prepare.path}/report.json, what went: {config.prepare.path}/rejected.jsonl")


if __name__ == "__main__":
    main()
