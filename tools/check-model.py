#!/usr/bin/env python3
"""Checks a model directory: does Berthier give what sentence-transformers gives, on this machine?

    pip install sentence-transformers
    cargo build --release
    python tools/check-model.py MODEL_DIR [--texts FILE...] [--berthier target/release/berthier]

Compares, on awkward texts in many scripts, on texts of lengths from nothing to the model's limit and beyond, and on
the lines of --texts: the token ids, which must be identical, and the vectors in float32 on the CPU, whose largest
difference must be within --tolerance (of a component; of the row's largest where that is above 1, as in models that
do not normalise). All of it without a prompt and with each of the model's own.

Exit code 0: the same. 1: a difference. 2: one of the two does not load the model, or something else went wrong.

A model whose code is its own (auto_map) needs --trust-remote-code, which runs that code; without it transformers
computes with its own class of that name, or not at all.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

REPO = Path(__file__).resolve().parent.parent

SENTENCE = ("The lighthouse keeper wrote in his book every night, and on most nights there was nothing to write: wind "
            "from the west, the lamp burned well, two boats came home late. ")
TEXTS = [
    "", " ", "\n\t ", "a", ".", "Yes.", "Hello, world!", "HELLO WORLD hello world", "  spaces  around  ",
    "How do I reset my password?", "It's 5 o'clock, isn't it? He'll say they're WE'VE.", "3.14159 1,000,000 0xff 2024-02-29",
    "caf\u00e9 na\u00efve r\u00e9sum\u00e9 \u00c5ngstr\u00f6m", "cafe\u0301 nai\u0308ve A\u030angstro\u0308m", "Stra\u00dfe \u0130stanbul \u01c5 \ufb01nd",
    "\u6211\u7231\u5317\u4eac\u5929\u5b89\u95e8", "\u543e\u8f29\u306f\u732b\u3067\u3042\u308b\u3002 \uff8a\uff9d\uff76\uff78", "\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4",
    "\u0627\u0644\u0633\u0644\u0627\u0645 \u0639\u0644\u064a\u0643\u0645", "\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd", "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "\u0421\u044a\u0435\u0448\u044c \u0435\u0449\u0451", "\u039e\u03b5\u03c3\u03ba\u03b5\u03c0\u03ac\u03b6\u03c9", "Ti\u1ebfng Vi\u1ec7t",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f \U0001f389", "\U0001d407\U0001d41e\U0001d425\U0001d425\U0001d428 \u00bd \u2460 \uff21",
    "bell\x07 nul\x00 del\x7f \ufffd \u200b \ufeff", "[CLS] [SEP] [MASK] [PAD] [UNK] <s> </s> <pad> <mask> <unk>",
    "a<mask>b[MASK]c</s>d", "https://example.com/a?b=c&d=%20", "fn main() {\n    println!(\"{x:?}\");\n}", "x" * 300,
    "pneumonoultramicroscopicsilicovolcanoconiosis " * 3, "##ing play##ing [unused1]",
]


class Failed(Exception):
    """What ends the check with exit code 2."""


def berthier(args, *command, texts, stdout_is_text):
    """Runs the command on the texts, which go in as JSON Lines."""
    lines = "".join(json.dumps({"text": t}) + "\n" for t in texts)
    call = [args.berthier, *command, "--model", str(args.model), "--device", args.device, "--input-format", "jsonl", "-"]
    if args.isa:
        call += ["--isa", args.isa]
    ran = subprocess.run(call, input=lines.encode(), capture_output=True)
    if ran.returncode != 0:
        raise Failed(f"{' '.join(call)}\n{ran.stderr.decode(errors='replace').strip()}")
    for line in ran.stderr.decode(errors="replace").splitlines():
        if line.startswith("warning") and line not in args.warned:
            args.warned.append(line)
            print(f"  berthier: {line}")
    return ran.stdout.decode() if stdout_is_text else ran.stdout


def ladder(model, prompt, limit):
    """Texts of about 1, 2, 3, 5, 8, ... tokens up to the limit, just below it, at it and above it."""
    words = (SENTENCE * 3).split()
    lengths, n = set(), 1
    while n < limit:
        lengths.add(n)
        n = max(n + 1, n * 8 // 5)
    lengths |= {max(1, limit - d) for d in (1, 2, 3)} | {limit, limit + 1, limit + 2, 2 * limit}
    tokens_per_word = max(1.0, len(ids_of(model, prompt + " ".join(words[:40]), cut=False)) / 40)
    return [" ".join(words[i % len(words)] for i in range(max(1, int(n / tokens_per_word)))) for n in sorted(lengths)]


def ids_of(model, text, cut=True):
    """The reference's ids, as they go into the model."""
    if not cut:
        return model.tokenizer(text, truncation=False)["input_ids"]
    prepare = getattr(model, "preprocess", None) or model.tokenize
    return prepare([text])["input_ids"][0].tolist()


