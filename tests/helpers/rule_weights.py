"""Weights by a rule: golden values of networks whose weights are too large to store."""

import json
import math
import zlib
from functools import cache
from pathlib import Path

import jax
import numpy as np

from glide_jax.evaluation.features import FeatureExtractor
from glide_jax.models.inception import inception
from glide_jax.pretrained.feature_names import INCEPTION
from glide_jax.pretrained.names import from_original

GOLDEN = Path(__file__).parent.parent / "golden" / "evaluation"


def rule_weights(shapes, seed=0):
    """Tensors by PyTorch name, float32, from their shapes in PyTorch's layout."""
    return {name: rule_weight(name, tuple(shape), seed) for name, shape in shapes.items()}


def rule_weight(name, shape, seed=0):
    """One tensor: its values depend on its name, its shape and the seed only."""
    random = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
    if name.endswith("running_var"):
        values = random.uniform(0.25, 0.75, shape)
    elif name.endswith("running_mean"):
        values = 0.1 * random.standard_normal(shape)
    elif len(shape) == 1 and name.endswith("weight"):
        values = random.uniform(0.5, 1.5, shape)
    elif len(shape) == 1:
        values = 0.1 * random.standard_normal(shape)
    else:
        values = random.standard_normal(shape) * math.prod(shape[1:]) ** -0.5
    return values.astype(np.float32)


@cache
def inception_shapes():
    """Shapes of the PyTorch port of FID's Inception by name, without counters of batches."""
    return json.loads((GOLDEN / "inception_state_dict.json").read_text(encoding="utf-8"))


@cache
def inception_extractor(resize="", seed=0):
    """FID's Inception with weights by rule, 2 images at a time on one device."""
    params = _inception_params(seed)
    return FeatureExtractor("inception", params, f"rule {seed}", resize, 2, jax.devices()[:1])


@cache
def _inception_params(seed):
    weights = rule_weights(inception_shapes(), seed)
    return jax.device_put(from_original(weights, inception().shapes, INCEPTION), jax.devices()[0])
