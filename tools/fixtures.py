#!/usr/bin/env python3
"""Writes tests/fixtures: token ids and vectors as sentence-transformers gives them.

    pip install -r tools/requirements-fixtures.txt
    python tools/fixtures.py MINILM_DIR [--out tests/fixtures]
    python tools/fixtures.py --only families

MINILM_DIR holds all-MiniLM-L6-v2 in the sentence-transformers layout. Everything is computed on the CPU, in
float32, on one thread, one text at a time; a second run gives the same ids, and the same vectors up to the
rounding of the machine's torch.
"""

import argparse
import hashlib
import json
import math
import os
import shutil
import struct
import tempfile
from collections import Counter
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import sentence_transformers
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import LayerNorm, Normalize, Pooling, Transformer
from sentence_transformers.util.quantization import quantize_embeddings
from transformers.modeling_outputs import BaseModelOutput
from transformers import (
    AlbertConfig,
    AlbertTokenizer,
    AutoModel,
    BertConfig,
    BertModel,
    BertTokenizer,
    CamembertConfig,
    CamembertTokenizer,
    DistilBertConfig,
    DistilBertTokenizer,
    ElectraConfig,
    GteConfig,
    JinaEmbeddingsV3Config,
    ModernBertConfig,
    MPNetConfig,
    MPNetTokenizer,
    NomicBertConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaTokenizer,
    XLMRobertaConfig,
    XLMRobertaTokenizer,
)

# ---------------------------------------------------------------------------------------------- texts

PARAGRAPH = (
    "The lighthouse keeper had written in his book every night for thirty-one years, and on most nights "
    "there was nothing to write. Wind from the west, he wrote, and the lamp burned well; or wind from the "
    "north, and two boats came home late. He did not mind. A page on which nothing happened was a page on "
    "which nobody had drowned. In the winter of his last year the company sent a young engineer to measure "
    "the tower, because a machine would do the work from then on, and the two of them sat over their tea "
    "and spoke of lenses, salt, rust and the price of oil. "
)

SENTENCES = """
Yes.
Where is the nearest pharmacy?
The cat sat on the windowsill and watched the rain.
A man is playing a guitar on the street.
Someone is performing music outdoors.
Interest rates were raised by a quarter of a percentage point on Thursday.
The central bank decided to increase borrowing costs.
How do I reset my password?
I forgot my login details and cannot get into my account.
Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.
Plants feed themselves with the help of the sun.
She sells sea shells by the sea shore.
Two dogs are running through a snowy field.
Nobody expected the old bridge to survive the flood.
The committee will meet again next Tuesday at half past nine.
Please boil the potatoes for twenty minutes, then drain them.
He didn't say that he'd stolen the money, he said it wasn't his.
It's 5 o'clock somewhere, isn't it?
The patient was given 250 mg of amoxicillin three times a day.
Mount Everest is 8,848.86 metres high.
Water boils at 100 degrees Celsius at sea level.
In 1969, Neil Armstrong walked on the Moon.
The quick brown fox jumps over the lazy dog.
Sphinx of black quartz, judge my vow!
All happy families are alike, or so the novel says.
To be or not to be, that is the question.
The train to Edinburgh leaves from platform 4 at 17:32.
We regret to inform you that your application was not successful.
Congratulations, you have been accepted!
This restaurant is overpriced and the service is slow.
Best meal I have had in years; I will certainly come back.
Neural networks are trained by gradient descent on a loss function.
Deep learning models learn by following the slope of their error.
A hash table gives constant-time lookup on average.
Binary search needs a sorted array.
The contract may be terminated by either party with thirty days' notice.
Turn left at the church, go straight for two miles, then ask again.
My grandmother kept bees behind the orchard.
The orchestra tuned while the audience found their seats.
An unladen swallow flies at about eleven metres per second.
Her thesis compares the grain trade of Venice and Genoa.
If it rains tomorrow, the match will be cancelled.
The match will go ahead unless the weather is bad.
Antidisestablishmentarianism is longer than most words.
Otorhinolaryngologists treat ears, noses and throats.
The recipe calls for 1/2 cup of flour, 3 eggs & a pinch of salt.
E = mc^2 relates mass and energy.
Total: $1,299.00 (incl. 19% VAT)
To whom it may concern: the key is under the mat.
Stop! Don't touch that!!!
Well... I suppose we could try --- but why?
Rock'n'roll will never die.
THE MEETING HAS BEEN MOVED TO ROOM B12.
the meeting has been moved to room b12
Is this the real life? Is this just fantasy?
Glaciers carve valleys as they move slowly downhill under their own weight.
A small country with few resources can still grow rich if its harbours are good and its laws are trusted.
While the first edition of the map showed the river running east of the village, later surveyors, who had walked \
the whole length of it in the dry season, drew it to the west, and it is their line that we follow today.
The bakery on the corner closes at noon.
Their daughter studies marine biology in Lisbon.
""".strip().replace("\\\n", "").split("\n")

CODE = 'fn main() {\n    let x: Vec<u32> = (0..10).filter(|n| n % 2 == 0).collect();\n    println!("{x:?}"); // => [0, 2]\n}\n'

