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


# Files whose kernels are built for some architectures only.
ONLY = {"gemm_hopper.cu": ["sm_90a"], "gemm_few_rows.cu": ["sm_90a"], "attention_hopper.cu": ["sm_90a"]}


@dataclass(frozen=True)
class Tile:
    """A line of a table of tiles, plain numbers only: `GEMM_TILE(kernel, 128, 256, ...)`."""

    file: str
    threads: int
    dynamic_shared: int


@functools.lru_cache
def tiles():
    """Kernel (without its element type's suffix) to Tile, from every table in the sources.

    `#define GEMM_TILE(name, ..., threads, ..., <some>_bytes)` names the columns; dynamic shared memory is the last.
    """
    found = {}
    for path, content in files().items():
        text = content.decode()
        heads = dict(re.findall(r"^#define ([A-Z]+_TILE)\(name, ([\w, ]+)\)", text, re.MULTILINE))
        for macro, kernel, numbers in re.findall(r"^\s*([A-Z]+_TILE)\((\w+)((?:,\s*\d+)+)\)", text, re.MULTILINE):
            names, values = heads[macro].split(", "), [int(n) for n in numbers.split(",")[1:]]
            assert len(names) == len(values) and names[-1].endswith("_bytes"), f"{path}: {macro}({kernel}, ...)"
            found[kernel] = Tile(path, values[names.index("threads")], values[-1])
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
