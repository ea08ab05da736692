#!/usr/bin/env python3
"""Writes tests/fixtures/mutations: what sentence-transformers makes of the fixtures' directories when a key of a file
about text is changed, added or taken away.

    pip install -r tools/requirements-fixtures.txt
    python tools/mutations.py [--only NAME...]

One file for each directory: the texts, the ids and vectors of the directory as it is, and for every change its outcome:
an error of the reference, or ids and vectors where they differ. `tests/mutations.rs` holds Berthier to them.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import fixtures  # noqa: E402  (sets the environment before torch is imported)
import numpy as np
import torch
import transformers

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
DIRECTORIES = ["tiny/classic-mean", "tiny/vocab-txt-sharded", "families/bert-without-prompt", "families/roberta",
               "families/xlm-roberta", "families/mpnet", "families/albert", "families/modernbert"]
TEXTS = ["", "Hello, the Caf\u00e9 \u4e2d\u6587 hello.", " a<mask>[MASK] the </s>[SEP] <pad> ", "the quick brown fox " * 12]

TEXT = ["zzz", "hello", "a"]
WRONG = [3, ["a"]]
TOKEN = ["hello", "zzz", None, {"content": "hello", "lstrip": True, "rstrip": False, "normalized": True}, 3]
FLAG = [True, False, None, "yes"]
NUMBER = [7, 1000, 0, -1, None, "x"]
# What may stand in these files, with values to try; a key that is there is changed, one that is not is added.
KEYS = {
    "tokenizer_config.json": {
        **{f"{k}_token": TOKEN for k in ("unk", "sep", "pad", "cls", "mask", "bos", "eos", "image")},
        **{k: FLAG for k in ("do_lower_case", "tokenize_chinese_chars", "strip_accents", "split_special_tokens",
                             "add_prefix_space", "clean_up_tokenization_spaces", "do_basic_tokenize", "keep_accents",
                             "remove_space", "trim_offsets", "add_bos_token", "add_eos_token", "legacy", "use_fast",
                             "is_local", "local_files_only", "from_slow", "fix_mistral_regex")},
        **{k: NUMBER for k in ("model_max_length", "max_len", "max_length", "stride", "pad_to_multiple_of",
                               "pad_token_type_id")},
        "truncation_side": ["left", "right", "up", None, 3],
        "padding_side": ["left", "right", "up"],
        "truncation_strategy": ["longest_first", "only_second"],
        "tokenizer_class": ["BertTokenizerFast", "RobertaTokenizer", "PreTrainedTokenizerFast", "T5Tokenizer", "Zzz", None, 3],
        "model_input_names": [["input_ids"], ["input_ids", "token_type_ids", "attention_mask"], "input_ids"],
        "additional_special_tokens": [["hello"], [], "hello", [3]],
        "extra_special_tokens": [["hello"], {"image_token": "hello"}, "hello"],
        "added_tokens_decoder": [{}, {"5": {"content": "hello"}}, {"x": {"content": "hello"}}, []],
        "never_split": [["hello"]], "sp_model_kwargs": [{}, {"nbest_size": 1}], "backend": TEXT, "errors": ["strict"],
        "name_or_path": TEXT, "processor_class": TEXT, "chat_template": TEXT, "tokenizer_file": TEXT, "vocab_file": TEXT,
        "special_tokens_map_file": TEXT, "wordpieces_prefix": ["@@"], "auto_map": [{"AutoTokenizer": [None, "a.B"]}],
        "unknown_to_all": [1, None],
    },
    "special_tokens_map.json": {
        **{f"{k}_token": TOKEN for k in ("unk", "sep", "pad", "cls", "mask", "bos", "eos")},
        "additional_special_tokens": [["hello"], "hello"], "unknown_to_all": [1],
    },
    "sentence_bert_config.json": {
        "max_seq_length": NUMBER + [5], "do_lower_case": FLAG,
        "transformer_task": ["feature-extraction", "fill-mask", "text-generation", "zzz", None, 3],
        "module_output_name": ["token_embeddings", "sentence_embedding", None, 3],
        "modality_config": [None, {}, {"text": {"method": "forward"}}, {"image": {"method": "forward", "method_output_name": "x"}},
                            {"text": {"method": "zzz", "method_output_name": "last_hidden_state"}},
                            {"text": {"method": "forward", "method_output_name": "pooler_output"}}, 3],
        "processing_kwargs": [{}, None, {"text": {"max_length": 4}}, 3],
        **{k: [{}, None, {"zzz": 1}, {"model_max_length": 4}, 3]
           for k in ("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs")},
        "unpad_inputs": FLAG, "backend": ["torch", "onnx"], "query_length": [3], "document_length": [3],
        "query_expansion": [None, {"length": 8}], "tokenizer_name_or_path": [None, "zzz"], "unknown_to_all": [1, None],
    },
    "config_sentence_transformers.json": {
        "prompts": [{}, {"query": "a "}, {"query": ""}, {"query": None}, {"query": 3}, [], None],
        "default_prompt_name": ["query", "zzz", None, 3], "truncate_dim": [5, 1000, 0, -1, None, "x"],
        "similarity_fn_name": ["cosine", "dot", "zzz", None], "model_type": ["SentenceTransformer", "SparseEncoder", "zzz", None],
        "__version__": [{}, {"sentence_transformers": "9.0.0"}, None], "unknown_to_all": [1, None],
    },
}


def outcome(directory):
    """Ids and vectors of the texts, or the reference's error."""
    model = fixtures.load(directory)
    name = model.default_prompt_name
    prompt = (model.prompts.get(name) or "") if name else ""
    ids = [model.preprocess([prompt + t])["input_ids"][0].tolist() for t in TEXTS]
    vectors = np.stack([model.encode(t, convert_to_numpy=True, show_progress_bar=False) for t in TEXTS])
    return ids, vectors.astype(np.float32)


