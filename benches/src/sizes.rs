//! How many bytes snapshots take: as they are, without zeros, stored once, and compressed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use comfy_table::{Table, presets};
use dormouse_pool::FunctionConfig;
use dormouse_snapshot::{Compression, FunctionName, PAGE_BYTES, SnapshotRef, Store};
use schemars::JsonSchema;
use serde::Serialize;

use crate::engine::lab::Lab;
use crate::{Error, Machine, report};

/// The sample functions.
pub const FUNCTIONS: [&str; 6] = ["hello", "echo", "whoami", "faulty", "burn", "wordfreq"];

/// The sizes of all sample functions' snapshots, in one store.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Sizes {
    /// Where they were taken.
    pub machine: Machine,
    /// One for each function, in the order in which they were deployed.
    pub rows: Vec<SizeRow>,
}

/// The bytes of one function's snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct SizeRow {
    /// The function.
    pub function: String,
    /// Guest memory and the image, every byte.
    pub raw_bytes: u64,
    /// The same without the memory's zero pages: what a sparse file would take.
    pub sparse_bytes: u64,
    /// What deploying it added to a store that had the functions above it: equal pages are there
    /// once, also those that memory and image have in common.
    pub deduplicated_bytes: u64,
    /// What deploying the same image again added, with another configuration and at another base.
    pub again_bytes: u64,
    /// The whole snapshot by itself, with nothing shared, compressed by zstd.
    pub compressed_bytes: u64,
}

/// Deploys every sample function twice into a store that ends with the call, and looks at its files.
/// `say` is told what begins.
///
/// # Errors
/// What kept a function from being deployed, or its files from being read.
pub fn measure(images: &Path, mut say: impl FnMut(&str)) -> Result<Sizes, Error> {
    let machine = Machine::now()?;
    let lab = Lab::of_images(images)?;
    let mut rows = Vec::new();
    for function in FUNCTIONS {
        say(function);
        rows.push(row(&lab, function)?);
    }
    Ok(Sizes { machine, rows })
}

fn row(lab: &Lab, function: &str) -> Result<SizeRow, Error> {
    let (store, name) = (lab.store(), FunctionName::new(function)?);
    lab.deploy(function, function, FunctionConfig::default())?;
    let manifest = store.manifest(&name)?;
    let snapshot = SnapshotRef {
        function: name.clone(),
        id: manifest.id,
    };
    let deduplicated_bytes = own_bytes(store, &snapshot)?;

    let compressed_bytes = compressed_bytes(store, &snapshot)?;

    let config = FunctionConfig {
        env: vec![("AGAIN".to_owned(), "1".to_owned())],
        ..FunctionConfig::default()
    };
    lab.deploy_again(function, function, config)?;
    let again = SnapshotRef {
        id: store.manifest(&name)?.id,
        function: name,
    };
    Ok(SizeRow {
        function: function.to_owned(),
        raw_bytes: manifest.memory_bytes + manifest.image_bytes,
        sparse_bytes: manifest.data_pages * PAGE_BYTES as u64 + manifest.image_bytes,
        deduplicated_bytes,
        again_bytes: own_bytes(store, &again)?,
        compressed_bytes,
    })
}

/// The bytes of a snapshot that is flattened and compressed, in a store of its own.
fn compressed_bytes(store: &Store, snapshot: &SnapshotRef) -> Result<u64, Error> {
    let home = tempfile::tempdir().map_err(Error::system("creating a store"))?;
    let other = Store::open(home.path())?;
    let (from, to) = (folder(store, snapshot), folder(&other, snapshot));
    let copy = || {
        fs::create_dir_all(&to)?;
        for entry in fs::read_dir(&from)? {
            let entry = entry?;
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
        Ok(())
    };
    copy().map_err(Error::system("copying a snapshot"))?;
    let flat = SnapshotRef {
        function: snapshot.function.clone(),
        id: other.flatten(&snapshot.function, &snapshot.id, Compression::Zstd)?,
    };
    own_bytes(&other, &flat)
}

/// The bytes in a snapshot's files that no other snapshot has a link to.
fn own_bytes(store: &Store, snapshot: &SnapshotRef) -> Result<u64, Error> {
    let sum = || {
        let mut bytes = 0;
        for entry in fs::read_dir(folder(store, snapshot))? {
            let metadata = entry?.metadata()?;
            if metadata.nlink() == 1 {
                bytes += metadata.len();
            }
        }
        Ok(bytes)
    };
    sum().map_err(Error::system("reading the sizes of a snapshot's files"))
}

fn folder(store: &Store, snapshot: &SnapshotRef) -> PathBuf {
    let function = store.path().join(snapshot.function.as_str());
    function.join(snapshot.id.to_string())
}

impl Sizes {
    /// As a table, each line ending in a line break.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header([
            "FUNCTION",
            "RAW, KiB",
            "SPARSE, KiB",
            "DEDUPLICATED, KiB",
            "AGAIN, KiB",
            "COMPRESSED, KiB",
        ]);
        let kib = |bytes: u64| bytes.div_ceil(1024).to_string();
        for row in &self.rows {
            table.add_row([
                row.function.clone(),
                kib(row.raw_bytes),
                kib(row.sparse_bytes),
                kib(row.deduplicated_bytes),
                kib(row.again_bytes),
                kib(row.compressed_bytes),
            ]);
        }
        report::text(table, 1)
    }

    /// The lines for a page such as README.md: how they came to be, where, and the table.
    #[must_use]
    pub fn readme_block(&self) -> String {
        let (machine, table) = (&self.machine, self.table());
        format!(
            "What a snapshot takes, as `dormouse bench sizes --readme README.md` found it here\n\
             ({machine}):\n\n```text\n{table}```\n"
        )
    }
}
