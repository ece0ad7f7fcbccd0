//! `dormouse doctor`: what this host has, and what that means.

use std::fs;

use anyhow::Result;
use clap::Args;
use dormouse_vmm::{Host, HostProfile};
use schemars::JsonSchema;
use serde::Serialize;

use crate::exit::{Exit, Failed};
use crate::output::{self, Format};

/// Probes KVM, userfaultfd, CPU and memory, and says what was found and what it means
///
/// Ends with 69 where something is missing that Dormouse cannot do without.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// How the findings are printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    /// There, and well.
    Ok,
    /// It works, but look.
    Note,
    /// Not there; nothing works without it.
    Missing,
}

impl Verdict {
    fn of(present: bool, required: bool) -> Self {
        match (present, required) {
            (true, _) => Self::Ok,
            (false, false) => Self::Note,
            (false, true) => Self::Missing,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Missing => "MISSING",
        }
    }
}

/// What is printed.
pub(crate) type Findings = Vec<Finding>;

/// One thing that was looked at.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Finding {
    subject: String,
    verdict: Verdict,
    found: String,
    meaning: String,
}

fn finding(
    subject: impl Into<String>,
    verdict: Verdict,
    found: impl Into<String>,
    meaning: impl Into<String>,
) -> Finding {
    Finding {
        subject: subject.into(),
        verdict,
        found: found.into(),
        meaning: meaning.into(),
    }
}

/// Runs the command.
pub(crate) fn doctor(args: &DoctorArgs) -> Result<()> {
    let mut findings = kvm();
    findings.extend(userfaultfd());
    findings.extend(memory(
        &fs::read_to_string("/proc/meminfo").unwrap_or_default(),
    ));
    findings.push(kernel());

    match args.format {
        Format::Json => output::json(&serde_json::to_value(&findings)?)?,
        Format::Table => {
            let rows: Vec<_> = findings
                .iter()
                .map(|f| {
                    let word = f.verdict.word();
                    [
                        f.subject.as_str(),
                        word,
                        f.found.as_str(),
                        f.meaning.as_str(),
                    ]
                })
                .collect();
            output::rows(&["WHAT", "VERDICT", "FOUND", "MEANING"], &rows)?;
        }
    }

    let missing: Vec<_> = findings
        .iter()
        .filter(|finding| finding.verdict == Verdict::Missing)
        .map(|finding| finding.subject.as_str())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Failed::new(
        Exit::Unavailable,
        format!(
            "this host cannot run functions: it lacks {}",
            missing.join(", ")
        ),
    )
    .hint("the column MEANING says what to do")
    .into())
}

fn kvm() -> Findings {
    let host = match Host::open() {
        Ok(host) => host,
        Err(error) => {
            return vec![finding(
                "kvm",
                Verdict::Missing,
                "not usable",
                error.to_string(),
            )];
        }
    };
    let profile = host.profile();
    let mut findings = vec![
        finding(
            "kvm",
            Verdict::Ok,
            profile.kvm_flavour.clone(),
            "microVMs can run; snapshots stay on hosts of this kind",
        ),
        cpu(profile),
        ring0(profile),
        tsc(profile),
    ];
    for capability in host.capabilities() {
        findings.push(finding(
            format!("kvm {}", capability.name),
            Verdict::of(capability.present, capability.required),
            there(capability.present),
            capability.meaning,
        ));
    }
    findings
}

fn cpu(profile: &HostProfile) -> Finding {
    finding(
        "cpu",
        Verdict::Ok,
        format!("{} {:#x}", profile.vendor, profile.signature),
        "snapshots can be restored on CPUs of the same vendor and model",
    )
}

fn ring0(profile: &HostProfile) -> Finding {
    if profile.emulated_ring0 {
        finding(
            "guest ring 0",
            Verdict::Note,
            "emulated",
            "guests run far slower than on hardware virtualization, and without SSE: build \
             images soft-float, as `dormouse build` does",
        )
    } else {
        finding(
            "guest ring 0",
            Verdict::Ok,
            "native",
            "guests run at full speed",
        )
    }
}

fn tsc(profile: &HostProfile) -> Finding {
    let found = format!("{} kHz", profile.tsc_khz);
    if profile.tsc_settable {
        finding(
            "guest clock",
            Verdict::Ok,
            found,
            "a guest's TSC can be set",
        )
    } else {
        finding(
            "guest clock",
            Verdict::Note,
            found + ", the host's own",
            "a guest's TSC cannot be set: snapshots older than the host's boot have to be made \
             anew",
        )
    }
}

fn userfaultfd() -> Findings {
    let support = match dormouse_pager::probe() {
        Ok(support) => support,
        Err(error) => {
            let meaning = error.to_string();
            return vec![finding(
                "userfaultfd",
                Verdict::Missing,
                "not usable",
                meaning,
            )];
        }
    };
    let mut findings = vec![finding(
        "userfaultfd",
        Verdict::of(support.usable(), true),
        there(support.usable()),
        "snapshots can be restored lazily, page by page",
    )];
    findings.extend(support.features.iter().map(|feature| {
        finding(
            feature.name,
            Verdict::of(feature.present, feature.required),
            there(feature.present),
            feature.purpose,
        )
    }));
    findings
}

/// `meminfo` is the text of `/proc/meminfo`.
fn memory(meminfo: &str) -> Option<Finding> {
    let bytes = |name: &str| {
        let line = meminfo.lines().find(|line| line.starts_with(name))?;
        let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kib * 1024)
    };
    let (total, available) = (bytes("MemTotal:")?, bytes("MemAvailable:")?);
    let enough = available >= 512 << 20;
    Some(finding(
        "memory",
        Verdict::of(enough, false),
        format!(
            "{} available of {}",
            output::bytes(available),
            output::bytes(total)
        ),
        "guests share their snapshots' pages and own the pages that they write",
    ))
}

fn kernel() -> Finding {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let pages = "6.6 and later can do all that the pager knows";
    finding("kernel", Verdict::Ok, release.trim(), pages)
}

fn there(present: bool) -> &'static str {
    if present { "present" } else { "absent" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_meminfo() {
        let text = "MemTotal:  2097152 kB\nMemFree: 1 kB\nMemAvailable:  1048576 kB\n";
        let memory = memory(text).unwrap();
        assert_eq!(memory.verdict, Verdict::Ok);
        assert_eq!(memory.found, "1.00 GiB available of 2.00 GiB");
        let text = text.replace("1048576", "1024");
        assert_eq!(super::memory(&text).unwrap().verdict, Verdict::Note);
        assert!(super::memory("MemTotal: lots\n").is_none());
    }

    #[test]
    fn only_what_is_required_is_missing() {
        assert_eq!(Verdict::of(false, true), Verdict::Missing);
        assert_eq!(Verdict::of(false, false), Verdict::Note);
        assert_eq!(Verdict::of(true, true), Verdict::Ok);
    }
}
