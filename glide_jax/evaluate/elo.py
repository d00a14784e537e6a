"""Elo scores and win rates of models from votes on pairs of images.

    python -m glide_jax.evaluate.elo pairs/ more_pairs/
    python -m glide_jax.evaluate.elo votes.csv

Reads folders of `glide_jax.evaluate.pairs` whose votes.csv was filled in, or CSV files with the
columns `a`, `b` and `winner` (a, b or tie). Ties count half. Intervals are 95%.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from glide_jax.cli import parse_flags
from glide_jax.errors import UserError, exit_on_user_error
from glide_jax.evaluate.pairs import KEY_FILE, QUESTIONS, SIDES, VOTES_FILE
from glide_jax.evaluation.metrics.elo import Ranking, Vote, rank, win_rate
from glide_jax.storage import text_lines

SHARES = {"left": 1.0, "right": 0.0, "a": 1.0, "b": 0.0, "tie": 0.5}
"""What a vote gives to the left image, or to model a."""


@dataclass(frozen=True)
class Arguments:
    """Elo scores and win rates of models from votes on pairs of images."""

    votes: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of pairs with filled-in votes, or CSV files with the columns a, b, winner."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command. Raises UserError."""
    arguments: Arguments = parse_flags(Arguments, "python -m glide_jax.evaluate.elo", argv, __doc__)
    if not arguments.votes:
        raise UserError("no votes: give folders of pairs, or CSV files")
    votes: dict[str, list[Vote]] = {}
    for path in arguments.votes:
        for question, vote in _folder(path) if path.is_dir() else _file(path):
            votes.setdefault(question, []).append(vote)
    if not votes:
        raise UserError(f"{', '.join(map(str, arguments.votes))}: no votes yet")
    for question, of_question in votes.items():
        print_ranking(question, len(of_question), rank(of_question))


def print_ranking(question: str, votes: int, ranking: Ranking) -> None:
    """Prints scores and win rates with their intervals."""
    print(f"{question}: {votes:,} votes\n  Elo (95% interval)")
    width = max(map(len, ranking.models))
    for name, elo, low, high in zip(ranking.models, *ranking[1:4], strict=True):
        print(f"    {name:{width}}  {elo:+7.1f}  ({low:+.1f} to {high:+.1f})")
    print("  win rate (95% interval)")
    for i, j in zip(*np.triu_indices(len(ranking.models), 1), strict=True):
        wins, losses = ranking.wins[i, j], ranking.wins[j, i]
        if wins + losses:
            rate, low, high = win_rate(wins, losses)
            pair = f"{ranking.models[i]} over {ranking.models[j]}"
            print(f"    {pair}: {rate:.1%} ({low:.1%} to {high:.1%}) of {wins + losses:g}")


def _folder(folder: Path) -> Iterator[tuple[str, Vote]]:
    """The votes of a folder of pairs, by question."""
    key, votes = folder / KEY_FILE, folder / VOTES_FILE
    for file in (key, votes):
        if not file.is_file():
            raise UserError(f"{folder} has no {file.name}: give a folder that evaluate.pairs wrote")
    models = {row["pair"]: (row["left"], row["right"]) for row in _rows(key, ("pair", *SIDES))}
    for number, row in enumerate(_rows(votes, ("pair", *QUESTIONS)), 2):
        if row["pair"] not in models:
            raise UserError(f"{votes}, line {number}: no pair {row['pair']!r} in {KEY_FILE}")
        for question in QUESTIONS:
            answer = (row[question] or "").strip()
            if answer:
                pair = models[row["pair"]]
                yield question, Vote(*pair, _share(answer, SIDES, pair, votes, number))


def _file(path: Path) -> Iterator[tuple[str, Vote]]:
    """The votes of a CSV file; the question is its name."""
    for number, row in enumerate(_rows(path, ("a", "b", "winner")), 2):
        pair, answer = (row["a"], row["b"]), (row["winner"] or "").strip()
        if row["a"] == row["b"]:
            raise UserError(f"{path}, line {number}: {row['a']} is compared with itself")
        yield path.stem, Vote(*pair, _share(answer, ("a", "b"), pair, path, number))


def _share(
    answer: str, sides: tuple[str, str], models: tuple[str, str], path: Path, line: int
) -> float:
    """What a vote for one of the sides, or a tie, gives to the first. Raises UserError."""
    choices = (*sides, "tie")
    if answer.lower() in choices:
        return SHARES[answer.lower()]
    named = dict(zip(models, sides, strict=True)).get(answer)
    instead = f" but the name of a model: write {named}" if named else ""
    raise UserError(f"{path}, line {line}: {answer!r} is none of {', '.join(choices)}{instead}")


def _rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows of a CSV file with these columns. Raises UserError."""
    try:
        reader = csv.DictReader(text_lines(path.read_bytes()))
        found = reader.fieldnames or []
        if not set(columns) <= set(found):
            other = next((c for c in (";", "\t") if any(c in name for name in found)), None)
            raise UserError(
                f"{path}, line 1: its fields are separated by {other!r}: save it with ','"
                if other
                else f"{path}: its columns must be {', '.join(columns)}, not {', '.join(found)}"
            )
        return list(reader)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error):
        raise UserError(f"{path} is not a CSV file in UTF-8") from None


if __name__ == "__main__":
    with exit_on_user_error():
        main()
