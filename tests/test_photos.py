from contextlib import suppress
import io
import os

import numpy as np
from PIL import Image, PngImagePlugin
import pytest
from torch.nn import functional

from lit_distill import photos
from lit_distill.photos import as_image, read_image, size_of

GRADIENT = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3


def written(image: Image.Image, kind: str, **options) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP", "JPEG", "PPM", "JPEG2000", "ICO"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_any_format_comes_as_the_mode_that_is_asked_for(kind: str, mode) -> None:
    image = read_image(written(Image.fromarray(GRADIENT).resize((32, 32)), kind), mode)
    assert image.mode == mode
    assert image.size == (32, 32)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "LAB", "HSV"])
def test_every_mode_is_converted(mode: str) -> None:
    image = Image.fromarray(GRADIENT).convert("RGB")
    source = image.convert(mode) if mode != "LAB" else Image.new("LAB", image.size, (100, 0, 0))
    kind = {"CMYK": "TIFF", "LAB": "TIFF", "YCbCr": "TIFF", "HSV": None}.get(mode, "PNG")
    file = written(source, kind) if kind else written(source.convert("RGB"), "PNG")
    assert read_image(file).mode == "RGB"
    assert read_image(file).size == (6, 4)


@pytest.mark.parametrize("value", [0, 257, 128 * 257, 65535])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_become_8(value: int, kind: str) -> None:
    image = Image.fromarray(np.full((3, 5), value, dtype=np.uint16))
    assert np.asarray(read_image(written(image, kind))).tolist() == [[[value // 257] * 3] * 5] * 3


@pytest.mark.parametrize(("value", "expected"), [(0.0, 0), (0.5, 128), (1.0, 255), (200.0, 200)])
def test_floats_are_taken_as_shares_unless_they_are_larger(value: float, expected: int) -> None:
    image = Image.fromarray(np.full((3, 5), value, dtype=np.float32))
    assert read_image(written(image, "TIFF"), "L").getpixel((0, 0)) == expected


@pytest.mark.parametrize(
    ("kind", "largest", "value", "expected"),
    [
        (np.int32, 255, 200, 200),  # 8 bits in a container of 32: not 200 / 257
        (np.int32, 65535, 128 * 257, 128),
        (np.int32, 2**31 - 1, 2**30, 128),
        (np.float32, 1, 0.5, 128),
        (np.float32, 255, 200, 200),
        (np.float32, 256.5, 200, 200),  # resampled somewhere, and not cut off at 255
        (np.float32, 65535, 128 * 257, 128),
        (np.float32, np.nan, 0.5, 128),
        (np.uint16, 255, 200, 1),  # what has 16 bits is of 16 bits: a night is dark
    ],
)
def test_what_32_bits_hold_is_told_by_their_largest_value(
    kind: type, largest: float, value: float, expected: int
) -> None:
    pixels = np.full((3, 5), value, dtype=kind)
    pixels[0, 0] = largest
    image = read_image(written(Image.fromarray(pixels), "TIFF"), "L")
    assert image.getpixel((4, 2)) == expected
    assert as_image(Image.fromarray(pixels), "L").getpixel((4, 2)) == expected


def test_what_is_transparent_lies_on_white() -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    assert np.asarray(read_image(written(image, "PNG"))).tolist() == [[[255, 255, 255], [10, 20, 30]]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    file = written(palette, "PNG", transparency=0)
    assert np.asarray(read_image(file)).tolist() == [[[255, 255, 255], [200, 100, 50]]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shrink", [None, 8])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_cameras_turn_is_made(orientation: int, shrink: int | None, kind: str) -> None:
    upright = Image.new("L", (32, 16))
    upright.paste(255, (0, 0, 16, 8))  # the upper left quarter
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = read_image(written(stored, kind, exif=exif), "L", shrink)
    assert image.size == ((32, 16) if shrink is None else (16, 8))
    pixels = np.asarray(image)
    height, width = pixels.shape
    assert pixels[: height // 2 - 1, : width // 2 - 1].mean() > 240
    assert pixels[height // 2 + 1 :].mean() < 15
    assert pixels[:, width // 2 + 1 :].mean() < 15


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    ("size", "shrink", "expected"),
    [
        ((400, 300), 150, (200, 150)),
        ((300, 400), 150, (150, 200)),
        ((100, 80), 150, (100, 80)),
        ((900, 10), 5, (450, 5)),
    ],
)
def test_a_longer_shorter_side_is_shrunk(kind: str, size, shrink: int, expected) -> None:
    # A ramp stays a ramp: shrunk while decoding, an image differs little from one that is resized afterwards.
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, size[0], dtype=np.uint8), (size[1], 1)))
    file = written(ramp, kind)
    image = read_image(file, "L", shrink)
    assert image.size == expected
    after = read_image(file, "L").resize(expected, Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(image).astype(int) - np.asarray(after)).max() <= 6


def test_a_large_jpeg_is_shrunk_while_it_is_decoded(monkeypatch) -> None:
    file = written(Image.new("RGB", (4000, 3000)), "JPEG")
    loaded = []
    original = functional.interpolate

    def interpolate(pixels, *args, **kwargs):
        loaded.append(tuple(pixels.shape[2:]))
        return original(pixels, *args, **kwargs)

    monkeypatch.setattr(functional, "interpolate", interpolate)
    assert read_image(file, shrink=448).size == (597, 448)
    assert loaded == [(1500, 2000)]  # at least twice as large as it will be


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(333, 250), (250, 1001), (64, 7), (90, 64)])
def test_a_photo_is_shrunk_as_pillow_does_it_but_for_a_grey_level(mode, size: tuple[int, int]) -> None:
    # Without black and white: where the first pass cuts off, the order of the passes matters.
    noise = np.random.default_rng(size[0]).integers(64, 192, (*size[::-1], 3), dtype=np.uint8)
    file = written(Image.fromarray(noise), "PNG")
    image = read_image(file, mode, shrink=min(size) * 3 // 5)
    pillow = read_image(file, mode).resize(image.size, Image.Resampling.BICUBIC)
    levels = np.abs(np.asarray(image).astype(int) - np.asarray(pillow))
    assert image.mode == mode
    assert levels.max() <= 1


@pytest.mark.parametrize("size", [(640, 480), (641, 481), (643, 487)])
def test_halving_while_decoding_moves_nothing(size: tuple[int, int]) -> None:
    """Of an odd side the last half pixel is no part of the photo; counted in, it changes pixels by 4 levels."""
    tiles = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    photo = Image.fromarray(tiles).resize(size, Image.Resampling.BICUBIC)
    file = written(photo, "JPEG", quality=95)
    image = read_image(file, shrink=120)
    whole = read_image(file).resize(image.size, Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(image).astype(int) - np.asarray(whole)).mean() < 0.6


def detailed(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    width, height = size
    coarse = np.random.default_rng(width).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    ("stored", "size", "options"),
    [
        ("RGB", (203, 151), {"subsampling": "4:4:4"}),
        ("RGB", (203, 151), {"subsampling": "4:2:2"}),
        ("RGB", (203, 151), {"subsampling": "4:2:0"}),
        ("RGB", (203, 151), {"subsampling": "4:2:0", "progressive": True}),
        ("RGB", (203, 151), {"keep_rgb": True}),
        ("RGB", (203, 151), {"restart_marker_blocks": 3}),
        ("RGB", (203, 151), {"exif": turned(6)}),
        ("L", (203, 151), {}),
        ("CMYK", (203, 151), {}),
        ("RGB", (1, 1), {}),
        ("RGB", (1, 700), {}),
        ("RGB", (17, 5), {}),
        ("RGB", (640, 480), {}),  # halved while it is decoded
        ("RGB", (3001, 2001), {}),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else str(value),
)
def test_simplejpeg_changes_no_pixel(stored: str, size: tuple[int, int], options, mode, monkeypatch) -> None:
    pytest.importorskip("simplejpeg")
    file = written(detailed(size, stored), "JPEG", quality=90, **options)
    shrinks = [max(1, min(size) * 2 // 3), max(1, min(size) // 4), 1, None]
    images = [read_image(file, mode, shrink) for shrink in shrinks]
    monkeypatch.setattr(photos, "_decode_jpeg", None)
    for image, shrink in zip(images, shrinks, strict=True):
        pillow = read_image(file, mode, shrink)
        assert image.mode == pillow.mode
        assert image.size == pillow.size
        assert image.tobytes() == pillow.tobytes()


def test_simplejpeg_decodes_what_is_shrunk_and_pillow_decides_on_damage(monkeypatch) -> None:
    pytest.importorskip("simplejpeg")
    whole = written(detailed((300, 200)), "JPEG").getvalue()
    decoded, original = [], photos._decode_jpeg

    def decode(content: bytes):
        pixels = original(content)
        decoded.append(pixels.shape)
        return pixels

    monkeypatch.setattr(photos, "_decode_jpeg", decode)
    read_image(io.BytesIO(whole))
    assert decoded == []
    read_image(io.BytesIO(whole), shrink=150)
    assert decoded == [(200, 300, 3)]

    def outcome(content: bytes) -> object:
        try:
            return read_image(io.BytesIO(content), shrink=150).tobytes()
        except OSError as error:
            return str(error)

    damaged = [whole[: len(whole) // 2], whole[:-2], whole + b"more"]
    for place in range(700, len(whole), len(whole) // 30):
        damaged.append(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
    ours = [outcome(content) for content in damaged]
    monkeypatch.setattr(photos, "_decode_jpeg", None)
    assert ours == [outcome(content) for content in damaged]
    assert isinstance(ours[0], str)


def test_damaged_files_are_os_errors_and_say_nothing_else(capfd) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        whole = written(noise, kind).getvalue()
        for end in (0, 3, 30, len(whole) // 2):
            with pytest.raises(OSError, match=r".+"):
                read_image(io.BytesIO(whole[:end]))
        damaged = bytearray(whole)
        for place in range(0, len(damaged), max(1, len(damaged) // 60)):
            damaged[place] ^= 0xFF
            with suppress(OSError):
                read_image(io.BytesIO(bytes(damaged)))
    with pytest.raises(OSError, match=r"cannot identify image file"):
        read_image(io.BytesIO(b"no image at all"))
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_or_a_device_is_no_photo_and_is_not_waited_for(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero", tmp_path):
        with pytest.raises(OSError, match=r"it is no file|directory"):
            read_image(path)
        with pytest.raises(OSError, match=r"it is no file|directory"):
            size_of(path)


def test_the_size_is_told_without_the_pixels_and_of_damaged_files_an_os_error(monkeypatch) -> None:
    file = written(Image.fromarray(GRADIENT), "PNG")
    assert size_of(io.BytesIO(file.getvalue()[:-20])) == (6, 4)
    for content in (b"", b"no image", file.getvalue()[:20]):
        with pytest.raises(OSError, match=r".+"):
            size_of(io.BytesIO(content))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(OSError, match="decompression bomb"):
        size_of(file)


def test_photos_of_an_iphone_are_read_where_pillow_heif_is_installed(tmp_path) -> None:
    pytest.importorskip("pillow_heif")
    Image.new("RGB", (64, 48), (200, 100, 50)).save(tmp_path / "a.heic")
    image = read_image(tmp_path / "a.heic")
    assert image.size == (64, 48)
    assert np.abs(np.asarray(image).mean((0, 1)) - [200, 100, 50]).max() < 4


def test_without_it_what_reads_them_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(photos, "photo_suffixes", lambda: frozenset({".jpg"}))
    for name in ("a.HEIC", "a.jpg"):
        (tmp_path / name).write_bytes(b"no image that is known")
        with pytest.raises(ValueError, match=r"cannot identify image file") as error:
            as_image(tmp_path / name)
        assert ("pip install 'lit-distill[heif]'" in str(error.value)) == name.endswith("HEIC")


@pytest.mark.parametrize("what", ["text", "profile"])
def test_more_than_a_megabyte_of_metadata_makes_no_photo_unreadable(what: str) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * 3_000_000, zip=True)
    options = {"pnginfo": text} if what == "text" else {"icc_profile": bytes(3_000_000)}
    file = written(Image.fromarray(GRADIENT), "PNG", **options)
    assert np.array_equal(np.asarray(read_image(file)), GRADIENT)
    assert size_of(file) == (6, 4)


def test_text_without_end_is_refused() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("bomb", "x" * 70_000_000, zip=True)
    with pytest.raises(OSError, match="too large"):
        read_image(written(Image.fromarray(GRADIENT), "PNG", pnginfo=text))


def test_a_bomb_of_pixels_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(OSError, match=r"decompression bomb"):
        read_image(written(Image.new("L", (15, 15)), "PNG"))
    assert read_image(written(Image.new("L", (12, 12)), "PNG")).size == (12, 12)  # a warning of Pillow's, no bomb


def test_a_suffix_that_lies_is_no_matter(tmp_path) -> None:
    image = Image.fromarray(GRADIENT)
    for suffix in (".jpg", ".xyz", "", ".pdf"):
        image.save(tmp_path / f"image{suffix}", "PNG")
        assert np.array_equal(np.asarray(read_image(tmp_path / f"image{suffix}")), GRADIENT)
        with (tmp_path / f"image{suffix}").open("rb") as file:
            assert np.array_equal(np.asarray(read_image(file, name="a.gif")), GRADIENT)
