"""Arrays in files, of which only what is looked at is read: thousands of them take no memory and no open file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from util.errors import UserError


@dataclass(frozen=True)
class MappedArray:
    """A `.npy` file as an array: `array[3]`, `array[2:5]`, `np.asarray(array)` give what they do of an array in memory.

    The file is mapped for every look, so all processes share the pages that the system keeps of it, and no process
    holds one longer than it looks.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int

    @classmethod
    def of(cls, file: Path) -> "MappedArray":
        """The array in a file.

        Raises:
            OSError, ValueError: it is not there, or damaged.
        """
        array = np.load(file, mmap_mode="r")
        return cls(file, array.shape, array.dtype, array.offset)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        return np.array(self._map()[key])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self._map(), dtype)

    def _map(self) -> np.memmap:
        try:
            return np.memmap(self.file, self.dtype, "r", self.offset, self.shape)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.file}: was removed or cut while it was in use; start again") from error
