"""Compare any evaluations question by question: paired differences, wins and losses, the questions that flipped.

    python recipes/compare.py experiment=miniature compare.results.demo=outputs/miniature_tp2/evaluation
    python recipes/compare.py compare.results.ours=outputs/a/evaluation compare.results.theirs=outputs/b/evaluation

Reads ``answers/<arm>.jsonl`` of each folder, also those that recipes/handoff.py brought in from lmms-eval or VLMEvalKit;
writes ``compare.json`` and a self-contained ``compare.html`` under ``compare.path``.  Images are shown for the questions that
``evaluate.benchmarks``, ``evaluate.image`` and ``evaluate.text`` name.
"""

from vold_nemo.command import recipe
from vold_nemo.config import Config


@recipe(alone=True, reads=("compare", "evaluate", "reward", "data"))
def main(config: Config) -> None:
    from vold_nemo.pages.compare import write_comparison
    from vold_nemo.pages.report.verdict import evidence

    path, found = write_comparison(config)
    for kind, entries in found.pairs.items():
        for entry in entries:
            print(f"{kind}: {entry.first} - {entry.second}: {evidence(entry)} (n = {entry.n})")
    print(f"comparison: {path}")


if __name__ == "__main__":
    main()
