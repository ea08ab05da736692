"""BERT in plain PyTorch: the reference in fp32, and the rivals. Needs torch and nothing else.

Models are folders as Hugging Face has them; safetensors are read and written here, and the tokenizer is this file's own, so
that a machine without `transformers`, `tokenizers` and `safetensors` measures the same.
"""

import ctypes
import json
import math
import mmap
import struct
import unicodedata
from pathlib import Path

import torch
import torch.nn.functional as F

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


# ---- safetensors ------------------------------------------------------------------------------------------------------


def read_safetensors(path):
    """{name: tensor}, copied out of the file."""
    with open(path, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        flat = torch.frombuffer(bytearray(data[8 + size + start : 8 + size + end]), dtype=DTYPES[entry["dtype"]])
        tensors[name] = flat.reshape(entry["shape"])
    return tensors


def write_safetensors(path, tensors):
    header, at = {}, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            tensor = tensor.detach().cpu().contiguous()
            size = tensor.numel() * tensor.element_size()
            file.write((ctypes.c_char * size).from_address(tensor.data_ptr()) if size else b"")  # no NumPy needed


# ---- models -------------------------------------------------------------------------------------------------------------

SHAPES = {
    "bert-base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "bert-large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128},
}


def make_random_model(folder, shape, vocabulary, device="cpu", seed=1):
    """A model folder of this shape with seeded weights in f16: normal(0, 0.02) as BERT begins, biases and norms not trivial.
    The vocabulary (vocab.txt, tokenizer files) is that of the folder `vocabulary`. Mean pooling, normalised, 512 tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "type_vocab_size": 2,
        "vocab_size": 30522,
        **SHAPES[shape],
    }
    for name in ["vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]:
        if (Path(vocabulary) / name).exists():
            (folder / name).write_bytes((Path(vocabulary) / name).read_bytes())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 512, "do_lower_case": False}))
    kinds = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_Normalize", "Normalize")]
    modules = [
        {"idx": int(i), "name": i, "path": path, "type": f"sentence_transformers.models.{kind}"} for i, path, kind in kinds
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "2_Normalize").mkdir(exist_ok=True)
    modes = {f"pooling_mode_{mode}": mode == "mean_tokens" for mode in ["cls_token", "mean_tokens", "max_tokens"]}
    (folder / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": hidden, **modes}))
    generator = torch.Generator(device=device).manual_seed(seed)

    def normal(*size, mean=0.0, deviation=0.02):
        return (torch.randn(*size, generator=generator, device=device) * deviation + mean).half().cpu()

    tensors = {}

    def norm(name):
        tensors[name + ".weight"] = normal(hidden, mean=1.0, deviation=0.05)
        tensors[name + ".bias"] = normal(hidden, deviation=0.05)

    def linear(name, rows, columns):
        tensors[name + ".weight"] = normal(rows, columns)
        tensors[name + ".bias"] = normal(rows)

    tensors["embeddings.word_embeddings.weight"] = normal(config["vocab_size"], hidden)
    tensors["embeddings.position_embeddings.weight"] = normal(512, hidden)
    tensors["embeddings.token_type_embeddings.weight"] = normal(2, hidden)
    norm("embeddings.LayerNorm")
    for i in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{i}."
        for part in ["query", "key", "value"]:
            linear(f"{at}attention.self.{part}", hidden, hidden)
        linear(at + "attention.output.dense", hidden, hidden)
        norm(at + "attention.output.LayerNorm")
        linear(at + "intermediate.dense", inner, hidden)
        linear(at + "output.dense", hidden, inner)
        norm(at + "output.LayerNorm")
    write_safetensors(folder / "model.safetensors", tensors)


class Model:
    """Weights on a device in one dtype, q, k and v fused."""

    def __init__(self, folder, device, dtype):
        folder = Path(folder)
        self.config = json.loads((folder / "config.json").read_text())
        self.heads, self.eps = self.config["num_attention_heads"], self.config["layer_norm_eps"]
        self.hidden = self.config["hidden_size"]
        self.device, self.dtype = device, dtype
        tensors = {name.removeprefix("bert."): t for name, t in read_safetensors(folder / "model.safetensors").items()}

        def get(name):
            return tensors[name].to(device=device, dtype=dtype)

        def pair(name):
            return get(name + ".weight"), get(name + ".bias")

        self.word = get("embeddings.word_embeddings.weight")
        self.position = get("embeddings.position_embeddings.weight")
        self.type = get("embeddings.token_type_embeddings.weight")
        self.norm = pair("embeddings.LayerNorm")
        self.layers = []
        for i in range(self.config["num_hidden_layers"]):
            at = f"encoder.layer.{i}."
            qkv = [pair(f"{at}attention.self.{part}") for part in ["query", "key", "value"]]
            self.layers.append(
                {
                    "qkv": (torch.cat([w for w, _ in qkv]), torch.cat([b for _, b in qkv])),
                    "out": pair(at + "attention.output.dense"),
                    "norm1": pair(at + "attention.output.LayerNorm"),
                    "up": pair(at + "intermediate.dense"),
                    "down": pair(at + "output.dense"),
                    "norm2": pair(at + "output.LayerNorm"),
                }
            )

    def normalise(self, x, pair):
        return F.layer_norm(x, (self.hidden,), pair[0], pair[1], self.eps)

    def encode(self, ids, positions, attend):
        """ids and positions of any shape [..]; attend(qkv [.., 3 hidden]) gives [.., hidden]."""
        x = self.normalise(self.word[ids] + self.position[positions] + self.type[0], self.norm)
        for layer in self.layers:
            y = attend(F.linear(x, *layer["qkv"]))
            x = self.normalise(F.linear(y, *layer["out"]) + x, layer["norm1"])
            y = F.linear(F.gelu(F.linear(x, *layer["up"])), *layer["down"])
            x = self.normalise(y + x, layer["norm2"])
        return x

    # ---- padded: [batch, length] -----------------------------------------------------------------------------------

    def padded(self, ids, lengths=None):
        """Unit vectors [batch, hidden] in fp32. `lengths` [batch]: how many tokens count; None: all."""
        batch, length = ids.shape
        positions = torch.arange(length, device=ids.device)
        mask = keep = None
        if lengths is not None:
            keep = positions[None, :] < lengths[:, None]
            mask = keep[:, None, None, :]

        def attend(qkv):
            q, k, v = qkv.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            return y.transpose(1, 2).reshape(batch, length, self.hidden)

        x = self.encode(ids, positions, attend).float()
        mean = x.mean(1) if keep is None else (x * keep[:, :, None]).sum(1) / lengths[:, None]
        return F.normalize(mean, dim=1)

    # ---- packed: [tokens], cu_seqlens ---------------------------------------------------------------------------------

    def packed(self, batch, attention):
        """The same from a PackedBatch, by one of PACKED_ATTENTION."""

        def attend(qkv):
            q, k, v = qkv.view(-1, 3, self.heads, self.hidden // self.heads).unbind(1)
            return attention(q, k, v, batch).reshape(-1, self.hidden)

        x = self.encode(batch.ids, batch.positions, attend)
        sums = torch.zeros(batch.n, self.hidden, device=x.device).index_add_(0, batch.rows, x.float())
        return F.normalize(sums / batch.lengths[:, None], dim=1)


class PackedBatch:
    def __init__(self, ids, device):
        lengths = [len(i) for i in ids]
        self.n, self.longest = len(ids), max(lengths)
        self.tokens = sum(lengths)
        flat = torch.tensor([t for i in ids for t in i])
        positions = torch.cat([torch.arange(n) for n in lengths])
        rows = torch.repeat_interleave(torch.arange(self.n), torch.tensor(lengths))
        cu = torch.zeros(self.n + 1, dtype=torch.int32)
        cu[1:] = torch.tensor(lengths).cumsum(0)
        self.ids, self.positions, self.rows = flat.to(device), positions.to(device), rows.to(device)
        self.cu, self.lengths = cu.to(device), torch.tensor(lengths).to(device)


def flash_attn(q, k, v, b):
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(q, k, v, b.cu, b.cu, b.longest, b.longest)


def torch_varlen(q, k, v, b):
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(q, k, v, b.cu, b.cu, b.longest, b.longest)


def torch_flash(q, k, v, b):
    flash = torch.ops.aten._flash_attention_forward
    return flash(q.contiguous(), k.contiguous(), v.contiguous(), b.cu, b.cu, b.longest, b.longest, 0.0, False, False)[0]


def nested_sdpa(q, k, v, b):
    offsets = b.cu.long()
    nested = [
        torch.nested.nested_tensor_from_jagged(x.contiguous(), offsets, min_seqlen=1, max_seqlen=b.longest).transpose(1, 2)
        for x in (q, k, v)
    ]
    return F.scaled_dot_product_attention(*nested).transpose(1, 2).values()


def one_by_one(q, k, v, b):
    """Any device and dtype: what the others are held against."""
    out = torch.empty_like(q)
    edges = b.cu.tolist()
    for start, end in zip(edges, edges[1:]):
        part = [x[start:end].transpose(0, 1)[None] for x in (q, k, v)]
        out[start:end] = F.scaled_dot_product_attention(*part)[0].transpose(0, 1)
    return out


# in order of what is usually fastest; those that this machine lacks say so when they are called
PACKED_ATTENTION = {
    "flash_attn varlen": flash_attn,
    "torch varlen_attn": torch_varlen,
    "torch flash varlen": torch_flash,
    "nested SDPA": nested_sdpa,
}


@torch.inference_mode()
def reference_vectors(folder, ids, device, batch_tokens=16384):
    """fp32 vectors on the CPU, [rows, hidden], TF32 off; each batch of one length, so that nothing is padded."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    model = Model(folder, device, torch.float32)
    out = torch.empty(len(ids), model.hidden)
    by_length = {}
    for row, i in enumerate(ids):
        by_length.setdefault(len(i), []).append(row)
    for length, rows in by_length.items():
        step = max(1, batch_tokens // length)
        for at in range(0, len(rows), step):
            some = rows[at : at + step]
            out[some] = model.padded(torch.tensor([ids[r] for r in some], device=device)).cpu()
    return out


# ---- tokens ---------------------------------------------------------------------------------------------------------------


class Tokenizer:
    """BERT's uncased WordPiece, from vocab.txt."""

    def __init__(self, folder):
        lines = (Path(folder) / "vocab.txt").read_text("utf-8").split("\n")
        self.vocabulary = {word: i for i, word in enumerate(lines) if word}
        self.cache = {}

    def __call__(self, text, longest):
        ids = []
        for word in self.words(text):
            if word not in self.cache:
                self.cache[word] = self.pieces(word)
            ids += self.cache[word]
        v = self.vocabulary
        return [v["[CLS]"], *ids[: longest - 2], v["[SEP]"]]

    @staticmethod
    def words(text):
        out = []
        for c in text:
            code = ord(c)
            if c in "\t\n\r":
                out.append(" ")
            elif code in (0, 0xFFFD) or unicodedata.category(c).startswith("C"):
                continue
            elif 0x4E00 <= code <= 0x9FFF or 0x3400 <= code <= 0x4DBF or 0x20000 <= code <= 0x2CEAF or 0xF900 <= code <= 0xFAFF or 0x2F800 <= code <= 0x2FA1F:
                out.append(f" {c} ")
            else:
                out.append(" " if unicodedata.category(c) == "Zs" else c)
        plain = "".join(c for c in unicodedata.normalize("NFD", "".join(out)) if unicodedata.category(c) != "Mn").lower()
        words = []
        for word in plain.split():
            start = True
            for c in word:
                code = ord(c)
                ascii_sign = 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
                if ascii_sign or unicodedata.category(c).startswith("P"):
                    words.append(c)
                    start = True
                elif start:
                    words.append(c)
                    start = False
                else:
                    words[-1] += c
        return words

    def pieces(self, word):
        if len(word) > 100:
            return [self.vocabulary["[UNK]"]]
        ids, at = [], 0
        while at < len(word):
            for end in range(len(word), at, -1):
                piece = ("##" if at else "") + word[at:end]
                if piece in self.vocabulary:
                    ids.append(self.vocabulary[piece])
                    at = end
                    break
            else:
                return [self.vocabulary["[UNK]"]]
        return ids


def plain_words(tokenizer, texts):
    """The words of the texts that are one token each, in order."""
    return [w for t in texts for w in tokenizer.words(t) if w.isalpha() and w in tokenizer.vocabulary]


def texts_of_length(words, length, rows):
    """`rows` texts of exactly `length` tokens."""
    return [" ".join(words[(r * 7919 + i) % len(words)] for i in range(length - 2)) for r in range(rows)]


def read_f32(path, hidden):
    """Raw little-endian vectors, as `berthier embed -o OUT.f32` writes them."""
    data = Path(path).read_bytes()
    return torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(-1, hidden)


def cosines(a, b):
    """Of rows, in f64: 1 - |a - b|^2 / 2 of unit vectors has no cancellation."""
    a, b = F.normalize(a.double(), dim=1), F.normalize(b.double(), dim=1)
    return 1 - ((a - b) ** 2).sum(1) / 2


def percentiles(values):
    v = sorted(values)
    at = lambda q: v[min(len(v) - 1, math.floor(q * len(v)))]  # noqa: E731
    return {"min": v[0], "p1": at(0.01), "p10": at(0.1), "median": at(0.5), "mean": sum(v) / len(v)}
