#![no_main]

use faregate::gateway::meter::invariants::sse_meter;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Err(violation) = sse_meter(data) {
        panic!("{violation}");
    }
});