AWKWARD = [
    ("empty", ""),
    ("space", " "),
    ("blank", " \t\r\n \u3000\xa0 "),
    ("10,000 characters", (PARAGRAPH * 20)[:10_000]),
    ("10,000 letters", "a" * 10_000),
    ("10,000 full stops", "." * 10_000),
    ("500-letter word", ("pneumonoultramicroscopic" * 21)[:500]),
    ("100-letter word", "a" * 100),
    ("101-letter word", "a" * 101),
    ("long word between words", "before " + "x" * 500 + " after"),
    ("cut in a word", "incomprehensibilities " * 90),
    ("one word repeated to the limit", "word " * 254),
    ("one word beyond the limit", "word " * 255),
    ("chinese", "我爱北京天安门，天安门上太阳升。"),
    ("chinese and latin", "我用Python写code，version 3.12。"),
    ("japanese", "吾輩は猫である。名前はまだ無い。カタカナ ﾊﾝｶｸ"),
    ("korean", "안녕하세요 세계, 한국어 문장입니다."),
    ("cjk extensions", "㐀 𠀀 𪜀 𫝀 𫠠 豈 丽 鿿"),
    ("arabic", "السلام عليكم ورحمة الله وبركاته، كيف حالك؟"),
    ("arabic with vowels", "ٱلْحَمْدُ لِلَّهِ"),
    ("hebrew", "שָׁלוֹם עוֹלָם, מה שלומך?"),
    ("persian with zwnj", "می\u200cخواهم کتاب\u200cها را بخوانم"),
    ("devanagari", "नमस्ते दुनिया, आप कैसे हैं?"),
    ("thai", "สวัสดีชาวโลก ภาษาไทยไม่มีช่องว่าง"),
    ("russian", "Съешь же ещё этих мягких французских булок, да выпей чаю."),
    ("greek", "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. ΣΊΣΥΦΟΣ"),
    ("armenian ligature", "և ﬓ"),
    ("georgian", "საქართველო ᲡᲐᲥᲐᲠᲗᲕᲔᲚᲝ"),
    ("vietnamese", "Tiếng Việt có nhiều dấu: ường, ậy, ỗ."),
    ("emoji", "I ❤️ this 😀😃🎉 so much!"),
    ("emoji with zwj", "family 👨\u200d👩\u200d👧\u200d👦 and pilot 👩🏽\u200d✈️ flag 🏳️\u200d🌈 🇩🇪"),
    ("combining marks", "e\u0301 a\u0308\u0323 o\u0302\u0301 Z\u0351\u036b\u0343a\u0323\u0332l\u034eg\u0317o\u0321"),
    ("combining mark alone", "\u0301"),
    ("accents, composed", "café naïve résumé Ångström Łódź crème brûlée"),
    ("accents, decomposed", "cafe\u0301 nai\u0308ve re\u0301sume\u0301 A\u030angstro\u0308m"),
    ("german", "Straße STRASSE ẞ Über Äpfel ÖL"),
    ("turkish", "İstanbul ISPARTA ığdır DİYARBAKIR"),
    ("special casing", "ǅ ǆ ﬁ ŉ ǰ ΐ Ω K Å"),
    ("full width", "ＦＵＬＬ　ｗｉｄｔｈ １２３！"),
    ("ligatures", "ﬁnd the oﬃce ﬂoor ĳ œuvre Ǽ"),
    ("mathematical letters", "𝐇𝐞𝐥𝐥𝐨 𝒲𝑜𝓇𝓁𝒹 𝟙𝟚𝟛 ℝ ∑ ∞ ≠"),
    ("superscripts", "x² + y³ = z⁴ ₁₂ ½ ¾ №"),
    ("symbols", "© ® ™ € £ ¥ § ¶ † ‡ • … – — ‘quoted’ “quoted” «quoted» °"),
    ("ascii punctuation", "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"),
    ("control characters", "bell\x07back\x08esc\x1b[31mred\x1b[0m\x7f del\x80\x9f end"),
    ("nul", "zero\x00byte and \x00 alone"),
    ("only nul", "\x00"),
    ("replacement character", "bro\ufffdken \ufffd"),
    ("newlines and tabs", "first line\nsecond\tcolumn\r\nthird\x0bvertical\x0cform\x85next\u2028line\u2029paragraph"),
    ("spaces of all kinds", "a\u2000b\u2003c\u2009d\u202fe\u205ff\u3000g\u1680h\xa0i"),
    ("zero-width space", "zero\u200bwidth\u2060joiner"),
    ("byte order mark", "\ufeffstart and mid\ufeffdle"),
    ("right-to-left marks", "left \u200fright\u200e \u202eevil\u202c \u2067isolate\u2069"),
    ("soft hyphen", "hy\xadphen\xadation"),
    ("private use and unassigned", "\ue000 \uf8ff \u0378 \U000e0041 \U0010fffd"),
    ("noncharacters", "\ufffe\uffff \ufdd0 \U0001ffff"),
    ("variation selectors", "☺\ufe0e ☺\ufe0f 葛\U000e0100"),
    ("special tokens", "[CLS] [SEP] [MASK] [PAD] [UNK]"),
    ("special token in text", "The capital of France is [MASK]."),
    ("special tokens glued", "a[SEP]b[MASK]c[CLS][CLS]"),
    ("special tokens, lower case", "[cls] [sep] [mask] [pad] [unk]"),
    ("special tokens of others", "<s> </s> <pad> <|endoftext|> <mask>"),
    ("special tokens, broken", "[MASK [ MASK ] [MA\u0301SK]"),
    ("word pieces", "##ing ## ##a #hashtag play##ing"),
    ("unused tokens", "[unused0] [unused1]"),
    ("url", "https://www.example.com/path/to/page.html?q=caf%C3%A9&x=1#frag"),
    ("mail address", "first.last+tag@sub.example.co.uk"),
    ("path", "C:\\Users\\me\\file.txt /usr/local/bin/python3"),
    ("code", CODE),
    ("json", '{"key": [1, 2.5e-3, null], "nested": {"a": "b\\n"}}'),
    ("html", '<p class="x">Hello&nbsp;<b>world</b></p>'),
    ("digits", "3.14159265358979323846 1,000,000 0xdeadbeef 192.168.0.1 2024-02-29T12:34:56Z"),
    ("no spaces", "thequickbrownfoxjumpsoverthelazydog"),
    ("camel case", "getElementByIdAndDoSomethingReallyLong_snake_case-kebab-case"),
    ("spaces around", "   leading and trailing   "),
    ("many spaces", "a          b" + " " * 300 + "c"),
    ("natural text at the limit", PARAGRAPH * 2 + "And so on. "),
    ("long natural text", PARAGRAPH * 4),
    ("long chinese", "我爱北京天安门" * 50),
    ("long emoji", "😀" * 400),
    ("long zalgo", "Z\u0351\u036b\u0343\u036a\u0302" * 300),
]

# For the tiny models and the tokenizer variants, whose vocabulary is VOCAB below.
TINY_TEXTS = [
    "",
    "Hello, world!",
    "hello hello the cat sat on the mat",
    "Café CAFÉ cafe\u0301 Über über naïve",
    "中文 and 文字, hello中world",
    "[CLS] a [MASK] b [SEP] [PAD] [UNK] [mask] [sep]",
    "unhappily running runners ran",
    "an unknown ☃ snowman and \u0661\u0662",
    "tabs\tand\nnew lines\x00 nul \ufffd \u200b zero",
    "İstanbul STRASSE Straße",
    "the quick brown fox jumps over the lazy dog. " * 6,
    "x" * 101 + " y",
    "The Cat <new> <NEW> Sat <tok>on<tok>",
    "  the world  ",
    "helloworld othello hello-hello",
]


def tiny_vocab():
    words = """the The a A an and And in on of to is Hello hello HELLO world World cat Cat sat Sat mat dog fox quick
        brown lazy over jump run ran un happi happy walk talk new lines tab nul zero know known un istanbul strasse
        cafe Cafe café Café CAFÉ uber über Über naive naïve snow man line < > tok""".split()
    pieces = "s ing ly ed er ers ning ners un ps py pily known man stan bul ß é e É CAF AF ing i\u0307 \u0301 \u0308".split()
    chars = [chr(c) for c in range(33, 127)]
    other = list("éÉüÜïßİ中文字") + ["\u0301", "\u0308", "i\u0307", "x" * 3, "م"]
    tail = [chr(c) for c in range(97, 123)] + [chr(c) for c in range(65, 91)] + list("0123456789")
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + chars + other + words
    vocab += ["##" + p for p in pieces] + ["##" + c for c in tail]
    return list(dict.fromkeys(vocab))


VOCAB = tiny_vocab()

# -------------------------------------------------------------------------------------------- helpers


def dump(path, value, indent=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=True) + "\n", encoding="utf-8")


def dump_rows(path, head, key, rows):
    """JSON with one row a line, so that a change of one row is one line in a diff."""
    lines = ",\n".join("  " + json.dumps(r, ensure_ascii=True) for r in rows)
    text = json.dumps(head, indent=1, ensure_ascii=True).rstrip("}\n") + f',\n "{key}": [\n{lines}\n ]\n}}\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def versions():
    return {
        "sentence_transformers": sentence_transformers.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "torch": torch.__version__.split("+")[0],
    }


def load(directory):
    return SentenceTransformer(str(directory), device="cpu", model_kwargs={"dtype": "float32"})


def ids_of(model, text):
    """The ids that go into the model, and how many there are without the limit."""
    ids = model.preprocess([text])["input_ids"][0].tolist()
    model.tokenizer.backend_tokenizer.no_truncation()
    model.tokenizer.backend_tokenizer.no_padding()
    total = len(model.tokenizer.backend_tokenizer.encode(text).ids)
    return ids, total


