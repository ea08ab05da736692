"""Runs the sections, each in processes of its own with a limit of time, so that none can stop the others."""

import datetime
import glob
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path

import recorded
from report import Report, table

# in the order in which they run, with the seconds that each may take at most of those that are left
SECTIONS = {"conformance": 60, "kernels": 150, "cpu": 30, "agree": 150, "bench": 400, "sanitizer": 240}
# the longest last; every test of tests/kernels but numeric.cpp, whose kernels and functions are the test's own: nothing of it is in the image
TESTS = ["conformance", "embed_layernorm", "residual_layernorm", "rotary", "first_rows", "pool", "attention", "gemm", "forward", "persistent_encoder"]


class Failed(Exception):
    """A section's own failure; the text is for the report."""


class Runner:
    def __init__(self, args, pack):
        self.args, self.pack, self.start = args, pack, time.monotonic()
        self.out = Path(args.out).resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        self.work = Path(args.work).resolve() if args.work else Path(tempfile.mkdtemp(prefix="gpu-check-"))
        self.logs = self.work / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.now = "starting"
        self.sanitizer = None
        # what our own programs see; PyTorch's processes have the system's driver whatever --driver says
        self.environment = dict(os.environ)
        self.environment.update(
            BERTHIER_TESTS=str(pack / "tests"),
            BERTHIER_GPU_IMAGES=str(pack / "images"),
            BERTHIER_CONFORMANCE_RECORDS=str(self.work / "records"),
        )
        weights = pack / "model/model.safetensors"
        if weights.exists():
            self.environment["BERTHIER_TEST_WEIGHTS"] = str(weights)
        else:
            self.environment.pop("BERTHIER_TEST_WEIGHTS", None)
        if args.driver:
            old = self.environment.get("LD_LIBRARY_PATH")
            self.environment["LD_LIBRARY_PATH"] = str(Path(args.driver).resolve()) + (":" + old if old else "")

    def for_torch(self):
        """Of a process that imports torch: the system's libraries, and what its children that are ours shall see."""
        return {"LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", ""), "GPU_CHECK_LIBRARY_PATH": self.environment.get("LD_LIBRARY_PATH", "")}

    def left(self):
        return self.args.seconds - (time.monotonic() - self.start)

    def run(self, name, command, limit, environment=None):
        """(exit code or None if it ran out of time, output), also in logs/NAME.log. What it started ends with it."""
        path = self.logs / f"{re.sub('[^A-Za-z0-9._-]', '-', name)}.log"
        env = {**self.environment, **(environment or {})}
        with open(path, "w") as log:
            log.write("$ " + " ".join(map(str, command)) + "\n")
            log.flush()
            try:
                process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=subprocess.STDOUT, env=env, start_new_session=True, stdin=subprocess.DEVNULL)
            except OSError as e:
                return 127, f"{command[0]}: {e}"
            try:
                code = process.wait(timeout=max(1, limit))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                code = None
        return code, path.read_text(errors="replace").split("\n", 1)[1]

    def many(self, jobs, limit, at_once):
        """Jobs {name: (command, environment)} side by side; {name: (code, output)}."""
        results, waiting, lock = {}, list(jobs.items()), threading.Lock()
        end = time.monotonic() + limit

        def work():
            while True:
                with lock:
                    if not waiting:
                        return
                    name, (command, environment) = waiting.pop(0)
                if end - time.monotonic() < 2:
                    results[name] = (None, "no time was left")
                    continue
                self.now = name
                results[name] = self.run(name, command, end - time.monotonic(), environment)

        threads = [threading.Thread(target=work) for _ in range(max(1, min(at_once, len(waiting))))]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        return {name: results[name] for name in jobs}


