"""Emoji artwork as a folder of captioned images."""

import json

from PIL import Image

from benchmarks.emoji_data import main
from glide_jax.data.folder import open_folder


def test_images_get_their_names_and_keywords(tmp_path):
    images, names = tmp_path / "assets", tmp_path / "annotations.json"
    images.mkdir()
    for name in ("2764-fe0f", "1f680", "1f9ff", "logo"):
        Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(images / f"{name}.webp")
    annotations = {"❤": {"default": ["heart"], "tts": ["red heart"]}, "🚀": {"tts": ["rocket"]}}
    names.write_text(json.dumps({"annotations": {"annotations": annotations}}), encoding="utf-8")
    to = tmp_path / "emoji"
    main(["--images", str(images), "--names", str(names), "--to", str(to), "--size-px", "16"])

    source = open_folder(to, "all", 0.0)
    found = {source[i].captions for i in range(len(source))}
    assert found == {("red heart", "heart"), ("rocket",)}
    with Image.open(to / "1f680.png") as image:
        assert (image.size, image.getpixel((0, 0))) == ((16, 16), (255, 255, 255))
