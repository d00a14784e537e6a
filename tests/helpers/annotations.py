"""Annotations are checked at every call: shapes where arrays are annotated, only types elsewhere.

jaxtyping's import hook (--jaxtyping-packages in setup.cfg) checks every call for shapes that agree
between arguments. Without arrays there are none, and to check types alone is ten times as quick.
"""

import dataclasses
import inspect
import re

import jaxtyping
from beartype import BeartypeConf, beartype

with_shapes = jaxtyping.jaxtyped
# The same error for both: a TypeError, as files with values of wrong types raise.
with_types = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))


def _mentions_arrays(function) -> bool:
    """Whether to check shapes; a name in quotes may be any type, which jaxtyping looks up."""
    annotations = getattr(function, "__annotations__", {}).values()
    return any(
        isinstance(one, str) or re.search("jaxtyping|ForwardRef", repr(one)) for one in annotations
    )


def _checked(checked, typechecker):
    if not inspect.isclass(checked):
        shapes = _mentions_arrays(checked)
        return with_shapes(checked, typechecker=typechecker) if shapes else with_types(checked)
    if dataclasses.is_dataclass(checked) and "__init__" in vars(checked):
        checked.__init__ = _checked(checked.__init__, typechecker)
    return checked


def install() -> None:
    """Before the first import of the package: the hook decorates with what stands here."""
    jaxtyping.jaxtyped = lambda *, typechecker: lambda checked: _checked(checked, typechecker)
