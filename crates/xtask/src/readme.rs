//! Writes measured figures into README.md, with the machine that they were measured on.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// A block of a README, `<!-- name:begin -->` to `<!-- name:end -->`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block {
    /// Its name.
    pub(crate) name: &'static str,
    /// What stands above the figures.
    pub(crate) title: &'static str,
}

impl Block {
    /// Replaces what stands in the block by `figures` and the machine's facts.
    pub(crate) fn write(self, path: &Path, figures: &str) -> Result<()> {
        let readme = fs::read_to_string(path);
        let readme = readme.with_context(|| format!("cannot read {}", path.display()))?;
        let figures = format!(
            "{}\n({}):\n\n```text\n{}\n```\n",
            self.title,
            machine(),
            figures.trim_end()
        );
        let written = self.replace(&readme, &figures);
        let written = written.with_context(|| {
            let [begin, end] = self.marks();
            format!("{} lacks the marks {begin} and {end}", path.display())
        })?;
        fs::write(path, written).with_context(|| format!("cannot write {}", path.display()))
    }

    fn marks(self) -> [String; 2] {
        ["begin", "end"].map(|end| format!("<!-- {}:{end} -->", self.name))
    }

    fn replace(self, readme: &str, figures: &str) -> Option<String> {
        let [begin, end] = self.marks();
        let (before, rest) = readme.split_once(&begin)?;
        let (_, after) = rest.split_once(&end)?;
        Some(format!("{before}{begin}\n{figures}{end}{after}"))
    }
}

/// CPU, cores, memory, kernel and KVM module of this machine, in one line.
pub(crate) fn machine() -> String {
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
        let block = Block {
            name: "demo",
            title: "What it shows",
        };
        let around = |text| format!("a\n<!-- demo:begin -->\n{text}\n<!-- demo:end -->\nb\n");
        let written = block.replace(&around("old"), "new\n");
        assert_eq!(written, Some(around("new")));
        assert_eq!(block.replace("no marks", "new\n"), None);
    }
}
