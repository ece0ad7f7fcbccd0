//! A real snapshot, explained, drawn and compared.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use dormouse_explain::{Difference, Error, Explanation, Inspection, PageClass, Picture, Section};
use dormouse_pool::{FunctionConfig, Pool, PoolConfig};
use dormouse_snapshot::{FunctionName, PAGE_BYTES, Store, WorkingSet};

/// The image of a sample function; `None` where the host has no KVM and the user knows.
fn image(name: &str) -> Option<Vec<u8>> {
    if std::env::var_os("DORMOUSE_TEST_NO_KVM").is_some_and(|value| value == "1") {
        eprintln!("skipped: DORMOUSE_TEST_NO_KVM=1 is set, and this test needs KVM");
        return None;
    }
    let folder = std::env::var_os("DORMOUSE_TEST_IMAGES").expect("set by `cargo xtask test`");
    Some(fs::read(PathBuf::from(folder).join(name)).unwrap())
}

/// A store with `hello` under two names, the second with another configuration.
async fn store(folder: &tempfile::TempDir) -> Option<Store> {
    let image = image("hello")?;
    let store = Store::open(folder.path()).unwrap();
    let pool = Pool::new(store.clone(), PoolConfig::default());
    let other = FunctionConfig {
        timeout_ms: 1234,
        base: Some(1 << 30),
        ..FunctionConfig::default()
    };
    for (name, config) in [("one", FunctionConfig::default()), ("other", other)] {
        pool.deploy(name, image.clone().into(), config)
            .await
            .unwrap();
    }
    pool.drain(Duration::from_secs(1)).await;
    Some(store)
}

fn open(store: &Store, name: &str) -> Inspection {
    let function = FunctionName::new(name).unwrap();
    let id = store.manifest(&function).unwrap().id;
    Inspection::of(store, &function, &id).unwrap()
}

fn pages(explanation: &Explanation, class: PageClass) -> u64 {
    let classes = &explanation.memory.classes;
    let found = classes.iter().find(|all| all.class == class);
    found.expect("every class").pages
}

fn check_words(inspection: &Inspection) {
    let explanation = inspection.explain();
    assert!(explanation.notes.is_empty(), "{:?}", explanation.notes);
    let memory = &explanation.memory;
    assert_eq!(
        memory.pages,
        explanation.snapshot.memory_bytes / PAGE_BYTES as u64
    );
    let sum: u64 = memory.classes.iter().map(|class| class.pages).sum();
    assert_eq!(sum, memory.pages);
    let bytes: u64 = memory.classes.iter().map(|class| class.bytes).sum();
    assert_eq!(bytes, explanation.snapshot.memory_bytes);
    let zero = pages(&explanation, PageClass::Zero);
    assert_eq!(memory.pages - zero, explanation.snapshot.data_pages);
    for class in PageClass::ALL {
        assert!(pages(&explanation, class) > 0, "{class:?}: {memory:?}");
    }

    let symbol = |name: &str| {
        explanation
            .symbols
            .iter()
            .find(|symbol| symbol.name == name)
    };
    let page = symbol("dormouse_guest::port::PAGE").expect("the mailbox");
    assert_eq!((page.bytes, page.class), (4096, PageClass::FunctionData));
    let idt = symbol("hermit::arch::x86_64::kernel::interrupts::IDT").expect("the IDT");
    assert_eq!(idt.class, PageClass::KernelData);
    let largest = explanation.symbols.iter().map(|symbol| symbol.bytes);
    assert!(largest.is_sorted_by(|one, next| one >= next));

    let instruction = explanation.instruction.as_deref().expect("a symbol");
    assert!(instruction.contains("dormouse_guest::"), "{instruction}");
    assert_eq!(
        explanation.snapshot.abi_version,
        Some(dormouse_abi::ABI_VERSION)
    );
    let machine = &explanation.machine;
    let register = |name| {
        machine
            .control
            .registers
            .iter()
            .find(|found| found.name == name)
    };
    let bits = |name| register(name).map(|found: &dormouse_vmm::Register| found.bits.clone());
    let cr0 = bits("cr0").expect("CR0");
    assert!(
        ["PE", "PG", "WP"]
            .iter()
            .all(|bit| cr0.iter().any(|found| found == bit)),
        "{cr0:?}"
    );
    let efer = bits("efer").expect("EFER");
    assert!(efer.iter().any(|bit| bit == "LMA"), "{efer:?}");
    assert!(machine.host.features.iter().any(|feature| feature == "lm"));
    let stored: u64 = explanation.packs.iter().map(|pack| pack.stored_bytes).sum();
    assert!(stored > 0);

    let titles: Vec<Section> = explanation.text();
    let has = |title: &str| {
        titles
            .iter()
            .any(|section| section.title.starts_with(title))
    };
    for title in [
        "Snapshot",
        "Memory",
        "Largest symbols",
        "Registers",
        "Clocks",
        "Host",
        "Files",
    ] {
        assert!(has(title), "{title}");
    }
    for section in &titles {
        let widths = section
            .rows
            .iter()
            .map(Vec::len)
            .chain([section.header.len()]);
        let widths: Vec<_> = widths.filter(|width| *width > 0).collect();
        assert!(
            widths.windows(2).all(|pair| pair[0] == pair[1]),
            "{}",
            section.title
        );
    }
}

