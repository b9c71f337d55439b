"""Frames from JPEG, PNG and video files, and the errors of broken ones."""

import io
import re
import struct
import subprocess
import sys
import time

import av
import cv2
import numpy as np
import pytest
import simplejpeg
import video_files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines import schema
from data_pipelines.errors import InputError
from data_pipelines.io import frames


def tracklet(*names):
    return schema.Tracklet(schema.VISIBLE, "alice", 1, names, 1)


def picture(mode, form, size=(20, 40), color=None):
    file = io.BytesIO()
    Image.new(mode, size, color).save(file, form)
    return file.getvalue()


@pytest.mark.parametrize("suffix", video_files.CODECS)
def test_a_video_gives_the_requested_frames_in_their_colors(tmp_path, suffix):
    video_files.write_video(tmp_path / f"walk{suffix}", 9)
    numbers = [0, 1, 4, 8]
    chosen = tracklet(*(f"walk{suffix}#{number}" for number in numbers))
    images = frames.read_images(tmp_path, chosen)
    packed = frames.read_frames(tmp_path, chosen)
    assert packed.heights.tolist() == [64] * 4 and packed.widths.tolist() == [32] * 4
    assert packed.heights.dtype == np.int32
    for number, image, jpeg in zip(numbers, images, packed.jpegs, strict=True):
        expected = video_files.color_of(number)
        assert np.abs(image[24:].mean(axis=(0, 1)) - expected).max() < 8
        assert image[:10].min() > 200  # not upside down
        stored = simplejpeg.decode_jpeg(jpeg)
        assert np.abs(stored.astype(int) - image).mean() < 2
        assert simplejpeg.decode_jpeg_header(jpeg)[3] == "444"
    assert frames.count_frames(tmp_path, f"walk{suffix}") == 9
    assert not frames.frame_errors(tmp_path, chosen)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_video_is_rotated_as_its_metadata_says(tmp_path, quarters):
    path = video_files.write_video(tmp_path / "walk.mp4", 3)
    content = bytearray(path.read_bytes())
    matrix = content.find(b"tkhd") + 44
    cosine, sine = ((0, 1), (-1, 0), (0, -1))[quarters - 1]  # of a clockwise turn
    turned = (cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30)
    content[matrix : matrix + 36] = struct.pack(">9i", *turned)
    path.write_bytes(content)
    (image,) = frames.read_images(tmp_path, tracklet("walk.mp4#0"))
    assert image.shape == ((64, 32, 3) if quarters == 2 else (32, 64, 3))
    upper, lower = image[:, -10:], image[:, :10]  # the top is now on the right
    if quarters == 2:
        upper, lower = image[-10:], image[:10]
    elif quarters == 3:
        upper, lower = lower, upper
    assert upper.min() > 200 > lower.min()


# What only some decoders read: OpenCV returns interlaced frames as black, and knows no AV1.
RARE = {
    "interlaced": ("libx264", {"x264-params": "tff=1:log-level=none"}),
    "AV1": ("libsvtav1", {"svtav1-params": "lp=1"}),
}


@pytest.mark.parametrize(("codec", "options"), RARE.values(), ids=RARE.keys())
def test_rare_videos_are_decoded(tmp_path, codec, options):
    images = [video_files.frame_of(number, (128, 64)) for number in range(6)]
    path = video_files.encode_video(tmp_path / "walk.mp4", images, codec, **options)
    if codec == "libx264":
        with av.open(path) as container:
            assert all(frame.interlaced_frame for frame in container.decode(video=0))
    assert frames.count_frames(tmp_path, "walk.mp4") == 6
    found = frames.read_images(tmp_path, tracklet(*(f"walk.mp4#{number}" for number in range(6))))
    for image, expected in zip(found, images, strict=True):
        assert np.abs(image.astype(int) - expected)[48:].mean() < 8
        assert image[:16].min() > 200


