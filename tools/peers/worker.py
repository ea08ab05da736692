"""One peer engine in its own process; run.py starts it and speaks JSON lines with it.

Every engine takes texts and gives normalised sentence vectors in the texts' order. Each is used as well as
its makers say: texts sorted by length, the batch size (and, for ONNX Runtime, the graph) chosen by a sweep.
"""

import functools
import hashlib
import json
import os
import resource
import statistics
import sys
import tempfile
import time
import traceback
from importlib.metadata import version
from pathlib import Path

import numpy as np

BATCH_SIZES = [8, 16, 32, 64, 128]
# the sweep runs on this many of the texts, evenly spread
SWEEP_TEXTS = 512
TRIAL_CALLS = 10


class Tokens:
    """The `tokenizers` package with the model's own files: text to ids, cut at max_seq_length, not padded."""

    def __init__(self, model):
        import tokenizers

        self.max_seq_length = json.loads((model / "sentence_bert_config.json").read_text())["max_seq_length"]
        self.tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(self.max_seq_length)

    def batches(self, texts, batch_size):
        """Batches of (positions in `texts`, ids), longest first."""
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts)]
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            yield rows, [ids[i] for i in rows]

    def gather(self, texts, batch_size, compute):
        """`compute` of each batch's ids, [batch, dim], in the texts' order."""
        out = None
        for rows, ids in self.batches(texts, batch_size):
            vectors = compute(ids)
            if out is None:
                out = np.empty((len(texts), vectors.shape[1]), np.float32)
            out[rows] = vectors
        return out

    def count(self, texts):
        return sum(len(encoding.ids) for encoding in self.tokenizer.encode_batch_fast(texts))


