"""An open file as an xarray Dataset, or as a pyramid of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from operator import index
from typing import Any, cast

import numpy as np
import xarray as xr
from xarray.core import indexing

from iid_dask.arrays import TEXT, LazyArray, PixelArray, TableArray
from iid_dask.format.layout import Limits
from iid_dask.format.reader import RecordReader
from iid_dask.labels import make_labels
from iid_dask.layers import layer_numbers
from iid_dask.mosaic import opening
from iid_dask.pieces import Parted
from iid_dask.queries import as_bounds
from iid_dask.views import OVERLAPS, REDUCES, Overlap, Selection, View

TILE = 4096
"""Preferred rows and columns of a chunk."""

PYRAMID_SIDE = 512
"""Longer side of the coarsest level of a pyramid, at most."""

MOST = 2**31 - 1
"""Largest stride and side: their products stay within 64 bits."""

MOST_LEVELS = 32
"""Of a pyramid: every image is one pixel long before."""

CF_NAMES = frozenset(
    {
        "_FillValue",
        "add_offset",
        "ancillary_variables",
        "bounds",
        "calendar",
        "cell_measures",
        "cell_methods",
        "compress",
        "coordinates",
        "dtype",
        "formula_terms",
        "grid_mapping",
        "missing_value",
        "scale_factor",
        "units",
        "valid_max",
        "valid_min",
        "valid_range",
    }
)
"""Attributes that CF conventions, and so xarray's decoder, give a meaning."""


def open_dataset(target: Any, **options: Any) -> xr.Dataset:
    """Open a file as one dataset; the options are those of the engine "iid"."""
    reader = _open(target, options)
    try:
        view, rest = make_view(reader, options)
        return _dropped(build(view, **rest), options.get("drop_variables"))
    except BaseException:
        reader.close()
        raise