def test_a_video_of_an_unknown_codec_is_named(tmp_path):
    path = video_files.write_video(tmp_path / "walk.avi", 3)
    path.write_bytes(path.read_bytes().replace(b"MJPG", b"????"))
    with pytest.raises(InputError, match=r"^walk\.avi: .*codec"):
        frames.count_frames(tmp_path, "walk.avi")


def test_a_title_in_another_encoding_does_not_matter(tmp_path):
    images = [video_files.frame_of(number) for number in range(3)]
    path = video_files.encode_video(tmp_path / "walk.avi", images, "mjpeg", "yuvj420p")
    content = path.read_bytes()
    assert video_files.TITLE.encode() in content
    path.write_bytes(content.replace(b"title of", b"title \xe9\xff"))
    assert frames.count_frames(tmp_path, "walk.avi") == 3


def test_counts_of_a_sensor_in_a_video_are_refused(tmp_path):
    """Divided by 256, 14-bit counts would become a few dark grays."""
    counts = [np.full((64, 32), 7400 + number, np.uint16) for number in range(3)]
    video_files.encode_video(tmp_path / "walk.mkv", counts, "ffv1", "gray16le")
    assert frames.count_frames(tmp_path, "walk.mkv") == 3
    with pytest.raises(InputError, match=r"^walk\.mkv: .*16 bits"):
        frames.read_images(tmp_path, tracklet("walk.mkv#0"))


def moving(num_frames):
    """Returns frames with a pattern that moves, so that each of them takes some bytes."""
    pattern = np.random.default_rng(0).integers(0, 256, (8, 16, 3), np.uint8)
    pattern = np.kron(pattern, np.ones((8, 8, 1), np.uint8))
    return [pattern[:, number : number + 32] for number in range(num_frames)]


@pytest.mark.parametrize("codec", ["mjpeg", "mpeg4"])
def test_an_avi_with_a_flipped_bit_is_refused_or_gives_all_frames(tmp_path, codec):
    pix_fmt = {"mjpeg": "yuvj420p", "mpeg4": "yuv420p"}[codec]
    path = video_files.encode_video(tmp_path / "walk.avi", moving(20), codec, pix_fmt)
    assert frames.count_frames(tmp_path, "walk.avi") == 20
    content = path.read_bytes()
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 8 * len(content), 150).tolist()
    chunks = [place.start() for place in re.finditer(b"00dc", content)]  # names, then sizes
    bits += [8 * chunk + int(bit) for chunk in chunks for bit in rng.integers(0, 64, 4)]
    refused = 0
    for bit in bits:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert frames.count_frames(tmp_path, "walk.avi") == 20, f"bit {bit}"
        except InputError as error:
            assert str(error).startswith("walk.avi: ")
            refused += 1
    assert 10 < refused < len(bits)


def test_jpeg_files_are_kept_unchanged(tmp_path):
    path = video_files.write_image(tmp_path / "1.jpg")
    assert frames.read_frames(tmp_path, tracklet("1.jpg")).jpegs == [path.read_bytes()]


def test_a_grey_jpeg_is_read_as_rgb(tmp_path):
    (tmp_path / "1.jpg").write_bytes(picture("L", "JPEG", color=77))
    (image,) = frames.read_images(tmp_path, tracklet("1.jpg"))
    assert image.shape == (40, 20, 3) and np.abs(image.astype(int) - 77).max() <= 1


PNGS = {
    "color": (np.full((8, 6, 3), (200, 100, 50), np.uint8), (200, 100, 50)),
    "gray": (np.full((8, 6), 90, np.uint8), (90, 90, 90)),
    "16-bit": (np.full((8, 6, 3), (65535, 25700, 257), np.uint16), (255, 100, 1)),
    "alpha": (np.full((8, 6, 4), (200, 100, 50, 0), np.uint8), (200, 100, 50)),
}


