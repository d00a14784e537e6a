"""Which checkpoints a run keeps, and which of them a path names."""

import json
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import pytest
from helpers import model_set, tiny
from helpers.kill_while_saving import state_of

from glide_jax import UserError
from glide_jax.config import TrainConfig
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.parallel.process_group import ProcessGroup
from glide_jax.runs.checkpoint import Checkpoints
from glide_jax.runs.folder import Run
from glide_jax.runs.kept import Best, Kept, best_of, logged_values
from glide_jax.runs.paths import saved_steps

HOST = {"loader": {}, "log": {"window": {}}}


def write_metrics(run_dir, name, values):
    lines = [json.dumps({"step": step, name: value}) for step, value in values.items()]
    (run_dir / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 9, "lo']))


def test_the_nature_of_a_metric_says_whether_higher_is_better():
    values = {1: 0.5, 2: 0.25, 3: 0.75, 4: 0.25}
    for metric in ("validation_loss", "validation_mse_t000-199", "evaluation_kid", "evaluation_fd"):
        assert best_of(values, metric, [4, 3, 2, 1, 0]) == 2  # the first of equals
    for metric in ("validation_accuracy", "evaluation_precision", "evaluation_coverage"):
        assert best_of(values, metric, values) == 3
    assert best_of(values, "validation_loss", [7]) is None


def test_the_newest_every_kth_and_the_best_are_kept():
    best = Best("validation_loss", {1: 0.1, 2: 0.3, 5: 0.2})
    kept = Kept(2, every_steps=4, best=best)
    checkpoints = [SimpleNamespace(step=step) for step in (1, 2, 4, 5, 6, 7)]
    assert kept.should_preserve(checkpoints, context=None) == [True, False, True, False, True, True]
    without = Kept(2).should_preserve(checkpoints, context=None)
    assert without == [False, False, False, False, True, True]


def test_a_resumed_run_keeps_its_best_checkpoint(tmp_path):
    settings = TrainConfig(
        max_checkpoints=1, best_metric="validation_loss", keep_checkpoint_every_steps=4
    )
    (tmp_path / "checkpoints").mkdir()

    def trained(steps, losses):
        kept = Kept.of(tmp_path, settings, ProcessGroup())
        with closing(Checkpoints(tmp_path, kept)) as checkpoints:
            for step in steps:
                if step % 2 == 0:
                    checkpoints.save(state_of(step), HOST)
                if step in losses and checkpoints.is_best(step, {"validation_loss": losses[step]}):
                    checkpoints.save(state_of(step), HOST)
        write_metrics(tmp_path, "validation_loss", {**logged(), **losses})

    def logged():
        return logged_values(tmp_path, "validation_loss")

    trained(range(1, 4), {1: 0.4, 2: 0.2, 3: 0.2})
    assert saved_steps(tmp_path) == [2, 1]  # 1 was the best when 2 was saved
    trained(range(3, 6), {3: 0.1, 5: float("nan")})  # not the newest: 4, which has no loss
    assert saved_steps(tmp_path) == [4, 3]
    trained(range(5, 11), {5: 0.3, 7: 0.05, 10: 0.2})
    assert saved_steps(tmp_path) == [10, 8, 7, 4]
    assert Kept.of(tmp_path, settings, ProcessGroup()).best.best(saved_steps(tmp_path)) == 7


def test_a_metric_that_is_not_computed_is_refused():
    best = Best("validation_los", {})
    assert not best.improves(1, {"evaluation_kid": 0.1}, [])
    with pytest.raises(UserError, match=r"validation_los, .* choose from validation_loss$"):
        best.improves(1, {"validation_loss": 0.1}, [])
    for metric in ("loss", "evaluation_kid"):
        with pytest.raises(UserError, match=r"train\.best_metric"):
            TrainConfig(best_metric=metric)


def test_a_path_names_one_of_the_checkpoints(tmp_path):
    config = model_set.clip_config()
    tokenizer = Tokenizer.train(model_set.CAPTIONS, 300)
    best = replace(
        config, train=replace(tiny.get_config().train, best_metric="validation_accuracy")
    )
    run = Run.create(tmp_path / "run", best, tokenizer)
    params = run.network.init(seed=0)
    with closing(Checkpoints(run.path, 9)) as checkpoints:
        for step in (1, 2, 3):
            ema = {name: value + step for name, value in params.items()}
            checkpoints._save(step, {"ema": ema}, {})
    folder = run.path / "checkpoints"
    with pytest.raises(UserError, match="no checkpoint of a step with validation_accuracy"):
        Run.open(folder / "best")
    write_metrics(run.path, "validation_accuracy", {1: 0.1, 2: 0.3, 3: 0.2, 4: 0.9})
    opened = {name: Run.open(folder / name) for name in ("1", "2", "3", "best")}
    assert {run.path} == {one.path for one in opened.values()}
    assert opened["best"].fingerprint == opened["2"].fingerprint
    assert opened["3"].fingerprint == Run.open(run.path).fingerprint != opened["1"].fingerprint
    assert opened["best"].weights()["logit_scale"] == params["logit_scale"] + 2
    with pytest.raises(UserError, match="no complete checkpoint of step 7: it keeps steps 3, 2, 1"):
        Run.open(folder / "7")
