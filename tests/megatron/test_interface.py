"""All that the project asks of megatron-core is there in the version that is installed: on a GPU's paths, too."""

import ast
import importlib
import importlib.metadata
import inspect
from pathlib import Path

import pytest

import vold_nemo
from tests.megatron import interface
from vold_nemo.megatron import cpu, fp8, versions
from vold_nemo.megatron.precision import MULTIPLE, Precision

ROOT = Path(vold_nemo.__file__).parent
ADDED = ["megatron.core.transformer.moe.moe_utils.te_general_gemm does not exist"]  # so that it does: versions.py


@pytest.fixture(scope="module")
def readings():
    files = [file for file in sorted(ROOT.rglob("*.py")) if interface.LIBRARY in file.read_text()]
    return [interface.Reading(file) for file in files]


def test_every_name_argument_and_override_exists(readings):
    problems = [problem for reading in readings for problem in reading.problems]
    assert [one for one in problems if not one.endswith(ADDED[0])] == []
    seen = {kind: sum(reading.seen[kind] for reading in readings) for kind in readings[0].seen}
    assert seen["name"] >= 150 and seen["call"] >= 60 and seen["override"] >= 6 and seen["replaced"] >= 7, seen


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("from megatron.core.utils import get_model_konfig", "get_model_konfig does not exist"),
        ("from megatron.core import tensor_parallel\ntensor_parallel.checkpoints()", "checkpoints does not exist"),
        ("from megatron.core.utils import get_model_config as get\nget(model, depth=1)", "unexpected keyword argument 'depth'"),
        ("from megatron.core.utils import get_model_config as get\nget(1, 2)", "too many positional arguments"),
        (
            "from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec as spec\nspec(experts=8)",
            "unexpected keyword argument 'experts'",
        ),
        (
            "from megatron.core.models.gpt import GPTModel\nclass Own(GPTModel):\n def _postproces(self, *a, **k): ...",
            "_postproces is overridden and does not exist",
        ),
        (
            "from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator\n"
            "class Own(P2PCommunicator):\n def _communicate_shapes(self, tensor_send_next, recv_prev): ...",
            "is called with tensor_send_prev, recv_next, too",
        ),
        ("from megatron.core import parallel_state\nparallel_state.make_group = None", "make_group does not exist"),
    ],
)
def test_what_does_not_exist_is_found(code, problem, tmp_path):
    file = tmp_path / "code.py"
    file.write_text(code)
    (found,) = interface.Reading(file).problems
    assert problem in found


def test_modules_that_see_another_torch_use_torch():
    for name in cpu._LITERAL_DEVICE:
        assert "torch" in vars(importlib.import_module(name)), name


@pytest.mark.parametrize("recipe", MULTIPLE)
def test_a_teacher_of_transformer_engine_is_configured_by_fields_that_exist(recipe):
    from megatron.core.enums import Fp8Recipe
    from megatron.core.transformer.transformer_config import TransformerConfig

    asked = fp8.config_fields(Precision("fp8", "", recipe, "te"))
    assert asked and asked.keys() <= TransformerConfig.__dataclass_fields__.keys()
    assert Fp8Recipe(recipe)


def test_fields_of_the_model_that_only_some_set_exist():
    """Experts, uneven stages, recomputation: they come as ``dict(name=...)``, past what a call shows."""
    from megatron.core.transformer.transformer_config import TransformerConfig

    tree = ast.parse((ROOT / "megatron" / "build.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "dict"]
    asked = {one.arg for call in calls for one in call.keywords}
    assert len(asked) >= 15 and asked <= TransformerConfig.__dataclass_fields__.keys()


def test_notices_that_recipes_drop_are_said_by_those_loggers():
    """In 0.19.2; 0.16.1 says none of them."""
    found = [said in inspect.getsource(importlib.import_module(name)) for name, said in versions.NOTICES.items()]
    assert set(found) == {importlib.metadata.version("megatron-core") == "0.19.2"}


def test_a_version_that_nothing_was_tested_on_is_said(monkeypatch):
    assert versions.doubt() is None
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.20.0")
    assert "0.20.0" in versions.doubt() and "0.16.1 and 0.19.2" in versions.doubt()