def golden_rows(model, texts, prompt=""):
    rows = []
    for name, text in texts:
        ids, total = ids_of(model, prompt + text)
        row = {"ids": ids, "total_tokens": total}
        # the tiny models share their texts, which lie in one file
        rows.append(row if name is None else {"name": name, "text": text, **row})
    return rows


def vectors_of(model, texts):
    """[rows, dim] float32, one text at a time; also checks that a batch agrees."""
    one = np.stack([model.encode(t, convert_to_numpy=True) for t in texts]).astype("<f4")
    many = model.encode(list(texts), batch_size=16, convert_to_numpy=True)
    difference = np.abs(one - many).max()
    assert one.dtype == np.float32 and np.isfinite(one).all()
    assert difference < 5e-6, difference
    return one, float(difference)


# --------------------------------------------------------------------------------------------- MiniLM


def minilm(directory, out):
    model = load(directory)
    texts = AWKWARD + [(f"sentence {i}", s) for i, s in enumerate(SENTENCES)]
    rows = golden_rows(model, texts)
    vectors, difference = vectors_of(model, [t for _, t in texts])
    head = {
        "model": "sentence-transformers/all-MiniLM-L6-v2",
        "model.safetensors sha256": hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest(),
        "versions": versions(),
        "max_seq_length": model.max_seq_length,
        "dim": vectors.shape[1],
        "batch_against_single": difference,
    }
    dump_rows(out / "minilm" / "golden.json", head, "rows", rows)
    vectors.tofile(out / "minilm" / "golden.f32")
    print(f"minilm: {len(rows)} rows, batch against single {difference:.1e}")


# ---------------------------------------------------------------------------------------- tiny models


def random_bert(seed, hidden, heads, intermediate, layers, act, positions=48):
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(VOCAB),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        hidden_act=act,
        max_position_embeddings=positions,
        type_vocab_size=2,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )
    model = BertModel(config).eval()
    randomize(model)
    return config, model


