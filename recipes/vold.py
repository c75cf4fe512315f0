"""Stage 2: GRPO and on-policy distillation on the same student rollouts (eq. 5 and 6), text only.

    torchrun --nproc-per-node 2 recipes/vold.py experiment=miniature parallel=tp2      the paper's method
    torchrun --nproc-per-node 2 recipes/vold.py experiment=miniature objective=grpo    no distillation: no teacher is loaded
    python recipes/vold.py experiment=miniature objective.kl.mask=none                 without the reward mask
    srun python recipes/vold.py experiment=paper_3b                                    one task per GPU

Starts from the Hugging Face checkpoint ``vold.start`` (stage 1, exported) and writes the run folder ``<outputs>/<vold.run>``:
checkpoints, metrics.jsonl, TensorBoard, rollouts, and ``student.nemo`` at the end.  Started again, it goes on from the newest
whole checkpoint (``checkpoint.resume``).  Export with recipes/export_hf.py.
"""

import itertools
import sys
from pathlib import Path

from vold_nemo.command import recipe
from vold_nemo.config import Config
from vold_nemo.planning.example import print_example


@recipe(training=True, plan=print_example("vold"), reads=(
    "vold", "objective", "rollout", "reward", "data", "teacher", "teachers", "student", "tokenizer", "parallel",
    "checkpoint", "limits", "logging", "seed", "device", "precision",
))  # fmt: skip
def main(config: Config) -> None:
    from omegaconf import OmegaConf

    from vold_nemo.checkpoint import lineage
    from vold_nemo.checkpoint.run_folder import Run
    from vold_nemo.data.prompts import load_prompts
    from vold_nemo.data.rejected import Rejected
    from vold_nemo.data.templates import eos_ids, load_tokenizer, render_prompt
    from vold_nemo.megatron import parallel
    from vold_nemo.megatron.adoption import agree
    from vold_nemo.models.sampling import Sampler
    from vold_nemo.models.teachers import assemble
    from vold_nemo.models.validation import split_off_validation
    from vold_nemo.models.vold import MegatronVOLDModel
    from vold_nemo.rewards.answer_keys import refusal
    from vold_nemo.rollout.build import build_engine

    start, distils = config.vold.start, config.objective.kl.enabled
    tokenizer = load_tokenizer(start)
    # The engine comes first: vLLM measures free memory when it is built.  Where it is to sleep, it does so from here on.
    engine = build_engine(config, start, parallel.join(config.device), eos_ids(start, tokenizer))
    layout = parallel.initialize_from(config)
    folder = Path(config.outputs) / config.vold.run
    model = MegatronVOLDModel(OmegaConf.structured(config))
    teachers = assemble(config, layout, padded_vocabulary=model.padded_vocabulary)
    named = [config.teacher, *config.teachers.values()] if distils else []
    adopted, contract = agree(config, tokenizer, model.architecture.vocabulary, named, padded=model.padded_vocabulary)
    rejected = Rejected(folder / "rejected.jsonl" if layout.rank == 0 else None, config.data.max_rejected_share)
    prompts = load_prompts(
        config.data.prompts, config.data.system_prompt, rejected, instruction=config.data.instruction,
        refuse=refusal(config.reward.verifier),
    )  # fmt: skip
    prompts, validation = split_off_validation(prompts, config, rejected)
    if layout.rank == 0:
        warning = lineage.strangers(lineage.read(start).get("traces"), [one.path for one in named]) if named else None
        if warning:
            print(f"warning: {warning}", file=sys.stderr)
        held_out = ", ".join(f"{len(asked)} {name}" for name, asked in validation.items()) or "no"
        print(f"{contract.describe()}\n{len(prompts)} prompts, {held_out} questions for validation\nrun folder: {folder}")
    for one in teachers.members:
        asked = (render_prompt(tokenizer, prompt) for prompt in prompts)
        said = one.probe(list(itertools.islice(asked, one.config.fp8.probe_tokens)))
        if layout.rank == 0:
            print(one.precision.describe() + (f"\nprobe: {said}" if said else ""))
    model.load_pretrained(start, adopted)
    model.prepare_for_training()
    run = Run(folder, rank=layout.rank, config=config, logging=config.logging)
    sampler = Sampler(engine, tokenizer, prompts, validation, config, layout)
    model.attach(sampler, contract, teachers, run)
    try:
        model.fit(run)
    finally:
        sampler.close()
    parallel.destroy()


if __name__ == "__main__":
    main()
