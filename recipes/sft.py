"""Stage 1: supervised fine-tuning of the student on the teacher's traces (eq. 4), text only.

    python recipes/sft.py experiment=miniature                                        one process
    torchrun --nproc-per-node 2 recipes/sft.py experiment=miniature parallel=tp2      two ranks, tensor parallel
    srun python recipes/sft.py experiment=paper_3b                                    one task per GPU, no launcher

Reads ``traces.path`` (written by recipes/generate_traces.py) and the student's Hugging Face checkpoint; writes the run folder
``<outputs>/<sft.run>``: checkpoints, metrics.jsonl, TensorBoard, and ``student.nemo`` at the end.  Started again, it goes on
from the newest whole checkpoint (``checkpoint.resume``); what would make it another run is refused (``checkpoint.accept``).
Export with recipes/export_hf.py.
"""

from vold_nemo.command import recipe
from vold_nemo.config import Config
from vold_nemo.planning.example import print_example


@recipe(training=True, plan=print_example("sft"), reads=(
    "sft", "traces", "data", "student", "teacher", "teachers", "tokenizer", "parallel", "objective", "checkpoint",
    "limits", "logging", "profile", "seed", "device", "precision",
))  # fmt: skip
def main(config: Config) -> None:
    from vold_nemo.models.inputs import SFTInputs
    from vold_nemo.models.stages import train_sft

    train_sft(config, SFTInputs(config))


if __name__ == "__main__":
    main()
