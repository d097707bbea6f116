//! The public keys of an issuer (RFC 7517), as far as they sign tokens, and whether one signed something.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use serde::Deserialize;

/// RSA keys of up to 8,192 bits.
const MAX_RSA_BYTES: usize = 1_024;
const MAX_EXPONENT_BYTES: usize = 8;

/// How a token is signed (RFC 7518 3.1). There is no entry for shared secrets, nor for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    Es256,
    Es384,
    Rs256,
    EdDsa,
}

impl Algorithm {
    pub(super) fn named(name: &str) -> Option<Algorithm> {
        match name {
            "ES256" => Some(Algorithm::Es256),
            "ES384" => Some(Algorithm::Es384),
            "RS256" => Some(Algorithm::Rs256),
            "EdDSA" => Some(Algorithm::EdDsa),
            _ => None,
        }
    }
}

/// A key that verifies one kind of signature.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PublicKey {
    pub(super) algorithm: Algorithm,
    material: Material,
}

#[derive(Debug, PartialEq, Eq)]
enum Material {
    /// As ring takes it.
    Bytes(Vec<u8>),
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
}

/// A member of a set. What we do not use may be anything.
#[derive(Deserialize)]
pub(super) struct Jwk {
    #[serde(default)]
    pub(super) kid: Option<String>,
    kty: String,
    #[serde(default)]
    crv: Option<String>,
    #[serde(default)]
    alg: Option<String>,
    #[serde(default, rename = "use")]
    used_for: Option<String>,
    #[serde(default)]
    key_ops: Option<Vec<String>>,
    #[serde(default)]
    x: Option<String>,
    #[serde(default)]
    y: Option<String>,
    #[serde(default)]
    n: Option<String>,
    #[serde(default)]
    e: Option<String>,
}

impl Jwk {
    /// `None` for what verifies no signature that we take.
    pub(super) fn key(&self) -> Option<PublicKey> {
        let signs = self.used_for.as_deref().is_none_or(|used| used == "sig");
        let verifies = self.key_ops.as_ref().is_none_or(|ops| ops.iter().any(|op| op == "verify"));
        if !signs || !verifies {
            return None;
        }
        let part = |text: &Option<String>, bytes: usize| decoded(text.as_deref()?).filter(|part| part.len() == bytes);
        let point = |bytes: usize| {
            let (x, y) = (part(&self.x, bytes)?, part(&self.y, bytes)?);
            // The uncompressed form of SEC 1 2.3.3.
            Some(Material::Bytes([&[4][..], &x, &y].concat()))
        };
        let (algorithm, material) = match (self.kty.as_str(), self.crv.as_deref()) {
            ("EC", Some("P-256")) => (Algorithm::Es256, point(32)?),
            ("EC", Some("P-384")) => (Algorithm::Es384, point(48)?),
            ("OKP", Some("Ed25519")) => (Algorithm::EdDsa, Material::Bytes(part(&self.x, 32)?)),
            ("RSA", _) => {
                let n = decoded(self.n.as_deref()?).filter(|n| n.len() <= MAX_RSA_BYTES)?;
                let e = decoded(self.e.as_deref()?).filter(|e| e.len() <= MAX_EXPONENT_BYTES)?;
                (Algorithm::Rs256, Material::Rsa { n, e })
            }
            _ => return None,
        };
        let named = self.alg.as_deref().is_none_or(|name| Algorithm::named(name) == Some(algorithm));
        named.then_some(PublicKey { algorithm, material })
    }
}

impl PublicKey {
    /// Whether `signature` is this key's over `message`.
    pub(super) fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let verified = match (&self.material, self.algorithm) {
            (Material::Rsa { n, e }, _) => {
                RsaPublicKeyComponents { n, e }.verify(&signature::RSA_PKCS1_2048_8192_SHA256, message, signature)
            }
            (Material::Bytes(key), Algorithm::Es384) => {
                UnparsedPublicKey::new(&signature::ECDSA_P384_SHA384_FIXED, key).verify(message, signature)
            }
            (Material::Bytes(key), Algorithm::EdDsa) => {
                UnparsedPublicKey::new(&signature::ED25519, key).verify(message, signature)
            }
            (Material::Bytes(key), Algorithm::Es256 | Algorithm::Rs256) => {
                UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, key).verify(message, signature)
            }
        };
        verified.is_ok()
    }
}

fn decoded(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jwk(text: &str) -> Option<PublicKey> {
        serde_json::from_str::<Jwk>(text).unwrap().key()
    }

    /// RFC 7515 A.3: the key, the signing input and the signature of an ES256 token.
    const KEY: &str = r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;
    const INPUT: &str = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    const SIGNATURE: &str = "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";

    #[test]
    fn the_standards_own_example() {
        let key = jwk(KEY).unwrap();
        let mut signature = decoded(SIGNATURE).unwrap();
        assert!(key.signed(INPUT.as_bytes(), &signature));
        assert!(!key.signed(&INPUT.as_bytes()[1..], &signature));
        signature[40] ^= 1;
        assert!(!key.signed(INPUT.as_bytes(), &signature) && !key.signed(INPUT.as_bytes(), b""));
    }

    #[test]
    fn what_does_not_verify_is_no_key() {
        for other in [
            r#"{"kty":"oct","k":"c2VjcmV0"}"#,
            r#"{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}"#,
            r#"{"kty":"EC","crv":"secp256k1","x":"AA","y":"AA"}"#,
            r#"{"kty":"RSA","n":"AA"}"#,
            &KEY.replace("\"kty\"", "\"use\":\"enc\",\"kty\""),
            &KEY.replace("\"kty\"", "\"key_ops\":[\"sign\"],\"kty\""),
            &KEY.replace("\"kty\"", "\"alg\":\"RS256\",\"kty\""),
        ] {
            assert_eq!(jwk(other), None, "{other}");
        }
        assert!(jwk(&KEY.replace("\"kty\"", "\"alg\":\"ES256\",\"use\":\"sig\",\"d\":\"x\",\"kty\"")).is_some());
    }
}
