"""The transformers engine against transformers' own generate, forward pass and log-probs."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, Qwen2VLImageProcessorPil

from vold_nemo.config import ConfigError, DatasetConfig, PromptFieldsConfig
from vold_nemo.data.prompts import load_prompts
from vold_nemo.data.rejected import Rejected
from vold_nemo.data.templates import load_tokenizer, render_prompt
from vold_nemo.miniature.random_models import TINY, write_questions, write_random_student, write_random_teacher
from vold_nemo.rollout.engine import EnginePrompt, Sampling
from vold_nemo.rollout.sync import FingerprintedStream
from vold_nemo.rollout.transformers_engine import TransformersEngine


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("engines")
    write_random_student(root / "tied")
    write_random_student(root / "untied", replace(TINY, tied=False), seed=3)
    write_random_teacher(root / "qwen3")
    write_random_qwen3_vl(root / "qwen3_vl", like=root / "tied")
    write_questions(root / "text.jsonl", count=9)
    write_questions(root / "image.parquet", count=7, images=True)
    return root


def write_random_qwen3_vl(path, like) -> None:
    """A Qwen3-VL with the tokenizer, image settings and special ids of ``like``; two vision layers feed the decoder."""
    from transformers import AutoConfig, Qwen3VLConfig, Qwen3VLForConditionalGeneration

    shutil.copytree(like, path, ignore=shutil.ignore_patterns("*.safetensors"))
    known = AutoConfig.from_pretrained(like)
    kept = {name: getattr(known, name) for name in (
        "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")}  # fmt: skip
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 8, "vocab_size": known.get_text_config().vocab_size,
            "max_position_embeddings": 512, "initializer_range": 0.2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [2, 1, 1]}}  # fmt: skip
    vision = {"depth": 3, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 32, "patch_size": 14,
              "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16, "initializer_range": 0.2}  # fmt: skip
    torch.manual_seed(0)
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **kept)
    Qwen3VLForConditionalGeneration(config).float().save_pretrained(path)


def prompts_of(folder, kind: str) -> list[EnginePrompt]:
    fields = PromptFieldsConfig(image="images" if kind == "image" else None)
    path = folder / ("image.parquet" if kind == "image" else "text.jsonl")
    rows = load_prompts(DatasetConfig(path=str(path), fields=fields), None, Rejected(None, 0.0))
    tokenizer = load_tokenizer(folder / "tied")
    return [EnginePrompt(render_prompt(tokenizer, row.messages), row.images) for row in rows]


def reference_inputs(path, prompt: EnginePrompt, model) -> dict:
    """One prompt, unpadded, as transformers' documentation gives it to the model."""
    if not prompt.images:
        return {"input_ids": torch.tensor([prompt.ids])}
    from vold_nemo.rollout.images import open_image

    features = Qwen2VLImageProcessorPil.from_pretrained(path)(
        images=[open_image(image) for image in prompt.images], return_tensors="pt"
    )
    ids, grids = [], iter(features["image_grid_thw"].tolist())
    for token in prompt.ids:
        if token == model.config.image_token_id:
            t, h, w = next(grids)
            ids += [token] * (t * h * w // 4)
        else:
            ids.append(token)
    ids = torch.tensor([ids])
    return {"input_ids": ids, "mm_token_type_ids": (ids == model.config.image_token_id).int(), **features}


def reference_model(path, vision: bool):
    auto = AutoModelForImageTextToText if vision else AutoModelForCausalLM
    return auto.from_pretrained(path, dtype=torch.float32).eval()


CASES = [("tied", "text"), ("tied", "image"), ("untied", "image"), ("qwen3", "text"),
         ("qwen3_vl", "text"), ("qwen3_vl", "image")]  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_greedy_ids_are_those_of_transformers_generate_prompt_by_prompt(folder, name, kind):
    engine = TransformersEngine(folder / name, batch=4)
    model = reference_model(folder / name, name != "qwen3")
    prompts = prompts_of(folder, kind)
    assert len({len(prompt.ids) for prompt in prompts}) > 1, "lengths must differ, or left padding is not tried"
    found = engine.generate(prompts, Sampling(temperature=0, max_tokens=12))
    assert [c.prompt_index for c in found] == list(range(len(prompts)))
    for prompt, completion in zip(prompts, found, strict=True):
        inputs = reference_inputs(folder / name, prompt, model)
        expected = model.generate(**inputs, do_sample=False, max_new_tokens=12, eos_token_id=list(engine.stop_ids))
        assert completion.ids == expected[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_logprobs_are_those_of_one_unpadded_forward_pass(folder, name, kind, temperature):
    engine = TransformersEngine(folder / name, batch=6)
    model = reference_model(folder / name, name != "qwen3")
    prompts = prompts_of(folder, kind)[:4]
    found = engine.generate(prompts, Sampling(samples=3, temperature=temperature, max_tokens=10, seed=5))
    assert len({tuple(c.ids) for c in found}) > 4
    for completion in found:
        if kind == "image" and model.config.image_token_id in completion.ids:
            continue  # read again as a whole, transformers would look for an image where the model only wrote the id
        inputs = reference_inputs(folder / name, prompts[completion.prompt_index], model)
        start = inputs["input_ids"].shape[1]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([completion.ids])], dim=1)
        if "mm_token_type_ids" in inputs:
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == model.config.image_token_id).int()
        with torch.no_grad():
            logits = model(**inputs).logits[0, start - 1 : -1].double()
        expected = torch.log_softmax(logits / temperature, -1)[range(len(completion.ids)), completion.ids]
        torch.testing.assert_close(torch.tensor(completion.logprobs).double(), expected, atol=2e-5, rtol=0)


