//! Two keys for each audience, of which one signs.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience {
    Normal,
    Restricted,
    Anonymous,
}

impl Audience {
    pub(super) fn path(self) -> &'static str {
        match self {
            Audience::Normal => "",
            Audience::Restricted => "-restricted-users",
            Audience::Anonymous => "-anonymous-users",
        }
    }

    pub(super) fn suffix(self) -> &'static str {
        match self {
            Audience::Normal => "",
            Audience::Restricted => ":restricted",
            Audience::Anonymous => ":anon",
        }
    }
}

struct Key {
    kid: String,
    pair: Option<EcdsaKeyPair>,
}

impl Key {
    /// Without randomness it signs nothing.
    fn new() -> Key {
        let random = SystemRandom::new();
        let mut kid = [0; 9];
        let _ = random.fill(&mut kid);
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).ok();
        let pair = document.and_then(|document| {
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random).ok()
        });
        Key { kid: URL_SAFE_NO_PAD.encode(kid), pair }
    }

    fn public(&self) -> Value {
        let point = self.pair.as_ref().map(|pair| pair.public_key().as_ref().to_vec()).unwrap_or_default();
        let part = |from: usize| URL_SAFE_NO_PAD.encode(point.get(from..from + 32).unwrap_or_default());
        json!({"kty": "EC", "crv": "P-256", "x": part(1), "y": part(33), "kid": self.kid, "alg": "ES256", "use": "sig"})
    }
}

pub(super) struct Ring {
    normal: [Key; 2],
    restricted: [Key; 2],
    anonymous: [Key; 2],
}

impl Ring {
    pub(super) fn new() -> Ring {
        let pair = || [Key::new(), Key::new()];
        Ring { normal: pair(), restricted: pair(), anonymous: pair() }
    }

    fn of(&self, audience: Audience) -> &[Key; 2] {
        match audience {
            Audience::Normal => &self.normal,
            Audience::Restricted => &self.restricted,
            Audience::Anonymous => &self.anonymous,
        }
    }

    pub(super) fn signing(&self, audience: Audience) -> String {
        self.of(audience)[0].kid.clone()
    }

    pub(super) fn rotate(&mut self) {
        for keys in [&mut self.normal, &mut self.restricted, &mut self.anonymous] {
            keys[0] = Key::new();
            keys.swap(0, 1);
        }
    }

    pub(super) fn set(&self, restricted: bool, anonymous: bool) -> Value {
        let mut keys: Vec<Value> = self.normal.iter().map(Key::public).collect();
        keys.extend(self.restricted.iter().filter(|_| restricted).map(Key::public));
        keys.extend(self.anonymous.iter().filter(|_| anonymous).map(Key::public));
        json!({ "keys": keys })
    }

    pub(super) fn sign(&self, audience: Audience, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(header), part(claims));
        let pair = self.of(audience)[0].pair.as_ref();
        let signature = pair.and_then(|pair| pair.sign(&SystemRandom::new(), message.as_bytes()).ok());
        let signature = signature.map(|signature| URL_SAFE_NO_PAD.encode(signature.as_ref())).unwrap_or_default();
        format!("{message}.{signature}")
    }
}

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// The beginning of the time in message ids.
const KSUID_EPOCH_S: i64 = 1_400_000_000;

/// An id as Svix gives its messages: `msg_` and a KSUID, which begins with the time; messages of one second follow each
/// other by their number.
pub(super) fn ksuid(now_s: i64, number: u64) -> String {
    let mut bytes = [0_u8; 20];
    let _ = SystemRandom::new().fill(&mut bytes[12..]);
    let seconds = u32::try_from(now_s - KSUID_EPOCH_S).unwrap_or(0);
    bytes[..4].copy_from_slice(&seconds.to_be_bytes());
    bytes[4..12].copy_from_slice(&(number << 40).to_be_bytes());
    let mut text = [0_u8; 27];
    for place in text.iter_mut().rev() {
        let mut rest = 0_u32;
        for byte in &mut bytes {
            let value = rest * 256 + u32::from(*byte);
            *byte = u8::try_from(value / 62).unwrap_or(0);
            rest = value % 62;
        }
        *place = BASE62[rest as usize];
    }
    format!("msg_{}", String::from_utf8_lossy(&text))
}
