"""Floating-point operations of a training step, for model FLOPs utilization (MFU)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var

from glide_jax.config import ClipConfig, Config, Embeddings, Mixture, ModelConfig, PriorConfig
from glide_jax.parallel.chips import chip_of
from glide_jax.shapes import Batch
from glide_jax.training.objective import Objective


def abstract_batch(config: Config, clip: ClipConfig | None = None) -> Batch:
    """Shapes and dtypes of a step's batch, over all devices and micro-batches.

    Args:
        config: the run.
        clip: the CLIP of train.clip_run; None if the data has image embeddings, or none are used.
    """
    b, l = config.train.batch_examples, config.model.text.length
    px = config.data.low_res.crop_px or config.model.resolution_px
    shape = jax.ShapeDtypeStruct
    source = config.data.source
    part = source.parts[0].source if isinstance(source, Mixture) else source  # others are as it
    given = clip is None or isinstance(part, Embeddings)
    image: Any = {"image": shape((b, px, px, 3), jnp.uint8)}
    if isinstance(config.model, PriorConfig) and given:
        image = {"image_embedding": shape((b, config.model.embedding_width), jnp.float32)}
    batch = image | {
        "tokens": shape((b, l), jnp.int32),
        "token_mask": shape((b, l), jnp.bool_),
    }
    if isinstance(config.model, ModelConfig):
        batch |= _image_inputs(config, config.model, given)
    if clip is not None and config.train.clip_loss_weight:
        batch["clip_tokens"] = shape((b, clip.text.length), jnp.int32)
        batch["clip_token_mask"] = shape((b, clip.text.length), jnp.bool_)
    return batch


def _image_inputs(
    config: Config, model: ModelConfig, given: bool
) -> dict[str, jax.ShapeDtypeStruct]:
    """What a denoiser's batch has of its images beside themselves; `given`, their embeddings."""
    b, shape = config.train.batch_examples, jax.ShapeDtypeStruct
    px = config.data.low_res.crop_px or model.resolution_px
    found = {}
    if model.inpaint:
        found["mask"] = shape((b, px, px, 1), jnp.bool_)
    if config.data.low_res.degradation != "none":
        small = px // model.upscale_factor
        found["low_res"] = shape((b, small, small, 3), jnp.uint8)
    clip_px = config.train.clip_px
    if model.image_embedding_width and given:
        found["image_embedding"] = shape((b, model.image_embedding_width), jnp.float32)
    elif clip_px:
        found["clip_image"] = shape((b, clip_px, clip_px, 3), jnp.uint8)
    return found


