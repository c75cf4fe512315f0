"""Draws terms on small cards with Pillow's embedded font.

A cell is 28 x 28 pixels, one image token of a tower with patch 14 and merge 2.  The first term of a question is one cell, the
others are two side by side (operator, digit).  Glyphs differ in size, place, rotation, paper, ink and noise.
"""

from __future__ import annotations

import functools

import numpy as np

CELL = 28
GLYPHS = (*"0123456789", "+", "-", "×")
_DRAWN_AS = {"×": "x"}  # the embedded font is ASCII; any other sign comes out as the same empty box
PIXEL_MEAN, PIXEL_STD = 0.85, 0.30  # as in preprocessor_config.json; with .5/.5 perception does not learn


@functools.cache
def _font(size: int):
    from PIL import ImageFont

    return ImageFont.load_default(size=size)


def draw_cell(glyph: str, generator: np.random.Generator) -> np.ndarray:
    """One glyph as ``uint8 [28, 28]``."""
    from PIL import Image, ImageDraw

    size = int(generator.integers(18, 24))
    dx, dy = generator.uniform(-1.5, 1.5, 2)
    angle = generator.uniform(-6, 6)
    paper, ink = generator.uniform(0.7, 1.0), generator.uniform(0.0, 0.3)
    mask = Image.new("L", (CELL, CELL), 0)
    middle = (CELL / 2 + dx, CELL / 2 + dy)
    ImageDraw.Draw(mask).text(middle, _DRAWN_AS.get(glyph, glyph), fill=255, font=_font(size), anchor="mm")
    coverage = np.asarray(mask.rotate(angle, Image.Resampling.BILINEAR), dtype=np.float32) / 255
    pixels = paper + (ink - paper) * coverage + generator.normal(0, 0.03, (CELL, CELL))
    return (np.clip(pixels, 0, 1) * 255).round().astype(np.uint8)


def draw_card(term: str, generator: np.random.Generator):
    """One term (``"7"`` or ``"+7"``) as an RGB ``PIL.Image`` of 28 x 28 or 56 x 28 pixels."""
    from PIL import Image

    cells = [draw_cell(glyph, generator) for glyph in term]
    return Image.fromarray(np.concatenate(cells, axis=1)).convert("RGB")


class CellBank:
    """Prepared cells for training, ``variants`` of each glyph (150 are learned by heart, 1,000 are not)."""

    def __init__(self, variants: int, seed: int):
        import torch

        generator = np.random.default_rng([seed, 1])
        cells = np.stack([draw_cell(glyph, generator) for glyph in GLYPHS for _ in range(variants)])
        gray = (torch.from_numpy(cells).float() / 255 - PIXEL_MEAN) / PIXEL_STD
        patches = gray.view(-1, 2, 14, 2, 14).transpose(2, 3).reshape(-1, 4, 14 * 14)
        self._patches = patches.view(len(GLYPHS), variants, 4, 14 * 14)
        self._row = {glyph: i for i, glyph in enumerate(GLYPHS)}
        self._variants = variants

    def patches(self, glyphs: list[str], generator: np.random.Generator):
        """``pixel_values [4 cells, 1176]`` as Qwen2-VL's image processor makes them: 3 equal channels x 2 equal frames."""
        import torch

        rows = torch.tensor([self._row[glyph] for glyph in glyphs])
        variants = torch.from_numpy(generator.integers(0, self._variants, len(glyphs)))
        return self._patches[rows, variants].flatten(0, 1).repeat(1, 6)
