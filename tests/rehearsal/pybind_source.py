"""What Transformer Engine's C++ sources declare to Python: functions with argument names, and enumerators with values.

Read from the source distribution of ``transformer_engine_torch`` (``csrc/extensions/pybind.cpp``, ``csrc/extensions.h`` and
the headers that it carries along).  Run as a script with that folder it prints the table of
:mod:`vold_nemo.rehearsal.engine.declared`.
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

# Bound to a function of the common library, whose parameter names are found in its own header.
HEADERS = (
    "csrc/extensions.h",
    "common_headers/common/include/transformer_engine/gemm.h",
    "common_headers/common/include/transformer_engine/multi_stream.h",
    "common_headers/common/util/pybind_helper.h",
)


def declared_functions(sources: Path) -> dict[str, str]:
    """``{name: "first, second=, *, third"}``: a name with ``=`` has a default, those after ``*`` are by keyword."""
    pybind = _without_comments((sources / "csrc/extensions/pybind.cpp").read_text())
    pybind = re.sub(r"#ifdef NVTE_WITH_NCCL_EP.*?#endif", "", pybind, flags=re.S)
    helper = _without_comments((sources / "common_headers/common/util/pybind_helper.h").read_text())
    text = pybind + re.sub(r"\\\n", "\n", helper)
    headers = "\n".join(_without_comments((sources / name).read_text()) for name in HEADERS)
    found = {}
    for start in re.finditer(r"\b(m|grouped_mlp_experimental)\.def\(", text):
        body = _until_closed(text, start.end())
        name, rest = re.match(r'\s*"(\w+)"\s*,(.*)', body, flags=re.S).groups()
        arguments = [
            _argument(kind, value, default)
            for kind, value, default in re.findall(r'py::(arg|kw_only)\((?:"(\w+)")?\)(\s*=)?', rest)
        ]
        if not arguments:
            target = re.match(r"\s*&?([\w:]+)", rest)
            arguments = _parameters(headers, target[1].split("::")[-1]) if target else []
        prefix = "" if start[1] == "m" else start[1] + "."
        found[prefix + name] = ", ".join(arguments)
    return found


def declared_enums(sources: Path) -> dict[str, dict[str, int]]:
    """``{enum: {enumerator: value}}`` of every enum that the extension hands to Python."""
    helper = _without_comments((sources / "common_headers/common/util/pybind_helper.h").read_text())
    pybind = _without_comments((sources / "csrc/extensions/pybind.cpp").read_text())
    text = re.sub(r"\\\n", "\n", helper) + pybind
    values: dict[str, dict[str, int]] = {}
    include = sources / "common_headers/common/include/transformer_engine"
    for path in [*sorted(include.glob("*.h")), sources / "csrc/common.h"]:
        for name, enumerators in _enums(_without_comments(path.read_text())).items():
            values.setdefault(name, enumerators)
    found = {}
    for start in re.finditer(r"enum_<([\w:]+)>\s*\(\s*m,\s*\"(\w+)\"", text):
        body = text[start.end() : text.index(";", start.end())]
        source = values[start[1].split("::")[-1]]
        found[start[2]] = {name: source[of.split("::")[-1]] for name, of in re.findall(r'\.value\("(\w+)",\s*([\w:]+)', body)}
    return found


def _enums(text: str) -> dict[str, dict[str, int]]:
    found = {}
    for name, body, alias in re.findall(r"enum(?:\s+class)?\s*(\w*)\s*\{([^}]*)\}\s*(\w*)\s*;", text):
        number, enumerators = -1, {}
        for item in filter(None, (part.strip() for part in body.split(","))):
            label, _, value = (part.strip() for part in item.partition("="))
            number = enumerators[value] if value in enumerators else _number(value, number)
            enumerators[label] = number
        found[name or alias] = enumerators
    return found


def _number(value: str, last: int) -> int | None:
    if not value:
        return None if last is None else last + 1
    return int(value) if re.fullmatch(r"-?\d+", value) else _DTYPES.get(value.split("::")[-1])


# ``enum class DType`` names the C enumerators of NVTEDType one by one (transformer_engine.h).
_DTYPES = {
    name: number
    for number, name in enumerate(
        ["kNVTEByte", "kNVTEInt16", "kNVTEInt32", "kNVTEInt64", "kNVTEFloat32", "kNVTEFloat16", "kNVTEBFloat16",
         "kNVTEFloat8E4M3", "kNVTEFloat8E5M2", "kNVTEFloat8E8M0", "kNVTEFloat4E2M1", "kNVTENumTypes"]
    )
}  # fmt: skip


def _without_comments(text: str) -> str:
    return re.sub(r"//[^\n]*", "", re.sub(r"/\*.*?\*/", "", text, flags=re.S))


def _until_closed(text: str, start: int) -> str:
    depth = 1
    for end in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[end], 0)
        if not depth:
            return text[start:end]
    raise ValueError("unbalanced brackets")


def _argument(kind: str, name: str, default: str) -> str:
    return "*" if kind == "kw_only" else name + ("=" if default else "")


def _parameters(headers: str, function: str) -> list[str]:
    found = re.search(rf"\b{function}\s*\(", headers)
    if not found:
        return []
    depth, part, parts = 0, "", []
    for letter in _until_closed(headers, found.end()):
        depth += {"<": 1, "(": 1, ">": -1, ")": -1}.get(letter, 0)
        if letter == "," and not depth:
            parts.append(part)
            part = ""
        else:
            part += letter
    parts.append(part)
    return [re.search(r"(\w+)\s*(?:=.*)?$", part.strip())[1] for part in parts if part.strip() and part.strip() != "void"]


def module_text(sources: Path) -> str:
    """The tables of :mod:`vold_nemo.rehearsal.engine.declared`, as they stand there."""
    functions = []
    for name, arguments in sorted(declared_functions(sources).items()):
        functions += textwrap.wrap(f"{name}({arguments})", 116, subsequent_indent="    ", break_long_words=False)
    lines = ['FUNCTIONS = """', *functions, '"""', "", "ENUMS = {"]
    for name, values in declared_enums(sources).items():
        lines.append(f'    "{name}": """')
        lines += textwrap.wrap(" ".join(f"{key}={value}" for key, value in values.items()), 108,
                               initial_indent=" " * 8, subsequent_indent=" " * 8)  # fmt: skip
        lines.append('    """,')
    return "\n".join([*lines, "}", ""])


if __name__ == "__main__":
    print(module_text(Path(sys.argv[1])), end="")
