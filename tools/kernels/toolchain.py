"""The CUDA compiler: the pinned one from the Python package index, or that of $NVCC.

The four compiler wheels are the smallest set that compiles a kernel (101 MB to download, 253 MB on disk); a toolkit, a
driver and a GPU are not needed. What is needed besides Python and pip is a host C++ compiler (g++), which nvcc calls.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# Versions fix the bytes of the image. One pip command: a second one would not merge the folder that they share;
# --no-deps: their requirements are not pinned and would bring a newer release.
COMPILER = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
]
# These read what the compiler wrote; they do not change it.
READERS = ["nvidia-cuda-cuobjdump==13.2.78", "nvidia-cuda-nvdisasm==13.2.78"]
PACKAGES = COMPILER + READERS


class ToolchainError(Exception):
    """There is no compiler, with the remedy."""


@dataclass(frozen=True)
class Toolchain:
    """Paths of the tools."""

    nvcc: Path
    cuobjdump: Path
    pinned: bool  # its bytes can be compared with the committed image's

    def version(self):
        """Release and build of nvcc: '13.0 V13.0.88'."""
        text = subprocess.run([self.nvcc, "--version"], capture_output=True, text=True, check=True).stdout
        found = re.search(r"release ([\d.]+), (V[\d.]+)", text)
        if not found:
            raise ToolchainError(f"{self.nvcc} --version is not that of nvcc: {text!r}")
        return " ".join(found.groups())


def find():
    """$NVCC with the cuobjdump beside it, or the pinned tools, installed at the first call."""
    if not (shutil.which("g++") or os.environ.get("NVCC_CCBIN")):
        raise ToolchainError("no g++: nvcc needs a host C++ compiler (apt install g++, or set NVCC_CCBIN)")
    named = os.environ.get("NVCC")
    if not named:
        folder = pinned_tools()
        return Toolchain(folder / "nvcc", folder / "cuobjdump", True)
    nvcc = Path(shutil.which(named) or named).resolve()
    if not nvcc.is_file():
        raise ToolchainError(f"NVCC={named}: no such file")
    beside = nvcc.with_name("cuobjdump")
    cuobjdump = beside if beside.is_file() else pinned_tools() / "cuobjdump"
    pinned = Toolchain(nvcc, cuobjdump, False).version().endswith(" V" + COMPILER[0].split("==")[1])
    return Toolchain(nvcc, cuobjdump, pinned)


def cache_folder():
    """Where tools are kept: outside of the source tree, one folder a set of versions."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = "-".join(["nvcc", COMPILER[0].split("==")[1], READERS[0].split("==")[1]])
    return Path(root) / "berthier" / name


def pinned_tools():
    """The folder of the pinned tools' programs."""
    home = cache_folder()
    if not home.is_dir():
        install(home)
    folders = sorted(home.glob("lib/python3*/site-packages/nvidia/cu13/bin"))
    if not folders:
        raise ToolchainError(f"{home}: no compiler in it (remove the folder and try again)")
    return folders[0]


def install(home):
    """Makes a virtual environment at `home` that holds the packages. Complete or not there at all."""
    print(f"installing {', '.join(PACKAGES)} into {home}", file=sys.stderr)
    home.parent.mkdir(parents=True, exist_ok=True)
    partial = home.with_name(f"{home.name}.{os.getpid()}")
    try:
        run([sys.executable, "-m", "venv", "--without-pip", partial])
        run([sys.executable, "-m", "pip", "--python", partial / "bin" / "python", "install", "--no-deps",
             "--disable-pip-version-check", "--quiet", *PACKAGES])
        try:
            partial.rename(home)
        except OSError:
            if not home.is_dir():  # else another run was first
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def run(command):
    """A command that must succeed; its output goes to stderr."""
    if subprocess.run([str(c) for c in command], stdout=sys.stderr).returncode:
        raise ToolchainError(f"failed: {' '.join(str(c) for c in command)} (pip 22.3 or newer is needed)")
