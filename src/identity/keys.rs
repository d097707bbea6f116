//! API keys: `fg_live_`, `fg_test_` or `fg_srv_`, then 24 random characters (142 bits), then 6 that check the rest.
//!
//! The check (CRC-32 in base 62) refuses typos and garbage without any look-up. It is no secret: what protects a key is
//! its randomness, and that only its SHA-256 is kept.

use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::config::Secret;
use crate::ledger::{AccountId, Micros};
use crate::store::{KeyKind, KeyRow};

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const RANDOM_CHARS: usize = 24;
/// 62^6 is above 2^32.
const CHECK_CHARS: usize = 6;
/// What people see of a key: its kind and its first random characters, which leaves 118 bits unknown.
const SHOWN_CHARS: usize = 4;

/// SHA-256 of a whole key.
pub type KeyHash = [u8; 32];

/// The operating system gave no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("no random bytes for a key: {0}")]
pub struct NoRandomness(#[from] getrandom::Error);

/// A key that was just made. Its text is shown once and kept nowhere.
#[derive(Debug)]
pub struct NewKey {
    pub text: Secret,
    kind: KeyKind,
}

impl NewKey {
    pub fn generate(kind: KeyKind) -> Result<NewKey, NoRandomness> {
        let mut text = String::with_capacity(64);
        text.push_str(kind_prefix(kind));
        push_random(&mut text, RANDOM_CHARS)?;
        text.extend(check_of(&text).map(char::from));
        Ok(NewKey { text: Secret::new(text), kind })
    }

    /// A key made before; `None` when the text is no key.
    pub fn from_text(text: Secret) -> Option<NewKey> {
        let kind = parse(text.reveal())?;
        Some(NewKey { text, kind })
    }

    /// The row to store. `user` is `None` for service keys.
    pub fn row(&self, id: String, user: Option<AccountId>, name: String, created_at: Micros) -> KeyRow {
        let text = self.text.reveal();
        let shown = kind_prefix(self.kind).len() + SHOWN_CHARS;
        KeyRow {
            id,
            hash: hash(text),
            prefix: text.chars().take(shown).collect(),
            kind: self.kind,
            user,
            name,
            created_at,
            revoked_at: None,
            expires_at: None,
            last_used_at: None,
            budget: None,
            models: None,
        }
    }
}

/// An id for a key: safe to show, in the order of making.
pub fn new_key_id() -> String {
    format!("key_{}", Uuid::now_v7().simple())
}

/// The kind of a well-formed key; `None` for anything else, such as a key with a typo.
pub fn parse(text: &str) -> Option<KeyKind> {
    let kind = [KeyKind::Live, KeyKind::Test, KeyKind::Service]
        .into_iter()
        .find(|kind| text.starts_with(kind_prefix(*kind)))?;
    let body = text.get(kind_prefix(kind).len()..)?;
    if body.len() != RANDOM_CHARS + CHECK_CHARS || !body.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    let (checked, check) = text.split_at_checked(text.len() - CHECK_CHARS)?;
    (check_of(checked) == check.as_bytes()).then_some(kind)
}

/// How a key is known at rest.
pub fn hash(text: &str) -> KeyHash {
    Sha256::digest(text.as_bytes()).into()
}

fn kind_prefix(kind: KeyKind) -> &'static str {
    match kind {
        KeyKind::Live => "fg_live_",
        KeyKind::Test => "fg_test_",
        KeyKind::Service => "fg_srv_",
    }
}

fn push_random(text: &mut String, count: usize) -> Result<(), NoRandomness> {
    // 248 = 4 * 62: bytes above it would favour the first characters, and are drawn again.
    let mut wanted = count;
    while wanted > 0 {
        let mut bytes = [0_u8; 32];
        getrandom::fill(&mut bytes)?;
        for byte in bytes.into_iter().filter(|byte| *byte < 248).take(wanted) {
            text.push(char::from(BASE62[usize::from(byte % 62)]));
            wanted -= 1;
        }
    }
    Ok(())
}

fn check_of(text: &str) -> [u8; CHECK_CHARS] {
    let mut rest = crc32fast::hash(text.as_bytes());
    std::array::from_fn(|_| {
        let digit = BASE62[(rest % 62) as usize];
        rest /= 62;
        digit
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_key_reads_back() {
        for kind in [KeyKind::Live, KeyKind::Test, KeyKind::Service] {
            let key = NewKey::generate(kind).unwrap();
            let text = key.text.reveal();
            assert_eq!(parse(text), Some(kind), "{text}");
            let row = key.row(new_key_id(), None, "name".into(), 1);
            assert_eq!(row.hash, hash(text));
            assert!(text.starts_with(&row.prefix));
            assert_eq!(row.prefix.len(), kind_prefix(kind).len() + SHOWN_CHARS);
        }
        let (one, two) = (NewKey::generate(KeyKind::Live).unwrap(), NewKey::generate(KeyKind::Live).unwrap());
        assert_ne!(one.text, two.text);
    }

    #[test]
    fn typos_and_garbage_are_seen_without_a_look_up() {
        let key = NewKey::generate(KeyKind::Live).unwrap();
        let text = key.text.reveal();
        for index in 0..text.len() {
            let mut typo = text.as_bytes().to_vec();
            typo[index] = if typo[index] == b'x' { b'y' } else { b'x' };
            assert_eq!(parse(std::str::from_utf8(&typo).unwrap()), None, "a typo at {index}");
        }
        let longer = format!("{text}0");
        let shorter = &text[..text.len() - 1];
        let upper = text.to_uppercase();
        let other_kind = text.replace("live", "test");
        for garbage in
            ["", "fg_live_", "sk-abc", "fg_srv_é", "fg_live_éééééééééééééééé", &longer, shorter, &upper, &other_kind]
        {
            assert_eq!(parse(garbage), None, "{garbage:?}");
        }
    }
}
