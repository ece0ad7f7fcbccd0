//! `cargo xtask golden`: the only command that writes snapshots/golden.

use anyhow::Result;

use crate::repo::{Repo, run};

/// Writes the golden snapshots and states with this build.
pub(crate) fn run_all(repo: &Repo) -> Result<()> {
    for (package, which, test) in [
        ("dormouse-vmm", "--lib", "state::tests::write_golden"),
        ("dormouse-snapshot", "--test=store", "golden::write_golden"),
    ] {
        let mut write = repo.cargo();
        write
            .args(["test", "--quiet", "--package", package, which])
            .args(["--", "--ignored", "--exact", test]);
        run(
            &format!("writing what {package} has in snapshots/golden"),
            write,
        )?;
    }
    eprintln!("snapshots/golden is written: `git diff --stat snapshots/golden` shows what changed");
    Ok(())
}
