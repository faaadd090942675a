"""Answers that are JSON, with nothing around it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from ...files import shown


def is_json(answer: str) -> bool:
    """Whether an answer is JSON, as the standard has it: without NaN, comments or Markdown's fences."""
    return _fits(answer, lambda value: True)


def json_test(schema: Any) -> Callable[[str], bool]:
    """
    The test whether an answer is JSON that fits a JSON schema. Without `$schema` it is of the draft 2020-12. Formats that need no more
    packages, such as `date`, are checked.
    """
    try:
        from jsonschema import SchemaError
        from jsonschema.validators import Draft202012Validator, validator_for
        from jsonschema_specifications import REGISTRY
        from referencing.exceptions import Unresolvable
        from referencing.jsonschema import specification_with
    except ImportError:
        raise ImportError("needs the package jsonschema: pip install 'jsonschema>=4.18'.") from None

    try:
        schema = json.loads(json.dumps(schema))  # YAML has dates, and keys that are no texts
    except (TypeError, ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise ValueError("must be a JSON schema, written out as an object.")
    validator_class = validator_for(schema, default=Draft202012Validator)
    try:
        validator_class.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"is not a JSON schema: {error.message}.") from None
    # Its registry fetches nothing, so that a reference that leads nowhere would end the evaluation
    specification = specification_with(validator_class.META_SCHEMA["$schema"])
    resolver = REGISTRY.resolver_with_root(specification.create_resource(schema))
    for reference in _references(schema):
        try:
            resolver.lookup(reference)
        except Unresolvable:
            raise ValueError(f"refers to {shown(reference)}, which is not in the schema: put it there.") from None
    validator = validator_class(schema, registry=REGISTRY, format_checker=validator_class.FORMAT_CHECKER)
    return lambda answer: _fits(answer, validator.is_valid)


def _fits(answer: str, test: Callable[[Any], bool]) -> bool:
    try:
        return test(json.loads(answer, parse_constant=_refuse))
    except (ValueError, RecursionError):
        return False


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, list):
        for part in schema:
            yield from _references(part)
    elif isinstance(schema, dict):
        for key, part in schema.items():
            if key in ("$ref", "$dynamicRef") and isinstance(part, str):
                yield part
            yield from _references(part)
