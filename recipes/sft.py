"""Stage 1: supervised fine-tuning of the student on the teacher's traces (eq. 4), text only.

    python recipes/sft.py experiment=miniature                                        one process
    torchrun --nproc-per-node 2 recipes/sft.py experiment=miniature parallel=tp2      two ranks, tensor parallel
    srun python recipes/sft.py experiment=paper_3b                                    one task per GPU, no launcher

Reads ``traces.path`` (written by recipes/generate_traces.py) and the student's Hugging Face checkpoint; writes the run folder
``<outputs>/<sft.run>``: checkpoints, metrics.jsonl, TensorBoard, and ``student.nemo`` at the end.  Started again, it goes on
from the newest whole checkpoint (``checkpoint.resume``).  Export with recipes/export_hf.py.
"""

import sys
from pathlib import Path

from vold_nemo.command import recipe
from vold_nemo.config import Config
from vold_nemo.planning.example import print_example


@recipe(training=True, plan=print_example("sft"), reads=(
    "sft", "traces", "data", "student", "teacher", "teachers", "tokenizer", "parallel", "objective", "checkpoint",
    "limits", "logging", "seed", "device", "precision",
))  # fmt: skip
def main(config: Config) -> None:
    from omegaconf import OmegaConf

    from vold_nemo.checkpoint import lineage
    from vold_nemo.checkpoint.run_folder import Run
    from vold_nemo.config.launcher import launch
    from vold_nemo.data.templates import load_tokenizer
    from vold_nemo.data.token_cache import stored_traces
    from vold_nemo.megatron import parallel
    from vold_nemo.megatron.adoption import agree
    from vold_nemo.models.sft import MegatronSFTModel

    layout = parallel.initialize_from(config)
    folder = Path(config.outputs) / config.sft.run
    tokenizer = load_tokenizer(config.student.path, config.student.revision)
    model = MegatronSFTModel(OmegaConf.structured(config))
    adopted, contract = agree(config, tokenizer, model.architecture.vocabulary, [], padded=model.padded_vocabulary)
    examples = stored_traces(
        config, tokenizer, contract.shared.tolist(), folder / "rejected.jsonl", rank=layout.rank,
        local_rank=launch().local_rank,
    )  # fmt: skip
    traces = examples.counts.origins
    if layout.rank == 0:
        print(f"{examples.counts.describe()}\nrun folder: {folder}")
        warning = None
        if config.objective.kl.enabled:
            warning = lineage.strangers(traces, [one.path for one in (config.teacher, *config.teachers.values())])
        if warning:
            print(f"warning: {warning}", file=sys.stderr)
    model.load_pretrained(config.student.path, adopted)
    model.prepare_for_training()
    model.attach(examples, contract, traces)
    model.fit(Run(folder, rank=layout.rank, config=config, logging=config.logging))
    parallel.destroy()


if __name__ == "__main__":
    main()
