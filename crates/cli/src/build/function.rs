//! Compiling a function's crate and linking it with the kernel.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use object::{Object, ObjectSection, ObjectSymbol};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Float;
use super::cache::Cache;
use super::cargo;
use super::toolchain::{Compiler, LinkTools};

const HARD_TARGET: &str = "x86_64-unknown-hermit";
const SOFT_TARGET: &str = "x86_64-dormouse-hermit";
/// The target whose CPU features the soft-float target takes: no SSE, floats by software.
const FEATURES_OF: &str = "x86_64-unknown-none";

/// The section by which a loader knows a Hermit application.
const HERMIT_NOTE: &str = ".note.hermit.entry-version";

/// What the host corrects in a clone, by parts of their mangled names: the kernel's clock and its
/// pool of random bytes.
const CORRECTED: [&str; 2] = ["systemtime9BOOT_TIME", "entropy4POOL"];

/// A binary of a crate.
#[derive(Debug)]
pub(super) struct Function {
    folder: PathBuf,
    /// Name of the binary.
    pub(super) name: String,
    /// The crate's own target folder.
    pub(super) target_folder: PathBuf,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    target_directory: PathBuf,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    manifest_path: PathBuf,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

impl Function {
    /// Reads the crate in `folder`. Without a lock file, cargo writes one here.
    pub(super) fn read(folder: &Path, bin: Option<&str>, compiler: &Compiler) -> Result<Self> {
        let manifest = folder.join("Cargo.toml");
        let mut command = cargo::command(compiler, folder);
        command
            .args(["metadata", "--format-version=1", "--quiet", cargo::colour()])
            .arg("--manifest-path")
            .arg(&manifest);
        let output = cargo::run(
            command,
            "reading the crate",
            "the function's crate cannot be read",
        )?;
        let metadata: Metadata = serde_json::from_slice(&output.stdout)
            .context("cargo metadata said something unexpected")?;
        let package = metadata
            .packages
            .into_iter()
            .find(|package| {
                fs::canonicalize(&package.manifest_path).is_ok_and(|path| path == manifest)
            })
            .ok_or_else(|| {
                anyhow!(
                    "{} is no package\nhint: name the folder of one function, not that of a \
                     workspace",
                    manifest.display()
                )
            })?;
        Ok(Self {
            folder: folder.to_owned(),
            name: choose_bin(&package, bin)?,
            target_folder: metadata.target_directory,
        })
    }

