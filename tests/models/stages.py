"""Functions that gloo workers run: one stage of the method on tiny random checkpoints, in any layout."""

from __future__ import annotations

import contextlib
import random
from dataclasses import replace
from pathlib import Path

SAMPLES = 4
REWARDS = (1, 0, 0, 1, 0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 1, 1)  # mixed, all wrong, all right, mixed


def make_world(folder: Path) -> None:
    """Tiny student, tiny teacher, questions and traces."""
    import json

    from vold_nemo.miniature.random_models import (
        TINY,
        TINY_TEACHER,
        write_questions,
        write_random_student,
        write_random_teacher,
    )

    write_random_student(folder / "student", replace(TINY, layers=4))
    write_random_teacher(folder / "teacher", replace(TINY_TEACHER, layers=4))
    write_questions(folder / "text.jsonl", count=24)
    write_questions(folder / "image.parquet", count=6, images=True)
    rows = [json.loads(line) for line in (folder / "text.jsonl").read_text().splitlines()]
    chance = random.Random(0)
    with (folder / "traces.jsonl").open("w") as file:
        for row in rows:
            response = [chance.randrange(12, 50) for _ in range(chance.randrange(3, 20))] + [1]
            trace = {
                "id": row["id"], "sample": 0, "messages": [{"role": "user", "content": row["prompt"]}],
                "response": "", "response_ids": response, "response_tokens": len(response), "finish": "stop",
            }  # fmt: skip
            file.write(json.dumps(trace) + "\n")


def configuration(folder: Path, *overrides: str):
    """The miniature experiment on the tiny world, with ``overrides``."""
    from vold_nemo.config.compose import compose

    return compose(
        [
            "experiment=miniature", f"student.path={folder}/student", f"teacher.path={folder}/teacher",
            f"vold.start={folder}/student", f"data.prompts.path={folder}/text.jsonl", f"traces.path={folder}/traces.jsonl",
            f"vold.validation.data.path={folder}/image.parquet", f"outputs={folder}/outputs", "logging.tensorboard=false",
            "sft.batch=8", "sft.micro_batch=4", "sft.steps=2", "sft.optimizer.warmup_steps=0", "vold.steps=2",
            "vold.prompts_per_step=4", f"rollout.samples_per_prompt={SAMPLES}", "rollout.max_tokens=12",
            "vold.updates_per_step=1", "vold.micro_batch_tokens=128", "checkpoint.every=0", "sft.run=sft", "vold.run=vold",
            # Adam with a large epsilon moves by the gradient itself: weights then show gradients, rounding and all, where
            # the usual one would turn the last bit of a tiny gradient into a whole step.
            "vold.optimizer.epsilon=1.0", "vold.optimizer.learning_rate=0.1",
            *overrides,
        ]
    )  # fmt: skip


def layout_of(config):
    from vold_nemo.megatron import parallel

    return parallel.initialize_from(config)


def build_sft(config):
    """A stage 1 model that is ready to train, as recipes/sft.py makes it."""
    from omegaconf import OmegaConf

    from vold_nemo.data.rejected import Rejected
    from vold_nemo.data.templates import eos_ids, load_tokenizer
    from vold_nemo.data.traces import load_traces
    from vold_nemo.megatron import weights
    from vold_nemo.megatron.adoption import agree
    from vold_nemo.models.sft import MegatronSFTModel

    model = MegatronSFTModel(OmegaConf.structured(config))
    tokenizer = load_tokenizer(config.student.path)
    adopted, contract = agree(config, tokenizer, model.architecture.vocabulary, [], padded=model.padded_vocabulary)
    examples, counts = load_traces(
        config.traces.path, tokenizer, max_length=config.sft.max_length, rejected=Rejected(None, 0.0),
        end_ids=eos_ids(config.student.path, tokenizer), shared=contract.shared.tolist(),
    )  # fmt: skip
    model.load_pretrained(weights.Files(config.student.path), adopted)
    model.prepare_for_training()
    model.attach(examples, contract, counts.origins)
    return model


