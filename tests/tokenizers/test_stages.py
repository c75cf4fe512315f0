"""The whole method with real vocabularies: a thinking teacher's traces, adopted tokens, both stages at TP2, export, scores."""

import json
import math
import shutil

import pytest

from tests.models.stages import configuration, layout_of
from tests.tokenizers.published import QWEN2_5_END
from tests.tokenizers.texts import TEXTS
from tests.tokenizers.world import IM_END, ROWS, THINK

pytestmark = [pytest.mark.tokenizers, pytest.mark.timeout(1800)]

IDS = QWEN2_5_END + 4
CONTROL = "prompt: holds the control token <|im_end|>"


def configured(folder, *overrides):
    return configuration(
        folder, f"data.trace_prompts.path={folder}/text.jsonl", "data.max_rejected_share=0.2", "vold.validation.text=null",
        "vold.validation.every=1", "vold.validation.max_tokens=12", "traces.max_tokens=64", "traces.batch=8",
        "traces.samples_per_prompt=3", "sft.steps=1", "sft.batch=4", "sft.micro_batch=2", "sft.max_length=512",
        "vold.steps=1", "vold.micro_batch_tokens=512", "objective.chunk_tokens=64", "evaluate.max_tokens=12",
        "teacher.thinking=true", "tokenizer.adopt_teacher_tokens=true", *overrides,
    )  # fmt: skip


def train(stage, folder, *overrides):
    """On a gloo rank: a stage from its inputs to a finished run."""
    from vold_nemo.models import inputs, stages

    config = configured(folder, "parallel=tp2", *overrides)
    if stage == "sft":
        stages.train_sft(config, inputs.SFTInputs(config))
    else:
        stages.train_vold(config, inputs.VOLDInputs(config))


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def rejected(folder):
    rows = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
    return {row.get("id", row.get("name")): row["reason"] for row in rows}


@pytest.fixture(scope="module")
def world(real_world, tmp_path_factory):
    return shutil.copytree(real_world, tmp_path_factory.mktemp("stages") / "world")


