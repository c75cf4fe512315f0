"""Whatever bytes and structures come, a loader ends with prompts, rejected rows or one configuration error, and in time."""

import io
import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vold_nemo.config import ConfigError, DatasetConfig, PromptFieldsConfig
from vold_nemo.data.pictures import PictureError, open_picture
from vold_nemo.data.prompts import load_prompts
from vold_nemo.data.rejected import Rejected
from vold_nemo.rewards.answer_keys import refusal
from vold_nemo.rewards.key_forms import form_of, report_keys
from vold_nemo.rewards.key_text import unwrapped

MANY = settings(max_examples=2_000, deadline=20_000, suppress_health_check=list(HealthCheck))
TEXT = st.one_of(
    st.text(max_size=30), st.sampled_from(["user", "assistant", "human", "image", "text", "<image>", "\ud800", "$5$",
    r"\boxed{", "####", '[{"role": "user", "content": "x"}]', "[{'from': 'human', 'value': 1}]", "nan", ""]),
)  # fmt: skip
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT)
NAMES = st.sampled_from(
    ["prompt", "answer", "id", "domain", "source", "verifier", "image", "role", "from", "content", "value", "type", "text",
     "bytes", "path", "tool_calls"]
)  # fmt: skip
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=6), max_leaves=20
)  # fmt: skip
TURN = st.fixed_dictionaries({"role": TEXT | st.just("user"), "content": TREES})
CHAT = st.fixed_dictionaries({"prompt": st.lists(TURN, max_size=3), "answer": TREES})
ROW = st.dictionaries(NAMES, TREES, max_size=6) | CHAT | TREES
BYTES = st.binary(max_size=200) | st.binary(max_size=60).map(lambda content: b'{"prompt": "' + content)
FIELDS = PromptFieldsConfig(image="image", source="source", verifier="verifier", response=None)


def read(path):
    config = DatasetConfig(path=str(path), fields=FIELDS)
    try:
        prompts = load_prompts(config, None, Rejected(None, 1.0), refuse=refusal("boxed"), verifier="boxed")
    except ConfigError:
        return
    for prompt in prompts:
        prompt.answer.encode(), prompt.id.encode(), json.dumps(prompt.messages).encode()
        assert prompt.messages[-1]["role"] == "user" and len(prompt.images) == len(prompt.sizes)
    report_keys(((p.id, p.answer, p.verifier) for p in prompts), "boxed")


@pytest.mark.long
@MANY
@given(rows=st.lists(ROW, max_size=4), name=st.sampled_from(["data.jsonl", "data.json"]))
def test_trees_of_json(tmp_path_factory, rows, name):
    path = tmp_path_factory.getbasetemp() / name
    path.write_text("\n".join(map(json.dumps, rows)) if name == "data.jsonl" else json.dumps(rows))
    read(path)


@pytest.mark.long
@MANY
@given(content=BYTES, end=st.sampled_from(["jsonl", "json"]))
def test_bytes_that_are_called_json(tmp_path_factory, content, end):
    path = tmp_path_factory.getbasetemp() / f"bytes.{end}"
    path.write_bytes(content)
    read(path)


@pytest.mark.long
@MANY
@given(data=st.data())
def test_columns_of_every_type_of_parquet(tmp_path_factory, data):
    import pyarrow
    import pyarrow.parquet

    kinds = [
        pyarrow.string(), pyarrow.large_string(), pyarrow.binary(), pyarrow.int8(), pyarrow.uint64(), pyarrow.float16(),
        pyarrow.float32(), pyarrow.float64(), pyarrow.bool_(), pyarrow.null(), pyarrow.date32(), pyarrow.timestamp("ns"),
        pyarrow.duration("us"), pyarrow.decimal128(12, 3), pyarrow.list_(pyarrow.float32()), pyarrow.list_(pyarrow.string()),
        pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]),
        pyarrow.dictionary(pyarrow.int8(), pyarrow.string()), pyarrow.map_(pyarrow.string(), pyarrow.float32()),
        pyarrow.list_(pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])),
    ]  # fmt: skip
    columns = {}
    for name in ("prompt", "answer", "id", "image", "verifier"):
        kind = data.draw(st.sampled_from(kinds))
        try:
            columns[name] = pyarrow.array(data.draw(st.lists(LEAVES | TREES, min_size=2, max_size=2)), kind)
        except (pyarrow.ArrowException, ValueError, TypeError, OverflowError, AttributeError):
            columns[name] = pyarrow.nulls(2, kind)
    path = tmp_path_factory.getbasetemp() / "types.parquet"
    try:
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    except pyarrow.ArrowException:
        return
    whole = bytearray(path.read_bytes())
    if data.draw(st.integers(0, 3)) == 0:  # damaged
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(whole)
    read(path)


def _encoded(kind, mode):
    buffer = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).convert(mode).save(buffer, kind)
    return buffer.getvalue()


FILES = [_encoded(*one) for one in (
    ("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "LA"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("TIFF", "F"),
    ("TIFF", "I"), ("GIF", "P"), ("WEBP", "RGBA"), ("BMP", "RGB"), ("PPM", "L"),
)]  # fmt: skip


@pytest.mark.long
@settings(MANY, max_examples=6_000)
@given(
    file=st.sampled_from(FILES), cut=st.none() | st.integers(0, 400),
    flips=st.lists(st.tuples(st.integers(0, 100_000), st.integers(1, 255)), max_size=6),
)
def test_damaged_pictures(file, cut, flips):
    content = bytearray(file[:cut])
    for place, bits in flips if content else ():
        content[place % len(content)] ^= bits
    try:
        image = open_picture(bytes(content))
    except PictureError:
        return
    assert image.mode == "RGB" and math.prod(image.size) > 0


@pytest.mark.long
@MANY
@given(key=st.text(alphabet="$\\{}[]()#\n 5aboxedtext\"',<>answer/", max_size=60))
def test_keys_of_every_shape(key):
    plain = unwrapped(key.strip())
    assert unwrapped(plain) == plain or len(plain) < len(key)
    form_of(plain)
