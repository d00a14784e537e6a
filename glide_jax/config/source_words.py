"""Data sources as words: `--data.source tfds coco_captions caption_key=captions/text`.

Words are a kind, the value of its first setting, and other settings as NAME=VALUE. A mixture's
words are its parts, each a weight and a source in quotes, with splits of its own if needed:
`--data.source mixture "3 folder cats/" "1 tfds coco_captions train_split=train[:90%]"`.
"""

import dataclasses
import shlex
import typing
from collections.abc import Sequence
from typing import Any

from glide_jax.config.checks import Settings
from glide_jax.config.data import DataConfig
from glide_jax.config.serialize import from_plain
from glide_jax.config.sources import AnySource, Mixture, MixturePart, OneSource, Unknown
from glide_jax.errors import UserError

FLAG = "--data.source"
SPLITS = ("train_split", "validation_split")
"""Settings of a data source, which the words of a mixture's part may contain."""
KINDS: dict[str, Any] = {source.kind: source for source in typing.get_args(OneSource)}


def parse_source(words: Sequence[str]) -> AnySource:
    """The data source that words describe. Raises UserError if they describe none."""
    if words and words[0] == Mixture.kind:
        if len(words) == 1:
            raise UserError(f'{FLAG} mixture: give its parts: "3 folder cats/" "1 folder dogs/"')
        return Mixture(tuple(map(_part, words[1:])))
    return _one(words, " ".join([FLAG, *words]))


def spell_source(source: AnySource) -> tuple[str, ...]:
    """The words from which `parse_source` makes this source."""
    if not isinstance(source, Mixture):
        return _words(source)
    parts = []
    for part in source.parts:
        splits = _changes(part, SPLITS)
        parts.append(shlex.join([str(part.weight), *_words(part.source), *splits]))
    return (Mixture.kind, *parts)


def splits_for(words: Sequence[str], data: DataConfig) -> DataConfig:
    """Settings of the data once words name its source: splits are of one kind of source."""
    if not words or words[0] == data.source.kind:
        return data
    defaults = DataConfig()
    return dataclasses.replace(data, **{name: getattr(defaults, name) for name in SPLITS})


def _one(words: Sequence[str], where: str) -> Any:
    kind = KINDS.get(words[0]) if words else None
    if kind is None:
        raise UserError(f"{where}: begin with one of {', '.join([*KINDS, Mixture.kind])}")
    values = _values(words[1:], _names(kind), where)
    return from_plain(kind, values, where, kind.dotted() + ".")


def _part(text: str) -> MixturePart:
    where = f"{FLAG} mixture {text!r}"
    try:
        weight, *words = shlex.split(text)
        number = float(weight)
    except ValueError as error:  # no word, an open quotation, no number
        raise UserError(f"{where}: begin with a weight, as in '3 folder cats/' ({error})") from None
    splits: dict[str, str] = {}
    for word in tuple(words):
        name, equals, value = word.partition("=")
        if equals and name in SPLITS:
            if name in splits:
                raise UserError(f"{where}: {name} is given twice")
            splits[name] = value
            words.remove(word)
    source = _one(words, where)
    try:
        return MixturePart(number, source, **splits)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _values(words: Sequence[str], names: Sequence[str], where: str) -> dict[str, str]:
    """Values by name; the first word without a known NAME= is the value of the first name."""
    values: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in names:
            name, value = names[0], word
        if name in values:
            raise UserError(
                f"{where}: unexpected {word!r}; give {names[0].upper()}, then NAME=VALUE with "
                f"names of {', '.join(names)}"
            )
        values[name] = value
    return values


def _words(source: OneSource | Unknown) -> tuple[str, ...]:
    if isinstance(source, Unknown):
        return (source.kind,)
    first, *others = _names(type(source))
    value = getattr(source, first)
    if "=" in value and value.partition("=")[0] in (first, *others, *SPLITS):
        value = f"{first}={value}"  # it would be read as NAME=VALUE itself
    return (source.kind, value, *_changes(source, others))


def _changes(group: Settings, names: Sequence[str]) -> list[str]:
    """NAME=VALUE of the settings that differ from their defaults."""
    fields: Any = dataclasses.fields(group)  # type: ignore[arg-type]
    defaults = {field.name: field.default for field in fields}
    values = {name: getattr(group, name) for name in names}
    return [f"{name}={value}" for name, value in values.items() if value != defaults[name]]


def _names(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]
