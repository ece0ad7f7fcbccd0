//! Which layers of a jail are in place.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A layer of confinement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum LayerName {
    /// No program can give more rights than this process has (`PR_SET_NO_NEW_PRIVS(2const)`).
    NoNewPrivileges,
    /// A user id that no other process of the host has.
    HostUser,
    /// A user namespace (`user_namespaces(7)`).
    UserNamespace,
    /// A network namespace with no device that is up (`network_namespaces(7)`).
    NetworkNamespace,
    /// No System V IPC object or POSIX message queue of others (`ipc_namespaces(7)`).
    IpcNamespace,
    /// A host name of its own (`uts_namespaces(7)`).
    UtsNamespace,
    /// No view of the host's control groups (`cgroup_namespaces(7)`).
    CgroupNamespace,
    /// An empty file system that cannot be written (`mount_namespaces(7)`, `pivot_root(2)`).
    EmptyRoot,
    /// No core dump, no tracing, `/proc/PID` root's (`PR_SET_DUMPABLE(2const)`).
    NotDumpable,
    /// No capability, in no set (`capabilities(7)`).
    NoCapabilities,
    /// No access to files, ports, abstract sockets and signals (`landlock(7)`).
    Landlock,
    /// Resource limits (`setrlimit(2)`).
    ResourceLimits,
    /// System calls that are not needed kill the process (`seccomp(2)`).
    SystemCalls,
}

impl fmt::Display for LayerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoNewPrivileges => "no new privileges",
            Self::HostUser => "user id of its own",
            Self::UserNamespace => "user namespace",
            Self::NetworkNamespace => "network namespace",
            Self::IpcNamespace => "ipc namespace",
            Self::UtsNamespace => "uts namespace",
            Self::CgroupNamespace => "cgroup namespace",
            Self::EmptyRoot => "empty file system",
            Self::NotDumpable => "not dumpable",
            Self::NoCapabilities => "no capabilities",
            Self::Landlock => "landlock",
            Self::ResourceLimits => "resource limits",
            Self::SystemCalls => "system call filter",
        })
    }
}

/// Whether a layer holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is", content = "because")]
pub enum Standing {
    /// As this crate means it.
    InPlace,
    /// With less than there could be, which is said.
    Weaker(String),
    /// Not at all, for the reason that is said.
    Missing(String),
}

/// A layer and whether it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Which.
    pub name: LayerName,
    /// Whether it holds.
    pub standing: Standing,
}

/// What [`enter`](crate::enter) has put in place, in the order in which it did.
///
/// Its `Display` is one line: what is in place, then what is not and why.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Layers {
    layers: Vec<Layer>,
}

impl Layers {
    pub(crate) fn note(&mut self, name: LayerName, standing: Standing) {
        self.layers.push(Layer { name, standing });
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Layer> {
        self.layers.iter()
    }

    /// How it stands with one of them; nothing where it was not tried.
    #[must_use]
    pub fn standing(&self, name: LayerName) -> Option<&Standing> {
        let layer = self.layers.iter().find(|layer| layer.name == name)?;
        Some(&layer.standing)
    }
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = "in place: ";
        for layer in &self.layers {
            if layer.standing == Standing::InPlace {
                write!(f, "{before}{}", layer.name)?;
                before = ", ";
            }
        }
        for layer in &self.layers {
            match &layer.standing {
                Standing::InPlace => {}
                Standing::Weaker(how) => write!(f, "; weaker: {} ({how})", layer.name)?,
                Standing::Missing(why) => write!(f, "; missing: {} ({why})", layer.name)?,
            }
        }
        Ok(())
    }
}
