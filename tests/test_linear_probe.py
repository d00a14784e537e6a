"""Linear probes of image embeddings."""

import numpy as np
import pytest

from glide_jax.data.scenes.graph import make
from glide_jax.errors import UserError
from glide_jax.evaluation.scenes.linear_probe import answers, main, probed

WORDS = ("circle", "ring", "star")


def test_a_probe_reads_what_is_linear_in_the_embeddings_and_nothing_else():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 600)
    directions = rng.standard_normal((3, 8))
    embeddings = 5 + 1e-3 * (directions[labels] + 0.1 * rng.standard_normal((600, 8)))
    known = [{"shape": WORDS[label], "color": str(rng.integers(4))} for label in labels]
    shape, color = probed(embeddings[:400], known[:400], embeddings[400:], known[400:])
    assert shape[:2] == ("shape", 1.0)
    assert color[0] == "color"
    assert color[1] < 0.4  # four random answers
    assert 0.2 < color[2] < 0.4


def test_the_demo_clip_knows_colors_better_than_shapes(capsys):
    main(["--checkpoint", "demo/clip", "--n", "64", "--embeddings", "128"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    found = {name: float(accuracy.rstrip("%")) for name, accuracy, _ in lines}
    assert list(found) == [
        "count", "shape", "color", "size", "texture", "relation", "background",
    ]  # fmt: skip
    assert found["color"] > 90 > 50 > found["shape"]


def test_only_a_clip_is_probed():
    with pytest.raises(UserError, match="demo/prior is no CLIP"):
        main(["--checkpoint", "demo/prior"])
    with pytest.raises(UserError, match=r"contains run folders: give one of .*clip, decoder"):
        main(["--checkpoint", "demo"])


def test_attributes_of_two_objects_are_left_out():
    scenes = [make("train", index, closeup=False)[0] for index in range(50)]
    for scene in scenes:
        found = answers(scene)
        assert ("shape" in found) == (len(scene.things) == 1) == ("relation" not in found)
        assert found["background"] == scene.background
    closeup, _ = make("train", 0, closeup=True)
    assert set(answers(closeup)) == {"count", "shape", "color", "texture", "background"}