def main(args, pack):
    runner = Runner(args, pack)
    wanted = args.only.split(",") if args.only else list(SECTIONS)
    unknown = set(wanted) - set(SECTIONS)
    if unknown:
        print(f"gpu-check: no section {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    done = threading.Event()

    def heartbeat():
        while not done.wait(15):
            print(f"[gpu-check] {time.monotonic() - runner.start:.0f} s: {runner.now}", flush=True)

    threading.Thread(target=heartbeat, daemon=True).start()
    report = Report(runner.out, about(runner))
    bad = False
    try:
        for name in [n for n in SECTIONS if n in wanted]:
            # who asks for some sections gives them the time of the others; those behind shall have their minute
            behind = [n for n in list(SECTIONS)[list(SECTIONS).index(name) + 1 :] if n in wanted]
            limit, began = runner.left() - 5 - 45 * len(behind), time.monotonic()
            limit = limit if args.only else min(SECTIONS[name], limit)
            runner.now = name
            print(f"[gpu-check] {began - runner.start:.0f} s: {name}, at most {limit:.0f} s", flush=True)
            if limit < 10:
                verdict, text, data = "skipped: no time was left", "", {}
            else:
                try:
                    verdict, text, data = globals()["section_" + name](runner, limit)
                except Failed as e:
                    verdict, text, data = "FAILED", str(e), {}
                except Exception as e:  # ours or the machine's: the other sections still run
                    verdict, text, data = "FAILED", f"{type(e).__name__}: {e}", {}
            report.add(name, verdict, time.monotonic() - began, text, data)
            bad = bad or verdict == "FAILED"
            print(f"[gpu-check] {name}: {verdict}", flush=True)
    finally:
        done.set()
        with tarfile.open(runner.out / "logs.tar.gz", "w:gz") as tar:
            tar.add(runner.logs, "logs")
        if not args.work:
            shutil.rmtree(runner.work, ignore_errors=True)
    print(f"[gpu-check] {time.monotonic() - runner.start:.0f} s: {runner.out / 'report.md'}", flush=True)
    return 1 if bad else 0


# ---- what machine this is -------------------------------------------------------------------------------------------------


def about(runner):
    said = json.loads((runner.pack / "pack.json").read_text())
    query = "name,driver_version,compute_cap,memory.total,clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,power.limit"
    gpu = {}
    if not runner.args.driver:
        code, text = runner.run("nvidia-smi", ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], 20)
        if code == 0 and text.strip():
            gpu = dict(zip(query.split(","), [v.strip() for v in text.strip().split("\n")[0].split(",")]))
        runner.run("nvidia-smi-q", ["nvidia-smi", "-q"], 20)
    cpu = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().split("\n"):
            key, _, value = line.partition(":")
            cpu.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    code, torch = runner.run("torch-version", [sys.executable, "-c", "import torch; print(torch.__version__, torch.version.cuda)"], 60)
    return {
        "commit": said["commit"] + (f" with {len(said['changed_files'])} changed files" if said["changed_files"] else ""),
        "packed": said["packed"],
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "GPU": gpu.get("name", "stand-in driver" if runner.args.driver else "nvidia-smi says nothing"),
        **{f"GPU {k}": v for k, v in gpu.items() if k != "name"},
        "CPU": f"{cpu.get('model name', '?')}, {os.cpu_count()} threads",
        "CPU has": " ".join(f for f in ["avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "amx_bf16"] if f in cpu.get("flags", "").split()),
        "Python": sys.version.split()[0],
        "PyTorch, its CUDA": torch.strip().split("\n")[-1] if code == 0 else "absent",
        "command": " ".join(sys.argv),
    }


# ---- kernel tests -----------------------------------------------------------------------------------------------------------


def verdicts(output):
    """Of a test program's output: {verdict: [lines]}, and whether it came to its end."""
    lines = {"ok": [], "FAIL": [], "SKIP": []}
    for line in output.split("\n"):
        word = line.split(" ", 1)[0]
        if word in lines:
            lines[word].append(line)
    return lines, bool(re.search(r"^\d+ cases, ", output, re.M))


def judge(results):
    """Rows of a table, the lines of what failed or was cut short, and a verdict."""
    rows, wrong, failed, cut = [], [], False, False
    for name, (code, output) in results.items():
        lines, ended = verdicts(output)
        rows.append([name, len(lines["ok"]), len(lines["FAIL"]), len(lines["SKIP"]), "" if ended else ("out of time" if code is None else f"exit {code}")])
        wrong += [f"{name}: {line}" for line in lines["FAIL"][:20]]
        cut = cut or code is None
        if lines["FAIL"] or (not ended and code is not None):
            failed = True
        if not ended and code is not None:
            wrong += [f"{name} ended with {code}: {' / '.join(output.strip().split(chr(10))[-3:])}"]
    text = "\n".join(table(["program", "ok", "failed", "skipped", ""], rows))
    if wrong:
        text += "\n\n```\n" + "\n".join(wrong) + "\n```"
    return rows, text, "FAILED" if failed else "partial: out of time" if cut else "ok"


def section_kernels(runner, limit):
    """tests/kernels on the GPU, and launches that must be found wrong."""
    words = ["quick"] if runner.args.quick else []
    canaries = ["behind", "input", "nothing"]
    if runner.args.driver:  # a real GPU's driver logs a fault that other users of the machine may wonder about
        canaries.append("outside")
    found = []
    for word in canaries:
        code, output = runner.run(f"canary-{word}", [runner.pack / "bin/canary", word], 30)
        if (code == 0) != (word == "nothing"):
            raise Failed(f"the canary '{word}' ended with {code}, so the tests' verdicts mean nothing:\n\n```\n{output}\n```")
        found.append(word)
    at_once = max(1, min(6, (os.cpu_count() or 2) // 2))
    # the longest first
    jobs = {f"{t}": ([runner.pack / "bin" / t, *words], {}) for t in reversed(TESTS) if t != "conformance"}  # that has a section
    rows, text, verdict = judge(runner.many(jobs, limit, at_once))
    return verdict, f"Wrong launches that were found: {', '.join(w for w in found if w != 'nothing')}.\n\n{text}", {"programs": rows}


def section_conformance(runner, limit):
    """Every wrapper on the GPU: by the PTX ISA; recorded; and the emulator by the record."""
    records = runner.work / "records"
    records.mkdir(parents=True, exist_ok=True)
    gpu = runner.run("conformance-gpu", [runner.pack / "bin/conformance"], limit / 2, {"BERTHIER_CONFORMANCE_RECORDS": "/nonexistent"})
    code, said = runner.run("conformance-record", [runner.pack / "bin/record", runner.pack / "images/conformance.fatbin", records], limit / 2)
    if code != 0:
        raise Failed(f"the recorder ended with {code}: {said.strip()}\n\n{judge({'GPU by the PTX ISA': gpu})[1]}")
    with tarfile.open(runner.out / "conformance-records.tar.gz", "w:gz") as tar:
        for path in sorted(records.glob("*.txt")):
            tar.add(path, path.name)
    emulator = runner.run("conformance-emulator", [runner.pack / "bin/conformance-emulated"], limit / 2)
    rows, text, verdict = judge({"GPU by the PTX ISA": gpu, "emulator by the GPU's record": emulator})
    equal = emulator[1].count("equal to ")
    text += f"\n\n{said.strip().split(chr(10))[-1]}; {equal} records compared. They are in conformance-records.tar.gz, for tests/emulator/conformance/."
    return verdict if equal else "FAILED", text, {"programs": rows, "records": len(list(records.glob("*.txt"))), "compared": equal}


# ---- compute-sanitizer ---------------------------------------------------------------------------------------------------------


def find_sanitizer():
    places = ["/usr/local/cuda*/bin", "/usr/local/cuda*/compute-sanitizer", "/opt/nvidia/*/bin", "/opt/cuda*/bin", "/usr/lib/nvidia-cuda-toolkit/bin"]
    places += [f"{p}/nvidia/*/bin" for p in sys.path if p] + [f"{p}/nvidia/cuda_sanitizer*/**" for p in sys.path if p]
    found = shutil.which("compute-sanitizer")
    return found or next((path for place in places for path in sorted(glob.glob(place + "/compute-sanitizer", recursive=True)) if os.access(path, os.X_OK)), None)


def section_sanitizer(runner, limit):
    """memcheck, racecheck, synccheck over the tests' quick cases, each buffer an allocation of exactly its size."""
    tool = find_sanitizer()
    if not tool:
        return "skipped: no compute-sanitizer on this machine", "Looked on the PATH, in toolkits under /usr/local and /opt, and in Python's packages.", {}
    exact = {"BERTHIER_GPU_EXACT": "1", "BERTHIER_GPU_LAUNCH_SECONDS": "120"}
    # errors of API calls are the programs' own to judge: a query that finds work in flight is not one
    options = ["--error-exitcode", "99", "--print-limit", "20", "--report-api-errors", "no"]
    code, output = runner.run("sanitizer-canary", [tool, "--tool", "memcheck", *options, runner.pack / "bin/canary", "behind"], min(60, limit / 3), exact)
    if "Invalid __global__ write" not in output:
        return "skipped: compute-sanitizer does not work here", f"A planted write behind a buffer was not found:\n\n```\n{output[-1500:]}\n```", {}
    end, rows, wrong = time.monotonic() + limit, [], []
    jobs = {}
    for check in ["memcheck", "racecheck", "synccheck"]:
        for test in TESTS:
            if test == "forward":
                continue  # the same kernels as the others', on a model's worth of memory
            jobs[f"{check} {test}"] = ([tool, "--tool", check, *options, runner.pack / "bin" / test, "quick"], exact)
    results = runner.many(jobs, end - time.monotonic(), max(1, min(6, (os.cpu_count() or 2) // 2)))
    failed = cut = False
    for name, (code, output) in results.items():
        lines, _ = verdicts(output)
        summary = re.findall(r"=+ ((?:ERROR|RACECHECK) SUMMARY: .*)", output)
        clean = code == 0 and summary and re.search(r" 0 (errors|hazards)", summary[-1])
        rows.append([name, len(lines["ok"]), summary[-1] if summary else ("out of time" if code is None else f"exit {code}")])
        if code is None:
            cut = True
        elif not clean:
            failed = True
            wrong.append(f"{name}:\n" + "\n".join([line for line in output.split("\n") if line.startswith(("=====", "FAIL"))][:30]))
    text = f"{tool}; the planted write was found.\n\n" + "\n".join(table(["tool, program", "cases", "said"], rows))
    if wrong:
        text += "\n\n```\n" + "\n\n".join(wrong) + "\n```"
    return "FAILED" if failed else "partial: out of time" if cut else "ok", text, {"tool": tool, "runs": rows}


# ---- the command: on this CPU; against PyTorch; measured ---------------------------------------------------------------------------


def need(runner, *names):
    for name in names:
        if not (runner.pack / name).exists():
            raise Failed(f"the pack has no {name}")


def section_cpu(runner, limit):
    """`berthier` on this host's CPU, in every instruction set that it has, against the golden vectors."""
    need(runner, "bin/berthier", "model/model.safetensors")
    code, output = runner.run("cpu", [sys.executable, runner.pack / "agree.py", "cpu", runner.pack, runner.work], limit, runner.for_torch())
    return child(code, output)


def section_agree(runner, limit):
    need(runner, "bin/berthier", "model/model.safetensors", "texts.txt")
    command = [sys.executable, runner.pack / "agree.py", "gpu", runner.pack, runner.work, runner.args.device, "quick" if runner.args.quick else "all", str(limit - 5)]
    code, output = runner.run("agree", command, limit, runner.for_torch())
    return child(code, output)


def child(code, output):
    """A child's report: its last lines of JSON, each {"text"} or {"row"} or {"verdict"}."""
    from collections import OrderedDict

    tables, notes, verdict, data = OrderedDict(), [], None, []
    for line in output.split("\n"):
        if not line.startswith('{"'):
            continue
        try:
            item = json.loads(line)
        except ValueError:
            continue
        data.append(item)
        if "row" in item:
            tables.setdefault(item["table"], []).append(item["row"])
        elif "note" in item:
            notes.append(" / ".join(filter(None, item["note"].split("\n"))))
        elif "verdict" in item:
            verdict = item["verdict"]
    text = []
    for name, rows in tables.items():
        keys = list(dict.fromkeys(key for row in rows for key in row))
        text += ["", f"### {name}", "", *table(keys, [[row.get(key, "") for key in keys] for row in rows])]
    text = "\n".join([*[f"- {n}" for n in notes], *text])
    if code is None:
        verdict = "FAILED" if verdict == "FAILED" else "partial: out of time"
    elif verdict is None:
        verdict = "FAILED"
    if code not in (0, None):
        text += "\n\n```\n" + "\n".join(output.strip().split("\n")[-12:]) + "\n```"
        verdict = "FAILED"
    return verdict, text, {"lines": data}


def section_bench(runner, limit):
    """Kernels beside cuBLAS and SDPA, the command beside PyTorch."""
    end = time.monotonic() + limit
    kernels = runner.logs / "bench-kernels.log"
    words = ["quick"] if runner.args.quick else []
    code, output = runner.run("bench-kernels", [runner.pack / "bin/bench", *words, f"seconds={max(10, limit * 0.3):.0f}"], max(15, limit * 0.4))
    measured = [line for line in output.split("\n") if '"cold_us"' in line]
    if not measured:
        raise Failed(f"no kernel was measured, exit {code}:\n\n```\n{output[-1500:]}\n```")
    means_something = not runner.args.quick and not runner.args.driver
    if means_something:
        recorded.write(runner.out, "tiles.tsv", recorded.tiles(output))
    command = [sys.executable, runner.pack / "rivals.py", runner.pack, runner.work, kernels, runner.args.device, "quick" if runner.args.quick else "all", str(end - time.monotonic() - 5)]
    code, beside = runner.run("bench", command, end - time.monotonic(), runner.for_torch())
    if means_something:
        recorded.write(runner.out, "one_launch.tsv", recorded.one_launch(f"{output}\n{beside}"))
    return child(code, beside)
