//! What differs between two snapshots.

use std::collections::BTreeMap;

use dormouse_snapshot::WorkingSet;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use crate::class::PageClass;
use crate::contents::{self, Page};
use crate::error::Result;
use crate::inspection::Inspection;
use crate::spans;

/// The most symbols that are told, those with the most changed bytes.
const MAX_SYMBOLS: usize = 256;

/// What differs between two snapshots. When and under which id they were taken does not count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct Difference {
    /// The first snapshot, `function@id`.
    pub a: String,
    /// The second.
    pub b: String,
    /// The functions' configuration.
    pub config: Vec<Change>,
    /// The image, and where it was loaded.
    pub image: Vec<Change>,
    /// What the program sees of the CPU.
    pub registers: Vec<Change>,
    /// What the kernel has set.
    pub control: Vec<Change>,
    /// Time.
    pub clocks: Vec<Change>,
    /// The host.
    pub host: Vec<Change>,
    /// Guest memory.
    pub memory: MemoryDifference,
    /// Pages that the first runs touched differently, by class and access.
    pub working_set: Vec<TouchChange>,
}

/// A value that differs. Nothing is empty text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Change {
    /// What it is.
    pub what: String,
    /// What it is in the first snapshot.
    pub a: String,
    /// What it is in the second.
    pub b: String,
}

/// Pages that differ, compared by their numbers from the guests' bases.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct MemoryDifference {
    /// How many pages differ. Pages that only one of the guests has count where they have data.
    pub changed_pages: u64,
    /// These pages by what they hold.
    pub classes: Vec<ClassChange>,
    /// Symbols whose bytes differ, where both have the same image; at most 256.
    pub symbols: Vec<SymbolChange>,
}

/// Changed pages of one class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ClassChange {
    /// What the pages hold in the first snapshot.
    pub a: PageClass,
    /// What they hold in the second.
    pub b: PageClass,
    /// How many there are.
    pub pages: u64,
}

/// A symbol whose bytes differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct SymbolChange {
    /// Its name.
    pub name: String,
    /// The class of what it is.
    pub class: PageClass,
    /// How many of its bytes differ.
    pub changed_bytes: u64,
}

/// Pages that the first runs touched differently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct TouchChange {
    /// What they hold in the second snapshot.
    pub class: PageClass,
    /// `read`, `written` or `untouched` by the runs of the first.
    pub a: String,
    /// The same of the second.
    pub b: String,
    /// How many there are.
    pub pages: u64,
}

impl Difference {
    /// Compares two snapshots; reads all memory that either stores.
    ///
    /// # Errors
    /// [`Error::Store`](crate::Error::Store) when memory cannot be read or is damaged.
    pub fn between(a: &Inspection, b: &Inspection) -> Result<Self> {
        let name = |inspection: &Inspection| {
            let manifest = &inspection.manifest;
            format!("{}@{}", manifest.function, manifest.id)
        };
        let (ours, theirs) = (value(&a.machine), value(&b.machine));
        let part = |name: &str| changes(&ours[name], &theirs[name]);
        let mut image = changes(&image_facts(a), &image_facts(b));
        for name in ["base", "memory_bytes", "load_address", "interface"] {
            push_changes(&mut image, name, &ours[name], &theirs[name]);
        }
        let mut registers = part("registers");
        let instruction = |inspection: &Inspection| value(&inspection.instruction);
        push_changes(&mut registers, "rip in", &instruction(a), &instruction(b));
        Ok(Self {
            a: name(a),
            b: name(b),
            config: changes(&a.manifest.config, &b.manifest.config),
            image,
            registers,
            control: part("control"),
            clocks: part("clocks"),
            host: part("host"),
            memory: memory(a, b)?,
            working_set: working_set(a, b),
        })
    }

    /// Whether nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let lists = [
            &self.config,
            &self.image,
            &self.registers,
            &self.control,
            &self.clocks,
            &self.host,
        ];
        lists.into_iter().all(Vec::is_empty)
            && self.memory.changed_pages == 0
            && self.working_set.is_empty()
    }
}

/// Anything that can be serialized, to be compared by its parts.
fn value(of: &impl Serialize) -> Value {
    // What is serialized here has text for keys and no number that JSON has not.
    serde_json::to_value(of).unwrap_or_default()
}

fn image_facts(inspection: &Inspection) -> Value {
    let manifest = &inspection.manifest;
    serde_json::json!({
        "image_digest": manifest.image_digest.to_string(),
        "image_bytes": manifest.image_bytes,
        "abi_version": inspection.abi_version,
        "mailbox": format!("{:#x}", inspection.mailbox_address),
    })
}

fn changes(a: &Value, b: &Value) -> Vec<Change> {
    let mut changes = Vec::new();
    push_changes(&mut changes, "", a, b);
    changes
}

/// Appends every leaf that differs below `path`.
fn push_changes(changes: &mut Vec<Change>, path: &str, a: &Value, b: &Value) {
    if a == b {
        return;
    }
    let below = |name: &str| match path {
        "" => name.to_owned(),
        _ => format!("{path}.{name}"),
    };
    if let (Some(ours), Some(theirs)) = (children(a), children(b)) {
        let names = ours
            .keys()
            .chain(theirs.keys().filter(|name| !ours.contains_key(*name)));
        for name in names {
            let child = |of: &BTreeMap<String, Value>| of.get(name).cloned().unwrap_or_default();
            push_changes(changes, &below(name), &child(&ours), &child(&theirs));
        }
        return;
    }
    changes.push(Change {
        what: path.to_owned(),
        a: leaf(a),
        b: leaf(b),
    });
}

