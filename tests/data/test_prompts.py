"""Rows in, prompts out; what cannot be used is written down, counted, and stops the run above a set share."""

import io
import json
from decimal import Decimal

import pytest
from PIL import Image

from vold_nemo.config import ConfigError, DatasetConfig, PromptFieldsConfig
from vold_nemo.data.prompts import load_prompts
from vold_nemo.data.rejected import Rejected


def write_jsonl(path, rows):
    path.write_bytes(b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in rows))
    return str(path)


def load(path, tmp_path, share=1.0, system=None, answers=True, **fields):
    limits = {key: fields.pop(key) for key in ("limit", "max_characters", "split") if key in fields}
    config = DatasetConfig(path=str(path), fields=PromptFieldsConfig(**fields), **limits)
    rejected = Rejected(tmp_path / "rejected.jsonl", share)
    return load_prompts(config, system, rejected, answers=answers), rejected


def png(color=(200, 10, 10)):
    buffer = io.BytesIO()
    Image.new("RGB", (28, 28), color).save(buffer, format="PNG")
    return buffer.getvalue()


GOOD = {"prompt": "1+1?", "answer": "2"}
BAD = {
    "prompt: missing": {"answer": "2"},
    "answer: missing": {"prompt": "1+1?"},
    "answer: empty": {"prompt": "1+1?", "answer": "  "},
    "answer: list instead of a string or number": {"prompt": "1+1?", "answer": ["2"]},
    "answer: bool instead of a string or number": {"prompt": "1+1?", "answer": True},
    "prompt: int instead of a string or a list of messages": {"prompt": 7, "answer": "2"},
    "prompt: empty": {"prompt": " \n", "answer": "2"},
    "prompt: longer than 1000 characters": {"prompt": "x" * 1001, "answer": "2"},
    "prompt: does not end with a user turn": {"prompt": [{"role": "system", "content": "x"}], "answer": "2"},
    "row: int instead of an object": 7,
    "not JSON": b'{"prompt": "cut o',
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_row_is_written_down_with_its_reason_and_the_others_stay(tmp_path, reason):
    path = write_jsonl(tmp_path / "data.jsonl", [GOOD, BAD[reason], {"prompt": "2+2?", "answer": 4}])
    prompts, rejected = load(path, tmp_path, max_characters=1000)
    assert [(p.id, p.answer) for p in prompts] == [("0", "2"), ("2", "4")]
    (line,) = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert (line["row"], line["reason"], line["source"]) == (1, reason, path)
    assert rejected.count() == 1


@pytest.mark.parametrize(
    "line",
    [b"\xff\xfe broken utf-8", b"[" * 100_000, b'{"prompt": "\x00', b'"\\ud800"'],
    ids=["utf-8", "nesting", "NUL", "surrogate"],
)
def test_a_hostile_line_is_one_bad_row(tmp_path, line):
    prompts, rejected = load(write_jsonl(tmp_path / "data.jsonl", [GOOD, line, GOOD]), tmp_path)
    assert (len(prompts), rejected.count()) == (2, 1)
    assert json.loads((tmp_path / "rejected.jsonl").read_text())["row"] == 1


def test_above_five_per_cent_of_bad_rows_the_run_stops(tmp_path):
    at_limit = write_jsonl(tmp_path / "at.jsonl", [GOOD] * 95 + [{"prompt": "?"}] * 5)
    assert len(load(at_limit, tmp_path, share=0.05)[0]) == 95
    above = write_jsonl(tmp_path / "above.jsonl", [GOOD] * 94 + [{"prompt": "?"}] * 6)
    with pytest.raises(ConfigError, match=r"6 of 100 rows rejected \(answer: missing 6") as error:
        load(above, tmp_path, share=0.05)
    assert "rejected.jsonl" in error.value.mend


def test_rejected_rows_of_an_earlier_run_do_not_stay(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", [GOOD, {"prompt": "?"}])
    load(path, tmp_path), load(path, tmp_path)
    assert len((tmp_path / "rejected.jsonl").read_text().splitlines()) == 1


HALF = "solve \ud83d this"
HONEST = {
    "prompt: not Unicode text (half a surrogate pair)": {"prompt": HALF, "answer": "2"},
    "answer: not Unicode text (half a surrogate pair)": {"prompt": "?", "answer": HALF},
    "id: not Unicode text (half a surrogate pair)": {"id": HALF, "prompt": "?", "answer": "2"},
    "prompt: role 'observation'; turns of system, user (human), assistant (gpt) are rendered, those of tools are not": {
        "prompt": [{"from": "human", "value": "?"}, {"from": "observation", "value": "{}"}], "answer": "2"},
    "prompt: role '[1]'; turns of system, user (human), assistant (gpt) are rendered, those of tools are not": {
        "prompt": [{"role": [1], "content": "?"}], "answer": "2"},
    "prompt: no role; turns of system, user (human), assistant (gpt) are rendered, those of tools are not": {
        "prompt": [{"content": "?"}], "answer": "2"},
    "prompt: tool calls are not rendered": {
        "prompt": [{"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}, {"role": "user", "content": "?"}],
        "answer": "2"},
    "answer: dict instead of a string or number": {"prompt": "?", "answer": {"value": 2}},
}  # fmt: skip


@pytest.mark.parametrize("reason", HONEST)
def test_what_no_tokenizer_or_template_takes_is_a_bad_row_that_says_so(tmp_path, reason):
    prompts, rejected = load(write_jsonl(tmp_path / "data.jsonl", [GOOD, HONEST[reason]]), tmp_path)
    assert (len(prompts), rejected.summary()) == (1, f"{reason} 1")


def test_messages_that_were_written_as_text_are_messages(tmp_path, capsys):
    turns = [{"role": "system", "content": "Think."}, {"role": "user", "content": 'Is "a" a letter?'}]
    shared = [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}]
    questions = ["[1, 2, 3]: the sum?", '[{"a": 1}]: what is a?', "[{'x': 2}]", '[{"role": "user", "content": "cut o']
    rows = [{"prompt": text, "answer": "2"} for text in (json.dumps(turns), repr(turns), json.dumps(shared), *questions)]
    prompts, _ = load(write_jsonl(tmp_path / "data.jsonl", rows), tmp_path)
    assert [prompt.messages for prompt in prompts[:3]] == [turns, turns, [{"role": "user", "content": "1+1?"}]]
    assert [prompt.messages[0]["content"] for prompt in prompts[3:]] == questions
    assert "messages that were written as text are read as messages (3 rows, first: 0)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prompt", "kinds"),
    [
        ([{"type": "text", "text": "<image>\nwhat"}], ["image", "text"]),
        ([{"type": "text", "text": "is "}, {"type": "text", "text": "<image> it"}], ["text", "image", "text"]),
        ("<|vision_start|><|image_pad|><|vision_end|>what", ["image", "text"]),
        ("what is <|image_pad|>", ["text", "image"]),
        ([{"type": "text", "text": "what"}], ["image", "text"]),
    ],
)
def test_every_way_to_mark_an_image_gives_one_part(tmp_path, prompt, kinds):
    (tmp_path / "card.png").write_bytes(png())
    content = prompt if isinstance(prompt, str) else [{"role": "user", "content": prompt}]
    rows = [{"prompt": content, "answer": "2", "pictures": "card.png"}]
    (found,), _ = load(write_jsonl(tmp_path / "data.jsonl", rows), tmp_path, image="pictures")
    assert [part["type"] for part in found.messages[0]["content"]] == kinds
    assert not any("image" in part.get("text", "") for part in found.messages[0]["content"])
    assert found.sizes == [(28, 28)]


def test_marks_that_do_not_match_the_images_are_refused_and_a_mark_without_an_image_column_is_told(tmp_path, capsys):
    (tmp_path / "card.png").write_bytes(png())
    both = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "<image>\nwhat"}]}]
    rows = [
        {**GOOD, "pictures": "card.png"},
        {"prompt": both, "answer": "2", "pictures": "card.png"},
        {"prompt": "<image>\nwhat", "answer": "2"},
    ]
    path = write_jsonl(tmp_path / "data.jsonl", rows)
    _, rejected = load(path, tmp_path, image="pictures")
    assert rejected.summary() == "image: 1 given, 2 in the prompt (1 as parts, 1 as marks) 1, image: 0 given, 1 in the prompt 1"
    prompts, _ = load(write_jsonl(tmp_path / "text.jsonl", rows[2:]), tmp_path)
    assert prompts[0].messages[0]["content"] == "<image>\nwhat"
    assert "the mark <image> stands in a prompt without images" in capsys.readouterr().err


