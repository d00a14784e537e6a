"""Votes on pairs of images: writing the pairs, counting the votes."""

import csv

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from glide_jax.errors import UserError
from glide_jax.evaluate import elo, pairs
from glide_jax.evaluation.metrics.elo import Vote, rank, win_rate

PAPER = {"unguided": (-88.6, -106.2), "CLIP": (-73.2, 29.3), "classifier-free": (82.7, 110.9)}
"""Elo scores of the GLIDE paper: photorealism, caption similarity."""


def simulated(scores, n, seed=0):
    """Votes on random pairs of models with these scores."""
    random = np.random.default_rng(seed)
    votes = []
    for _ in range(n):
        a, b = random.choice(list(scores), 2, replace=False)
        wins = random.random() < 1 / (1 + 10 ** ((scores[b] - scores[a]) / 400))
        votes.append(Vote(str(a), str(b), float(wins)))
    return votes


@pytest.mark.parametrize("question", [0, 1])
def test_scores_are_recovered_from_votes(question):
    """The paper's own scores add up to about zero, from 1,000 comparisons."""
    scores = {name: values[question] for name, values in PAPER.items()}
    found = rank(simulated(scores, 1000), confidence=0.99, resamples=100)
    assert found.models == sorted(scores, key=scores.get, reverse=True)
    for name, elo_score, low, high in zip(found.models, *found[1:4], strict=True):
        mean = np.mean(list(scores.values()))
        assert low < scores[name] - mean < high
        assert abs(elo_score - (scores[name] - mean)) < 40
        assert 20 < high - low < 100
    assert found.elo.mean() == pytest.approx(0, abs=1e-9)


def test_two_models_have_a_closed_form():
    votes = [Vote("a", "b", 1.0)] * 30 + [Vote("b", "a", 1.0)] * 9 + [Vote("a", "b", 0.5)] * 2
    found = rank(votes, resamples=10)
    assert found.models == ["a", "b"]
    assert found.elo[0] - found.elo[1] == pytest.approx(400 * np.log10(31 / 10), rel=1e-4)
    np.testing.assert_array_equal(found.wins, [[0, 31], [10, 0]])


def test_win_rates_have_wilsons_interval():
    assert win_rate(8.0, 2.0) == pytest.approx((0.8, 0.4901624715, 0.9433178485), abs=1e-8)
    rate, low, high = win_rate(5.0, 0.0)
    assert (rate, high) == (1, pytest.approx(1))
    assert 0.5 < low < 0.6


@pytest.mark.parametrize(
    ("votes", "why"),
    [
        ([], "no votes"),
        ([Vote("a", "b", 1.0)], "lost every comparison|won every comparison"),
        (
            [Vote("a", "b", 0.5), Vote("c", "d", 0.5)],
            "a, b: never compared with the other models",
        ),
    ],
)
def test_scores_that_are_not_determined_are_refused(votes, why):
    with pytest.raises(UserError, match=why):
        rank(votes)


@pytest.fixture
def folders(tmp_path):
    """Samples of two models for six captions, three of which both have."""
    for name, first in (("one", 0), ("two", 3)):
        for i in range(first, first + 6):
            info = PngImagePlugin.PngInfo()
            info.add_itxt("prompt", f"caption {i}")
            (tmp_path / name).mkdir(exist_ok=True)
            shade = 200 if name == "one" else 20
            image = Image.new("RGB", (8, 8), (shade, 10 * i, 0))
            image.save(tmp_path / name / f"{i}.png", pnginfo=info)
    return tmp_path


def test_pairs_are_blind_and_votes_are_counted(folders, capsys):
    out = folders / "pairs"
    flags = ["--a", str(folders / "one"), "--b", str(folders / "two"), "--out", str(out)]
    pairs.main(flags)
    rows = list(csv.DictReader((out / "votes.csv").open(encoding="utf-8")))
    assert sorted(row["caption"] for row in rows) == ["caption 3", "caption 4", "caption 5"]
    key = {row["pair"]: row for row in csv.DictReader((out / "key.csv").open(encoding="utf-8"))}
    with pytest.raises(UserError, match="no votes yet"):
        elo.main([str(out)])
    for row in rows:
        for side in ("left", "right"):
            image = Image.open(out / row[side])
            assert not getattr(image, "text", {})  # nothing tells a voter the model
            is_one = image.getpixel((0, 0))[0] == 200
            assert key[row["pair"]][side] == ("one" if is_one else "two")
        brighter = "left" if key[row["pair"]]["left"] == "one" else "right"
        row["photorealism"] = brighter if row is not rows[0] else "tie"
    with (out / "votes.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    elo.main([str(out)])
    printed = capsys.readouterr().out
    assert "photorealism: 3 votes" in printed
    assert "one over two: 83.3% (" in printed
    assert "caption_match" not in printed
    with pytest.raises(UserError, match="exists: give another --out"):
        pairs.main(flags)


def test_bad_votes_are_refused_by_line(tmp_path):
    path = tmp_path / "votes.csv"
    for text, why in (
        ("a,b\nx,y\n", "its columns must be a, b, winner, not a, b"),
        ("a,b,winner\nx,y,a\nx,y,z\n", "line 3: 'z' is none of a, b, tie"),
        ("a,b,winner\nx,x,a\n", "line 2: x is compared with itself"),
        ("a,b,winner\nx,y,Y\n", "line 2: 'Y' is none of a, b, tie$"),
        ("a,b,winner\nx,y,y\n", "line 2: 'y' is none of a, b, tie but the name of a .*: write b"),
        ("a,b,winner\nx,y\n", "line 2: '' is none of a, b, tie"),
        ("a;b;winner\nx;y;a\n", r"votes\.csv, line 1: its fields are separated by ';': save it"),
        ("a,b,winner\n", "no votes yet"),
        ("", "its columns must be a, b, winner, not"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=why):
            elo.main([str(path)])
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not a CSV file in UTF-8"):
        elo.main([str(path)])
    with pytest.raises(UserError, match="cannot read"):
        elo.main([str(tmp_path / "none.csv")])


def test_folders_without_pairs_are_named(tmp_path):
    with pytest.raises(UserError, match=r"has no key\.csv: give a folder that evaluate\.pairs"):
        elo.main([str(tmp_path)])
    (tmp_path / "key.csv").write_text("pair,left,right\n0,x,y\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"has no votes\.csv: give a folder"):
        elo.main([str(tmp_path)])
    columns = "pair,caption,left,right,photorealism,caption_match"
    for text, why in (
        (columns.replace(",", ";"), r"votes\.csv, line 1: its fields are separated by ';'"),
        (f"{columns}\n7,c,l,r,left,", r"votes\.csv, line 2: no pair '7' in key\.csv"),
        (f"{columns}\n0,c,l,r,,y", r"votes\.csv, line 2: 'y' is none of .*: write right"),
    ):
        (tmp_path / "votes.csv").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=why):
            elo.main([str(tmp_path)])


def test_folders_that_do_not_pair_are_refused(folders):
    flags = ["--a", str(folders / "one"), "--b", str(folders / "one"), "--out", str(folders / "x")]
    with pytest.raises(UserError, match="both models are named one: give --names"):
        pairs.main(flags)
    Image.new("RGB", (8, 8)).save(folders / "two" / "0.png")
    flags[3] = str(folders / "two")
    with pytest.raises(UserError, match=r"0\.png has no prompt in its metadata"):
        pairs.main(flags)