    /// Builds the function and returns where its image is.
    pub(super) fn compile(
        &self,
        cache: &Cache,
        compiler: &Compiler,
        tools: &LinkTools,
        float: Float,
        kernel: &Path,
    ) -> Result<PathBuf> {
        let targets = cache.folder("targets")?;
        let target = match float {
            Float::Hard => HARD_TARGET,
            Float::Soft => {
                let specification = soft_target(compiler)?;
                let path = targets.join(SOFT_TARGET).with_extension("json");
                super::write_if_changed(&path, &specification)?;
                SOFT_TARGET
            }
        };
        let target_dir = cache.folder("target")?;
        let mut command = cargo::command(compiler, &self.folder);
        command
            .args(["rustc", "--release", "--quiet", cargo::colour()])
            .args(["--bin", &self.name, "--target", target])
            // A crate's own claim is often too careful; its code decides.
            .arg("--ignore-rust-version")
            .arg("-Zbuild-std=std,panic_abort")
            .arg("-Zbuild-std-features=compiler-builtins-mem")
            .arg("--target-dir")
            .arg(&target_dir)
            .arg("--")
            .arg(cargo::option_with_path("-Clinker=", &tools.rust_lld))
            .arg(cargo::option_with_path("-Clink-arg=", kernel))
            .env("RUST_TARGET_PATH", &targets);
        let step = if target_dir.join(target).exists() {
            format!("building {}", self.name)
        } else {
            format!("building std (once) and {}", self.name)
        };
        let on_failure = format!("{} cannot be built", self.name);
        cargo::run(command, &step, &on_failure)?;
        let image = target_dir.join(target).join("release").join(&self.name);
        check(&image)?;
        Ok(image)
    }
}

fn choose_bin(package: &Package, wanted: Option<&str>) -> Result<String> {
    let bins: Vec<&str> = package
        .targets
        .iter()
        .filter(|target| target.kind.iter().any(|kind| kind == "bin"))
        .map(|target| target.name.as_str())
        .collect();
    match (wanted, bins.as_slice()) {
        (Some(wanted), bins) if bins.contains(&wanted) => Ok(wanted.to_owned()),
        (None, [only]) => Ok((*only).to_owned()),
        (_, []) => bail!(
            "the package {} has no binary\nhint: a function is a program with a `main` in \
             src/main.rs",
            package.name
        ),
        (_, bins) => bail!(
            "the package {} has the binaries {}\nhint: choose one with `--bin NAME`",
            package.name,
            bins.join(", ")
        ),
    }
}

/// Hermit's own target with floats by software. Made from what the compiler says of its built-in
/// targets, so that it fits the compiler.
fn soft_target(compiler: &Compiler) -> Result<String> {
    let mut hermit = specification(compiler, HARD_TARGET)?;
    let none = specification(compiler, FEATURES_OF)?;
    let soft = none["features"].as_str().unwrap_or_default();
    // The entropy instructions stay: they are no arithmetic, and std's users may ask for them.
    hermit.insert(
        "features".to_owned(),
        format!("{soft},+rdrnd,+rdseed").into(),
    );
    if let Some(abi) = none.get("rustc-abi") {
        hermit.insert("rustc-abi".to_owned(), abi.clone());
    }
    serde_json::to_string_pretty(&hermit).context("cannot write the target specification")
}

fn specification(compiler: &Compiler, target: &str) -> Result<Map<String, Value>> {
    let output = std::process::Command::new(&compiler.rustc)
        .args(["-Zunstable-options", "--print=target-spec-json", "--target"])
        .arg(target)
        .env("RUSTC_BOOTSTRAP", "1")
        .env_remove("LD_LIBRARY_PATH")
        .output()
        .with_context(|| format!("cannot start {}", compiler.rustc.display()))?;
    serde_json::from_slice(&output.stdout).with_context(|| {
        format!(
            "{} does not know the target {target}: {}",
            compiler.rustc.display(),
            String::from_utf8_lossy(&output.stderr).trim_end()
        )
    })
}

/// Makes sure that the link gave a Hermit application, not just an ELF file.
fn check(image: &Path) -> Result<()> {
    let bytes = fs::read(image).with_context(|| format!("cannot read {}", image.display()))?;
    let file = object::File::parse(&*bytes)
        .with_context(|| format!("{} is no ELF file", image.display()))?;
    if !file
        .sections()
        .any(|section| section.name() == Ok(HERMIT_NOTE))
    {
        bail!(
            "{} was linked without the Hermit kernel\nhint: remove the build cache and try again",
            image.display()
        );
    }
    if !has_symbols(&file) {
        eprintln!(
            "warning: the image has no symbols, so the host cannot correct the clock and the \
             random pool of its clones\nhint: in the crate's [profile.release], say `strip = \
             \"debuginfo\"` instead of `strip = true`"
        );
    }
    Ok(())
}

fn has_symbols(file: &object::File<'_>) -> bool {
    CORRECTED.iter().all(|part| {
        file.symbols()
            .any(|symbol| symbol.name().is_ok_and(|name| name.contains(part)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(bins: &[&str]) -> Package {
        let target = |kind: &str, name: &str| Target {
            name: name.to_owned(),
            kind: vec![kind.to_owned()],
        };
        let mut targets = vec![target("lib", "some-lib")];
        targets.extend(bins.iter().map(|name| target("bin", name)));
        Package {
            name: "p".to_owned(),
            manifest_path: PathBuf::new(),
            targets,
        }
    }

    #[test]
    fn the_only_binary_needs_no_name() {
        assert_eq!(choose_bin(&package(&["a"]), None).unwrap(), "a");
        assert_eq!(choose_bin(&package(&["a", "b"]), Some("b")).unwrap(), "b");
    }

    #[test]
    fn a_missing_choice_names_the_binaries() {
        let message =
            |bins: &[&str], wanted| choose_bin(&package(bins), wanted).unwrap_err().to_string();
        assert!(message(&["a", "b"], None).contains("binaries a, b"));
        assert!(message(&["a"], Some("x")).contains("binaries a"));
        assert!(message(&[], None).contains("no binary"));
    }

    #[test]
    fn the_sample_images_are_lean_and_keep_their_symbols() {
        // Set by `cargo xtask test`, which builds them.
        let Some(folder) = std::env::var_os("DORMOUSE_TEST_IMAGES") else {
            return;
        };
        let mut images = 0;
        for entry in fs::read_dir(folder).unwrap() {
            let image = entry.unwrap().path();
            check(&image).unwrap();
            let bytes = fs::read(&image).unwrap();
            assert!(bytes.len() < 1_200_000, "{}", image.display());
            let file = object::File::parse(&*bytes).unwrap();
            assert!(has_symbols(&file), "{}", image.display());
            images += 1;
        }
        assert!(images > 0);
    }
}
