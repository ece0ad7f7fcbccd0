//! Whether what README.md says of a cell holds beside a fresh run.

use super::account::Claimed;
use super::file::Claim;
use super::number;
use super::page::{Block, Row, Table};

/// The column that says what is demanded of a row.
const LIMIT: &str = "LIMIT";
/// What stands in it where that is not kept.
const OVER: &str = "OVER";

/// One cell of README.md beside the fresh one.
#[derive(Debug)]
pub(super) struct Verdict {
    /// Block, row and column.
    pub(super) name: String,
    pub(super) says: String,
    /// The fresh cell.
    pub(super) now: String,
    /// When it holds.
    pub(super) rule: String,
    pub(super) outcome: Outcome,
}

#[derive(Debug, PartialEq)]
pub(super) enum Outcome {
    Holds,
    /// Why, in words that go on where the name ends.
    Fails(String),
    /// README's figure is another machine's.
    OtherMachine,
}

/// How the fresh run was taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    /// On a machine with the facts that README names.
    pub(super) same_machine: bool,
    /// What factors are widened by.
    pub(super) widened: f64,
}

/// What is demanded of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Limit {
    at_most: f64,
    marked_over: bool,
}

impl Limit {
    fn is_kept_by(&self, values: &[f64]) -> bool {
        !self.marked_over && values.iter().all(|value| *value <= self.at_most)
    }
}

/// The demand in a row's own column for it.
pub(super) fn limit_of(table: &Table, row: &Row) -> Option<Limit> {
    let column = table.column(LIMIT, 0)?;
    let cell = row.cells.get(column)?;
    let (numbers, rest) = number::split(cell);
    let [at_most] = numbers[..] else {
        return None;
    };
    Some(Limit {
        at_most: at_most.parse().ok()?,
        marked_over: rest.contains(OVER),
    })
}

/// Holds a cell of README.md against the fresh block.
pub(super) fn judge(claim: &Claim, claimed: &Claimed<'_>, fresh: &Block, run: Run) -> Verdict {
    let old_limit = limit_of(claimed.table, claimed.row).filter(|_| claim.limit);
    let mut verdict = Verdict {
        name: claimed.name(),
        says: claimed.cell().to_owned(),
        now: String::new(),
        rule: rule(claim, old_limit, run),
        outcome: Outcome::Holds,
    };
    let Some((table, row)) = fresh.row(claimed.row.name()) else {
        verdict.outcome = Outcome::Fails("was not measured: the row is gone".to_owned());
        return verdict;
    };
    let before = claimed.table.before(claimed.column);
    let cell = table.column(claimed.column_name(), before);
    let Some(now) = cell.and_then(|column| row.cells.get(column)) else {
        verdict.outcome = Outcome::Fails("was not measured: the column is gone".to_owned());
        return verdict;
    };
    verdict.now.clone_from(now);
    let sides = Sides {
        says: &verdict.says,
        now,
        old_limit,
        new_limit: limit_of(table, row).filter(|_| claim.limit),
    };
    verdict.outcome = sides.outcome(claim, run);
    verdict
}

/// A rule in words: as much of it as is compared in this run, where that is anything.
fn rule(claim: &Claim, limit: Option<Limit>, run: Run) -> String {
    let mut rules: Vec<String> = Vec::new();
    if let Some(limit) = limit {
        let over = if limit.marked_over { ", or OVER" } else { "" };
        rules.push(format!("at most {}{over}", limit.at_most));
    }
    if claim.equal {
        rules.push("the same".to_owned());
    }
    if !rules.is_empty() && claim.is_elsewhere(run) && !limit.is_some_and(|l| l.marked_over) {
        return rules.join(", ");
    }
    let slack = match claim.slack {
        0.0 => String::new(),
        slack => format!(" (or {slack})"),
    };
    let factor = |factor: f64| (factor * run.widened * 100.0).round() / 100.0;
    if let Some(within) = claim.within.map(factor) {
        rules.push(format!("within {within} times{slack}"));
    }
    if let Some(no_worse) = claim.no_worse.map(factor) {
        rules.push(format!("at most {no_worse} times worse{slack}"));
    }
    rules.join(", ")
}

impl Claim {
    /// Whether its factors mean nothing in this run.
    fn is_elsewhere(&self, run: Run) -> bool {
        self.absolute && !run.same_machine
    }
}

struct Sides<'a> {
    says: &'a str,
    now: &'a str,
    old_limit: Option<Limit>,
    new_limit: Option<Limit>,
}

