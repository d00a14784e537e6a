"""Linear probes: what image embeddings of a CLIP hold of the built-in data set's scenes.

    python -m glide_jax.evaluation.scenes.linear_probe --checkpoint demo/clip

A linear classifier of each attribute is fitted to the embeddings of training images, and its
accuracy on held-out images is printed. What no linear classifier finds in the embeddings, unCLIP's
variations can hardly keep.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import Float

from glide_jax.cli import parse_flags
from glide_jax.compilation import keep_compiled_programs
from glide_jax.config.bounds import Between
from glide_jax.data.scenes.graph import Scene, make
from glide_jax.errors import UserError, exit_on_user_error
from glide_jax.evaluation.scenes.flags import SCENES, SplitFlags, has_closeups, require_scenes
from glide_jax.evaluation.scenes.score import ATTRIBUTES, MEASURES
from glide_jax.parallel.sharding import use_all_cores
from glide_jax.runs.folder import Run
from glide_jax.sampling.clip import ClipScorer
from glide_jax.sampling.latents import MAX_EMBEDDINGS
from glide_jax.sampling.stage import MAX_BATCH

RIDGE = 1.0
"""Weight of the classifiers' squared norm, for embeddings of unit variance."""


@dataclass(frozen=True, kw_only=True)
class Arguments(SplitFlags):
    """Fits linear classifiers of scenes' attributes to a CLIP's image embeddings.

    Prints the accuracy of each on held-out images, and that of the most frequent answer.
    """

    checkpoint: str | Path
    """Run folder of a CLIP that was trained on scenes."""
    n: Annotated[int, SCENES] = 1024
    """Number of scenes: the first of the split."""
    embeddings: Annotated[int, Between(2, MAX_EMBEDDINGS)] = 4096
    """Number of training scenes to whose embeddings the classifiers are fitted."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command. Raises UserError."""
    arguments: Arguments = parse_flags(
        Arguments, "python -m glide_jax.evaluation.scenes.linear_probe", argv
    )
    arguments.check()
    keep_compiled_programs()
    use_all_cores(MAX_BATCH)
    run = Run.open(arguments.checkpoint)
    if run.config.model.kind != "clip":
        raise UserError(f"{run.path} is no CLIP: give the run folder of one, such as demo/clip")
    require_scenes(run.config)
    clip, px = ClipScorer.load(run), run.config.clip.resolution_px
    closeup = has_closeups(run.config.data)

    def embedded(flags: SplitFlags) -> tuple[Float[np.ndarray, "n d"], list[dict[str, str]]]:
        scenes = [make(flags.split, index, closeup=closeup)[0] for index in range(flags.n)]
        return clip.embed_images(list(flags.images(px, closeup))), [*map(answers, scenes)]

    fitted_to = embedded(SplitFlags(n=arguments.embeddings, split="train"))
    print("attribute   accuracy  most frequent answer")
    for name, accuracy, most_frequent in probed(*fitted_to, *embedded(arguments)):
        print(f"{name:10}  {accuracy:8.1%}  {most_frequent:20.1%}")


def answers(scene: Scene) -> dict[str, str]:
    """What a scene shows, by measure: attributes only of a single object, no size of close-ups."""
    found = {"count": str(len(scene.things)), "background": scene.background}
    if len(scene.things) > 1:
        return found | {"relation": scene.relation}
    attributes = {name: getattr(scene.things[0], name) for name in ATTRIBUTES}
    return found | {name: answer for name, answer in attributes.items() if answer}


def probed(
    train: Float[np.ndarray, "n d"],
    train_answers: Sequence[dict[str, str]],
    test: Float[np.ndarray, "n2 d"],
    test_answers: Sequence[dict[str, str]],
) -> list[tuple[str, float, float]]:
    """Accuracies of linear classifiers, fitted by ridge regression to one-hot answers.

    Args:
        train: embeddings to fit to.
        train_answers: by measure, for each of them; see `answers`.
        test, test_answers: the same of held-out images.

    Returns:
        Measure, accuracy, and the accuracy of always giving the most frequent answer.
    """
    mean, std = train.mean(0), np.maximum(train.std(0), 1e-6)
    found = []
    for name in MEASURES:
        ours = [i for i, answer in enumerate(train_answers) if name in answer]
        theirs = [i for i, answer in enumerate(test_answers) if name in answer]
        if not ours or not theirs:
            continue
        words, labels = np.unique([train_answers[i][name] for i in ours], return_inverse=True)
        true = np.array([test_answers[i][name] for i in theirs])
        fitted, features = (
            np.pad((z[which] - mean) / std, ((0, 0), (0, 1)), constant_values=1.0)
            for z, which in ((train, ours), (test, theirs))
        )
        gram = fitted.T @ fitted + RIDGE * np.eye(fitted.shape[1])
        weights = np.linalg.solve(gram, fitted.T @ np.eye(len(words))[labels])
        accuracy = float(np.mean(words[(features @ weights).argmax(1)] == true))
        most_frequent = float(np.mean(true == words[np.bincount(labels).argmax()]))
        found.append((name, accuracy, most_frequent))
    return found


if __name__ == "__main__":
    with exit_on_user_error():
        main()
