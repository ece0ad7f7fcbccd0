//! Headless Chromium, which opens pages from files and needs no network.

use std::fs;
use std::path::Path;
use std::process::Command;

/// What the browser made of a page.
pub(crate) struct Opened {
    /// The document after it was loaded.
    pub(crate) dom: String,
    /// What it had to say of it, one line each.
    pub(crate) console: Vec<String>,
}

/// A decoded screenshot.
pub(crate) struct Shot {
    pub(crate) width: usize,
    pub(crate) height: usize,
    /// Red, green and blue.
    pixels: Vec<[u8; 3]>,
}

impl Shot {
    /// How many colours there are between these lines and columns.
    pub(crate) fn colours(&self, left: usize, top: usize, right: usize, bottom: usize) -> usize {
        let (right, bottom) = (right.min(self.width), bottom.min(self.height));
        let rows = (top..bottom).map(|row| row * self.width);
        let mut found: Vec<[u8; 3]> = rows
            .flat_map(|start| self.pixels[start + left..start + right].iter().copied())
            .collect();
        found.sort_unstable();
        found.dedup();
        found.len()
    }
}

/// Opens a page in a window of this size and reads the document back.
pub(crate) fn open(page: &Path, size: (usize, usize)) -> Opened {
    let (dom, console) = run(page, size, &["--dump-dom".to_owned()]);
    Opened { dom, console }
}

/// Opens a page in a window of this size and looks at it.
pub(crate) fn shoot(page: &Path, size: (usize, usize), file: &Path) -> Shot {
    run(page, size, &[format!("--screenshot={}", file.display())]);
    let image = fs::File::open(file).expect("a screenshot");
    let mut decoder = png::Decoder::new(std::io::BufReader::new(image));
    decoder.set_transformations(png::Transformations::EXPAND | png::Transformations::ALPHA);
    let mut reader = decoder.read_info().expect("a PNG");
    let mut bytes = vec![0; reader.output_buffer_size().expect("its size")];
    let info = reader.next_frame(&mut bytes).expect("its pixels");
    assert_eq!(info.color_type, png::ColorType::Rgba);
    let pixels = bytes
        .chunks_exact(4)
        .map(|pixel| [pixel[0], pixel[1], pixel[2]]);
    Shot {
        width: info.width as usize,
        height: info.height as usize,
        pixels: pixels.collect(),
    }
}

fn run(page: &Path, (width, height): (usize, usize), wanted: &[String]) -> (String, Vec<String>) {
    let profile = tempfile::tempdir().expect("a folder for its profile");
    let output = Command::new("chromium")
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            "--virtual-time-budget=2000",
            "--hide-scrollbars",
            "--force-device-scale-factor=1",
            "--enable-logging=stderr",
            "--v=0",
        ])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("--window-size={width},{height}"))
        .args(wanted)
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap_or_else(|error| {
            panic!("chromium cannot be run ({error}); `cargo xtask setup` installs it")
        });
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "chromium failed: {log}");
    let console = log.lines().filter(|line| line.contains("CONSOLE"));
    (
        String::from_utf8(output.stdout).expect("a document in UTF-8"),
        console.map(str::to_owned).collect(),
    )
}
