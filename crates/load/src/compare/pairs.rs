//! Which runs belong together.

use super::CompareError;
use crate::Run;

/// Runs that belong together, and those without company.
#[derive(Debug)]
pub(super) struct Pairs<'a> {
    pub(super) both: Vec<(&'a Run, &'a Run)>,
    pub(super) only_in_base: Vec<String>,
    pub(super) only_in_new: Vec<String>,
}

/// Pairs runs by their names, or the only ones of both sides whatever their names are.
pub(super) fn pair<'a>(
    base: &'a [Run],
    new: &'a [Run],
    name: Option<&str>,
) -> Result<Pairs<'a>, CompareError> {
    let all_names = |runs: &[Run]| runs.iter().map(|run| run.name.clone()).collect();
    let (bases, news) = (selected(base, name)?, selected(new, name)?);
    if let Some(run) = name
        && (bases.is_empty() || news.is_empty())
    {
        return Err(CompareError::NoSuchRun {
            run: run.to_owned(),
            side: match (bases.is_empty(), news.is_empty()) {
                (true, true) => "either record",
                (true, false) => "the base",
                _ => "the new record",
            },
            base: all_names(base),
            new: all_names(new),
        });
    }
    if let ([base], [new]) = (bases.as_slice(), news.as_slice()) {
        return Ok(Pairs {
            both: vec![(base, new)],
            only_in_base: Vec::new(),
            only_in_new: Vec::new(),
        });
    }
    let (mut both, mut only_in_base, mut left) = (Vec::new(), Vec::new(), news);
    for base in bases {
        // Of several runs of one name, the first belongs to the first.
        if let Some(place) = left.iter().position(|new| new.name == base.name) {
            both.push((base, left.remove(place)));
        } else {
            only_in_base.push(base.name.clone());
        }
    }
    if both.is_empty() {
        return Err(CompareError::NothingInCommon {
            base: all_names(base),
            new: all_names(new),
        });
    }
    Ok(Pairs {
        both,
        only_in_base,
        only_in_new: left.into_iter().map(|run| run.name.clone()).collect(),
    })
}

/// The runs with a name, or with names of a pattern.
fn selected<'a>(runs: &'a [Run], name: Option<&str>) -> Result<Vec<&'a Run>, CompareError> {
    let Some(name) = name else {
        return Ok(runs.iter().collect());
    };
    // A name that stands there as it is need not be a pattern.
    let exact: Vec<&Run> = runs.iter().filter(|run| run.name == name).collect();
    if !exact.is_empty() {
        return Ok(exact);
    }
    let pattern = glob::Pattern::new(name).map_err(|source| CompareError::BadPattern {
        run: name.to_owned(),
        source,
    })?;
    let matching = runs.iter().filter(|run| pattern.matches(&run.name));
    Ok(matching.collect())
}