@pytest.mark.parametrize(("pixels", "color"), PNGS.values(), ids=PNGS.keys())
def test_png_files_become_jpeg(tmp_path, pixels, color):
    video_files.write_image(tmp_path / "1.png", pixels)
    (image,) = frames.read_images(tmp_path, tracklet("1.png"))
    assert image.dtype == np.uint8 and np.abs(image.astype(int) - color).max() <= 1
    (jpeg,) = frames.read_frames(tmp_path, tracklet("1.png")).jpegs
    assert np.abs(simplejpeg.decode_jpeg(jpeg).astype(int) - color).max() <= 3


def test_a_palette_becomes_rgb(tmp_path):
    image = Image.new("P", (6, 8))
    image.putpalette([12, 34, 56])
    image.save(tmp_path / "1.png", transparency=0)
    (found,) = frames.read_images(tmp_path, tracklet("1.png"))
    assert found[0, 0].tolist() == [12, 34, 56]


def half(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


BROKEN_IMAGES = {
    "empty": (b"", "is empty"),
    "text": (b"no picture", "no picture"),
    "start of a JPEG": (b"\xff\xd8\xff no picture", "not an intact JPEG"),
    "truncated JPEG": (picture("RGB", "JPEG")[:-10], "not an intact JPEG"),
    "truncated PNG": (picture("RGB", "PNG")[:-20], "not an intact PNG"),
    "PNG's first bytes": (picture("RGB", "PNG")[:8], "not an intact PNG"),
    "CMYK": (picture("CMYK", "JPEG"), "CMYK"),
    "huge PNG": (picture("1", "PNG", (9000, 9000)), "9000 x 9000 pixels"),
}


@pytest.mark.parametrize(("content", "message"), BROKEN_IMAGES.values(), ids=BROKEN_IMAGES.keys())
def test_a_broken_image_is_named(tmp_path, content, message):
    (tmp_path / "2.jpg").write_bytes(content)
    video_files.write_image(tmp_path / "1.jpg")
    broken = tracklet("1.jpg", "2.jpg", "3.jpg")
    with pytest.raises(ValueError, match=f"2.jpg: .*{message}"):
        frames.read_frames(tmp_path, broken)
    errors = frames.frame_errors(tmp_path, broken)
    assert [error.split(":")[0] for error in errors] == ["2.jpg", "3.jpg"]


def segment(marker, body):
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def progressive_jpeg(side, scans):
    """A black picture, side by side, in many small scans, all of which a decoder has to follow."""
    blocks = (side // 8) ** 2
    start = segment(0xDB, bytes([0] + 64 * [1]))  # the quantization
    start += segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + bytes([1, 0x11, 0]))
    # Huffman codes of one bit: DC differences of 0, and the end of 2^14 blocks and more.
    for table, symbol in ((0x00, 0), (0x10, 0xE0)):
        start += segment(0xC4, bytes([table, 1] + 15 * [0] + [symbol]))
    first = segment(0xDA, bytes([1, 1, 0, 0, 0, 0])) + bytes(-(-blocks // 8))
    runs = [min(2**15 - 1, max(2**14, blocks - done)) for done in range(0, blocks, 2**15 - 1)]
    bits = "".join(f"0{run - 2**14:014b}" for run in runs)
    bits += "1" * (-len(bits) % 8)
    empty = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    rest = b""
    bands = ((k, bit) for bit in range(12, -1, -1) for k in range(1, 64))
    for (k, bit), _ in zip(bands, range(scans - 1), strict=False):
        before = 0 if bit == 12 else bit + 1
        rest += segment(0xDA, bytes([1, 1, 0, k, k, before << 4 | bit])) + empty
    return b"\xff\xd8" + start + first + rest + b"\xff\xd9"


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded(tmp_path):
    content = progressive_jpeg(8192, 800)
    assert len(content) < 250_000
    (tmp_path / "1.jpg").write_bytes(content)
    begun = time.monotonic()
    with pytest.raises(ValueError, match=r"^1\.jpg: 800 scans of 8192 x 8192 pixels take too long"):
        frames.read_frames(tmp_path, tracklet("1.jpg"))
    assert time.monotonic() - begun < 1  # decoding takes half a minute


def test_progressive_jpegs_are_read(tmp_path):
    (tmp_path / "1.jpg").write_bytes(progressive_jpeg(64, 800))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (700, 500, 3), np.uint8))
    image.save(tmp_path / "2.jpg", progressive=True)
    small, large = frames.read_images(tmp_path, tracklet("1.jpg", "2.jpg"))
    assert small.shape == (64, 64, 3) and np.abs(small.astype(int) - 128).max() <= 1
    assert large.shape == (700, 500, 3)


@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".mp4"])
def test_a_video_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, suffix, monkeypatch):
    video_files.write_video(tmp_path / f"walk{suffix}", 3)
    monkeypatch.setattr("data_pipelines.pixels.MAX_PIXELS", 64 * 32 - 1)
    monkeypatch.setattr(frames._Video, "frames", None)  # nothing is decoded that far
    message = rf"^walk{suffix}: 32 x 64 pixels are more than a frame can have"
    with pytest.raises(ValueError, match=message):
        frames.count_frames(tmp_path, f"walk{suffix}")
    with pytest.raises(ValueError, match=message):
        frames.read_frames(tmp_path, tracklet(f"walk{suffix}#0"))
    monkeypatch.undo()
    monkeypatch.setattr("data_pipelines.pixels.MAX_PIXELS", 64 * 32)
    assert frames.count_frames(tmp_path, f"walk{suffix}") == 3


