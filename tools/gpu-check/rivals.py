"""The benchmark beside PyTorch, in a process of its own: rivals.py PACK WORK KERNEL_LOG DEVICE quick|all SECONDS

One run, the same texts, rotated buffers, medians with quartiles. Prints lines of JSON: {"table", "row"}, {"note"}, {"verdict"}.
Every part fails alone; parts that no time is left for are named. What comes first matters most.
"""

import json
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import bert  # noqa: E402
import recorded  # noqa: E402
from agree import Command, emit, write_texts  # noqa: E402

ON = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = [16, 32, 128, 512]


def sync():
    if ON == "cuda":
        torch.cuda.synchronize()


def quartiles(values):
    v = sorted(values)
    return [v[int(q * (len(v) - 1) + 0.5)] for q in (0.25, 0.5, 0.75)]


def show(q, digits=3):
    return f"{q[1]:.{digits}g} ({q[0]:.{digits}g} to {q[2]:.{digits}g})"


def seconds_of(work, rounds, warmup=1):
    """Wall seconds of `rounds` calls, each to its end on the device."""
    for _ in range(warmup):
        work()
    sync()
    out = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        sync()
        out.append(time.perf_counter() - start)
    return out


def graph_of(work):
    """`work` as a CUDA graph; its outputs stay where they are."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def us_of(work, calls, replays=15):
    """Quartiles of microseconds of one of `calls` calls that `work` makes, in a CUDA graph: as bench.cpp measures."""
    if ON != "cuda":
        start = time.perf_counter()
        work()
        return [1e6 * (time.perf_counter() - start) / calls] * 3
    graph, out = graph_of(work), []
    for i in range(replays + 2):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        graph.replay()
        after.record()
        after.synchronize()
        if i >= 2:
            out.append(1e3 * before.elapsed_time(after) / calls)
    return quartiles(out)


class Benchmark:
    def __init__(self, pack, work, kernel_log, device, quick, seconds):
        self.pack, self.work, self.log, self.quick = pack, work, kernel_log, quick
        self.end = time.monotonic() + seconds
        self.command = Command(pack, device)
        self.tokenizer = bert.Tokenizer(pack / "model")
        corpus = (pack / "texts.txt").read_text("utf-8").split("\n")[:-1]
        self.corpus = corpus[::2500] if quick else corpus
        self.natural = write_texts(work / "natural.txt", self.corpus)
        self.ids, self.words = None, bert.plain_words(self.tokenizer, self.corpus[::10])
        self.speeds = {}
        self.failed, self.left_out = [], []

    def left(self):
        return self.end - time.monotonic()

    def part(self, name, work, needs=10):
        if self.left() < needs:
            self.left_out.append(name)
            return
        print(f"[bench] {name}, {self.left():.0f} s left", flush=True)
        try:
            with torch.inference_mode():
                work()
        except Exception as e:
            traceback.print_exc()
            self.failed.append(name)
            emit(note=f"{name}: FAILED: {type(e).__name__}: {str(e)[:600]}")
        if ON == "cuda":
            torch.cuda.empty_cache()

    # ---- single kernels -------------------------------------------------------------------------------------------------

    def roofs(self):
        n = 1 << (16 if ON == "cpu" else 29)
        a, b = torch.randn(n // 4, device=ON), torch.empty(n // 4, device=ON)
        copy = us_of(lambda: [b.copy_(a) for _ in range(4)], 4)
        size = 64 if ON == "cpu" else 8192
        x, y = (torch.randn(size, size, device=ON).half() for _ in range(2))
        product = us_of(lambda: [torch.mm(x, y) for _ in range(4)], 4)
        self.bandwidth, self.peak = 2 * n / copy[1] * 1e6, 2 * size**3 / product[1] * 1e6
        emit(table="what this GPU does at most, by PyTorch", row={"copy, TB/s read and written": f"{self.bandwidth / 1e12:.2f}", "f16 product of 8192, TFLOP/s": f"{self.peak / 1e12:.0f}"})

    def kernels(self):
        """Each kernel's best variant beside cuBLAS(Lt) by torch.mm and SDPA, cold: operands not in L2."""
        measured = {}
        for line in self.log.read_text().split("\n"):
            if '"device"' in line:
                emit(note="kernels: " + line)
            if '"stopped"' in line or '"error"' in line:
                emit(note="kernels: " + line)
            if '"cold_us"' not in line:
                continue
            item = json.loads(line)
            shape = (item["encoder"], item["op"], item.get("m") or item.get("tokens"), item.get("n"), item.get("k"), item.get("length"))
            measured.setdefault(shape, []).append(item)
        l2 = 52 << 20
        if ON == "cuda":
            l2 = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", l2)
        shares = {}
        for (encoder, op, m, n, k, length), items in measured.items():
            best = min(items, key=lambda i: i["cold_us"][1])
            roof = max(best["bytes"] / self.bandwidth, best["flops"] / self.peak) * 1e6
            row = {"encoder": encoder, "op": op, "rows": m, "shape": f"n={n} k={k}" if n else (f"length {length}" if length else ""), "kernel": best["kernel"] + (f", {best['splits']} splits" if best.get("splits", 1) > 1 else "")}
            row |= {"us": show(best["cold_us"]), "us in L2": f"{best['hot_us'][1]:.3g}", "of its roof": f"{roof / best['cold_us'][1]:.0%}"}
            if any("_wgmma_" in i["kernel"] for i in items):  # both instructions, whichever is ahead
                for column, wgmma in (("wgmma us", True), ("mma.sync us", False)):
                    times = [i["cold_us"][1] for i in items if ("_wgmma_" in i["kernel"]) == wgmma]
                    row |= {column: f"{min(times):.3g}"} if times else {}
            theirs = None
            if self.left() > 20:
                sets = max(2, min(64, 2 * l2 // int(best["bytes"]) + 2))
                if n:
                    theirs = self.their_product(m, n, k, sets)
                elif op == "attention":
                    theirs = self.their_attention(best, m, length, sets)
                elif op in ("norm", "add_norm"):
                    theirs = self.their_norm(m, best["hidden"], op == "add_norm", sets)
            if theirs:
                row |= {"PyTorch us": show(theirs), "PyTorch / ours": f"{theirs[1] / best['cold_us'][1]:.2f}"}
            emit(table="kernels: ours beside cuBLAS (torch.mm, no epilogue) and SDPA", row=row)
            if m and m >= 16384:
                key = op if op != "attention" else f"attention {length}"
                shares.setdefault(encoder, {})[key] = best["cold_us"][1]
        for encoder, us in shares.items():
            if not {"qkv", "proj", "up", "down", "norm", "embed", "attention 128"} <= set(us):
                continue
            layers = {"minilm": 6, "base": 12, "large": 24}[encoder]
            parts = {op: us[op] * layers for op in ["qkv", "proj", "up", "down", "attention 128"]}
            parts["norms"] = 2 * layers * us["norm"]
            parts["embed and pool"] = us["embed"] + us.get("pool_128", 0)
            total = sum(parts.values())
            row = {"encoder": encoder, "ms by its kernels": f"{total / 1e3:.3g}", "tokens/s": f"{16384 / total * 1e6:.3g}"}
            emit(table="shares of a forward of 16,384 tokens, 128 a text", row=row | {op: f"{v / total:.0%}" for op, v in parts.items()})

    @staticmethod
    def their_product(m, n, k, sets):
        data = [[torch.randn(*s, device=ON).half() for s in [(m, k), (n, k)]] + [torch.empty(m, n, device=ON, dtype=torch.half)] for _ in range(sets)]
        return us_of(lambda: [torch.mm(a, w.t(), out=c) for a, w, c in data], sets)

    @staticmethod
    def their_attention(item, tokens, length, sets):
        shape = (tokens // length, item["heads"], length, item["head_dim"])
        data = [[torch.randn(*shape, device=ON).half() for _ in range(3)] for _ in range(sets)]
        return us_of(lambda: [F.scaled_dot_product_attention(*qkv) for qkv in data], sets)

    @staticmethod
    def their_norm(rows, hidden, add, sets):
        gamma = torch.ones(hidden, device=ON).half()
        data = [[torch.randn(rows, hidden, device=ON).half() for _ in range(2)] for _ in range(sets)]
        return us_of(lambda: [F.layer_norm(x + y if add else x, (hidden,), gamma, gamma) for x, y in data], sets)

    # ---- whole texts ------------------------------------------------------------------------------------------------------

    def speed(self, what, engine, texts, tokens, seconds, more=""):
        q = quartiles(seconds)
        row = {"texts": what, "engine": engine, "sentences/s": f"{texts / q[1]:,.0f} ({texts / q[2]:,.0f} to {texts / q[0]:,.0f})", "tokens/s": f"{tokens / q[1]:,.0f}", "": more}
        emit(table="throughput: all-MiniLM-L6-v2", row=row)
        self.speeds[what, engine] = texts / q[1]

    def ours(self, what, path, precision="fp16", longest=256, more=()):
        repeat = 1 if self.quick else 7
        samples, stop = [], threading.Event()

        def watch():  # how much of the time a kernel ran, as nvidia-smi sees it
            while not stop.wait(0.1):
                try:
                    said = subprocess.run(["nvidia-smi", "--query-gpu=utilization.gpu,clocks.sm,power.draw", "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=5).stdout
                    samples.append([float(v) for v in said.split("\n")[0].split(",")])
                except (OSError, ValueError, subprocess.TimeoutExpired):
                    return

        watcher = threading.Thread(target=watch, daemon=True)
        if ON == "cuda":
            watcher.start()
        flags = [*self.command.flags(self.model(longest), precision), *more]
        said = json.loads(self.command.call(["bench", "throughput", "--json", "--texts", path, "--repeat", repeat, "--warmup", 1 if self.quick else 2, *flags], max(30, self.left())))
        stop.set()
        busy = ""
        if len(samples) > 3:
            middle = samples[len(samples) // 3 :]
            busy = f"GPU busy {max(s[0] for s in middle):.0f}% at {max(s[1] for s in middle):.0f} MHz, {max(s[2] for s in middle):.0f} W"
        found = said["points"][0]
        name = ("berthier fp32 on the CPU" if self.command.device == "cpu" else f"berthier {precision}") + (" --batch-invariant" if "--batch-invariant" in more else "")
        self.speed(what, name, found["rows"], found["tokens"], [r["seconds"] for r in found["rounds"]], busy)
        emit(berthier=what, said=said)

    def our_natural(self, suffix=""):
        self.ours("natural mix, from text" + suffix, self.natural)

    def our_other(self):
        self.ours("natural mix, from text", self.natural, "bf16")
        if self.command.device != "cpu":
            self.ours("natural mix, from text", self.natural, "fp16", more=["--batch-invariant"])
        self.ours("natural mix, from ids", self.natural, more=["--ids"])

    def our_lengths(self):
        for length in LENGTHS[:1] if self.quick else LENGTHS:
            self.ours(f"{length} tokens, from text", self.fixed(length), longest=512)
            self.ours(f"{length} tokens, from ids", self.fixed(length), longest=512, more=["--ids"])

    def model(self, longest):
        """The folder of the model that takes so many tokens."""
        if longest == 256:
            return self.pack / "model"
        folder = self.work / f"model-{longest}"
        if not folder.exists():
            folder.mkdir()
            for path in (self.pack / "model").iterdir():
                if path.name != "sentence_bert_config.json":
                    (folder / path.name).symlink_to(path.resolve())
            (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": longest, "do_lower_case": False}))
        return folder

    def fixed(self, length):
        path = self.work / f"length-{length}.txt"
        if not path.exists():
            rows = 64 if self.quick else 2_000_000 // length
            write_texts(path, bert.texts_of_length(self.words, length, min(rows, 40000)))
        return path

    def natural_ids(self):
        if self.ids is None:
            try:
                import tokenizers

                t = tokenizers.Tokenizer.from_file(str(self.pack / "model/tokenizer.json"))
                t.no_padding()
                t.enable_truncation(256)
                self.ids = [e.ids for e in t.encode_batch(self.corpus)]
            except ImportError:
                self.ids = [self.tokenizer(text, 256) for text in self.corpus]
        return self.ids

    def stock(self):
        """sentence-transformers in fp16 as its users have it, at the best of three batch sizes; its own forward if it is absent."""
        tokens = sum(map(len, self.natural_ids()))
        try:
            from sentence_transformers import SentenceTransformer
            import sentence_transformers
        except ImportError as e:
            emit(note=f"sentence-transformers is absent ({e}): in its place padded batches of bert.py, sorted by length, from ids")
            return self.padded_stock(tokens)
        model = SentenceTransformer(str(self.pack / "model"), device=ON)
        if ON == "cuda":
            model = model.half()
        sample = self.corpus[:: max(1, len(self.corpus) // 2048)]
        encode = lambda texts, size: model.encode(texts, batch_size=size, show_progress_bar=False)  # noqa: E731
        sizes = {size: min(seconds_of(lambda: encode(sample, size), 2)) for size in ([32] if self.quick else [32, 128, 512])}
        best = min(sizes, key=sizes.get)
        rounds = 1 if self.quick else 3
        name = "sentence-transformers fp16" if ON == "cuda" else "sentence-transformers fp32 on the CPU"
        self.speed("natural mix, from text", name, len(self.corpus), tokens, seconds_of(lambda: encode(self.corpus, best), rounds, 0), f"{sentence_transformers.__version__}, batch {best}")
        if best != 32:
            self.speed("natural mix, from text", name + ", its default batch 32", len(self.corpus), tokens, seconds_of(lambda: encode(self.corpus, 32), 1, 0))
        for length in [] if self.quick else LENGTHS:
            model.max_seq_length = 512
            some = self.fixed(length).read_text("utf-8").split("\n")[:-1]
            some = some[: max(256, 400_000 // length)]
            self.speed(f"{length} tokens, from text", name, len(some), len(some) * length, seconds_of(lambda: encode(some, best), 3), f"batch {best}")

    def padded_stock(self, tokens):
        model = bert.Model(self.pack / "model", ON, torch.half if ON == "cuda" else torch.float32)
        order = sorted(self.natural_ids(), key=len, reverse=True)

        def run():
            for at in range(0, len(order), 128):
                some = order[at : at + 128]
                block = torch.zeros(len(some), len(some[0]), dtype=torch.long)
                for r, i in enumerate(some):
                    block[r, : len(i)] = torch.tensor(i)
                model.padded(block.to(ON), torch.tensor([len(i) for i in some], device=ON)).cpu()

        self.speed("natural mix, from ids", "padded PyTorch fp16", len(order), tokens, seconds_of(run, 3))

    def packed(self):
        """Packed PyTorch with fused QKV, by whichever attention over cu_seqlens works here; batches are on the GPU already."""
        model = bert.Model(self.pack / "model", ON, torch.half if ON == "cuda" else torch.float32)
        order = sorted(self.natural_ids(), key=len)
        budgets, batches = ([2048] if self.quick else [16384, 65536]), {}
        for budget in budgets:
            batches[budget], some, tokens = [], [], 0
            for ids in order:
                if some and tokens + len(ids) > budget:
                    batches[budget].append(bert.PackedBatch(some, ON))
                    some, tokens = [], 0
                some.append(ids)
                tokens += len(ids)
            batches[budget].append(bert.PackedBatch(some, ON))
        first = batches[budgets[0]][0]
        want = bert.Model(self.pack / "model", ON, torch.float32).packed(first, bert.one_by_one)
        for name, attention in bert.PACKED_ATTENTION.items():
            try:
                off = (1 - bert.cosines(model.packed(first, attention), want)).max().item()
                if not off < 1e-4:
                    emit(note=f"packed PyTorch, {name}: 1 - cosine {off:.1e}: not counted")
                    continue
                for budget in budgets:

                    def run():
                        for b in batches[budget]:
                            model.packed(b, attention)

                    self.speed("natural mix, from ids", f"packed PyTorch fp16, {name}", len(order), sum(map(len, order)), seconds_of(run, 1 if self.quick else 5), f"{budget} tokens a batch")
                self.attention = getattr(self, "attention", attention)
            except Exception as e:
                emit(note=f"packed PyTorch, {name}: not here: {type(e).__name__}: {str(e)[:150]}")

    def fixed_shapes(self):
        """Batches of one length: eager and as a CUDA graph, 16,384 tokens each."""
        model = bert.Model(self.pack / "model", ON, torch.half if ON == "cuda" else torch.float32)
        for length in LENGTHS[:1] if self.quick else LENGTHS:
            rows = max(1, (256 if self.quick else 16384) // length)
            ids = torch.randint(1000, 30000, (rows, length), device=ON)
            calls = 1 if self.quick else 20

            def run():
                for _ in range(calls):
                    model.padded(ids)

            self.speed(f"{length} tokens, from ids", "PyTorch fp16 padded, fused QKV, SDPA", rows * calls, rows * calls * length, seconds_of(run, 5), f"batch {rows}")
            if ON == "cuda":
                graph = graph_of(lambda: model.padded(ids))
                self.speed(f"{length} tokens, from ids", "the same as a CUDA graph", rows * calls, rows * calls * length, seconds_of(lambda: [graph.replay() for _ in range(calls)], 5), f"batch {rows}")

    def compiled(self):
        """torch.compile(max-autotune), which has CUDA graphs too, for each length, as long as time is left: a minute or more each."""
        if ON != "cuda":
            emit(note="torch.compile(max-autotune): only on a GPU")
            return
        model = bert.Model(self.pack / "model", ON, torch.half)
        for length in [128, 16, 512, 32]:
            if self.left() < 90:
                self.left_out.append(f"torch.compile at {length} tokens")
                continue
            rows = 16384 // length
            ids = torch.randint(1000, 30000, (rows, length), device=ON)
            forward = torch.compile(lambda i: model.padded(i), mode="max-autotune", dynamic=False)
            start = time.perf_counter()
            forward(ids)
            sync()
            took = time.perf_counter() - start

            def run():  # outputs are not kept: a graph's next replay writes over them
                for _ in range(20):
                    torch.compiler.cudagraph_mark_step_begin()
                    forward(ids)

            self.speed(f"{length} tokens, from ids", "torch.compile(max-autotune) fp16", rows * 20, rows * 20 * length, seconds_of(run, 5, 2), f"batch {rows}; compiled in {took:.0f} s")

    def latency(self):
        """Small batches kernel by kernel, as graphs, and in one launch on the grid and in clusters: what recorded.py makes limits of."""
        lengths, samples = (LENGTHS[:1], 20) if self.quick else ([16, 32, 64, 128], 500)
        for shape in [None] if self.quick else [None, "bert-base", "bert-large"]:
            name, folder = (f"random {shape}", self.work / shape) if shape else ("all-MiniLM-L6-v2", self.pack / "model")
            if shape and self.left() < 60:
                self.left_out.append(f"latency of {name}")
                continue
            if shape and not folder.exists():
                bert.make_random_model(folder, shape, self.pack / "model", ON)
            config = json.loads((folder / "config.json").read_text())
            sizes = [config[f"{of}_size"] for of in ("hidden", "intermediate")] + [config[f"num_{of}"] for of in ("hidden_layers", "attention_heads")]
            for way in recorded.WAYS:
                emit(berthier=f"latency of {name}", sizes=sizes, one_launch=way, said=self.our_latency(name, folder, way, lengths, samples))
            samples = 100  # the others are slower, and need no p99

    def our_latency(self, name, folder, way, lengths, samples):
        flags = ["--lengths", ",".join(map(str, lengths)), "--batch-sizes", "1,2,4,8", "--samples", samples, "--persistent-kernel", way, *self.command.flags(folder, "fp16")]
        try:
            said = json.loads(self.command.call(["bench", "latency", "--json", *flags], max(30, self.left())))
        except RuntimeError as e:
            if "this GPU has no clusters" not in str(e):
                raise
            emit(note=f"latency of {name}: {str(e).split('error: ')[-1].strip()}")
            return {"points": []}
        for point in said["points"]:
            row = {"model": name, "one launch": way} | {k: point[k] for k in ("from", "tokens", "texts", "samples")}
            row |= {"launched": ", ".join(point.get("launches", {}) | point.get("gpu_launches", {}))}
            row |= {k: round(v, 1) for k, v in point["latency_us"].items() if v is not None}
            for key in "gpu_us", "gpu_kernels_us":  # where the device computes, from ids
                if key in point:
                    row |= {f"{key} p50": round(point[key]["p50"], 1)}
            emit(table="latency: berthier, wall us and the GPU's own", row=row)
        if wrong := recorded.otherwise(way, said):
            emit(note=f"latency of {name}: not '{way}', and not recorded: " + "; ".join(wrong))
        return said

    def their_latency(self):
        lengths = LENGTHS[:1] if self.quick else [16, 32, 128]
        model = bert.Model(self.pack / "model", ON, torch.half if ON == "cuda" else torch.float32)
        for length in lengths:
            ids = torch.randint(1000, 30000, (1, length), device=ON)
            forms = {"PyTorch fp16 eager, from ids": lambda: model.padded(ids).cpu()}
            if ON == "cuda":
                holder = {}

                def forward():
                    holder["out"] = model.padded(ids)

                graph = graph_of(forward)
                forms["the same as a CUDA graph"] = lambda: (graph.replay(), holder["out"].cpu())
            for name, run in forms.items():
                v = sorted(1e6 * s for s in seconds_of(run, 20 if self.quick else 300, 10))
                row = {"tokens": length, "engine": name, "wall p50 us": round(v[len(v) // 2], 1), "wall p99 us": round(v[int(0.99 * (len(v) - 1))], 1)}
                if ON == "cuda":
                    row["GPU us"] = show(us_of(lambda: model.padded(ids), 1))
                emit(table="latency: PyTorch, one text", row=row)

    def run(self):
        self.part("roofs", self.roofs)
        self.part("berthier, natural mix", self.our_natural)
        self.part("sentence-transformers", self.stock, 20)
        self.part("kernels beside cuBLAS and SDPA", self.kernels, 20)
        self.part("packed PyTorch", self.packed)
        self.part("berthier, lengths", self.our_lengths)
        self.part("latency", self.latency)
        self.part("latency of PyTorch", self.their_latency)
        self.part("PyTorch, one length", self.fixed_shapes)
        self.part("berthier, other settings", self.our_other)
        self.part("berthier, natural mix again", lambda: self.our_natural(", at the end"))
        self.part("torch.compile", self.compiled, 60)
        mine = self.speeds.get(("natural mix, from text", "berthier fp16"))
        theirs = self.speeds.get(("natural mix, from text", "sentence-transformers fp16"))
        if mine and theirs:
            emit(note=f"natural mix from text: berthier fp16 {mine / theirs:.2f} x sentence-transformers fp16 (aim: 3)")
        if self.left_out:
            emit(note="no time was left for: " + ", ".join(self.left_out))
        emit(verdict="FAILED" if self.failed else "partial: out of time" if self.left_out else "ok")


if __name__ == "__main__":
    Benchmark(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], sys.argv[5] == "quick", float(sys.argv[6])).run()
