"""The quickest tile of each product that bench.cpp timed, as rows of src/backend/cuda/tiles.tsv. Knows nothing of how it was timed.

    tiles.py LOG     prints the rows of a log of bench.cpp
"""

import json
import sys
from pathlib import Path


def rows(log):
    """Of a shape, what was measured with m rows is taken to hold from m down to half as many, and of the fewest to one."""
    gpu, times = None, {}
    for line in log.split("\n"):
        if not line.startswith("{"):
            continue
        item = json.loads(line)
        gpu = item.get("device", gpu)
        if "cold_us" not in item or not item["kernel"].startswith("gemm_"):
            continue
        for weights, us in (("memory", item["cold_us"]), ("l2", item["hot_us"])):
            tile = item["kernel"].removesuffix("_f16"), item["splits"]
            times.setdefault((item["n"], item["k"], weights), {}).setdefault(item["m"], {})[tile] = us[1]
    found = []
    for (n, k, weights), of_rows in sorted(times.items()):
        for m, tiles in sorted(of_rows.items()):
            (tile, splits), first = min(tiles, key=tiles.get), 1 if m == min(of_rows) else m // 2 + 1
            found.append("\t".join(map(str, [gpu, n, k, weights, first, m, tile, splits])))
    return found


def record(report, table):
    """Puts the rows of a report's tiles.tsv into the table, in place of those of its GPU."""
    new = (Path(report) / "tiles.tsv").read_text().splitlines()
    gpus = {line.split("\t")[0] for line in new}
    comments, old = [], []
    for line in Path(table).read_text().splitlines():
        if line.startswith("#"):
            comments.append(line.removesuffix(" No GPU has been measured yet."))
        elif line.split("\t")[0] not in gpus:
            old.append(line)
    Path(table).write_text("\n".join(comments + sorted(old + new)) + "\n")
    print(f"{table}: {len(new)} rows of {', '.join(sorted(gpus))}")


if __name__ == "__main__":
    print("\n".join(rows(Path(sys.argv[1]).read_text())))
