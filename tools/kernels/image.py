"""Compiles the kernels and reads the result back: registers, shared memory, machine code."""

import os
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from . import sources
from .toolchain import ToolchainError

# A block's share of shared memory that the driver takes; compilers count it as the kernel's from sm_90 on.
RESERVED_SHARED = 1024


@dataclass
class Usage:
    """What one kernel takes on one architecture."""

    registers: int
    static_shared: int
    stack: int
    local: int
    threads: int = 0
    instructions: int = 0
    # memory and tensor instructions by width: {'LDG.128': 12, 'HMMA': 256, ...}
    accesses: Counter = field(default_factory=Counter)


def compile(toolchain, unit, flags=None, more_files=None):
    """The fatbin of one translation unit, and what the compiler said. `flags`: instead of those of nvcc.flags.

    It is compiled from a copy in a folder of a random name, so that a comparison of bytes also shows that they do not
    depend on where the sources lie.
    """
    with tempfile.TemporaryDirectory(prefix="kernels-") as folder:
        for path, content in {**sources.files(), **(more_files or {})}.items():
            copy = Path(folder, path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content)
        # architectures side by side: the same bytes for any number
        command = [toolchain.nvcc, *(flags or sources.flags()), "--threads", str(os.cpu_count() or 1), "-fatbin", "-o", "out", unit]
        environment = {k: v for k, v in os.environ.items() if k not in ("NVCC_APPEND_FLAGS", "NVCC_PREPEND_FLAGS")}
        done = subprocess.run(command, cwd=folder, env=environment, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode:
            raise ToolchainError(f"nvcc failed on {unit}:\n{done.stdout}")
        return Path(folder, "out").read_bytes(), done.stdout


def spill_bytes(log):
    """Bytes of spill stores and loads of each kernel, summed over the architectures."""
    found = Counter()
    for kernel, stores, loads in re.findall(
            r"spilled to local memory in function '(\w+)', (\d+) bytes spill stores, (\d+) bytes spill loads", log):
        found[kernel] += int(stores) + int(loads)
    return found


def inspect(toolchain, fatbin, architectures=None):
    """{architecture: {kernel: Usage}}, in the order of nvcc.flags and of the names."""
    found = {}
    for arch in architectures or sources.architectures():
        usages = resource_usage(dump(toolchain, fatbin, arch, "-res-usage"), arch)
        add_threads(usages, dump(toolchain, fatbin, arch, "-elf"))
        add_machine_code(usages, dump(toolchain, fatbin, arch, "-sass"))
        found[arch] = dict(sorted(usages.items()))
    return found


def twin_differences(toolchain, unit, fatbin):
    """Kernels whose instructions for an architecture of TWINS are not, to the bit, those that the image has for it."""
    found = []
    for twin, arch in sources.TWINS.items():
        gencode = f"-gencode=arch=compute_{twin[3:]},code={twin}"
        flags = [flag for flag in sources.flags() if not flag.startswith("-gencode")] + [gencode]
        own, given = (encodings(toolchain, image, name)
                      for image, name in [(compile(toolchain, unit, flags)[0], twin), (fatbin, arch)])
        found += [f"{twin} {kernel}: not the code of {arch}: name {twin} in nvcc.flags, not in TWINS"
                  for kernel in own if own[kernel] != given.get(kernel)]
    return found


def encodings(toolchain, fatbin, arch):
    """{kernel: its instructions as hexadecimal numbers}."""
    found, words = {}, None
    for line in dump(toolchain, fatbin, arch, "-sass").splitlines():
        if match := re.match(r"\s+Function : (\w+)", line):
            words = found[match[1]] = []
        elif match := re.search(r"/\* (0x[0-9a-f]{16}) \*/$", line.rstrip()):
            words.append(match[1])
    return found


def ptx(toolchain, fatbin):
    """The PTX of an image."""
    return dump(toolchain, fatbin, "sm_80", "-ptx")


def dump(toolchain, fatbin, arch, what):
    """What cuobjdump prints of one architecture."""
    with tempfile.TemporaryDirectory(prefix="kernels-") as folder:
        path = Path(folder, "image.fatbin")
        path.write_bytes(fatbin)
        return subprocess.run([toolchain.cuobjdump, "-arch", arch, what, path],
                              capture_output=True, text=True, check=True).stdout


def resource_usage(text, arch):
    """From `cuobjdump -res-usage`."""
    usages = {}
    pattern = r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)"
    for kernel, registers, stack, shared, local in re.findall(pattern, text):
        shared = int(shared)
        if shared and int(re.search(r"\d+", arch)[0]) >= 90:
            shared -= RESERVED_SHARED
        usages[kernel] = Usage(int(registers), shared, int(stack), int(local))
    return usages


def add_threads(usages, text):
    """The block size of `__launch_bounds__`, from `cuobjdump -elf`."""
    sections = re.split(r"^\.nv\.info\.(\w+)$", text, flags=re.MULTILINE)
    for kernel, section in zip(sections[1::2], sections[2::2]):
        match = re.search(r"EIATTR_MAX_THREADS\s+Format:\s+\S+\s+Value:\s+(0x[0-9a-f]+) (0x[0-9a-f]+) (0x[0-9a-f]+)", section)
        if match and kernel in usages:
            x, y, z = (int(n, 16) for n in match.groups())
            usages[kernel].threads = x * y * z


INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ +)?([A-Z][A-Z0-9_]*)((?:\.\w+)*)")
COUNTED = {"LDG", "STG", "LDGSTS", "LD", "ST", "LDL", "STL", "ATOM", "ATOMG", "RED", "REDG", "HMMA", "LDSM", "HGMMA", "UTMALDG", "UTMASTG"}


def add_machine_code(usages, text):
    """Counts instructions of `cuobjdump -sass`: global and local accesses by their width in bits."""
    usage = None
    for line in text.splitlines():
        if match := re.match(r"\s+Function : (\w+)", line):
            usage = usages[match[1]]
        elif match := INSTRUCTION.match(line):
            usage.instructions += 1
            if match[1] in COUNTED:
                usage.accesses[match[1] + width(match[1], match[2].split("."))] += 1


def width(opcode, modifiers):
    """'.128', '.16', ... of a memory instruction; 32 bits are what the assembler does not write."""
    if opcode in ("HMMA", "LDSM", "HGMMA", "UTMALDG", "UTMASTG"):
        return ""
    for modifier in modifiers:
        if match := re.fullmatch(r"[US]?(8|16|64|128|256)", modifier):
            return "." + match[1]
    return ".32"