def randomize(model):
    """Far from the usual initialisation: every weight must matter, biases and layernorms included."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.lower().endswith("norm.weight"):
                p.copy_(1 + 0.3 * torch.randn_like(p))
            elif p.dim() == 1:
                p.copy_(0.3 * torch.randn_like(p))
            elif "embeddings" in name and "project" not in name or "relative_attention_bias" in name:
                p.copy_(0.7 * torch.randn_like(p))
            else:
                p.copy_(1.5 / p.shape[1] ** 0.5 * torch.randn_like(p))


def write_vocab(path, vocab=VOCAB):
    path.write_text("".join(t + "\n" for t in vocab), encoding="utf-8", newline="")


def tokenizer_json(lowercase=True, strip_accents=None, chinese=True, vocab=VOCAB, added=(), **more):
    """A tokenizer.json as the library writes it."""
    tok = tokenizers.Tokenizer(tokenizers.models.WordPiece({t: i for i, t in enumerate(vocab)}, unk_token="[UNK]"))
    tok.normalizer = tokenizers.normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese, strip_accents=strip_accents, lowercase=lowercase
    )
    tok.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tok.decoder = tokenizers.decoders.WordPiece(prefix="##")
    cls, sep = vocab.index("[CLS]"), vocab.index("[SEP]")
    tok.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", cls), ("[SEP]", sep)],
    )
    tok.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tok.add_tokens(list(added))
    value = json.loads(tok.to_str())
    value.update(more)
    return value


SPECIALS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
BERT = {"tokenizer_class": "BertTokenizer", "model_max_length": 512, **SPECIALS}

POOLINGS = ["cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens"]


def classic(directory, config, model, pooling, normalize, max_seq_length=32, dtype=torch.float32, rename=None,
            modules=True, vocab_only=False, sharded=False, prompts=None):
    """A directory as sentence-transformers before 5.4 wrote it."""
    directory.mkdir(parents=True)
    values = config.to_dict()
    for key in ("dtype", "torch_dtype", "_name_or_path", "transformers_version"):
        values.pop(key, None)
    values["architectures"] = ["BertModel"]
    values["torch_dtype"] = str(dtype).removeprefix("torch.")
    dump(directory / "config.json", values)

    state = {k: v.to(dtype).contiguous() for k, v in model.state_dict().items() if "position_ids" not in k}
    if rename:
        state = {rename(k): v for k, v in state.items()}
    if sharded:
        names = sorted(state)
        shards = [names[::2], names[1::2]]
        index = {}
        for i, shard in enumerate(shards):
            file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
            save_file({k: state[k] for k in shard}, directory / file, {"format": "pt"})
            index.update({k: file for k in shard})
        total = sum(v.numel() * v.element_size() for v in state.values())
        dump(directory / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})
    else:
        save_file(state, directory / "model.safetensors", {"format": "pt"})

    write_vocab(directory / "vocab.txt")
    if not vocab_only:
        dump(directory / "tokenizer.json", tokenizer_json(), indent=None)
        dump(directory / "tokenizer_config.json", {**BERT, "do_lower_case": True})
        dump(directory / "special_tokens_map.json", SPECIALS)
    if not modules:
        return
    kinds = ["Transformer", "Pooling"] + ["Normalize"] * normalize
    dump(directory / "modules.json", [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ])
    dump(directory / "sentence_bert_config.json", {"max_seq_length": max_seq_length, "do_lower_case": False})
    flags = {f"pooling_mode_{p}": p in pooling for p in POOLINGS}
    dump(directory / "1_Pooling" / "config.json", {"word_embedding_dimension": config.hidden_size, **flags})
    st = {"__version__": {"sentence_transformers": "2.2.2", "transformers": "4.30.0", "pytorch": "2.0.1"}}
    if prompts:
        st.update(prompts)
    dump(directory / "config_sentence_transformers.json", st)


def current(directory, config, model, pooling, normalize, scratch):
    """A directory as sentence-transformers 6 writes it."""
    plain = scratch / directory.parent.name
    plain.mkdir()
    model.save_pretrained(plain)
    write_vocab(plain / "vocab.txt")
    BertTokenizer(vocab=str(plain / "vocab.txt"), model_max_length=40).save_pretrained(plain)
    module = Transformer(str(plain))
    chain = [module, Pooling(config.hidden_size, pooling_mode=pooling)] + [Normalize()] * normalize
    whole = SentenceTransformer(modules=chain, device="cpu")
    whole.save(str(directory), create_model_card=False)


def legacy_name(name):
    name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    return "bert." + name


def tiny_models(out, scratch):
    cls, mx, mean, sqrt = POOLINGS
    prompts = {"prompts": {"query": "the quick ", "passage": ""}, "default_prompt_name": "query"}
    f16, bf16 = torch.float16, torch.bfloat16
    #        name              hidden heads inter layers act        how
    specs = [
        ("current-mean",       32, 4, 64, 2, "gelu",       dict(current="mean", normalize=True)),
        ("current-cls-max",    24, 2, 52, 1, "gelu_pytorch_tanh", dict(current=["cls", "max"], normalize=False)),
        ("classic-mean",       48, 3, 100, 1, "gelu_new",  dict(pooling=[mean], normalize=True)),
        ("classic-cls",        64, 1, 64, 1, "relu",      dict(pooling=[cls], normalize=False)),
        ("classic-max",        40, 5, 52, 1, "silu",       dict(pooling=[mx], normalize=False)),
        ("classic-sqrt",       24, 2, 52, 1, "quick_gelu", dict(pooling=[sqrt], normalize=False)),
        ("classic-concat",     24, 3, 52, 1, "gelu",       dict(pooling=POOLINGS, normalize=True)),
        ("f16",                32, 2, 64, 2, "gelu",       dict(pooling=[mean], normalize=True, dtype=f16)),
        ("bf16",               40, 5, 52, 2, "gelu",       dict(pooling=[cls], normalize=True, dtype=bf16)),
        ("legacy-names",       24, 2, 36, 2, "tanh",       dict(pooling=[mean], normalize=False, rename=legacy_name)),
        ("no-modules",         32, 1, 72, 1, "gelu",       dict(pooling=[], normalize=False, modules=False)),
        ("vocab-txt-sharded",  24, 2, 52, 2, "gelu",       dict(pooling=[mean], normalize=True, vocab_only=True, sharded=True)),
        ("default-prompt",     24, 3, 40, 1, "gelu",       dict(pooling=[mean], normalize=True, prompts=prompts)),
    ]
    for seed, (name, hidden, heads, intermediate, layers, act, how) in enumerate(specs):
        config, model = random_bert(seed, hidden, heads, intermediate, layers, act)
        directory = out / "tiny" / name / "model"
        if "current" in how:
            current(directory, config, model, how["current"], how["normalize"], scratch)
        else:
            classic(directory, config, model, **how)
        loaded = load(directory)
        prompt = loaded.prompts.get(loaded.default_prompt_name) or "" if loaded.default_prompt_name else ""
        rows = golden_rows(loaded, [(None, t) for t in TINY_TEXTS], prompt)
        vectors, difference = vectors_of(loaded, TINY_TEXTS)
        head = {
            "versions": versions(),
            "max_seq_length": loaded.max_seq_length,
            "dim": vectors.shape[1],
            "prompt": prompt,
            "batch_against_single": difference,
        }
        dump_rows(out / "tiny" / name / "golden.json", head, "rows", rows)
        vectors.tofile(out / "tiny" / name / "golden.f32")
        print(f"{name}: dim {vectors.shape[1]}, batch against single {difference:.1e}, max |v| {np.abs(vectors).max():.2f}")


# ------------------------------------------------------------------------------ families and module chains

# For the families: what their tokenizers differ in, on top of the tiny texts.
FAMILY_TEXTS = TINY_TEXTS + [
    "a",
    "<s> a <mask> b </s> <pad> c <unk>",
    "<pad>the <pad> cat",
    "the cat <mask>, hello<mask>world",
    "``quoted'' \uff21\uff22 \u2460 ﬁ \u00bd",
    " hello",
    "hello ",
    "it's he'll WE'VE don't 1234 12,345.67",
    "the cat sat on the mat and ran over the dog " * 20,
]


def golden(out, name, texts, encoder=None):
    """Token ids and vectors of the directory out/name/model; where transformers has no code for its encoder, with
    the encoder given."""
    loaded = load(out / name / "model")
    if encoder is not None:
        loaded[0].model = encoder
    prompt = loaded.prompts.get(loaded.default_prompt_name) or "" if loaded.default_prompt_name else ""
    rows = golden_rows(loaded, [(f"text {i}", t) for i, t in enumerate(texts)], prompt)
    vectors, difference = vectors_of(loaded, texts)
    head = {
        "versions": versions(),
        "max_seq_length": loaded.max_seq_length,
        "dim": vectors.shape[1],
        "prompt": prompt,
        "batch_against_single": difference,
    }
    dump_rows(out / name / "golden.json", head, "rows", rows)
    vectors.tofile(out / name / "golden.f32")
    size = sum(f.stat().st_size for f in (out / name).rglob("*") if f.is_file())
    lengths = sorted({len(r["ids"]) for r in rows})
    print(f"{name}: dim {vectors.shape[1]}, lengths {lengths[0]}..{lengths[-1]}, batch against single {difference:.1e}, "
          f"max |v| {np.abs(vectors).max():.2f}, {size // 1024} KiB")


CLASSIC_TYPES = {
    "Transformer": "sentence_transformers.models.Transformer",
    "Pooling": "sentence_transformers.models.Pooling",
    "Dense": "sentence_transformers.models.Dense",
    "LayerNorm": "sentence_transformers.models.LayerNorm.LayerNorm",
    "Normalize": "sentence_transformers.models.Normalize",
}


def save_chain(directory, plain, chain, old_names=False, **kwargs):
    """The encoder in `plain` and the modules behind it, as sentence-transformers 6 writes them; or with the
    names and keys of versions before 5.4."""
    whole = SentenceTransformer(modules=[Transformer(str(plain)), *chain], device="cpu", **kwargs)
    whole.save(str(directory), create_model_card=False)
    if not old_names:
        return
    modules = json.loads((directory / "modules.json").read_text())
    for module in modules:
        kind = module["type"].split(".")[-1]
        module["type"] = CLASSIC_TYPES[kind]
        path = directory / module["path"] / "config.json"
        if kind == "Dense":
            config = json.loads(path.read_text())
            dump(path, {k: v for k, v in config.items() if not k.startswith("module_")})
        elif kind == "Normalize" and path.exists():
            shutil.rmtree(path.parent)
    dump(directory / "modules.json", modules)


def chains(out, scratch):
    """Module chains behind a small BERT."""
    every = list(Pooling.POOLING_MODES)
    identity = torch.nn.Identity()
    prompt = {"prompts": {"query": "the quick: "}, "default_prompt_name": "query"}
    # name: (modules for the width 24, how to save)
    specs = {
        "bert-weightedmean-lasttoken": ([Pooling(24, ["weightedmean", "lasttoken"]), Normalize()], {}),
        "bert-without-prompt": ([Pooling(24, every, include_prompt=False)], prompt),
        "bert-dense-old-names": ([Pooling(24, "cls"), Dense(24, 20), LayerNorm(20), Normalize()], {"old_names": True}),
        "bert-modules": ([
            Pooling(24, "mean"),
            Dense(24, 24, activation_function=torch.nn.GELU(), use_residual=True),
            LayerNorm(24),
            Dense(24, 10, bias=False, activation_function=identity, use_residual=True),
            Normalize(),
            Dense(10, 37, activation_function=torch.nn.SiLU()),
            Normalize(),
            Normalize(),
        ], {}),
        "bert-pooled-twice": ([
            Pooling(24, "cls"), Normalize(), Pooling(24, ["max", "max"]), Dense(48, 9, activation_function=torch.nn.Sigmoid()),
            Dense(9, 12, activation_function=torch.nn.ReLU()),
        ], {}),
        "bert-truncated": ([Pooling(24, "mean"), Normalize()], {"truncate_dim": 10}),
    }
    config, model = random_bert(50, 24, 3, 40, 1, "gelu")
    plain = scratch / "bert-plain"
    model.save_pretrained(plain)
    write_vocab(plain / "vocab.txt")
    BertTokenizer(vocab=str(plain / "vocab.txt"), model_max_length=40).save_pretrained(plain)
    for seed, (name, (chain, how)) in enumerate(specs.items()):
        torch.manual_seed(100 + seed)
        for module in chain:
            randomize(module)
        save_chain(out / name / "model", plain, chain, **how)
        golden(out, name, TINY_TEXTS)


def byte_level_bpe(size):
    """Vocabulary and merges of a byte-level BPE over the texts."""
    tok = tokenizers.Tokenizer(tokenizers.models.BPE())
    tok.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train_from_iterator(FAMILY_TEXTS, trainer)
    model = json.loads(tok.to_str())["model"]
    vocab = {**model["vocab"], "<mask>": len(model["vocab"])}
    return vocab, [tuple(m) for m in model["merges"]]


def unigram_pieces(size):
    """Pieces of a Unigram model of the texts with their scores: frequent parts of words, and all letters of the
    words that occur twice. Counted and not trained: the trainer gives another model each time."""
    counts = Counter()
    for word in " ".join(FAMILY_TEXTS + [t.lower() for t in FAMILY_TEXTS]).split():
        word = "\u2581" + word[:40]
        for i in range(len(word)):
            counts.update(word[i:j] for j in range(i + 1, min(i + 7, len(word)) + 1))
    worth = sorted(counts, key=lambda p: (len(p) > 1, -counts[p] * len(p), p))
    letters = [p for p in worth if len(p) == 1 and counts[p] > 1]
    parts = [p for p in worth if len(p) > 1]
    total = sum(counts.values())
    pieces = letters + parts[: size - len(letters)]
    return [(p, round(math.log(counts[p] / total), 4)) for p in pieces]


def charsmap(pairs):
    """A character map as sentencepiece compiles it: a trie (double array, of the kind of darts-clone) of UTF-8 bytes
    and, behind it, what the characters become."""
    blob, trie = b"", {}
    for key, value in sorted(pairs.items()):
        node = trie
        for byte in key.encode():
            node = node.setdefault(byte, {})
        node[0] = len(blob)
        blob += value.encode() + b"\0"
    units, free = {0: 0}, lambda at: at not in units

    def place(at, node):
        base = next(b for b in range(1, 1 << 20) if all(free(b ^ label) for label in node))
        units[at] |= (at ^ base) << 10 | (0 in node) << 8
        for label, child in node.items():
            units[base ^ label] = child | 1 << 31 if label == 0 else label
        for label, child in node.items():
            if label:
                place(base ^ label, child)

    place(0, trie)
    size = max(units) // 256 * 256 + 256
    array = struct.pack(f"<{size}I", *(units.get(i, 0) for i in range(size)))
    return struct.pack("<I", len(array)) + array + blob


def specials(*names):
    return [(name, 0.0) for name in names]


def modernberts():
    """Two of them, whose texts are far longer than the local attention reaches."""
    names = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    tok = tokenizers.Tokenizer(tokenizers.models.BPE())
    tok.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    tok.train_from_iterator(FAMILY_TEXTS, tokenizers.trainers.BpeTrainer(
        vocab_size=290, special_tokens=names, initial_alphabet=alphabet, show_progress=False))
    tok.normalizer = tokenizers.normalizers.NFC()
    tok.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tok, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]",
        mask_token="[MASK]", model_max_length=100)
    common = {"vocab_size": 290, "max_position_embeddings": 100, "pad_token_id": 3, "cls_token_id": 1, "sep_token_id": 2,
              "bos_token_id": 1, "eos_token_id": 2, "num_hidden_layers": 4}
    rope = {"full_attention": {"rope_type": "default", "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 300.0}}
    return {
        "modernbert": (
            ModernBertConfig(hidden_size=32, num_attention_heads=2, intermediate_size=27, local_attention=16, **common),
            tokenizer,
        ),
        "modernbert-old-keys": (
            ModernBertConfig(hidden_size=32, num_attention_heads=1, intermediate_size=24, local_attention=7,
                             rope_parameters=rope, global_attn_every_n_layers=2, **common),
            tokenizer,
        ),
    }


def old_modernbert(directory):
    """With the keys of transformers 4, and as a task model's checkpoint."""
    config = json.loads((directory / "config.json").read_text())
    rope = config.pop("rope_parameters")
    del config["layer_types"]
    config.update({
        "global_rope_theta": rope["full_attention"]["rope_theta"],
        "local_rope_theta": rope["sliding_attention"]["rope_theta"],
        "global_attn_every_n_layers": 2,
    })
    dump(directory / "config.json", config)
    state = load_file(directory / "model.safetensors")
    save_file({"model." + k: v for k, v in state.items()}, directory / "model.safetensors", {"format": "pt"})


