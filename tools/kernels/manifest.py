"""kernels/prebuilt/manifest.json: what the committed images were made of, and what each kernel takes."""

import hashlib
import json

from . import gates, sources
from .image import spill_bytes
from .occupancy import blocks_per_sm
from .toolchain import COMPILER

# image -> translation unit. The first one ships.
IMAGES = {"berthier.fatbin": "all.cu", "conformance.fatbin": "conformance.cu"}

# Of a kernel on one architecture, in this order.
COLUMNS = ["registers", "static_shared", "stack", "local", "spills"]


def write(tools, images, logs):
    """The manifest's text. One line a kernel, so that a change of one is one line of a diff."""
    head = {
        "format": 1,
        "sources_sha256": sources.sha256(),
        "compiler": {"nvcc": tools.version(), "packages": COMPILER if tools.pinned else []},
        "flags": sources.flags(),
        "architectures": sources.architectures(),
        "twins": sources.TWINS,
        "columns": COLUMNS,
    }
    parts = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    described = []
    for name, unit in IMAGES.items():
        fatbin, usages = images[unit]
        spills = spill_bytes(logs[unit])
        kernels = []
        for kernel in sorted({k for usage in usages.values() for k in usage}):
            threads = max(of[kernel].threads for of in usages.values() if kernel in of)
            entry = {"threads": threads, "dynamic_shared": sources.dynamic_shared(kernel)}
            for arch, of in usages.items():
                if kernel in of:
                    u = of[kernel]
                    entry[arch] = [u.registers, u.static_shared, u.stack, u.local, spills[kernel]]
            kernels.append(f"        {json.dumps(kernel)}: {json.dumps(entry)}")
        about = json.dumps({"unit": unit, "bytes": len(fatbin), "sha256": hashlib.sha256(fatbin).hexdigest()})
        described.append(f'    {json.dumps(name)}: {about[:-1]},\n      "kernels": {{\n' + ",\n".join(kernels) + "\n      }}")
    parts.append('  "images": {\n' + ",\n".join(described) + "\n  }")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def problems(images):
    """Where the image and the sources' tables disagree, and where it is too large."""
    found = []
    tiles = sources.tiles()
    fatbin, usages = images["all.cu"]
    if len(fatbin) > gates.MAX_IMAGE_BYTES:
        found.append(f"all.cu: {len(fatbin):,} bytes, {gates.MAX_IMAGE_BYTES:,} allowed")
    for arch, kernels in usages.items():
        for name, usage in kernels.items():
            tile = tiles.get(sources.base_name(name))
            if tile and tile.threads != usage.threads:
                found.append(f"{arch} {name}: {usage.threads} threads, {tile.threads} in the table of {tile.file}")
        for name, tile in tiles.items():
            if arch not in sources.ONLY.get(tile.file, [arch]):
                continue
            for kernel in (f"{name}_f16", f"{name}_bf16"):
                if kernel not in kernels:
                    found.append(f"{arch} {kernel}: in the table of {tile.file}, not in the image")
    return found


def differences(tools, images, text):
    """Where the committed files are not what was just built."""
    found = []
    expected = {name: images[unit][0] for name, unit in IMAGES.items()}
    if not tools.pinned:
        found.append("the bytes were not compared: not the pinned compiler")
        expected = {}
    else:
        expected["manifest.json"] = text.encode()
    for name, content in expected.items():
        path = sources.PREBUILT / name
        if not path.is_file():
            found.append(f"kernels/prebuilt/{name} is missing: run tools/build-kernels and commit it")
        elif path.read_bytes() != content:
            found.append(f"kernels/prebuilt/{name} is not what the sources give: run tools/build-kernels and commit it")
    return found


def save(images, text):
    sources.PREBUILT.mkdir(exist_ok=True)
    for name, unit in IMAGES.items():
        (sources.PREBUILT / name).write_bytes(images[unit][0])
    (sources.PREBUILT / "manifest.json").write_text(text)


def table(images):
    """For people: a line a kernel, on each architecture registers / shared bytes / blocks on a multiprocessor."""
    lines = []
    for unit, (_, usages) in images.items():
        archs = list(usages)
        names = sorted({k for of in usages.values() for k in of})
        wide = max([len(n) for n in names] + [6])
        lines += ["", f"{unit}: registers / KiB of shared memory, static and dynamic / blocks per multiprocessor",
                  f"{'kernel':{wide}} threads " + " ".join(f"{arch:>14}" for arch in archs)]
        for name in names:
            cells = []
            for arch in archs:
                u = usages[arch].get(name)
                if not u:
                    cells.append(f"{'-':>14}")
                    continue
                shared = u.static_shared + sources.dynamic_shared(name)
                blocks = blocks_per_sm(arch, u.threads, u.registers, shared)
                cells.append(f"{u.registers:>3} /{shared / 1024:>6.1f} /{blocks:>2}")
            threads = max(of[name].threads for of in usages.values() if name in of)
            lines.append(f"{name:{wide}} {threads:>7} " + " ".join(cells))
    return "\n".join(lines)
