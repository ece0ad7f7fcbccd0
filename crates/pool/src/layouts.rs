//! Deploying a function with several layouts: it is booted as often, each time at another base.

use dormouse_snapshot::{FunctionName, IfTagged, Layout, Manifest, SnapshotRef, Store};
use dormouse_vmm::{GuestImage, MachineConfig, Placement};

use crate::config::FunctionConfig;
use crate::deploy::{self, Published};
use crate::error::Error;
use crate::loading::Shared;

/// How many bases are drawn for each layout before there count as too few for a guest of that size.
const MOST_DRAWS: u32 = 64;

/// Boots `file` for each of the layouts that `config` asks for and publishes them, the newest last.
/// Blocks for as long as that takes. Where one fails, none stays.
pub(crate) fn boot_and_publish(
    store: &Store,
    name: &FunctionName,
    file: &[u8],
    config: &FunctionConfig,
    shared: &Shared,
) -> Result<Published, Error> {
    if config.layouts == 1 {
        return deploy::boot_and_publish(store, name, file, config, None, shared);
    }
    let bases = bases(file, config)?;
    let group = word()?;
    let mut all: Vec<Published> = Vec::new();
    for (index, base) in (0..config.layouts).zip(bases) {
        let layout = Layout {
            group: group.clone(),
            index,
            of: config.layouts,
        };
        let placed = Some((base, &layout));
        match deploy::boot_and_publish(store, name, file, config, placed, shared) {
            Ok(published) => all.push(published),
            Err(error) => {
                take_back(store, name, &all);
                return Err(error);
            }
        }
    }
    let sum = |part: fn(&Published) -> u64| all.iter().map(part).sum();
    let (boot_us, snapshot_us) = (sum(|one| one.boot_us), sum(|one| one.snapshot_us));
    let newest = all.pop().ok_or_else(|| Error::Internal {
        operation: "deploying a function with several layouts".into(),
        reason: "there are none".to_owned(),
    })?;
    Ok(Published {
        id: newest.id,
        boot_us,
        snapshot_us,
    })
}

/// Refuses what makes a snapshot of another, where that is one of several layouts: the function would
/// be served with the new one alone.
///
/// # Errors
/// [`Error::BadOption`].
pub(crate) fn refuse(manifest: &Manifest, what: &str) -> Result<(), Error> {
    match manifest.layout() {
        None => Ok(()),
        Some(layout) => Err(Error::BadOption {
            option: "layouts".into(),
            value: layout.of.to_string(),
            reason: format!("deploy {} with one layout to {what}", manifest.function),
        }),
    }
}

/// As many bases as there are to be layouts, all different.
fn bases(file: &[u8], config: &FunctionConfig) -> Result<Vec<u64>, Error> {
    let image = GuestImage::parse(file)?;
    let machine = MachineConfig {
        memory_bytes: config.memory_bytes,
        base: config.base,
        ..MachineConfig::default()
    };
    let mut bases = Vec::new();
    for _ in 0..config.layouts * MOST_DRAWS {
        if bases.len() == config.layouts as usize {
            break;
        }
        let Placement { base, .. } = Placement::choose(&machine, &image)?;
        if !bases.contains(&base) {
            bases.push(base);
        }
    }
    if bases.len() < config.layouts as usize {
        let reason = match image.fixed_base() {
            Some(base) => format!("the image can only be loaded for the base {base:#x}"),
            None => "there are not as many bases for a guest with so much memory".to_owned(),
        };
        return Err(Error::BadOption {
            option: "layouts".into(),
            value: config.layouts.to_string(),
            reason,
        });
    }
    Ok(bases)
}

/// A word that no other deployment has.
fn word() -> Result<String, Error> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|e| Error::Internal {
        operation: "naming a deployment's layouts".into(),
        reason: e.to_string(),
    })?;
    Ok(format!("{:016x}", u64::from_le_bytes(random)))
}

/// Removes the layouts of a deployment that failed, so that what was there before is the newest again.
fn take_back(store: &Store, name: &FunctionName, published: &[Published]) {
    for Published { id, .. } in published.iter().rev() {
        let function = name.clone();
        let snapshot = SnapshotRef { function, id: *id };
        if let Err(error) = store.remove_id(&snapshot, IfTagged::DropTags) {
            tracing::warn!(%snapshot, %error, "a layout of a deployment that failed stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images;

    #[test]
    fn bases_are_all_different() {
        let Some(file) = images::image("hello") else {
            return;
        };
        let mut config = FunctionConfig {
            layouts: Layout::MOST,
            ..FunctionConfig::default()
        };
        let mut all = bases(&file, &config).unwrap();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 16);

        // Where there is but one, that is said, and nothing is drawn for ever.
        config.base = Some(all[0]);
        let error = bases(&file, &config).unwrap_err().to_string();
        assert!(error.contains("not as many bases"), "{error}");
    }

    #[test]
    fn of_a_deployment_that_fails_nothing_stays() {
        let Some(file) = images::image("hello") else {
            return;
        };
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let name = FunctionName::new("hello").unwrap();
        let shared = Shared::alone();
        let deploy = |config: &FunctionConfig| {
            let deployed = boot_and_publish(&store, &name, &file, config, &shared);
            deployed.map(|published| published.id)
        };
        let before = deploy(&FunctionConfig::default()).unwrap();
        let config = FunctionConfig {
            layouts: 3,
            ..FunctionConfig::default()
        };
        let begun = ["a", "b"].map(|group| {
            let layout = Layout {
                group: group.to_owned(),
                index: 0,
                of: 3,
            };
            let placed = Some((0x1120_0000, &layout));
            deploy::boot_and_publish(&store, &name, &file, &config, placed, &shared).unwrap()
        });
        store
            .tag(
                &SnapshotRef {
                    function: name.clone(),
                    id: begun[1].id,
                },
                &"early".parse().unwrap(),
            )
            .unwrap();
        take_back(&store, &name, &begun);
        assert_eq!(store.served(&name).unwrap(), [before]);
        assert_eq!(store.list().unwrap().len(), 1);
    }

    #[test]
    fn deployments_have_words_of_their_own() {
        assert_ne!(word().unwrap(), word().unwrap());
    }
}
