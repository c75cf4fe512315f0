"""Adopted tokens: the student takes over ``<think>`` in spare rows, learns it, exports it, and is judged on it."""

import json
import shutil

import numpy as np
import pytest

from tests.models.stages import build_sft, configuration, layout_of, make_world
from vold_nemo.checkpoint import lineage
from vold_nemo.config import ConfigError
from vold_nemo.data.vocabulary import VocabularyContract
from vold_nemo.megatron.adoption import adopt, append_tokens
from vold_nemo.miniature.tokenizer import QWEN3_ONLY, build_tokenizer

ADOPT = "tokenizer.adopt_teacher_tokens=true"
ROWS = [53, 54, 55, 56]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Every second trace thinks first."""
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    rows = [json.loads(line) for line in (folder / "traces.jsonl").read_text().splitlines()]
    for row in rows[::2]:
        row["response_ids"] = [55, *row["response_ids"][:-1], 56, 1]
    (folder / "traces.jsonl").write_text("".join(json.dumps(row | {"teacher": "r1"}) + "\n" for row in rows))
    return folder


def real_bpe(specials, merges=(("t", "h"),), *, splits=True):
    """A byte-level tokenizer, as Qwen's are: it spells every string."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merged = {"".join(pair): 256 + i for i, pair in enumerate(merges)}
    backend = Tokenizer(models.BPE(vocab=letters | merged, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splits)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in specials])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=specials[0])


def test_a_token_starts_from_its_own_spelling():
    student, teacher = real_bpe(["<end>"]), real_bpe(["<end>", *QWEN3_ONLY])
    think = student("<think>")["input_ids"]
    assert [student.decode([i]) for i in think] == ["<", "th", "i", "n", "k", ">"]
    adopted = adopt(student, 300, teacher)
    assert list(adopted) == [258, 259, 260, 261] and adopted[260] == tuple(think)
    assert student("a<think>b</think>")["input_ids"] == teacher("a<think>b</think>")["input_ids"]
    assert student.decode([260], skip_special_tokens=True) == "<think>"  # verifiers see it
    assert adopt(student, 300, teacher) == {}


def test_words_and_signs_are_spelled_apart():
    """In one go, Qwen2.5's real tokenizer makes ``<think>`` of ``<th``, ``ink`` and ``>``."""
    merges = (("t", "h"), ("<", "th"), ("_", "r"))
    student, teacher = (real_bpe(["<end>", *more], merges, splits=False) for more in ((), QWEN3_ONLY))
    assert [student.decode([i]) for i in student("<think>")["input_ids"]] == ["<th", *"ink>"]
    spelled = {teacher.decode([i]): [student.decode([k]) for k in parts] for i, parts in adopt(student, 300, teacher).items()}
    assert spelled["<think>"] == ["<", "th", *"ink>"] and spelled["</think>"] == [*"</", "th", *"ink>"]
    assert spelled["<tool_response>"] == [*"<tool", "_r", *"esponse>"]


def test_more_tokens_than_spare_rows_are_refused():
    with pytest.raises(ConfigError, match="ids below 55, the rows of the student's embedding"):
        adopt(build_tokenizer(), 55, build_tokenizer(qwen3=True))


def test_only_added_tokens_that_follow_the_last_id_are_adopted():
    student, teacher = real_bpe(["<end>"]), real_bpe(["<end>", "<a>", "<think>"])
    student.add_tokens(["<mine>"])
    with pytest.raises(ConfigError, match="id 258 is '<a>' for the teacher, '<mine>' for the student"):
        adopt(student, 300, teacher)
    grown = build_tokenizer()
    grown.add_tokens(["x"])
    lesser = type(grown)(tokenizer_object=grown.backend_tokenizer, eos_token="<|im_end|>", unk_token="<|endoftext|>")
    assert adopt(build_tokenizer(), 60, lesser) == {53: ()}  # unknown letters spell nothing: the mean of the table


