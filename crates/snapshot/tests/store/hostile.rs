//! Damaged and forged files: a typed error or the right content, never anything else.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use crate::support::{
    Sample, State, folder, name, names, open_writable, overwrite, packs, temp_store,
};
use dormouse_snapshot::{
    Digest, Error, FunctionName, Result, SnapshotId, Store, Verified, WorkingSet,
};
use proptest::prelude::*;

const HEADER_BYTES: usize = 256;

/// A store with one good snapshot, whose files a test spoils.
struct Victim {
    _dir: tempfile::TempDir,
    store: Store,
    function: FunctionName,
    id: SnapshotId,
    sample: Sample,
}

impl Victim {
    fn new() -> Self {
        let (dir, store) = temp_store();
        let (function, sample) = (name("victim"), Sample::small(1));
        let id = sample.publish(&store, &function).unwrap();
        let set = WorkingSet::from_touched([9, 3, 4, 100], [4, 149]);
        store.save_working_set(&function, &id, &set).unwrap();
        Self {
            _dir: dir,
            store,
            function,
            id,
            sample,
        }
    }

    /// The names of its files.
    fn files(&self) -> Vec<String> {
        names(&folder(&self.store, &self.function, &self.id))
    }

    fn pack(&self) -> String {
        packs(&folder(&self.store, &self.function, &self.id)).remove(0)
    }

    fn path(&self, file: &str) -> PathBuf {
        folder(&self.store, &self.function, &self.id).join(file)
    }

    fn content(&self, file: &str) -> Vec<u8> {
        fs::read(self.path(file)).unwrap()
    }

