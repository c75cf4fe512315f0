"""An export is an ordinary checkpoint: transformers loads it, and what was not trained is the source's bytes."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.megatron import tiny
from vold_nemo.checkpoint.export import export_hf
from vold_nemo.checkpoint.model_card import model_card
from vold_nemo.config import ConfigError
from vold_nemo.megatron import tensors
from vold_nemo.miniature.random_models import write_random_student


def raw(folder) -> dict[str, tuple[str, tuple, bytes]]:
    found = {}
    for name, entry in tensors.index(folder).items():
        with entry.file.open("rb") as file:
            file.seek(entry.start)
            found[name] = entry.dtype, entry.shape, file.read(entry.nbytes)
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    model = tiny.save("qwen2_5_vl", folder, tied=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "merges.txt", "chat_template.jinja"):
        (folder / name).write_text(f"contents of {name}")
    (folder / "optimizer.pt").write_bytes(b"not ours to copy")
    return folder, model


@pytest.mark.parametrize("max_shard_bytes", [10**9, 160_000], ids=["one-file", "sharded"])
@pytest.mark.parametrize("layout", [(1, 1), (2, 2)], ids=["tp1pp1", "tp2pp2"])
def test_unchanged_weights_export_to_the_same_bytes(source, tmp_path, gloo, layout, max_shard_bytes):
    folder, _ = source
    out = tmp_path / "hf"
    report, *others = gloo(layout[0] * layout[1]).run(tiny.exported, folder, out, *layout, max_shard_bytes)
    assert others == [None] * len(others)
    assert raw(out) == raw(folder)
    assert report.trained + report.carried == len(raw(folder)) and report.carried > 0
    if max_shard_bytes < 10**9:
        sizes = [file.stat().st_size for file in out.glob("*.safetensors")]
        assert report.files == len(sizes) >= 3 and max(sizes) < max_shard_bytes + 20_000
    for name in ("config.json", "generation_config.json", "tokenizer.json", "merges.txt", "chat_template.jinja",
                 "preprocessor_config.json"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    assert not (out / "optimizer.pt").exists() and list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("max_shard_bytes", [10**9, 160_000], ids=["one-file", "sharded"])
def test_trained_weights_load_in_transformers_and_the_tower_is_the_sources(source, tmp_path, gloo, max_shard_bytes):
    from transformers import Qwen2_5_VLForConditionalGeneration

    folder, model = source
    out = tmp_path / "hf"
    for factor in (3.0, 0.5):  # the second export replaces the first
        gloo(2).run(tiny.exported, folder, out, 2, 1, max_shard_bytes, factor)
    loaded, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    trained = dict(loaded.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(trained[name], parameter if "visual" in name else parameter * 0.5), name
    before, after = raw(folder), raw(out)
    assert all(after[name] == before[name] for name in before if name.startswith("visual."))
    assert all(after[name] != before[name] for name in before if name.startswith("model."))


def test_trained_tensors_take_the_sources_precision_and_prefix(tmp_path):
    tiny.save("qwen3", tmp_path / "source", tied=True, dtype=torch.bfloat16)
    values = load_file(tmp_path / "source" / tensors.SINGLE)
    stream = [(name.replace("model.", "model.language_model.", 1), value.float() + 1) for name, value in values.items()]
    export_hf(iter(stream), tmp_path / "source", tmp_path / "hf", 10**9)
    for name, value in load_file(tmp_path / "hf" / tensors.SINGLE).items():
        assert torch.equal(value, (values[name].float() + 1).bfloat16())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("model.norm.weight"), "lacks model.norm.weight"),
        (lambda s: s.update({"model.extra.weight": torch.zeros(2)}), "model.extra.weight"),
        (lambda s: s.update({"model.norm.weight": torch.zeros(2)}), r"\[64\]"),
    ],
    ids=["missing", "unknown", "misshapen"],
)
def test_a_stream_that_does_not_fit_leaves_no_export(source, tmp_path, change, words):
    folder, _ = source
    stream = {name: value for name, value in load_file(folder / tensors.SINGLE).items() if "visual" not in name}
    change(stream)
    with pytest.raises(ConfigError, match=words):
        export_hf(stream.items(), folder, tmp_path / "hf", 10**9)
    assert not (tmp_path / "hf").exists()


def test_a_folder_that_is_no_export_is_left_alone(source, tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "thesis.tex").write_text("precious")
    for out in (tmp_path / "hf", source[0]):
        with pytest.raises(ConfigError, match="export path"):
            export_hf([], source[0], out, 10**9)
    assert (tmp_path / "hf" / "thesis.tex").read_text() == "precious"
    assert json.loads((source[0] / "config.json").read_text())


def test_the_card_says_base_weights_data_metrics_and_configuration(tmp_path):
    (tmp_path / "config.yaml").write_text("teacher: {path: Qwen/Qwen3-8B}\ndata: {prompts: {path: orz}}\nseed: 7\n"
                                          "teachers: {maths: {path: Qwen/Qwen3-14B}}\n")  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.25, "x": 0}\n{"step": 3, "lo')
    card = model_card(tmp_path, "Qwen/Qwen2.5-VL-3B-Instruct", "checkpoints/step_2", repo="me/mine", scores=[("text", "73 %")])
    for words in ("base_model: Qwen/Qwen2.5-VL-3B-Instruct", "`checkpoints/step_2`", "teacher: `Qwen/Qwen3-8B`",
                  "teacher maths: `Qwen/Qwen3-14B`", "prompts: `orz`", "metrics of step 2: loss 1.25", "seed: 7",
                  "arxiv.org/abs/2510.23497", "vold_nemo 0.", 'checkpoint = "me/mine"', "| text | 73 % |", "@article"):
        assert words in card, words


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_has_the_base_models_licence_and_no_path_of_a_cache(tmp_path):
    base = tmp_path / "models--Qwen--Qwen2.5-VL-3B-Instruct" / "snapshots" / "0123abcd"
    base.mkdir(parents=True)
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: 'a: name'\nlicense_link: LICENSE\n---\n# Base\n")
    (tmp_path / "config.yaml").write_text(f"student: {{path: {base}}}\n")
    card = model_card(tmp_path, str(base), "step_2")
    said = front_matter(card)
    assert (said["license"], said["license_name"], said["license_link"]) == ("other", "a: name", "LICENSE")
    assert said["base_model"] == "Qwen/Qwen2.5-VL-3B-Instruct" and said["pipeline_tag"] == "image-text-to-text"
    assert "snapshots" not in card and "path: Qwen/Qwen2.5-VL-3B-Instruct" in card and "`other` (a: name)" in card
    for broken in ("", "# no front matter", "---\n: [\n---\n", "---\n- a\n---\n", "---\nlicense: [mit]\n---\n"):
        (base / "README.md").write_text(broken)
        card = model_card(tmp_path, str(base), "step_2")
        assert "license" not in front_matter(card) and "No licence was found" in card, broken


def test_the_snippet_of_the_card_runs_in_the_folder_of_the_export(tmp_path, monkeypatch, capsys):
    base = write_random_student(tmp_path / "base")
    stream = {name: value for name, value in load_file(base / tensors.SINGLE).items() if "visual" not in name}
    export_hf(stream.items(), base, tmp_path / "hf", 10**9, card=model_card(tmp_path, str(base), "step_2"))
    snippet = (tmp_path / "hf" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert "AutoModelForImageTextToText" in snippet and "max_new_tokens=2048" in snippet
    monkeypatch.chdir(tmp_path / "hf")
    found: dict = {}
    exec(snippet.replace("2048", "8"), found)
    assert 1 <= found["answer"].shape[1] - found["inputs"]["input_ids"].shape[1] <= 8 and capsys.readouterr().out


OTHER_MEANING = (
    "adapter_model.safetensors", "adapter_model.bin", "pytorch_model.bin.index.json", "pytorch_model.bin", "trainer_state.json",
    "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "model.gguf", "tf_model.h5", "flax_model.msgpack",
    "modules.json", "sentence_bert_config.json", "global_step3/mp_rank_00_model_states.pt", "zero_to_fp32.py", "tensors.json",
    "consolidated.safetensors", "params.json", "all_results.json", "vold_lineage.json", "README.md",
)  # fmt: skip


def test_what_would_change_the_meaning_of_an_export_stays_out(source, tmp_path):
    folder = shutil.copytree(source[0], tmp_path / "source")
    own = {"LICENSE", "additional_chat_templates/rag.jinja", "vocab.json", "video_preprocessor_config.json"}
    for name in (*OTHER_MEANING, *own):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    stream = {name: value for name, value in load_file(folder / tensors.SINGLE).items() if "visual" not in name}
    export_hf(stream.items(), folder, tmp_path / "hf", 10**9)
    there = {str(file.relative_to(tmp_path / "hf")) for file in (tmp_path / "hf").rglob("*") if file.is_file()}
    assert not there & set(OTHER_MEANING) and own <= there


def test_an_export_trains_further_with_plain_transformers(source, tmp_path, gloo):
    """Three AdamW steps of an ordinary training loop lower the loss, and the vision tower is there to be trained, too."""
    from transformers import AutoModelForImageTextToText

    folder, _ = source
    out = tmp_path / "hf"
    gloo(2).run(tiny.exported, folder, out, 2, 1, 160_000)
    model = AutoModelForImageTextToText.from_pretrained(out).train()
    optimizer, ids, losses = torch.optim.AdamW(model.parameters(), lr=1e-3), tiny.tokens(4, 16), []
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[3] < losses[2] < losses[1] < losses[0]
    assert any("visual" in name for name, _ in model.named_parameters())


@pytest.mark.long
def test_an_export_of_several_hundred_megabytes_holds_less_than_two_shards_at_once(tmp_path):
    """Peak of memory of the whole export, reading included: 380 MB of sharded weights into files of 40 MB, byte for byte."""
    import subprocess
    import sys
    from pathlib import Path

    done = subprocess.run([sys.executable, "-m", "tests.checkpoint.export_memory", str(tmp_path)], capture_output=True,
                          text=True, cwd=Path(__file__).parents[2], timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    total, shard, peak = map(int, done.stdout.split()[-3:])
    assert total > 300 * 2**20 and peak < 2 * shard, (total, shard, peak)
