"""Region features as people have them on disk; nothing is read through pickle."""

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .errors import DatasetNotFoundError
from .regions import ArrayRegions, RegionBatch, Regions, pad_regions

_TSV = {  # number of columns: positions of the image's id, the number of boxes, the boxes, the features
    6: (0, 3, 4, 5),  # bottom-up attention
    10: (0, 7, 8, 9),  # LXMERT, with classes and attributes between
}


class TsvRegions:
    """Bottom-up attention's table: one line per image, boxes and features as float32 in base64.

    Args:
        path: The `.tsv` file, of 6 columns or LXMERT's 10.

    Attributes:
        ids: Image id of each line.

    Raises:
        ValueError: If a line is cut short, or an id comes twice.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.ids = Path(path), list[str]()
        self._starts: list[int] = []
        start = 0
        with self.path.open("rb") as file:
            for line in file:
                if line.strip():
                    if line.count(b"\t") + 1 not in _TSV or not line.endswith(b"\n"):
                        raise ValueError(f"{path}: line {len(self.ids) + 1} is cut short or has foreign columns.")
                    self.ids.append(line[: line.index(b"\t")].decode())
                    self._starts.append(start)
                start += len(line)
        _check_ids(self.ids, self.path)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ids)

    def read(self, positions: Sequence[int]) -> RegionBatch:
        """Regions of the images at some positions.

        Raises:
            ValueError: If an image's values do not fit its number of boxes.
        """
        features, boxes = [], []
        with self.path.open("rb") as file:
            for position in positions:
                file.seek(self._starts[position])
                values = self._decode(file.readline().rstrip(b"\r\n").split(b"\t"))
                boxes.append(values[0])
                features.append(values[1])
        return pad_regions(features, boxes)

    def _decode(self, columns: list[bytes]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        name, count, box, feature = (columns[place] for place in _TSV[len(columns)])
        try:
            boxes = np.frombuffer(base64.b64decode(box, validate=True), np.float32).reshape(int(count), 4)
            features = np.frombuffer(base64.b64decode(feature, validate=True), np.float32).reshape(int(count), -1)
        except (ValueError, binascii.Error) as error:
            told = f"image {name.decode()} does not hold {count.decode()} boxes"
            raise ValueError(f"{self.path}: {told}: {error}") from error
        if not int(count):
            raise ValueError(f"{self.path}: image {name.decode()} has no region; leave it out.")
        return boxes, features


class NpzRegions:
    """One `.npz` file per image, as the common bottom-up extractor writes them.

    Args:
        folder: Its files, in the order of their names.
        key: Array of the features `(R, D)`; boxes are in `bbox` where they are.

    Attributes:
        ids: Name of each file without its ending.

    Raises:
        DatasetNotFoundError: If the folder has no such file.
    """

    def __init__(self, folder: str | Path, key: str = "x") -> None:
        self.files = sorted(Path(folder).glob("*.npz"))
        if not self.files:
            raise DatasetNotFoundError("Region features (*.npz)", [folder], "Pass the folder of the extractor's files.")
        self.key, self.ids = key, [path.stem for path in self.files]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def read(self, positions: Sequence[int]) -> RegionBatch:
        """Regions of the images at some positions.

        Raises:
            ValueError: If a file has no such array, or is cut short.
        """
        features: list[NDArray[np.floating]] = []
        boxes: list[NDArray[np.floating] | None] = []
        for position in positions:
            path = self.files[position]
            try:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                    if self.key not in arrays:
                        raise ValueError(f"has {sorted(arrays)} and no {self.key!r}; pass key=")
                    features.append(arrays[self.key])
                    boxes.append(arrays.get("bbox"))
            except Exception as error:  # zipfile, zlib and numpy each have their own for a damaged file
                raise ValueError(f"{path} {error}") from error
            if features[-1].ndim != 2 or not len(features[-1]):
                raise ValueError(f"{path} holds {features[-1].shape}; an image needs (R, D) with at least one region.")
        return pad_regions(features, boxes)


class Hdf5Regions:
    """One array `(N, R, D)` in an HDF5 file; needs h5py.

    Args:
        path: The file.
        key: Its array of features; None for the first of `ctx`, `image_features` and `features` that it has.
        boxes_key: Its array of boxes `(N, R, 4)`, used where it exists.

    Raises:
        ModuleNotFoundError: If h5py is not installed.
        ValueError: If the file has no such array.
    """

    def __init__(self, path: str | Path, key: str | None = None, boxes_key: str = "image_bb") -> None:
        try:
            import h5py
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"{path} is HDF5, which needs h5py: pip install h5py.") from error
        self.path, self._file = Path(path), None
        with h5py.File(path, "r") as file:
            found = [name for name in ([key] if key else ["ctx", "image_features", "features"]) if name in file]
            if not found:
                raise ValueError(f"{path} has {sorted(file)}; name the array of features (N, R, D) with key=.")
            self.key, self.boxes_key = found[0], boxes_key if boxes_key in file else None
            self._length, regions, _ = file[self.key].shape
        self._regions = regions

    def __len__(self) -> int:
        """Number of images."""
        return int(self._length)

    def read(self, positions: Sequence[int]) -> RegionBatch:
        """Regions of the images at some positions."""
        import h5py

        rows, back = np.unique(list(positions), return_inverse=True)  # h5py reads ascending rows only
        with h5py.File(self.path, "r") as file:
            regions = torch.from_numpy(np.asarray(file[self.key][rows], np.float32)[back])
            if self.boxes_key is None:
                boxes = torch.zeros(*regions.shape[:2], 4)
            else:
                boxes = torch.from_numpy(np.asarray(file[self.boxes_key][rows], np.float32)[back])
        return RegionBatch(regions, torch.ones(regions.shape[:2], dtype=torch.bool), boxes)


def open_regions(path: str | Path) -> Regions:
    """Opens region features by what their path is: `.npy`, `.tsv`, `.h5` or `.hdf5`, or a folder of `.npz`.

    Raises:
        DatasetNotFoundError: If there is nothing at the path.
        ValueError: If the file is damaged or has another layout.
    """
    path = Path(path)
    if path.is_dir():
        return NpzRegions(path)
    if not path.is_file():
        raise DatasetNotFoundError(f"Region features {path.name}", [path.parent], "Pass data_dir= and regions=.")
    if path.suffix == ".tsv":
        return TsvRegions(path)
    if path.suffix in (".h5", ".hdf5"):
        return Hdf5Regions(path)
    if path.suffix != ".npy":
        raise ValueError(f"{path}: regions are read from .npy, .tsv, .h5 or a folder of .npz.")
    try:
        array: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is pickled or cut short; save a plain float array (N, R, D): {error}") from error
    if array.ndim == 3 and array.shape[1] > array.shape[2]:
        raise ValueError(f"{path} is {array.shape}: more regions than features, as if (N, D, R). Transpose it.")
    return ArrayRegions(array)


def _check_ids(ids: Sequence[str], path: Path) -> None:
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise ValueError(f"{path}: image {name} comes twice.")
        seen.add(name)