def padded(ids):
    """ids and attention mask, [batch, longest]."""
    length = max(map(len, ids))
    out = np.zeros((len(ids), length), np.int64)
    mask = np.zeros((len(ids), length), np.int64)
    for row, sequence in enumerate(ids):
        out[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return out, mask


def check_modules(model):
    """The exported graphs pool by the mean and normalise: another model would be measured wrong."""
    kinds = [module["type"].rsplit(".", 1)[-1] for module in json.loads((model / "modules.json").read_text())]
    pooling = json.loads((model / "1_Pooling" / "config.json").read_text())
    modes = [key for key, on in pooling.items() if key.startswith("pooling_mode_") and on]
    if kinds != ["Transformer", "Pooling", "Normalize"] or modes != ["pooling_mode_mean_tokens"]:
        raise ValueError(f"{model}: modules {kinds}, pooling {modes}: mean pooling and Normalize needed")


def converted(cache, model, name, make):
    """`cache/…/name`, made at first use. The key is the model's weights: two models may share a folder's name."""
    with open(model / "model.safetensors", "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    place = cache / digest / name
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(f"{os.getpid()}-{name}")
        make(part)
        os.replace(part, place)
    return place


def export(model, path):
    import torch
    from transformers import AutoModel

    class Sentence(torch.nn.Module):
        def __init__(self):
            super().__init__()
            # the form of attention that the optimizer knows
            self.bert = AutoModel.from_pretrained(model, attn_implementation="eager", add_pooling_layer=False)

        def forward(self, input_ids, attention_mask):
            hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            return torch.nn.functional.normalize(mean, dim=1)

    ids = torch.randint(1000, 2000, (3, 17))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    dynamic = {0: "batch", 1: "length"}
    torch.onnx.export(
        Sentence().eval(),
        (ids, mask),
        str(path),
        input_names=["input_ids", "attention_mask"],
        output_names=["vectors"],
        dynamic_axes={"input_ids": dynamic, "attention_mask": dynamic, "vectors": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )


def exported(model, cache):
    """The model as an ONNX graph, pooling and normalisation in it."""
    check_modules(model)
    return converted(cache, model, f"plain-{version('onnxruntime')}-{version('torch')}.onnx", lambda path: export(model, path))


class OnnxRuntime:
    """Pooling and normalisation inside the graph; the exported graph or the one fused by ONNX Runtime's own
    transformer optimizer, whichever is faster here. In int8 both quantised by its `quantize_dynamic`."""

    def __init__(self, model, cache, threads, int8=False):
        import onnxruntime

        self.version = onnxruntime.__version__
        self.tokens = Tokens(model)
        package = f"{self.version}-{version('torch')}"
        plain = exported(model, cache)
        fused = converted(cache, model, f"fused-{package}.onnx", lambda path: self.fuse(model, plain, path))
        graphs = {"plain": plain, "fused": fused}
        if int8:
            for name, path in graphs.items():
                make = functools.partial(self.quantize, path)
                graphs[name] = converted(cache, model, f"{name}-int8-{package}.onnx", make)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self.sessions = {
            name: onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            for name, path in graphs.items()
        }
        self.settings = [(name, size) for name in self.sessions for size in BATCH_SIZES]

    @staticmethod
    def fuse(model, plain, path):
        from onnxruntime.transformers.optimizer import optimize_model

        config = json.loads((model / "config.json").read_text())
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        fused = optimize_model(str(plain), model_type="bert", num_heads=heads, hidden_size=hidden)
        print(f"onnxruntime: fused {fused.get_fused_operator_statistics()}", file=sys.stderr)
        fused.save_model_to_file(str(path))

    @staticmethod
    def quantize(graph, path):
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        # it does not know what the optimizer's fused nodes give
        floats = {"DefaultTensorType": onnx.TensorProto.FLOAT}
        quantize_dynamic(
            str(graph), str(path), per_channel=True, weight_type=QuantType.QInt8, extra_options=floats
        )

    def embed(self, texts, setting):
        session, batch_size = self.sessions[setting[0]], setting[1]

        def compute(ids):
            ids, mask = padded(ids)
            return session.run(["vectors"], {"input_ids": ids, "attention_mask": mask})[0]

        return self.tokens.gather(texts, batch_size, compute)


class OpenVino:
    """The exported graph, one stream; f32 said, since it would take bf16 by itself where the processor has it."""

    def __init__(self, model, cache, threads):
        import openvino

        self.version = version("openvino")
        self.tokens = Tokens(model)
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        self.request = openvino.Core().compile_model(str(exported(model, cache)), "CPU", settings).create_infer_request()
        self.settings = [("f32", size) for size in BATCH_SIZES]

    def embed(self, texts, setting):
        def compute(ids):
            ids, mask = padded(ids)
            return self.request.infer({"input_ids": ids, "attention_mask": mask})[0]

        return self.tokens.gather(texts, setting[1], compute)


class CTranslate2:
    """float32 or int8, its own fused kernels; pooling and normalisation in NumPy."""

    def __init__(self, model, cache, threads, compute_type="float32"):
        import ctranslate2

        check_modules(model)
        self.version = ctranslate2.__version__
        self.tokens = Tokens(model)
        path = converted(cache, model, f"ctranslate2-{self.version}", lambda path: self.convert(model, path))
        self.encoder = ctranslate2.Encoder(
            str(path), device="cpu", compute_type=compute_type, inter_threads=1, intra_threads=threads
        )
        self.settings = [(compute_type, size) for size in BATCH_SIZES]

    @staticmethod
    def convert(model, path):
        import ctranslate2

        with tempfile.TemporaryDirectory() as copy:
            for file in model.iterdir():
                (Path(copy) / file.name).symlink_to(file)
            config = Path(copy) / "config.json"
            # the converter wants what transformers 5 does not write where it is the default
            content = {"position_embedding_type": "absolute"} | json.loads(config.read_text())
            config.unlink()
            config.write_text(json.dumps(content))
            ctranslate2.converters.TransformersConverter(copy).convert(str(path))

    def embed(self, texts, setting):
        def compute(ids):
            _, mask = padded(ids)
            hidden = np.asarray(self.encoder.forward_batch(ids).last_hidden_state)
            vectors = np.einsum("btd,bt->bd", hidden, mask.astype(np.float32)) / mask.sum(1, keepdims=True)
            return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

        return self.tokens.gather(texts, setting[1], compute)


class SentenceTransformers:
    """As a user has it: `SentenceTransformer(dir).encode(texts)` on the CPU."""

    def __init__(self, model, cache, threads):
        import sentence_transformers
        import torch

        del cache
        torch.set_num_threads(threads)
        self.version = sentence_transformers.__version__
        self.tokens = Tokens(model)
        self.model = sentence_transformers.SentenceTransformer(str(model), device="cpu")
        self.settings = [("torch", size) for size in BATCH_SIZES]

    def embed(self, texts, setting):
        return self.model.encode(texts, batch_size=setting[1], show_progress_bar=False, convert_to_numpy=True)


ENGINES = {
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "ctranslate2": CTranslate2,
    "sentence-transformers": SentenceTransformers,
    "onnxruntime-int8": functools.partial(OnnxRuntime, int8=True),
    "ctranslate2-int8": functools.partial(CTranslate2, compute_type="int8"),
}


def read_texts(path):
    return Path(path).read_text("utf-8").removesuffix("\n").split("\n")


def peak_resident_bytes():
    # getrusage's maximum counts the process that this one was forked from
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.split("\n") if line.startswith("VmHWM:")).split()[1])


def timed(work):
    def cpu():
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime

    start, clock = cpu(), time.perf_counter()
    work()
    return {"seconds": time.perf_counter() - clock, "cpu_seconds": cpu() - start}


def calls(engine, texts, batch, samples):
    """Microseconds of calls of `batch` texts in the given order, in the setting that is quickest in a short trial."""
    turns = [texts[i : i + batch] for i in range(0, len(texts) - batch + 1, batch)]

    def times(kind, count):
        return [timed(lambda: engine.embed(turns[i % len(turns)], (kind, batch))) for i in range(count)]

    kinds = {kind for kind, _ in engine.settings}
    trial = {kind: statistics.median(t["seconds"] for t in times(kind, TRIAL_CALLS)) for kind in kinds}
    counted = times(min(trial, key=trial.get), samples)
    cpu = sum(t["cpu_seconds"] for t in counted) / samples
    return {"us": [t["seconds"] * 1e6 for t in counted], "cpu_us_a_call": cpu * 1e6}


def tune(engine, texts):
    """The fastest setting on a sample, best of two passes each."""
    step = max(len(texts) // SWEEP_TEXTS, 1)
    sample = texts[::step][:SWEEP_TEXTS]
    best = {}
    # one batch of everything is the same at every larger size
    least = next((size for size in BATCH_SIZES if size >= len(sample)), BATCH_SIZES[-1])
    for setting in [setting for setting in engine.settings if setting[1] <= least]:
        best[setting] = min(timed(lambda: engine.embed(sample, setting))["seconds"] for _ in range(2))
    return min(best, key=best.get)


def serve(answer):
    name, model, cache, threads = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    engine = ENGINES[name](model, cache, threads)
    texts, setting = [], engine.settings[0]
    for line in sys.stdin:
        request = json.loads(line)
        match request["do"]:
            case "load":
                texts = read_texts(request["texts"])
                answer({})
            case "tune":
                setting = tune(engine, texts)
                engine.embed(texts, setting)
                chosen = f"{setting[0]}, batch {setting[1]}"
                answer({"version": engine.version, "setting": chosen, "tokens": engine.tokens.count(texts)})
            case "round":
                answer(timed(lambda: engine.embed(texts, setting)))
            case "calls":
                answer(calls(engine, read_texts(request["texts"]), request["batch"], request["samples"]))
            case "memory":
                answer({"peak_resident_bytes": peak_resident_bytes()})
            case "vectors":
                np.save(request["path"], engine.embed(texts, setting).astype(np.float32))
                answer({})


def main():
    # libraries print what they like: it goes to stderr, and the answers have the pipe to themselves
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(content):
        pipe.write(json.dumps(content) + "\n")
        pipe.flush()

    try:
        serve(answer)
    except Exception as error:
        traceback.print_exc()
        where = traceback.extract_tb(error.__traceback__)[-1]
        answer({"failed": f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno}: {where.line})"})
        raise SystemExit(1)


if __name__ == "__main__":
    main()