def rounded(vectors):
    """null where it is not finite: the maximum of no token."""
    return [[float(f"{v:.7g}") if np.isfinite(v) else None for v in row] for row in vectors]


def mutate(source, out):
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "model"
        shutil.copytree(source, directory)
        base_ids, base_vectors = outcome(directory)
        rows, errors = [], 0
        for name, keys in KEYS.items():
            path = directory / name
            before = path.read_text() if path.exists() else None
            whole = json.loads(before) if before else {}
            changes = [(k, v) for k, values in keys.items() for v in values if k not in whole or whole[k] != v]
            # None is null; a key of the file that is not in the list has it coming as well
            changes += [(k, 3) for k in whole if k not in keys] + [(k, "delete") for k in whole]
            for key, value in changes:
                changed = {**whole, key: value}
                row = {"file": name, "key": key, "value": value}
                if value == "delete" and key in whole:
                    del changed[key]
                    row = {"file": name, "key": key}
                path.write_text(json.dumps(changed))
                try:
                    ids, vectors = outcome(directory)
                    if ids != base_ids:
                        row["ids"] = ids
                    if vectors.shape != base_vectors.shape or np.abs(vectors - base_vectors).max() > 2e-6:
                        row["vectors"] = rounded(vectors)
                except Exception as e:  # any of the reference's
                    row["error"] = f"{type(e).__name__}: {e}".split("\n")[0][:100].replace(scratch, "")
                    errors += 1
                rows.append(row)
            path.unlink(missing_ok=True)
            if before is not None:
                path.write_text(before)
    head = {"model": str(source.relative_to(FIXTURES)), "versions": fixtures.versions(), "texts": TEXTS, "ids": base_ids,
            "vectors": rounded(base_vectors)}
    fixtures.dump_rows(out, head, "changes", rows)
    moved = sum("ids" in r or "vectors" in r for r in rows)
    print(f"{source.parent.name}: {len(rows)} changes, {moved} of them seen, {errors} errors, {out.stat().st_size // 1024} KiB",
          flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=DIRECTORIES, default=DIRECTORIES)
    parser.add_argument("--out", type=Path, default=FIXTURES / "mutations")
    args = parser.parse_args()
    transformers.logging.set_verbosity(50)
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    for name in args.only:
        mutate(FIXTURES / name / "model", args.out / f"{name.split('/')[1]}.json")


if __name__ == "__main__":
    main()
