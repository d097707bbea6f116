//! Request ids: UUIDv7 from a worker's own store of random bytes, so that an id costs no system call.

use std::cell::RefCell;
use std::time::{SystemTime, UNIX_EPOCH};

use http::HeaderValue;
use uuid::Uuid;

/// Random bytes fetched at a time: 10 an id.
const STORE_BYTES: usize = 2_560;

/// One worker's source of request ids.
#[derive(Debug)]
pub(super) struct Ids {
    store: RefCell<(Vec<u8>, usize)>,
}

impl Ids {
    pub(super) fn new() -> Ids {
        Ids { store: RefCell::new((vec![0; STORE_BYTES], STORE_BYTES)) }
    }

    /// A fresh id and the time in it, in milliseconds since the Unix epoch.
    pub(super) fn next(&self) -> (Uuid, u64) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let mut guard = self.store.borrow_mut();
        let (store, used) = &mut *guard;
        if *used + 10 > store.len() {
            if getrandom::fill(store).is_err() {
                return (Uuid::now_v7(), now);
            }
            *used = 0;
        }
        let mut random = [0; 10];
        random.copy_from_slice(&store[*used..*used + 10]);
        *used += 10;
        (uuid::Builder::from_unix_timestamp_millis(now, &random).into_uuid(), now)
    }
}

/// As `x-request-id` shows it.
pub(super) fn header(id: Uuid) -> HeaderValue {
    let mut buffer = Uuid::encode_buffer();
    let text = id.hyphenated().encode_lower(&mut buffer);
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_version_7_and_differ() {
        let ids = Ids::new();
        let made: std::collections::HashSet<Uuid> = (0..1_000).map(|_| ids.next().0).collect();
        assert_eq!(made.len(), 1_000);
        assert!(made.iter().all(|id| id.get_version_num() == 7));
        assert_eq!(header(Uuid::nil()), "00000000-0000-0000-0000-000000000000");
    }
}
