"""Every key is declared whole: help, and a bound or choices where its type asks for them."""

import dataclasses
import re
import typing

import pytest

from vold_nemo.config import Config
from vold_nemo.config.fields import spec
from vold_nemo.config.sections.objective import AVERAGES, ESTIMATORS, EXACT
from vold_nemo.config.tree import hints, mapped_section, section_of, spec_of


def keys(section: type, prefix: str = ""):
    """(dotted key, field, type) of every key of the schema, sections that may be null and maps of sections included."""
    for field in dataclasses.fields(section):
        name, hint = f"{prefix}{field.name}", hints(section)[field.name]
        inner = section_of(hint) or mapped_section(hint)
        if inner is None:
            yield name, field, hint
        else:
            yield from keys(inner, f"{name}.NAME." if mapped_section(hint) else f"{name}.")


KEYS = list(keys(Config))


def plain_types(hint) -> set[type]:
    """int, float, str, ... of a value, of a list's items or of a map's values."""
    if typing.get_origin(hint) is dict:
        return plain_types(typing.get_args(hint)[1])
    arguments = typing.get_args(hint)
    return set().union(*(plain_types(one) for one in arguments)) if arguments else {hint}


def test_the_walk_reaches_every_kind_of_section():
    names = {name for name, _, _ in KEYS}
    assert {"seed", "teachers.NAME.fp8.max_drift", "evaluate.text.limit", "prepare.against.NAME.limit"} <= names
    assert len(names) > 400


@pytest.mark.parametrize("name, field, hint", KEYS, ids=[name for name, _, _ in KEYS])
def test_a_key_has_help_a_number_a_bound_and_alternatives_choices(name, field, hint):
    said = spec(field)
    assert said.help, "a key without help"
    if plain_types(hint) & {int, float}:
        assert said.bound is not None and said.bound.words, "a number without a bound"
    if re.search(r"\w \| \w", said.help):
        assert said.choices or said.bound, "help that names alternatives, and no choices"
    assert not set(said.refused) & set(said.choices)


def test_what_others_say_again_is_the_same():
    from vold_nemo.megatron import precision
    from vold_nemo.objective import divergence, weights

    assert set(ESTIMATORS) == set(divergence.SAMPLED + divergence.EXACT) and EXACT == divergence.EXACT
    assert AVERAGES == weights.AVERAGES
    assert set(spec_of("teacher.fp8.recipe").choices) == {"auto", *precision.MULTIPLE}
