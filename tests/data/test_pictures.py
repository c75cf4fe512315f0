"""A picture is opened as a person would see it, or refused with a reason; what was decoded has a name."""

import io

import numpy as np
import pytest
from PIL import Image

from vold_nemo.data.pictures import MOST_PIXELS, PictureError, frames, open_picture, pixels_digest
from vold_nemo.rollout.images import open_image

WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def square(mode):
    """A black square on nothing, in a mode that knows transparency."""
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[2:6, 2:6, 3] = 255
    if mode in ("P", "PA"):
        image = Image.fromarray((pixels[..., 3] == 255).astype(np.uint8), "P")
        image.putpalette([9, 9, 9, 0, 0, 0])
        if mode == "PA":
            image.putalpha(Image.fromarray(pixels[..., 3]))
        return image
    return Image.fromarray(pixels if mode == "RGBA" else pixels[..., [0, 3]]).convert(mode)


def framed(kind, grey):
    return Image.fromarray(np.pad(np.zeros((4, 4), kind), 2, constant_values=grey))


CLEAR = {
    "RGBA": encoded(square("RGBA")), "RGBA webp": encoded(square("RGBA"), "WEBP", lossless=True),
    "LA": encoded(square("LA")), "PA": encoded(square("PA"), "TIFF"), "P": encoded(square("P"), transparency=0),
    "P with an alpha for each colour": encoded(square("P"), transparency=b"\x00\xff"),
    "GIF": encoded(square("P"), "GIF", transparency=0),
    "a colour of RGB": encoded(framed(np.uint8, 7).convert("RGB"), transparency=(7, 7, 7)),
    "a grey of L": encoded(framed(np.uint8, 7), transparency=7),
    "a grey of sixteen bits": encoded(framed(np.uint16, 700), transparency=700),
}  # fmt: skip


@pytest.mark.parametrize("kind", CLEAR)
def test_what_is_transparent_is_white(kind):
    seen = open_picture(CLEAR[kind])
    assert (seen.mode, seen.getpixel((0, 0)), seen.getpixel((3, 3))) == ("RGB", WHITE, BLACK)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_a_picture_stands_as_its_camera_was_held(kind):
    image = Image.new("RGB", (8, 16), "white")
    image.paste("red", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: the top of the file is the right of what was seen
    seen = open_picture(encoded(image, kind, exif=exif))
    assert seen.size == (16, 8)
    assert seen.getpixel((13, 4))[1] < 60 < 200 < seen.getpixel((2, 4))[1]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_grey_of_sixteen_bits_keeps_its_ramp(kind):
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (4, 1))
    seen = np.asarray(open_picture(encoded(Image.fromarray(ramp), kind)))
    np.testing.assert_array_equal(seen[0, :, 0], np.rint(ramp[0] / 257))
    dark = np.tile(np.linspace(0, 4000, 64).astype(np.uint16), (4, 1))
    assert np.asarray(open_picture(encoded(Image.fromarray(dark), kind))).max() == 16


@pytest.mark.parametrize("white", [1, 255, 65535])
def test_floats_are_scaled_by_the_range_that_holds_them(white):
    ramp = np.tile(np.linspace(0, white, 64).astype(np.float32), (4, 1))
    seen = np.asarray(open_picture(encoded(Image.fromarray(ramp), "TIFF")))
    np.testing.assert_array_equal(seen[0, :, 0], np.rint(ramp[0] * (255 / white)))


def test_colours_of_print_and_plain_pictures_are_those_of_pillow():
    for mode in ("1", "L", "RGB", "CMYK", "YCbCr"):
        image = Image.linear_gradient("L").resize((32, 32)).convert("RGB").convert(mode)
        for source in (encoded(image, "TIFF"), image):
            np.testing.assert_array_equal(np.asarray(open_picture(source)), np.asarray(image.convert("RGB")))


def test_of_several_frames_the_first_is_seen():
    pages = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "PNG", "TIFF", "WEBP"):
        file = encoded(pages[0], kind, save_all=True, append_images=pages[1:])
        red, _, blue = open_picture(file).getpixel((1, 1))
        assert red > 200 > 50 > blue, kind
        assert frames(file) == 2
    assert frames(encoded(pages[0], "JPEG")) == 1


def chunk_bomb():
    """A PNG of few bytes whose header promises 169 million pixels."""
    file = bytearray(encoded(Image.new("1", (8, 8))))
    file[16:24] = (13_000).to_bytes(4, "big") * 2
    import zlib

    file[29:33] = zlib.crc32(file[12:29]).to_bytes(4, "big")
    return bytes(file)


BAD = {
    "cannot be read": [b"", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\x89PNG\r\n\x1a\n", b"<svg/>"],
    "does not decode": [encoded(Image.effect_noise((64, 64), 9))[:900], encoded(Image.effect_noise((64, 64), 9), "JPEG")[:700]],
    "more than 89,478,485 pixels": [chunk_bomb(), encoded(Image.new("1", (13_600, 13_600)))],
    "200 times": [encoded(Image.new("1", (201, 1))), encoded(Image.new("1", (2, 900)), "BMP")],
    "not finite": [encoded(Image.fromarray(np.full((4, 4), value, np.float32)), "TIFF") for value in (np.nan, -1, 1e9)],
    "32 bits": [encoded(Image.fromarray(np.full((4, 4), 7, np.int32)), "TIFF")],
    "file not found": ["nowhere.png"],
}  # fmt: skip


@pytest.mark.parametrize("reason", BAD)
def test_what_is_no_picture_says_why(reason):
    for source in BAD[reason]:
        with pytest.raises(PictureError, match=reason):
            open_picture(source)
    assert MOST_PIXELS < 13_000**2


@pytest.mark.long  # transformers is imported
def test_the_longest_picture_is_the_longest_that_the_processor_takes():
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    open_picture(encoded(Image.new("RGB", (400, 2))))
    smart_resize(2, 400)
    with pytest.raises(ValueError, match="aspect ratio"):
        smart_resize(2, 401)
    with pytest.raises(PictureError):
        open_picture(encoded(Image.new("RGB", (401, 2))))


def test_pixels_have_a_name_that_size_and_content_decide():
    image = Image.effect_noise((16, 8), 40).convert("RGB")
    assert pixels_digest(image) == pixels_digest(open_picture(encoded(image))) == pixels_digest(open_image(image))
    assert len({pixels_digest(one) for one in (image, image.resize((8, 16)), image.transpose(Image.Transpose.ROTATE_180))}) == 3
