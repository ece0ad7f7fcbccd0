//! What a page of guest memory holds.

use std::collections::BTreeMap;
use std::ops::Range;

use schemars::JsonSchema;
use serde::Serialize;

/// What a page of guest memory holds; the crate's page says how that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PageClass {
    /// Page tables.
    PageTables,
    /// What the loader has put below the kernel.
    BootData,
    /// The kernel's instructions.
    KernelText,
    /// The kernel's variables.
    KernelData,
    /// The function's instructions.
    FunctionText,
    /// The function's variables.
    FunctionData,
    /// Constants and tables of the image, of kernel and function.
    Constants,
    /// A stack.
    Stack,
    /// Memory that was allocated.
    Heap,
    /// Nothing but zeros.
    Zero,
}

impl PageClass {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 10] = [
        Self::PageTables,
        Self::BootData,
        Self::KernelText,
        Self::KernelData,
        Self::FunctionText,
        Self::FunctionData,
        Self::Constants,
        Self::Stack,
        Self::Heap,
        Self::Zero,
    ];

    /// What it is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PageTables => "page tables",
            Self::BootData => "boot data",
            Self::KernelText => "kernel text",
            Self::KernelData => "kernel data",
            Self::FunctionText => "function text",
            Self::FunctionData => "function data",
            Self::Constants => "constants",
            Self::Stack => "stack",
            Self::Heap => "heap",
            Self::Zero => "zero",
        }
    }
}

/// The class of every page: those that are not zero in runs, ascending.
#[derive(Debug)]
pub(crate) struct Classes {
    runs: Vec<(Range<u64>, PageClass)>,
}

impl Classes {
    /// Pages of `data` that are not in `known` are heap.
    pub(crate) fn new(data: &[Range<u64>], known: &BTreeMap<u64, PageClass>) -> Self {
        let mut runs: Vec<(Range<u64>, PageClass)> = Vec::new();
        let mut push = |range: Range<u64>, class| match runs.last_mut() {
            _ if range.is_empty() => {}
            Some((last, same)) if last.end == range.start && *same == class => {
                last.end = range.end;
            }
            _ => runs.push((range, class)),
        };
        for range in data {
            let mut next = range.start;
            for (&page, &class) in known.range(range.clone()) {
                push(next..page, PageClass::Heap);
                push(page..page + 1, class);
                next = page + 1;
            }
            push(next..range.end, PageClass::Heap);
        }
        Self { runs }
    }

    /// Pages that are not zero, in runs of one class.
    pub(crate) fn runs(&self) -> &[(Range<u64>, PageClass)] {
        &self.runs
    }

    pub(crate) fn of(&self, page: u64) -> PageClass {
        let after = self.runs.partition_point(|(range, _)| range.end <= page);
        match self.runs.get(after) {
            Some((range, class)) if range.contains(&page) => *class,
            _ => PageClass::Zero,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_has_one_class() {
        let known = BTreeMap::from([
            (2, PageClass::Stack),
            (3, PageClass::Stack),
            (5, PageClass::KernelText),
            (7, PageClass::Stack),
        ]);
        let classes = Classes::new(&[1..5, 7..9], &known);
        let found: Vec<_> = (0..10).map(|page| classes.of(page)).collect();
        use PageClass::{Heap, Stack, Zero};
        assert_eq!(
            found,
            [
                Zero, Heap, Stack, Stack, Heap, Zero, Zero, Stack, Heap, Zero
            ]
        );
        let pages: u64 = classes.runs().iter().map(|(r, _)| r.end - r.start).sum();
        assert_eq!(pages, 6);
    }
}
