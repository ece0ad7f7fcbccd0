//! What the parts of a snapshot are called in an OCI image layout.

/// The media types for the snapshots of one format version.
#[derive(Debug, PartialEq)]
pub(crate) struct Media {
    pub(crate) format_version: u32,
    /// Of the image manifest.
    pub(crate) artifact: &'static str,
    /// Of `manifest.json`, which is the image manifest's config.
    pub(crate) manifest: &'static str,
    state: &'static str,
}

const KNOWN: [Media; 2] = [
    Media {
        format_version: 2,
        artifact: "application/vnd.dormouse.snapshot.v2",
        manifest: "application/vnd.dormouse.snapshot.manifest.v2+json",
        state: "application/vnd.dormouse.snapshot.state.v2",
    },
    Media {
        format_version: 1,
        artifact: "application/vnd.dormouse.snapshot.v1",
        manifest: "application/vnd.dormouse.snapshot.manifest.v1+json",
        state: "application/vnd.dormouse.snapshot.state.v1",
    },
];

/// What the artifact types of all versions begin with.
const ARTIFACT_PREFIX: &str = "application/vnd.dormouse.snapshot.v";

impl Media {
    /// Those of the format version, if there are.
    pub(crate) fn of_version(version: u32) -> Option<&'static Self> {
        KNOWN.iter().find(|media| media.format_version == version)
    }

    /// Those of an artifact type, if it is one of ours.
    pub(crate) fn of_artifact(artifact: &str) -> Option<&'static Self> {
        KNOWN.iter().find(|media| media.artifact == artifact)
    }

    /// The version of an artifact type that is one of ours, known or not.
    pub(crate) fn version_of(artifact: &str) -> Option<u32> {
        artifact.strip_prefix(ARTIFACT_PREFIX)?.parse().ok()
    }

    /// The media type of the file `name` of a snapshot; what has no type of its own is a pack.
    pub(crate) fn of_file(&self, name: &str) -> &'static str {
        match name {
            "snapshot.dms" => self.state,
            "manifest.json" => self.manifest,
            "working-set" => "application/vnd.dormouse.snapshot.working-set.v1",
            "memory" => "application/vnd.dormouse.snapshot.memory.v1",
            "image" => "application/vnd.dormouse.snapshot.image.v1",
            _ => "application/vnd.dormouse.snapshot.pack.v1",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dormouse_snapshot::{FORMAT_VERSION, OLDEST_FORMAT_VERSION};

    #[test]
    fn every_format_version_has_its_types() {
        for version in OLDEST_FORMAT_VERSION..=FORMAT_VERSION {
            let media = Media::of_version(version).unwrap();
            assert_eq!(Media::of_artifact(media.artifact), Some(media));
            assert_eq!(Media::version_of(media.artifact), Some(version));
        }
        assert_eq!(Media::of_version(FORMAT_VERSION + 1), None);
        assert_eq!(
            Media::version_of("application/vnd.dormouse.snapshot.v9"),
            Some(9)
        );
        assert_eq!(
            Media::version_of("application/vnd.oci.image.config.v1+json"),
            None
        );
    }
}
