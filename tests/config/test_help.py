"""--help explains every key, or those that a verb reads, its own first."""

from tests.config.test_fields import KEYS
from vold_nemo.config.fields import spec
from vold_nemo.config.help import help_text
from vold_nemo.config.places import conf


def test_help_for_all_explains_every_key():
    text = help_text("sft", "Stage 1.")
    for key, field, _ in KEYS:
        owners = [key.rsplit(".", depth)[0] for depth in range(1, key.count(".") + 1)]
        assert f"{key} (" in text or any(f"{owner}.* (as " in text for owner in owners), key
        assert spec(field).describe() in text, key


def test_help_of_a_verb_has_its_sections_alone_its_own_first():
    text = help_text("sft", "Stage 1.", ("sft", "seed", "student", "parallel"))
    keys = text[text.index("\nKeys") :]
    places = [keys.index(f"\n{name}: ") for name in ("sft", "sft.optimizer", "student", "parallel")]
    assert places == sorted(places) and "  seed (int) = 1 " in keys[: places[0]]
    assert "dry_run (bool)" in keys and "vold." not in keys and "cluster" not in text
    assert "  parallel     dp2, " in text and "  rollout  " not in text and "miniature_smoke" in text


def test_defaults_are_those_of_the_section_and_not_of_its_kind():
    text = help_text("vold", "Stage 2.", ("vold", "sft"))
    assert "vold.optimizer.learning_rate (float) = 6e-06" in text
    assert "sft.optimizer.* (as vold.optimizer.*) = {learning_rate: 5e-05, warmup_steps: 150}" in text


def test_options_of_ones_own_are_listed(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").touch()
    (listed,) = (line for line in help_text("sft", "", ("sft",), [tmp_path]).splitlines() if line.startswith("  experiment  "))
    assert "mine, miniature" in listed and len(listed.split(",")) == 1 + len(list((conf() / "experiment").glob("*.yaml")))