def test_samples_follow_the_model_s_distribution(folder):
    engine = TransformersEngine(folder / "qwen3", batch=4096)
    prompt, n = prompts_of(folder, "text")[0], 4096
    found = engine.generate([prompt], Sampling(samples=n, max_tokens=1, seed=11))
    with torch.no_grad():
        logits = reference_model(folder / "qwen3", False)(input_ids=torch.tensor([prompt.ids])).logits[0, -1]
    expected = logits.double().softmax(-1).numpy()
    counts = np.bincount([c.ids[0] for c in found], minlength=len(expected))
    common = expected * n >= 5
    chi2 = ((counts - expected * n) ** 2 / (expected * n))[common].sum()
    degrees = common.sum() - 1
    assert chi2 < degrees + 5 * (2 * degrees) ** 0.5, (chi2, degrees)


def test_a_request_draws_the_same_whatever_the_batch_and_the_global_random_state(folder):
    prompts = prompts_of(folder, "text")
    sampling = Sampling(samples=3, max_tokens=8, seed=2)
    runs = []
    for batch, state in ((2, 0), (64, 1), (7, 2)):
        torch.manual_seed(state), np.random.seed(state), random.seed(state)
        runs.append([c.ids for c in TransformersEngine(folder / "tied", batch=batch).generate(prompts, sampling)])
    assert runs[0] == runs[1] == runs[2]
    other = TransformersEngine(folder / "tied").generate(prompts, Sampling(samples=3, max_tokens=8, seed=3))
    assert [c.ids for c in other] != runs[0]
    keyed = [EnginePrompt(p.ids, key=i) for i, p in enumerate(prompts)]
    back = TransformersEngine(folder / "tied").generate(keyed[::-1], sampling)
    assert {(len(prompts) - 1 - c.prompt_index, c.sample): c.ids for c in back} == {
        (i // 3, i % 3): ids for i, ids in enumerate(runs[0])
    }


def test_global_random_numbers_are_not_disturbed(folder):
    torch.manual_seed(7), np.random.seed(7), random.seed(7)
    expected = torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()
    torch.manual_seed(7), np.random.seed(7), random.seed(7)
    engine = TransformersEngine(folder / "tied")
    engine.generate(prompts_of(folder, "image"), Sampling(samples=2, max_tokens=4))
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()) == expected


