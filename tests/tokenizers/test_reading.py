"""Published tokenizers, each under every family that can be a student or a teacher: the ids are those of its own file."""

import json
import shutil

import pytest
from tokenizers import Tokenizer

from tests.tokenizers.published import PACKAGES, STUDENT_TEMPLATE
from tests.tokenizers.texts import TEXTS
from vold_nemo.data.templates import load_tokenizer

pytestmark = [pytest.mark.tokenizers, pytest.mark.timeout(900)]

# qwen2 stands for the families whose class transformers forces on a checkpoint, qwen3 for those where the file may choose
CASES = [(name, model_type) for name in PACKAGES for model_type in ("qwen2", "qwen3")]


@pytest.mark.parametrize(("name", "model_type"), CASES)
def test_ids_are_those_of_the_file_and_texts_come_back(files, tmp_path, name, model_type):
    folder = shutil.copytree(files(name), tmp_path / name)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    if "chat_template" not in json.loads((folder / "tokenizer_config.json").read_text()):
        (folder / "chat_template.jinja").write_text(STUDENT_TEMPLATE)
    tokenizer, inner = load_tokenizer(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    found = tokenizer(list(TEXTS.values()), add_special_tokens=False)["input_ids"]
    expected = [inner.encode(text, add_special_tokens=False).ids for text in TEXTS.values()]
    assert dict(zip(TEXTS, found, strict=True)) == dict(zip(TEXTS, expected, strict=True))
    for kind, ids, text in zip(TEXTS, found, TEXTS.values(), strict=True):
        if name == "gemma3" and kind in ("odd blanks", "control characters"):
            continue  # its own file writes some of these as others
        assert tokenizer.decode(ids) == (inner.normalizer.normalize_str(text) if "qwen" in name else text), kind
    vocabulary = inner.get_vocab_size()
    assert len(tokenizer) in (vocabulary, vocabulary + 1)  # one more where the configuration names a token that it lacks
