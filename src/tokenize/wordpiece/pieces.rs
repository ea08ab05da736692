//! The pieces of a vocabulary, and a word cut into the longest of them that there are.
//!
//! Most words are a piece as a whole, so that one look-up answers; the others are cut by a look-up for each end that a
//! piece may have, longest first. All of it is one table with open addressing, of 16 bytes a slot: keys of up to seven
//! bytes stand in it as they are, which is six of seven pieces of English text; longer ones are a hash, and the piece itself
//! is compared.

use crate::tokenize::vocabulary::Vocabulary;
use std::sync::Arc;

/// Slots that a look-up passes over at most. With a half of the slots free it is some thirty; only a vocabulary that is
/// made to collide has more, and goes to the crate.
const LONGEST_PROBE: usize = 1000;
/// Bytes that a buffer must have behind a word: keys are loaded eight bytes at a time.
pub(super) const PADDING: usize = 8;

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15; // 2^64 / golden ratio, odd
/// Where a key is a hash.
const HASHED: u64 = 0xff << 56;

#[derive(Debug)]
pub(super) struct Pieces {
    slots: Vec<Slot>,
    /// Of a product of 64 bits, so many leave the number of a slot.
    shift: u32,
    vocabulary: Arc<Vocabulary>,
    /// Different tokens.
    count: usize,
    longest_bytes: usize,
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// 0: free.
    key: u64,
    id: u32,
    /// Number of the token in the vocabulary.
    token: u32,
}

impl Pieces {
    /// `None` if it cannot be had in this form.
    pub(super) fn new(vocabulary: Arc<Vocabulary>) -> Option<Self> {
        let size = (2 * vocabulary.len()).next_power_of_two().max(2);
        let mut pieces = Self {
            slots: vec![Slot::default(); size],
            shift: 64 - size.ilog2(),
            count: 0,
            longest_bytes: vocabulary.iter().map(|(token, _)| token.len()).max()?,
            vocabulary,
        };
        for i in 0..pieces.vocabulary.len() {
            let (token, id) = pieces.vocabulary.get(i);
            let key = key(token.as_bytes());
            let (at, found) = pieces.slot(key, token.as_bytes(), LONGEST_PROBE)?;
            let token = u32::try_from(i).ok()?;
            pieces.slots[at] = Slot { key, id, token };
            pieces.count += usize::from(!found);
        }
        Some(pieces)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// The longest of them.
    pub(super) fn longest_bytes(&self) -> usize {
        self.longest_bytes
    }

    /// The ids of all of them.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> {
        self.slots.iter().filter(|slot| slot.key != 0).map(|slot| slot.id)
    }

    pub(super) fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    pub(super) fn id(&self, token: &str) -> Option<u32> {
        self.find(key(token.as_bytes()), token.as_bytes())
    }

    /// The id of `buffer[start..end]`, behind which there are [`PADDING`] bytes.
    #[inline]
    pub(super) fn id_at(&self, buffer: &[u8], start: usize, end: usize) -> Option<u32> {
        let len = end - start;
        let key = if len < 8 {
            let eight = load(&buffer[start..start + 8]);
            short_key(eight & ((1 << (8 * len)) - 1), len)
        } else {
            key(&buffer[start..end])
        };
        self.find(key, &buffer[start..end])
    }

    #[inline]
    fn find(&self, key: u64, token: &[u8]) -> Option<u32> {
        match self.slot(key, token, usize::MAX) {
            Some((at, true)) => Some(self.slots[at].id),
            _ => None,
        }
    }

    /// The token's slot, or the one where it would be, and whether it is there.
    #[inline]
    fn slot(&self, key: u64, token: &[u8], most: usize) -> Option<(usize, bool)> {
        let mask = self.slots.len() - 1;
        let first = (key.wrapping_mul(MULTIPLIER) >> self.shift) as usize;
        for step in 0..most {
            let at = (first + step) & mask;
            let slot = &self.slots[at];
            if slot.key == 0 {
                return Some((at, false));
            }
            let same = || self.vocabulary.get(slot.token as usize).0.as_bytes() == token;
            if slot.key == key && (key < HASHED || same()) {
                return Some((at, true));
            }
        }
        None
    }
}

