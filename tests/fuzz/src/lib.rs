//! Fuzz targets for everything of a snapshot that is parsed: see README.md.
#![forbid(unsafe_code)]

use std::convert::Infallible;

use dormouse_snapshot::fuzzing;
use dormouse_vmm::{HostProfile, VmState};

/// Something that parses bytes which may come from anybody.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// Parses an input. Panics where it finds something wrong with the parser.
    pub run: fn(&[u8]),
}

/// All there are.
pub const TARGETS: [Target; 5] = [
    Target {
        name: "header",
        run: fuzzing::state_file,
    },
    Target {
        name: "manifest",
        run: fuzzing::manifest,
    },
    Target {
        name: "state",
        run: state,
    },
    Target {
        name: "working-set",
        run: fuzzing::working_set,
    },
    Target {
        name: "pack",
        run: fuzzing::pack,
    },
];

impl Target {
    /// The target with a name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        TARGETS.into_iter().find(|target| target.name == name)
    }
}

/// The state of a virtual machine, and the checks before it is restored.
fn state(bytes: &[u8]) {
    let Some(state) = fuzzing::state::<VmState>(bytes) else {
        return;
    };
    let host = HostProfile {
        vendor: "GenuineIntel".to_owned(),
        signature: 0,
        kvm_flavour: "intel".to_owned(),
        features: [0; 7],
        tsc_khz: 2_000_000,
        emulated_ring0: false,
        tsc_settable: true,
    };
    // Whether it fits is its own affair; what counts is that saying so has an end.
    for host in [&host, state.host()] {
        if let Err(error) = state.check(host) {
            assert!(error.to_string().len() < 5000, "{error}");
        }
    }
    let _ = (state.placement(), state.registers(), state.load_address());
    let _ = state.describe();
    // Page tables that lead back into themselves, from wherever CR3 points.
    let read = |page: u64, bytes: &mut [u8; 4096]| {
        let entry = (page << 12 | 0x67).to_le_bytes();
        bytes.as_chunks_mut().0.fill(entry);
        Ok::<_, Infallible>(())
    };
    let Ok(_) = state.table_pages(read);
    for address in [0, state.load_address(), 1 << 47, u64::MAX] {
        let Ok(_) = state.translate(address, read);
        let Ok(_) = state.page_at(address, read);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// What a fuzzer has found once is tried with every test run, and without a fuzzer.
    #[test]
    fn every_input_of_the_corpus_passes() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
        for target in TARGETS {
            let mut inputs = 0;
            for entry in fs::read_dir(corpus.join(target.name)).expect("a corpus") {
                let path = entry.expect("an input").path();
                eprintln!("{}", path.display());
                (target.run)(&fs::read(&path).expect("an input"));
                inputs += 1;
            }
            assert!(inputs > 0, "{} has no corpus", target.name);
        }
        let folders = fs::read_dir(&corpus).expect("the corpora").count();
        assert_eq!(folders, TARGETS.len(), "a corpus without a target");
    }

    /// The seeds are snapshots that can be read: from them a fuzzer reaches all of a parser.
    #[test]
    fn the_golden_state_is_one() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../snapshots/golden/vm-state");
        let bytes = fs::read(golden).expect("the golden state");
        let read = fuzzing::state::<VmState>(&bytes).expect("a state");
        assert_eq!(read.host().vendor, "GenuineIntel");
    }
}
