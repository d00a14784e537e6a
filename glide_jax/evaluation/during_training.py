"""Metrics of samples during training: of the same held-out captions and seeds every time.

Features are of EfficientNet-Lite0, which needs no download. Values compare between steps, and
between runs with the same validation split, train.evaluate_examples and sample.* settings.
"""

from glide_jax.config import Config, ModelConfig
from glide_jax.data.records import Source
from glide_jax.data.validation import validation_examples
from glide_jax.errors import UserError
from glide_jax.evaluation.feature_networks import NETWORKS
from glide_jax.evaluation.features import FeatureExtractor, load_extractor
from glide_jax.evaluation.suite import compare, measure, needs, require_metrics
from glide_jax.runs.fine_tune import KINDS
from glide_jax.runs.folder import Run
from glide_jax.sampling.stage import Weights
from glide_jax.training.frozen_clip import FrozenClip
from glide_jax.training.preview import HeldOutSampler

NETWORK = "efficientnet-lite0"


def extractor_of(config: Config) -> FeatureExtractor | None:
    """The feature extractor for the metrics of a run; None if it is not evaluated.

    Raises:
        UserError: its weights are not installed, a metric is unknown, or the model
            generates no images.
    """
    if not config.train.evaluate_every_steps:
        return None
    if not isinstance(config.model, ModelConfig):
        kind = KINDS[config.model.kind]
        raise UserError(
            f"train.evaluate_every_steps must be 0 for a {kind}: it generates no images"
        )
    require_metrics(config.train.evaluate_metrics, NETWORKS[NETWORK].title)
    return load_extractor(NETWORK)


class TrainingEvaluation:
    """Metrics of samples for held-out captions, against the images of these captions.

    Sample i has seed i. Upsamplers and inpainting models get what they condition on from the image.

    Args:
        run: with its tokenizer.
        held_out: the validation split.
        extractor: from `extractor_of`.
        clip: of train.clip_run, for unCLIP's decoder.

    Raises:
        UserError: too few images can be read, or config.sample has settings that the model cannot
            use.
    """

    def __init__(
        self,
        run: Run,
        held_out: Source,
        extractor: FeatureExtractor,
        clip: FrozenClip | None = None,
    ) -> None:
        settings = run.config.train
        self._extractor = extractor
        self._metrics = settings.evaluate_metrics
        self._sampler = HeldOutSampler(run.config, run.tokenizer, clip)
        examples = validation_examples(
            held_out, run.config, settings.evaluate_examples, full_size=True
        )
        if len(examples) < 2:
            raise UserError("train.evaluate_every_steps needs at least 2 images to validate on")
        self._prompts = [example.caption for example in examples]
        self._conditions = self._sampler.conditions(examples)
        images = (example.pixels for example in examples)
        self._reference = measure(images, extractor, needs(self._metrics))

    def __call__(self, params: Weights) -> tuple[dict[str, float], str]:
        """Metrics of samples by these parameters: evaluation_NAME, evaluation_NAME_error; in words.

        Raises:
            UserError: the samples are not finite.
        """
        seeds = range(len(self._prompts))
        samples = self._sampler.sample(params, self._prompts, seeds, self._conditions)
        found = measure(samples, self._extractor, needs(self._metrics))
        results = compare(self._metrics, found, self._reference, self._extractor.title)
        values = {}
        for result in results:
            name = f"evaluation_{result.name.partition(' ')[0].lower()}"
            values[name] = result.value
            if result.error is not None:
                values[f"{name}_error"] = result.error
        return values, ", ".join(map(str, results))
