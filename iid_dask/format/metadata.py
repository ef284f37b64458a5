"""Metadata as the format stores them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from iid_dask.errors import IIDLimitError
from iid_dask.format.layout import Limits
from iid_dask.format.sections import nesting


def encode_metadata(metadata: Mapping[str, Any], path: str = "metadata") -> bytes:
    """Return metadata as the format stores it: JSON as ``json.dumps`` writes it by default.

    Raises
    ------
    TypeError, ValueError
        For what JSON cannot hold, NaN and infinities among it, and keys that are not text.
    IIDLimitError
        For more than readers accept by default.
    """
    limits = Limits()
    try:
        text = json.dumps(metadata, allow_nan=False)
        depth = nesting(text.encode("ascii"))
        if len(text) > limits.max_meta or depth > limits.max_json_depth:
            # Readers refuse it by default, and the file with it.
            raise IIDLimitError(
                f"{path}: metadata of {len(text)} bytes of JSON nested {depth} deep, expected at most "
                f"{limits.max_meta} and {limits.max_json_depth}; keep it in a file of its own"
            )
        if not _has_text_keys(metadata):
            raise ValueError("a key is not text")
        json.dumps(json.loads(text), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{path}: metadata holds half of a surrogate pair, which has no UTF-8 form") from error
    except IIDLimitError:
        raise
    except TypeError as error:
        raise TypeError(f"{path}: metadata cannot be stored as JSON: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: metadata cannot be stored as JSON: {error}") from error
    return text.encode("ascii")


def _has_text_keys(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _has_text_keys(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(_has_text_keys(item) for item in value)
    return True


def encode_own_metadata(
    path: str, entries: int, metadata: Mapping[str, Any], removed: Sequence[int], is_blank: Callable[[int], bool]
) -> bytes:
    """Return metadata as `encode_metadata` does, with the keys of removed entries in it.

    Parameters
    ----------
    path
        Of the file, for errors.
    entries
        How many there are.
    metadata
    removed
        Keys of removed entries.
    is_blank
        Tells of a key whether its entry has neither name nor pixels, and so would pass for a removed one.
    """
    if removed:
        if "removed" in metadata:
            raise ValueError(
                f'{path}: metadata already has a key "removed", which names the removed entries; rename yours'
            )
        return encode_metadata({**metadata, "removed": sorted(removed)}, path)
    listed = metadata.get("removed")
    if isinstance(listed, list) and listed:
        keys = [key for key in listed if isinstance(key, int) and 0 <= key < entries]
        if len(keys) == len(listed) and all(is_blank(key) for key in keys):
            raise ValueError(
                f'{path}: metadata "removed" = {listed!r} would remove nameless, empty entries; rename the key'
            )
    return encode_metadata(metadata, path)
