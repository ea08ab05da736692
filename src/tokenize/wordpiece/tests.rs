//! The crate is the oracle: the same ids for every text, from the same parts.

use super::*;
use crate::tokenize::config::{self, Bert, Kind, Recipe};
use crate::tokenize::text::{Scratch as TextScratch, TextTokenizer};
use crate::tokenize::{Side, build, hf};
use proptest::prelude::*;
use std::collections::HashMap;
use std::path::PathBuf;
use tokenizers::normalizers::{BertNormalizer, Lowercase, NormalizerWrapper, Sequence};
use tokenizers::{NormalizedString, Normalizer as _};

fn own_ids(own: &WordPiece, text: &str) -> Vec<u32> {
    let mut ids = Vec::new();
    own.encode(text, &mut Scratch::default(), &mut Tokens::new(&mut ids, usize::MAX, Side::Right));
    ids
}

fn crate_ids(inner: &tokenizers::Tokenizer, text: &str) -> Vec<u32> {
    inner.encode_fast(text, false).unwrap().get_ids().to_vec()
}

fn assert_same(own: &WordPiece, inner: &tokenizers::Tokenizer, text: &str, what: &str) {
    let (found, wanted) = (own_ids(own, text), crate_ids(inner, text));
    if found != wanted {
        let at = found.iter().zip(&wanted).take_while(|(a, b)| a == b).count();
        let part = |ids: &[u32]| ids.iter().skip(at).take(8).copied().collect::<Vec<_>>();
        panic!("{what}: {text:.300?}: token {at}: {:?}, the crate {:?}", part(&found), part(&wanted));
    }
}

fn recipe(vocabulary: Vocabulary) -> Recipe {
    let bert = Bert {
        vocabulary: Arc::new(vocabulary),
        lowercase: true,
        strip_accents: None,
        chinese_chars: true,
        unk: "[UNK]".into(),
    };
    Recipe {
        path: PathBuf::from("vocab.txt"),
        kind: Kind::Bert(bert),
        around: Some(("[UNK]".into(), "[UNK]".into())),
        separators: 1,
        pair_types: true,
        types: false,
        added: Vec::new(),
        split_special_tokens: false,
        cut: Side::Right,
    }
}

fn vocabulary(tokens: impl IntoIterator<Item = String>) -> Vocabulary {
    let mut all: Vec<String> = std::iter::once("[UNK]".into()).chain(tokens).collect();
    let mut seen = HashSet::new();
    all.retain(|token| seen.insert(token.clone()));
    let map: HashMap<String, u32> = all.into_iter().zip(0..).collect();
    Vocabulary::from_map(&map).unwrap()
}

/// All flags: lower-casing in front, then those of BERT's normalizer.
fn normalizers() -> impl Iterator<Item = NormalizerWrapper> {
    (0..32).map(|bits: u32| {
        let flag = |i: u32| bits >> i & 1 == 1;
        let bert = BertNormalizer::new(flag(0), flag(1), Some(flag(2)), flag(3));
        let parts = [NormalizerWrapper::Lowercase(Lowercase), NormalizerWrapper::BertNormalizer(bert)];
        let skipped = usize::from(!flag(4));
        NormalizerWrapper::Sequence(Sequence::new(parts.into_iter().skip(skipped).collect()))
    })
}

