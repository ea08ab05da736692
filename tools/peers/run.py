"""Berthier beside its peers: the same texts, the same threads, taking turns in one run.

See README.md for the protocol. Each engine is a process of its own (worker.py, or the berthier command), so
that thread pools and allocators do not meet; the parent gives turns, compares the vectors and reports.
"""

import argparse
import datetime
import json
import math
import os
import platform
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
REPO = HERE.parent.parent
PEERS = ["onnxruntime", "openvino", "ctranslate2", "candle", "sentence-transformers"]
INT8_PEERS = ["onnxruntime-int8", "ctranslate2-int8"]
ENGINES = ["berthier", *PEERS]
CANDLE = HERE / "candle" / "target" / "release" / "berthier-peer-candle"
ORACLE = "sentence-transformers"
BASELINE = "onnxruntime"
# int8 changes the vectors: an engine whose mean cosine to the oracle is below this is broken, not rounded
LEAST_COSINE = 0.9
# thread pools spin for some 200 ms after their work: the next engine's turn begins behind that
SETTLE_SECONDS = 0.5


class Failed(Exception):
    """An engine's own failure; the text says why."""


class Peer:
    """A worker.py process: one JSON line in, one out."""

    def __init__(self, name, args, texts):
        self.name = name
        threads = str(args.threads)
        env = os.environ | {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "RAYON_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "true" if args.threads > 1 else "false",
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, str(HERE / "worker.py"), name, str(args.model), str(args.cache), threads]
        if name == "candle":
            command = [str(CANDLE), str(args.model)]
        pipes = {"text": True, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        # Ctrl-C is for the parent alone, which ends its workers
        self.process = subprocess.Popen(command, env=env, start_new_session=True, **pipes)
        try:
            self.ask(do="load", texts=str(texts))
        except BaseException:
            self.close()
            raise

    def ask(self, **request):
        """The worker's answer; one that fails says why and ends."""
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, and may have said why
        answer = self.process.stdout.readline()
        answer = json.loads(answer) if answer else {"failed": f"the worker ended (exit code {self.process.wait()})"}
        if "failed" in answer:
            raise Failed(answer["failed"])
        return answer

    def prepare(self):
        """Version, chosen batch size and number of tokens."""
        return self.ask(do="tune")

    def round(self):
        return self.ask(do="round")

    def vectors(self, path):
        self.ask(do="vectors", path=str(path))
        return np.load(path)

    def calls(self, texts, batch, samples):
        return self.ask(do="calls", texts=str(texts), batch=batch, samples=samples)

    def peak_mib(self):
        return self.ask(do="memory")["peak_resident_bytes"] / 2**20

    def close(self):
        self.process.kill()
        self.process.wait()


class Berthier:
    """The berthier command, started anew for each turn; loading and a warm-up round are not counted."""

    name = "berthier"

    def __init__(self, args, texts):
        self.args, self.texts = args, texts
        self.peak_bytes = 0
        self.common = ["--model", str(args.model), "--threads", str(args.threads), "--device", "cpu"]
        if args.precision:
            self.common += ["--precision", args.precision]

    def run(self, *command):
        command = [str(self.args.berthier), *command, *self.common]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise Failed(f"{done.stderr.strip()} (exit code {done.returncode} of {shlex.join(command)})")
        return done.stdout

    def bench(self, *measure):
        report = json.loads(self.run("bench", *measure, "--json"))
        self.peak_bytes = max(self.peak_bytes, report["peak_resident_bytes"])
        return report

    def throughput(self):
        return self.bench("throughput", "--texts", str(self.texts), "--repeat", "1", "--warmup", "1")

    def prepare(self):
        report = self.throughput()
        tokens = report["points"][0]["tokens"]
        return {"version": f"{report['berthier']} ({report['device']})", "setting": "packed", "tokens": tokens}

    def round(self):
        once = self.throughput()["points"][0]["rounds"][0]
        return {"seconds": once["seconds"], "cpu_seconds": once["cpu_seconds"]}

    def vectors(self, path):
        self.run("embed", str(self.texts), "-o", str(path))
        return np.load(path)

    def calls(self, texts, batch, samples):
        calls = ["--texts", str(texts), "--batch-sizes", str(batch), "--samples", str(samples)]
        report = self.bench("latency", *calls)
        point = next(point for point in report["points"] if point["from"] == "text")
        return {"us": report["series"][0]["samples"], "cpu_us_a_call": point["cpu_us_a_call"]}

    def peak_mib(self):
        return self.peak_bytes / 2**20

    def close(self):
        pass


def engine_of(name, args, texts):
    return Berthier(args, texts) if name == "berthier" else Peer(name, args, texts)


class Engines:
    """The engines of a run. One that fails is asked no more, and the others go on."""

    def __init__(self, args, texts):
        self.args, self.texts = args, texts
        self.running = {}
        # why, by name
        self.failed = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        while self.running:
            self.running.popitem()[1].close()

    def start(self, name):
        self.running[name] = engine_of(name, self.args, self.texts)
        return self.running[name]

    def each(self, question, turn=0):
        """{name: question(name)} of those that have not failed; who goes first changes from turn to turn."""
        names = [name for name in self.args.engines if name not in self.failed]
        first = turn % max(len(names), 1)
        answers = {}
        for name in names[first:] + names[:first]:
            try:
                answers[name] = question(name)
            except Failed as failed:
                print(f"{name}: failed: {failed}", file=sys.stderr)
                self.failed[name] = str(failed)
                if name in self.running:
                    self.running.pop(name).close()
        return answers

    def peak_mib(self):
        return self.each(lambda name: round(self.running[name].peak_mib(), 1))


def read_texts(files, limit):
    """Non-blank lines of the files, evenly spread over them if there are more than `limit`."""
    lines = [line.strip() for file in files for line in Path(file).read_text("utf-8").split("\n")]
    lines = [line for line in lines if line]
    if not lines:
        raise SystemExit("no texts in " + ", ".join(map(str, files)))
    if limit and limit < len(lines):
        lines = [lines[i * len(lines) // limit] for i in range(limit)]
    return lines


def machine():
    cpu = platform.processor()
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
        cpu = next((line.split(":", 1)[1].strip() for line in cpuinfo.split("\n") if line.startswith("model name")), cpu)
    except OSError:
        pass
    return {"cpu": cpu, "processors": len(os.sched_getaffinity(0)), "system": platform.platform()}


def commit():
    def git(*args):
        return subprocess.run(["git", "-C", str(REPO), *args], capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "HEAD") + (" with changes" if git("status", "--porcelain") else "")


def spread(values, digits):
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def cosines(vectors, oracle):
    """Of each text's vector with the oracle's: the mean and the least."""
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(oracle, axis=1)
    each = (vectors * oracle).sum(1) / lengths
    return {"mean": float(each.mean()), "least": float(each.min())}


def failure(reason):
    """As a cell of a table."""
    reason = " ".join(reason.split()).replace("|", "\\|")
    return f"**failed: {reason if len(reason) <= 300 else reason[:300] + '…'}**"


def table(results, rows, baseline_name):
    """Markdown. The speed of an engine whose vectors are wrong is left out."""
    lines = [
        f"| engine | setting | texts/s | × {baseline_name} | tokens/s | CPU s a round | peak MiB | difference |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    baseline = results.get(baseline_name)
    for name, result in results.items():
        if result["failed"]:
            lines.append(f"| {name} | {failure(result['failed'])} | | | | | | |")
            continue
        if not result["rounds"]:
            lines.append(f"| {name} | no round | | | | | | |")
            continue
        difference = "oracle" if name == ORACLE else "not compared"
        if result["max_difference"] is not None and name != ORACLE:
            difference = f"{result['max_difference']:.1e}"
        if result["cosines"]:
            difference = f"cosine {result['cosines']['mean']:.4f}, least {result['cosines']['least']:.4f}"
        head = f"| {name} {result['version']} | {result['setting']} "
        if result["wrong"]:
            lines.append(head + f"| wrong vectors | | | | | **{difference}** |")
            continue
        seconds = [turn["seconds"] for turn in result["rounds"]]
        ratio = ""
        if baseline and baseline["rounds"] and not baseline["failed"] and not baseline["wrong"]:
            pairs = zip(baseline["rounds"], result["rounds"])
            ratio = spread([theirs["seconds"] / ours["seconds"] for theirs, ours in pairs], 2)
        speed = spread([rows / s for s in seconds], 1)
        tokens = f"{result['tokens'] / statistics.median(seconds):,.0f}"
        cpu = spread([turn["cpu_seconds"] for turn in result["rounds"]], 2)
        lines.append(head + f"| {speed} | {ratio} | {tokens} | {cpu} | {result['peak_mib']:.0f} | {difference} |")
    return "\n".join(lines)


def common_arguments(description):
    """What every question about the engines takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", type=Path, required=True, help="model directory (BERT, mean pooling, Normalize)")
    parser.add_argument("--texts", type=Path, nargs="+", required=True, help="files of texts, one a line")
    parser.add_argument("--threads", type=int, default=1, help="threads of every engine (default: 1)")
    parser.add_argument("--rounds", type=int, default=5, help="counted turns of every engine (default: 5)")
    parser.add_argument("--engines", nargs="+", choices=ENGINES + INT8_PEERS, default=ENGINES, metavar="ENGINE",
                        help=", ".join(ENGINES + INT8_PEERS) + " (default: those of fp32)")
    parser.add_argument("--baseline", choices=ENGINES + INT8_PEERS, default=BASELINE, metavar="ENGINE",
                        help=f"to whose speed the others' are compared (default: {BASELINE})")
    parser.add_argument("--berthier", type=Path, default=REPO / "target/release/berthier", help="the command to measure")
    parser.add_argument("--precision", help="of the berthier command (bf16 takes a larger --tolerance)")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/berthier-peers", help="converted models")
    parser.add_argument("--out", type=Path, help="JSON with every round")
    return parser


def parsed(parser):
    args = parser.parse_args()
    if min(args.threads, args.rounds) < 1:
        parser.error("--threads and --rounds are at least 1")
    if not (args.model / "modules.json").is_file():
        parser.error(f"{args.model} is not a sentence-transformers directory (no modules.json)")
    if "berthier" in args.engines and not args.berthier.is_file():
        parser.error(f"{args.berthier} is not there: cargo build --release, or --engines without berthier")
    if "candle" in args.engines and not CANDLE.is_file():
        parser.error(f"{CANDLE} is not there: cargo build --release in tools/peers/candle, or --engines without candle")
    args.model, args.cache = args.model.resolve(), args.cache.resolve()
    return args


def about(args):
    """Where, when and how a run was made."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "machine": machine(),
        "threads": args.threads,
        "rounds": args.rounds,
        "model": args.model.name,
        "python": platform.python_version(),
        "tokenising": "included in every engine's time",
    }


def arguments():
    parser = common_arguments(__doc__.split("\n")[0])
    parser.add_argument("--limit", type=int, help="so many texts, evenly spread over the files")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest difference of a component (default: 1e-4)")
    args = parsed(parser)
    if args.limit is not None and args.limit < 1:
        parser.error("--limit is at least 1")
    return args


def finite(value):
    """JSON has neither infinity nor NaN: null in their place."""
    if isinstance(value, dict):
        return {key: finite(of) for key, of in value.items()}
    if isinstance(value, list):
        return [finite(of) for of in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write(out, report):
    """JSON that is there as a whole or as it was before, whenever the run is ended."""
    if out:
        part = out.with_name(f"{out.name}.part")
        part.write_text(json.dumps(finite(report), indent=1, allow_nan=False) + "\n")
        os.replace(part, out)


def measured(measure, save):
    """Has `measure` run, which saves what it has after each round; whether it came to its end, and not to Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    save(complete=False)
    try:
        measure()
    except KeyboardInterrupt:
        print("interrupted: what there is of complete rounds follows", file=sys.stderr)
        save(complete=False)
        return False
    save(complete=True)
    return True


def compare(results, vectors, args):
    """Each engine's vectors with those of the oracle, if that is there."""
    if ORACLE not in vectors:
        return
    oracle = vectors[ORACLE]
    for name, of_engine in vectors.items():
        result = results[name]
        same_shape = of_engine.shape == oracle.shape
        if same_shape and (name in INT8_PEERS or (name == "berthier" and args.precision == "int8")):
            result["cosines"] = cosines(of_engine, oracle)
            result["wrong"] = not result["cosines"]["mean"] >= LEAST_COSINE
            continue
        difference = float(np.abs(of_engine - oracle).max()) if same_shape else float("inf")
        # not (a <= b): NaN is wrong, too
        result["max_difference"], result["wrong"] = difference, not difference <= args.tolerance


def main():
    args = arguments()
    lines = read_texts(args.texts, args.limit)
    run = about(args) | {"texts": len(lines)}
    unknown = dict.fromkeys(["version", "setting", "tokens", "peak_mib", "max_difference", "cosines", "failed"])
    results = {name: unknown | {"wrong": False, "rounds": []} for name in args.engines}

    with tempfile.TemporaryDirectory() as scratch, Engines(args, Path(scratch) / "texts.txt") as engines:
        engines.texts.write_text("\n".join(lines) + "\n", "utf-8")

        def prepare(name):
            print(f"{name}: load and tune", file=sys.stderr)
            engine = engines.start(name)
            results[name].update(engine.prepare())
            return engine.vectors(Path(scratch) / f"{name}.npy")

        def measure():
            compare(results, engines.each(prepare), args)
            for turn in range(args.rounds):

                def once(name):
                    time.sleep(SETTLE_SECONDS)
                    done = engines.running[name].round()
                    print(f"round {turn + 1} {name}: {len(lines) / done['seconds']:.1f} texts/s", file=sys.stderr)
                    return done

                for name, done in engines.each(once, turn).items():
                    results[name]["rounds"].append(done)
                for name, mib in engines.peak_mib().items():
                    results[name]["peak_mib"] = mib
                save(complete=False)

        def save(complete):
            for name, why in engines.failed.items():
                results[name]["failed"] = why
            write(args.out, run | {"complete": complete, "engines": results})

        complete = measured(measure, save)

    rounds = max(len(result["rounds"]) for result in results.values())
    print(f"{run['date']}, commit {run['commit']}, {run['machine']['cpu']}, {args.threads} thread(s), {len(lines)} texts, "
          f"{rounds} {'' if complete else f'of {args.rounds} '}rounds: median (min to max)\n")
    print(table(results, len(lines), args.baseline))
    if not complete:
        raise SystemExit("interrupted")
    if any(result["failed"] for result in results.values()):
        raise SystemExit("an engine failed")
    if any(result["wrong"] for result in results.values()):
        raise SystemExit("an engine's vectors are wrong")


if __name__ == "__main__":
    main()