def test_a_video_that_hides_the_size_of_its_frames_costs_no_memory(tmp_path):
    """Its header says 32 x 64, its frames have 9000 x 9000 pixels."""
    path = video_files.write_video(tmp_path / "walk.avi", 1)
    content = path.read_bytes()
    start = content.find(b"movi")
    jpeg = simplejpeg.encode_jpeg(np.zeros((9000, 9000, 3), np.uint8))
    movi = b"movi" + struct.pack("<4sI", b"00dc", len(jpeg)) + jpeg
    content = content[8 : start - 4] + struct.pack("<I", len(movi)) + movi
    path.write_bytes(struct.pack("<4sI", b"RIFF", len(content)) + content)
    reading = (
        "import resource, sys; from data_pipelines.io import frames\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: frames.count_frames(sys.argv[1], 'walk.avi')\n"
        "except ValueError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    command = [sys.executable, "-c", reading, str(tmp_path)]
    message, kilobytes = subprocess.run(
        command, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert message.startswith("walk.avi: ")
    assert int(kilobytes) < 50_000


@pytest.mark.parametrize("suffix", video_files.CODECS)
@pytest.mark.parametrize("every", [1, 3, 100])
def test_a_video_is_streamed(tmp_path, suffix, every):
    video_files.write_video(tmp_path / f"walk{suffix}", 10)
    with frames.open_video(tmp_path, f"walk{suffix}", every) as (announced, stream):
        assert announced == 10
        found = list(stream)
    assert [number for number, _ in found] == list(range(0, 10, every))
    for number, pixels in found:
        assert pixels.shape == (video_files.HEIGHT, video_files.WIDTH, 3)
        middle = pixels[32:].mean(axis=(0, 1))
        np.testing.assert_allclose(middle, video_files.color_of(number), atol=12)


def test_a_streamed_video_that_ends_early_is_named(tmp_path, monkeypatch):
    video_files.write_video(tmp_path / "walk.mp4", 10)
    monkeypatch.setattr(frames, "_LEAST_SHARE", 1.5)  # as if the header listed 15 frames
    with (
        frames.open_video(tmp_path, "walk.mp4") as (_, stream),
        pytest.raises(InputError, match=r"^walk.mp4: .*ends early"),
    ):
        assert len([next(stream) for _ in range(10)]) == 10
        next(stream)


@pytest.mark.parametrize("suffix", video_files.CODECS)
def test_a_truncated_video_is_named(tmp_path, suffix):
    half(video_files.write_video(tmp_path / f"walk{suffix}", 30))
    with pytest.raises(InputError, match=f"^walk{suffix}: "):
        frames.count_frames(tmp_path, f"walk{suffix}")


@pytest.mark.parametrize("suffix", [".avi", ".mkv"])
def test_a_video_that_lacks_its_last_bytes_is_named(tmp_path, suffix):
    path = video_files.write_video(tmp_path / f"walk{suffix}", 30)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"walk{suffix}: .*ends early, at [0-9]+ of [0-9]+ bytes"):
        frames.count_frames(tmp_path, f"walk{suffix}")


def test_an_mp4_whose_index_comes_first_is_cut(tmp_path):
    """Such a file can be opened although its frames end early."""
    path = video_files.write_video(tmp_path / "walk.mp4", 30)
    content = path.read_bytes()
    data, index = content.find(b"mdat") - 4, content.find(b"moov") - 4
    offsets = content.find(b"stco") + 12  # of the chunks, after the number of them
    moov = bytearray(content[index:])
    for place in range(offsets - index, offsets - index + 4 * content[offsets - 1], 4):
        (offset,) = struct.unpack_from(">I", moov, place)
        struct.pack_into(">I", moov, place, offset + len(moov))
    streamed = content[:data] + moov + content[data:index]
    path.write_bytes(streamed)
    assert frames.count_frames(tmp_path, "walk.mp4") == 30
    path.write_bytes(streamed[: len(streamed) - (index - data) // 2])
    with pytest.raises(InputError, match=r"^walk.mp4: "):
        frames.count_frames(tmp_path, "walk.mp4")


def test_matroska_at_a_variable_rate_is_read(tmp_path):
    """The last frame is shown for so long that the duration would hold twice as many frames."""
    path = video_files.write_video(tmp_path / "walk.mkv", 30)
    content = bytearray(path.read_bytes())
    duration = content.find(b"\x44\x89\x88") + 3
    (milliseconds,) = struct.unpack_from(">d", content, duration)
    struct.pack_into(">d", content, duration, 2 * milliseconds)
    path.write_bytes(content)
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 60
    assert frames.count_frames(tmp_path, "walk.mkv") == 30


def test_avi_that_repeats_frames_is_read(tmp_path):
    """An empty chunk means that the last frame is shown again; it is not a frame."""
    path = video_files.write_video(tmp_path / "walk.avi", 6)
    content = path.read_bytes()
    start = content.find(b"movi") + 4
    end = start - 8 + struct.unpack_from("<I", content, start - 8)[0] + 4
    chunks, index, place = b"", b"", start
    while place < end - 7:
        name, size = struct.unpack_from("<4sI", content, place)
        body = content[place + 8 : place + 8 + size + size % 2]
        place += 8 + len(body)
        if name == b"00dc":
            body = body if len(index) % 32 == 0 else b""
            index += struct.pack("<4sIII", name, 16, 4 + len(chunks), len(body))
        chunks += struct.pack("<4sI", name, len(body)) + body
    movi = struct.pack("<4sI4s", b"LIST", 4 + len(chunks), b"movi") + chunks
    content = content[8 : start - 12] + movi + struct.pack("<4sI", b"idx1", len(index)) + index
    path.write_bytes(struct.pack("<4sI", b"RIFF", len(content)) + content)
    assert frames.count_frames(tmp_path, "walk.avi") == 3


@pytest.mark.parametrize("suffix", [".avi", ".mkv"])
def test_a_recording_of_unknown_length_is_read(tmp_path, suffix):
    path = video_files.write_video(tmp_path / f"walk{suffix}", 6)
    content = bytearray(path.read_bytes())
    segment = content.find(b"\x18\x53\x80\x67")
    if suffix == ".avi":
        content[4:8] = b"\xff" * 4
    else:
        content[segment + 5 : segment + 12] = b"\xff" * 7
    path.write_bytes(content)
    assert frames.count_frames(tmp_path, f"walk{suffix}") == 6


def test_the_files_of_frames():
    names = ["b.jpg", "a#1.mp4#0", "a#1.mp4#1", "b.jpg", "c#2/1.png", "walk.MOV#3"]
    assert frames.files_of(names) == ["b.jpg", "a#1.mp4", "c#2/1.png", "walk.MOV"]


def test_a_video_that_ends_before_a_frame_is_named_once(tmp_path):
    video_files.write_video(tmp_path / "walk.avi", 3)
    chosen = tracklet(*(f"walk.avi#{number}" for number in range(5)))
    with pytest.raises(ValueError, match=r"^walk.avi: .*frame 3"):
        frames.read_frames(tmp_path, chosen)
    assert len(frames.frame_errors(tmp_path, chosen)) == 1


def test_frames_of_a_video_out_of_order_are_refused(tmp_path):
    video_files.write_video(tmp_path / "walk.avi", 3)
    with pytest.raises(ValueError, match=r"walk.avi: frame 1 is requested after frame 2"):
        frames.read_images(tmp_path, tracklet("walk.avi#2", "walk.avi#1"))


def test_a_video_without_frames_is_named(tmp_path):
    video_files.write_video(tmp_path / "walk.avi", 0)
    with pytest.raises(InputError, match=r"^walk.avi: "):
        frames.count_frames(tmp_path, "walk.avi")


@pytest.mark.parametrize("text", ["#EXTM3U\nsecret.mp4\n", "ffconcat version 1.0\nfile secret.mp4"])
def test_a_playlist_is_not_a_video(tmp_path, text):
    video_files.write_video(tmp_path / "secret.mp4", 2)
    (tmp_path / "walk.mp4").write_text(text)
    with pytest.raises(ValueError, match=r"walk.mp4: not a video"):
        frames.count_frames(tmp_path, "walk.mp4")


def test_a_link_out_of_the_root_is_refused(tmp_path):
    video_files.write_video(tmp_path / "walk.mp4", 2)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "walk.mp4").symlink_to(tmp_path / "walk.mp4")
    for name in ("walk.mp4#0", "../walk.mp4#0"):
        with pytest.raises(ValueError, match="leads out of the dataset's root"):
            frames.read_images(tmp_path / "root", tracklet(name))


STARTS = [b"", picture("RGB", "JPEG"), picture("RGB", "PNG"), b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"]
VIDEO_STARTS = [b"", b"\0\0\0\x1cftypisom", b"RIFF\0\0\1\0AVI LIST", b"\x1a\x45\xdf\xa3"]


@settings(
    deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(start=st.sampled_from(STARTS), cut=st.integers(0, 700), rest=st.binary(max_size=200))
def test_random_images_are_read_or_named(tmp_path, start, cut, rest):
    (tmp_path / "1.jpg").write_bytes(start[:cut] + rest)
    try:
        frames.read_frames(tmp_path, tracklet("1.jpg"))
    except ValueError as error:
        assert str(error).startswith("1.jpg: ")


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(start=st.sampled_from(VIDEO_STARTS), rest=st.binary(max_size=300))
def test_random_videos_are_named(tmp_path, start, rest):
    (tmp_path / "walk.mp4").write_bytes(start + rest)
    with pytest.raises(ValueError, match=r"^walk\.mp4: "):
        frames.count_frames(tmp_path, "walk.mp4")


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    suffix=st.sampled_from(sorted(video_files.CODECS)),
    place=st.floats(0, 1),
    noise=st.binary(min_size=1, max_size=60),
)
def test_damaged_videos_are_read_or_named(tmp_path, suffix, place, noise):
    path = tmp_path / f"whole{suffix}"
    if not path.exists():
        video_files.write_video(path, 6)
    content = bytearray(path.read_bytes())
    start = int(place * (len(content) - len(noise)))
    content[start : start + len(noise)] = noise
    name = f"walk{suffix}"
    (tmp_path / name).write_bytes(content)
    try:
        count = frames.count_frames(tmp_path, name)
        frames.read_frames(tmp_path, tracklet(*(f"{name}#{number}" for number in range(count))))
    except ValueError as error:
        assert str(error).startswith(f"{name}: ")
