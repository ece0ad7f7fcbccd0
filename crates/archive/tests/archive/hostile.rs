//! Damaged and forged exports: a clear error and an untouched store, or the right snapshot.

use dormouse_archive::{Error, Imported, Result};
use dormouse_snapshot::{Compression, SnapshotRef};
use proptest::prelude::*;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{
    TempStore, content, exported, import, memory, names, packs, plain, publish, save_working_set,
    version_1,
};

/// An export whose bytes a test spoils, and the store that it is imported into.
pub(crate) struct Victim {
    pub(crate) from: TempStore,
    pub(crate) to: TempStore,
    pub(crate) snapshot: SnapshotRef,
    file: Vec<u8>,
}

impl Victim {
    fn of(publish: impl FnOnce(&TempStore) -> SnapshotRef) -> Self {
        let (from, to) = (TempStore::new(), TempStore::new());
        let snapshot = publish(&from);
        let (file, _) = exported(&from.store, &snapshot);
        Self {
            from,
            to,
            snapshot,
            file,
        }
    }

    fn new() -> Self {
        Self::of(|from| plain(&from.store))
    }

    pub(crate) fn packed() -> Self {
        Self::of(|from| {
            let snapshot = publish(&from.store, "packed", &memory(2), None, Compression::Zstd);
            save_working_set(&from.store, &snapshot);
            snapshot
        })
    }

    /// What came of an import: an error that leaves no trace, or the right snapshot, which is
    /// removed again.
    pub(crate) fn judge(&self, imported: Result<Imported>) -> Option<Error> {
        match imported {
            Ok(imported) => {
                assert_eq!(imported.id, self.snapshot.id);
                let right = content(&self.from.store, &self.snapshot);
                assert!(content(&self.to.store, &self.snapshot) == right);
                self.to.store.remove(&imported.function).unwrap();
                // The function's folder goes with its last snapshot.
                assert!(self.to.visible().is_empty());
                None
            }
            Err(error) => {
                let text = error.to_string();
                assert!(text.len() < 700 && !text.contains('\n'), "{text}");
                assert!(!text.contains(".tmp-"), "{text}");
                assert!(self.to.visible().is_empty(), "{text}");
                Some(error)
            }
        }
    }

    fn import(&self, file: &[u8]) -> Option<Error> {
        self.judge(import(&self.to.store, file))
    }

    #[track_caller]
    fn refused(&self, file: &[u8]) -> Error {
        self.import(file).expect("it is not refused")
    }

    /// The files of the snapshot, as an export has them.
    fn parts(&self) -> Vec<(String, Vec<u8>)> {
        content(&self.from.store, &self.snapshot)
            .into_iter()
            .collect()
    }

    /// An export of these files, with a right list.
    fn forged(&self, parts: &[(String, Vec<u8>)]) -> Vec<u8> {
        self.listed(parts, |_| {})
    }