def test_a_stop_id_ends_a_completion_and_belongs_to_it(folder):
    engine = TransformersEngine(folder / "qwen3")
    prompts = prompts_of(folder, "text")
    free = engine.generate(prompts, Sampling(samples=4, max_tokens=20, stop_ids=()))
    assert all(len(c.ids) == 20 and c.finish_reason == "length" for c in free)
    stop = free[0].ids[9]
    cut = engine.generate(prompts, Sampling(samples=4, max_tokens=20, stop_ids=(stop,)))
    assert any(c.finish_reason == "stop" for c in cut) and any(c.finish_reason == "length" for c in cut)
    for a, b in zip(free, cut, strict=True):  # rows that leave the batch early change nothing for the others
        end = a.ids.index(stop) + 1 if stop in a.ids else 20
        assert b.ids == a.ids[:end] and b.finish_reason == ("stop" if stop in a.ids else "length")
        torch.testing.assert_close(torch.tensor(b.logprobs), torch.tensor(a.logprobs[:end]), atol=1e-5, rtol=0)


def disk_weights(path) -> dict[str, torch.Tensor]:
    weights = load_file(str(path / "model.safetensors"))
    return {name: tensor for name, tensor in weights.items() if not name.startswith("visual.")}


@pytest.mark.parametrize("tied", [True, False])
def test_loaded_weights_answer_like_a_checkpoint_that_has_them_on_disk(folder, tmp_path, tied):
    name = "tied" if tied else "untied"
    write_random_student(tmp_path / "other", replace(TINY, tied=tied), seed=9)
    engine = TransformersEngine(folder / name)
    stream = FingerprintedStream(disk_weights(tmp_path / "other").items(), engine.dtype)
    report = engine.load(stream, version=4)
    stream.confirm(report.fingerprints)
    prompts, sampling = prompts_of(folder, "text"), Sampling(samples=2, max_tokens=10)
    expected = TransformersEngine(tmp_path / "other").generate(prompts, sampling)
    assert engine.generate(prompts, sampling, expect_version=4) == expected
    assert report.bytes == sum(t.numel() * 4 for t in disk_weights(tmp_path / "other").values())
    before = load_file(str(folder / name / "model.safetensors"))
    live = dict(engine._model.named_parameters())
    for key, tensor in before.items():
        if key.startswith("visual."):
            assert torch.equal(live[f"model.{key}"], tensor), "the vision tower is not the trainer's to change"


def test_a_load_casts_to_the_engine_s_dtype_and_the_fingerprints_with_it(folder):
    engine = TransformersEngine(folder / "qwen3", dtype=torch.bfloat16)
    stream = FingerprintedStream(disk_weights(folder / "qwen3").items(), torch.bfloat16)
    stream.confirm(engine.load(stream, 1).fingerprints)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda w: w.pop("model.norm.weight"), "never came.*model.norm.weight"),
        (lambda w: w.update({"model.layers.9.mlp.up_proj.weight": torch.zeros(2)}), "no language parameter"),
        (lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"] + 1}), "differs from the embedding"),
        (lambda w: w.update({"model.norm.weight": torch.zeros(3)}), "is \\(3,\\)"),
        (lambda w: w.update({"model.norm.weight": w["model.norm.weight"] * float("nan")}), "not finite"),
    ],
)
def test_a_broken_weight_stream_is_refused_and_nothing_is_sampled_from_it(folder, damage, message):
    engine = TransformersEngine(folder / "tied")
    weights = disk_weights(folder / "tied")
    damage(weights)
    with pytest.raises(RuntimeError, match=message):
        engine.load(weights.items(), 1)
    with pytest.raises(RuntimeError, match="stale"):
        engine.generate(prompts_of(folder, "text"), Sampling(max_tokens=2))


def test_a_tied_head_on_disk_and_the_longer_names_of_newer_checkpoints_are_understood(folder):
    engine = TransformersEngine(folder / "tied")
    weights = disk_weights(folder / "tied")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    newer = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in weights.items()}
    head_first = dict(reversed(weights.items()))
    for named in (weights, newer, head_first):
        stream = FingerprintedStream(named.items(), torch.float32)
        stream.confirm(engine.load(stream, 1).fingerprints)
        engine.sleep()
        engine.wake()