class JinaBertV2(torch.nn.Module):
    """The encoder of jina-embeddings-v2, whose code is in no release of transformers: written from its formula, a
    BERT without positions whose attention has ALiBi's bias (Press et al. 2022, symmetric) and whose feed-forward is
    act(x) * y for x, y = W h. `state` has the tensors by their names in the published checkpoints."""

    def __init__(self, config, state):
        super().__init__()
        self.config, self.state, self.heads = config, state, config.num_attention_heads
        self.act = {"geglu": torch.nn.functional.gelu, "reglu": torch.relu}[config.feed_forward_type]
        whole = 2 ** int(math.log2(self.heads))  # the slopes of so many heads are those of the paper
        slopes = [2 ** (-8 / whole * (i + 1)) for i in range(whole)]
        # of the further heads, every other one of twice as many heads
        slopes += [2 ** (-4 / whole * (i + 1)) for i in range(0, 2 * whole, 2)][: self.heads - whole]
        self.slopes = torch.tensor(slopes)

    def linear(self, name, x):
        return torch.nn.functional.linear(x, self.state[name + ".weight"], self.state.get(name + ".bias"))

    def norm(self, name, x):
        weight, bias = self.state[name + ".weight"], self.state[name + ".bias"]
        return torch.nn.functional.layer_norm(x, weight.shape, weight, bias, self.config.layer_norm_eps)

    def attention(self, at, x, mask):
        """`mask` is 1 for the keys that count."""
        batch, n, width = x.shape
        query, key, value = (self.linear(f"{at}.self.{part}", x) for part in ("query", "key", "value"))
        if f"{at}.self.layer_norm_q.weight" in self.state:
            query, key = self.norm(f"{at}.self.layer_norm_q", query), self.norm(f"{at}.self.layer_norm_k", key)
        query, key, value = (t.view(batch, n, self.heads, -1).transpose(1, 2) for t in (query, key, value))
        scores = query @ key.transpose(2, 3) / (width / self.heads) ** 0.5
        place = torch.arange(n)
        scores = scores - self.slopes[:, None, None] * (place[:, None] - place[None, :]).abs()
        scores = scores.masked_fill(mask[:, None, None, :] == 0, float("-inf"))
        context = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, n, width)
        return self.linear(f"{at}.output.dense", context)

    def forward(self, input_ids, attention_mask, token_type_ids=None, **_):
        words, types = (self.state[f"embeddings.{t}_embeddings.weight"] for t in ("word", "token_type"))
        x = words[input_ids] + (types[0] if token_type_ids is None else types[token_type_ids])
        x = self.norm("embeddings.LayerNorm", x)
        for layer in range(self.config.num_hidden_layers):
            at = f"encoder.layer.{layer}"
            attended = x + self.attention(at + ".attention", x, attention_mask)
            if at + ".layer_norm_1.weight" in self.state:  # jina-bert-v2-qk-post-norm
                x = self.norm(at + ".layer_norm_1", attended)
                y, gate = self.linear(at + ".mlp.up_gated_layer", x).chunk(2, -1)
                x = self.norm(at + ".layer_norm_2", x + self.linear(at + ".mlp.down_layer", y * self.act(gate)))
            else:
                x = self.norm(at + ".attention.output.LayerNorm", attended)
                gate, y = self.linear(at + ".mlp.gated_layers", x).chunk(2, -1)
                x = self.norm(at + ".mlp.layernorm", x + self.linear(at + ".mlp.wo", self.act(gate) * y))
        return BaseModelOutput(last_hidden_state=x)


