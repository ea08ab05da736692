#!/usr/bin/env python3
"""Writes tests/fixtures/cross-encoders and tests/fixtures/token-vectors, as sentence-transformers computes them.

    pip install -r tools/requirements-fixtures.txt
    python tools/fixtures_heads.py [--out tests/fixtures]

Scores of text pairs: small models with random weights, one for each family's head, in the layouts that cross-encoders
come in. Token vectors: of models that tools/fixtures.py has written. Everything is computed on the CPU, in float32, on
one thread, one pair or text at a time.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import fixtures as common
import numpy as np
import torch
import transformers
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import (
    AlbertConfig,
    AlbertTokenizer,
    AutoModelForSequenceClassification,
    BertConfig,
    BertTokenizer,
    CamembertConfig,
    CamembertTokenizer,
    DistilBertConfig,
    DistilBertTokenizer,
    ElectraConfig,
    MPNetConfig,
    MPNetTokenizer,
    RobertaConfig,
    RobertaTokenizer,
    XLMRobertaConfig,
    XLMRobertaTokenizer,
)

TEXTS = common.FAMILY_TEXTS
# short with short, long with short, short with long, both beyond half the limit, empty ones
PAIRS = [
    ("", ""),
    ("hello", ""),
    ("", "the cat sat"),
    ("hello hello", "the cat sat on the mat"),
    ("Hello, world!", common.PARAGRAPH),
    (common.PARAGRAPH, "Where is the nearest pharmacy?"),
    (common.PARAGRAPH, common.PARAGRAPH[40:]),
    (common.PARAGRAPH[:90], common.PARAGRAPH[:90]),
    ("Café CAFÉ", "中文 and 文字, hello中world"),
    ("[CLS] a [SEP] b", "<s> c </s> d"),
] + list(zip(common.SENTENCES[:24], common.SENTENCES[24:48]))


def specs():
    bpe, merges = common.byte_level_bpe(300)
    pieces = common.unigram_pieces(150)
    specials = common.specials
    xlm = specials("<s>", "<pad>", "</s>", "<unk>") + pieces + specials("<mask>")
    camembert = specials("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>") + pieces
    albert = specials("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]") + pieces
    mpnet = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"] + common.VOCAB[5:]
    wordpiece = {t: i for i, t in enumerate(common.VOCAB)}
    size = {"hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 40, "num_hidden_layers": 1,
            "hidden_act": "gelu"}
    bert = {**size, "vocab_size": len(common.VOCAB), "max_position_embeddings": 44}
    roberta = {**size, "max_position_embeddings": 42, "type_vocab_size": 1}
    limits = {"model_max_length": 40}
    bert_tokenizer = BertTokenizer(vocab=wordpiece, **limits)
    modernbert, modernbert_tokenizer = common.modernberts()["modernbert-old-keys"]
    # name: (configuration, labels, tokenizer, layout, keys of config.json)
    return {
        "bert": (BertConfig(**bert), 1, bert_tokenizer, "plain", {}),
        "bert-saved": (BertConfig(**bert), 1, bert_tokenizer, "saved", {}),
        "bert-identity-4": (BertConfig(**bert), 1, bert_tokenizer, "plain", {
            "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.1.0"}}),
        "bert-identity-3": (BertConfig(**bert), 1, bert_tokenizer, "plain", {
            "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}),
        "bert-three-labels": (BertConfig(**bert), 3, bert_tokenizer, "plain", {}),
        "bert-left": (BertConfig(**bert), 1, BertTokenizer(vocab=wordpiece, truncation_side="left", **limits), "saved", {}),
        "roberta": (RobertaConfig(vocab_size=len(bpe), **roberta), 1,
                    RobertaTokenizer(vocab=bpe, merges=merges, **limits), "plain", {}),
        "xlm-roberta": (XLMRobertaConfig(vocab_size=len(xlm), **roberta), 1, XLMRobertaTokenizer(vocab=xlm, **limits),
                        "plain", {}),
        "camembert": (CamembertConfig(vocab_size=len(camembert) + 1, **roberta), 2,
                      CamembertTokenizer(vocab=camembert + specials("<mask>"), **limits), "plain", {}),
        "distilbert": (DistilBertConfig(vocab_size=len(common.VOCAB), dim=24, n_heads=2, hidden_dim=40, n_layers=1,
                                        activation="gelu", max_position_embeddings=44), 1,
                       DistilBertTokenizer(vocab=wordpiece, **limits), "plain", {}),
        "electra": (ElectraConfig(embedding_size=16, **bert), 1, bert_tokenizer, "plain", {}),
        "mpnet": (MPNetConfig(vocab_size=len(mpnet), max_position_embeddings=42, **size), 1,
                  MPNetTokenizer(vocab={t: i for i, t in enumerate(mpnet)}, **limits), "saved", {}),
        "albert": (AlbertConfig(vocab_size=len(albert), embedding_size=16, max_position_embeddings=40, **size), 1,
                   AlbertTokenizer(vocab=albert, **limits), "plain", {}),
        "modernbert": (modernbert, 1, modernbert_tokenizer, "saved", {"classifier_pooling": "mean"}),
        "modernbert-cls": (modernbert, 1, modernbert_tokenizer, "plain", {"classifier_pooling": "cls",
                                                                          "classifier_bias": True}),
    }


def golden(out, name):
    model = CrossEncoder(str(out / name / "model"), device="cpu", model_kwargs={"dtype": "float32"})
    backend = model.tokenizer.backend_tokenizer
    rows = []
    for first, second in PAIRS:
        features = model.preprocess([(first, second)])
        ids = features["input_ids"][0].tolist()
        types = features["token_type_ids"][0].tolist() if "token_type_ids" in features else [0] * len(ids)
        backend.no_truncation()
        backend.no_padding()
        total = len(backend.encode(first, second).ids)
        rows.append({"first": first, "second": second, "ids": ids, "type_ids": types, "total_tokens": total})
    scores = np.stack([np.atleast_1d(model.predict([pair])[0]) for pair in PAIRS]).astype("<f4")
    many = model.predict(PAIRS, batch_size=16).reshape(scores.shape)
    assert np.isfinite(scores).all() and np.abs(scores - many).max() < 5e-6
    spread = float(scores[:, 0].std())
    assert spread > 1e-2, (name, spread)
    head = {"versions": common.versions(), "max_seq_length": model.max_seq_length, "labels": scores.shape[1]}
    if scores.shape[1] == 1:
        ranked = model.rank(PAIRS[3][0], [second for _, second in PAIRS], top_k=9)
        head["ranked"] = [hit["corpus_id"] for hit in ranked]
    common.dump_rows(out / name / "golden.json", head, "rows", rows)
    scores.tofile(out / name / "golden.f32")
    print(f"{name}: {scores.shape}, spread {spread:.3f}")


def token_vectors(out):
    """Vectors of all tokens; the same models without and with a prompt, which the pooling of one leaves out."""
    shutil.rmtree(out / "token-vectors", ignore_errors=True)
    (out / "token-vectors").mkdir(parents=True)
    texts = ["", "Yes.", common.PARAGRAPH, "Where is the nearest pharmacy?", "Café 中文 and 文字", common.PARAGRAPH[:80]]
    for name, prompt in [
        ("tiny/current-mean", ""),
        ("tiny/default-prompt", None),
        ("families/xlm-roberta", ""),
        ("families/bert-without-prompt", "query: "),
        ("families/bert-modules", ""),
        ("families/modernbert", "find: "),
    ]:
        model = common.load(out / name / "model")
        keywords = {} if prompt is None else {"prompt": prompt}
        vectors = [model.encode(t, output_value="token_embeddings", convert_to_numpy=True, **keywords) for t in texts]
        vectors = [np.asarray(v.cpu() if hasattr(v, "cpu") else v, dtype="<f4") for v in vectors]
        assert all(np.isfinite(v).all() for v in vectors)
        exact = SentenceTransformer(str(out / name / "model"), device="cpu", model_kwargs={"dtype": "float64"})
        exact = [exact.encode(t, output_value="token_embeddings", **keywords).cpu().numpy() for t in texts]
        rounding = max(float(np.abs(a - b).max()) for a, b in zip(vectors, exact))
        target = out / "token-vectors" / name.replace("/", "-")
        values = {"versions": common.versions(), "model": name, "prompt": prompt, "dim": vectors[0].shape[1],
                  "texts": texts, "rounding": rounding, "lengths": [len(v) for v in vectors]}
        common.dump(target.with_suffix(".json"), values)
        np.concatenate(vectors).tofile(target.with_suffix(".f32"))
        print(f"{name}: {[v.shape for v in vectors]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "tests" / "fixtures")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    token_vectors(args.out)
    out = args.out / "cross-encoders"
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        for seed, (name, (config, labels, tokenizer, layout, keys)) in enumerate(specs().items()):
            torch.manual_seed(700 + seed)
            config = type(config).from_dict({**config.to_dict(), "num_labels": labels, **keys})
            model = AutoModelForSequenceClassification.from_config(config).eval()
            common.randomize(model)
            plain = Path(scratch) / name
            model.save_pretrained(plain)
            tokenizer.save_pretrained(plain)
            directory = out / name / "model"
            if layout == "saved":
                CrossEncoder(str(plain), device="cpu").save_pretrained(str(directory), create_model_card=False)
            else:
                shutil.copytree(plain, directory)
                values = json.loads((directory / "config.json").read_text())
                common.dump(directory / "config.json", {**values, **keys})
            golden(out, name)


if __name__ == "__main__":
    main()
