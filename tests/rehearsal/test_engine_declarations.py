"""The stand-in against the sources of Transformer Engine 2.20.2: every name, argument and enumerator that is declared there."""

import inspect
import os
import re
import subprocess
import sys
import tarfile

import pytest

from tests.rehearsal import pybind_source
from vold_nemo.rehearsal import engine
from vold_nemo.rehearsal.engine import declared, importing

pytestmark = pytest.mark.timeout(120)

# pip runs the source distribution's setup.py to learn its name and version; that asks an installed torch for three things.
TORCH = {
    "__init__.py": 'class version: cuda = "13.0"\nclass _C: _GLIBCXX_USE_CXX11_ABI = True\n',
    "utils/__init__.py": "",
    "utils/cpp_extension.py": "from setuptools import Extension as CppExtension\n"
    "from setuptools.command.build_ext import build_ext as BuildExtension\n",
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The unpacked source distribution of the extension (0.5 MB)."""
    folder = tmp_path_factory.mktemp("sources")
    for name, text in TORCH.items():
        path = folder / "stub" / "torch" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--no-build-isolation",
               "--dest", str(folder), f"{importing.EXTENSION}=={engine.wanted_version()}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False,
                          env=os.environ | {"PYTHONPATH": str(folder / "stub"), "NVTE_WITH_NCCL_EP": "0"})  # fmt: skip
    archives = list(folder.glob("*.tar.gz"))
    if not archives:
        pytest.skip(f"no package registry gave the sources: {done.stderr.strip()[-200:]}")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.glob(f"{importing.EXTENSION}-*/"))


@pytest.fixture(scope="module")
def site():
    try:
        return engine.cached()
    except RuntimeError as error:
        pytest.skip(str(error))


def test_the_tables_are_what_the_sources_declare(sources):
    written = inspect.getsource(declared)
    assert pybind_source.module_text(sources).strip() in written


def test_a_written_function_takes_the_arguments_that_are_declared():
    module, wrong = importing.extension(), {}
    for name, arguments in declared.functions().items():
        function = getattr(module, name, None)
        if function is None or hasattr(function, "unwritten"):
            continue
        found, keywords = [], False
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY and not keywords:
                found, keywords = [*found, "*"], True
            found.append(parameter.name + ("" if parameter.default is parameter.empty else "="))
        if found != arguments:
            wrong[name] = (found, arguments)
    assert not wrong


def test_a_function_that_is_not_written_says_so_with_its_arguments():
    with pytest.raises(NotImplementedError, match=r"tex\.newton_schulz\(int, x=str\)"):
        importing.extension().newton_schulz(1, x="")


def test_enumerators_compare_as_those_of_pybind11():
    module = importing.extension()
    assert module.DType.kBFloat16 == 6 and int(module.FP8BwdTensors.GRAD_OUTPUT2) == 2
    assert module.NVTE_QKV_Layout.NVTE_SB3HD != 0
    assert set(module.DType.__members__) >= {"kByte", "kFloat8E4M3"}


def test_every_name_that_the_python_layer_takes_from_the_extension_is_there(site):
    module, lacking = importing.extension(), set()
    # Bound only where NCCL's expert parallelism is compiled in; an old interface's names in comments; a plugin's.
    elsewhere = re.compile(r"ep_\w+|LayerNorm|gemm_inf|\w*_?(fp8|mxfp8|fp8_cs)_(de)?quantize|mxfp8_(de)?quantize|layernorm")
    for path in (site / "transformer_engine" / "pytorch").rglob("*.py"):
        for name in re.findall(r"\btex\.(\w+)", path.read_text()):
            if not hasattr(module, name) and not elsewhere.fullmatch(name):
                lacking.add(name)
    assert not lacking


def test_another_version_is_refused(tmp_path):
    (tmp_path / "transformer_engine-2.19.0.dist-info").mkdir()
    (tmp_path / "transformer_engine-2.19.0.dist-info" / "METADATA").write_text("Name: transformer-engine\nVersion: 2.19.0\n")
    code = "import sys; from pathlib import Path; from vold_nemo.rehearsal import engine; engine.install(Path(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False)
    assert "holds Transformer Engine ['2.19.0'], wanted: 2.20.2" in done.stderr