def jina_state(config, qk_norm):
    """Random tensors under the names of the published checkpoints."""
    h, i = config.hidden_size, config.intermediate_size
    shapes = {"embeddings.word_embeddings.weight": (config.vocab_size, h),
              "embeddings.token_type_embeddings.weight": (config.type_vocab_size, h)}

    def add(name, *shape, bias=True):
        shapes[name + ".weight"] = shape
        if bias:
            shapes[name + ".bias"] = shape[:1]

    add("embeddings.LayerNorm", h)
    for layer in range(config.num_hidden_layers):
        at = f"encoder.layer.{layer}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            add(f"{at}.attention.{part}", h, h)
        if qk_norm:
            for norm in ("attention.self.layer_norm_q", "attention.self.layer_norm_k", "layer_norm_1", "layer_norm_2"):
                add(f"{at}.{norm}", h)
            add(f"{at}.mlp.up_gated_layer", 2 * i, h, bias=False)
            add(f"{at}.mlp.down_layer", h, i)
        else:
            for norm in ("attention.output.LayerNorm", "mlp.layernorm"):
                add(f"{at}.{norm}", h)
            add(f"{at}.mlp.gated_layers", 2 * i, h, bias=False)
            add(f"{at}.mlp.wo", h, i)

    def values(name, shape):
        if len(shape) == 1 and name.endswith("weight"):
            return 1 + 0.3 * torch.randn(shape)
        return torch.randn(shape) * (0.3 if len(shape) == 1 else 0.7 if "embeddings" in name else 1.5 / shape[1] ** 0.5)

    return {name: values(name, shape) for name, shape in shapes.items()}


def jinas(out, scratch):
    """jina-embeddings-v2, with and without norms of queries and keys; with 6 and 2 heads, and lengths up to 90."""
    size = {"vocab_size": len(VOCAB), "max_position_embeddings": 90, "num_hidden_layers": 2, "type_vocab_size": 2,
            "position_embedding_type": "alibi", "layer_norm_eps": 1e-5, "emb_pooler": "mean"}
    specs = {
        "jina-bert-v2": (False, BertConfig(hidden_size=48, num_attention_heads=6, intermediate_size=37,
                                           feed_forward_type="geglu", **size)),
        "jina-bert-v2-qk-norm": (True, BertConfig(hidden_size=64, num_attention_heads=2, intermediate_size=48,
                                                  feed_forward_type="reglu", **size)),
    }
    for seed, (name, (qk_norm, config)) in enumerate(specs.items()):
        torch.manual_seed(300 + seed)
        plain = scratch / name
        BertModel(config).save_pretrained(plain)
        BertTokenizer(vocab={t: i for i, t in enumerate(VOCAB)}, model_max_length=90).save_pretrained(plain)
        save_chain(out / name / "model", plain, [Pooling(config.hidden_size, "mean")] + [Normalize()] * seed)
        state = jina_state(config, qk_norm)
        save_file(state, out / name / "model" / "model.safetensors", {"format": "pt"})
        golden(out, name, FAMILY_TEXTS, JinaBertV2(config, state))
        # keys of the published files at which transformers stumbles
        path = out / name / "model" / "config.json"
        code = "jinaai/jina-bert-v2-qk-post-norm" if qk_norm else "jinaai/jina-bert-implementation"
        more = {"_name_or_path": code, "architectures": ["JinaBertForMaskedLM"], "attn_implementation": "torch"}
        dump(path, {**json.loads(path.read_text()), **more})


def rope(theta, **more):
    return {"rope_type": "default", "rope_theta": theta, **more}


