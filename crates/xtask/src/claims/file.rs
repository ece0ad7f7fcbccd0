//! benches/claims.toml: what README's numbers rest on. Its format is explained at its top.

use std::fs;

use anyhow::{Context, Result, ensure};
use glob::Pattern;
use regex::Regex;
use serde::Deserialize;

use crate::repo::Repo;

/// Where the claims are.
pub(super) const FILE: &str = "benches/claims.toml";

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Claims {
    #[serde(default, rename = "claim")]
    pub(super) claims: Vec<Claim>,
    #[serde(default, rename = "ignore")]
    pub(super) ignored: Vec<Ignored>,
    #[serde(default, rename = "constant")]
    pub(super) constants: Vec<Constant>,
}

/// Cells of a block's tables, and when their numbers hold. All rules that are given must.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Claim {
    pub(super) block: String,
    rows: Glob,
    column: Glob,
    /// At most what the row's own limit demands.
    #[serde(default)]
    pub(super) limit: bool,
    /// The same number.
    #[serde(default)]
    pub(super) equal: bool,
    /// At most this factor away, either way.
    pub(super) within: Option<f64>,
    /// At most this factor worse.
    pub(super) no_worse: Option<f64>,
    /// Whether less is worse.
    #[serde(default)]
    pub(super) more_is_better: bool,
    /// What the factors' rules let pass in any case, in the column's unit.
    #[serde(default)]
    pub(super) slack: f64,
    /// Whether the factors' rules mean something only on the machine that the block names.
    #[serde(default)]
    pub(super) absolute: bool,
}

/// Lines outside tables whose numbers claim nothing.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ignored {
    /// The block; outside of all blocks where there is none.
    pub(super) block: Option<String>,
    pub(super) line: Glob,
    reason: String,
}

/// Words of the prose that say a number, and where it comes from.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Constant {
    pub(super) says: String,
    pub(super) sources: Vec<Source>,
}

/// A file of the repository and what it says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Source {
    pub(super) file: String,
    pub(super) matches: Expression,
}

/// `*`, `?` and `[…]` stand for other characters.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Glob(Pattern);

/// A regular expression, by lines.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Expression(pub(super) Regex);

impl TryFrom<String> for Glob {
    type Error = glob::PatternError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Pattern::new(&text).map(Self)
    }
}

impl TryFrom<String> for Expression {
    type Error = regex::Error;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let mut builder = regex::RegexBuilder::new(&text);
        builder.multi_line(true).build().map(Self)
    }
}

impl Glob {
    pub(super) fn matches(&self, text: &str) -> bool {
        self.0.matches(text)
    }

    pub(super) fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl Claims {
    /// Reads the repository's claims.
    pub(super) fn read(repo: &Repo) -> Result<Self> {
        let text = fs::read_to_string(repo.path(FILE));
        let text = text.with_context(|| format!("cannot read {FILE}"))?;
        Self::parse(&text).with_context(|| format!("{FILE} is wrong"))
    }

    pub(super) fn parse(text: &str) -> Result<Self> {
        let claims: Self = toml::from_str(text)?;
        for claim in &claims.claims {
            claim.check().with_context(|| format!("claim {claim}"))?;
        }
        for ignored in &claims.ignored {
            let line = ignored.line.as_str();
            ensure!(!ignored.reason.trim().is_empty(), "{line:?} has no reason");
        }
        for constant in &claims.constants {
            let says = &constant.says;
            ensure!(!constant.sources.is_empty(), "{says:?} has no source");
        }
        Ok(claims)
    }

    /// The claim that decides about a cell: the first that fits.
    pub(super) fn find(
        &self,
        block: &str,
        row: &str,
        column: &str,
        has_limit: bool,
    ) -> Option<&Claim> {
        let mut claims = self.claims.iter();
        claims.find(|claim| {
            claim.block == block
                && claim.rows.matches(row)
                && claim.column.matches(column)
                && (has_limit || !claim.needs_limit())
        })
    }
}

impl Claim {
    fn check(&self) -> Result<()> {
        let factors = [self.within, self.no_worse];
        let mut factors = factors.into_iter().flatten();
        ensure!(
            self.limit || self.equal || factors.clone().next().is_some(),
            "it has no rule; give limit, equal, within or no_worse"
        );
        ensure!(
            factors.all(|factor| factor.is_finite() && factor >= 1.0),
            "a factor must be at least 1"
        );
        ensure!(
            self.slack.is_finite() && self.slack >= 0.0,
            "slack must not be negative"
        );
        Ok(())
    }

    /// Whether it says nothing about a row without a limit.
    fn needs_limit(&self) -> bool {
        self.limit && !self.equal && self.within.is_none() && self.no_worse.is_none()
    }
}

/// Where it applies.
impl std::fmt::Display for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            block,
            rows,
            column,
            ..
        } = self;
        write!(f, "{block}:{}:{}", rows.as_str(), column.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_claim_that_fits_decides() {
        let claims = Claims::parse(
            "
            [[claim]]
            block = 'engine'
            rows = 'memory/*'
            column = 'OURS'
            limit = true

            [[claim]]
            block = 'engine'
            rows = '*'
            column = '*'
            within = 1.5
            ",
        )
        .unwrap();
        let found = |block, row, column, has_limit| {
            let claim = claims.find(block, row, column, has_limit);
            claim.map(|claim| (claim.limit, claim.within))
        };
        let (limit, within) = (Some((true, None)), Some((false, Some(1.5))));
        assert_eq!(found("engine", "memory/pss/10", "OURS", true), limit);
        assert_eq!(found("engine", "memory/bare", "OURS", false), within);
        assert_eq!(found("engine", "memory/pss/10", "FLOOR", true), within);
        assert_eq!(found("demo", "hello", "OURS", true), None);
    }

    #[test]
    fn what_could_never_fail_or_never_hold_is_refused() {
        let claim = "[[claim]]\nblock = 'a'\nrows = '*'\ncolumn = '*'\n";
        for (text, said) in [
            (claim.to_owned(), "it has no rule"),
            (format!("{claim}within = 0.5"), "a factor must be"),
            (format!("{claim}no_worse = inf"), "a factor must be"),
            (format!("{claim}equal = true\nslack = -1"), "slack must not"),
            (format!("{claim}withn = 2.0"), "unknown field"),
            (
                "[[ignore]]\nline = '*'\nreason = ' '".to_owned(),
                "has no reason",
            ),
            (
                "[[constant]]\nsays = '6 MiB'\nsources = []".to_owned(),
                "has no source",
            ),
            (
                "[[ignore]]\nline = '['\nreason = 'a'".to_owned(),
                "attern syntax error",
            ),
        ] {
            let error = format!("{:#}", Claims::parse(&text).unwrap_err());
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