/// Every code point that is assigned, or near one that is: alone, and with letters and marks about it.
#[test]
fn every_code_point_matches_the_crate() {
    let all = || ('\0'..='\u{32fff}').chain('\u{e0000}'..='\u{e0fff}').chain(['\u{f0000}', '\u{10ffff}']);
    // of the blocks of letters that are all alike, and of what no flag changes, BERT's two sets of flags say enough
    let alike = |c: &char| Properties::of(*c).none() || matches!(c, '\u{3400}'..='\u{d7ff}' | '\u{20000}'..);
    let (alike, special): (Vec<char>, Vec<char>) = all().partition(alike);
    assert!(special.len() > 5_000 && alike.len() > 100_000);

    let each = all().flat_map(|c| [c.to_string(), format!("##{c}")]);
    let mut inner = hf::crate_tokenizer(&recipe(vocabulary(each)), false).unwrap();
    let texts = |chars: &[char]| -> Vec<String> {
        let about = |c: &char| format!("{c} a{c}b {c}\u{301} \u{302e}{c}\u{316}\n");
        chars.chunks(64).map(|chars| chars.iter().map(about).collect()).collect()
    };
    let (special, alike) = (texts(&special), texts(&alike));
    let of_bert = [true, false].map(|lowercase| BertNormalizer::new(true, true, Some(lowercase), lowercase));
    let of_bert = of_bert.map(NormalizerWrapper::BertNormalizer);
    let both = of_bert.into_iter().map(|normalizer| (normalizer, &alike));
    for (normalizer, texts) in both.chain(normalizers().map(|normalizer| (normalizer, &special))) {
        let what = format!("{normalizer:?}");
        inner.with_normalizer(Some(normalizer)).unwrap();
        let own = hf::own(&inner).unwrap();
        texts.iter().for_each(|text| assert_same(&own, &inner, text, &what));
    }
}

/// Characters at which something happens, letters, and what added tokens are made of.
const INTERESTING: &str = "aabbccAB  \t\n\r#'!.,[]<>_-0\0\u{7f}\u{85}\u{a0}\u{ad}\u{df}\u{e9}\u{c9}\u{130}\u{1e9e}\u{3a3}\u{3c2}\u{1c5}\u{fb01}\
    \u{301}\u{316}\u{302e}\u{345}\u{f71}\u{f72}\u{f73}\u{f74}\u{1bab}\u{37e}\u{1fef}\u{340}\u{2126}\u{ac01}\u{d7a3}\u{1100}\
    \u{4e2d}\u{9fff}\u{a000}\u{2b820}\u{2b920}\u{f900}\u{2f81a}\u{3000}\u{2028}\u{200b}\u{200d}\u{feff}\u{fffd}\u{e000}\u{1f600}\u{20dd}\u{16fe4}\u{10400}";

fn text(longest: usize) -> impl Strategy<Value = String> {
    let chars: Vec<char> = INTERESTING.chars().collect();
    let one = prop_oneof![8 => prop::sample::select(chars), 1 => any::<char>()];
    prop::collection::vec(one, 0..longest).prop_map(|chars| chars.into_iter().collect())
}

/// Pieces that texts have: cut out of the interesting characters, in lower case too.
fn tokens() -> impl Strategy<Value = Vec<String>> {
    let piece = (text(5), any::<bool>(), any::<bool>()).prop_map(|(text, lower, inner)| {
        let text = if lower { text.to_lowercase() } else { text };
        if inner { format!("##{text}") } else { text }
    });
    let letters: Vec<String> = INTERESTING
        .chars()
        .flat_map(|c| c.to_lowercase().chain([c]))
        .flat_map(|c| [c.to_string(), format!("##{c}")])
        .collect();
    (
        prop::collection::vec(piece, 0..30),
        prop::sample::subsequence(letters.clone(), letters.len() / 2..letters.len()),
    )
        .prop_map(|(pieces, letters)| pieces.into_iter().chain(letters).collect())
}

fn added(contents: impl Strategy<Value = String>) -> impl Strategy<Value = AddedToken> {
    (contents, any::<[bool; 5]>()).prop_map(
        |(content, [single_word, lstrip, rstrip, normalized, special])| AddedToken {
            id: None,
            content,
            single_word,
            lstrip,
            rstrip,
            normalized,
            special,
        },
    )
}