def old_nomic_bert(directory):
    """With the keys and tensor names of nomic-embed-text's own code, which computes the same: what this code names
    otherwise, and every choice that it has beside."""
    path = directory / "config.json"
    config = json.loads(path.read_text())
    old = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
           "intermediate_size": "n_inner", "layer_norm_eps": "layer_norm_epsilon", "max_position_embeddings": "n_positions"}
    values = {old.get(k, k): v for k, v in config.items()}
    for key in ("hidden_act", "head_dim", "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
        values.pop(key, None)
    values.update({
        "activation_function": "swiglu", "attn_pdrop": 0.0, "causal": False, "dense_seq_output": True, "embd_pdrop": 0.0,
        "fused_bias_fc": True, "fused_dropout_add_ln": True, "max_trained_positions": 40, "mlp_fc1_bias": False,
        "mlp_fc2_bias": False, "pad_vocab_size_multiple": 64, "parallel_block": False, "parallel_block_tied_norm": False,
        "prenorm": False, "qkv_proj_bias": False, "reorder_and_upcast_attn": False, "resid_pdrop": 0.0,
        "rotary_emb_base": values.pop("rope_parameters")["rope_theta"], "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False, "rotary_emb_scale_base": None, "rotary_scaling_factor": None,
        "scale_attn_by_inverse_layer_idx": False, "scale_attn_weights": True, "summary_activation": None,
        "summary_first_dropout": 0.0, "summary_proj_to_labels": True, "summary_type": "cls_index",
        "summary_use_proj": True, "use_cache": True, "use_flash_attn": True, "use_rms_norm": False, "use_xentropy": True,
    })
    dump(path, values)


def new_gte(directory, factor):
    """With the keys of gte-en-v1.5's own code. Its "ntk" multiplies the base by a factor and divides all frequencies
    by factor^(2 / head size), which transformers calls a linear scaling of another base."""
    path = directory / "config.json"
    config = json.loads(path.read_text())
    theta = config.pop("rope_parameters")["rope_theta"] / factor
    config.update({
        "architectures": ["NewModel"], "model_type": "new", "layer_norm_type": "layer_norm", "logn_attention_clip1": False,
        "logn_attention_scale": False, "pack_qkv": True, "position_embedding_type": "rope",
        "rope_scaling": {"factor": factor, "type": "ntk"}, "rope_theta": theta, "unpad_inputs": True,
        "use_memory_efficient_attention": False,
    })
    dump(path, config)


def families(out, scratch):
    chains(out, scratch)
    jinas(out, scratch)
    limits = {"model_max_length": 40}
    characters = charsmap({"\uff21": "A", "\uff22": "B", "\u2460": "1", "ﬁ": "fi", "½": "1/2", "\xfc": "ue", "☃": "cat"})
    bpe, merges = byte_level_bpe(300)
    pieces = unigram_pieces(150)
    xlm = specials("<s>", "<pad>", "</s>", "<unk>") + pieces + specials("<mask>")
    camembert = specials("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>") + pieces
    albert = specials("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]") + pieces
    mpnet = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"] + VOCAB[5:]
    wordpiece = {t: i for i, t in enumerate(VOCAB)}
    size = {"num_hidden_layers": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-5}
    roberta = {**size, "max_position_embeddings": 42, "type_vocab_size": 1}
    # name: (configuration, tokenizer)
    specs = {
        "roberta": (
            RobertaConfig(vocab_size=len(bpe), hidden_size=48, num_attention_heads=3, intermediate_size=70, **roberta),
            RobertaTokenizer(vocab=bpe, merges=merges, **limits),
        ),
        "roberta-prefix-space": (
            RobertaConfig(vocab_size=len(bpe), hidden_size=24, num_attention_heads=1, intermediate_size=40, **roberta),
            RobertaTokenizer(vocab=bpe, merges=merges, add_prefix_space=True, **limits),
        ),
        "xlm-roberta": (
            XLMRobertaConfig(vocab_size=len(xlm), hidden_size=48, num_attention_heads=2, intermediate_size=70, **roberta),
            XLMRobertaTokenizer(vocab=xlm, _spm_precompiled_charsmap=characters, **limits),
        ),
        "camembert": (
            CamembertConfig(vocab_size=len(camembert) + 1, hidden_size=32, num_attention_heads=1, intermediate_size=52,
                            **{**roberta, "num_hidden_layers": 1}),
            CamembertTokenizer(vocab=camembert + specials("<mask>"), **limits),
        ),
        "distilbert": (
            DistilBertConfig(vocab_size=len(VOCAB), dim=64, n_heads=2, hidden_dim=76, n_layers=1, activation="gelu",
                             max_position_embeddings=44),
            DistilBertTokenizer(vocab=wordpiece, **limits),
        ),
        "mpnet": (
            MPNetConfig(vocab_size=len(mpnet), hidden_size=48, num_attention_heads=3, intermediate_size=70,
                        max_position_embeddings=132, **size),
            MPNetTokenizer(vocab={t: i for i, t in enumerate(mpnet)}, model_max_length=130),
        ),
        "electra": (
            ElectraConfig(vocab_size=len(VOCAB), embedding_size=20, hidden_size=48, num_attention_heads=2,
                          intermediate_size=70, max_position_embeddings=40, **size),
            BertTokenizer(vocab=wordpiece, **limits),
        ),
        "electra-one-width": (
            ElectraConfig(vocab_size=len(VOCAB), embedding_size=24, hidden_size=24, num_attention_heads=3,
                          intermediate_size=40, max_position_embeddings=40, **size),
            BertTokenizer(vocab=wordpiece, do_lower_case=False, **limits),
        ),
        "albert": (
            AlbertConfig(vocab_size=len(albert), embedding_size=16, hidden_size=48, num_attention_heads=3,
                         intermediate_size=70, max_position_embeddings=40,
                         **{**size, "num_hidden_layers": 3, "hidden_act": "gelu_new"}),
            AlbertTokenizer(vocab=albert, **limits),
        ),
        "albert-groups": (
            AlbertConfig(vocab_size=len(albert), embedding_size=32, hidden_size=32, num_attention_heads=2,
                         intermediate_size=40, max_position_embeddings=40, num_hidden_groups=2, inner_group_num=2,
                         **{**size, "num_hidden_layers": 3}),
            AlbertTokenizer(vocab=albert, do_lower_case=False, keep_accents=True,
                            _spm_precompiled_charsmap=characters, **limits),
        ),
    }
    specs.update(modernberts())
    long = {**limits, "model_max_length": 90}
    rotary = {**size, "max_position_embeddings": 90}
    specs.update({
        "nomic-bert": (
            NomicBertConfig(vocab_size=len(VOCAB), hidden_size=48, num_attention_heads=2, intermediate_size=37,
                            rope_parameters=rope(700.0),
                            **{**rotary, "hidden_act": "silu", "max_position_embeddings": 60}),
            BertTokenizer(vocab=wordpiece, **long),
        ),
        "nomic-bert-old-keys": (
            NomicBertConfig(vocab_size=len(VOCAB), hidden_size=32, num_attention_heads=1, intermediate_size=40,
                            rope_parameters=rope(300.0), **{**rotary, "hidden_act": "silu"}),
            BertTokenizer(vocab=wordpiece, **long),
        ),
        "gte": (
            GteConfig(vocab_size=len(xlm), hidden_size=48, num_attention_heads=3, intermediate_size=37,
                      rope_parameters=rope(900.0), **rotary),
            XLMRobertaTokenizer(vocab=xlm, _spm_precompiled_charsmap=characters, **long),
        ),
        "gte-new": (
            GteConfig(vocab_size=len(VOCAB), hidden_size=32, num_attention_heads=1, intermediate_size=40, type_vocab_size=0,
                      pad_token_id=0,
                      rope_parameters={"rope_type": "linear", "rope_theta": 400.0 * 6, "factor": 6.0 ** (2 / 32)}, **rotary),
            BertTokenizer(vocab=wordpiece, **long),
        ),
        "jina-embeddings-v3": (
            JinaEmbeddingsV3Config(vocab_size=len(xlm), hidden_size=32, num_attention_heads=1, intermediate_size=56,
                                   rope_parameters=rope(1200.0), **rotary),
            XLMRobertaTokenizer(vocab=xlm, _spm_precompiled_charsmap=characters, **long),
        ),
    })
    poolings = ["mean", "cls", "max"]
    for seed, (name, (config, tokenizer)) in enumerate(specs.items()):
        torch.manual_seed(200 + seed)
        model = AutoModel.from_config(config).eval()
        randomize(model)
        plain = scratch / name
        model.save_pretrained(plain)
        tokenizer.save_pretrained(plain)
        chain = [Pooling(config.hidden_size, poolings[seed % 3])] + [Normalize()] * (seed % 2)
        save_chain(out / name / "model", plain, chain)
        if name == "nomic-bert":
            # the reference computes beyond the positions of config.json: there is no table
            path = out / name / "model" / "sentence_bert_config.json"
            dump(path, {**json.loads(path.read_text()), "max_seq_length": 90})
        if name == "modernbert-old-keys":
            old_modernbert(out / name / "model")
        golden(out, name, FAMILY_TEXTS)
        # transformers computes these as its own class only: the same model in the words of its own code
        if name == "nomic-bert-old-keys":
            old_nomic_bert(out / name / "model")
        if name == "gte-new":
            new_gte(out / name / "model", 6.0)


# --------------------------------------------------------------------------------- tokenizer variants


def tokenizer_variants(out, scratch):
    """Directories of tokenizer files, one for each rule of loading; ids by way of a whole SentenceTransformer."""
    added = [
        tokenizers.AddedToken("<new>", normalized=True, special=False),
        tokenizers.AddedToken("<tok>", lstrip=True, rstrip=True, normalized=False, special=True),
    ]
    whole = tokenizer_json
    token = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    decoder = {str(i): {"content": VOCAB[i], **token} for i in range(5)}
    decoder[str(len(VOCAB))] = {"content": "<new>", **token, "normalized": True, "special": False}
    left = {"direction": "Left", "max_length": 128, "strategy": "LongestFirst", "stride": 0}
    right = {**left, "direction": "Right", "max_length": 4}
    padding = {"strategy": {"Fixed": 128}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
               "pad_type_id": 0, "pad_token": "[PAD]"}
    renamed = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"] + VOCAB[5:]
    crlf = "".join(t + "\r\n" for t in VOCAB)
    repeated = VOCAB[:-1] + ["cat", VOCAB[-1]]
    cased = {**BERT, "do_lower_case": False}
    fast = {**BERT, "tokenizer_class": "PreTrainedTokenizerFast"}

    # name: (rule, tokenizer.json, tokenizer_config.json, {other file: text}, sentence_bert_config's do_lower_case)
    variants = {
        "plain": ("12", whole(), {**BERT, "do_lower_case": True}, {}, False),
        "config-cased": ("12", whole(), cased, {}, False),
        "config-strips-accents": ("12", whole(), {**cased, "strip_accents": True}, {}, False),
        "config-keeps-accents": ("12", whole(), {**BERT, "strip_accents": False}, {}, False),
        "config-no-chinese": ("12", whole(), {**BERT, "tokenize_chinese_chars": False}, {}, False),
        "config-missing": ("13", whole(lowercase=False, chinese=False), None, {}, False),
        "config-silent": ("13", whole(lowercase=False, strip_accents=False), BERT, {}, False),
        "unchanged-fast": ("14", whole(lowercase=False, strip_accents=False), {**fast, "do_lower_case": True}, {}, False),
        "unchanged-backend": ("14", whole(chinese=False), {**fast, "tokenizer_class": "TokenizersBackend"}, {}, False),
        "unchanged-left": ("14", whole(truncation=left, padding=padding), fast, {}, False),
        "truncation-left": ("15", whole(truncation=left), BERT, {}, False),
        "truncation-right": ("15", whole(truncation=right), BERT, {}, False),
        "truncation-side": ("15", whole(truncation=right), {**BERT, "truncation_side": "left"}, {}, False),
        "truncation-side-right": ("15", whole(truncation=left), {**BERT, "truncation_side": "right"}, {}, False),
        "padding-fixed": ("16", whole(padding=padding, truncation=right), BERT, {}, False),
        "vocab-txt": ("18", None, {**BERT, "do_lower_case": True}, {"vocab.txt": None}, False),
        "vocab-txt-alone": ("18", None, None, {"vocab.txt": None}, False),
        "vocab-txt-cased": ("18", None, cased, {"vocab.txt": None}, False),
        "vocab-txt-crlf": ("18", None, BERT, {"vocab.txt": crlf}, False),
        "vocab-txt-repeated": ("18", None, BERT, {"vocab.txt": "".join(t + "\n" for t in repeated)}, False),
        "vocab-txt-renamed": ("18", None, {"tokenizer_class": "BertTokenizer", "unk_token": "<unk>", "sep_token": "</s>",
                                           "pad_token": "<pad>", "cls_token": "<s>", "mask_token": "<mask>"},
                              {"vocab.txt": "".join(t + "\n" for t in renamed)}, False),
        "lower-case-module": ("10", whole(lowercase=False), cased, {}, True),
        "lower-case-module-unchanged": ("10", whole(lowercase=False), fast, {}, True),
        "lower-case-module-twice": ("10", whole(), BERT, {}, True),
        "added-tokens": ("22", whole(added=added), BERT, {}, False),
        "added-tokens-cased": ("22", whole(lowercase=False, added=added), cased, {}, False),
        "added-tokens-unchanged": ("22", whole(added=added), fast, {}, False),
        "added-tokens-decoder": ("22", whole(), {**BERT, "added_tokens_decoder": decoder}, {}, False),
        "added-tokens-file": ("22", None, BERT, {"vocab.txt": None, "added_tokens.json": json.dumps({"<new>": len(VOCAB)})}, False),
        "special-tokens-map": ("22", whole(), {"tokenizer_class": "BertTokenizer"},
                               {"special_tokens_map.json": json.dumps({**SPECIALS, "mask_token": {"content": "[MASK]", **token, "lstrip": True},
                                "additional_special_tokens": ["hello"]})}, False),
        "extra-special-tokens": ("22", whole(), {**BERT, "additional_special_tokens": ["hello", "<tok>"]}, {}, False),
        "split-special-tokens": ("23", whole(), {**BERT, "split_special_tokens": True}, {}, False),
    }
    max_seq_length = 20
    config, model = random_bert(0, 8, 1, 8, 1, "relu")
    config.vocab_size = len(VOCAB) + 4
    model.resize_token_embeddings(config.vocab_size)
    for name, (rule, tokenizer, tokenizer_config, files, lower) in variants.items():
        directory = out / "tokenizers" / name
        directory.mkdir(parents=True)
        if tokenizer is not None:
            dump(directory / "tokenizer.json", tokenizer, indent=None)
        if tokenizer_config is not None:
            dump(directory / "tokenizer_config.json", tokenizer_config)
        for file, text in files.items():
            if text is None:
                write_vocab(directory / file)
            else:
                (directory / file).write_text(text, encoding="utf-8", newline="")

        whole_model = scratch / name
        shutil.copytree(directory, whole_model)
        values = {**config.to_dict(), "vocab_size": config.vocab_size}
        dump(whole_model / "config.json", values)
        save_file(dict(model.state_dict()), whole_model / "model.safetensors", {"format": "pt"})
        dump(whole_model / "sentence_bert_config.json", {"max_seq_length": max_seq_length, "do_lower_case": lower})
        dump(whole_model / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}])
        loaded = load(whole_model)
        rows = golden_rows(loaded, [(None, t) for t in TINY_TEXTS])
        head = {
            "rule": rule,
            "versions": versions(),
            "do_lower_case": lower,
            "vocab_size": config.vocab_size,
            "max_seq_length": max_seq_length,
        }
        dump_rows(directory / "golden.json", head, "rows", rows)
    print(f"{len(variants)} tokenizer variants")