    /// The same with a change of the list.
    fn listed(&self, parts: &[(String, Vec<u8>)], change: impl FnOnce(&mut Value)) -> Vec<u8> {
        let files: Vec<_> = parts
            .iter()
            .map(|(name, bytes)| {
                json!({ "name": name, "bytes": bytes.len(), "sha256": sha256(bytes) })
            })
            .collect();
        let mut list = json!({
            "version": 1, "function": self.snapshot.function, "id": self.snapshot.id,
            "files": files,
        });
        change(&mut list);
        let list = (
            "dormouse-export.json".to_owned(),
            list.to_string().into_bytes(),
        );
        tar(std::iter::once(&list).chain(parts))
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn entry(kind: tar::EntryType, name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    // Set by hand: the library would refuse some of these names.
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    let mut entry = header.as_bytes().to_vec();
    entry.extend_from_slice(bytes);
    entry.resize(entry.len().next_multiple_of(512), 0);
    entry
}

fn tar<'a>(parts: impl Iterator<Item = &'a (String, Vec<u8>)>) -> Vec<u8> {
    let mut file: Vec<u8> = parts
        .flat_map(|(name, bytes)| entry(tar::EntryType::Regular, name, bytes))
        .collect();
    file.extend_from_slice(&[0; 1024]);
    file
}

#[test]
fn truncated_files_are_refused() {
    let victim = Victim::new();
    let length = victim.file.len();
    let end = length - 1024;
    let spread = (0..200).map(|n| n * end / 200);
    for length in spread
        .chain((0..1100).step_by(37))
        .chain([end - 1, end - 513])
    {
        victim.refused(&victim.file[..length]);
    }
    // All is there but the end mark, or some of it.
    for length in [end, end + 1, end + 512, length - 1] {
        victim.import(&victim.file[..length]);
    }
    let longer = [victim.file.as_slice(), b"more"].concat();
    assert!(
        victim.import(&longer).is_none(),
        "what follows a tar is not its"
    );
    assert!(victim.import(&victim.file).is_none());
}

#[test]
fn garbage_is_refused_for_what_it_is() {
    let victim = Victim::new();
    let text = b"a text that is long enough to be a header".repeat(40);
    let elf = [b"\x7fELF".as_slice(), &[1; 2000]].concat();
    let other_tar = tar([("notes.txt".to_owned(), b"hello".to_vec())].iter());
    for garbage in [&[][..], b"x", &[0; 4096], &text, &elf, &other_tar] {
        let error = victim.refused(garbage);
        assert!(matches!(error, Error::NotAnExport { .. }), "{error}");
    }
}

#[test]
fn flipped_bits_never_make_a_wrong_snapshot() {
    for victim in [
        Victim::new(),
        Victim::packed(),
        Victim::of(|from| version_1(&from.store)),
    ] {
        let mut file = victim.file.clone();
        let near_start = (0..2048).step_by(3);
        let spread = (0..250).map(|n| n * file.len() / 250);
        for at in near_start.chain(spread).collect::<Vec<_>>() {
            file[at] ^= 1 << (at % 8);
            victim.import(&file);
            file[at] ^= 1 << (at % 8);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn any_mutation_is_refused_or_harmless(changes in prop::collection::vec(
        (0..5u8, any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 1..4,
    )) {
        thread_local!(static VICTIM: Victim = Victim::packed());
        VICTIM.with(|victim| {
            let mut file = victim.file.clone();
            for (kind, from, to, byte) in changes {
                if file.is_empty() {
                    break;
                }
                let (from, to) = (from.index(file.len()), to.index(file.len()));
                match kind {
                    0 => file[from] = byte,
                    1 => file.truncate(from),
                    2 => drop(file.drain(from.min(to)..from.max(to))),
                    3 => {
                        // Moves whole blocks, so that headers are found again.
                        let blocks = file.split_off(from / 512 * 512);
                        file.splice(0..0, blocks);
                    }
                    _ => {
                        let again = file[from..(from + 4096).min(file.len())].to_vec();
                        file.splice(to..to, again);
                    }
                }
            }
            victim.import(&file);
        });
    }
}

#[test]
fn forged_lists_are_refused() {
    let victim = Victim::new();
    let parts = victim.parts();
    assert!(victim.import(&victim.forged(&parts)).is_none());
    let with = |change: &dyn Fn(&mut Value)| victim.refused(&victim.listed(&parts, change));
    let error = with(&|list| list["version"] = 2.into());
    assert!(matches!(error, Error::TooNew { found: 2, .. }), "{error}");
    with(&|list| list["version"] = (-1).into());
    with(&|list| list["function"] = "../up".into());
    with(&|list| list["function"] = "other".into());
    with(&|list| list["id"] = "1".into());
    with(&|list| list["id"] = "00000002-0000000000000000".into());
    with(&|list| list["files"] = json!([]));
    with(&|list| list["files"][0]["bytes"] = u64::MAX.into());
    with(&|list| list["files"][0]["bytes"] = 0.into());
    with(&|list| list["files"][0]["sha256"] = "0".repeat(64).into());
    with(&|list| list["files"][0]["sha256"] = "".into());
    with(&|list| list["files"].as_array_mut().unwrap().reverse());
    with(&|list| drop(list["files"].as_array_mut().unwrap().pop()));
    with(&|list| {
        let files = list["files"].as_array_mut().unwrap();
        *files = vec![files[0].clone(); 100];
    });
    let many = u64::MAX / 2;
    with(&|list| {
        for file in list["files"].as_array_mut().unwrap() {
            file["bytes"] = many.into();
        }
    });
    let huge = entry(
        tar::EntryType::Regular,
        "dormouse-export.json",
        &vec![b' '; 70_000],
    );
    let error = victim.refused(&huge);
    assert!(matches!(error, Error::NotAnExport { .. }), "{error}");
}

#[test]
fn no_name_leads_out_of_the_store() {
    let victim = Victim::new();
    for name in [
        "../x",
        "/tmp/x",
        "..",
        ".",
        "",
        ".link",
        ".lock",
        "x/../snapshot.dms",
        "a/b",
        "pack-",
        "pack-0123456789abcde",
        "pack-0123456789ABCDEF",
        "pack-../../../../../x",
        "snapshot.dms\n",
        "manifest.json/",
        "tags.json",
    ] {
        let mut parts = victim.parts();
        parts.push((name.to_owned(), b"harm".to_vec()));
        victim.refused(&victim.forged(&parts));
        let mut parts = victim.parts();
        parts[0].0 = name.to_owned();
        victim.refused(&victim.forged(&parts));
    }
    assert_eq!(names(victim.to.dir.path()), ["store"]);
}

#[test]
fn other_kinds_of_entries_are_refused() {
    use tar::EntryType as Kind;
    let victim = Victim::new();
    let parts = victim.parts();
    let good = victim.forged(&parts);
    let list_end = 512 + (good.len() - tar(parts.iter()).len() - 512);
    let (list, rest) = good.split_at(list_end);
    assert!(victim.import(&[list, rest].concat()).is_none());
    for kind in [
        Kind::Symlink,
        Kind::Link,
        Kind::Directory,
        Kind::Fifo,
        Kind::Char,
        Kind::Block,
        Kind::GNULongName,
        Kind::GNULongLink,
        Kind::GNUSparse,
        Kind::XHeader,
        Kind::XGlobalHeader,
        Kind::Continuous,
    ] {
        let odd = entry(kind, &parts[0].0, &parts[0].1);
        let same_size = rest[odd.len()..].to_vec();
        victim.refused(&[list, &odd, &same_size].concat());
        victim.refused(&[list, &odd, rest].concat());
        victim.refused(&[odd.as_slice(), list, rest].concat());
    }
}

#[test]
fn wrong_content_with_right_digests_is_refused() {
    for victim in [
        Victim::new(),
        Victim::packed(),
        Victim::of(|from| version_1(&from.store)),
    ] {
        for number in 0..victim.parts().len() {
            for at in 0..30 {
                let mut parts = victim.parts();
                let bytes = &mut parts[number].1;
                let at = at * bytes.len() / 30;
                bytes[at] ^= 1;
                victim.refused(&victim.forged(&parts));
            }
            let mut parts = victim.parts();
            let bytes = &mut parts[number].1;
            bytes.pop();
            victim.refused(&victim.forged(&parts));
            let mut parts = victim.parts();
            let (name, _) = parts.remove(number);
            // Without a working set it is another good snapshot.
            if name != "working-set" {
                victim.refused(&victim.forged(&parts));
            }
        }
    }
}

#[test]
fn files_that_do_not_belong_are_refused() {
    let victim = Victim::new();
    let other = publish(
        &victim.from.store,
        "other",
        &memory(77),
        None,
        Compression::None,
    );
    let theirs = content(&victim.from.store, &other);
    let pack = &packs(&crate::support::folder(&victim.from.store, &other))[0];
    let mut parts = victim.parts();
    parts.push((pack.clone(), theirs[pack].clone()));
    parts.sort();
    let error = victim.refused(&victim.forged(&parts));
    assert!(error.to_string().contains("does not belong"), "{error}");
    let mut parts = victim.parts();
    parts.push(("memory".to_owned(), vec![0; 4096]));
    victim.refused(&victim.forged(&parts));
}