impl Sides<'_> {
    fn outcome(&self, claim: &Claim, run: Run) -> Outcome {
        let ((old, old_rest), (new, new_rest)) =
            (number::split(self.says), number::split(self.now));
        let shape = |rest: &str| rest.replace(OVER, "").trim().to_owned();
        if shape(&old_rest) != shape(&new_rest) {
            return self.fails("is of another kind");
        }
        if claim.equal && old != new {
            return self.fails("is not the same");
        }
        let (old, new) = (values(&old), values(&new));
        // README may say itself that a limit is not kept; then it holds, and less does no harm.
        let was_kept = self.old_limit.map(|limit| limit.is_kept_by(&old));
        match (was_kept, self.new_limit) {
            (Some(_), None) => return self.fails("has no limit any more"),
            (Some(true), Some(limit)) if !limit.is_kept_by(&new) => {
                return self.fails(&format!("is over its limit of {}", limit.at_most));
            }
            _ => {}
        }
        if claim.is_elsewhere(run) {
            let is_checked = claim.equal || was_kept == Some(true);
            return if is_checked {
                Outcome::Holds
            } else {
                Outcome::OtherMachine
            };
        }
        let pairs = || old.iter().copied().zip(new.iter().copied());
        if let Some(factor) = claim.within.map(|factor| factor * run.widened)
            && !pairs().all(|(old, new)| {
                is_no_worse(old, new, factor, claim.slack)
                    && is_no_worse(new, old, factor, claim.slack)
            })
        {
            return self.fails(&format!("is more than {factor:.2} times away"));
        }
        if let Some(factor) = claim.no_worse.map(|factor| factor * run.widened)
            && !pairs().all(|(old, new)| {
                let (old, new) = match claim.more_is_better {
                    true => (new, old),
                    false => (old, new),
                };
                is_no_worse(old, new, factor, claim.slack)
            })
        {
            return self.fails(&format!("is more than {factor:.2} times worse"));
        }
        Outcome::Holds
    }

    fn fails(&self, why: &str) -> Outcome {
        let Self { says, now, .. } = self;
        Outcome::Fails(format!("{why}: README says {says}, measured now: {now}"))
    }
}

/// What is no plain number holds under no rule but `equal`.
fn values(numbers: &[&str]) -> Vec<f64> {
    let numbers = numbers.iter();
    numbers
        .map(|number| number.parse().unwrap_or(f64::NAN))
        .collect()
}

/// Whether `new` is larger than `old` by `factor` or `slack` at most.
fn is_no_worse(old: f64, new: f64, factor: f64, slack: f64) -> bool {
    new <= old * factor || new - old <= slack
}

#[cfg(test)]
mod tests {
    use super::super::account::cells;
    use super::super::file::Claims;
    use super::super::page::Page;
    use super::*;

    const HERE: Run = Run {
        same_machine: true,
        widened: 1.0,
    };
    const ELSEWHERE: Run = Run {
        same_machine: false,
        ..HERE
    };

    fn page(says: &str, limit: &str) -> Page {
        let table = format!(
            "WHAT   {:>20}  {:>9}\nrow/1  {says:>20}  {limit:>9}",
            "OURS", LIMIT
        );
        Page::parse(&format!(
            "<!-- a:begin -->\n```text\n{table}\n```\n<!-- a:end -->\n"
        ))
        .unwrap()
    }

    /// What becomes of `says` beside `now` where a claim has these rules.
    fn outcome(rules: &str, says: [&str; 2], now: [&str; 2], run: Run) -> Outcome {
        let claim = format!("[[claim]]\nblock = 'a'\nrows = '*'\ncolumn = 'OURS'\n{rules}");
        let claims = Claims::parse(&claim).unwrap();
        let [says, now] = [says, now].map(|[ours, limit]| page(ours, limit));
        let claimed = cells(&says.blocks[0]).next().unwrap();
        judge(&claims.claims[0], &claimed, &now.blocks[0], run).outcome
    }

    fn holds(rules: &str, says: &str, now: &str) -> bool {
        outcome(rules, [says, "9"], [now, "9"], HERE) == Outcome::Holds
    }

    #[test]
    fn within_is_either_way() {
        for (now, expected) in [
            ("100", true),
            ("149", true),
            ("151", false),
            ("67", true),
            ("66", false),
            ("–", false),
            ("100 (cold)", false),
        ] {
            assert_eq!(holds("within = 1.5", "100", now), expected, "{now}");
        }
        assert!(holds("within = 1.5", "6.00…13.0", "7.00…12.0"));
        assert!(!holds("within = 1.5", "6.00…13.0", "7.00…22.0"));
        assert!(!holds("within = 1.5", "0.70", "-0.70"));
        assert!(holds("within = 1.5", "-0.70", "-0.70"));
    }

    #[test]
    fn no_worse_is_one_way() {
        assert!(holds("no_worse = 1.5", "100", "1"));
        assert!(!holds("no_worse = 1.5", "100", "151"));
        let more = "no_worse = 1.5\nmore_is_better = true";
        assert!(holds(more, "100", "1000"));
        assert!(!holds(more, "100", "66"));
    }