def test_numbers_are_read_as_they_were_written_and_gaps_are_missing(tmp_path):
    import pyarrow
    import pyarrow.parquet

    columns = {
        "answer": pyarrow.array([5.0, None, 0.25, float("nan"), float("inf")]),
        "short": pyarrow.array([0.1, 1 / 3, 5, 2.5, 1e-3], pyarrow.float32()),
        "nested": pyarrow.array([{"value": [x]} for x in (0.1, 2, 3, 4, 5)], pyarrow.struct(
            [("value", pyarrow.list_(pyarrow.float32()))])),
        "exact": pyarrow.array([Decimal(x) for x in ("2.50", "3", "10", "100", "0")], pyarrow.decimal128(9, 2)),
        "prompt": [str(i) for i in range(5)],
    }  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "data.parquet")

    def read(answer):
        prompts, rejected = load(tmp_path / "data.parquet", tmp_path, answer=answer)
        return [prompt.answer for prompt in prompts], rejected.summary()

    assert read("answer") == (["5", "0.25"], "answer: missing 3")
    assert read("short") == (["0.1", "0.33333334", "5", "2.5", "0.001"], "")
    assert read("nested.value[0]") == (["0.1", "2", "3", "4", "5"], "")
    assert read("exact") == (["2.5", "3", "10", "100", "0"], "")
    rows = [GOOD, b'{"prompt": "?", "answer": NaN, "id": 3.0}', b'{"prompt": "?", "answer": 7.0, "id": 4.0}']
    prompts, rejected = load(write_jsonl(tmp_path / "nan.jsonl", rows), tmp_path)
    assert ([(p.id, p.answer) for p in prompts], rejected.summary()) == ([("0", "2"), ("4", "7")], "answer: missing 1")
    assert json.loads((tmp_path / "rejected.jsonl").read_text())["id"] == "3"