def rows_after(folder, steps, *overrides):
    """Embedding rows of the adopted ids on this rank's copies {stage: rows}, before and after; the exported weights."""
    from vold_nemo.checkpoint.export import export_hf
    from vold_nemo.megatron import parallel

    config = configuration(folder, ADOPT, *overrides)
    layout = layout_of(config)
    model = build_sft(config)
    losses = [model.train_step(step)["loss"] for step in range(steps)]
    streamed = {name: tensor.float().numpy().copy() for name, tensor in model.hf_weights()}
    held = {
        name: parameter.detach().float().numpy().copy()
        for name, parameter in model.gpt.named_parameters() if name.endswith(("word_embeddings.weight", "output_layer.weight"))
    }  # fmt: skip
    export_hf(model.hf_weights(), folder / "student", folder / "export", 10**9, write=layout.rank == 0, origin=model.lineage)
    model.save_to(str(folder / "student.nemo"))
    place = (layout.tensor_rank, layout.pipeline_rank)
    parallel.destroy()
    return place, held, streamed, len(model.examples), losses


@pytest.mark.parametrize("layout", ["tp2", "pp2"])
def test_rows_are_the_mean_of_their_parts_and_both_tied_copies_stay_one(gloo, world, layout):
    from safetensors.torch import load_file

    source = load_file(world / "student" / "model.safetensors")
    name = next(key for key in source if key.endswith("embed_tokens.weight"))
    expected = source[name][:53].mean(0).numpy()  # the miniature's tokenizer cannot spell them
    found = gloo(2).run(rows_after, world, 0, f"parallel={layout}")
    for _, _, streamed, count, _ in found:
        assert count == 24  # no trace is lost
        embedding = next(value for key, value in streamed.items() if key.endswith("embed_tokens.weight"))
        for row in ROWS:
            np.testing.assert_allclose(embedding[row], expected, atol=1e-6)
        np.testing.assert_array_equal(embedding[:53], source[name][:53].numpy())
    after = gloo(2).run(rows_after, world, 2, f"parallel={layout}", "sft.optimizer.learning_rate=0.01")
    if layout == "pp2":
        first, last = (next(iter(held.values())) for _, held, *_ in sorted(after, key=lambda item: item[0]))
        np.testing.assert_array_equal(first, last)
        assert np.abs(first[55] - expected).max() > 1e-3  # and it learns


def test_an_export_reads_and_writes_the_tokens(gloo, world):
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    gloo(2).run(rows_after, world, 1, "parallel=tp2")
    exported = AutoTokenizer.from_pretrained(world / "export")
    assert exported.convert_tokens_to_ids(list(QWEN3_ONLY)) == ROWS
    assert exported("<think> 2 </think>", add_special_tokens=False)["input_ids"][::2] == [55, 56]
    assert exported.chat_template == AutoTokenizer.from_pretrained(world / "student").chat_template
    model = AutoModelForImageTextToText.from_pretrained(world / "export")
    assert model.config.text_config.vocab_size == 60 == model.get_input_embeddings().weight.shape[0]
    for path in (world / "export", world / "student.nemo"):
        kept = lineage.read(path)
        assert [token["id"] for token in kept["added_tokens"]][-4:] == ROWS
        assert kept["traces"] == [{"teacher": "r1", "weights": None, "thinking": None, "count": 24}]
    contract = VocabularyContract.from_tokenizers(exported, 60, build_tokenizer(qwen3=True), 64, padded=64)
    assert contract.shared.sum() == 57 and contract.teacher_only == {}


def test_a_source_that_lacks_no_token_keeps_its_bytes(world, tmp_path):
    shutil.copy(world / "teacher" / "tokenizer.json", tmp_path)
    before = (tmp_path / "tokenizer.json").read_bytes()
    tokens = json.loads(before)["added_tokens"]
    assert append_tokens(tmp_path, tokens) == [] and (tmp_path / "tokenizer.json").read_bytes() == before


def test_traces_of_another_teacher_are_told(world, tmp_path):
    teacher, copied = world / "teacher", tmp_path / "copy"
    shutil.copytree(teacher, copied)
    digest = lineage.weights_digest(teacher)
    own = {"teacher": "elsewhere", "weights": digest, "thinking": False, "count": 3}
    assert lineage.strangers([own], [str(copied)]) is None
    assert lineage.strangers(None, [str(copied)]) is None
    other = {"teacher": "DeepSeek-R1", "weights": None, "thinking": True, "count": 7}
    nobody = {"teacher": None, "weights": None, "thinking": None, "count": 1}
    said = lineage.strangers([own, other, nobody], [str(copied)])
    assert "8 of 11 traces" in said and "DeepSeek-R1, an unknown model" in said
    assert "3 of 3" in lineage.strangers([own], [str(world / "student")])
