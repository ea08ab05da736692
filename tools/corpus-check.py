"""Embedding large inputs: memory that does not grow, output that starts at once, runs that can be stopped.

    python3 tools/corpus-check.py --texts PASSAGES.txt... [--berthier target/release/berthier] [--out report.json]

1. `memory`: the passages, then the same passages several times over; the peak resident size of each run.
2. `stream`: generated lines of --gigabytes; seconds until the output grows (counted from the start of the
   process, so the loading of the model is in it) and the resident size after --seconds; then SIGKILL,
   `--resume`, SIGINT, and so on until --stops; the rows that are written so far are compared with those of a
   run that was never stopped.

Only the standard library. Prints a table, and with --out writes JSON with machine, date, commit and command.
"""

import argparse
import datetime
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
WORDS = ("the army crossed river at night while engineers repaired bridge and staff officers wrote orders for "
         "march of morning with maps by candle light until reports came from outposts").split()


def generated_line(i):
    """A line that depends on its number only, of 4 to 40 words."""
    state = i * 2654435761 % 2**32
    words = []
    for _ in range(4 + state % 37):
        state = (state * 1664525 + 1013904223) % 2**32
        words.append(WORDS[(state >> 16) % len(WORDS)])
    return f"{i} " + " ".join(words) + "\n"


def generate(path, size):
    written, i = 0, 0
    with open(path, "w", buffering=1 << 20) as file:
        while written < size:
            block = "".join(generated_line(j) for j in range(i, i + 10000))
            file.write(block)
            written, i = written + len(block), i + 10000
    return i


def resident_mib(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def memory(args, folder):
    """Peak resident sizes over inputs of one and of several times the passages."""
    text = b"".join(Path(p).read_bytes() for p in args.texts)
    lines = [line for line in text.splitlines(keepends=True) if line.strip()]
    passages = b"".join(lines[:: max(1, len(lines) // args.limit)] if args.limit else lines)
    rows = []
    for times in args.times:
        source = folder / f"times{times}.txt"
        source.write_bytes(passages * times)
        command = [args.berthier, "embed", str(source), "-o", str(folder / "m.npy"), "--overwrite", "--quiet"]
        start = time.monotonic()
        process = subprocess.Popen(command)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{shlex.join(command)}: status {status}")
        rows.append({
            "times": times,
            "rows": passages.count(b"\n") * times,
            "bytes": len(passages) * times,
            "seconds": round(time.monotonic() - start, 1),
            "peak_resident_mib": round(usage.ru_maxrss / 1024, 1),
        })
        print(f"memory: {rows[-1]}", flush=True)
    return rows


def stream(args, folder):
    """Stops and resumptions over a generated file."""
    source = folder / "generated.txt"
    lines = generate(source, int(args.gigabytes * 1e9))
    out = folder / "s.f32"
    partial = Path(f"{out}.partial")
    report = {"bytes": source.stat().st_size, "rows": lines, "runs": []}
    size = 0
    for stop in range(args.stops):
        command = [args.berthier, "embed", str(source), "-o", str(out), "--quiet", "--resume"]
        start = time.monotonic()
        process = subprocess.Popen(command)
        first = None
        while time.monotonic() - start < args.seconds:
            if first is None and partial.exists() and partial.stat().st_size > size:
                first = time.monotonic() - start
            if process.poll() is not None:
                raise SystemExit(f"the run ended by itself: {process.returncode}")
            time.sleep(0.01)
        resident = resident_mib(process.pid)
        how = signal.SIGKILL if stop % 2 == 0 else signal.SIGINT
        process.send_signal(how)
        process.wait()
        size = partial.stat().st_size
        assert not out.exists(), "an unfinished run left a file that looks complete"
        report["runs"].append({
            "stopped_by": how.name,
            "exit_code": process.returncode,
            "first_output_seconds": first and round(first, 2),
            "peak_resident_mib": round(resident, 1),
            "partial_bytes": size,
        })
        print(f"stream: {report['runs'][-1]}", flush=True)

    row_bytes = 4 * 384
    rows = size // row_bytes
    head = folder / "head.txt"
    with open(source, "rb") as file:
        head.write_bytes(b"".join(file.readline() for _ in range(rows)))
    plain = folder / "plain.f32"
    subprocess.run([args.berthier, "embed", str(head), "-o", str(plain), "--quiet"], check=True)
    with open(partial, "rb") as file:
        same = file.read(rows * row_bytes) == plain.read_bytes()
    report |= {"rows_compared": rows, "same_bytes": same}
    print(f"stream: {rows} rows, stopped {args.stops} times, {'the same bytes' if same else 'OTHER BYTES'} as in one run")
    if not same:
        raise SystemExit(1)
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", nargs="+", required=True, help="files of passages, one a line")
    parser.add_argument("--berthier", default=str(REPO / "target/release/berthier"))
    parser.add_argument("--limit", type=int, help="about so many passages")
    parser.add_argument("--times", type=int, nargs="+", default=[1, 4], help="repetitions of the passages (default: 1 4)")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the generated input (default: 1)")
    parser.add_argument("--seconds", type=float, default=20, help="length of each run over it (default: 20)")
    parser.add_argument("--stops", type=int, default=4, help="stops and resumptions (default: 4)")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPO, capture_output=True, text=True).stdout.strip()
    cpu = [l.split(":")[1].strip() for l in Path("/proc/cpuinfo").read_text().splitlines() if l.startswith("model name")]
    with tempfile.TemporaryDirectory() as folder:
        report = {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "commit": commit,
            "machine": f"{cpu[0] if cpu else platform.processor()}, {os.cpu_count()} processors",
            "command": shlex.join(sys.argv),
            "memory": memory(args, Path(folder)),
            "stream": stream(args, Path(folder)),
        }
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
