#![no_main]

use faregate::gateway::invariants::headers;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Err(violation) = headers(data) {
        panic!("{violation}");
    }
});
