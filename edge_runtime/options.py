"""Decodes the options that a gateway file gives to an adapter, with the same manners as the rest of the configuration."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from edge_runtime.errors import InputError

Options = TypeVar("Options", bound=msgspec.Struct)


def decode_options(options: Mapping[str, Any], kind: type[Options], name: str) -> Options:
    """`options` as the Struct `kind`. Raises InputError naming the wrong key, what was expected and the nearest known key."""
    known = [field.encode_name for field in msgspec.structs.fields(kind)]
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise InputError(f"{name}.options.{key}: unknown option{hint} (known: {', '.join(known)})")
    try:
        return msgspec.convert(dict(options), kind)
    except msgspec.ValidationError as err:
        text, _, path = str(err).partition(" - at `$.")
        raise InputError(f"{name}.options.{path.rstrip('`') or '?'}: {text}") from err