def open_pyramid(target: Any, *, levels: int | None = None, **options: Any) -> dict[str, xr.Dataset]:
    """Open a file as levels "/0", "/1", …, each of half the size, below an empty root."""
    reader = _open(target, options)
    try:
        base, rest = make_view(reader, options)
        if levels is None:
            levels = 1
            while -(-max(base.out_shape) // 2 ** (levels - 1)) > PYRAMID_SIDE:
                levels += 1
        levels = _integer("levels", levels, 1, MOST_LEVELS)
        groups = {"/": xr.Dataset(attrs=multiscales(base, levels))}
        for level in range(levels):
            view = View(
                reader, base.shape, base.overlap, base.stride * 2**level, base.reduce, base.selection, base.labels
            )
            level_options = {**rest, "entries": rest["entries"] and level == 0}
            groups[f"/{level}"] = _dropped(build(view, **level_options), options.get("drop_variables"))
    except BaseException:
        reader.close()
        raise
    return groups


def _open(target: Any, options: dict[str, Any]) -> RecordReader:
    limits = options.get("limits")
    if limits is not None and not isinstance(limits, Limits):
        raise TypeError(f"limits = {limits!r}: expected iid_dask.Limits")
    return opening.open(
        target,
        verify=options.get("verify", True),
        limits=limits,
        storage_options=options.get("storage_options"),
    )


# --- options ----------------------------------------------------------------------------------------------------


def make_view(reader: RecordReader, options: Mapping[str, Any]) -> tuple[View, dict[str, bool]]:
    """Check the options of the engine and return the view, and which variables are wanted beside the usual."""
    overlap = _choice("overlap", options.get("overlap", "last"), OVERLAPS)
    reduce = _choice("reduce", options.get("reduce", "nearest"), REDUCES)
    stride = _integer("stride", options.get("stride", 1), 1)
    selection = make_selection(**{name: options.get(name) for name in Selection.__dataclass_fields__})
    shape = options.get("shape")
    if shape is None:
        height, width = reader.shape
    else:
        if isinstance(shape, str | bytes) or not isinstance(shape, Iterable) or len(shape := list(shape)) != 2:
            raise ValueError(f"shape = {shape!r}: expected (rows, columns)")
        height, width = (_integer("shape", side, 0) for side in shape)
    view = View(reader, (height, width), cast(Overlap, overlap), stride, cast(Any, reduce), selection)
    _ = view.keys  # unknown keys and names are refused here, not in a task
    labels = make_labels(view, options.get("labels", "key"))
    view = View(reader, (height, width), view.overlap, stride, view.reduce, selection, labels)
    rest = {name: bool(options.get(name, name == "entries")) for name in ("layers", "color", "entries")}
    return view, rest


def make_selection(
    *, keys: Any = None, groups: Any = None, domains: Any = None, addresses: Any = None, area: Any = None
) -> Selection:
    """Return a selection of one or several keys, names and groups; text names are UTF-8."""
    if keys is not None:
        keys = tuple(sorted({index(key) for key in ([keys] if _is_integer(keys) else keys)}))
    if groups is not None:
        groups = (groups,) if isinstance(groups, str) else tuple(dict.fromkeys(groups))
    if area is not None:
        area = as_bounds(area)
    return Selection(keys, groups, _names("domains", domains), _names("addresses", addresses), area)


def _names(option: str, value: Any) -> tuple[bytes, ...] | None:
    if value is None:
        return None
    items = [value] if isinstance(value, str | bytes) else list(value)
    for item in items:
        if not isinstance(item, str | bytes):
            raise TypeError(f"{option}: {item!r} is {type(item).__name__}, expected bytes or str")
    return tuple(dict.fromkeys(item.encode() if isinstance(item, str) else item for item in items))


def _choice(option: str, value: Any, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"{option} = {value!r}: expected one of {', '.join(map(repr, known))}")
    return cast(str, value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _integer(option: str, value: Any, least: int, most: int = MOST) -> int:
    if not _is_integer(value) or not least <= value <= most:
        raise ValueError(f"{option} = {value!r}: expected an integer from {least} to {most}")
    return int(value)


# --- variables --------------------------------------------------------------------------------------------------


def build(view: View, *, layers: bool, color: bool, entries: bool) -> xr.Dataset:
    """Return the dataset of a view; nothing is decoded, but for layers."""
    reader, groups = view.reader, list(view.reader.groups)
    size = view.out_shape
    sampling = {"stride": view.stride, "reduce": view.reduce} if view.stride > 1 else {}
    named = {"labels": "key" if view.labels is None else "given", **sampling}
    flat = {"overlap": view.overlap, **named}

    def pixels(name: str, dtype: Any, words: str, attrs: dict[str, Any], **lead: int) -> None:
        rest = {"rgb": 3} if name == "color" else {}
        array = PixelArray(view, name, (*lead.values(), *size, *rest.values()), np.dtype(dtype))
        names[name] = _variable(array, (*lead, "y", "x", *rest), {"long_name": words, **attrs})

    names: dict[str, xr.Variable] = {}
    pixels("label", view.label_dtype, "label, 0 is background", flat)
    pixels("mask", bool, "covered by an entry", sampling)
    pixels("depth", view.depth_dtype, "number of entries", sampling)
    if groups:
        pixels("group_mask", bool, "covered by an entry of the group", sampling, group=len(groups))
    if layers:
        count = int(layer_numbers(view).max(initial=-1)) + 1
        # Entries of a layer share no pixel, but with reduce="any" they may share a block, which shows one of them.
        blocks = view.reduce == "any" and view.stride > 1
        words = "label, no overlaps within a layer" + (" at full resolution" if blocks else "")
        pixels("layers", view.label_dtype, words, named, layer=count)
    if color:
        pixels("color", np.uint8, "a colour a label", flat)
    if entries:
        names |= _table(view, len(groups))
    coords = {"group": ("group", np.array(groups, dtype=object))} if groups else {}
    ds = xr.Dataset(names, coords=coords, attrs=attributes(reader))
    ds.set_close(reader.close)
    return ds


def _table(view: View, n_groups: int) -> dict[str, xr.Variable]:
    n = len(view.keys)
    wide = isinstance(view.reader, Parted)
    area, side = (np.int64, np.int64) if wide else (np.uint32, np.uint16)
    kinds: dict[str, Any] = {"key": np.uint32, "domain": TEXT, "address": TEXT, "area": area}
    kinds |= dict.fromkeys(("min_row", "min_col", "max_row", "max_col"), side)
    if view.labels is not None:
        kinds["entry_label"] = view.label_dtype
    table = {name: _variable(TableArray(view, name, (n,), np.dtype(kind)), ("entry",)) for name, kind in kinds.items()}
    if n_groups:
        table["in_group"] = _variable(TableArray(view, "in_group", (n_groups, n), np.dtype(bool)), ("group", "entry"))
    return table


def _variable(array: LazyArray, dims: tuple[str, ...], attrs: Mapping[str, Any] | None = None) -> xr.Variable:
    whole = {"y": TILE, "x": TILE, "group": 1, "layer": 1}
    preferred = {dim: max(1, min(whole.get(dim, size), size)) for dim, size in zip(dims, array.shape, strict=True)}
    return xr.Variable(dims, indexing.LazilyIndexedArray(array), attrs, encoding={"preferred_chunks": preferred})


def attributes(reader: RecordReader) -> dict[str, Any]:
    """Return a dataset's attributes: the metadata as stored, and its top-level keys."""
    plain = {key: value for key, value in reader.metadata.items() if key not in CF_NAMES and key != "iid_metadata"}
    return {**plain, "iid_metadata": reader.metadata_json}


def multiscales(view: View, levels: int) -> dict[str, Any]:
    """Return the root attributes of a pyramid, in the form of OME-NGFF 0.5.

    An element of level n stands for 2**n pixels, so its centre lies (2**n - 1) / 2 pixels beyond theirs first.
    """
    steps = [view.stride * 2**level for level in range(levels)]
    scales = [
        {
            "name": "label",
            "axes": [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}],
            "datasets": [
                {
                    "path": f"{level}/label",
                    "coordinateTransformations": [
                        {"type": "scale", "scale": [float(step)] * 2},
                        {"type": "translation", "translation": [(step - 1) / 2] * 2},
                    ],
                }
                for level, step in enumerate(steps)
            ],
            "type": view.reduce,
        }
    ]
    return {**attributes(view.reader), "multiscales": scales, "ome": {"version": "0.5", "multiscales": scales}}


def _dropped(ds: xr.Dataset, names: str | Iterable[str] | None) -> xr.Dataset:
    if names is None:
        return ds
    wanted = [names] if isinstance(names, str) else list(names)
    close: Callable[[], None] | None = ds._close
    ds = ds.drop_vars(wanted, errors="ignore")
    ds.set_close(close)
    return ds
