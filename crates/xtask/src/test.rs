//! Every check and test, in one command.

use anyhow::Result;

use crate::repo::{Repo, run, run_openly};
use crate::{functions, fuzz, setup};

/// Sets up, builds the functions that the tests boot, and runs everything.
pub(crate) fn run_all(repo: &Repo) -> Result<()> {
    setup::run(repo)?;
    let dormouse = functions::dormouse_and_tests(repo)?;
    let images = functions::build(repo, &dormouse)?;

    // The functions are a workspace of their own, formatted and checked as the rest is.
    let mut format = repo.cargo();
    format.args(["fmt", "--all", "--check"]);
    run("checking the format", format)?;
    let mut format = repo.cargo();
    // Without `--all`, which would follow their dependencies back into this workspace.
    format
        .args(["fmt", "--check"])
        .current_dir(repo.path("functions"));
    run("checking the functions' format", format)?;
    for (what, folder) in [("the workspace", "."), ("the functions", "functions")] {
        let mut clippy = repo.cargo();
        clippy
            .args(["clippy", "--workspace", "--all-targets", "--quiet"])
            .args(["--", "-D", "warnings"])
            .current_dir(repo.path(folder));
        run(&format!("checking {what} with clippy"), clippy)?;
    }

    let mut test = repo.cargo();
    test.args(["test", "--workspace"])
        .env("DORMOUSE_TEST_IMAGES", &images);
    run_openly("running the tests", test)?;
    fuzz::run_all(repo)
}