/// The parts of a value: an object's members, or a list's elements by their names. A register is
/// one thing, whatever is said of its bits.
fn children(of: &Value) -> Option<BTreeMap<String, Value>> {
    match of {
        Value::Object(members) if members.contains_key("value") => None,
        Value::Object(members) => Some(members.clone().into_iter().collect()),
        Value::Array(elements) => {
            let named = elements.iter().map(|element| {
                let name = element.get("name")?.as_str()?.to_owned();
                let mut element = element.clone();
                element.as_object_mut()?.remove("name");
                Some((name, element))
            });
            named.collect()
        }
        _ => None,
    }
}

fn leaf(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(elements) => {
            let all: Vec<_> = elements.iter().map(leaf).collect();
            all.join(" ")
        }
        Value::Object(members) if members.contains_key("value") => {
            let bits = members.get("bits").map(leaf).unwrap_or_default();
            let value = leaf(&members["value"]);
            match bits.is_empty() {
                true => value,
                false => format!("{value} {bits}"),
            }
        }
        other => other.to_string(),
    }
}

fn memory(a: &Inspection, b: &Inspection) -> Result<MemoryDifference> {
    let mut classes: BTreeMap<(PageClass, PageClass), u64> = BTreeMap::new();
    let mut changed_bytes: BTreeMap<usize, u64> = BTreeMap::new();
    let has_same_image = a.manifest.image_digest == b.manifest.image_digest;
    let mut compare = |page: u64, ours: &Page, theirs: &Page| {
        if ours == theirs {
            return;
        }
        *classes
            .entry((a.classes.of(page), b.classes.of(page)))
            .or_default() += 1;
        let addresses = b.addresses(page);
        if !has_same_image || b.image.symbols_in(addresses.clone()).is_empty() {
            return;
        }
        let start = addresses.start;
        let pairs = (start..).zip(ours.iter().zip(theirs));
        for (address, _) in pairs.filter(|(_, (ours, theirs))| ours != theirs) {
            if let Some(symbol) = b.image.symbol_at(address) {
                *changed_bytes.entry(symbol).or_default() += 1;
            }
        }
    };
    contents::for_each_pair(&a.memory, &b.memory, &mut compare)?;

    let shared = a.memory.pages().min(b.memory.pages());
    for (inspection, is_first) in [(a, true), (b, false)] {
        for (range, class) in inspection.classes.runs() {
            let pages = range.end.saturating_sub(range.start.max(shared));
            if pages > 0 {
                let change = match is_first {
                    true => (*class, PageClass::Zero),
                    false => (PageClass::Zero, *class),
                };
                *classes.entry(change).or_default() += pages;
            }
        }
    }
    let mut symbols: Vec<_> = changed_bytes
        .into_iter()
        .map(|(at, changed_bytes)| {
            let symbol = &b.image.symbols()[at];
            SymbolChange {
                name: symbol.name.clone(),
                class: symbol.class,
                changed_bytes,
            }
        })
        .collect();
    symbols.sort_by_key(|symbol| std::cmp::Reverse(symbol.changed_bytes));
    symbols.truncate(MAX_SYMBOLS);
    Ok(MemoryDifference {
        changed_pages: classes.values().sum(),
        classes: classes
            .into_iter()
            .map(|((a, b), pages)| ClassChange { a, b, pages })
            .collect(),
        symbols,
    })
}

fn access(set: Option<&WorkingSet>, page: u64) -> &'static str {
    match set {
        Some(set) if spans::contains(&set.written, page) => "written",
        Some(set) if spans::contains(&set.read, page) => "read",
        _ => "untouched",
    }
}

fn working_set(a: &Inspection, b: &Inspection) -> Vec<TouchChange> {
    let (ours, theirs) = (a.working_set.as_ref(), b.working_set.as_ref());
    let mut touched: Vec<u64> = [ours, theirs]
        .into_iter()
        .flatten()
        .flat_map(|set| set.order.iter().copied())
        .collect();
    touched.sort_unstable();
    touched.dedup();
    let mut counts: BTreeMap<(PageClass, &str, &str), u64> = BTreeMap::new();
    for page in touched {
        let (was, is) = (access(ours, page), access(theirs, page));
        if was != is {
            *counts.entry((b.classes.of(page), was, is)).or_default() += 1;
        }
    }
    let changes = counts
        .into_iter()
        .map(|((class, a, b), pages)| TouchChange {
            class,
            a: a.to_owned(),
            b: b.to_owned(),
            pages,
        });
    changes.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn leaves_that_differ_are_named() {
        let a = json!({"list": [{"name": "cr0", "value": "0x1", "bits": ["PE"]}], "x": {"y": 1}});
        let b =
            json!({"list": [{"name": "cr0", "value": "0x0"}], "x": {"y": 1, "z": null, "w": [1]}});
        let found = changes(&a, &b);
        let found: Vec<_> = found
            .iter()
            .map(|change| (change.what.as_str(), change.a.as_str(), change.b.as_str()))
            .collect();
        assert_eq!(found, [("list.cr0", "0x1 PE", "0x0"), ("x.w", "", "1")]);
        assert!(changes(&a, &a).is_empty());
    }
}
