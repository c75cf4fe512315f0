"""The two stages from their inputs to a finished run: what recipes/sft.py and recipes/vold.py do.

The order is the order in which memory is taken, and it is the same for a run and for a rehearsal of one.
"""

from __future__ import annotations

import torch
from omegaconf import OmegaConf

from vold_nemo.config import Config
from vold_nemo.config.launcher import launch
from vold_nemo.megatron import parallel
from vold_nemo.models import heartbeat
from vold_nemo.models.inputs import SFTInputs, VOLDInputs
from vold_nemo.models.teachers import assemble


def train_sft(config: Config, inputs: SFTInputs) -> None:
    """Stage 1.  Collective over the world, which it joins and leaves."""
    heartbeat.note("groups")
    layout = parallel.initialize_from(config)
    with inputs.alone(layout.rank):
        heartbeat.note("student")
        model = inputs.model(OmegaConf.structured(config))
        adopted, contract = inputs.agree(model)
        examples, traces = inputs.examples(contract, layout)
        model.load_pretrained(inputs.source(config.student.path), adopted)
        heartbeat.note("optimizer")
        model.prepare_for_training()
        model.attach(examples, contract, traces)
        model.fit(inputs.run(layout))
    parallel.destroy()


def train_vold(config: Config, inputs: VOLDInputs) -> None:
    """Stage 2.  Collective over the world, which it joins and leaves."""
    device = parallel.join(config.device)
    with inputs.alone(launch().rank):
        _train_vold(config, inputs, device)
    parallel.destroy()


def _train_vold(config: Config, inputs: VOLDInputs, device: torch.device) -> None:
    # The engine comes first: vLLM measures free memory when it is built.
    heartbeat.note("engine")
    engine = inputs.engine(device)
    if config.rollout.sleep:  # teacher, student, gradients and optimizer come where it was
        engine.sleep()
    heartbeat.note("groups")
    layout = parallel.initialize_from(config)
    heartbeat.note("student")
    model = inputs.model(OmegaConf.structured(config))
    heartbeat.note("teachers")
    teachers = assemble(config, layout, padded_vocabulary=model.padded_vocabulary, source=inputs.source)
    adopted, contract = inputs.agree(model)
    prompts, validation = inputs.prompts(contract, layout)
    heartbeat.note("probe")
    for one in teachers.members:
        said = one.probe(inputs.texts(prompts, one.config.fp8.probe_tokens))
        if layout.rank == 0:
            print(one.precision.describe() + (f"\nprobe: {said}" if said else ""))
    heartbeat.note("student weights")
    model.load_pretrained(inputs.source(config.vold.start), adopted)
    heartbeat.note("optimizer")
    model.prepare_for_training()
    sampler = inputs.sampler(engine, prompts, validation, layout)
    run = inputs.run(layout)
    model.attach(sampler, contract, teachers, run)
    try:
        model.fit(run)
    finally:
        sampler.close()
