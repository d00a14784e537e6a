"""Captions in any script: fonts of the system, line breaks, and no boxes for missing glyphs.

Pillow's own font has ASCII and little more. Other characters are drawn with the first installed
font that has them, and without one as the letter or sign they derive from, else as their code point
in brackets, such as [6F22].
"""

import functools
import importlib.util
import itertools
import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from PIL import ImageDraw, ImageFont

FONT_PX = 15
LINE_PX = 18

Font: TypeAlias = Any
"""An `ImageFont.FreeTypeFont`, or Pillow's bitmap font where it lacks FreeType."""

FOLDERS = (
    *("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts"),
    *("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts"),
    *("C:/Windows/Fonts", "~/AppData/Local/Microsoft/Windows/Fonts"),
)
"""Where Linux, macOS and Windows have their fonts."""
SUFFIXES = (".ttf", ".otf", ".ttc")
STYLES = ("bold", "italic", "oblique", "light", "thin", "black", "condensed", "mono", "serif")
"""Words in names of fonts that are tried last."""
NO_GLYPHS = "lastresort"
"""Fonts of this name draw boxes."""
SIMPLER = {"–": "-", "—": "-", "‘": "'", "’": "'", "“": '"', "”": '"', "…": "...", "€": "EUR"}
"""Signs that derive from others, beside Unicode's own compatibility decompositions."""
NO_CHARACTER = "\U0010ffff"

_PIECES = re.compile(r"\[[0-9A-F]{4,6}\]|.[\u0300-\u036f\u093a-\u094f\u200c\u200d]*")
"""What a line break does not divide: code points, characters with common marks."""


def wrap(text: str, width_px: int, max_lines: int = 6) -> list[str]:
    """Lines of a caption that `draw_text` draws at most `width_px` wide.

    Args:
        text: of any script, with any white space.
        width_px: of a line.
        max_lines: the last one ends in " ..." if there is more.
    """
    lines, line = [], ""
    for word in drawable(text).split(" "):
        if line and _width_px(f"{line} {word}") > width_px:
            lines.append(line)
            line = ""
        for piece in _PIECES.findall(f" {word}" if line else word):
            if line and _width_px(line + piece) > width_px:  # a long word, or one without spaces
                lines.append(line)
                line = ""
            line += piece
        if len(lines) > max_lines:
            break
    lines += [line] if line else []
    if len(lines) > max_lines:
        last = lines[max_lines - 1]
        while last and _width_px(f"{last} ...") > width_px:
            last = last[:-1].rstrip()
        lines[max_lines - 1 :] = [f"{last} ..."]
    return lines


def draw_text(draw: ImageDraw.ImageDraw, x: int, y: int, line: str) -> None:
    """Draws a line in black, its top left corner at (x, y)."""
    left = float(x)
    for font, part in _parts(drawable(line)):
        draw.text((left, y), part, fill="black", font=font)
        left += font.getlength(part)


def drawable(text: str) -> str:
    """The text in one line, with only characters that a font has."""
    drawn, font = [], None
    for character in unicodedata.normalize("NFC", text):
        kind = unicodedata.category(character)
        if kind[0] == "M" or kind == "Cf":  # drawn with the character before it
            has = _is_blank if kind == "Cf" else _has
            drawn.append(character if font is not None and has(font, character) else "")
        else:
            shown = _drawable(character)
            font = _font_of(character) if shown == character else None
            drawn.append(shown)
    return " ".join("".join(drawn).split())


@functools.cache
def _drawable(character: str) -> str:
    kind = unicodedata.category(character)
    if kind[0] == "Z" or character in "\t\n\r\f\v":
        return " "
    if kind == "Cc":
        return ""
    if _font_of(character) is not None:
        return character
    simpler = SIMPLER.get(character) or "".join(
        one for one in unicodedata.normalize("NFKD", character) if not unicodedata.combining(one)
    )
    if simpler and simpler != character and all(map(_font_of, simpler)):
        return simpler
    return f"[{ord(character):04X}]"


def _parts(text: str) -> Iterator[tuple[Font, str]]:
    """The text in parts of one font each. A font is kept as long as it has the characters."""
    font = next(iter(_fonts()))

    def font_of(character: str) -> Font:
        nonlocal font
        if not (character == " " or unicodedata.category(character) in ("Cf", "Mn", "Mc")):
            font = font if _has(font, character) else _font_of(character)
        return font

    for chosen, characters in itertools.groupby(text, font_of):
        yield chosen, "".join(characters)


def _width_px(text: str) -> float:
    return sum(font.getlength(part) for font, part in _parts(text))


@functools.cache
def _font_of(character: str) -> Font | None:
    """The first font that has a character."""
    return next((font for font in _fonts() if _has(font, character)), None)


@functools.cache
def _has(font: Font, character: str) -> bool:
    if unicodedata.category(character) == "Cs":  # surrogates have no glyphs
        return False
    try:
        glyph, missing = (font.getmask(one) for one in (character, NO_CHARACTER))
    except (ValueError, OSError):  # a damaged font
        return False
    return bool(glyph.getbbox()) and (glyph.size, bytes(glyph)) != (missing.size, bytes(missing))


@functools.cache
def _is_blank(font: Font, character: str) -> bool:
    """Whether a font draws nothing for a format character: not all fonts hide them."""
    return not font.getmask(character).getbbox()


class _Fonts:
    """Pillow's own font, then the installed ones, each loaded when it is first needed."""

    def __init__(self) -> None:
        self._loaded: list[Font] = [ImageFont.load_default(FONT_PX)]
        self._files = iter(_font_files())

    def __iter__(self) -> Iterator[Font]:
        yield from self._loaded
        for file in self._files:
            try:
                self._loaded.append(ImageFont.truetype(str(file), FONT_PX))
            except (OSError, ValueError):  # damaged, or with bitmaps of another size
                continue
            yield self._loaded[-1]


_fonts = functools.cache(_Fonts)


def _font_files() -> list[Path]:
    """Files of installed fonts, plain sans-serif ones first."""
    folders = [os.path.expanduser(folder) for folder in FOLDERS]
    matplotlib = importlib.util.find_spec("matplotlib")  # it brings DejaVu Sans
    if matplotlib is not None and matplotlib.origin is not None:
        folders.append(str(Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf"))
    files = {
        Path(folder, name)
        for place in folders
        for folder, _, names in os.walk(place)
        for name in names
        if name.lower().endswith(SUFFIXES) and NO_GLYPHS not in name.lower().replace(" ", "")
    }

    def rank(file: Path) -> tuple[bool, bool, str]:
        name = file.stem.lower()
        styled = any(style in name.replace("sansserif", "") for style in STYLES)
        return styled, "sans" not in name, name

    return sorted(files, key=rank)
