"""The command's vectors against PyTorch's in fp32, in a process of its own: agree.py cpu|gpu PACK WORK [DEVICE quick|all SECONDS]

Prints lines of JSON: {"table", "row"}, {"note"}, {"verdict"}. `cpu` needs no torch: the golden vectors are in the pack.
"""

import array
import json
import os
import subprocess
import sys
import time
from pathlib import Path

# 1 - cosine that a model of natural weights may lose (docs/numerics.md)
ALLOWED = {"fp16": 1e-5, "bf16": 1e-4}


def emit(**item):
    print(json.dumps(item), flush=True)


class Command:
    """The packed `berthier`, on one device."""

    def __init__(self, pack, device):
        self.path, self.device = pack / "bin/berthier", device
        self.environment = {**os.environ}
        path = os.environ.get("GPU_CHECK_LIBRARY_PATH")
        self.environment.pop("LD_LIBRARY_PATH", None)
        if path:
            self.environment["LD_LIBRARY_PATH"] = path
        self.help = {}

    def has(self, subcommand, flag):
        if subcommand not in self.help:
            self.help[subcommand] = self.call([subcommand, "--help"], 30)
        return flag in self.help[subcommand]

    def call(self, arguments, limit=300):
        process = subprocess.run([str(self.path), *map(str, arguments)], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=limit, stdin=subprocess.DEVNULL)
        if process.returncode:
            raise RuntimeError(f"berthier {' '.join(map(str, arguments))}: exit {process.returncode}: {process.stderr.strip()[-600:]}")
        return process.stdout

    def flags(self, model, precision=None, invariant=False):
        flags = ["--model", model, "--device", self.device]
        if precision and self.device != "cpu":
            flags += ["--precision", precision]
        if invariant and self.device != "cpu":
            flags += ["--batch-invariant"]
        return flags

    def embed(self, texts, out, flags, limit=300):
        """Bytes of the f32 vectors."""
        out.unlink(missing_ok=True)
        self.call(["embed", texts, "-o", out, "--overwrite", "--quiet", *flags], limit)
        return out.read_bytes()


def write_texts(path, texts):
    path.write_text("\n".join(texts) + "\n", "utf-8")
    return path


# ---- CPU -----------------------------------------------------------------------------------------------------------------


def cpu(pack, work):
    golden = json.loads((pack / "tests/fixtures/minilm/golden.json").read_text("utf-8"))
    rows = [row for row in golden["rows"]]
    want = array.array("f", (pack / "tests/fixtures/minilm/golden.f32").read_bytes())
    dim = golden["dim"]
    usable = [i for i, row in enumerate(rows) if not any(c in row["text"] for c in "\r\n")]
    texts = write_texts(work / "golden.txt", [rows[i]["text"] for i in usable])
    command = Command(pack, "cpu")
    version = command.call(["--version"], 20)
    sets = version.split("instruction sets here:")[-1].strip().split(", ")
    good, first = True, None
    for isa in sets:
        began = time.monotonic()
        got = array.array("f", command.embed(texts, work / f"golden-{isa}.f32", [*command.flags(pack / "model"), "--isa", isa]))
        worst, apart = 0.0, 0.0
        first = first or got
        for at, i in enumerate(usable):
            a, b = got[at * dim : (at + 1) * dim], want[i * dim : (i + 1) * dim]
            worst = max(worst, sum((x - y) ** 2 for x, y in zip(a, b)) / 2)
            apart = max(apart, max(abs(x - y) for x, y in zip(a, first[at * dim : (at + 1) * dim])))
        # the weights were rounded to f16, and these texts are odd: 4.5e-6 in every instruction set. Between these only fp32's
        # rounding may differ.
        fine = len(got) == len(usable) * dim and worst < 1e-5 and apart < 5e-6
        good = good and fine
        emit(table="CPU: golden texts, weights in f16", row={"isa": isa, "rows": len(usable), "largest 1 - cosine to sentence-transformers fp32": f"{worst:.1e}", f"largest difference to {sets[0]}": f"{apart:.1e}", "": "ok" if fine else "FAILED", "seconds": round(time.monotonic() - began, 2)})
    emit(note=f"instruction sets of this host: {', '.join(sets)}")
    emit(verdict="ok" if good else "FAILED")


# ---- GPU -----------------------------------------------------------------------------------------------------------------


