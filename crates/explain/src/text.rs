//! Explanations as tables, for people.

use dormouse_snapshot::PAGE_BYTES;
use dormouse_vmm::{Register, VmDescription};

use crate::class::PageClass;
use crate::difference::{Change, Difference, MemoryDifference};
use crate::explanation::{Access, Explanation, MemoryFacts, WorkingSetFacts};

/// The most rows of symbols and of pages; JSON has more.
const MAX_ROWS: usize = 24;

/// The most characters of a cell with a name, and of a line in a list of words.
const MAX_NAME_CHARS: usize = 64;
const MAX_LINE_CHARS: usize = 96;

/// A table with a title.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// What it is about.
    pub title: String,
    /// The names of its columns; none where its rows are names and values.
    pub header: Vec<String>,
    /// Its rows, each with as many cells.
    pub rows: Vec<Vec<String>>,
}

impl Section {
    fn new(title: &str, header: &[&str], rows: Vec<Vec<String>>) -> Self {
        Self {
            title: title.to_owned(),
            header: header.iter().map(|&name| name.to_owned()).collect(),
            rows,
        }
    }

    fn properties<'a>(title: &str, rows: impl IntoIterator<Item = (&'a str, String)>) -> Self {
        let rows = rows.into_iter();
        let rows = rows.map(|(name, value)| vec![name.to_owned(), value]);
        Self::new(title, &[], rows.collect())
    }
}

/// A size as people read it.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

fn pages(count: u64) -> String {
    let bytes = count.saturating_mul(PAGE_BYTES as u64);
    format!("{count} pages, {}", size(bytes))
}

/// Microseconds as people read them.
fn duration(us: u64) -> String {
    match us {
        0..10_000 => format!("{us} µs"),
        10_000..10_000_000 => format!("{} ms", us / 1000),
        _ => format!("{} s", us / 1_000_000),
    }
}

/// A name as far as there is room for it. Its end says more than its start.
fn name(name: &str) -> String {
    let chars = name.chars().count();
    if chars <= MAX_NAME_CHARS {
        return name.to_owned();
    }
    let end: String = name.chars().skip(chars - MAX_NAME_CHARS + 1).collect();
    format!("…{end}")
}

/// Words in lines.
fn lines(words: &[String]) -> String {
    let mut text = String::new();
    let mut line_chars = 0;
    for word in words {
        let chars = word.chars().count() + 1;
        if line_chars > 0 && line_chars + chars > MAX_LINE_CHARS {
            text.push('\n');
            line_chars = 0;
        } else if line_chars > 0 {
            text.push(' ');
        }
        text.push_str(word);
        line_chars += chars;
    }
    text
}

