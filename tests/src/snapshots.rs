//! Snapshots as files, and snapshots that are changed through the store's own face.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use dormouse_snapshot::{
    Compression, Draft, FunctionName, MemoryDraft, PAGE_BYTES, Snapshot, Store,
};
use serde::de::{SeqAccess, Visitor};
use serde::ser::SerializeTuple;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// More than any state has (`snapshots/FORMAT.md`).
const MAX_STATE_BYTES: usize = 4 << 20;

/// What of a snapshot [`edit`] lets change.
#[derive(Debug)]
pub struct Edited {
    /// The encoded state of the machine.
    pub state: Vec<u8>,
    /// All guest memory.
    pub memory: Vec<u8>,
    /// The function's configuration.
    pub config: serde_json::Value,
}

impl Edited {
    /// The values in the state that are coded as bincode's eight-byte integers, and where.
    #[must_use]
    pub fn integers(&self) -> Vec<(usize, u64)> {
        const EIGHT_BYTES_FOLLOW: u8 = 253;
        self.state
            .windows(9)
            .enumerate()
            .filter(|(_, window)| window[0] == EIGHT_BYTES_FOLLOW)
            .map(|(at, window)| {
                let value = window[1..].try_into().expect("eight bytes");
                (at, u64::from_le_bytes(value))
            })
            .collect()
    }

    /// Replaces the integer at a place that [`Edited::integers`] has told.
    pub fn set_integer(&mut self, at: usize, value: u64) {
        self.state[at + 1..at + 9].copy_from_slice(&value.to_le_bytes());
    }
}

/// Publishes a changed copy of a function's newest snapshot: whole, with right digests, as if it
/// had been made so.
///
/// # Panics
/// Where there is no such snapshot or it cannot be published.
pub fn edit(folder: &Path, function: &str, change: impl FnOnce(&mut Edited)) {
    let store = Store::open(folder).expect("a store");
    let name = FunctionName::new(function).expect("a name");
    let snapshot: Snapshot<Raw> = store.open_newest(&name).expect("a snapshot");
    let image = snapshot.image().expect("an image");
    let pages = snapshot.memory.pages();
    let mut edited = Edited {
        memory: vec![0; pages as usize * PAGE_BYTES],
        state: snapshot.state.0,
        config: snapshot.manifest.config.clone(),
    };
    snapshot
        .memory
        .read_verified(0, &mut edited.memory)
        .expect("good memory");
    change(&mut edited);
    let state = Raw(edited.state);
    let memory = edited.memory;
    let mut read = |first_page: u64, buffer: &mut [u8]| {
        let start = first_page as usize * PAGE_BYTES;
        buffer.copy_from_slice(&memory[start..start + buffer.len()]);
        Ok(())
    };
    let draft = Draft {
        created_unix_ms: snapshot.manifest.created_unix_ms,
        host: snapshot.manifest.host.clone(),
        config: edited.config,
        state: &state,
        memory: MemoryDraft {
            pages,
            resident: snapshot.memory.data().to_vec(),
            read: &mut read,
        },
        image: &image,
        parent: None,
        compression: Compression::None,
    };
    store.publish(&name, draft).expect("a new snapshot");
}

/// The bytes of a state, whatever they mean: the codec writes a tuple of bytes as just these.
struct Raw(Vec<u8>);

impl Serialize for Raw {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut tuple = serializer.serialize_tuple(self.0.len())?;
        for byte in &self.0 {
            tuple.serialize_element(byte)?;
        }
        tuple.end()
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AllBytes;

        impl<'de> Visitor<'de> for AllBytes {
            type Value = Raw;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut bytes: A) -> Result<Raw, A::Error> {
                let mut all = Vec::new();
                // The error is the end of the input.
                while let Ok(Some(byte)) = bytes.next_element() {
                    all.push(byte);
                }
                Ok(Raw(all))
            }
        }

        deserializer.deserialize_tuple(MAX_STATE_BYTES, AllBytes)
    }
}

/// All files below a folder, in any depth; none where there is no such folder.
#[must_use]
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.append(&mut files_below(&path));
        } else {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// Copies a folder, as `cp -r` does.
///
/// # Panics
/// Where it cannot be copied.
pub fn copy_folder(from: &Path, to: &Path) {
    for file in files_below(from) {
        let target = to.join(file.strip_prefix(from).expect("below it"));
        fs::create_dir_all(target.parent().expect("a parent")).expect("a folder");
        fs::copy(&file, &target).expect("a copy");
    }
}

/// Milliseconds since the Unix epoch, now.
///
/// # Panics
/// Where the clock stands before it.
#[must_use]
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("a clock after 1970").as_millis() as u64
}