def gpu(pack, work, device, quick, seconds):
    import torch

    import bert

    end = time.monotonic() + seconds
    on = "cuda" if torch.cuda.is_available() else "cpu"
    emit(note=f"reference: PyTorch {torch.__version__} fp32 without TF32 on {on}, bert.py")
    command = Command(pack, device)
    corpus = (pack / "texts.txt").read_text("utf-8").split("\n")[:-1]
    tokenizer = bert.Tokenizer(pack / "model")
    models = [("all-MiniLM-L6-v2", pack / "model", 256, 8 if quick else 400)]
    for shape, rows in [("tiny", 12)] if quick else [("bert-base", 200), ("bert-large", 100)]:
        models.append((f"random {shape}", work / shape, 512, rows))
    if quick:  # for the emulator: the small one first
        models.reverse()
    good, cut = True, False
    for name, folder, longest, n in models:
        if end - time.monotonic() < 20:
            emit(note=f"{name}: no time was left")
            cut = True
            continue
        try:
            if not folder.exists():
                shape = name.split()[-1]
                bert.make_random_model(folder, shape, pack / "model", on)
            # from one token beyond [CLS] and [SEP] to the longest: natural texts, and neighbours joined to be long ones
            step = max(1, len(corpus) // n)
            texts = [corpus[i * step] if i % 7 else " ".join(corpus[i * step : i * step + 6]) for i in range(n - 4)]
            texts += ["", "A.", "word " * 700, "ab " * 30]
            ids = [tokenizer(text, longest) for text in texts]
            reference = bert.reference_vectors(folder, ids, on)
            good = one_model(bert, command, name, folder, longest, texts, ids, reference, work, on) and good
        except Exception as e:
            good = False
            emit(note=f"{name}: FAILED: {type(e).__name__}: {e}")
    emit(verdict="FAILED" if not good else "partial: out of time" if cut else "ok")


def one_model(bert, command, name, folder, longest, texts, ids, reference, work, on):
    import torch

    path = write_texts(work / "agree.txt", texts)
    hidden, good = reference.shape[1], True
    lengths = [len(i) for i in ids]
    for precision in ["fp16", "bf16"]:
        row = {"model": name, "precision": precision, "rows": len(texts), "tokens": f"{min(lengths)} to {max(lengths)}"}
        # what rounding alone costs: PyTorch in the same dtype
        dtype = torch.float16 if precision == "fp16" else torch.bfloat16
        theirs = None
        try:
            model = bert.Model(folder, on, dtype)
            with torch.inference_mode():
                same = torch.cat([model.padded(torch.tensor([i], device=on)).float().cpu() for i in ids])
            theirs = (1 - bert.cosines(same, reference)).tolist()
        except Exception as e:
            emit(note=f"{name}: PyTorch in {precision}: {type(e).__name__}: {e}")
        flags = [*command.flags(folder, precision), "--max-seq-length", longest]
        raw = command.embed(path, work / "agree.f32", flags)
        ours = bert.read_f32(work / "agree.f32", hidden)
        if ours.shape != reference.shape or not torch.isfinite(ours).all():
            emit(note=f"{name} {precision}: vectors {tuple(ours.shape)} instead of {tuple(reference.shape)}, or not finite")
            good = False
            continue
        cosine = bert.cosines(ours, reference).tolist()
        p = bert.percentiles(cosine)
        worst = 1 - p["min"]
        allowed = ALLOWED[precision]
        if theirs:  # no worse than PyTorch in the same dtype; random weights, and so deep, may be four times as bad
            allowed = max(allowed, (4 if "random" in name else 1) * max(theirs))
        fine = worst <= allowed
        row |= {"1 - cosine: mean": f"{1 - p['mean']:.1e}", "median": f"{1 - p['median']:.1e}", "p90": f"{1 - p['p10']:.1e}", "p99": f"{1 - p['p1']:.1e}", "largest": f"{worst:.1e}"}
        row |= {"PyTorch's largest": f"{max(theirs):.1e}" if theirs else "-", "allowed": f"{allowed:.0e}", "": "ok" if fine else "FAILED"}
        emit(table="1 - cosine to PyTorch fp32", row=row)
        good = good and fine
        again = command.embed(path, work / "again.f32", flags)
        same_run = raw == again
        bits = {"model": name, "precision": precision, "two runs": "same bits" if same_run else "DIFFER"}
        good = good and same_run
        # a text's bits alone, among few, among all, in another order
        invariant = [*command.flags(folder, precision, True), "--max-seq-length", longest]
        try:
            all_of_them = command.embed(path, work / "invariant.f32", invariant)
            size = 4 * hidden
            turned = command.embed(write_texts(work / "turned.txt", texts[::-1]), work / "turned.f32", [*invariant, "--batch-tokens", "1024"])
            back = b"".join(turned[i * size : (i + 1) * size] for i in reversed(range(len(texts))))
            bits["batch-invariant: reversed, small batches"] = "same bits" if back == all_of_them else "DIFFER"
            alone = [0, len(texts) // 2, len(texts) - 2]
            same = all(
                command.embed(write_texts(work / "alone.txt", [texts[i]]), work / "alone.f32", invariant) == all_of_them[i * size : (i + 1) * size] for i in alone
            )
            bits["alone"] = "same bits" if same else "DIFFER"
            good = good and same and back == all_of_them
        except RuntimeError as e:
            bits["batch-invariant: reversed, small batches"] = str(e)
            good = False
        emit(table="bits", row=bits)
    return good


if __name__ == "__main__":
    what, pack, work = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    if what == "cpu":
        cpu(pack, work)
    else:
        gpu(pack, work, sys.argv[4], sys.argv[5] == "quick", float(sys.argv[6]))
