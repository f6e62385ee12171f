//! One program for all targets: `TARGET=head wsfuzz ...`. Each target is a function of bytes that panics when wsbouncer and
//! its oracle disagree. `tests/fuzz/run` builds and runs it.

#![no_main]

mod bytes;
mod targets;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<targets::Target> = LazyLock::new(|| {
    let name = std::env::var("TARGET").expect("TARGET names one of the targets");
    let found = targets::ALL.iter().find(|(known, _)| *known == name);
    found.unwrap_or_else(|| panic!("no target {name}")).1
});

fuzz_target!(|data: &[u8]| TARGET(data));
