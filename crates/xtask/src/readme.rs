//! Writes measured figures into README.md, with the machine that they were measured on.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

const BEGIN: &str = "<!-- demo:begin -->";
const END: &str = "<!-- demo:end -->";

/// Replaces what stands between the marks of a README by `transcript` and the machine's facts.
pub(crate) fn write(path: &Path, transcript: &str) -> Result<()> {
    let readme = fs::read_to_string(path);
    let readme = readme.with_context(|| format!("cannot read {}", path.display()))?;
    let figures = format!(
        "What it shows, as `cargo xtask demo --once --readme` wrote it here\n({}):\n\n```text\n{}\n```\n",
        machine(),
        transcript.trim_end()
    );
    let written = replace(&readme, &figures)
        .with_context(|| format!("{} lacks the marks {BEGIN} and {END}", path.display()))?;
    fs::write(path, written).with_context(|| format!("cannot write {}", path.display()))
}

fn replace(readme: &str, figures: &str) -> Option<String> {
    let (before, rest) = readme.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{figures}{END}{after}"))
}

/// CPU, cores, memory, kernel and KVM module of this machine, in one line.
fn machine() -> String {
    let file = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, label: &str| {
        let line = text.lines().find(|line| line.starts_with(label));
        let value = line
            .and_then(|line| line.split_once(':'))
            .map(|(_, value)| value.trim());
        value.unwrap_or("unknown").to_owned()
    };
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let memory = field(&file("/proc/meminfo"), "MemTotal");
    let memory_kib = memory
        .split(' ')
        .next()
        .and_then(|kib| kib.parse::<u64>().ok());
    let kvm = ["pvm", "intel", "amd"]
        .into_iter()
        .find(|name| fs::exists(format!("/sys/module/kvm_{name}")).unwrap_or(false));
    let kvm = match kvm {
        Some("pvm") => {
            "kvm_pvm: nested, without hardware help, guest kernel code emulated".to_owned()
        }
        Some(name) => format!("kvm_{name}"),
        None => "KVM of an unknown kind".to_owned(),
    };
    format!(
        "{}, {cores} cores, {} GiB, Linux {}, {kvm}",
        field(&file("/proc/cpuinfo"), "model name"),
        memory_kib.map_or(0, |kib| (kib + (1 << 19)) >> 20),
        file("/proc/sys/kernel/osrelease").trim(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_marks_changes() {
        let readme = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        let expected = format!("a\n{BEGIN}\nnew\n{END}\nb\n");
        assert_eq!(replace(&readme, "new\n"), Some(expected));
        assert_eq!(replace("no marks", "new\n"), None);
    }
}