    #[test]
    fn slack_is_for_what_is_nearly_nothing() {
        assert!(!holds("within = 1.5", "0", "0.50"));
        assert!(holds("within = 1.5\nslack = 1.0", "0", "0.50"));
        assert!(!holds("within = 1.5\nslack = 1.0", "0", "1.50"));
        assert!(holds("within = 1.5", "0…0", "0…0"));
    }

    #[test]
    fn a_limit_is_held_against_the_rows_own() {
        let limit = |says, now| outcome("limit = true", says, now, ELSEWHERE);
        assert_eq!(limit(["1.10", "1.25"], ["1.25", "1.25"]), Outcome::Holds);
        assert_eq!(
            limit(["1.10", "1.25"], ["1.30", "1.25 OVER"]),
            Outcome::Fails(
                "is over its limit of 1.25: README says 1.10, measured now: 1.30".to_owned()
            )
        );
        // Rounded to what the limit is, and over it all the same.
        let rounded = limit(["1.10", "1.25"], ["1.25", "1.25 OVER"]);
        assert!(matches!(rounded, Outcome::Fails(_)));
        // What README admits is no lie.
        assert_eq!(
            limit(["1.30", "1.25 OVER"], ["1.40", "1.25 OVER"]),
            Outcome::Holds
        );
        assert_eq!(
            limit(["1.30", "1.25 OVER"], ["1.20", "1.25"]),
            Outcome::Holds
        );
        assert!(matches!(
            limit(["1.10", "1.25"], ["1.10", ""]),
            Outcome::Fails(_)
        ));
    }

    #[test]
    fn the_limit_itself_may_not_change_quietly() {
        assert!(holds("equal = true", "0.40", "0.40"));
        assert!(holds("equal = true", "0.40 OVER", "0.40"));
        assert!(!holds("equal = true", "0.40", "0.50"));
        assert!(holds("equal = true", "6.18.44", "6.18.44"));
        assert!(!holds("within = 2.0", "6.18.44", "6.18.44"));
    }

    #[test]
    fn absolute_figures_of_another_machine_are_not_compared() {
        let rules = "within = 1.5\nabsolute = true";
        let told = |rules, now, run| outcome(rules, ["100", "120"], [now, "120"], run);
        assert_eq!(told(rules, "100", ELSEWHERE), Outcome::OtherMachine);
        assert_eq!(told(rules, "999", ELSEWHERE), Outcome::OtherMachine);
        assert!(matches!(told(rules, "999", HERE), Outcome::Fails(_)));
        assert!(matches!(
            told("within = 1.5", "999", ELSEWHERE),
            Outcome::Fails(_)
        ));
        let limited = format!("{rules}\nlimit = true");
        // A limit is checked anywhere, and counts where README says that it is kept.
        assert_eq!(told(&limited, "110", ELSEWHERE), Outcome::Holds);
        let over = |run| outcome(&limited, ["130", "120 OVER"], ["999", "120 OVER"], run);
        assert_eq!(over(ELSEWHERE), Outcome::OtherMachine);
        assert!(matches!(over(HERE), Outcome::Fails(_)));
        assert!(matches!(
            told(&limited, "130", ELSEWHERE),
            Outcome::Fails(_)
        ));
    }

    #[test]
    fn a_quick_run_widens_factors_and_no_limits() {
        let quick = Run {
            widened: 1.5,
            ..HERE
        };
        let told = |rules| outcome(rules, ["100", "120"], ["150", "120 OVER"], quick);
        assert_eq!(told("within = 1.1"), Outcome::Holds);
        assert!(matches!(told("limit = true"), Outcome::Fails(_)));
    }

    #[test]
    fn what_is_not_measured_any_more_does_not_hold() {
        let claims = Claims::parse(
            "[[claim]]\nblock = 'a'\nrows = '*'\ncolumn = 'OURS'\nwithin = 2.0\nlimit = true",
        )
        .unwrap();
        let says = page("1.00", "2.00");
        let claimed = cells(&says.blocks[0]).next().unwrap();
        let mut fresh = page("1.00", "2.00");
        let verdict = judge(&claims.claims[0], &claimed, &fresh.blocks[0], HERE);
        assert_eq!(verdict.name, "a:row/1:OURS");
        assert_eq!(verdict.rule, "at most 2, within 2 times");
        assert_eq!(verdict.outcome, Outcome::Holds);
        fresh.blocks[0].tables.clear();
        let verdict = judge(&claims.claims[0], &claimed, &fresh.blocks[0], HERE);
        let said = "was not measured: the row is gone";
        assert_eq!(verdict.outcome, Outcome::Fails(said.to_owned()));
    }
}
