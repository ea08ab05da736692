"""What was quickest in a bench's logs, as rows of the tables that the backend takes before any prediction: src/backend/cuda/tiles.tsv and
one_launch.tsv. Knows nothing of how it was timed.

    recorded.py tiles LOG...           prints the rows of logs of bench.cpp
    recorded.py one_launch LOG...      prints those of logs of bench.cpp, which name the GPU, with one of rivals.py
    recorded.py record REPORT FOLDER   puts a report's rows into the tables in a folder
"""

import itertools
import json
import sys
from pathlib import Path

# what the limits of one_launch.tsv are about, as persistent.rs has them: batches of one text or of such texts, up to so many tokens
USUAL_SEQUENCE, MOST_TOKENS = 128, 256
# and clusters that compete for what they read: no more than most GPUs that have clusters have
SIDE_BY_SIDE = 4
# --persistent-kernel, and how batches of up to MOST_TOKENS are launched where it is done as asked for
WAYS = {"never": {"kernel_by_kernel", "graph"}, "grid": {"grid"}, "clusters": {"clusters"}}


def items(log):
    """Lines of JSON, each with the GPU that was named last."""
    gpu = None
    for line in log.split("\n"):
        try:
            item = json.loads(line) if line.startswith("{") else {}
        except ValueError:  # of a process that was ended
            continue
        gpu = item.get("device", gpu)
        yield gpu, item


def tiles(log):
    """Of a shape, what was measured with m rows is taken to hold from m down to half as many, and of the fewest to one."""
    times = {}
    for gpu, item in items(log):
        if "cold_us" not in item or not item["kernel"].startswith("gemm_"):
            continue
        for weights, us in (("memory", item["cold_us"]), ("l2", item["hot_us"])):
            tile = item["kernel"].removesuffix("_f16"), item["splits"]
            times.setdefault((gpu, item["n"], item["k"], weights), {}).setdefault(item["m"], {})[tile] = us[1]
    for product, of_rows in sorted(times.items()):
        for m, us in sorted(of_rows.items()):
            (tile, splits), first = min(us, key=us.get), 1 if m == min(of_rows) else m // 2 + 1
            yield row(*product, first, m, tile, splits)


def of_limits(said):
    """The points of `berthier bench latency` that limits are made of: by the GPU's clock, of batches that one launch may take."""
    return [p for p in said["points"] if "gpu_us" in p and p["tokens"] * p["texts"] <= MOST_TOKENS]


def otherwise(way, said):
    """The batches, in words, that were not launched in this way, whatever was asked for: a driver may refuse."""
    found = [(p["texts"], p["tokens"], set(p.get("gpu_launches", {}))) for p in of_limits(said)]
    return [f"{texts} x {tokens} tokens as {sorted(ways)}" for texts, tokens, ways in found if not ways or ways - WAYS[way]]


def one_launch(log):
    """Of an encoder, up to how many tokens one launch was quicker at every size that was measured, by the GPU's clock with copies: the
    grid than kernels one by one, and clusters with a text each than both. None where not every way was measured, all batches in it."""
    times = {}
    for gpu, item in items(log):
        if "one_launch" not in item:
            continue
        way, said = item["one_launch"], item["said"]
        if wrong := otherwise(way, said):
            print(f"one_launch.tsv: no row of {item['sizes']} on {gpu}: not '{way}', but " + "; ".join(wrong), file=sys.stderr)
            continue
        us = {(p["tokens"], p["texts"]): p["gpu_us"]["p50"] for p in of_limits(said)}
        times.setdefault((gpu, *item["sizes"]), {})[way] = us
    for encoder, ways in sorted(times.items()):
        if set(WAYS) - set(ways) or not ways["never"]:
            continue
        never, grid, clusters = (ways[way] for way in WAYS)
        batches = sorted(never)
        usual = {tokens * texts: (tokens, texts) for tokens, texts in batches if texts == 1 or tokens == USUAL_SEQUENCE}
        shares = {n: [(tokens, texts) for tokens, texts in batches if tokens == n and texts <= SIDE_BY_SIDE] for n, _ in batches}
        on_grid = most(usual, lambda n: grid[usual[n]] < never[usual[n]])
        in_cluster = most(shares, lambda n: all(batch in clusters and clusters[batch] < min(never[batch], grid[batch]) for batch in shares[n]))
        yield row(*encoder, on_grid, in_cluster)


def most(sizes, is_quicker):
    """The last of the sizes from the smallest on of which all are quicker, or 0."""
    return max(itertools.takewhile(is_quicker, sorted(sizes)), default=0)


def row(*columns):
    return "\t".join(map(str, columns))


def write(report, name, rows):
    """Rows for `record`, in a report."""
    rows = list(rows)
    if rows:
        (Path(report) / name).write_text("\n".join(rows) + "\n")


def record(report, folder):
    """Puts the rows of a report's tables into those in the folder, in place of those of their GPU."""
    found = [path for name in ("tiles.tsv", "one_launch.tsv") if (path := Path(report) / name).exists()]
    if not found:
        sys.exit(f"gpu-check: no tiles.tsv nor one_launch.tsv in {report}: its bench did not run on a GPU, or not to an end")
    for path in found:
        table = Path(folder) / path.name
        new = path.read_text().splitlines()
        gpus = {line.split("\t")[0] for line in new}
        comments, old = [], []
        for line in table.read_text().splitlines():
            if line.startswith("#"):
                comments.append(line.removesuffix(" No GPU has been measured yet."))
            elif line.split("\t")[0] not in gpus:
                old.append(line)
        table.write_text("\n".join(comments + sorted(old + new)) + "\n")
        print(f"{table}: {len(new)} rows of {', '.join(sorted(gpus))}")


if __name__ == "__main__":
    what, *paths = sys.argv[1:]
    if what == "record":
        record(*paths)
    else:
        print("\n".join({"tiles": tiles, "one_launch": one_launch}[what]("\n".join(Path(path).read_text() for path in paths))))
