"""Label images to segments: against dask-image, scikit-image and cc3d; and pyvips, which joins images."""

from __future__ import annotations

import importlib.util
import shutil
import statistics
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import zarr

import iid_dask
from benchmarks import data, label_images
from benchmarks.joining import TILE, joining_table, nbytes, remove
from benchmarks.label_images import CHUNK
from benchmarks.timing import Table, alternate, held, spent
from iid_dask.mosaic.blocks import segments_of

BLOCK = 2048
"""Of the blocks that scikit-image is given."""
CORNER = 1024
"""Of the part that dask-image is given: its time a pixel grows with the image, to hours for the whole."""

OURS = "to_iid, two threads"
KERNEL = "segments_of, in memory, one thread"
DASK_IMAGE = "dask-image:"


def measure(sizes: data.Sizes, folder: Path, out: Path, repeats: int) -> Iterator[Table]:
    """Yield the tables."""
    place = out / f"iid_dask-benchmark-{uuid.uuid4().hex[:8]}"
    place.mkdir()
    try:
        images = list(label_stores(sizes, folder))
        iid_dask.to_iid(str(images[0].path), place / "warm.iid", progress=False)  # kernels are compiled
        yield joining_table(sizes, folder, place, repeats)
        for image in images:
            yield objects_table(image, place, repeats)
        yield stages_table(images[0], place, repeats)
    finally:
        shutil.rmtree(place)


# --- label image to objects -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelImage:
    """A label image in Zarr.

    Attributes
    ----------
    name : str
    path : Path
    dense : bool
        The figures are for such ones.
    apart : bool
        Objects do not touch: the connected components of what is not 0 are the objects.
    """

    name: str
    path: Path
    dense: bool
    apart: bool


