//! The `Stripe-Signature` header.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// `t=<time>,v1=<hex>[,v1=<hex>…]`: one signature for each secret, over `"<time>.<body>"`; the key is the whole secret.
pub fn header(secrets: &[String], time: i64, body: &[u8]) -> String {
    let mut header = format!("t={time}");
    for secret in secrets {
        header.push_str(",v1=");
        header.push_str(&sign(secret, time, body));
    }
    header
}

fn sign(secret: &str, time: i64, body: &[u8]) -> String {
    use std::fmt::Write;
    // HMAC takes keys of any length, so there is nothing to fail.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.as_bytes()) else { return String::new() };
    mac.update(time.to_string().as_bytes());
    mac.update(b".");
    mac.update(body);
    mac.finalize().into_bytes().iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    /// RFC 2104 by hand: H(key ^ opad, H(key ^ ipad, message)), for keys of at most one block.
    fn by_hand(key: &[u8], message: &[u8]) -> Vec<u8> {
        let padded = |pad: u8| (0..64).map(|at| key.get(at).copied().unwrap_or(0) ^ pad).collect::<Vec<u8>>();
        let inner = Sha256::digest([padded(0x36), message.to_vec()].concat());
        Sha256::digest([padded(0x5c), inner.to_vec()].concat()).to_vec()
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_hand_made_hmac_is_that_of_rfc_4231() {
        let vector = by_hand(b"Jefe", b"what do ya want for nothing?");
        assert_eq!(hex(&vector), "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }

    #[test]
    fn every_secret_signs_time_and_body() {
        let secrets = ["whsec_one".to_owned(), "whsec_two".to_owned()];
        let header = header(&secrets, 1_767_225_600, b"{\"id\":\"evt_1\"}");
        let signed = b"1767225600.{\"id\":\"evt_1\"}";
        let (one, two) = (hex(&by_hand(b"whsec_one", signed)), hex(&by_hand(b"whsec_two", signed)));
        assert_eq!(header, format!("t=1767225600,v1={one},v1={two}"));
    }
}