@pytest.fixture(scope="module")
def traces(world):
    """Lines that the thinking teacher wrote."""
    from recipes import generate_traces

    generate_traces.main.__wrapped__(configured(world))
    return [json.loads(line) for line in (world / "traces.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def exported(world, traces, gloo):
    """Stage 1's run folder, with its export in ``hf``."""
    from recipes import export_hf

    gloo(2).run(train, "sft", world, timeout=1200.0)
    export_hf.main.__wrapped__(configured(world, "export.run=sft"))
    return world / "outputs/sft"


def test_the_teacher_answers_every_kind_of_prompt_and_thinks(world, traces, tokenizers):
    assert {row["id"] for row in traces} == {f"text-{kind}" for kind in TEXTS} and len(traces) == 3 * len(TEXTS)
    assert CONTROL in rejected(world).values()
    kept = [row for row in traces if row["finish"] == "stop"]
    assert kept and all(row["response_ids"][-1] == IM_END for row in kept)
    for row in kept:
        assert row["response"] == tokenizers["teacher"].decode(row["response_ids"], skip_special_tokens=True)
    assert any(set(THINK) & set(row["response_ids"]) for row in kept)


def test_without_adoption_the_traces_that_think_are_dropped_and_counted(world, traces, tokenizers):
    from vold_nemo.data.rejected import Rejected
    from vold_nemo.data.traces import load_traces
    from vold_nemo.data.vocabulary import VocabularyContract

    contract = VocabularyContract.from_tokenizers(tokenizers["student"], ROWS, None, None, padded=ROWS)
    examples, counts = load_traces(
        world / "traces.jsonl", tokenizers["student"], max_length=512, rejected=Rejected(None, 0.0), end_ids=[IM_END],
        shared=contract.shared.tolist(),
    )  # fmt: skip
    kept = [row for row in traces if row["finish"] == "stop"]
    foreign = [row for row in kept if max(row["response_ids"]) >= QWEN2_5_END]
    assert counts.foreign == len(foreign) > 0 and counts.kept == len(examples) == len(kept) - len(foreign)


def test_stage_1_learns_thinking_traces_and_its_export_knows_the_tags(world, traces, exported):
    from safetensors.torch import load_file
    from transformers import AutoModelForImageTextToText

    from vold_nemo.data.templates import load_tokenizer

    assert math.isfinite(metrics(exported)[-1]["loss"]) and metrics(exported)[-1]["loss"] > 0
    tokenizer = load_tokenizer(exported / "hf")
    assert len(tokenizer) == IDS and tokenizer.convert_tokens_to_ids(["<think>", "</think>"]) == list(THINK)
    model = AutoModelForImageTextToText.from_pretrained(exported / "hf")
    assert model.get_input_embeddings().weight.shape[0] == ROWS
    before, after = load_file(world / "student/model.safetensors"), load_file(exported / "hf/model.safetensors")
    name = next(name for name in before if name.endswith("embed_tokens.weight"))
    spelled = tokenizer.convert_tokens_to_ids(["<", "think", ">"])
    start = before[name][spelled].mean(0)
    assert (after[name][THINK[0]] - start).abs().max() < 0.01 + 0.1 * start.abs().max()  # one step away from its spelling
    assert not (before[name][THINK[0]] == after[name][THINK[0]]).all()


def test_stage_2_distils_over_every_id_that_both_share(world, exported, gloo):
    gloo(2).run(train, "vold", world, f"vold.start={exported}/hf", timeout=1200.0)
    run = world / "outputs/vold"
    last = metrics(run)[-1]
    assert all(math.isfinite(last[name]) for name in ("loss", "kl_mean", "entropy", "grad_norm")) and last["kl_mean"] > 0
    assert last["kl_unshared_rate"] < 0.05  # a spare row may be sampled; the tags are shared
    assert set(rejected(run).values()) == {CONTROL}
    rows = [json.loads(line) for line in (run / "rollouts/step_000001.jsonl").read_text().splitlines()]
    assert len(rows) == 16 and all(row["response_ids"] for row in rows)


def test_stage_2_without_adoption_leaves_the_teachers_tokens_out_of_the_kl(world, gloo):
    off = ("tokenizer.adopt_teacher_tokens=false", "teacher.thinking=false", "vold.run=plain")
    gloo(2).run(train, "vold", world, *off, timeout=1200.0)
    last = metrics(world / "outputs/plain")[-1]
    assert math.isfinite(last["kl_mean"]) and last["kl_mean"] > 0


def test_the_export_is_evaluated_on_texts_and_images(world, exported):
    from recipes import evaluate

    config = configured(world, f"evaluate.text.path={world}/text.jsonl", f"evaluate.image.path={world}/image.parquet",
                        "evaluate.samples=0", f"evaluate.path={world}/evaluation")  # fmt: skip
    config.evaluate.models = {"sft": str(exported / "hf")}
    evaluate.main.__wrapped__(config)
    accuracy = json.loads((world / "evaluation/results.json").read_text())["accuracy"]["sft"]
    assert (accuracy["text"]["n"], accuracy["image"]["n"]) == (len(TEXTS), 4)
    assert rejected(world / "evaluation") == {"text-control": CONTROL}


def test_two_ranks_share_out_the_published_rows_as_they_are_and_the_kl_covers_adopted_ids(world, gloo):
    assert gloo(2).run(padded_rows, world) == [(ROWS, IDS)] * 2


def padded_rows(folder):
    from omegaconf import OmegaConf

    from vold_nemo.data.templates import load_tokenizer
    from vold_nemo.megatron import parallel
    from vold_nemo.megatron.adoption import agree
    from vold_nemo.models.vold import MegatronVOLDModel

    config = configured(folder, "parallel=tp2")
    layout_of(config)
    model = MegatronVOLDModel(OmegaConf.structured(config))
    tokenizer = load_tokenizer(config.vold.start)
    _, contract = agree(config, tokenizer, ROWS, [config.teacher], padded=model.padded_vocabulary)
    parallel.destroy()
    return model.padded_vocabulary, int(contract.shared.sum())
