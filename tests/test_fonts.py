"""Captions in any script, whatever fonts are installed."""

import unicodedata

import numpy as np
import pytest
from PIL import Image, ImageDraw

from glide_jax import fonts

TEXTS = (
    "a red star",
    "café – “déjà vu” €5…",
    "Привет, красная звезда",
    "نجمة حمراء فوق",
    "नमस्ते दुनिया",
    "红色的星星在蓝色圆环上方",
    "★😀👩‍🚀 ＡＢ①",
    "a\u2028b\x00\ufeff \ud800",
    "a\u200bb\u202e \u00ad नी\u200dन 👩\u200d👧",
)


@pytest.fixture(params=["installed", "none"])
def installed(request, monkeypatch):
    """The fonts of this machine, or Pillow's own alone."""
    if request.param == "none":
        monkeypatch.setattr(fonts, "_font_files", list)
    caches = (fonts._fonts, fonts._font_of, fonts._drawable)
    for cache in caches:
        cache.cache_clear()
    yield request.param
    for cache in caches:
        cache.cache_clear()


def test_no_character_becomes_a_box(installed):
    for text in TEXTS:
        for font, part in fonts._parts(fonts.drawable(text)):
            for character in part:
                hidden = not font.getmask(character).getbbox()
                assert (
                    character == " "
                    or fonts._has(font, character)
                    or (unicodedata.category(character) == "Cf" and hidden)
                ), (text, character)
                assert unicodedata.category(character) != "Cs"


def test_what_no_font_has_is_simplified_or_a_code_point(monkeypatch):
    monkeypatch.setattr(fonts, "_font_files", list)
    for cache in (fonts._fonts, fonts._font_of, fonts._drawable):
        cache.cache_clear()
    assert fonts.drawable("café – x e\u0301\n\tＡ ①") == "cafe - x e A 1"
    assert fonts.drawable("红\ud800") == "[7EA2][D800]"
    for cache in (fonts._fonts, fonts._font_of, fonts._drawable):
        cache.cache_clear()


def test_lines_fit_their_width(installed):
    for text in (*TEXTS, "x" * 80, "a star " * 30, "红" * 30):
        lines = fonts.wrap(text, 192)
        assert 1 <= len(lines) <= 6 and all(lines)
        assert all(fonts._width_px(line) <= 192 for line in lines)
    assert fonts.wrap("a star " * 100, 192)[-1].endswith(" ...")
    assert fonts.wrap("a red star", 192) == ["a red star"] and fonts.wrap(" \n", 192) == []
    assert "".join(fonts.wrap("x" * 60, 192)) == "x" * 60


def test_a_line_is_drawn_as_wide_as_it_is_measured(installed):
    for text in TEXTS:
        image = Image.new("L", (600, 40), "white")
        line = fonts.wrap(text, 590)[0]
        fonts.draw_text(ImageDraw.Draw(image), 2, 5, line)
        columns = np.flatnonzero((np.asarray(image) < 128).any(0))
        assert len(columns) and columns.max() <= 2 + fonts._width_px(line) + 2
