//! Secrets of links and sessions: 256 random bits, of which only the hash is kept.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use crate::config::Secret;
use crate::ledger::{AccountId, Micros};
use crate::store::sessions::SecretHash;
use crate::store::{SharedStore, StoreError};

const RANDOM_BYTES: usize = 32;
/// The length of the text of so many bytes.
const TEXT_CHARS: usize = 43;

#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("no random bytes for a secret: {0}")]
    Randomness(#[from] getrandom::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// So many milliseconds from now.
pub(crate) fn from_now(ms: u64) -> Micros {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Micros::try_from(now.saturating_add(Duration::from_millis(ms)).as_micros()).unwrap_or(Micros::MAX)
}

/// A new secret.
pub(crate) fn generate() -> Result<Secret, getrandom::Error> {
    let mut bytes = [0_u8; RANDOM_BYTES];
    getrandom::fill(&mut bytes)?;
    Ok(Secret::new(URL_SAFE_NO_PAD.encode(bytes)))
}

/// How a secret is known at rest; `None` for a text that is none. `pepper` is what it ends with, such as the operator's
/// token: with another one, the secret is unknown.
pub(crate) fn hash(text: &str, pepper: &[u8]) -> Option<SecretHash> {
    let possible =
        text.len() == TEXT_CHARS && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    possible.then(|| {
        let mut hasher = Sha256::new();
        hasher.update(text.as_bytes());
        hasher.update(pepper);
        hasher.finalize().into()
    })
}

/// Makes a link that signs this user in once: the page's address with the secret in its fragment, which browsers send to
/// nobody, so that it is in no log and no mail scanner can use it up by opening it.
pub(crate) async fn link(
    store: &SharedStore,
    page: &str,
    user: &AccountId,
    expires_at: Micros,
) -> Result<Secret, LinkError> {
    let secret = generate()?;
    let hash = hash(secret.reveal(), &[]).ok_or(StoreError::Invalid("a secret"))?;
    store.add_link(hash, user, expires_at).await?;
    Ok(Secret::new(format!("{page}#link={}", secret.reveal())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_a_hash_of_its_own_and_other_texts_have_none() {
        let (one, two) = (generate().unwrap(), generate().unwrap());
        assert_ne!(hash(one.reveal(), &[]), hash(two.reveal(), &[]));
        assert_ne!(hash(one.reveal(), b"a"), hash(one.reveal(), b"b"));
        assert!(hash(one.reveal(), &[]).is_some());
        for wrong in ["", "x", &"x".repeat(44), &format!("{} ", "x".repeat(42))] {
            assert_eq!(hash(wrong, &[]), None);
        }
    }
}
