"""What the kernels are made of: files, their hash, the compiler's flags, the tables of tiles."""

import functools
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "kernels"
PREBUILT = FOLDER / "prebuilt"
SUFFIXES = {".cu", ".cuh", ".flags"}


@functools.lru_cache
def files():
    """Everything that the images depend on: {path relative to kernels/: bytes}, in the paths' order.

    Read once, so that an edit during a build cannot make half of it.
    """
    found = (path for path in FOLDER.rglob("*") if path.suffix in SUFFIXES)
    read = {path.relative_to(FOLDER).as_posix(): path.read_bytes() for path in found}
    return dict(sorted(read.items()))


def sha256():
    """Over each file in order: its path, a line feed, its length in decimal, a line feed, its bytes.

    tests/kernel_image.rs computes the same, so that a stale image fails where there is no compiler.
    """
    digest = hashlib.sha256()
    for path, content in files().items():
        digest.update(f"{path}\n{len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def flags():
    """The lines of nvcc.flags that are not comments."""
    lines = (line.strip() for line in files()["nvcc.flags"].decode().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def architectures():
    """Those with machine code in the image: ['sm_80', ...]."""
    return [match[1] for flag in flags() if (match := re.search(r"code=(sm_\w+)$", flag))]


# Architectures without machine code of their own, and whose they run: image.twin_differences holds that it is the same.
TWINS = {"sm_89": "sm_86"}


@dataclass(frozen=True)
class Tile:
    """A line of a table of tiles, plain numbers only: `GEMM_TILE(kernel, 128, 256, ...)`."""

    file: str
    columns: dict  # {'BLOCK_M': 128, ..., 'THREADS': 256, 'DYNAMIC_SHARED_BYTES': 98304}

    @property
    def threads(self):
        return self.columns["THREADS"]

    @property
    def dynamic_shared(self):
        return self.columns["DYNAMIC_SHARED_BYTES"]


@functools.lru_cache
def tiles():
    """Kernel (without its element type's suffix) to Tile, from every table in the sources.

    A comment above the lines, `GEMM_TILE(name, BLOCK_M, ..., THREADS, ..., DYNAMIC_SHARED_BYTES)`, names the columns.
    """
    found = {}
    for path, content in files().items():
        text = content.decode()
        heads = dict(re.findall(r"^//\s+([A-Z]+_TILE)\((name(?:, [A-Z_]+)+)\)", text, re.MULTILINE))
        for macro, kernel, numbers in re.findall(r"^\s*([A-Z]+_TILE)\((\w+)((?:,\s*\d+)+)\)", text, re.MULTILINE):
            names = heads[macro].split(", ")[1:]
            values = [int(n) for n in numbers.split(",")[1:]]
            assert len(names) == len(values), f"{path}: {macro}({kernel}, ...) has {len(values)} columns, its head {len(names)}"
            found[kernel] = Tile(path, dict(zip(names, values)))
    return found


def base_name(kernel):
    """Without the element type's suffix."""
    return kernel.removesuffix("_f16").removesuffix("_bf16")


def dynamic_shared(kernel):
    """Bytes that a launch of this kernel takes; the most it may take where the launch decides."""
    kernel = base_name(kernel)
    if kernel == "pool":
        return 16 * 2048  # 16 block_columns: pool.cu
    tile = tiles().get(kernel)
    return tile.dynamic_shared if tile else 0