fn any_recipe() -> impl Strategy<Value = Recipe> {
    let contents = prop_oneof![
        text(4),
        prop::sample::select(vec![
            "[SEP]", "[UNK]", "<a>", "a", "ab", "A", "b c", " a", "\u{4e2d}", "\u{e9}", "#"
        ])
        .prop_map(String::from),
    ];
    let added = prop::collection::vec(added(contents), 0..5);
    (tokens(), added, any::<[bool; 4]>(), any::<Option<bool>>()).prop_map(
        |(tokens, added, [lowercase, chinese_chars, split, special], strip_accents)| {
            let mut recipe = recipe(vocabulary(tokens));
            let Kind::Bert(bert) = &mut recipe.kind else { unreachable!() };
            (bert.lowercase, bert.chinese_chars, bert.strip_accents) =
                (lowercase, chinese_chars, strip_accents);
            recipe.added = added;
            recipe.added.iter_mut().for_each(|token| token.special &= special);
            recipe.split_special_tokens = split;
            recipe
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1500) })]

    #[test]
    fn prop_ids_match_the_crate(recipe in any_recipe(), texts in prop::collection::vec(text(60), 1..8), first in any::<bool>()) {
        let inner = hf::crate_tokenizer(&recipe, first);
        let built = build::build(&recipe, first, usize::MAX);
        match (inner, built) {
            (Ok(inner), Ok((TextTokenizer::WordPiece(own), ..))) => {
                for text in texts {
                    prop_assert_eq!(own_ids(&own, &text), crate_ids(&inner, &text), "{:?}", text);
                }
                for id in 0..inner.get_vocab_size(true) as u32 {
                    let special = inner.get_added_tokens_decoder().get(&id).is_some_and(|token| token.special);
                    prop_assert_eq!(own.added(id).is_some_and(|token| token.special), special);
                    let token = inner.get_added_tokens_decoder().get(&id).map(|token| token.content.clone());
                    prop_assert_eq!(own.token(id), token.or_else(|| inner.id_to_token(id)));
                }
                // and from the crate's own parts
                let own = hf::own(&inner).unwrap();
                for text in ["a<a>b [SEP]", "\u{4e2d}\u{e9}A b c"] {
                    prop_assert_eq!(own_ids(&own, text), crate_ids(&inner, text), "{:?}", text);
                }
            }
            (Ok(inner), Ok((TextTokenizer::Crate(_), ..))) => {
                // only where what the crate does is odd
                let normalizer = inner.get_normalizer().unwrap();
                let form = |token: &tokenizers::AddedToken| {
                    let mut form = NormalizedString::from(&token.content[..]);
                    if token.normalized {
                        normalizer.normalize(&mut form).unwrap();
                    }
                    form.get().to_owned()
                };
                let decoder = inner.get_added_tokens_decoder();
                let forms: Vec<_> = decoder.values().map(|token| (token.normalized, form(token))).collect();
                let alike = forms.iter().collect::<HashSet<_>>().len() < forms.len();
                let strips = decoder.values().any(|token| token.lstrip || token.rstrip);
                let odd = |form: &str| form.is_empty() || strips && form.trim() != form;
                prop_assert!(alike || forms.iter().any(|(_, form)| odd(form)));
            }
            (Err(wanted), Err(found)) => prop_assert_eq!(found.to_string(), wanted.to_string()),
            (inner, built) => prop_assert!(false, "{:?}, {:?}", inner.is_ok(), built),
        }
    }

    #[test]
    fn prop_ids_of_other_models_match_the_crate(
        tokens in tokens(),
        texts in prop::collection::vec(text(40), 1..6),
        prefix in prop::sample::select(vec!["", "##", "a", "\u{e9}\u{4e2d}"]),
        max_chars in 1_usize..12,
        clean_text in any::<bool>(),
    ) {
        let mut inner = hf::crate_tokenizer(&recipe(vocabulary(tokens)), false).unwrap();
        let tokenizers::ModelWrapper::WordPiece(mut model) = inner.get_model().clone() else { unreachable!() };
        (model.continuing_subword_prefix, model.max_input_chars_per_word) = (prefix.into(), max_chars);
        inner.with_model(model);
        inner.with_normalizer(Some(BertNormalizer::new(clean_text, true, Some(false), true))).unwrap();
        let own = hf::own(&inner).unwrap();
        for text in texts {
            prop_assert_eq!(own_ids(&own, &text), crate_ids(&inner, &text), "{:?}", text);
        }
    }
}