class FixedSampler:
    """Stands in for the rollout engine: the same rollouts and rewards whatever the layout, and weights that go nowhere."""

    def __init__(self, rewards=REWARDS, vocabulary: int = 53):
        import torch

        self.rewards, self.vocabulary, self.received, self.recorded = rewards, vocabulary, {}, []
        self.engine, self.dtype, self.stop_ids, self.awake = self, torch.float32, (1,), True

    def sample(self, number: int, phase=lambda name: contextlib.nullcontext(), silent=None):
        with phase("generate"):
            step = self.step(number)
        return step, {"own_seconds": 0.0}

    def step(self, number: int):
        from vold_nemo.step import Step

        chance, prompts, responses = random.Random(number), [], []
        for _ in range(len(self.rewards) // SAMPLES):
            prompts.append([chance.randrange(12, self.vocabulary) for _ in range(chance.randrange(4, 12))])
            for _ in range(SAMPLES):
                responses.append([chance.randrange(12, self.vocabulary) for _ in range(chance.randrange(1, 14))] + [1])
        return Step.of(
            prompts, responses, SAMPLES, reward=[float(reward) for reward in self.rewards],
            engine=[[-3.0 - 0.1 * (i % 3) for i in range(len(response))] for response in responses],
            prompt=[row // SAMPLES for row in range(len(responses))], sample=[row % SAMPLES for row in range(len(responses))],
        )  # fmt: skip

    def keeps(self, name, shape, rank):
        from vold_nemo.rollout.shares import whole

        return whole(shape)

    def room(self, name):
        return None

    def load(self, stream, version, part):
        from vold_nemo.rollout.engine import LoadReport
        from vold_nemo.rollout.fingerprints import Fingerprints

        self.received = {name: tensor.to(self.dtype, copy=True) for name, tensor in stream}
        return LoadReport(0, 0.0, Fingerprints.of(self.received.items(), part), version)

    def sleep(self):
        self.awake = False

    def wake(self):
        self.awake = True

    def device_bytes(self):
        return 1000 * self.awake

    def validate(self, step):
        return {}

    def data_name(self):
        return "fixed"

    def records(self, step):
        return True

    def record(self, number, step, folder):
        self.recorded.append(step)

    def name(self, step, row):
        return f"prompt {int(step['prompt'][row])}"

    def close(self):
        pass


def build_vold(config, layout, sampler=None):
    """A stage 2 model that is ready to train, as recipes/vold.py makes it; ``sampler`` None = a FixedSampler."""
    from omegaconf import OmegaConf

    from vold_nemo.checkpoint.run_folder import Run
    from vold_nemo.data.templates import load_tokenizer
    from vold_nemo.megatron import weights
    from vold_nemo.megatron.adoption import agree
    from vold_nemo.models.teachers import assemble
    from vold_nemo.models.vold import MegatronVOLDModel

    model = MegatronVOLDModel(OmegaConf.structured(config))
    teachers = assemble(config, layout, padded_vocabulary=model.padded_vocabulary)
    adopted, contract = agree(
        config, load_tokenizer(config.vold.start), model.architecture.vocabulary,
        [config.teacher, *config.teachers.values()] if teachers else [], padded=model.padded_vocabulary,
    )  # fmt: skip
    model.load_pretrained(weights.Files(config.vold.start), adopted)
    model.prepare_for_training()
    model.attach(sampler or FixedSampler(), contract, teachers, Run(Path(config.outputs) / "vold", rank=layout.rank))
    return model


def sft_steps(folder: Path, *overrides: str) -> list[tuple[float, float]]:
    """(loss, gradient norm) of two steps of stage 1."""
    from vold_nemo.megatron import parallel

    config = configuration(folder, *overrides)
    layout_of(config)
    model = build_sft(config)
    said = [model.train_step(step) for step in range(2)]
    parallel.destroy()
    return [(metrics["loss"], metrics["grad_norm"]) for metrics in said]


def sft_trained(folder: Path, *overrides: str) -> dict:
    """Two steps of stage 1: metrics of each, and the weights after them, under Hugging Face names."""
    from vold_nemo.megatron import parallel

    config = configuration(folder, "sft.optimizer.epsilon=1.0", "sft.optimizer.learning_rate=0.1", *overrides)
    layout_of(config)
    model = build_sft(config)
    metrics = [model.train_step(step) for step in range(2)]
    trained = {name: tensor.float().numpy() for name, tensor in model.hf_weights()}
    parallel.destroy()
    return {"metrics": metrics, "weights": trained}


def vold_steps(folder: Path, rewards, *overrides: str) -> dict:
    """Two steps of stage 2 on fixed rollouts: metrics of each, and the weights after them."""
    from vold_nemo.megatron import parallel

    config = configuration(folder, "rollout.probe_tolerance=1e9", *overrides)
    layout = layout_of(config)
    sampler = FixedSampler(rewards)
    model = build_vold(config, layout, sampler)
    before, awake = teacher_state(model), []
    metrics = []
    for step in range(2):
        metrics.append(model.train_step(step))
        awake.append(model.teachers.device_bytes())
    after, memory = teacher_state(model), model.teachers.memory_bytes() if model.teachers else None
    parallel.destroy()
    weights = {name: tensor.numpy() for name, tensor in sampler.received.items()}
    return {
        "metrics": metrics, "weights": weights, "teacher": (before, after), "memory": memory, "awake": tuple(awake),
        "recorded": sampler.recorded, "shared": model.contract.shared.tolist(),
    }  # fmt: skip


def teacher_state(model):
    from vold_nemo.rollout.fingerprints import Fingerprints

    if not model.teachers:
        return None
    named = [(f"{i}.{name}", p) for i, one in enumerate(model.teachers.members) for name, p in one.model.named_parameters()]
    # Asleep there is nothing to take one of.
    return Fingerprints.of((name, p) for name, p in named if p.untyped_storage().nbytes()).checksum()
