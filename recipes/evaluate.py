"""Accuracy of Hugging Face checkpoints on text and image questions.

    python recipes/evaluate.py experiment=miniature
    python recipes/evaluate.py evaluate.models.mine=/path/to/checkpoint evaluate.benchmarks=[mathvista,logicvista]
    torchrun --nproc-per-node 8 recipes/evaluate.py evaluate.models.mine=/path/to/checkpoint evaluate.benchmarks=[mathvision]
    sbatch --array=0-7 --wrap 'srun python recipes/evaluate.py ... evaluate.shards=8 evaluate.shard=$SLURM_ARRAY_TASK_ID'

Every checkpoint of ``evaluate.models`` (arm: folder) answers the questions of ``evaluate.benchmarks`` (docs/benchmarks.md),
``evaluate.text`` and ``evaluate.image``, greedily and, with ``evaluate.samples``, also at ``evaluate.temperature``.  Writes
``results.json`` (accuracies with 95 % intervals, paired differences) and every answer to ``answers/<arm>.jsonl`` under
``evaluate.path``.  Ranks and array tasks each answer their part; the last one to end writes the results.  An interrupted
evaluation goes on where it stopped; a finished arm is not answered again unless its weights, the questions or the settings
changed.
"""

from pathlib import Path

from vold_nemo.command import recipe
from vold_nemo.config import Config


@recipe(computes=True, reads=("evaluate", "reward", "rollout", "data", "seed", "device", "precision"))
def main(config: Config) -> None:
    from vold_nemo.evaluation.benchmark import evaluate, summary

    results = evaluate(config)
    if results is None:
        print("this part is answered; the part that ends last writes results.json")
        return
    print(summary(results))
    print(f"results: {Path(config.evaluate.path) / 'results.json'}")


if __name__ == "__main__":
    main()
