"""Features of FID's Inception, against pytorch-fid's network, side by side in one run.

    pip install -e '.[bench]'
    python -m benchmarks.inception

Both take 8-bit images of 256 px to features on the host, with the same random weights and resizing
("torch"), one turn after the other on one core; the fastest turn counts, in CPU seconds. The ratio
is pytorch-fid's time divided by ours: above 1, this project is faster. The features are compared
first. pytorch-fid's network computes `pool` only, ours all of its outputs.
"""

import argparse
import os
import time

if hasattr(os, "sched_setaffinity"):  # before JAX and PyTorch start their threads
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import jax
import numpy as np
import torch
from pytorch_fid import inception as pytorch_fid

from benchmarks.programs import Call, fastest
from glide_jax.evaluation.features import FeatureExtractor
from glide_jax.models.inception import inception
from glide_jax.parallel.host_memory import keep_freed_memory
from glide_jax.pretrained.feature_names import INCEPTION
from glide_jax.pretrained.names import to_original


def random_params() -> dict[str, np.ndarray]:
    """Weights that keep the variance of activations."""
    params = inception().init(seed=0)
    return {n: x * np.float32(6**0.5) if x.ndim == 4 else x for n, x in params.items()}


def torch_network(params: dict[str, np.ndarray]) -> torch.nn.Module:
    """pytorch-fid's network with these weights instead of those that it downloads."""
    state = {
        name: torch.tensor(np.ascontiguousarray(x))
        for name, x in to_original(params, INCEPTION).items()
    }
    pytorch_fid.load_state_dict_from_url = lambda url, progress: state
    return pytorch_fid.InceptionV3().eval()


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=16, help="of a batch")
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    params = random_params()
    network = torch_network(params)
    ours = FeatureExtractor("inception", params, "", "torch", given.images, jax.devices()[:1])
    images = np.random.default_rng(0).integers(0, 256, (given.images, 256, 256, 3), np.uint8)

    @torch.inference_mode()
    def theirs() -> np.ndarray:
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        return network(x)[0][:, :, 0, 0].numpy()

    expected = theirs()
    difference = np.abs(ours(images)["pool"] - expected).max() / np.abs(expected).max()
    print(f"one CPU core; jax {jax.__version__}, torch {torch.__version__}")
    print(f"largest difference of the features: {difference:.1e} of the largest")
    calls = {"ours": Call(lambda: ours(images)), "pytorch-fid": Call(theirs)}
    times = fastest(calls, given.turns, time.process_time)
    each = ", ".join(f"{name} {s / given.images:.3g} s an image" for name, s in times.items())
    print(f"{each}, ratio {times['pytorch-fid'] / times['ours']:.2f}")


if __name__ == "__main__":
    main()