@pytest.mark.parametrize("name", ["marked.jsonl", "marked.json", "lines.json", "array.jsonl", "wide.jsonl", "wide.json"])
def test_lines_and_arrays_are_read_under_either_name_with_marks_and_carriage_returns(tmp_path, name):
    rows = [{"prompt": f"{i}+1é?", "answer": str(i + 1)} for i in range(3)]
    lines = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\r\n"
    array = json.dumps(rows, ensure_ascii=False, indent=1)
    text = array if name in ("marked.json", "array.jsonl") else lines
    (tmp_path / name).write_bytes(text.encode("utf-16" if name.startswith("wide") else "utf-8-sig"))
    prompts, rejected = load(tmp_path / name, tmp_path)
    assert [(p.messages[0]["content"], p.answer) for p in prompts] == [(row["prompt"], row["answer"]) for row in rows]
    assert rejected.count() == 0


def test_a_file_of_one_object_says_which_of_its_lists_may_be_meant(tmp_path):
    (tmp_path / "data.json").write_text(json.dumps({"version": 1, "data": [GOOD]}))
    with pytest.raises(ConfigError, match="one JSON array") as error:
        load(tmp_path / "data.json", tmp_path)
    assert "data" in error.value.mend


def test_an_id_that_appears_twice_is_rejected(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", [{**GOOD, "name": "a"}, {**GOOD, "name": "a"}, {**GOOD, "name": "b"}])
    prompts, rejected = load(path, tmp_path, id="name")
    assert [p.id for p in prompts] == ["a", "b"]
    assert rejected.summary() == "id: appears twice 1"


def test_strings_chat_messages_and_nested_columns_give_the_same_prompt(tmp_path):
    rows = {
        "string": ({"prompt": "1+1?", "answer": "2"}, {}),
        "messages": ({"prompt": [{"role": "user", "content": "1+1?"}], "answer": "2"}, {}),
        "parts": ({"prompt": [{"role": "user", "content": [{"type": "text", "text": "1+1?"}]}], "answer": "2"}, {}),
        "with the old trace": (
            {"prompt": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "R1 says 2"}], "answer": "2"}, {}
        ),
        "verl": ({"p": "1+1?", "reward_model": {"ground_truth": "2"}}, {"prompt": "p", "answer": "reward_model.ground_truth"}),
        "orz": (
            [{"from": "human", "value": "1+1?"}, {"from": "assistant", "ground_truth": {"value": "2"}}],
            {"prompt": "0.value", "answer": "1.ground_truth.value"},
        ),
    }  # fmt: skip
    for name, (row, fields) in rows.items():
        (prompt,), _ = load(write_jsonl(tmp_path / f"{name}.jsonl", [row]), tmp_path, system="Think.", **fields)
        assert prompt.messages == [
            {"role": "system", "content": "Think."}, {"role": "user", "content": "1+1?"}
        ], name  # fmt: skip
        assert prompt.answer == "2", name


