//! The fuzzer of all targets. `DORMOUSE_FUZZ_TARGET` says which; the arguments are libFuzzer's.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
mod fuzzer {
    use std::process::exit;
    use std::sync::OnceLock;

    use dormouse_fuzz::Target;
    use rustix::param::page_size;
    use rustix::process::{Resource, Rlimit, setrlimit};

    /// What an input may make a parser ask for, and libFuzzer for its corpus: a length that is believed
    /// without a bound asks for more.
    const MEMORY_BYTES: u64 = 256 << 20;

    static TARGET: OnceLock<Target> = OnceLock::new();

    /// The target that the environment names.
    fn target() -> &'static Target {
        TARGET.get_or_init(|| {
            let name = std::env::var("DORMOUSE_FUZZ_TARGET").unwrap_or_default();
            Target::named(&name).unwrap_or_else(|| {
                eprintln!("there is no target {name:?}: run `cargo xtask fuzz`");
                exit(2)
            })
        })
    }

    /// Bounds the address space: what asks for more ends the process, which libFuzzer reports. (Its own
    /// bound on allocations works only with a sanitizer.)
    fn bound_memory() {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let pages = statm.split(' ').next().and_then(|pages| pages.parse().ok());
        let used: u64 = pages.unwrap_or(0) * page_size() as u64;
        let limit = Some(used + MEMORY_BYTES);
        let limit = Rlimit {
            current: limit,
            maximum: limit,
        };
        if let Err(error) = setrlimit(Resource::As, limit) {
            eprintln!("cannot bound the fuzzer's memory: {error}");
            exit(2)
        }
    }

    libfuzzer_sys::fuzz_target!(
        init: {
            target();
            bound_memory();
        },
        |bytes: &[u8]| (target().run)(bytes)
    );
}

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    eprintln!("this is a fuzzer only where it is built as one: run `cargo xtask fuzz`");
    std::process::ExitCode::FAILURE
}
