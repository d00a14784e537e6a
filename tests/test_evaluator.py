"""guided-diffusion's evaluator end to end: the same images and weights give its numbers."""

from pathlib import Path

import numpy as np
import pytest

from glide_jax.evaluation.metrics.inception_score import inception_score
from glide_jax.evaluation.metrics.precision_recall import precision_recall
from glide_jax.evaluation.suite import compare, measure

GOLDEN = Path(__file__).parent / "golden" / "evaluation" / "evaluator_end_to_end.npz"
EXACT = 1e-4
"""Of the covariances by singular values: guided-diffusion's square root of a matrix is noisy, since
there are fewer images than dimensions."""


@pytest.mark.slow
def test_the_numbers_of_guided_diffusions_evaluator(inception):
    golden = np.load(GOLDEN)
    extractor = inception("tf1", int(golden["seed"]))
    wanted = {"statistics", "spatial", "features", "logits"}
    reference, samples = (
        measure(golden[f"{name}_images"], extractor, wanted) for name in ("ref", "sample")
    )
    metrics = ["fid", "sfid", "is", "precision_recall"]
    found = {r.name: r.value for r in compare(metrics, samples, reference, extractor.title)}
    assert list(found) == ["FID", "sFID", "IS", "precision", "recall"]
    for name in ("fid", "sfid"):
        value = found["FID" if name == "fid" else "sFID"]
        assert value == pytest.approx(float(golden[f"{name}_exact"]), rel=1e-5)
        assert value == pytest.approx(float(golden[name]), rel=EXACT)
    assert found["IS"] == pytest.approx(float(golden["inception_score"]), rel=1e-5)
    for name in ("precision", "recall"):
        assert found[name] == pytest.approx(float(golden[name]), abs=1e-9)
    for name in golden.files:
        if name.startswith("inception_score_split"):
            split = int(name.removeprefix("inception_score_split"))
            assert inception_score(samples.logits, split).value == pytest.approx(
                float(golden[name]), rel=1e-5
            )
    in_float32 = precision_recall(samples.features, reference.features, arithmetic="float32")
    assert in_float32.precision.value == pytest.approx(float(golden["precision_fp32"]), abs=1e-9)
    assert in_float32.recall.value == pytest.approx(float(golden["recall_fp32"]), abs=1e-9)
