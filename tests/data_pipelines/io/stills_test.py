"""Pictures that lie on their side, counts of sensors, and files that only seem to be pictures."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import simplejpeg
import video_files
from PIL import Image, ImageOps

from data_pipelines import schema
from data_pipelines.datasets import folder
from data_pipelines.errors import InputError
from data_pipelines.io import frames, stills

ORIENTATION = 0x0112  # the tag in EXIF data


def tracklet(*names):
    return schema.Tracklet(schema.INFRARED, "alice", 1, names, 1)


def painted():
    """Returns a picture with another color in each corner, higher than wide."""
    image = np.full((40, 24, 3), 90, np.uint8)
    image[:16, :8], image[:16, 16:] = (220, 30, 30), (30, 200, 30)
    image[24:, :8], image[24:, 16:] = (30, 30, 220), (220, 220, 30)
    return Image.fromarray(image)


def encoded(image, form, orientation=None, **options):
    exif = Image.Exif()
    if orientation is not None:
        exif[ORIENTATION] = orientation
        exif[0x010F] = "a camera"  # another tag, before it
    file = io.BytesIO()
    image.save(file, form, exif=exif, **options)
    return file.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_viewers_turn_them(tmp_path, orientation, form):
    content = encoded(painted(), form, orientation, quality=95)
    with Image.open(io.BytesIO(content)) as stored:
        assert stored.getexif()[ORIENTATION] == orientation
        expected = np.asarray(ImageOps.exif_transpose(stored))
    (tmp_path / "1.jpg").write_bytes(content)
    (found,) = frames.read_images(tmp_path, tracklet("1.jpg"))
    np.testing.assert_array_equal(found, expected)
    packed = frames.read_frames(tmp_path, tracklet("1.jpg"))
    assert (packed.heights[0], packed.widths[0]) == expected.shape[:2]
    assert expected.shape[:2] == ((40, 24) if orientation <= 4 else (24, 40))
    stored = simplejpeg.decode_jpeg(packed.jpegs[0])
    assert np.abs(stored.astype(int) - expected).mean() < 4
    assert (packed.jpegs[0] == content) == (form == "JPEG" and orientation == 1)


def exif_segment(order, *entries):
    tiff = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, len(entries))
    tiff += b"".join(struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in entries)
    body = b"Exif\0\0" + tiff
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


@pytest.mark.parametrize("order", ["<", ">"])
def test_either_byte_order_of_exif_data_is_read(order):
    plain = encoded(painted(), "JPEG")
    turned = plain[:2] + b"\xff\xff" + exif_segment(order, (0x0100, 7), (ORIENTATION, 6))[1:]
    jpeg, pixels = stills.decode(turned + plain[2:], "1.jpg")
    assert jpeg is None
    np.testing.assert_array_equal(pixels, np.rot90(simplejpeg.decode_jpeg(plain), -1))


@pytest.mark.parametrize("value", [0, 1, 9, 65535])
def test_a_jpeg_with_no_orientation_that_means_anything_is_kept(value):
    plain = encoded(painted(), "JPEG")
    content = plain[:2] + exif_segment("<", (ORIENTATION, value)) + plain[2:]
    assert stills.decode(content, "1.jpg")[0] == content
    assert stills.decode(plain, "1.jpg")[0] == plain


def test_damaged_exif_data_is_passed_over():
    plain = encoded(painted(), "JPEG")
    segment = exif_segment(">", (ORIENTATION, 1))
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(segment)
        for place in rng.integers(4, len(segment), 4):  # behind the length
            damaged[place] = rng.integers(256)
        assert stills.decode(plain[:2] + damaged + plain[2:], "1.jpg")[1].size == 40 * 24 * 3
    for end in range(4, len(segment)):
        cut = segment[:2] + struct.pack(">H", end - 2) + segment[4:end]
        assert stills.decode(plain[:2] + cut + plain[2:], "1.jpg")[0] is not None


def png16(kind, rows):
    """Returns a PNG of 16 bits: kind 0 is gray, 4 gray with transparency, 2 RGB."""
    rows = np.asarray(rows, ">u2")

    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    channels = {0: 1, 4: 2, 2: 3}[kind]
    header = struct.pack(">IIBBBBB", rows.shape[1] // channels, len(rows), 16, kind, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows), 1)
    parts = [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def test_counts_of_a_sensor_are_scaled_over_their_tracklet(tmp_path):
    """By hand: 7400 of the first frame becomes 0, 7800 of the last 255, and 7600 the middle."""
    counts = {"1.png": [[7400, 7500]], "2.png": [[7600, 7600]], "3.png": [[7700, 7800]]}
    for name, rows in counts.items():
        (tmp_path / name).write_bytes(png16(0, rows))
    whole = tracklet(*counts)
    expected = {"1.png": [0, 64], "2.png": [128, 128], "3.png": [191, 255]}
    images = frames.read_images(tmp_path, whole)
    for image, grays in zip(images, expected.values(), strict=True):
        assert image.dtype == np.uint8 and image.shape == (1, 2, 3)
        np.testing.assert_array_equal(image[0], np.repeat(grays, 3).reshape(2, 3))
    (alone,) = frames.read_images(tmp_path, whole, ["2.png"])  # the scale is that of the tracklet
    np.testing.assert_array_equal(alone, images[1])
    packed = frames.read_frames(tmp_path, whole)
    for jpeg, image in zip(packed.jpegs, images, strict=True):
        assert np.abs(simplejpeg.decode_jpeg(jpeg).astype(int) - image).max() <= 2


def test_a_tracklet_may_mix_counts_and_ordinary_pictures(tmp_path):
    (tmp_path / "1.png").write_bytes(png16(4, [[300, 65535, 400, 0]]))  # with transparency
    video_files.write_image(tmp_path / "2.png", np.full((8, 6), 90, np.uint8))
    (tmp_path / "3.png").write_bytes(png16(2, [[65535, 25700, 257]]))
    (tmp_path / "4.png").write_bytes(png16(0, [[500, 500]]))
    first, gray, color, last = frames.read_images(
        tmp_path, tracklet("1.png", "2.png", "3.png", "4.png")
    )
    assert first[0, :, 0].tolist() == [0, 128] and last[0, :, 0].tolist() == [255, 255]
    assert gray[0, 0].tolist() == [90] * 3 and color[0, 0].tolist() == [255, 100, 1]


def test_counts_that_are_all_equal_are_black(tmp_path):
    (tmp_path / "1.png").write_bytes(png16(0, [[7400, 7400]]))
    (image,) = frames.read_images(tmp_path, tracklet("1.png"))
    assert not image.any()


def test_counts_are_scaled_with_a_frame_at_a_time_in_memory(tmp_path):
    rows = np.arange(200_000).reshape(400, 500) % 5000
    names = [f"{number}.png" for number in range(24)]
    for name in names:
        (tmp_path / name).write_bytes(png16(0, rows))
    tracemalloc.start()
    try:
        assert sum(
            image.max() == 255 for image in frames.iterate_images(tmp_path, tracklet(*names))
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < len(names) * 2 * rows.size / 2  # half of the counts


def saved(form):
    file = io.BytesIO()
    painted().save(file, form)
    return file.getvalue()


NO_PICTURES = {
    "WebP": (saved("WEBP"), "WebP"),
    "BMP": (saved("BMP"), "BMP"),
    "GIF": (saved("GIF"), "GIF"),
    "TIFF": (saved("TIFF"), "TIFF"),
    "AVIF": (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    "page": (b"\r\n<!DOCTYPE html><title>Not found</title>", "web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
    "space": (b" \n\n", "whitespace"),
    "noise": (b"\x1b[2J\0what", r"x1b"),
}


@pytest.mark.parametrize("name", ["1.jpg", "1.png"])
@pytest.mark.parametrize(("content", "kind"), NO_PICTURES.values(), ids=NO_PICTURES.keys())
def test_other_files_are_named_for_what_they_are(tmp_path, content, kind, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"^{name}: .*{kind}") as error:
        frames.read_images(tmp_path, tracklet(name))
    assert str(error.value).isprintable()


def test_a_check_reads_what_packing_reads(tmp_path):
    """A turned picture and counts are no errors, and a WebP is one."""
    place = tmp_path / "alice/infrared/yard/walk"
    place.mkdir(parents=True)
    (place / "1.jpg").write_bytes(encoded(painted(), "JPEG", 6))
    (place / "2.png").write_bytes(png16(0, [[7400, 7500]]))
    assert not folder.check(tmp_path, without_skeletons=True).wrong
    (place / "3.jpg").write_bytes(saved("WEBP"))
    (error,) = folder.check(tmp_path, without_skeletons=True).wrong
    assert error.startswith("alice/infrared/yard/walk/3.jpg: ")