def test_prompts_for_traces_need_no_answer(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", [{"prompt": "1+1?"}])
    (prompt,), _ = load(path, tmp_path, answers=False)
    assert prompt.answer is None


def test_parquet_folder_json_array_and_saved_dataset_give_the_same_prompts(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": f"{i}+1?", "answer": str(i + 1)} for i in range(5)]
    whole = datasets.Dataset.from_list(rows)
    whole.to_parquet(tmp_path / "one.parquet")
    (tmp_path / "array.json").write_text(json.dumps(rows))
    folder = tmp_path / "folder"
    folder.mkdir()
    write_jsonl(folder / "train-0.jsonl", rows[:2])
    datasets.Dataset.from_list(rows[2:]).to_parquet(folder / "train-1.parquet")
    write_jsonl(folder / "test.jsonl", [GOOD] * 9)
    datasets.DatasetDict({"train": whole}).save_to_disk(tmp_path / "saved")
    expected = [(str(i), f"{i}+1?", str(i + 1)) for i in range(5)]
    for source in ("one.parquet", "array.json", "folder", "saved"):
        prompts, _ = load(tmp_path / source, tmp_path)
        assert [(p.id, p.messages[0]["content"], p.answer) for p in prompts] == expected, source
    assert len(load(tmp_path / "folder", tmp_path, limit=3)[0]) == 3


@pytest.mark.parametrize("source", ["missing.jsonl", "nobody/nothing", "notes.txt", "empty", "broken.parquet", "broken.json"])
def test_what_cannot_be_read_is_a_configuration_error(tmp_path, source, monkeypatch):
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "broken.parquet").write_text("x")
    (tmp_path / "broken.json").write_text("[")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        load(source, tmp_path)
    assert error.value.mend


def test_images_come_as_paths_bytes_or_structs_and_stand_where_the_prompt_says(tmp_path):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "card.png").write_bytes(png())
    beside = {"image": "pictures"}
    rows = [
        {"prompt": "sum?", "answer": "2", "pictures": "card.png"},
        {"prompt": "first <image> then <image> sum?", "answer": "2", "pictures": ["card.png", str(tmp_path / "card.png")]},
    ]
    one, two = load(write_jsonl(tmp_path / "data.jsonl", rows), tmp_path, **beside)[0]
    assert one.messages[0]["content"] == [{"type": "image"}, {"type": "text", "text": "sum?"}]
    assert [part["type"] for part in two.messages[0]["content"]] == ["text", "image", "text", "image", "text"]
    assert [image.getpixel((0, 0)) for image in two.open_images()] == [(200, 10, 10)] * 2
    stored = datasets.Dataset.from_dict({"prompt": ["sum?"], "answer": ["2"], "pictures": [[png(), png((1, 2, 3))]]})
    stored = stored.cast_column("pictures", datasets.List(datasets.Image()))
    stored.to_parquet(tmp_path / "images.parquet")
    (prompt,), _ = load(tmp_path / "images.parquet", tmp_path, **beside)
    assert prompt.open_images()[1].getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "?", "answer": "2", "pictures": "none.png"}, "image: file not found"),
        ({"prompt": "?", "answer": "2", "pictures": "data.jsonl"}, "image: cannot be read"),
        ({"prompt": "?", "answer": "2", "pictures": 7}, "image: int instead of a path or encoded bytes"),
        ({"prompt": "<image> <image>", "answer": "2", "pictures": "card.png"}, "image: 1 given, 2 in the prompt"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}], "answer": "2"}, "image: 0 given, 1 in the prompt"),
    ],
)
def test_a_row_whose_images_do_not_fit_is_rejected(tmp_path, row, reason):
    (tmp_path / "card.png").write_bytes(png())
    path = write_jsonl(tmp_path / "data.jsonl", [{**GOOD, "pictures": "card.png"}, row])
    prompts, rejected = load(path, tmp_path, image="pictures")
    assert (len(prompts), rejected.summary()) == (1, f"{reason} 1")
