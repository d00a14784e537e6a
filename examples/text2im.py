"""Text to 256 px images.

    python examples/text2im.py runs/released

In an editor that knows `# %%` cells, run it step by step.
"""

# %% Models: any folder with a base model, and an upsampler if there is one
import sys
from pathlib import Path

from glide_jax import Glide
from glide_jax.images import save_grid

glide = Glide.load(sys.argv[1])
out = Path("out")

# %% Four images for a prompt; another seed gives others
prompt = "an oil painting of a corgi"
images = glide.generate([prompt], n=4, guidance_scale=3.0, steps=20, seed=0, progress=True)
save_grid(out / "text2im.png", images, [prompt] * 4, columns=4)

# %% The same in two steps: small images first, and only the one you like is enlarged
small = glide.generate([prompt], n=4, steps=20, seed=0, upsample=False)
if glide.has("upsample"):
    large = glide.upsample(small[2:3], [prompt])
    save_grid(out / "enlarged.png", large, [prompt], columns=1)

# %% Fewer steps with a better solver, and away from what is not wanted
images = glide.generate(
    [prompt], n=4, sampler="dpmpp_2m", steps="karras15", negative_prompt="a photograph"
)
save_grid(out / "negative.png", images, [prompt] * 4, columns=4)
