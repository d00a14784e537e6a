"""Text to 256 px images.

    python examples/text2im.py runs/released

Editors with `# %%` cells run it step by step.
"""

# %% Models: any folder with a base model, and an upsampler if there is one
import sys
from pathlib import Path

from glide_jax import Glide

glide = Glide.load(sys.argv[1])
out = Path("out")

# %% Four images of a prompt; other seeds give other images
prompt = "an oil painting of a corgi"
samples = glide.generate(prompt, n=4, guidance_scale=3.0, steps=20, seed=0, progress=True)
samples.save_grid(out / "text2im.png")

# %% In two steps: generate at low resolution, and upsample one choice
low_res = glide.generate(prompt, n=4, steps=20, seed=0, upsample=False)
if glide.has("upsample"):
    upsampled = glide.upsample(low_res[2:3], prompt)
    upsampled.save_grid(out / "upsampled.png")

# %% A higher-order solver with fewer steps, and a negative prompt
samples = glide.generate(
    prompt, n=4, sampler="dpmpp_2m", steps="karras15", negative_prompt="a photograph"
)
samples.save_grid(out / "negative.png")
