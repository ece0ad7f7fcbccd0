//! Records in files: whole or not at all, and clear words for what is none.

use std::fs;
use std::path::{Path, PathBuf};

use dormouse_load::{Record, RecordError};
use tempfile::TempDir;

use crate::sample;

fn with(content: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("record.json");
    fs::write(&path, content).unwrap();
    (folder, path)
}

fn refused(content: impl AsRef<[u8]>) -> RecordError {
    let (_folder, path) = with(content);
    let error = Record::read(&path).expect_err("it is refused");
    assert!(
        error.to_string().contains(&*path.to_string_lossy()),
        "{error}"
    );
    error
}

#[test]
fn what_was_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("record.json");
    fs::write(&path, "old").unwrap();
    let record = sample::record();
    record.write(&path).unwrap();
    let read = Record::read(&path).unwrap();
    assert_eq!(read.runs[1].slices, record.runs[1].slices);
    assert_eq!(read.runs[1].errors, record.runs[1].errors);
    assert_eq!(read.title, record.title);
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn what_cannot_be_read_is_named() {
    let error = Record::read(Path::new("/nowhere/record.json")).unwrap_err();
    assert!(matches!(error, RecordError::Unreadable { .. }), "{error}");
    assert!(
        error.to_string().contains("/nowhere/record.json"),
        "{error}"
    );
}

#[test]
fn what_is_not_json_is_said_to_be_so_with_its_line() {
    for content in ["", "{\n\"format\": \n", "hello", "{\"a\":1}\n\nrest"] {
        let error = refused(content);
        assert!(matches!(error, RecordError::NotJson { .. }), "{error}");
    }
    assert!(refused("{\n\n!").to_string().contains("line 3"));
    assert!(matches!(refused([0xff, 0xfe]), RecordError::NotJson { .. }));
}

#[test]
fn what_is_another_document_is_no_record() {
    let contents = [
        "[]",
        "7",
        "{}",
        "{\"format\": 1}",
        "{\"format\": \"lock/1\"}",
        "{\"format\": \"\"}",
    ];
    for content in contents {
        let error = refused(content);
        assert!(
            matches!(error, RecordError::NotARecord { .. }),
            "{content}: {error}"
        );
    }
    assert!(refused("{}").to_string().contains("missing"));
}

#[test]
fn a_newer_form_is_not_blamed_for_its_members() {
    let error = refused("{\"format\": \"dormouse-load-record/2\", \"other\": []}");
    let RecordError::UnknownForm { found, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(found, "dormouse-load-record/2");
    assert!(
        error.to_string().contains("dormouse-load-record/1"),
        "{error}"
    );
}

#[test]
fn a_damaged_record_is_refused_with_what_is_wrong() {
    let record = sample::record();
    let json = serde_json::to_string_pretty(&record).unwrap();
    for (from, to) in [
        ("\"runs\"", "\"walks\""),
        ("\"offered\": ", "\"offered\": -"),
        ("\"hdr\": \"", "\"hdr\": \"AAAA"),
    ] {
        assert!(json.contains(from), "{from}");
        let error = refused(json.replacen(from, to, 1));
        assert!(
            matches!(error, RecordError::Malformed { .. }),
            "{from}: {error}"
        );
    }
}

#[test]
fn what_json_cannot_hold_is_not_written() {
    let (_folder, path) = with("old");
    let mut record = sample::record();
    record.runs[0].client.busiest_thread = f64::NAN;
    let error = record.write(&path).unwrap_err();
    assert!(matches!(error, RecordError::Unwritable { .. }), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "old");
}

#[test]
fn where_nothing_can_be_made_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let record = sample::record();
    let missing = folder.path().join("missing/record.json");
    let error = record.write(&missing).unwrap_err();
    assert!(
        matches!(
            error,
            RecordError::Write {
                operation: "making a file in its folder",
                ..
            }
        ),
        "{error}"
    );
    // A folder stands where the file should be.
    let taken = folder.path().join("taken");
    fs::create_dir(&taken).unwrap();
    let error = record.write(&taken).unwrap_err();
    assert!(
        matches!(
            error,
            RecordError::Write {
                operation: "renaming it into place",
                ..
            }
        ),
        "{error}"
    );
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}
