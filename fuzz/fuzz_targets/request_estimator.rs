#![no_main]

use faregate::gateway::meter::invariants::request_estimator;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Err(violation) = request_estimator(data) {
        panic!("{violation}");
    }
});
