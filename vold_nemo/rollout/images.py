"""Images for Qwen2.5-VL and Qwen3-VL: pixels to patches; a placeholder id becomes as many ids as there are merged patches."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vold_nemo.config import ConfigError
from vold_nemo.data.pictures import PictureError, open_picture
from vold_nemo.rollout.engine import EnginePrompt

if TYPE_CHECKING:
    from PIL import Image

_PROCESSORS = tuple(f"Qwen2VLImageProcessor{suffix}" for suffix in ("", "Fast", "Pil"))


@dataclass
class PreparedPrompt:
    """A prompt as the model reads it; ``pixels`` [patches, 3·2·side²] and ``grids`` [images, 3] are None without images."""

    ids: list[int]
    pixels: Tensor | None = None
    grids: Tensor | None = None


def open_image(source: Any) -> Image.Image:
    """A path, encoded bytes, a parquet ``{"bytes", "path"}`` or a PIL image -> RGB PIL image, as ``data/pictures.py`` sees it.

    Raises:
        ConfigError: what is no picture there.  Prompts that were loaded by this project have none such.
    """
    if isinstance(source, dict):
        source = source.get("bytes") or source.get("path")
    try:
        return open_picture(source)
    except (PictureError, AttributeError, TypeError) as error:  # the latter two: neither a path nor bytes
        raise ConfigError(
            "image",
            source if isinstance(source, str) else type(source).__name__,
            "a readable image file",
            f"repair or remove the row ({error})",
        ) from error


def widening_of(path: str | Path, placeholder: int) -> Callable[[Iterable[tuple[int, int]]], int]:
    """:meth:`ImagePreparer.widening` of the checkpoint at ``path``, whose image settings are read at the first image."""
    made: list[ImagePreparer] = []

    def widening(sizes: Iterable[tuple[int, int]]) -> int:
        if not made:
            made.append(ImagePreparer(path, placeholder))
        return made[0].widening(sizes)

    return widening


class ImagePreparer:
    """The checkpoint's own preprocessing (``preprocessor_config.json``), on PIL: torchvision is not needed.

    The PIL processor is named outright, since ``AutoImageProcessor`` takes the torchvision one where that is installed and
    the two resize differently: the same checkpoint would see other pixels on another machine.
    """

    def __init__(self, path: str | Path, placeholder: int):
        from transformers import Qwen2VLImageProcessorPil

        file = Path(path) / "preprocessor_config.json"
        if not file.is_file():
            raise ConfigError(
                str(file),
                "missing",
                "the image settings of the checkpoint",
                "copy preprocessor_config.json from the source checkpoint (export_hf does)",
            )
        kind = json.loads(file.read_text()).get("image_processor_type")
        if kind not in _PROCESSORS:
            raise ConfigError(
                f"{file}: image_processor_type", kind, " | ".join(_PROCESSORS), "use a Qwen2.5-VL or Qwen3-VL checkpoint"
            )
        self._processor = Qwen2VLImageProcessorPil.from_pretrained(str(path))
        self._placeholder = placeholder
        self._merge = self._processor.merge_size**2

    def __call__(self, prompt: EnginePrompt) -> PreparedPrompt:
        """Widen each placeholder to t·h·w / merge² ids.  ConfigError unless there is one placeholder an image."""
        images = self.open(prompt)
        if not images:
            return PreparedPrompt(prompt.ids)
        features = self._processor(images=images, return_tensors="pt")
        widths = iter((features["image_grid_thw"].prod(-1) // self._merge).tolist())
        ids: list[int] = []
        for token in prompt.ids:
            ids.extend([token] * next(widths) if token == self._placeholder else [token])
        return PreparedPrompt(ids, features["pixel_values"], features["image_grid_thw"])

    def open(self, prompt: EnginePrompt) -> list:
        """The prompt's images as PIL images.  ConfigError unless there is one for each placeholder."""
        found = prompt.ids.count(self._placeholder)
        if found != len(prompt.images):
            raise ConfigError(
                "prompt images",
                len(prompt.images),
                f"{found}, one for each image placeholder in the prompt",
                "give one {'type': 'image'} part of the message for each image",
            )
        return [open_image(image) for image in prompt.images]

    def length(self, prompt: EnginePrompt, images: list) -> int:
        """Tokens of the prompt with every placeholder widened, without touching a pixel."""
        return len(prompt.ids) + self.widening((image.width, image.height) for image in images)

    def widening(self, sizes: Iterable[tuple[int, int]]) -> int:
        """Tokens that images of these (width, height) add to their placeholders."""
        patches = (self._processor.get_number_of_image_patches(height, width) for width, height in sizes)
        return sum(count // self._merge - 1 for count in patches)
