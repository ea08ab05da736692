//! The tokenizer classes of transformers: their names, and what each of them brings along. Knows no files.

/// The classes whose tokenizer is known. Each may also end in `Fast`.
pub(super) const CLASSES: [(&str, Class); 14] = [
    ("BertTokenizer", Class::Bert),
    ("DistilBertTokenizer", Class::Bert),
    ("ElectraTokenizer", Class::Bert),
    ("LayoutLMTokenizer", Class::Bert),
    ("MobileBertTokenizer", Class::Bert),
    ("SqueezeBertTokenizer", Class::Bert),
    ("MPNetTokenizer", Class::MpNet),
    ("RobertaTokenizer", Class::Roberta),
    ("XLMRobertaTokenizer", Class::XlmRoberta),
    ("CamembertTokenizer", Class::Camembert),
    ("AlbertTokenizer", Class::Albert),
    ("PreTrainedTokenizer", Class::Unchanged),
    ("PythonBackend", Class::Unchanged),
    ("TokenizersBackend", Class::Unchanged),
];
/// The class of a `model_type` of `config.json` where no file names one.
pub(super) const CLASS_OF_MODEL: [(&str, &str); 7] = [
    ("albert", "AlbertTokenizer"),
    ("camembert", "CamembertTokenizer"),
    ("gte", "XLMRobertaTokenizer"),
    ("jina_embeddings_v3", "XLMRobertaTokenizer"),
    ("mpnet", "MPNetTokenizer"),
    ("roberta", "RobertaTokenizer"),
    ("xlm-roberta", "XLMRobertaTokenizer"),
];

/// How transformers builds a tokenizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// WordPiece.
    Bert,
    /// WordPiece with RoBERTa's special tokens.
    MpNet,
    /// Byte-level BPE.
    Roberta,
    /// Unigram.
    XlmRoberta,
    /// Unigram, with special tokens that no text has.
    Camembert,
    /// Unigram, with a normaliser of its own.
    Albert,
    /// `tokenizer.json` as it is.
    Unchanged,
}

/// Special tokens where no file names them.
const BERT_SPECIALS: [(&str, &str); 5] = [
    ("unk_token", "[UNK]"),
    ("sep_token", "[SEP]"),
    ("pad_token", "[PAD]"),
    ("cls_token", "[CLS]"),
    ("mask_token", "[MASK]"),
];
const ROBERTA_SPECIALS: [(&str, &str); 7] = [
    ("bos_token", "<s>"),
    ("eos_token", "</s>"),
    ("unk_token", "<unk>"),
    ("sep_token", "</s>"),
    ("pad_token", "<pad>"),
    ("cls_token", "<s>"),
    ("mask_token", "<mask>"),
];
const MPNET_SPECIALS: [(&str, &str); 7] = [
    ("bos_token", "<s>"),
    ("eos_token", "</s>"),
    ("unk_token", "[UNK]"),
    ("sep_token", "</s>"),
    ("pad_token", "<pad>"),
    ("cls_token", "<s>"),
    ("mask_token", "<mask>"),
];
const ALBERT_SPECIALS: [(&str, &str); 7] = [
    ("bos_token", "[CLS]"),
    ("eos_token", "[SEP]"),
    ("unk_token", "<unk>"),
    ("sep_token", "[SEP]"),
    ("pad_token", "<pad>"),
    ("cls_token", "[CLS]"),
    ("mask_token", "[MASK]"),
];
/// CamemBERT's special tokens without a key, where no file names others.
pub(super) const CAMEMBERT_EXTRA: [&str; 3] = ["<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"];

impl Class {
    pub(super) fn specials(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Bert => &BERT_SPECIALS,
            Self::MpNet => &MPNET_SPECIALS,
            Self::Roberta | Self::XlmRoberta | Self::Camembert => &ROBERTA_SPECIALS,
            Self::Albert => &ALBERT_SPECIALS,
            Self::Unchanged => &[],
        }
    }

    /// Whether a mask token that no file declares takes the space before it along.
    pub(super) fn mask_takes_space(self) -> bool {
        match self {
            Self::MpNet | Self::Camembert => true,
            Self::Bert | Self::Roberta | Self::XlmRoberta | Self::Albert | Self::Unchanged => false,
        }
    }

    /// The keys of the special tokens around a text, where the class and not the file decides.
    pub(super) fn around(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Bert | Self::MpNet | Self::Roberta => Some(("cls_token", "sep_token")),
            Self::XlmRoberta | Self::Camembert => Some(("bos_token", "eos_token")),
            Self::Albert | Self::Unchanged => None,
        }
    }
}