def compare(args, model, np, name, prompt, texts):
    """One line of the table; whether all is the same."""
    flag = ["--prompt", prompt]
    ours = berthier(args, "tokenize", *flag, texts=texts, stdout_is_text=True)
    ours = [json.loads(line)["ids"] for line in ours.splitlines()]
    theirs = [ids_of(model, prompt + text) for text in texts]
    wrong = [i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b]
    for i in wrong[:3]:
        print(f"  ids differ: {texts[i][:60]!r}\n    berthier  {ours[i][:24]}\n    reference {theirs[i][:24]}")

    raw = berthier(args, "embed", *flag, "-o", "-", "--output-format", "raw", "-q", texts=texts, stdout_is_text=False)
    vectors = np.frombuffer(raw, dtype="<f4").reshape(len(texts), -1)
    reference = np.stack([model.encode(t, prompt=prompt, convert_to_numpy=True, show_progress_bar=False) for t in texts])
    if vectors.shape != reference.shape:
        print(f"  {name}: vectors of {vectors.shape[1]} components, {reference.shape[1]} of the reference")
        return False
    if not (np.isfinite(vectors).all() and np.isfinite(reference).all()):
        print(f"  {name}: not all numbers are finite")
        return False
    difference = np.abs(vectors.astype(np.float64) - reference).max(axis=1)
    scaled = difference / np.maximum(1.0, np.abs(reference).max(axis=1))
    worst = int(scaled.argmax())
    lengths = [len(ids) for ids in theirs]
    print(f"  {name:<20} {len(texts):>5} texts of {min(lengths)} to {max(lengths)} tokens   ids: "
          f"{'identical' if not wrong else f'{len(wrong)} DIFFER'}   largest difference {difference.max():.1e} "
          f"(scaled {scaled[worst]:.1e}, at {lengths[worst]} tokens: {texts[worst][:30]!r})")
    return not wrong and bool(scaled[worst] <= args.tolerance)


def check(args):
    if not args.trust_remote_code:  # such code may lie on the hub
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import numpy as np
    import torch
    import sentence_transformers
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    options = {"device": "cpu", "trust_remote_code": args.trust_remote_code}
    try:
        model = sentence_transformers.SentenceTransformer(
            str(args.model), model_kwargs={"dtype": torch.float32}, **options)
    except Exception as e:  # whatever it is, it is the reference's own
        raise Failed(f"sentence-transformers does not load it: {type(e).__name__}: {e}") from e
    version = subprocess.run([args.berthier, "--version"], capture_output=True, text=True).stdout.splitlines()
    print(f"{args.model}: {version[0] if version else args.berthier} against sentence-transformers "
          f"{sentence_transformers.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
    limit = model.max_seq_length or args.max_tokens
    if limit > args.max_tokens:
        print(f"  texts of up to {args.max_tokens} tokens; the model takes {limit} (--max-tokens)")
    # the prompts come as texts, so that the default one is not put before them again
    model.default_prompt_name = None
    prompts = {"no prompt": "", **{f"prompt {name!r}": p for name, p in (model.prompts or {}).items() if p}}
    good = True
    for name, prompt in prompts.items():
        texts = list(TEXTS) if args.texts is None else TEXTS + args.texts
        # the last text of a ladder is twice as long as its limit
        texts += ladder(model, prompt, limit if limit <= args.max_tokens else args.max_tokens // 2)
        good &= compare(args, model, np, name, prompt, texts)
    print(f"  {'the same' if good else 'NOT THE SAME'}, with a tolerance of {args.tolerance:g}")
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model directory")
    parser.add_argument("--texts", type=Path, nargs="+", help="files whose lines are compared as well")
    parser.add_argument("--berthier", default=str(REPO / "target" / "release" / "berthier"), help="the command")
    parser.add_argument("--device", default="cpu", help="Berthier's device")
    parser.add_argument("--isa", help="Berthier's instruction set")
    parser.add_argument("--tolerance", type=float, default=2e-5, help="largest difference of a component [%(default)g]")
    parser.add_argument("--max-tokens", type=int, default=1024, help="longest texts that are made [%(default)s]")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="the reference's threads")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the model's own Python")
    args = parser.parse_args()
    args.warned = []
    try:
        if args.texts is not None:
            args.texts = [line for file in args.texts for line in file.read_text(encoding="utf-8").splitlines()]
        if not args.model.is_dir():
            raise Failed(f"{args.model}: no directory")
        sys.exit(0 if check(args) else 1)
    except (Failed, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    except ImportError as e:
        print(f"error: {e} (pip install sentence-transformers)", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