def step_flops(objective: Objective, batch: Batch) -> float:
    """Floating-point operations of a step: the matmuls of its loss and of the gradient.

    The definition of MFU (appendix B, arXiv 2204.02311): recomputation does not count. The trained
    network has three times the matmuls of a forward pass; a frozen CLIP has no backward pass.

    Args:
        objective: the run's objective.
        batch: arrays or their shapes.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = objective.network.shapes
    frozen = jax.eval_shape(lambda: objective.frozen)
    return float(matmul_flops(objective.validate, params, frozen, batch, key, gradient=True))


def utilization_flops(
    objective: Objective, config: Config, clip: ClipConfig | None = None
) -> dict[str, float]:
    """The two numbers of the MFU: `flops` of a step, and `peak_flops` of all devices per second.

    Both are 0 where the devices' peak is unknown. Args as of `step_flops` and `abstract_batch`.
    """
    chip = chip_of(jax.devices()[0].device_kind)
    if chip is None:
        return {"flops": 0.0, "peak_flops": 0.0}
    flops = step_flops(objective, abstract_batch(config, clip))
    return {"flops": flops, "peak_flops": chip.flops * jax.device_count()}


def matmul_flops(function: Callable[..., Any], *arguments: Any, gradient: bool = False) -> int:
    """Operations in a function's matmuls and convolutions; a multiply-add counts as two.

    Args:
        function: a traceable function of arrays.
        arguments: arrays or their shapes.
        gradient: also count the gradient by the first argument: a matmul of the same size for each
            operand that depends on it.
    """
    traced = jax.make_jaxpr(function)(*arguments).jaxpr
    variable = len(jax.tree.leaves(arguments[0])) if gradient else 0
    return _flops(traced, [place < variable for place in range(len(traced.invars))])[0]


def _flops(jaxpr: Jaxpr, given: Sequence[bool]) -> tuple[int, list[bool]]:
    """Operations of a jaxpr and of its gradient.

    Args:
        jaxpr: the program.
        given: whether each input depends on what the gradient is by.

    Returns:
        The operations, and whether each output depends on it.
    """
    depends = dict(zip(jaxpr.invars, given, strict=True))

    def of(variables: Sequence[Any]) -> list[bool]:
        return [isinstance(v, Var) and depends.get(v, False) for v in variables]

    total = 0
    for equation in jaxpr.eqns:
        operands = of(equation.invars)
        found, results = _equation_flops(equation, operands)
        total += found
        depends |= zip(equation.outvars, results, strict=True)
    return total, of(jaxpr.outvars)


def _equation_flops(equation: JaxprEqn, operands: list[bool]) -> tuple[int, list[bool]]:
    """`_flops` of one equation."""
    settings = equation.params
    any_result = [any(operands)] * len(equation.outvars)
    if equation.primitive.name in ("dot_general", "conv_general_dilated"):
        return (1 + sum(operands)) * _once(equation), any_result
    if equation.primitive.name == "scan":
        return _scan_flops(equation, operands)
    total = 0
    for inner in _inner(settings):
        is_call = len(inner.invars) == len(operands)
        given = operands if is_call else [any(operands)] * len(inner.invars)
        found, results = _flops(inner, given)
        total += found
        if is_call and len(results) == len(any_result):
            any_result = results
    return total, any_result


def _scan_flops(equation: JaxprEqn, operands: list[bool]) -> tuple[int, list[bool]]:
    """`_flops` of a loop, whose carry depends on all that its iterations add to it."""
    (body,) = _inner(equation.params)
    # What iterations slice or stack has one axis more outside of the body than inside.
    carried = _same_shapes(equation.outvars, body.outvars)
    first = _same_shapes(equation.invars, body.invars) - carried
    while True:
        found, results = _flops(body, operands)
        before = operands[first : first + carried]
        after = [a or b for a, b in zip(before, results, strict=False)]
        if after == before:
            return equation.params["length"] * found, results
        operands = [*operands[:first], *after, *operands[first + carried :]]


def _same_shapes(outside: Sequence[Any], inside: Sequence[Any]) -> int:
    return sum(a.aval.shape == b.aval.shape for a, b in zip(outside, inside, strict=True))


def _once(equation: JaxprEqn) -> int:
    """Operations of a matmul or a convolution."""
    settings = equation.params
    avals: list[Any] = [v.aval for v in (*equation.invars, *equation.outvars)]
    shapes = [aval.shape for aval in avals]
    if equation.primitive.name == "conv_general_dilated":
        return _convolution_flops(shapes, settings)
    (contracted, _), _ = settings["dimension_numbers"]
    return 2 * math.prod(shapes[-1]) * math.prod(shapes[0][axis] for axis in contracted)


def _convolution_flops(shapes: list[tuple[int, ...]], settings: dict[str, Any]) -> int:
    """Operations of a convolution, without those on padding."""
    x, kernel, out = shapes[:3]
    layout = settings["dimension_numbers"]
    taps = (
        sum(
            0 <= place * stride - padding[0] + tap < x[axis]
            for place in range(out[out_axis])
            for tap in range(kernel[kernel_axis])
        )
        for axis, kernel_axis, out_axis, stride, padding in zip(
            layout.lhs_spec[2:],
            layout.rhs_spec[2:],
            layout.out_spec[2:],
            settings["window_strides"],
            settings["padding"],
            strict=True,
        )
    )
    channels_in, channels_out = (kernel[axis] for axis in layout.rhs_spec[1::-1])
    return 2 * x[layout.lhs_spec[0]] * channels_in * channels_out * math.prod(taps)


def _inner(settings: dict[str, Any]) -> list[Jaxpr]:
    """The jaxprs that an equation calls."""
    values = jax.tree.leaves(
        list(settings.values()), is_leaf=lambda x: isinstance(x, Jaxpr | ClosedJaxpr)
    )
    jaxprs = (value.jaxpr if isinstance(value, ClosedJaxpr) else value for value in values)
    return [jaxpr for jaxpr in jaxprs if isinstance(jaxpr, Jaxpr)]