fn check_working_set(store: &Store) {
    let function = FunctionName::new("one").unwrap();
    let id = store.manifest(&function).unwrap().id;
    let data = open(store, "one").explain();
    let page = |name: &str| {
        let symbol = data.symbols.iter().find(|symbol| symbol.name == name);
        let address = u64::from_str_radix(&symbol.unwrap().address[2..], 16).unwrap();
        let base = u64::from_str_radix(&data.machine.base[2..], 16).unwrap();
        (address - base) / PAGE_BYTES as u64
    };
    let mailbox = page("dormouse_guest::port::PAGE");
    let idt = page("hermit::arch::x86_64::kernel::interrupts::IDT");
    let set = WorkingSet {
        order: vec![mailbox, idt],
        read: std::iter::once(idt..idt + 1).collect(),
        written: std::iter::once(mailbox..mailbox + 1).collect(),
    };
    store.save_working_set(&function, &id, &set).unwrap();
    let with = open(store, "one");
    let facts = with.explain().working_set.expect("a working set");
    assert_eq!((facts.read_pages, facts.written_pages), (1, 1));
    assert_eq!(facts.pages[0].page, mailbox);
    assert_eq!(facts.pages[0].symbols, ["dormouse_guest::port::PAGE"]);
    assert!(
        facts.pages[1]
            .symbols
            .iter()
            .any(|name| name.ends_with("::IDT"))
    );
    let without = open(store, "other");
    let difference = Difference::between(&without, &with).unwrap();
    let touched: u64 = difference
        .working_set
        .iter()
        .map(|change| change.pages)
        .sum();
    assert_eq!(touched, 2);
}

fn check_differences(one: &Inspection, other: &Inspection) {
    let same = Difference::between(one, one).unwrap();
    assert!(same.is_empty() && same.text().is_empty(), "{same:?}");

    let difference = Difference::between(one, other).unwrap();
    assert!(!difference.is_empty());
    let timeout = difference
        .config
        .iter()
        .find(|change| change.what == "timeout_ms");
    let timeout = timeout.expect("the timeout");
    assert_eq!((timeout.a.as_str(), timeout.b.as_str()), ("10000", "1234"));
    let names = |list: &[dormouse_explain::Change]| -> Vec<String> {
        list.iter().map(|change| change.what.clone()).collect()
    };
    let image = names(&difference.image);
    assert!(image.contains(&"base".to_owned()), "{image:?}");
    assert!(!image.contains(&"image_digest".to_owned()), "{image:?}");
    assert!(names(&difference.registers).contains(&"rip".to_owned()));
    assert!(names(&difference.clocks).contains(&"tsc".to_owned()));
    assert!(difference.host.is_empty(), "{:?}", difference.host);
    let changed: u64 = difference
        .memory
        .classes
        .iter()
        .map(|class| class.pages)
        .sum();
    assert_eq!(changed, difference.memory.changed_pages);
    let boot_time = "hermit::arch::x86_64::kernel::systemtime::BOOT_TIME";
    let symbols = &difference.memory.symbols;
    assert!(
        symbols.iter().any(|symbol| symbol.name == boot_time),
        "{symbols:?}"
    );
    let text = |class| {
        difference
            .memory
            .classes
            .iter()
            .any(|change| change.b == class)
    };
    assert!(
        !text(PageClass::FunctionText),
        "code does not change: {:?}",
        difference.memory
    );
}

fn check_pictures(folder: &tempfile::TempDir, one: &Inspection, other: &Inspection) {
    for (parent, name) in [(None, "image"), (Some(other), "parent")] {
        let picture = Picture::of(one, parent).unwrap();
        let svg = folder.path().join(format!("{name}.svg"));
        picture.write(&svg).unwrap();
        let text = fs::read_to_string(&svg).unwrap();
        let document = roxmltree::Document::parse(&text).unwrap();
        assert_eq!(document.root_element().tag_name().name(), "svg");
        let paths = document
            .descendants()
            .filter(|node| node.has_tag_name("path"));
        let cells: usize = paths
            .filter_map(|path| path.attribute("d"))
            .map(|d| d.matches("h6v6").count())
            .sum();
        assert_eq!(cells, 16384);

        let png = folder.path().join(format!("{name}.png"));
        picture.write(&png).unwrap();
        let file = std::io::BufReader::new(fs::File::open(&png).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        let view_box = format!("0 0 {} {}", info.width, info.height);
        assert_eq!(
            document.root_element().attribute("viewBox"),
            Some(&*view_box)
        );
        let colours: std::collections::BTreeSet<_> = pixels.chunks(3).collect();
        assert!(colours.len() > 4, "{}", colours.len());
    }
    for wrong in ["map.gif", "map", "svg"] {
        let error = Picture::of(one, None)
            .unwrap()
            .write(&folder.path().join(wrong));
        let error = error.unwrap_err();
        assert!(matches!(error, Error::UnknownPicture { .. }));
        assert!(error.to_string().contains(".svg or .png"), "{error}");
    }
    let nowhere = folder.path().join("no/such/map.png");
    let error = Picture::of(one, None).unwrap().write(&nowhere).unwrap_err();
    assert!(matches!(error, Error::Write { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_explained_drawn_and_compared() {
    let folder = tempfile::tempdir().unwrap();
    let Some(store) = store(&folder).await else {
        return;
    };
    let (one, other) = (open(&store, "one"), open(&store, "other"));
    check_words(&one);
    check_words(&other);
    check_differences(&one, &other);
    check_working_set(&store);
    check_pictures(&folder, &open(&store, "one"), &other);
}
