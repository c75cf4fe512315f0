"""Stage 2: GRPO and on-policy distillation on the same student rollouts (eq. 5 and 6), text only.

    torchrun --nproc-per-node 2 recipes/vold.py experiment=miniature parallel=tp2      the paper's method
    torchrun --nproc-per-node 2 recipes/vold.py experiment=miniature objective=grpo    no distillation: no teacher is loaded
    python recipes/vold.py experiment=miniature objective.kl.mask=none                 without the reward mask
    srun python recipes/vold.py experiment=paper_3b                                    one task per GPU

Starts from the Hugging Face checkpoint ``vold.start`` (stage 1, exported) and writes the run folder ``<outputs>/<vold.run>``:
checkpoints, metrics.jsonl, TensorBoard, rollouts, and ``student.nemo`` at the end.  Started again, it goes on from the newest
whole checkpoint (``checkpoint.resume``); what would make it another run is refused (``checkpoint.accept``).  Export with
recipes/export_hf.py.
"""

from vold_nemo.command import recipe
from vold_nemo.config import Config
from vold_nemo.planning.example import print_example


@recipe(training=True, plan=print_example("vold"), reads=(
    "vold", "objective", "rollout", "reward", "data", "teacher", "teachers", "student", "tokenizer", "parallel",
    "checkpoint", "limits", "logging", "profile", "seed", "device", "precision",
))  # fmt: skip
def main(config: Config) -> None:
    from vold_nemo.models.inputs import VOLDInputs
    from vold_nemo.models.stages import train_vold

    train_vold(config, VOLDInputs(config))


if __name__ == "__main__":
    main()
