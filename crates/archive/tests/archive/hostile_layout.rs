//! Damaged and forged layouts: a clear error and an untouched store, or the right snapshot.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use dormouse_archive::{Error, Existing, export_oci, import_oci};
use serde_json::{Value, json};

use crate::hostile::{Victim, sha256};
use crate::support::names;

/// A layout that tests spoil.
struct Layout {
    victim: Victim,
    path: PathBuf,
}

impl Layout {
    fn new() -> Self {
        let victim = Victim::packed();
        let path = victim.from.path("layout");
        let (store, snapshot) = (&victim.from.store, &victim.snapshot);
        export_oci(store, snapshot, &path, None, Existing::Keep, &mut |_, _| {}).unwrap();
        Self { victim, path }
    }

    fn import(&self) -> Option<Error> {
        let imported = import_oci(&self.victim.to.store, &self.path, None, &mut |_, _| {});
        self.victim.judge(imported)
    }

    #[track_caller]
    fn refused(&self, why: &str) -> Error {
        self.import().expect(why)
    }

    fn files(&self) -> Vec<PathBuf> {
        let blobs = self.path.join("blobs/sha256");
        let blobs = names(&blobs).into_iter().map(|name| blobs.join(name));
        let others = ["oci-layout", "index.json"].map(|name| self.path.join(name));
        blobs.chain(others).collect()
    }

    /// Puts a changed image manifest into the layout, with right digests.
    fn forge(&self, change: &dyn Fn(&mut Value)) {
        let index_path = self.path.join("index.json");
        let mut index: Value = read(&index_path);
        let digest = index["manifests"][0]["digest"].as_str().unwrap();
        let blobs = self.path.join("blobs/sha256");
        let mut manifest: Value = read(&blobs.join(&digest[7..]));
        change(&mut manifest);
        let bytes = manifest.to_string().into_bytes();
        fs::write(blobs.join(sha256(&bytes)), &bytes).unwrap();
        index["manifests"][0]["digest"] = format!("sha256:{}", sha256(&bytes)).into();
        index["manifests"][0]["size"] = bytes.len().into();
        fs::write(&index_path, index.to_string()).unwrap();
    }
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn damaged_layouts_are_refused() {
    let layout = Layout::new();
    for path in layout.files() {
        let good = fs::read(&path).unwrap();
        let is_blob = path.parent().unwrap().ends_with("sha256");
        for at in (0..40).map(|n| n * good.len() / 40) {
            let mut content = good.clone();
            content[at] ^= 1 << (at % 8);
            fs::write(&path, &content).unwrap();
            let error = layout.import();
            assert!(error.is_some() || !is_blob, "{at} of {}", path.display());
            fs::write(&path, &good[..at]).unwrap();
            let error = layout.import();
            // The last byte of a document is a line feed.
            let is_whole = !is_blob && at + 2 > good.len();
            assert!(error.is_some() || is_whole, "{at} of {}", path.display());
        }
        fs::write(&path, [good.as_slice(), b"}"].concat()).unwrap();
        layout.refused("longer");
        fs::remove_file(&path).unwrap();
        layout.refused("missing");
        let elsewhere = layout.victim.from.path("elsewhere");
        fs::write(&elsewhere, &good).unwrap();
        symlink(&elsewhere, &path).unwrap();
        layout.refused("a link");
        fs::remove_file(&path).unwrap();
        // Opening a pipe without a writer would wait for ever.
        assert!(
            Command::new("mkfifo")
                .arg(&path)
                .status()
                .unwrap()
                .success()
        );
        layout.refused("a pipe");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        layout.refused("a folder");
        fs::remove_dir(&path).unwrap();
        fs::write(&path, &good).unwrap();
    }
    assert!(layout.import().is_none());
    let (blobs, moved) = (layout.path.join("blobs"), layout.victim.from.path("moved"));
    fs::rename(&blobs, &moved).unwrap();
    symlink(&moved, &blobs).unwrap();
    layout.refused("blobs behind a link");
}

#[test]
fn forged_image_manifests_are_refused() {
    let with = |change: &dyn Fn(&mut Value)| {
        let layout = Layout::new();
        layout.forge(change);
        layout.refused("forged")
    };
    Layout::new().forge(&|_| {});
    let title = "org.opencontainers.image.title";
    let error = with(&|m| m["artifactType"] = "application/vnd.dormouse.snapshot.v9".into());
    assert!(matches!(error, Error::TooNew { found: 9, .. }), "{error}");
    let error = with(&|m| m["artifactType"] = "application/vnd.cncf.helm.config.v1+json".into());
    assert!(matches!(error, Error::NotAnExport { .. }), "{error}");
    with(&|m| m["artifactType"] = "application/vnd.dormouse.snapshot.v1".into());
    with(&|m| drop(m.as_object_mut().unwrap().remove("artifactType")));
    with(&|m| m["schemaVersion"] = 1.into());
    with(&|m| m["mediaType"] = "text/plain".into());
    with(&|m| m["config"]["mediaType"] = "application/vnd.oci.empty.v1+json".into());
    with(&|m| m["config"]["size"] = u64::MAX.into());
    with(&|m| m["config"] = m["layers"][0].clone());
    with(&|m| m["layers"] = json!([]));
    with(&|m| m["layers"] = vec![m["layers"][0].clone(); 200].into());
    with(&|m| m["layers"][0]["size"] = 1.into());
    with(&|m| m["layers"][0]["size"] = (-1).into());
    with(&|m| m["layers"][0]["mediaType"] = "application/octet-stream".into());
    with(&|m| m["layers"][0]["digest"] = "sha256:../../../index.json".into());
    with(&|m| m["layers"][0]["digest"] = format!("sha512:{}", "0".repeat(128)).into());
    with(&|m| m["layers"][0]["digest"] = m["layers"][1]["digest"].clone());
    with(&|m| {
        drop(
            m["layers"][0]
                .as_object_mut()
                .unwrap()
                .remove("annotations"),
        )
    });
    for name in ["../x", "/x", "", ".link", "manifest.json", "memory"] {
        with(&|m| m["layers"][0]["annotations"][title] = name.into());
    }
}