def label_stores(sizes: data.Sizes, folder: Path) -> Iterator[LabelImage]:
    """Yield nuclei, cells that cover all, and discs far apart, of one size."""
    side = sizes.dense_side
    yield LabelImage("nuclei", label_images.nuclei_store(folder, (side, side)), True, True)
    dense = data.dense(folder, side, sizes.cells)
    yield LabelImage("Voronoi cells", label_images.file_store(dense), True, False)
    sparse = data.sparse(folder, side, sizes.discs * side**2 // sizes.side**2)
    yield LabelImage("sparse discs", label_images.file_store(sparse), False, False)


def objects_table(image: LabelImage, place: Path, repeats: int) -> Table:
    """Compare what finds the objects of a label image, with their boxes or masks."""
    array = zarr.open_array(image.path, mode="r")
    labels, target = np.asarray(array[...]), place / "objects.iid"
    objects = len(np.unique(labels)) - 1
    corner = labels[:CORNER, :CORNER]
    works: dict[str, tuple[int, Callable[[], Any]]] = {
        OURS: (labels.size, lambda: to_iid(image.path, target, 2)),
        "to_iid, one thread": (labels.size, lambda: to_iid(image.path, target, 1)),
        KERNEL: (labels.size, lambda: [segments_of(block) for block in blocks(labels, TILE)]),
        **{name: (labels.size, work) for name, work in peers(labels).items()},
    }
    if importlib.util.find_spec("dask_image"):
        name = f"{DASK_IMAGE} {'label + ' * image.apart}find_objects of {len(corner)}²: boxes"
        works[name] = corner.size, lambda: _dask_image(corner, image.apart)
    segments_of(labels[:10, :10])
    tasks = {name: (lambda work=work: spent(work)) for name, (_, work) in works.items()}
    found = alternate(tasks, repeats, budget=90)
    title = f"{image.name}: {labels.shape[0]} x {labels.shape[1]} uint32, Zarr in chunks of {CHUNK}², {objects} objects"
    table = Table(title, ["work", "s", "CPU s", "Gpx/s", "figure", "held", "x to_iid's time a pixel", "figure", "held"])
    figures = {KERNEL: 0.3, OURS: 0.2} if image.dense else {}
    for name, rounds in found.items():
        pixels = works[name][0]
        speed, times = pixels / rounds.wall / 1e9, rounds.over(found[OURS]).wall * labels.size / pixels
        figure = held(speed, least=figures[name]) if name in figures else ("", "")
        least = held(times, least=50) if name.startswith(DASK_IMAGE) and image.apart else ("", "")
        table.add(name, rounds.wall, rounds.cpu, speed, *figure, times, *least)
    return table


def blocks(labels: np.ndarray, side: int) -> Iterator[np.ndarray]:
    """Yield the blocks of an array, as views."""
    return (labels[box.slices] for box in label_images.boxes(labels.shape, side))


def to_iid(path: Path, target: Path, threads: int) -> None:
    """Write a label image as a file, in place of the one that is there."""
    scheduler = "threads" if threads > 1 else "synchronous"
    with dask.config.set(scheduler=scheduler, num_workers=threads):
        iid_dask.to_iid(str(path), target, progress=False)


def peers(labels: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Return what others do with the same image, where they are installed."""
    found: dict[str, Callable[[], Any]] = {}
    if importlib.util.find_spec("skimage"):
        found[f"skimage.regionprops of blocks of {BLOCK}²: boxes, masks"] = lambda: _regionprops(labels)
    if importlib.util.find_spec("cc3d"):
        found["cc3d, in memory: statistics + each: boxes, masks"] = lambda: _cc3d(labels)
        found["cc3d, in memory: connected_components alone"] = lambda: _components(labels)
    return found


def _dask_image(labels: np.ndarray, apart: bool) -> None:
    from dask_image import ndmeasure

    image = da.from_array(labels, chunks=CHUNK)
    with dask.config.set(scheduler="threads", num_workers=2):
        if apart:
            image, _ = ndmeasure.label(image > 0, structure=np.ones((3, 3), int))
        ndmeasure.find_objects(image).compute()


def _regionprops(labels: np.ndarray) -> None:
    from skimage.measure import regionprops

    for block in blocks(labels, BLOCK):
        for found in regionprops(block):
            _ = found.label, found.bbox, found.image


def _cc3d(labels: np.ndarray) -> None:
    import cc3d

    places = cc3d.statistics(labels)["bounding_boxes"]
    for label, mask in cc3d.each(labels, binary=True, in_place=True):
        mask[places[label]].copy()


def _components(labels: np.ndarray) -> None:
    import cc3d

    cc3d.connected_components(labels, connectivity=8)


# --- stages -----------------------------------------------------------------------------------------------------


def stages_table(image: LabelImage, place: Path, repeats: int) -> Table:
    """Measure the stages of an assembly on two threads, each on its own."""
    folder, target, source = place / "stages", place / "stages.iid", str(image.path)
    found: dict[str, list[float]] = {"tiles": [], "finish": [], "consolidate": []}
    written: dict[str, int] = {}
    for _ in range(repeats):
        with dask.config.set(scheduler="threads", num_workers=2):
            tiles = spent(lambda: iid_dask.to_mosaic(source, folder, part=(1, 1), progress=False))
            written["tiles"] = nbytes(folder)
            finish = spent(lambda: iid_dask.finish(folder, progress=False).close())
            written["finish"] = nbytes(folder) - written["tiles"]
            with iid_dask.open_mosaic(folder) as mosaic:
                entries = len(mosaic)
                consolidate = spent(lambda mosaic=mosaic: mosaic.to_iid(target, progress=False))
            written["consolidate"] = nbytes(target)
        for each, took in zip(found.values(), (tiles, finish, consolidate), strict=True):
            each.append(took.wall)
        remove(folder, target)
    height, width = zarr.open_array(image.path, mode="r").shape
    title = f"stages: {image.name}, {height} x {width}, {entries} objects, tiles of {TILE}², two threads"
    table = Table(title, ["stage", "s", "Gpx/s", "share", "MB written"])
    medians = {name: statistics.median(each) for name, each in found.items()}
    whole = sum(medians.values())
    for stage, seconds in medians.items():
        table.add(stage, seconds, height * width / seconds / 1e9, f"{seconds / whole:.0%}", written[stage] / 1e6)
    table.add("all", whole, height * width / whole / 1e9, "", "")
    return table