def test_a_tensor_that_comes_twice_is_refused(folder):
    engine = TransformersEngine(folder / "tied")
    rows = [*disk_weights(folder / "tied").items()]
    with pytest.raises(RuntimeError, match="came twice"):
        engine.load([rows[0], *rows], 1)


def test_a_stale_or_sleeping_engine_refuses_to_answer(folder):
    engine = TransformersEngine(folder / "tied")
    prompts = prompts_of(folder, "text")[:2]
    with pytest.raises(RuntimeError, match="version 0, asked for 1"):
        engine.generate(prompts, Sampling(max_tokens=2), expect_version=1)
    expected = engine.generate(prompts, Sampling(max_tokens=2))
    engine.sleep()
    with pytest.raises(RuntimeError, match="asleep"):
        engine.generate(prompts, Sampling(max_tokens=2))
    engine.wake()
    assert engine.generate(prompts, Sampling(max_tokens=2)) == expected


def test_weights_that_change_during_sleep_are_noticed(folder):
    engine = TransformersEngine(folder / "tied")
    engine.sleep()
    with torch.no_grad():
        engine._model.model.language_model.norm.weight[0] += 1e-3
    with pytest.raises(RuntimeError, match="changed while it slept"):
        engine.wake()


@pytest.mark.parametrize(
    ("prompt", "sampling", "key"),
    [
        (EnginePrompt([1, 2], images=["x.png"]), Sampling(), "prompt images"),
        (EnginePrompt([1, 99_999]), Sampling(), "ids"),
        (EnginePrompt([]), Sampling(), "ids"),
        (EnginePrompt([1, 2]), Sampling(max_tokens=1_000_000), "max_tokens"),
    ],
)
def test_a_bad_request_names_what_to_change(folder, prompt, sampling, key):
    with pytest.raises(ConfigError, match=key):
        TransformersEngine(folder / "tied").generate([prompt], sampling)


def test_images_for_a_text_model_and_a_folder_without_a_checkpoint_are_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="text-only"):
        TransformersEngine(folder / "qwen3").generate([EnginePrompt([1], images=["x"])], Sampling())
    with pytest.raises(ConfigError, match=r"config\.json"):
        TransformersEngine(tmp_path)


def test_an_answer_ends_with_the_token_that_completes_a_stop_text(folder):
    engine, tokenizer = TransformersEngine(folder / "tied", batch=4, stop_ids=()), load_tokenizer(folder / "tied")
    prompts = prompts_of(folder, "text")
    sampling = dict(samples=3, temperature=1.0, max_tokens=24, seed=5)
    free = engine.generate(prompts, Sampling(**sampling))
    stop = (tokenizer.decode(free[0].ids[6:9]), tokenizer.decode(free[7].ids[4:5]))
    ended = engine.generate(prompts, Sampling(**sampling, stop=stop))
    assert {completion.finish_reason for completion in ended} == {"stop", "length"}
    for before, after in zip(free, ended, strict=True):
        ends = [n for n in range(1, 25) if any(text in tokenizer.decode(before.ids[:n]) for text in stop)]
        assert after.ids == before.ids[: ends[0] if ends else None]
        assert after.finish_reason == ("stop" if ends else "length")


def test_a_continued_answer_may_hold_an_image_placeholder_and_goes_on_as_it_would_have(folder):
    engine = TransformersEngine(folder / "tied", batch=4, stop_ids=())
    placeholder = engine._model.config.image_token_id
    (prompt,) = prompts_of(folder, "text")[:1]
    (refused,) = [EnginePrompt([*prompt.ids, placeholder])]
    with pytest.raises(ConfigError, match="images"):
        engine.generate([refused], Sampling(temperature=0, max_tokens=4))
    continued = EnginePrompt([*prompt.ids, 20, placeholder, 21], answered=3)
    (found,) = engine.generate([continued], Sampling(temperature=0, max_tokens=8))
    model = reference_model(folder / "tied", vision=True)
    expected = model.generate(torch.tensor([continued.ids]), do_sample=False, max_new_tokens=8, eos_token_id=[10**6])
    assert found.ids == expected[0, len(continued.ids) :].tolist()
