"""Single calls beside the peers: one text of so many tokens, a few unsorted texts, and the first of a new process.

The protocol is that of run.py, whose engines these are; see README.md.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from run import SETTLE_SECONDS, Engines, about, common_arguments, engine_of, failure, measured, parsed, read_texts, spread, write

# texts of each length: their calls take turns, so that no branch or cache knows one by heart
TEXTS = 20
FIRST_TEXT = "How do I reset my password?"


def texts_of(model, lines, length):
    """TEXTS texts of exactly `length` tokens, special tokens included, from the words of the lines."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    words = [word for line in lines for word in line.split()]
    texts, start = [], 0
    while len(texts) < TEXTS and start + length <= len(words):
        end = start + 1
        while end < len(words) and len(tokenizer.encode(" ".join(words[start:end])).ids) < length:
            end += 1
        text = " ".join(words[start:end])
        if len(tokenizer.encode(text).ids) == length:
            texts.append(text)
        start = end
    if len(texts) < TEXTS:
        raise SystemExit(f"too few words for {TEXTS} texts of {length} tokens")
    return texts


def percentile(values, share):
    """Nearest rank; None where no sample lies beyond it."""
    values = sorted(values)
    if len(values) * (1 - share) < 1 - 1e-9:
        return None
    return values[min(int(len(values) * share), len(values) - 1)]


def first_call(name, args, texts):
    """Milliseconds from the start of a process to its first vector, imports and loading included."""
    if name == "berthier":
        series = engine_of(name, args, texts).bench("cold-start", "--samples", "1", "--warmup", "0")["series"]
        return next(s["samples"][0] for s in series if s["name"] == "cold-start first vector")
    clock = time.perf_counter()
    engine = engine_of(name, args, texts)
    try:
        engine.calls(texts, 1, 1)
        return (time.perf_counter() - clock) * 1e3
    finally:
        engine.close()


def main():
    parser = common_arguments(__doc__.split("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="*", default=[16, 64, 256], help="tokens of a call of one text")
    parser.add_argument("--unsorted", type=int, default=8, help="texts of a call of mixed lengths (default: 8; 0: none)")
    parser.add_argument("--samples", type=int, default=40, help="calls of a turn (default: 40)")
    parser.add_argument("--cold-start", action="store_true", help="also the first call of a new process")
    args = parsed(parser)
    lines = read_texts(args.texts, None)
    run = about(args) | {"samples": args.samples}
    rounds, memory, starts = {}, {}, {name: [] for name in args.engines}
    with tempfile.TemporaryDirectory() as scratch, Engines(args, Path(scratch) / "first.txt") as engines:
        questions = {}

        def question(name, texts, batch):
            path = Path(scratch) / f"{len(questions)}.txt"
            path.write_text("\n".join(texts) + "\n", "utf-8")
            questions[name] = (path, batch)

        for length in args.lengths:
            question(f"{length} tokens", texts_of(args.model, lines, length), 1)
        if args.unsorted:
            count = args.unsorted * TEXTS
            question(f"{args.unsorted} texts, unsorted", [lines[i * len(lines) // count] for i in range(count)], args.unsorted)
        engines.texts.write_text(FIRST_TEXT + "\n", "utf-8")

        def warm_up(name):
            for path, batch in questions.values():
                engines.running[name].calls(path, batch, 5)

        def measure():
            engines.each(engines.start)
            engines.each(warm_up)
            for turn in range(args.rounds):

                def calls(name):
                    answers = {}
                    for question, (path, batch) in questions.items():
                        time.sleep(SETTLE_SECONDS)
                        answers[question] = engines.running[name].calls(path, batch, args.samples)
                    print(f"round {turn + 1} {name}", file=sys.stderr)
                    return answers

                for name, answers in engines.each(calls, turn).items():
                    for question, answer in answers.items():
                        rounds.setdefault(question, {}).setdefault(name, []).append(answer)
                memory.update(engines.peak_mib())
                save(complete=False)
            engines.close()
            for turn in range(args.rounds if args.cold_start else 0):
                for name, ms in engines.each(lambda name: first_call(name, args, engines.texts), turn).items():
                    starts[name].append(ms)
                save(complete=False)

        def save(complete):
            result = {"calls": rounds, "peak_mib": memory, "first_vector_ms": starts, "failed": engines.failed}
            write(args.out, run | {"complete": complete} | result)

        complete = measured(measure, save)
    report(args, run, complete, rounds, memory, starts, engines.failed)
    if not complete:
        raise SystemExit("interrupted")
    if engines.failed:
        raise SystemExit("an engine failed")


def report(args, run, complete, rounds, memory, starts, failed):
    made = max((len(turns) for answers in rounds.values() for turns in answers.values()), default=0)
    print(f"{run['date']}, commit {run['commit']}, {run['machine']['cpu']}, {args.threads} thread(s), "
          f"{made} {'' if complete else f'of {args.rounds} '}rounds of {args.samples} calls: median (min to max) of the rounds' medians\n")
    print("| call | engine | p50 ms | p99 ms | CPU ms | wall / best peer | CPU / best peer |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, answers in rounds.items():
        answers = {engine: turns for engine, turns in answers.items() if engine not in failed}
        p50 = {engine: [statistics.median(a["us"]) / 1e3 for a in turns] for engine, turns in answers.items()}
        cpu = {engine: [a["cpu_us_a_call"] / 1e3 for a in turns] for engine, turns in answers.items()}

        def ratio(values, engine):
            peers = [values[peer] for peer in values if peer != "berthier"]
            if not peers:
                return ""
            best = min(peers, key=statistics.median)
            return spread([ours / theirs for ours, theirs in zip(values[engine], best)], 2)

        for engine, turns in answers.items():
            p99 = percentile([us / 1e3 for turn in turns for us in turn["us"]], 0.99)
            p99 = f"{p99:.2f}" if p99 is not None else "-"
            print(f"| {name} | {engine} | {spread(p50[engine], 2)} | {p99} | {spread(cpu[engine], 2)} "
                  f"| {ratio(p50, engine)} | {ratio(cpu, engine)} |")
    print("\n| engine | peak MiB | first vector of a new process, ms |")
    print("| --- | --- | --- |")
    for name in args.engines:
        if name in failed:
            print(f"| {name} | {failure(failed[name])} | |")
        else:
            mib = f"{memory[name]:.0f}" if name in memory else "-"
            print(f"| {name} | {mib} | {spread(starts[name], 0) if starts[name] else '-'} |")


if __name__ == "__main__":
    main()
