"""``import transformer_engine.pytorch`` from a folder of unpacked wheels, without the compiled extension."""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import importlib.metadata
import os
import subprocess
import sys
import tempfile
import types
import zipfile
from pathlib import Path

VERSION = "2.20.2"
EXTENSION = "transformer_engine_torch"


def wanted_version() -> str:
    """The version of Transformer Engine whose extension the stand-in follows; no other is accepted."""
    return VERSION


def cached() -> Path:
    """The folder that :func:`install` takes, in the user's cache; fetched at the first call.

    :raises RuntimeError: as :func:`fetch`.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vold_nemo" / f"transformer_engine_{VERSION}"
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RuntimeError(f"{folder.parent} cannot be made: {error.strerror} (XDG_CACHE_HOME)") from error
        with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
            fetch(Path(aside) / "whole")
            with contextlib.suppress(OSError):  # another process was first
                (Path(aside) / "whole").rename(folder)
    return folder


def fetch(into: Path) -> Path:
    """Download the wheel ``transformer-engine`` (pure Python, 1.2 MB) with pip and unpack it; returns ``into``.

    What else its Python layer imports is either among this project's requirements (einops, packaging, pydantic), or stands
    in (Triton: :mod:`vold_nemo.rehearsal.engine.launched`), or is never reached: onnxscript serves export, nvdlfw_inspect
    debugging, and both are imported by those paths only.

    :raises RuntimeError: with pip's words, when no package registry answers.
    """
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                   "--only-binary", ":all:", "--dest", folder, f"transformer-engine=={VERSION}"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise RuntimeError(f"transformer-engine {VERSION} could not be downloaded: {done.stderr.strip()[-400:]}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            wheel.extractall(into)
    return into


def install(site: Path) -> None:
    """Make ``import transformer_engine.pytorch`` work from ``site`` (:func:`fetch`), in this process.

    Call it where ``torch.cuda`` already looks like a GPU (Transformer Engine reads its compute capability while it is
    imported), and before anything imports ``transformer_engine`` or megatron-core's modules, which look for it once.

    :raises RuntimeError: without the wheel of the wanted version in ``site``, or when it or megatron-core is imported already.
    """
    for early in ("transformer_engine", EXTENSION, "megatron.core"):  # the last looks for the first once, and remembers
        if early in sys.modules:
            raise RuntimeError(f"{early} is imported already: a rehearsal installs its stand-in first")
    found = [d.version for d in importlib.metadata.distributions(path=[str(site)]) if d.name.startswith("transformer")]
    if found != [VERSION]:
        raise RuntimeError(f"{site} holds Transformer Engine {found or 'not at all'}, wanted: {VERSION}")
    # Without it the package would load its shared library and check its installation (``common/__init__.py``, last lines).
    os.environ["NVTE_PROJECT_BUILDING"] = "1"
    sys.path.insert(0, str(site))
    importlib.invalidate_caches()
    from vold_nemo.rehearsal.engine import fakes, launched

    launched.install()
    sys.modules[EXTENSION] = extension()
    _leave_out("transformer_engine.pytorch.onnx_extensions")
    # The package tries its frameworks at once, and would look for the extension's file before that can be kept from it.
    frameworks = ("transformer_engine.pytorch", "transformer_engine.jax")
    sys.modules.update(dict.fromkeys(frameworks))  # None: an ImportError, which it forgives
    common = importlib.import_module("transformer_engine.common")
    common.load_framework_extension = lambda framework: None  # it is in sys.modules; there is no file to load
    for name in frameworks:
        del sys.modules[name]
    sys.modules["transformer_engine"].pytorch = importlib.import_module("transformer_engine.pytorch")
    fakes.install()


def extension() -> types.ModuleType:
    """The stand-in of ``transformer_engine_torch``: all its enumerators, its functions as far as they are written."""
    from vold_nemo.rehearsal.engine import attention, declared, gemm, kernels, optimizer, quantise

    module = types.ModuleType(EXTENSION, "A stand-in: nothing is computed.")
    module.__spec__ = importlib.machinery.ModuleSpec(EXTENSION, None)
    vars(module).update(declared.enums())
    written = {}
    for source in (attention, gemm, kernels, optimizer, quantise):
        written |= {name: value for name, value in vars(source).items() if callable(value)}
    written |= kernels.ACTIVATIONS
    for name in declared.functions():
        if "." not in name:
            setattr(module, name, written.get(name) or _unwritten(name))
    for name in ("CommOverlapCore", "CommOverlapBase", "CommOverlapP2PBase", "CommOverlapHelper", "CommOverlap",
                 "CommOverlapP2P"):  # fmt: skip
        setattr(module, name, type(name, (), {"__init__": _unwritten(name), "__module__": EXTENSION}))
    module.FP8TensorMeta = type("FP8TensorMeta", (), {"__module__": EXTENSION})  # three attributes that its user sets
    module.grouped_mlp_experimental = types.SimpleNamespace(
        swizzle_scales_and_pack_ptrs_for_discrete_weights=_unwritten("grouped_mlp_experimental...discrete_weights")
    )
    return module


def _unwritten(name: str):
    def refuse(*arguments, **settings):
        types_ = [type(value).__name__ for value in arguments] + [f"{k}={type(v).__name__}" for k, v in settings.items()]
        raise NotImplementedError(f"tex.{name}({', '.join(types_)}) is not written in the stand-in")

    refuse.__name__ = name
    refuse.unwritten = True
    return refuse


def _leave_out(name: str) -> None:
    """A module that is imported by name and whose functions serve another purpose (export): any call of them is refused."""

    class Absent(types.ModuleType):
        def __getattr__(self, item: str):
            if item.startswith("__"):
                raise AttributeError(item)
            return _unwritten(f"{name.rsplit('.', 1)[-1]}.{item}")

    module = Absent(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    sys.modules[name] = module
