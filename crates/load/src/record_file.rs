//! Records in files.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::record::{FORMAT, Record};

/// Why a record cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The file cannot be read.
    #[error("cannot read the record {}: {source}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file holds no JSON.
    #[error(
        "{} is not JSON (line {}, column {}): {source}; a record is the file that a measurement \
         wrote, whole", path.display(), source.line(), source.column()
    )]
    NotJson {
        /// Which.
        path: PathBuf,
        /// What is wrong, and where.
        source: serde_json::Error,
    },
    /// The file holds JSON that does not say that it is a record of load.
    #[error(
        "{} is not a record of load: its member `format` should be \"{FORMAT}\" and is {found}",
        path.display()
    )]
    NotARecord {
        /// Which.
        path: PathBuf,
        /// What stands there instead, as JSON, or `missing`.
        found: String,
    },
    /// The record is of a form that came after this version of Dormouse.
    #[error(
        "{} is a record of the form \"{found}\", and this version of Dormouse knows \"{FORMAT}\" \
         only; read it with the version that wrote it", path.display()
    )]
    UnknownForm {
        /// Which.
        path: PathBuf,
        /// The form.
        found: String,
    },
    /// It says that it is a record of the known form, and is not.
    #[error(
        "{} says that it is a \"{FORMAT}\" and is not (line {}, column {}): {source}; \
         record.schema.json describes the form", path.display(), source.line(), source.column()
    )]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What is wrong, and where.
        source: serde_json::Error,
    },
    /// The record holds what JSON cannot, such as a number that is not finite.
    #[error("cannot write the record {} as JSON: {source}", path.display())]
    Unwritable {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        source: serde_json::Error,
    },
    /// The record, or its page, cannot be put where it should be.
    #[error("cannot write {}: {operation}: {source}", path.display())]
    Write {
        /// Where it should be.
        path: PathBuf,
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// The member that says what the rest is.
#[derive(Deserialize)]
struct Form {
    #[serde(default)]
    format: serde_json::Value,
}

impl Record {
    /// Reads a record that [`Record::write`] wrote.
    ///
    /// # Errors
    /// If the file cannot be read, is not JSON, is no record, or a record of a form that this
    /// version does not know.
    pub fn read(path: &Path) -> Result<Self, RecordError> {
        let path_buf = || path.to_owned();
        let bytes = fs::read(path).map_err(|source| RecordError::Unreadable {
            path: path_buf(),
            source,
        })?;
        // What it says of itself comes first: a newer form would be blamed for its members.
        let value: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|source| RecordError::NotJson {
                path: path_buf(),
                source,
            })?;
        let form = Form::deserialize(&value).map_or(serde_json::Value::Null, |form| form.format);
        drop(value);
        match form.as_str() {
            Some(FORMAT) => {}
            Some(found) if family(found).is_some() && family(found) == family(FORMAT) => {
                return Err(RecordError::UnknownForm {
                    path: path_buf(),
                    found: found.to_owned(),
                });
            }
            _ => {
                return Err(RecordError::NotARecord {
                    path: path_buf(),
                    found: if form.is_null() {
                        "missing".to_owned()
                    } else {
                        form.to_string()
                    },
                });
            }
        }
        serde_json::from_slice(&bytes).map_err(|source| RecordError::Malformed {
            path: path_buf(),
            source,
        })
    }

    /// Writes the record: whole, or not at all. What was in the file is replaced.
    ///
    /// # Errors
    /// If the record holds a number that is not finite, or the file cannot be made.
    pub fn write(&self, path: &Path) -> Result<(), RecordError> {
        let unwritable = |source| RecordError::Unwritable {
            path: path.to_owned(),
            source,
        };
        let mut json = serde_json::to_vec_pretty(self).map_err(unwritable)?;
        // JSON has `null` for what is not finite, and a reader would stumble over that.
        serde_json::from_slice::<Self>(&json).map_err(unwritable)?;
        json.push(b'\n');
        write_whole(path, &json)
    }

    /// Writes the page of [`crate::report::html`]: whole, or not at all. What was in the file is
    /// replaced.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn write_html(&self, path: &Path) -> Result<(), RecordError> {
        write_whole(path, crate::report::html(self).as_bytes())
    }
}

/// What stands before the number of a form.
fn family(form: &str) -> Option<&str> {
    form.rsplit_once('/').map(|(family, _)| family)
}

fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), RecordError> {
    let failed = |operation| {
        move |source| RecordError::Write {
            path: path.to_owned(),
            operation,
            source,
        }
    };
    // A pipe or a device is no file that could be replaced.
    if fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
        return fs::write(path, bytes).map_err(failed("writing its content"));
    }
    let folder = path.parent().filter(|folder| *folder != Path::new(""));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".record-").suffix(".tmp");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // As any other file: what the umask leaves.
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    let mut file = builder
        .tempfile_in(folder.unwrap_or(Path::new(".")))
        .map_err(failed("making a file in its folder"))?;
    file.write_all(bytes)
        .map_err(failed("writing its content"))?;
    file.as_file()
        .sync_all()
        .map_err(failed("bringing it onto the disk"))?;
    file.persist(path)
        .map_err(|error| failed("renaming it into place")(error.error))?;
    Ok(())
}
