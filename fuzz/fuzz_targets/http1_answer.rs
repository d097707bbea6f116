#![no_main]

use faregate::gateway::invariants::http1_answer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Err(violation) = http1_answer(data) {
        panic!("{violation}");
    }
});