    /// Opens and reads everything: the right content or an error.
    fn read(&self) -> Result<()> {
        let snapshot = self.store.open_newest::<State>(&self.function)?;
        self.sample.check(&snapshot)?;
        match snapshot.working_set_error {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn verify(&self) -> Result<Verified> {
        self.store.verify(&self.function)
    }

    /// Puts `content` into `file`, expects that this is noticed, and makes it good again.
    fn expect_noticed(&self, file: &str, content: &[u8]) -> Error {
        let good = self.content(file);
        overwrite(&self.path(file), content);
        let error = self.verify().expect_err(file);
        let text = error.to_string();
        assert!(
            text.contains(self.path(file).to_str().unwrap()),
            "{file}: {text}"
        );
        assert!(text.len() < 600 && !text.contains('\n'), "{text:?}");
        // Reading either fails as well or does not depend on what was spoiled.
        let _ = self.read();
        let entries = self.store.list().unwrap();
        assert_eq!(entries.len(), 1, "a broken snapshot is still listed");
        overwrite(&self.path(file), &good);
        error
    }

    /// Writes `snapshot.dms` with its digests made right, as a forger would.
    fn forge(&self, mut header: Vec<u8>, body: &[u8]) {
        header[144..176].copy_from_slice(Digest::of(body).as_bytes());
        let digest = Digest::of(&header[..224]);
        header[224..].copy_from_slice(digest.as_bytes());
        overwrite(&self.path("snapshot.dms"), &[&header, body].concat());
    }
}

#[test]
fn truncation_and_growth_of_every_file() {
    let victim = Victim::new();
    for file in victim.files() {
        let file = file.as_str();
        let good = victim.content(file);
        let length = good.len();
        let near_start = 0..length.min(300);
        let spread = (0..60).map(|n| n * length / 60);
        for length in near_start
            .step_by(if file == "snapshot.dms" { 1 } else { 7 })
            .chain(spread)
        {
            victim.expect_noticed(file, &good[..length]);
        }
        victim.expect_noticed(file, &good[..length - 1]);
        victim.expect_noticed(file, &[good.as_slice(), &[0]].concat());
        victim.expect_noticed(file, &[good.as_slice(), &[0; 4096]].concat());
    }
    victim.read().unwrap();
    victim.verify().unwrap();
}

#[test]
fn every_byte_of_the_small_files_counts() {
    let victim = Victim::new();
    for file in ["snapshot.dms", "manifest.json", "working-set"] {
        let mut content = victim.content(file);
        for at in 0..content.len() {
            content[at] ^= 0x20;
            victim.expect_noticed(file, &content);
            content[at] ^= 0x20;
        }
    }
    victim.read().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn flipped_bits_anywhere_are_noticed(flips in prop::collection::vec(
        (0..4usize, any::<prop::sample::Index>(), 0..8u8), 1..4,
    )) {
        thread_local!(static VICTIM: Victim = Victim::new());
        VICTIM.with(|victim| {
            let mut good = Vec::new();
            let files = victim.files();
            for (file, at, bit) in flips {
                let file = files[file].as_str();
                let mut content = victim.content(file);
                good.push((file, content.clone()));
                let at = at.index(content.len());
                content[at] ^= 1 << bit;
                overwrite(&victim.path(file), &content);
            }
            let spoiled = good.iter().rev().any(|(file, content)| {
                // Only the first copy of a file is its good content.
                let first = good.iter().find(|(other, _)| other == file).unwrap();
                first.1 == *content && victim.content(file) != *content
            });
            prop_assert_eq!(victim.verify().is_err(), spoiled);
            let _ = victim.read();
            for (file, content) in good.iter().rev() {
                overwrite(&victim.path(file), content);
            }
            prop_assert!(victim.read().is_ok());
            Ok(())
        })?;
    }
}

#[test]
fn other_versions_and_codecs_say_so() {
    let victim = Victim::new();
    let good = victim.content("snapshot.dms");
    let with = |at: usize, value: u32| {
        let mut content = good.clone();
        content[at..at + 4].copy_from_slice(&value.to_le_bytes());
        victim.expect_noticed("snapshot.dms", &content)
    };
    let error = with(8, 3);
    assert!(matches!(error, Error::TooNew { found: 3, .. }), "{error}");
    assert!(
        error.to_string().contains("use a newer dormouse"),
        "{error}"
    );
    assert!(matches!(with(8, u32::MAX), Error::TooNew { .. }));
    assert!(matches!(with(8, 0), Error::TooOld { found: 0, .. }));
    assert!(matches!(with(12, 2), Error::UnknownCodec { found: 2, .. }));
    assert!(matches!(with(0, 0x464c_457f), Error::WrongMagic { .. }));

    let mut newer = victim.content("working-set");
    newer[8] = 2;
    let error = victim.expect_noticed("working-set", &newer);
    assert!(matches!(error, Error::TooNew { .. }), "{error}");
}

#[test]
fn a_damaged_working_set_does_not_make_the_function_unusable() {
    let victim = Victim::new();
    let mut content = victim.content("working-set");
    content[120] ^= 1;
    overwrite(&victim.path("working-set"), &content);
    let snapshot = victim.store.open_newest::<State>(&victim.function).unwrap();
    victim.sample.check(&snapshot).unwrap();
    assert_eq!(snapshot.working_set, None);
    assert!(matches!(
        snapshot.working_set_error,
        Some(Error::Damaged { .. })
    ));
}

#[test]
fn missing_files_are_named() {
    for file in ["snapshot.dms", "manifest.json", "pack-"] {
        let victim = Victim::new();
        let file = victim
            .files()
            .into_iter()
            .find(|name| name.starts_with(file))
            .unwrap();
        let file = file.as_str();
        fs::remove_file(victim.path(file)).unwrap();
        let error = victim.read().unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error}");
        assert!(error.to_string().contains(file), "{error}");
        assert!(victim.store.list().unwrap()[0].manifest.is_err());
    }
}

#[test]
fn links_pipes_and_folders_are_not_followed() {
    for file in Victim::new().files() {
        let victim = Victim::new();
        let file = file.as_str();
        let path = victim.path(file);
        let outside = victim.store.path().join("outside");
        fs::rename(&path, &outside).unwrap();
        symlink(&outside, &path).unwrap();
        assert!(
            matches!(victim.read(), Err(Error::Damaged { .. })),
            "link as {file}"
        );
        fs::remove_file(&path).unwrap();
        // Opening a pipe without a writer would wait for ever.
        assert!(
            Command::new("mkfifo")
                .arg(&path)
                .status()
                .unwrap()
                .success()
        );
        assert!(
            matches!(victim.read(), Err(Error::Damaged { .. })),
            "pipe as {file}"
        );
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(
            matches!(victim.read(), Err(Error::Damaged { .. })),
            "folder as {file}"
        );
    }
}

#[test]
fn a_pack_that_shrinks_while_it_is_open() {
    let victim = Victim::new();
    let snapshot = victim.store.open_newest::<State>(&victim.function).unwrap();
    open_writable(&victim.path(&victim.pack()))
        .set_len(4096)
        .unwrap();
    assert!(matches!(
        snapshot.memory.load(true),
        Err(Error::Damaged { .. })
    ));
    let mut buf = vec![0; 4096];
    assert!(matches!(
        snapshot.memory.read_verified(0, &mut buf),
        Err(Error::Damaged { .. })
    ));
}

#[test]
fn forged_counts_neither_panic_nor_allocate() {
    let victim = Victim::new();
    let good = victim.content("snapshot.dms");
    let (header, body) = good.split_at(HEADER_BYTES);
    for at in (32..80).step_by(8) {
        let current = u64::from_le_bytes(header[at..at + 8].try_into().unwrap());
        let near = [current.wrapping_sub(1), current + 1, current * 2 + 1];
        for value in near
            .into_iter()
            .chain([0, 1, 1 << 22, 1 << 26, 1 << 40, u64::MAX])
        {
            if value == current {
                continue;
            }
            let mut header = header.to_vec();
            header[at..at + 8].copy_from_slice(&value.to_le_bytes());
            victim.forge(header, body);
            let error = victim.read().unwrap_err();
            assert!(
                matches!(error, Error::Damaged { .. }),
                "{at}, {value}: {error}"
            );
        }
    }
    victim.forge(header.to_vec(), body);
    victim.read().unwrap();
}

#[test]
fn forged_tables_are_refused() {
    let victim = Victim::new();
    let good = victim.content("snapshot.dms");
    let (header, body) = good.split_at(HEADER_BYTES);
    let state_bytes = u64::from_le_bytes(header[40..48].try_into().unwrap()) as usize;
    // The runs of the sample, whose four words are replaced one after the other.
    let runs = u64::from_le_bytes(header[48..56].try_into().unwrap()) as usize;
    assert!(runs >= 4, "{runs}");
    for at in (0..runs * 24).step_by(4).map(|at| state_bytes + at) {
        for value in [0u32, 4, 71, 152, 153, 1 << 26, u32::MAX] {
            let mut body = body.to_vec();
            if body[at..at + 4] == value.to_le_bytes() {
                continue;
            }
            body[at..at + 4].copy_from_slice(&value.to_le_bytes());
            victim.forge(header.to_vec(), &body);
            // Runs that are possible, if not what was written, are read as they are.
            let opened = victim.store.open_newest::<State>(&victim.function);
            let read = opened.and_then(|snapshot| {
                snapshot.memory.load(true)?;
                snapshot.image()
            });
            assert!(
                matches!(&read, Ok(_) | Err(Error::Damaged { .. })),
                "word at {at}, {value}: {read:?}"
            );
            if value == u32::MAX {
                assert!(read.is_err(), "word at {at}");
            }
        }
    }
}

#[test]
fn a_forged_state_is_an_error_of_its_own() {
    let victim = Victim::new();
    let good = victim.content("snapshot.dms");
    let (header, body) = good.split_at(HEADER_BYTES);
    let mut body = body.to_vec();
    // The state starts with the length of a vector: claim 2^64 - 1 elements.
    body[..9].copy_from_slice(&[253, 255, 255, 255, 255, 255, 255, 255, 255]);
    victim.forge(header.to_vec(), &body);
    let error = victim.read().unwrap_err();
    assert!(matches!(error, Error::Decode { .. }), "{error}");
}

proptest! {
    #[test]
    fn forged_states_never_panic(
        at in any::<prop::sample::Index>(), bytes in prop::collection::vec(any::<u8>(), 1..12),
    ) {
        thread_local!(static VICTIM: Victim = Victim::new());
        VICTIM.with(|victim| {
            let good = victim.content("snapshot.dms");
            let (header, body) = good.split_at(HEADER_BYTES);
            let mut forged = body.to_vec();
            let at = at.index(forged.len() - bytes.len());
            forged[at..at + bytes.len()].copy_from_slice(&bytes);
            victim.forge(header.to_vec(), &forged);
            let _ = victim.store.open_newest::<State>(&victim.function);
            overwrite(&victim.path("snapshot.dms"), &good);
        });
    }
}

#[test]
fn huge_sparse_files_are_refused_by_their_size() {
    let victim = Victim::new();
    for file in victim.files() {
        let file = file.as_str();
        let good = victim.content(file);
        open_writable(&victim.path(file)).set_len(1 << 40).unwrap();
        assert!(
            matches!(victim.read(), Err(Error::Damaged { .. })),
            "{file}"
        );
        overwrite(&victim.path(file), &good);
    }
}
