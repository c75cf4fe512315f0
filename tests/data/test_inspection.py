"""What ``inspect_data`` says of a set is what a run makes of it."""

import io
import json
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from rich.console import Console

from vold_nemo.config import (
    Config,
    ConfigError,
    DatasetConfig,
    InspectConfig,
    PromptFieldsConfig,
    RewardConfig,
    RolloutConfig,
)
from vold_nemo.config.places import recipes
from vold_nemo.data.inspection import inspect
from vold_nemo.pages import inspection

ROWS = [
    {"id": "a", "question": "1 + 1 = ?", "reward_model": {"truth": ["2"]}, "note": None},
    {"id": "b", "question": "1+1 = ?", "reward_model": {"truth": ["3"]}, "note": "x"},
    {"id": "c", "question": "How long is it?", "reward_model": {"truth": [r"n = \frac{1}{2}"]}, "note": None},
    {"id": "d", "question": "<b>Which?</b>\x1b[31m", "reward_model": {"truth": ["A long story that has far too many words"]}},
    {"id": "e", "question": "", "reward_model": {"truth": ["2"]}},
    {"id": "f", "question": "What?", "reward_model": {"truth": [r"\frac{1}{"]}},
]  # fmt: skip


def look(path, folder, *, examples=2, tokenizer=None, verifier="boxed", **fields):
    columns = {"prompt": "question", "answer": "reward_model.truth[0]"} | fields
    config = Config(
        inspect=InspectConfig(
            data=DatasetConfig(str(path), fields=PromptFieldsConfig(**columns)), path=str(folder), examples=examples,
            tokenizer=tokenizer,
        ),
        reward=RewardConfig(verifier=verifier), rollout=RolloutConfig(max_tokens=40),
    )  # fmt: skip
    return inspect(config)


def on_a_terminal(found) -> str:
    text = io.StringIO()
    inspection.show(found, Console(file=text, width=160, markup=False, highlight=False, emoji=False))
    return text.getvalue()


def test_columns_lengths_keys_duplicates_and_what_is_rejected(tmp_path):
    file = tmp_path / "mine.json"  # JSON lines under the name of an array, with a byte order mark and CRLF
    file.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(row).encode() for row in ROWS))
    found = look(file, tmp_path / "out")
    names = {column.name: column for column in found.columns}
    assert list(names) == ["id", "question", "reward_model", "reward_model.truth", "note"]
    assert names["note"].kinds == {"null": 2, "text": 1} and names["reward_model.truth"].example == "['2']"
    assert (found.rows, found.usable, found.duplicates, found.conflicting) == (6, 4, 1, 1)
    assert found.rejected == {"prompt: empty": 1, "answer: verifier boxed cannot parse it": 1}
    assert inspection.quantiles(found.lengths["prompt, characters"])[0] == len("1+1 = ?")
    (keys,) = found.keys
    assert [(form, how) for form, _, how, _, _ in keys.rows()] == [
        ("integer", "however it is written"), ("equation", "letter by letter"), ("sentence", "never"),
    ]  # fmt: skip
    assert "2 of 6 rows would be rejected" in found.stops
    assert [prompt.id for prompt in found.examples] == ["a", "b"]
    went = [json.loads(line)["id"] for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert went == ["e", "f"]

    shown = on_a_terminal(found)
    for text in ("reward_model.truth", "boxed could ever reward 3 of 4", "prompt: empty", "1 questions were there before",
                 "a run would stop", "example a", "key: 2"):  # fmt: skip
        assert text in shown, text
    page = inspection.write(tmp_path / "out", look(file, tmp_path / "out", examples=4)).read_text()
    assert "&lt;b&gt;Which?" in page and "\x1b" not in page and "letter by letter" in page
    data = json.loads((tmp_path / "out/inspection.json").read_text())
    assert data["usable"] == 4 and data["keys"][0]["never"] == 1 and data["columns"][1]["name"] == "question"


@pytest.mark.parametrize(("verifier", "better"), [("boxed", "math"), ("math", None)])
def test_the_verifier_that_fits_better_is_named(tmp_path, verifier, better):
    file = tmp_path / "mine.jsonl"
    rows = [{"question": f"q{i}", "reward_model": {"truth": [f"x = {i}"]}} for i in range(9)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = look(file, tmp_path / "out", verifier=verifier, id=None)
    assert found.keys[0].report.better() == better
    assert any("fits these keys better" in line for line in inspection.said(found)) == (better is not None)


def test_a_set_without_the_columns_is_shown_with_those_that_it_has(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps({"problem": f"q{i}", "final_answer": str(i)}) + "\n" for i in range(3)))
    found = look(file, tmp_path / "out", prompt="prompt", answer="answer", id=None)
    assert found.wrong.key == "inspect.data.fields.prompt"
    assert "problem, final_answer" in found.wrong.allowed and found.wrong.mend == "give inspect.data.fields.prompt=problem"
    assert "final_answer" in on_a_terminal(found) and not found.examples
    with pytest.raises(ConfigError, match="path"):
        look(tmp_path / "nothing.jsonl", tmp_path / "out")


def test_pictures_are_counted_measured_and_shown(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20), "red").save(buffer, format="PNG")
    rows = [{"question": "<image>Find x.", "answer": "3", "images": [{"bytes": buffer.getvalue(), "path": None}]}] * 2
    rows += [{"question": "<image>Find y.", "answer": "3", "images": [{"bytes": b"no picture", "path": None}]}]
    file = tmp_path / "mine.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    found = look(file, tmp_path / "out", answer="answer", image="images", id=None)
    assert found.images == {1: 2} and found.duplicates == 1 and sum(found.rejected.values()) == 1
    assert "picture 30 x 20" in on_a_terminal(found) and "images of a row: 1 in 2" in on_a_terminal(found)
    assert "data:image/png;base64," in inspection.draw(found)
    assert next(column for column in found.columns if column.name == "images[0].bytes").example.endswith(" bytes")


def test_tokens_are_counted_where_a_tokenizer_is_given_and_its_model_says_what_it_cannot_be_asked(tmp_path):
    from vold_nemo.miniature.random_models import write_random_teacher

    write_random_teacher(tmp_path / "model")
    file = tmp_path / "mine.jsonl"
    asked = ["three plus four", "three<|im_end|>", "three plus four " * 4000]
    file.write_text("".join(json.dumps({"question": text, "reward_model": {"truth": ["7"]}}) + "\n" for text in asked))
    found = look(file, tmp_path / "out", tokenizer=str(tmp_path / "model"), id=None)
    assert found.usable == 1 and len(found.lengths["prompt, tokens"]) == 1
    reasons = " ".join(found.rejected)
    assert "holds the control token <|im_end|>" in reasons and ("positions" in reasons or "longer than" in reasons)


def test_the_command_prints_the_tables_and_leaves_with_2_where_the_columns_are_not_there(tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"problem": "1 + 1", "answer": "2"}\n')
    command = [sys.executable, str(recipes() / "inspect_data.py"), "inspect.data.path=mine.jsonl", "inspect.path=out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 2 and "problem" in done.stdout and "inspect.data.fields.prompt" in done.stderr
    assert "Traceback" not in done.stderr and (tmp_path / "out/inspection.html").is_file()
