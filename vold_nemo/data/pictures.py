"""A picture as a person would see it: one function opens it for prompts, validation, evaluation, benchmarks and engines.

    formats         :data:`FORMATS` and no other: what Pillow would hand to another program (EPS to Ghostscript) is not asked
    transparency    on white: RGBA, LA, PA, palettes and colours that a file calls transparent
    orientation     as the camera noted it (EXIF, XMP)
    16-bit grey     0..65535 becomes 0..255; Pillow's ``convert`` would cut it off at 255
    float           0..1, 0..255 or 0..65535, whichever is the first that holds every value
    several frames  the first

The limits are those of the processor of Qwen2.5-VL and Qwen3-VL (aspect ratio) and of Pillow's own warning (pixels).  They are
looked at before a pixel is decoded.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # JPEG: also the MPO of phones; PPM: also PGM, PBM, PFM
MOST_PIXELS = 89_478_485  # Image.MAX_IMAGE_PIXELS: 256 MB as RGB
MOST_RATIO = 200  # longer to shorter side: transformers' smart_resize (qwen2_vl) refuses more

OPENED = "upright, on white, scaled"  # the rules above in a word: what was answered under others is asked again


class PictureError(ValueError):
    """Why there is no picture, in a few words: the reason of a rejected row."""


def open_picture(source: str | Path | bytes | Image.Image) -> Image.Image:
    """A path or encoded bytes as an RGB ``PIL.Image``, decoded whole, upright and on white.

    Raises:
        PictureError: not found, another format, beyond the limits, cut off, or values without a meaning as a picture.
    """
    from PIL import Image

    if isinstance(source, Image.Image):
        return _seen(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes below our limit, and of metadata that no pixel hangs on
        try:
            opened = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
        except FileNotFoundError:
            raise PictureError("file not found") from None
        except Image.DecompressionBombError:
            raise PictureError(f"more than {MOST_PIXELS:,} pixels") from None
        except Exception:  # a header that was damaged: plugins raise OSError, ValueError, SyntaxError, struct.error, ...
            raise PictureError("cannot be read") from None
        with opened:
            require_limits(*opened.size)
            try:
                opened.load()  # a file that was cut off has a good header
            except Exception:  # decoders raise what they like, too
                raise PictureError("does not decode") from None
            return _seen(opened)


def require_limits(width: int, height: int) -> None:
    """PictureError for a picture that the image processor would refuse, or that would fill the memory."""
    if width < 1 or height < 1:
        raise PictureError("no pixels")
    if width * height > MOST_PIXELS:
        raise PictureError(f"more than {MOST_PIXELS:,} pixels")
    if max(width, height) > MOST_RATIO * min(width, height):
        raise PictureError(f"one side is more than {MOST_RATIO} times the other")


def frames(source: str | Path | bytes) -> int:
    """How many pictures a file that :func:`open_picture` opens holds; the second one of a phone's JPEG is no frame."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as opened:
            try:
                return 1 if opened.format == "MPO" else getattr(opened, "n_frames", 1)
            except Exception:  # a second frame that was damaged
                return 1


def pixels_digest(image: Image.Image) -> str:
    """16 hex digits of an RGB picture's size and pixels: machines whose decoders differ write different ones."""
    digest = hashlib.blake2b(f"{image.width} {image.height} ".encode(), digest_size=8)
    digest.update(image.tobytes())
    return digest.hexdigest()


def _seen(image: Image.Image) -> Image.Image:
    """RGB, upright and on white."""
    from PIL import Image, ImageOps

    try:
        turned = ImageOps.exif_transpose(image)
    except Exception:  # damaged metadata: nothing says that the picture is not upright
        turned = image
    try:
        if turned.mode.startswith(("I", "F")):
            turned = _scaled(turned, image.format)
        if turned.has_transparency_data:
            clear = turned.convert("RGBA")
            turned = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
        return turned.convert("RGB")
    except ValueError as error:
        if isinstance(error, PictureError):
            raise
        raise PictureError(f"colours of mode {turned.mode} cannot be shown") from None


def _scaled(image: Image.Image, written: str | None) -> Image.Image:
    """Grey of more than eight bits, from a file of format ``written``, as mode L, or LA where it calls a grey transparent."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image)
    if image.mode == "I" and written not in ("PNG", "PPM", None):  # of TIFF: nothing says which number is white
        raise PictureError("whole numbers of 32 bits, of which none is said to be white")
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 65535:
        raise PictureError("values that are negative, not finite or beyond 65535")
    white = 65535.0
    if image.mode == "F":
        white = next(white for white in (1.0, 255.0, 65535.0) if values.max() <= white)
    grey = Image.fromarray(np.rint(values * (255.0 / white)).astype(np.uint8))
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey
