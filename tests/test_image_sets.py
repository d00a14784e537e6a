"""Sets of images to evaluate: order, captions, damaged files, digests. No network."""

import io
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from glide_jax.errors import UserError
from glide_jax.evaluation.image_sets import Preparation, open_images
from glide_jax.evaluation.npz_images import write_npz


def png(level, size=(6, 4), prompt=None):
    """An encoded image of one gray level."""
    info = PngImagePlugin.PngInfo()
    if prompt is not None:
        info.add_itxt("prompt", prompt)
    file = io.BytesIO()
    Image.new("RGB", size, (level,) * 3).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def write_tar(path, members, mode="w"):
    """A tar archive of these files, in order."""
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def levels(images):
    """The gray level of each image."""
    return [int(image.pixels[0, 0, 0]) for image in images]


def message(images):
    """The error of reading a set: one line."""
    with pytest.raises(UserError) as error:
        list(images)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_folders_are_read_in_order_with_their_folders_and_without_hidden_files(tmp_path, caplog):
    for name in ("b.png", "a/z.PNG", "a/.hidden.png", ".git/x.png", "__MACOSX/._b.png"):
        file = tmp_path / ".here" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(len(name)))
    (tmp_path / ".here" / "notes.md").write_text("no image")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "c.png").write_bytes(png(9))
    (tmp_path / ".here" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / ".here" / "nowhere.png").symlink_to(tmp_path / "none.png")
    images = list(open_images([tmp_path / ".here"]))
    assert [image.name for image in images] == ["a/z.PNG", "b.png", "linked/c.png"]
    assert levels(images) == [7, 5, 9]
    assert "skipped an image: nowhere.png: " in caplog.text


def test_captions_are_prompts_or_text_files(tmp_path):
    (tmp_path / "a.png").write_bytes(png(1, prompt="a prompt"))
    (tmp_path / "b.png").write_bytes(png(2))
    (tmp_path / "b.txt").write_text("first\n\nsecond\n")
    (tmp_path / "c.png").write_bytes(png(3, prompt='{"3": {"class_type": "KSampler"}}'))  # ComfyUI
    (tmp_path / "d.png").write_bytes(png(4))
    (tmp_path / "d.txt").write_bytes(b"\xff\xfe")
    *images, last = open_images([tmp_path])
    assert [image.captions for image in images] == [("a prompt",), ("first", "second"), ()]
    with pytest.raises(UserError, match=r"^d.png: cannot read its caption: 'utf-8' codec"):
        _ = last.captions


@pytest.mark.parametrize("order", ["image first", "text first", "texts last"])
def test_captions_in_a_tar_may_be_anywhere(tmp_path, order):
    files = [(f"x/{i}.png", png(i)) for i in range(4)]
    texts = [(f"x/{i}.txt", b"caption %d" % i) for i in range(4)]
    pairs = {"image first": (files, texts), "text first": (texts, files)}
    members = files + texts
    if order in pairs:
        members = [member for pair in zip(*pairs[order], strict=True) for member in pair]
    write_tar(tmp_path / "set.tar.gz", [*members, ("x/5.png", png(5, prompt="own"))], "w:gz")
    captions = [image.captions for image in open_images([tmp_path / "set.tar.gz"])]
    assert captions == [*((f"caption {i}",) for i in range(4)), ("own",)]


@pytest.mark.parametrize("kind", ["cut", "cut header", "damaged", "no tar", "cut gzip", "empty"])
def test_damaged_archives_are_named(tmp_path, kind):
    path = tmp_path / ("set.tar.gz" if kind == "cut gzip" else "set.tar")
    write_tar(
        path, [(f"{i}.png", png(i, (64, 64))) for i in range(9)], "w:gz" if "gzip" in kind else "w"
    )
    content = path.read_bytes()
    damaged = {
        "cut": content[: 3 * 1024 + 512 + 20],  # in the fourth image
        "cut header": content[: 3 * 1024 + 20],
        "damaged": content[: 3 * 1024] + b"x" * 99 + content[3 * 1024 + 99 :],
        "no tar": b"no archive" * 99,
        "cut gzip": content[: len(content) // 2],
        "empty": b"",
    }
    path.write_bytes(damaged[kind])
    found = message(open_images([path]))
    assert found.startswith(f"{path} is damaged, or not a tar archive: ")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none.tar: no such file"):
        open_images([tmp_path / "none.tar"])


def test_few_bad_images_are_skipped_wherever_they_are(tmp_path, caplog):
    """Three of 300: the first three."""
    members = [(f"{i:03}.png", b"bad" if i < 3 else png(i % 256)) for i in range(300)]
    write_tar(tmp_path / "set.tar", members)
    assert len(list(open_images([tmp_path / "set.tar"]))) == 297
    assert "skipped an image: 002.png: " in caplog.text
    write_tar(tmp_path / "set.tar", members[:200])
    found = message(open_images([tmp_path / "set.tar"]))
    assert "set.tar: 3 of 200 images cannot be read: 000.png: " in found
    write_tar(tmp_path / "set.tar", [(f"{i}.png", b"") for i in range(40)])
    assert "11 of 11 images cannot be read" in message(open_images([tmp_path / "set.tar"]))


def test_sizes_may_differ_and_are_equal_after_preparation(tmp_path):
    for i, size in enumerate([(6, 4), (9, 30), (1, 1)]):
        (tmp_path / f"{i}.png").write_bytes(png(i, size))
    shapes = [image.pixels.shape for image in open_images([tmp_path])]
    assert shapes == [(4, 6, 3), (30, 9, 3), (1, 1, 3)]
    images = open_images([tmp_path], preparation=Preparation(8, blur_radius_px=1.5))
    assert {image.pixels.shape for image in images} == {(8, 8, 3)}
    with pytest.raises(UserError, match=r"image 1 has the shape .* needs one size; give --px"):
        write_npz(tmp_path / "x.npz", (image.pixels for image in open_images([tmp_path])), 3)
    with pytest.raises(UserError, match=r"x\.npz: there are 2 images now, not 3"):
        write_npz(tmp_path / "x.npz", iter(np.zeros((2, 4, 4, 3), np.uint8)), 3)
    assert not list(tmp_path.glob("*npz*"))


def test_blur_is_a_gaussian_of_the_given_standard_deviation(tmp_path):
    pixels = np.zeros((41, 41, 3), np.uint8)
    pixels[:, 20:] = 255
    Image.fromarray(pixels).save(tmp_path / "edge.png")
    blurred = next(iter(open_images([tmp_path], preparation=Preparation(blur_radius_px=3.0))))
    slope = np.diff(blurred.pixels[20, :, 0].astype(float))
    place = np.arange(len(slope)) - 19.0
    assert np.sqrt((slope * place**2).sum() / slope.sum()) == pytest.approx(3, abs=0.2)


def zipped(path, content, method=zipfile.ZIP_STORED):
    """An .npz file whose arr_0 has this content."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("arr_0.npy", content)


def npy(shape, dtype="|u1", data=b"\0" * 200):
    """The content of an .npy file."""
    file = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + data


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (npy((2, 8, 8, 3)), "is truncated after 1 of 2 images"),
        (npy((10**6, 10**9, 10**9, 3)), "is truncated after 0 of 1,000,000 images"),
        (npy((2, 0, 8, 3)), "arr_0 is uint8 of shape (2, 0, 8, 3): images must be uint8"),
        (npy((2, 8, 8, 4)), "arr_0 is uint8 of shape (2, 8, 8, 4)"),
        (npy((2, 3, 8, 8)), "arr_0 is uint8 of shape (2, 3, 8, 8)"),
        (npy((1, 4, 4, 3), "<f4"), "arr_0 is float32 of shape (1, 4, 4, 3): images must be uint8"),
        (npy((1, 4, 4, 3), "<i4"), "arr_0 is int32 of shape (1, 4, 4, 3)"),
        (npy((1,), "|O"), "arr_0 is object of shape (1,)"),
        (b"no array", "is not a valid .npz file"),
        (b"", "is not a valid .npz file"),
    ],
)
def test_arrays_that_are_no_images_are_refused(tmp_path, content, why):
    path = tmp_path / "x.npz"
    zipped(path, content)
    found = message(open_images([path]))
    assert found.startswith(str(path)) and why in found


def test_damaged_compressed_arrays_are_refused(tmp_path):
    path = tmp_path / "x.npz"
    random = np.random.default_rng(0)
    np.savez_compressed(path, arr_0=random.integers(0, 256, (9, 16, 16, 3), np.uint8))
    content = bytearray(path.read_bytes())
    content[1000:1100] = bytes(100)
    path.write_bytes(content)
    assert f"{path} is not a valid .npz file: " in message(open_images([path]))


def test_digests_follow_contents_and_preparation(tmp_path, color_folder):
    (tmp_path / "a.png").write_bytes(png(1))
    before = open_images([tmp_path]).digest()
    assert open_images([tmp_path]).digest() == before
    assert open_images([tmp_path], preparation=Preparation(4)).digest() != before
    assert open_images([tmp_path], n=1).digest() != before
    (tmp_path / "a.png").write_bytes(png(2))
    assert open_images([tmp_path]).digest() != before


def test_digests_of_data_sets_follow_their_images(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(png(ord(name)))
        (tmp_path / f"{name}.txt").write_text(name)

    def digest():
        return open_images(["folder", tmp_path], "all", Preparation(4)).digest()

    before = digest()
    assert digest() == before
    (tmp_path / "b.png").write_bytes(png(9))
    assert digest() != before


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    peaks = []
    for n in (20, 200):
        pixels = np.zeros((32, 32, 3), np.uint8)
        write_npz(tmp_path / "x.npz", (pixels for _ in range(n)), n)
        write_tar(tmp_path / "x.tar", ((f"{i}.png", png(1)) for i in range(n)))
        tracemalloc.start()
        for name in ("x.npz", "x.tar"):
            assert sum(1 for _ in open_images([tmp_path / name])) == n
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] + 10_000
