"""Judge the answers in a file, and say what was wrong with them.

    python recipes/verify.py verify.answers=outputs/miniature_tp2/sft_vold/rollouts/step_000010.jsonl
    python recipes/verify.py verify.answers=outputs/miniature_tp2/evaluation/answers/sft.jsonl reward.verifier=math
    python recipes/verify.py verify.answers=mine.parquet verify.fields.response=output verify.fields.truth=reward.ground_truth

Each row brings a response and its true answer; ``reward.verifier`` (or a column, ``verify.fields.verifier``) judges it as in
training, in processes that are killed after ``reward.seconds``.  Writes ``verdicts.jsonl`` (the rows with reward, extracted
answer and reason), ``rejected.jsonl`` and ``diagnosis.json`` under ``verify.path``, and prints a table.  Rows that carry a
reward already are compared with it: judge a run's rollouts with another verifier to see what it would have changed.
"""

from pathlib import Path

from vold_nemo.command import recipe
from vold_nemo.config import Config


@recipe(alone=True, reads=("verify", "reward", "data"))
def main(config: Config) -> None:
    from vold_nemo.evaluation.verify import verify

    found, folder = verify(config), Path(config.verify.path)
    answers = sum(found.reasons.values())
    print(found.table())
    if found.rejected:
        print(f"\nrejected {found.rejected:,} rows: {folder / 'rejected.jsonl'}")
    print(f"\n{answers:,} answers in {found.seconds:.1f} s: {folder / 'verdicts.jsonl'}")


if __name__ == "__main__":
    main()
