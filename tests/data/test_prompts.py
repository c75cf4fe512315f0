"""Rows in, prompts out; what cannot be used is written down, counted, and stops the run above a set share."""

import io
import json

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
