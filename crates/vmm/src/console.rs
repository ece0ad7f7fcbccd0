//! What a guest writes, and what its kernel's words mean.

/// Where a guest wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// File descriptor 1.
    Stdout,
    /// File descriptor 2.
    Stderr,
    /// The kernel's console.
    Kernel,
}

/// Takes what a guest writes. Called on the vCPU's thread, so it should be quick.
pub trait GuestOutput: Send {
    /// Takes some bytes; they need not be text or whole lines.
    fn write(&mut self, stream: Stream, bytes: &[u8]);
}

/// Recognises CPU exceptions in the kernel's console text.
///
/// A Hermit kernel that meets an exception prints what it knows, ends the task and then idles for
/// ever without telling its host, so the text is the only sign. Its reports start with one of
/// [`MARKERS`] and end with the closing brace of the printed stack frame.
#[derive(Debug, Default)]
pub(crate) struct ExceptionWatch {
    /// The text from the last line start, or from the marker once there is one.
    text: String,
    seen: bool,
}

/// A report is printed line by line; one that is longer than this is not a report.
const MAX_REPORT_BYTES: usize = 16 * 1024;

/// What a report's first line contains.
const MARKERS: [&str; 5] = [
    "Page fault (#PF)!",
    ") Exception: ",
    "Exception ",
    "PANIC",
    "panicked at",
];

impl ExceptionWatch {
    /// Takes console bytes. True once a report has begun.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> bool {
        self.text.push_str(&String::from_utf8_lossy(bytes));
        if !self.seen {
            match MARKERS
                .iter()
                .filter_map(|marker| self.text.find(marker))
                .min()
            {
                Some(at) => {
                    let line = self.text[..at].rfind('\n').map_or(0, |newline| newline + 1);
                    self.text.drain(..line);
                    self.seen = true;
                }
                None => {
                    let keep = self.text.rfind('\n').map_or(0, |newline| newline + 1);
                    self.text.drain(..keep);
                }
            }
        }
        if self.text.len() > MAX_REPORT_BYTES {
            // Of a report the beginning tells; anything else can go.
            let mut keep = if self.seen { MAX_REPORT_BYTES } else { 0 };
            while !self.text.is_char_boundary(keep) {
                keep -= 1;
            }
            self.text.truncate(keep);
        }
        self.seen
    }

    /// Whether the report is complete.
    pub(crate) fn is_complete(&self) -> bool {
        self.seen && self.text.contains("\n}")
    }

    /// The report, shortened to what tells: the exception, the address and the instruction.
    pub(crate) fn summary(&self, name: impl Fn(u64) -> Option<String>) -> String {
        let mut lines = self.text.lines().map(strip_prefix);
        let first = lines.next().unwrap_or_default();
        let first = first
            .split(": InterruptStackFrame")
            .next()
            .unwrap_or(first)
            .trim();
        let mut summary = first.to_owned();
        if let Some(address) = hex_after(&self.text, FAULT_ADDRESS) {
            summary.push_str(&format!(" at address {address:#x}"));
        }
        if let Some(address) = self.instruction() {
            summary.push_str(&format!(", instruction at {address:#x}"));
            if let Some(name) = name(address) {
                summary.push_str(&format!(" in {name}"));
            }
        }
        summary
    }

    /// Where the instruction stands that the report is about.
    pub(crate) fn instruction(&self) -> Option<u64> {
        hex_after(&self.text, INSTRUCTION)
    }

    /// The registers that the report names.
    pub(crate) fn registers(&self) -> Vec<(&'static str, u64)> {
        [("rip", INSTRUCTION), ("rsp", STACK), ("cr2", FAULT_ADDRESS)]
            .into_iter()
            .filter_map(|(name, label)| Some((name, hex_after(&self.text, label)?)))
            .collect()
    }
}

/// What stands before the numbers of a report.
const INSTRUCTION: &str = "instruction_pointer: VirtAddr(";
const STACK: &str = "stack_pointer: VirtAddr(";
const FAULT_ADDRESS: &str = "page_fault_linear_address = ";

/// Drops the kernel's `[LEVEL]`-like prefixes.
fn strip_prefix(line: &str) -> &str {
    let mut rest = line.trim_start();
    while let Some((_, after)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        rest = after.trim_start();
    }
    rest.trim_start_matches("ERROR")
        .trim_start_matches(':')
        .trim_start()
}

/// The hexadecimal number that follows `label`, digits perhaps separated by underscores or spaces.
fn hex_after(text: &str, label: &str) -> Option<u64> {
    let at = text.find(label)? + label.len();
    let rest = text[at..].trim_start();
    let digits = rest.strip_prefix("0x")?;
    let end = digits
        .find(|c: char| !c.is_ascii_hexdigit() && c != '_')
        .unwrap_or(digits.len());
    u64::from_str_radix(&digits[..end].replace('_', ""), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_in_pieces_is_recognised_when_it_ends() {
        let mut watch = ExceptionWatch::default();
        assert!(!watch.feed(b"[0][INFO ] all is well\n[0][ERR"));
        assert!(watch.feed(b"OR] Page fault (#PF)!\n[0][ERROR] page_fault_linear_address = 0x123"));
        assert!(!watch.is_complete());
        watch.feed(b"4\nstack_frame = InterruptStackFrame {\n instruction_pointer: VirtAddr(\n");
        watch.feed(b"        0x40321a,\n    ),\n}\n");
        assert!(watch.is_complete());
        assert_eq!(
            watch.summary(|_| Some("main+0x1".to_owned())),
            "Page fault (#PF)! at address 0x1234, instruction at 0x40321a in main+0x1"
        );
    }

    #[test]
    fn ordinary_text_is_no_report() {
        let mut watch = ExceptionWatch::default();
        for _ in 0..10_000 {
            assert!(!watch.feed(b"an exceptional line\n"));
        }
        assert!(watch.text.len() < 100);
    }
}