/// Added tokens of the forms that are looked for in normalised text, and long words, across the places where a long text is
/// read in pieces.
#[test]
fn long_texts_match_the_crate() {
    let words = ["ab", "##b", "a", "##a", "b", "\u{e9}", "e", "."].map(String::from);
    let token = |content: &str, normalized, lstrip| AddedToken {
        id: None,
        content: content.into(),
        single_word: false,
        lstrip,
        rstrip: false,
        normalized,
        special: false,
    };
    for (content, normalized) in [("<new>", true), ("b a", true), ("<new>", false)] {
        let mut recipe = recipe(vocabulary(words.clone()));
        recipe.added = vec![token(content, normalized, true)];
        let inner = hf::crate_tokenizer(&recipe, false).unwrap();
        let own = hf::own(&inner).unwrap();
        let unit = "ab  abab e\u{301}<NEW> <new>b a. \u{302e}\n";
        for text in [unit.repeat(12_000), "ab".repeat(100_000), "a".repeat(100) + &"ab ".repeat(50_000)] {
            assert_same(&own, &inner, &text, content);
        }
        for n in 95..105 {
            assert_same(&own, &inner, &format!("{} {}", "a".repeat(n), "\u{e9}".repeat(n)), content);
            assert_same(&own, &inner, &format!("{}{}", "\u{3b1}".repeat(100), "a".repeat(n * 4)), content);
        }
    }
}

/// Every fixture of the BERT kind is ours, and gives the crate's ids on the goldens' texts.
#[test]
fn fixtures_are_ours_and_match_the_crate() {
    let mut folders = 0;
    for folder in std::fs::read_dir(config::fixtures().join("tokenizers")).unwrap() {
        let folder = folder.unwrap().path();
        let recipe = config::read(&folder).unwrap();
        for lowercase_first in [false, true] {
            let inner = hf::crate_tokenizer(&recipe, lowercase_first).unwrap();
            let (text, ..) = build::build(&recipe, lowercase_first, 1000).unwrap();
            let TextTokenizer::WordPiece(own) = text else { panic!("{}: the crate's", folder.display()) };
            let what = folder.display().to_string();
            config::fixture_texts().iter().for_each(|text| assert_same(&own, &inner, text, &what));
        }
        folders += 1;
    }
    assert!(folders > 30, "{folders}");
}

#[test]
fn what_is_not_exact_goes_to_the_crate() {
    let words = || vocabulary(["a", "##a", "b"].map(String::from));
    let token = |content: &str, normalized| AddedToken {
        id: None,
        content: content.into(),
        single_word: false,
        lstrip: false,
        rstrip: false,
        normalized,
        special: false,
    };
    let is_own = |recipe: &Recipe| {
        matches!(build::build(recipe, false, usize::MAX), Ok((TextTokenizer::WordPiece(_), ..)))
    };
    let mut recipe = recipe(words());
    assert!(is_own(&recipe));
    // very many added tokens that begin alike
    recipe.added = (0..300).map(|i| token(&format!("<{i}>"), false)).collect();
    assert!(!is_own(&recipe));
    let (built, ..) = build::build(&recipe, false, usize::MAX).unwrap();
    let mut ids = Vec::new();
    let mut out = Tokens::new(&mut ids, usize::MAX, Side::Right);
    built.encode("a", "<7>a", &mut TextScratch::default(), &mut out).unwrap();
    let inner = hf::crate_tokenizer(&recipe, false).unwrap();
    assert_eq!(ids, crate_ids(&inner, "a<7>a"));
    assert_eq!(ids[1], 4 + 7, "behind the vocabulary");
    // two that are one when they are normalised: which of them is found is the crate's to say
    recipe.added = vec![token("<New>", true), token("<new>", true)];
    assert!(!is_own(&recipe));
    // an empty pattern, of which the crate says what is wrong
    recipe.added = vec![token("\u{301}", true)];
    assert!(!is_own(&recipe));
}