# ---------------------------------------------------------------------------------------------- quantisation


def quantized(out):
    """Vectors of 19 components and what quantize_embeddings makes of them, all of it as hexadecimal bytes."""
    generator = np.random.default_rng(31)
    vectors = generator.standard_normal((40, 19)).astype(np.float32) * np.float32(0.2)
    vectors[:, 3] = 0.25  # an empty range
    vectors[5, 4:9] = [0.0, -0.0, 1e-40, -1e-40, 3.0]
    calibration = vectors[:12]
    low, high = calibration.min(axis=0), calibration.max(axis=0)
    # on the edges of buckets
    edges = np.arange(19, dtype=np.float32) * 13
    vectors[20] = low + edges * ((high - low) / np.float32(255))
    vectors[21], vectors[22] = high, low
    rows = {"vectors": vectors}
    for precision in ["int8", "uint8", "binary", "ubinary"]:
        rows[precision] = quantize_embeddings(vectors, precision)
        if precision.endswith("int8"):
            rows[f"{precision} calibrated"] = quantize_embeddings(
                vectors, precision, calibration_embeddings=calibration
            )
    values = {"versions": versions(), "dim": 19, "calibration_rows": 12}
    values.update((name, array.tobytes().hex()) for name, array in rows.items())
    out.mkdir(parents=True)
    dump(out / "golden.json", values)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("minilm", "tiny", "tokenizers", "families", "quantize")
    parser.add_argument("minilm", type=Path, nargs="?", help="directory of all-MiniLM-L6-v2")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="the folders to write")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "tests" / "fixtures")
    args = parser.parse_args()
    if "minilm" in args.only and args.minilm is None:
        parser.error("the directory of all-MiniLM-L6-v2 is needed for the folder minilm")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for part in args.only:
        shutil.rmtree(args.out / part, ignore_errors=True)
    dump(args.out / "tiny_texts.json", TINY_TEXTS)
    with tempfile.TemporaryDirectory() as scratch:
        if "tokenizers" in args.only:
            tokenizer_variants(args.out, Path(scratch))
        if "tiny" in args.only:
            tiny_models(args.out, Path(scratch))
        if "families" in args.only:
            families(args.out / "families", Path(scratch))
        if "quantize" in args.only:
            quantized(args.out / "quantize")
    if "minilm" in args.only:
        minilm(args.minilm, args.out)


if __name__ == "__main__":
    main()