fn yes(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

fn or_none(text: &str) -> String {
    if text.is_empty() { "none" } else { text }.to_owned()
}

impl Explanation {
    /// The tables, most important first.
    #[must_use]
    pub fn text(&self) -> Vec<Section> {
        let mut sections = vec![self.snapshot_section(), classes(&self.memory)];
        sections.extend(self.symbol_section());
        sections.extend(self.working_set.iter().flat_map(working_set));
        sections.push(registers(
            &self.machine.registers,
            self.instruction.as_deref(),
        ));
        sections.extend(control(&self.machine));
        sections.push(self.clock_section());
        sections.push(self.host_section());
        let packs = self.packs.iter().map(|pack| {
            let (pages, used) = (pack.pages.to_string(), pack.used_pages.to_string());
            let (raw, stored) = (size(pack.raw_bytes), size(pack.stored_bytes));
            vec![pack.name.clone(), pages, used, raw, stored]
        });
        let packs: Vec<_> = packs.collect();
        if !packs.is_empty() {
            let header = ["PACK", "PAGES", "USED HERE", "RAW", "STORED"];
            sections.push(Section::new("Files", &header, packs));
        }
        if !self.notes.is_empty() {
            let notes = self.notes.iter().map(|note| vec![note.clone()]).collect();
            sections.push(Section::new("Not known", &[], notes));
        }
        sections
    }

    fn snapshot_section(&self) -> Section {
        let facts = &self.snapshot;
        let abi = facts.abi_version.map(|version| version.to_string());
        let mut rows = vec![
            ("function", facts.function.clone()),
            ("snapshot", facts.id.clone()),
            ("format", format!("version {}", facts.format_version)),
            (
                "abi",
                abi.map_or_else(|| "unknown".to_owned(), |abi| format!("version {abi}")),
            ),
            ("hypercalls", self.machine.interface.clone()),
            ("memory", pages(facts.memory_bytes / PAGE_BYTES as u64)),
            ("data", pages(facts.data_pages)),
            ("base", self.machine.base.clone()),
            ("kernel at", self.machine.load_address.clone()),
            ("mailbox at", facts.mailbox_address.clone()),
            ("state", size(facts.state_bytes)),
            ("image", size(facts.image_bytes)),
            ("image digest", facts.image_digest.clone()),
            ("config", facts.config.to_string()),
        ];
        match &self.layer {
            None => rows.push(("layer", "no, it has no parent".to_owned())),
            Some(layer) => {
                let parent = format!("{}@{}", layer.parent_function, layer.parent_id);
                rows.push(("parent", parent));
                rows.push(("depth", layer.depth.to_string()));
                if let (Some(shared), Some(own)) = (layer.shared_pages, layer.own_pages) {
                    rows.push(("shared with parent", pages(shared)));
                    rows.push(("own", pages(own)));
                }
            }
        }
        Section::properties("Snapshot", rows)
    }

    fn symbol_section(&self) -> Option<Section> {
        let shown = self.symbols.iter().take(MAX_ROWS).map(|symbol| {
            vec![
                name(&symbol.name),
                symbol.class.name().to_owned(),
                symbol.address.clone(),
                size(symbol.bytes),
                symbol.pages.to_string(),
                symbol.touched_pages.to_string(),
            ]
        });
        let shown: Vec<_> = shown.collect();
        let header = ["SYMBOL", "CLASS", "ADDRESS", "SIZE", "PAGES", "TOUCHED"];
        (!shown.is_empty()).then(|| Section::new("Largest symbols", &header, shown))
    }

    fn clock_section(&self) -> Section {
        let clocks = &self.machine.clocks;
        let place = |place: &Option<String>| place.clone().unwrap_or_else(|| "not found".into());
        Section::properties(
            "Clocks",
            [
                ("tsc", clocks.tsc.to_string()),
                ("tsc frequency", format!("{} kHz", clocks.tsc_khz)),
                ("tsc age", duration(clocks.uptime_us)),
                (
                    "tsc deadline",
                    match clocks.tsc_deadline {
                        0 => "none".to_owned(),
                        deadline => deadline.to_string(),
                    },
                ),
                (
                    "saved at",
                    format!("{} ms since 1970", clocks.saved_unix_ns / 1_000_000),
                ),
                ("kvm clock", yes(clocks.kvm_clock)),
                ("boot time at", place(&clocks.boot_time_at)),
                ("last reseed at", place(&clocks.last_reseed_at)),
                ("clones reseed", yes(clocks.reseeds)),
                ("host boot", clocks.host_boot_id.clone()),
            ],
        )
    }

    fn host_section(&self) -> Section {
        let host = &self.machine.host;
        let model = format!(
            "family {}, model {}, stepping {}",
            host.family, host.model, host.stepping
        );
        Section::properties(
            "Host",
            [
                ("vendor", host.vendor.clone()),
                ("cpu", model),
                ("kvm", host.kvm_flavour.clone()),
                ("ring 0 emulated", yes(host.emulated_ring0)),
                ("tsc settable", yes(host.tsc_settable)),
                ("features", lines(&host.features)),
            ],
        )
    }
}

fn classes(memory: &MemoryFacts) -> Section {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut sum = [0; 4];
    for class in &memory.classes {
        let counts = [
            class.pages,
            class.shared_pages,
            class.read_pages,
            class.written_pages,
        ];
        for (sum, count) in sum.iter_mut().zip(counts) {
            *sum += count;
        }
        rows.push(class_row(class.class.name(), counts));
    }
    rows.push(class_row("all", sum));
    let header = [
        "CLASS",
        "PAGES",
        "SIZE",
        "SHARED WITH PARENT",
        "READ",
        "WRITTEN",
    ];
    Section::new("Memory", &header, rows)
}

fn class_row(name: &str, [pages, shared, read, written]: [u64; 4]) -> Vec<String> {
    vec![
        name.to_owned(),
        pages.to_string(),
        size(pages.saturating_mul(PAGE_BYTES as u64)),
        shared.to_string(),
        read.to_string(),
        written.to_string(),
    ]
}

fn working_set(set: &WorkingSetFacts) -> Option<Section> {
    let rows = set.pages.iter().take(MAX_ROWS).map(|page| {
        let mut symbols: Vec<_> = page.symbols.iter().map(|symbol| name(symbol)).collect();
        if page.more_symbols > 0 {
            symbols.push(format!("and {} more", page.more_symbols));
        }
        vec![
            page.page.to_string(),
            page.address.clone(),
            match page.access {
                Access::Read => "read",
                Access::Written => "written",
            }
            .to_owned(),
            page.class.name().to_owned(),
            symbols.join("\n"),
        ]
    });
    let title = format!(
        "Working set: {} pages read, {} written, in the order of first touch",
        set.read_pages, set.written_pages
    );
    let rows: Vec<_> = rows.collect();
    let header = ["PAGE", "ADDRESS", "ACCESS", "CLASS", "SYMBOLS"];
    (!rows.is_empty()).then(|| Section::new(&title, &header, rows))
}

fn registers(registers: &[Register], instruction: Option<&str>) -> Section {
    let rows = registers.iter().map(|register| {
        let mut meaning = register.bits.join(" ");
        if register.name == "rip" {
            meaning = instruction.unwrap_or_default().to_owned();
        }
        vec![register.name.clone(), register.value.clone(), meaning]
    });
    Section::new(
        "Registers",
        &["REGISTER", "VALUE", "MEANING"],
        rows.collect(),
    )
}

fn control(machine: &VmDescription) -> [Section; 4] {
    let control = &machine.control;
    let segments = control.segments.iter().map(|segment| {
        vec![
            segment.name.clone(),
            segment.selector.clone().unwrap_or_default(),
            segment.base.clone(),
            segment.limit.clone(),
            segment.kind.clone(),
        ]
    });
    let lapic = &control.lapic;
    let vectors = |vectors: &[u8]| {
        let all: Vec<_> = vectors.iter().map(u8::to_string).collect();
        or_none(&all.join(" "))
    };
    let masked = if lapic.timer_masked { ", masked" } else { "" };
    let timer = format!(
        "{}, interrupt {}{masked}, counts from {}",
        lapic.timer_mode, lapic.timer_vector, lapic.initial_count
    );
    let mut control_registers = registers(&control.registers, None);
    "Control registers".clone_into(&mut control_registers.title);
    let mut msrs = registers(&control.msrs, None);
    "Model-specific registers".clone_into(&mut msrs.title);
    for row in &mut msrs.rows {
        row.pop();
    }
    msrs.header = vec!["MSR".to_owned(), "VALUE".to_owned()];
    [
        control_registers,
        Section::new(
            "Segments and tables",
            &["NAME", "SELECTOR", "BASE", "LIMIT", "KIND"],
            segments.collect(),
        ),
        Section::properties(
            "Interrupts",
            [
                ("vcpu", control.mp_state.clone()),
                ("under way", or_none(&control.pending.join(", "))),
                ("lapic enabled", yes(lapic.enabled)),
                ("lapic timer", timer),
                ("requested", vectors(&lapic.requested)),
                ("in service", vectors(&lapic.in_service)),
            ],
        ),
        msrs,
    ]
}

impl Difference {
    /// The tables, of what differs only.
    #[must_use]
    pub fn text(&self) -> Vec<Section> {
        let (one, other) = (self.a.as_str(), self.b.as_str());
        let changes = [
            ("Configuration", &self.config),
            ("Image", &self.image),
            ("Registers", &self.registers),
            ("Control state", &self.control),
            ("Clocks", &self.clocks),
            ("Host", &self.host),
        ];
        let changes = changes.into_iter().filter(|(_, list)| !list.is_empty());
        let mut sections: Vec<_> = changes
            .map(|(title, list)| {
                let row = |change: &Change| {
                    let Change { what, a, b } = change.clone();
                    vec![what, or_none(&a), or_none(&b)]
                };
                Section::new(title, &["WHAT", one, other], list.iter().map(row).collect())
            })
            .collect();
        sections.extend(memory_difference(&self.memory));
        let touched = self.working_set.iter().map(|change| {
            let (pages, class) = (change.pages.to_string(), change.class.name().to_owned());
            vec![class, change.a.clone(), change.b.clone(), pages]
        });
        let touched: Vec<_> = touched.collect();
        if !touched.is_empty() {
            let header = ["CLASS", one, other, "PAGES"];
            sections.push(Section::new("Working set", &header, touched));
        }
        sections
    }
}

fn memory_difference(memory: &MemoryDifference) -> Vec<Section> {
    let mut sections = Vec::new();
    let class = |class: PageClass| class.name().to_owned();
    let classes = memory.classes.iter().map(|change| {
        let pages = change.pages;
        vec![
            class(change.a),
            class(change.b),
            pages.to_string(),
            size(pages.saturating_mul(PAGE_BYTES as u64)),
        ]
    });
    let classes: Vec<_> = classes.collect();
    if !classes.is_empty() {
        let title = format!("Memory: {} changed", pages(memory.changed_pages));
        sections.push(Section::new(
            &title,
            &["WAS", "IS", "PAGES", "SIZE"],
            classes,
        ));
    }
    let symbols = memory.symbols.iter().take(MAX_ROWS).map(|symbol| {
        let bytes = symbol.changed_bytes.to_string();
        vec![name(&symbol.name), class(symbol.class), bytes]
    });
    let symbols: Vec<_> = symbols.collect();
    if !symbols.is_empty() {
        let header = ["SYMBOL", "CLASS", "CHANGED BYTES"];
        sections.push(Section::new("Symbols", &header, symbols));
    }
    sections
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_or_wrapped() {
        assert_eq!(name("a::b"), "a::b");
        let long = name(&"ü".repeat(100));
        assert_eq!(long.chars().count(), MAX_NAME_CHARS);
        assert!(long.starts_with('…'));
        let words = vec!["word".to_owned(); 50];
        let wrapped = lines(&words);
        assert!(wrapped.lines().all(|line| line.len() <= MAX_LINE_CHARS));
        assert_eq!(wrapped.split_whitespace().count(), 50);
    }

    #[test]
    fn sizes_and_times() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(4096), "4.0 KiB");
        assert_eq!(size(64 << 20), "64.0 MiB");
        assert_eq!(size(u64::MAX), "16.0 EiB");
        assert_eq!(duration(9999), "9999 µs");
        assert_eq!(duration(12_345), "12 ms");
    }
}
