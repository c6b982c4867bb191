"""Types, choices and bounds, read from annotations: one check for the command line, Python and stored files.

An annotation such as `Annotated[int, Interval(ge=1, le=100)]` or `Literal["rnn", "lstm"]` is all that a field needs.
Types are strict: an int is no float written as 1.0, no bool and no string. Floats are finite.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import reprlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Interval
from typing_extensions import TypedDict, is_typeddict

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_STRICT: Any = {"strict": True, "allow_inf_nan": False}

Count = Annotated[int, Interval(ge=1, le=2**31 - 1)]
Whole = Annotated[int, Interval(ge=0, le=2**31 - 1)]
Units = Annotated[int, Interval(ge=1, le=8192)]
"""Units of a layer. The largest matrix is 256 MiB."""
Seed = Annotated[int, Interval(ge=0, lt=2**31)]
Share = Annotated[float, Interval(ge=0, le=1)]
Percent = Annotated[float, Interval(ge=0, le=100)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]


def check_fields(kind: type, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a class, checked against its annotations. Ints given for floats become floats.

    Args:
        kind: a dataclass or a TypedDict.
        fields: all of them.

    Raises:
        ValueError: a field is missing or unknown, or has another type, choice or bound; the message names it, what it
            must be and what came.
    """
    return _check(_adapter(kind, False).validate_python, dict(fields))


def check_stored(kind: Any, value: Any) -> dict[str, Any]:
    """The same of what `json.loads` gave: arrays are given for tuples, and objects for dataclasses.

    Args:
        kind: a dataclass, a TypedDict or another annotation, `dict[str, float]` for instance.
        value: what `json.loads` gave.

    Raises:
        ValueError: as of `check_fields`.
    """
    return _check(_adapter(kind, True).validate_json, json.dumps(value))


def _check(validate: Any, value: Any) -> dict[str, Any]:
    from pydantic import ValidationError

    try:
        return validate(value)
    except ValidationError as error:
        first, *others = error.errors(include_url=False, include_context=False)
        name = ".".join(map(str, first["loc"]))
        more = f" ({len(others)} more)" if others else ""
        if first["type"] == "missing":
            raise ValueError(f"{name} is missing{more}") from None
        if first["type"] == "extra_forbidden":
            raise ValueError(f"{name} is no field of this version, got {reprlib.repr(first['input'])}{more}") from None
        if not first["msg"].startswith("Input should be "):
            raise ValueError(f"{name or 'it'}: {first['msg'].removeprefix('Value error, ')}{more}") from None
        wanted = first["msg"].removeprefix("Input should be ")
        raise ValueError(f"{name or 'it'} must be {wanted}, got {reprlib.repr(first['input'])}{more}") from None


@functools.cache
def _adapter(kind: Any, stored: bool) -> TypeAdapter[dict[str, Any]]:
    from pydantic import TypeAdapter

    if _has_fields(kind):
        return TypeAdapter(_typed_dict(kind, stored))
    return TypeAdapter(kind, config=_STRICT)


def _has_fields(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint) or is_typeddict(hint)


def _typed_dict(kind: type, stored: bool) -> Any:
    """A TypedDict of a class's annotations; so are classes within it where it is of stored values."""
    hints = get_type_hints(kind, include_extras=True)
    if dataclasses.is_dataclass(kind):
        hints = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    for name, hint in hints.items():
        bare = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        if stored and _has_fields(bare):
            hints[name] = _typed_dict(bare, stored)
    make: Any = TypedDict
    made = make("Fields", hints)
    made.__pydantic_config__ = {**_STRICT, "extra": "forbid"}
    return made
