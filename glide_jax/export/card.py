"""The model card of an exported model: what it is, where it comes from, and its license."""

from glide_jax.config import Config
from glide_jax.config.source_words import spell_source
from glide_jax.sampling.model_set import role_of

UNSTATED = "not stated: give `--license` before you share these weights"


def model_card(
    name: str, config: Config, step: int, parameters: int, dtype: str, license_name: str
) -> str:
    """A model card in Markdown.

    Args:
        name: the model's name.
        config: without private paths.
        step: of the exported checkpoint.
        parameters: number of parameters.
        dtype: of the stored parameters.
        license_name: of the weights; empty if not stated.
    """
    role, px = role_of(config), config.model.resolution_px
    rows = {
        "Model": f"{role}, {px} px, {parameters:,} parameters, stored in {dtype}",
        "Training": f"{step:,} steps of {config.train.batch_examples:,} images" if step else "",
        "Data": f"`{' '.join(spell_source(config.data.source))}`",
        "Started from": f"`{config.train.init_from}`" if config.train.init_from else "",
        "License": license_name or UNSTATED,
    }
    table = "".join(f"| {key} | {_cell(value)} |\n" for key, value in rows.items() if value)
    return f"""# {_cell(name)}

A {role} model of [GLIDE](https://arxiv.org/abs/2112.10741), trained with glide_jax.

| | |
| --- | --- |
{table}
The license is that of the weights. The licenses of the training data, and of the weights that
training started from, may restrict it. The code, glide_jax, has the MIT license.
"""


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
