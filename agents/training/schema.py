"""Checks types, choices and bounds of fields against their annotations, in Python, on the command line and in files.

Annotate a field with, for instance, `Annotated[int, Interval(ge=1, le=100)]` or `Literal["rnn", "lstm"]`. Types are
strict: 1.0, True and "1" are not ints. Floats must be finite.
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
"""Units of a layer. The limit keeps a weight matrix at 256 MiB or less."""
Seed = Annotated[int, Interval(ge=0, lt=2**31)]
Share = Annotated[float, Interval(ge=0, le=1)]
Percent = Annotated[float, Interval(ge=0, le=100)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]


def check_fields(annotated_class: type, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a class, checked against its annotations. Ints given for floats become floats.

    Args:
        annotated_class: a dataclass or a TypedDict.
        fields: all its fields by name.

    Raises:
        ValueError: a field is missing or unknown, or has a wrong type or value; the message names the field,
            what it must be and what came.
    """
    return _check(_adapter(annotated_class, False).validate_python, dict(fields))


def check_stored(annotation: Any, value: Any) -> dict[str, Any]:
    """Checks a value from `json.loads`, which has lists for tuples and dicts for dataclasses.

    Args:
        annotation: a dataclass, a TypedDict or another annotation, such as `dict[str, float]`.
        value: a return value of `json.loads`.

    Raises:
        ValueError: as in `check_fields`.
    """
    return _check(_adapter(annotation, True).validate_json, json.dumps(value))


def _check(validate: Any, value: Any) -> dict[str, Any]:
    from pydantic import ValidationError

    try:
        return validate(value)
    except ValidationError as error:
        first, *more_errors = error.errors(include_url=False, include_context=False)
        name = ".".join(map(str, first["loc"]))
        more = f" ({len(more_errors)} more)" if more_errors else ""
        if first["type"] == "missing":
            raise ValueError(f"{name} is missing{more}") from None
        if first["type"] == "extra_forbidden":
            raise ValueError(f"{name} is no field of this version, got {reprlib.repr(first['input'])}{more}") from None
        if not first["msg"].startswith("Input should be "):
            raise ValueError(f"{name or 'it'}: {first['msg'].removeprefix('Value error, ')}{more}") from None
        expected = first["msg"].removeprefix("Input should be ")
        raise ValueError(f"{name or 'it'} must be {expected}, got {reprlib.repr(first['input'])}{more}") from None


@functools.cache
def _adapter(annotation: Any, is_stored: bool) -> TypeAdapter[dict[str, Any]]:
    from pydantic import TypeAdapter

    if _has_fields(annotation):
        return TypeAdapter(_typed_dict(annotation, is_stored))
    return TypeAdapter(annotation, config=_STRICT)


def _has_fields(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint) or is_typeddict(hint)


def _typed_dict(annotated_class: type, is_stored: bool) -> Any:
    """A TypedDict with a class's annotations. For stored values, classes inside it become TypedDicts too."""
    hints = get_type_hints(annotated_class, include_extras=True)
    if dataclasses.is_dataclass(annotated_class):
        hints = {field.name: hints[field.name] for field in dataclasses.fields(annotated_class)}
    for name, hint in hints.items():
        bare = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        if is_stored and _has_fields(bare):
            hints[name] = _typed_dict(bare, is_stored)
    make_typed_dict: Any = TypedDict
    typed_dict = make_typed_dict("Fields", hints)
    typed_dict.__pydantic_config__ = {**_STRICT, "extra": "forbid"}
    return typed_dict
