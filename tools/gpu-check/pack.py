"""Builds what runs on the other machine and packs it. Knows nothing of what is measured there."""

import datetime
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from run import TESTS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SCRIPTS = ["gpu-check", "run.py", "report.py", "bert.py", "agree.py", "rivals.py", "recorded.py", "README.md"]
# of a corpus, every so many-th line
EVERY = 2


def main(args):
    without = set(filter(None, args.without.split(",")))
    out = Path(args.pack)
    archive = out.suffix in (".tar", ".gz", ".tgz")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "gpu-check" if archive else out
        folder.mkdir(parents=True, exist_ok=True)
        fill(folder, args, without)
        if archive:
            # compressed whatever its name: tar xf finds out by itself
            with tarfile.open(out, "w:gz", compresslevel=9) as tar:
                tar.add(folder, "gpu-check")
            size = out.stat().st_size / 1e6
            print(f"{out}: {size:.1f} MB")
            if size > args.max_mb:
                print(f"gpu-check: larger than {args.max_mb:.0f} MB", file=sys.stderr)
                return 1
    return 0


def say(text):
    print(f"[pack] {text}", flush=True)


def fill(folder, args, without):
    for name in SCRIPTS:
        shutil.copy2(HERE / name, folder / name)
    binaries, images = folder / "bin", folder / "images"
    for path in [binaries, images, folder / "tests/fixtures/minilm", folder / "tests/emulator/conformance"]:
        path.mkdir(parents=True, exist_ok=True)
    for name in ["berthier.fatbin", "conformance.fatbin", "manifest.json"]:
        shutil.copy2(ROOT / "kernels/prebuilt" / name, images / name)
    for name in ["golden.json", "golden.f32"]:
        shutil.copy2(ROOT / "tests/fixtures/minilm" / name, folder / "tests/fixtures/minilm" / name)
    for path in (ROOT / "tests/emulator/conformance").glob("*.txt"):  # records that there are already
        shutil.copy2(path, folder / "tests/emulator/conformance" / path.name)
    build_programs(binaries)
    if "berthier" not in without:
        binary = Path(args.berthier) if args.berthier else build_berthier()
        shutil.copy2(binary, binaries / "berthier")
        subprocess.run(["strip", binaries / "berthier"], check=True)
    if "model" not in without:
        half_model(Path(args.model) if args.model else default_model(), folder / "model")
    if "texts" not in without:
        data = args.corpus or str(Path(os.environ.get("BERTHIER_DATA", ROOT.parent / "shared/data")) / "corpus")
        lines = [line for path in sorted(Path(data).glob("*.txt")) for line in path.read_text("utf-8").split("\n") if line]
        if not lines:
            raise SystemExit(f"gpu-check: no texts in {data}: --corpus DIR, or --without texts")
        (folder / "texts.txt").write_text("\n".join(lines[::EVERY]) + "\n", "utf-8")
        say(f"{len(lines[::EVERY])} texts of {data}")
    git = lambda *a: subprocess.run(["git", "-C", ROOT, *a], capture_output=True, text=True).stdout.strip()  # noqa: E731
    about = {
        "commit": git("rev-parse", "HEAD"),
        "changed_files": git("status", "--porcelain", "--untracked-files=no").split("\n") if git("status", "--porcelain", "--untracked-files=no") else [],
        "packed": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "without": sorted(without),
        "compiler": subprocess.run(["g++", "--version"], capture_output=True, text=True).stdout.split("\n")[0],
    }
    (folder / "pack.json").write_text(json.dumps(about, indent=1))


def build_programs(binaries):
    """With two compilers at a time."""
    build = ROOT / "tests/kernels/build.sh"
    jobs = [("gpu", ROOT / f"tests/kernels/{name}.cpp", name) for name in TESTS]
    jobs += [("gpu", HERE / "canary.cpp", "canary"), ("plain", HERE / "bench.cpp", "bench")]
    jobs += [("plain", ROOT / "tests/kernels/conformance.cpp", "conformance-emulated")]
    with tempfile.TemporaryDirectory() as scratch:
        def build_one(job):
            mode, source, name = job
            if subprocess.run([build, mode, source, Path(scratch) / name]).returncode:
                raise SystemExit(f"gpu-check: {name} does not compile")
            say(f"built {name}")

        jobs.sort(key=lambda job: -job[1].stat().st_size)  # the longest first
        build_one(jobs[-1])  # alone: it builds the emulator
        with ThreadPoolExecutor(2) as two:
            list(two.map(build_one, jobs[:-1]))
        record = Path(scratch) / "record"
        compiler = os.environ.get("CC", "gcc")
        source = ROOT / "tests/emulator/conformance/record.c"
        subprocess.run([compiler, "-std=gnu11", "-O1", "-Wall", source, "-o", record, "-ldl", "-lm"], check=True)
        for name in [name for _, _, name in jobs] + ["record"]:
            subprocess.run(["strip", Path(scratch) / name], check=True)
            shutil.copy2(Path(scratch) / name, binaries / name)


def build_berthier():
    say("cargo build --release")
    subprocess.run(["cargo", "build", "--release", "--bin", "berthier"], cwd=ROOT, check=True)
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/berthier"


def default_model():
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    model = cache / "berthier/models/sentence-transformers/all-MiniLM-L6-v2"
    if not model.is_dir():
        raise SystemExit(f"gpu-check: no model in {model}: run berthier once, or --model DIR, or --without model")
    return model


def half_model(model, out):
    """A copy with weights in f16, rounded to nearest even."""
    out.mkdir(parents=True, exist_ok=True)
    for path in model.rglob("*"):
        if path.is_file() and path.name not in ("model.safetensors", "README.md") and not path.name.startswith("."):
            (out / path.relative_to(model)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, out / path.relative_to(model))
    data = (model / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    new, pieces, at = {}, [], 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        raw = data[8 + size + start : 8 + size + end]
        if entry["dtype"] == "F32":
            n = len(raw) // 4
            raw = struct.pack(f"<{n}e", *struct.unpack(f"<{n}f", raw))  # a value beyond f16 is an error
            entry = {**entry, "dtype": "F16"}
        new[name] = {**entry, "data_offsets": [at, at + len(raw)]}
        pieces.append(raw)
        at += len(raw)
    text = json.dumps(new).encode()
    text += b" " * (-len(text) % 8)
    (out / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"".join(pieces))
    say(f"model in f16: {at / 1e6:.1f} MB")