fn load(eight: &[u8]) -> u64 {
    u64::from_le_bytes(eight.try_into().expect("eight bytes"))
}

/// The bytes themselves, and how many they are; never 0.
fn short_key(bytes: u64, len: usize) -> u64 {
    bytes | (len as u64 + 1) << 56
}

fn key(token: &[u8]) -> u64 {
    let len = token.len();
    if len < 8 {
        let mut eight = [0; 8];
        eight[..len].copy_from_slice(token);
        return short_key(u64::from_le_bytes(eight), len);
    }
    let mix = |hash: u64, bytes: u64| (hash ^ bytes).wrapping_mul(MULTIPLIER).rotate_left(29);
    let hash = token[..len - 1].chunks_exact(8).fold(len as u64, |hash, eight| mix(hash, load(eight)));
    mix(hash, load(&token[len - 8..])) >> 8 | HASHED
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn pieces(tokens: &[(&str, u32)]) -> Pieces {
        let map: HashMap<String, u32> = tokens.iter().map(|&(t, id)| (t.to_owned(), id)).collect();
        Pieces::new(Vocabulary::from_map(&map).unwrap().into()).unwrap()
    }

    #[test]
    fn ids_are_those_of_the_vocabulary_and_of_nothing_else() {
        // all lengths about those where the key changes its form, with bytes of 0 among them
        let text = "abc\0\0\0defghijklmnopqrstuvwxyz\0\u{e9}\u{4e2d}".repeat(3);
        let starts: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
        let tokens: Vec<&str> = starts.iter().map(|&end| &text[..end]).collect();
        let (there, absent): (Vec<_>, Vec<_>) = (0..tokens.len()).partition(|i| i % 2 == 0);
        let map: Vec<_> = there.iter().map(|&i| (tokens[i], i as u32 * 7)).collect();
        let pieces = pieces(&map);
        assert_eq!(pieces.count(), map.len());
        let buffer = format!("--{text}{}", "x".repeat(PADDING)).into_bytes();
        for i in there {
            assert_eq!(pieces.id(tokens[i]), Some(i as u32 * 7));
            assert_eq!(pieces.id_at(&buffer, 2, 2 + tokens[i].len()), Some(i as u32 * 7));
        }
        for i in absent {
            assert_eq!(pieces.id(tokens[i]), None);
            assert_eq!(pieces.id_at(&buffer, 2, 2 + tokens[i].len()), None);
        }
    }

    #[test]
    fn the_last_of_equal_tokens_counts() {
        let vocabulary =
            Vocabulary::from_lines("vocab.txt".as_ref(), b"a\nlonger token\na  \nlonger token\n");
        let pieces = Pieces::new(vocabulary.unwrap().into()).unwrap();
        assert_eq!((pieces.count(), pieces.id("a"), pieces.id("longer token")), (2, Some(2), Some(3)));
    }

    /// Tokens whose hashes are one: found by inverting the mix, as whoever wants to harm us would.
    #[test]
    fn a_vocabulary_made_to_collide_is_refused() {
        let mut inverse = 1_u64;
        (0..6).for_each(|_| {
            inverse = inverse.wrapping_mul(2_u64.wrapping_sub(MULTIPLIER.wrapping_mul(inverse)))
        });
        let mut map = HashMap::new();
        // keys of seven ASCII bytes and a length, all with the same high bits in their product
        for i in 0_u64.. {
            let key = (i | 1 << 62).wrapping_mul(inverse);
            let bytes = key.to_le_bytes();
            if bytes[7] == 8 && bytes[..7].is_ascii() {
                map.insert(String::from_utf8(bytes[..7].to_vec()).unwrap(), i as u32);
            }
            if map.len() > LONGEST_PROBE + 1 {
                break;
            }
        }
        assert!(Pieces::new(Vocabulary::from_map(&map).unwrap().into()).is_none());
    }
}
