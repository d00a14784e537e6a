"""How tyro reads and explains flags: paths, data sources, and help from docstrings."""

import ast
import dataclasses
import inspect
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_type_hints

from glide_jax.config import AnySource
from glide_jax.config.source_words import parse_source, spell_source
from glide_jax.storage import expand_home


@cache
def field_docs(cls: type) -> dict[str, str]:
    """The docstring under each field of a class, in one line; none if there is no source file."""
    try:
        source = inspect.getsource(cls)
    except (OSError, TypeError):  # compiled or generated classes; flags work without their help
        return {}
    (body,) = ast.parse(inspect.cleandoc("\n" + source)).body
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for pair in pairwise(body.body):
        match pair:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                docs[name] = " ".join(text.split())
    return docs


def flag_rules() -> Any:
    """A registry for `tyro.cli`: `~` in paths, data sources in words, and help from docstrings.

    Tyro itself keeps the line breaks of docstrings, beside those that the terminal's width needs.
    """
    from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec

    registry = ConstructorRegistry()
    registry.primitive_rule(_words_rule)

    def dataclass_rule(info: Any) -> Any:
        if not dataclasses.is_dataclass(info.type):
            return None
        group: Any = info.type
        docs = {k: v for cls in reversed(group.__mro__) for k, v in field_docs(cls).items()}
        hints = get_type_hints(group, include_extras=True)
        fields = tuple(
            StructFieldSpec(
                name=one.name,
                type=hints[one.name],
                default=_default(one, info.default),
                helptext=docs.get(one.name),
            )
            for one in dataclasses.fields(group)
        )
        return StructConstructorSpec(instantiate=group, fields=fields)

    registry.struct_rule(dataclass_rule)
    return registry


def _words_rule(info: Any) -> Any:
    """A rule of `flag_rules` for paths and data sources.

    Flags that may be URLs are expanded by `path_of`.
    """
    from tyro.constructors import PrimitiveConstructorSpec

    if info.type == Path:
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="PATH",
            instance_from_str=lambda words: _path(words[0]),
            is_instance=lambda value: isinstance(value, Path),
            str_from_instance=lambda path: [str(path)],
        )
    if info.type in (AnySource, *get_args(AnySource)):
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar="KIND [VALUE] [NAME=VALUE ...]",
            instance_from_str=parse_source,
            is_instance=lambda value: isinstance(value, AnySource),
            str_from_instance=lambda source: list(spell_source(source)),
        )
    return None


def _path(word: str) -> Path:
    if not word:  # Path("") is the current directory
        raise ValueError('give a file or folder, not ""')
    return Path(expand_home(word))


def _default(one: dataclasses.Field[Any], instance: Any) -> Any:
    """The default of a flag: the field's value in an instance if there is one, else the field's."""
    from tyro import MISSING

    if dataclasses.is_dataclass(instance):
        return getattr(instance, one.name)
    if one.default_factory is not dataclasses.MISSING:
        return one.default_factory()
    return MISSING if one.default is dataclasses.MISSING else one.default
