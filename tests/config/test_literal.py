"""What a run left behind is read as it stands."""

import itertools

import pytest
from omegaconf import OmegaConf

from vold_nemo.config import ConfigError
from vold_nemo.config.literal import LARGEST, literal, parse_yaml, read_yaml

PARTS = ("\\", "$", "{", "}", "a", "${oc.env:HOME}", "\\${x}")


def test_a_text_is_itself_through_omegaconf_and_a_file():
    for count in range(3):
        for parts in itertools.product(PARTS, repeat=count):
            text = "".join(parts)
            tree = OmegaConf.create({"a": literal(text), "b": [{"c": literal(text)}]})
            assert tree.a == tree.b[0].c == OmegaConf.to_container(tree, resolve=True)["a"] == text
            assert parse_yaml(OmegaConf.to_yaml(tree, resolve=True), "file")["a"] == text


@pytest.mark.parametrize(
    "text",
    ["a: &x [1]\nb: *x", "a: !!python/object/apply:os.system ['x']", "[1", "[" * 1500, "a: 1\na: 2", "a: \x00",
     "a: " + "x" * LARGEST, "- 1"],
    ids=["alias", "tag", "torn", "deep", "twice", "nul", "long", "list"],
)  # fmt: skip
def test_what_is_no_plain_map_is_refused_under_its_name(text, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        read_yaml(tmp_path / "config.yaml")
