//! Exit codes, and errors that know theirs.

use std::fmt;

use dormouse_server::ErrorCode;

/// How the command ends. The numbers are those of BSD's `sysexits.h` where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// The function failed, or answered with a status of 500 or more.
    Function = 1,
    /// The command line is wrong, or asks for what is not allowed.
    Usage = 2,
    /// The image, or other input, cannot be used.
    Data = 65,
    /// There is no such function, snapshot, tag or input file.
    NoInput = 66,
    /// The host, or the server, is not there or cannot do it.
    Unavailable = 69,
    /// Something failed inside Dormouse.
    Internal = 70,
    /// Try again later.
    Temporary = 75,
    /// What answered is not this version's server.
    Protocol = 76,
}

impl Exit {
    /// The code that goes with an error, whatever was said around it.
    pub(crate) fn of(error: &anyhow::Error) -> Self {
        use dormouse_explain::Error as Explain;
        use dormouse_snapshot::Error as Store;
        for cause in error.chain() {
            if let Some(failed) = cause.downcast_ref::<Failed>() {
                return failed.exit;
            }
            if let Some(Explain::Write { .. }) = cause.downcast_ref() {
                return Self::Unavailable;
            }
            let store = match cause.downcast_ref() {
                Some(Explain::Store(error)) => Some(error),
                _ => cause.downcast_ref::<Store>(),
            };
            match store {
                Some(
                    Store::InvalidName { .. }
                    | Store::InvalidId { .. }
                    | Store::InvalidTag { .. }
                    | Store::Tagged { .. }
                    | Store::HasLayers { .. }
                    | Store::OneLayout { .. },
                ) => return Self::Usage,
                Some(
                    Store::UnknownFunction { .. }
                    | Store::UnknownSnapshot { .. }
                    | Store::UnknownSequence { .. }
                    | Store::UnknownTag { .. }
                    | Store::DanglingTag { .. },
                ) => return Self::NoInput,
                Some(Store::InUse { .. }) => return Self::Temporary,
                Some(Store::Io { .. }) => return Self::Unavailable,
                Some(Store::Refused { .. }) | None => {}
                // The rest is about what the files hold.
                Some(_) => return Self::Data,
            }
        }
        Self::Internal
    }
}

/// The text for `--help`.
pub(crate) const HELP: &str = "\
Exit codes:
   0  it worked
   1  the function failed, or answered with a status of 500 or more
   2  the command line, a name or an option is wrong, or what it asks is not allowed
  65  the image or other input cannot be used
  66  there is no such function, snapshot, tag or file
  69  the host lacks something (`dormouse doctor` says what), or no server answers
  70  something failed inside Dormouse
  75  try again later: queue full, too slow, in use, shutting down
  76  what answers is not a Dormouse server of this version
`dormouse run` ends with the program's own exit code.";

/// An error with its exit code and, where there is one, the next step.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) exit: Exit,
    message: String,
    hint: Option<String>,
}

impl Failed {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            hint: None,
        }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// An error of the API.
    pub(crate) fn of_code(code: ErrorCode, detail: &str) -> Self {
        let (exit, hint) = classify(code);
        Self {
            exit,
            message: clause(detail),
            hint: hint.map(str::to_owned),
        }
    }
}

/// A sentence as it stands behind `error: `, without its large letter and its full stop.
fn clause(sentence: &str) -> String {
    let sentence = sentence.strip_suffix('.').unwrap_or(sentence);
    let mut characters = sentence.chars();
    characters
        .next()
        .into_iter()
        .flat_map(char::to_lowercase)
        .chain(characters)
        .collect()
}

impl fmt::Display for Failed {
    /// In the form of every error here: the hint stands on a line of its own.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failed {}

fn classify(code: ErrorCode) -> (Exit, Option<&'static str>) {
    use ErrorCode as E;
    match code {
        E::BadName | E::BadOption => (Exit::Usage, None),
        E::StartRefused => (
            Exit::Usage,
            Some("`dormouse serve --start-choice` is a server that allows it"),
        ),
        E::Unauthenticated => (
            Exit::Usage,
            Some(
                "give the server's token with --token-file FILE or in DORMOUSE_TOKEN; `dormouse token \
                 create`, where the server runs, makes one",
            ),
        ),
        E::Forbidden => (
            Exit::Usage,
            Some("`dormouse token create --scope …`, where the server runs, makes one that may"),
        ),
        E::HasLayers => (Exit::Usage, None),
        // A bad image's own sentence says what to do.
        E::BadImage | E::BadRequest | E::TooLarge | E::HeadTooLarge => (Exit::Data, None),
        E::UnknownFunction | E::UnknownSnapshot => (
            Exit::NoInput,
            Some("`dormouse snapshot ls` lists what there is"),
        ),
        E::UnknownRoute | E::MethodNotAllowed => (
            Exit::Protocol,
            Some("check the URL and the server's version"),
        ),
        E::CrashLoop => (
            Exit::Temporary,
            Some("mend the function and deploy it anew; `dormouse invoke` showed how it crashed"),
        ),
        E::OutOfMemory => (Exit::Function, Some("deploy it with more --memory")),
        E::RequestTimeout
        | E::QueueFull
        | E::QueueTimeout
        | E::OverBudget
        | E::WorkerLost
        | E::Draining => (Exit::Temporary, Some("try again in a moment")),
        E::HostCannot => (
            Exit::Unavailable,
            Some("`dormouse doctor` shows what the host lacks"),
        ),
        E::FunctionTimeout => (
            Exit::Function,
            Some("deploy it with a longer --timeout if it needs one"),
        ),
        E::InitTimeout => (
            Exit::Function,
            Some("deploy it with a longer --init-timeout if it needs one"),
        ),
        E::FunctionCrashed
        | E::FunctionExited
        | E::FunctionError
        | E::BadAnswer
        | E::Unconfirmed
        | E::WarmFailed
        | E::InitFailed => (Exit::Function, None),
        E::StoreFailed => (
            Exit::Internal,
            Some(
                "`dormouse snapshot verify NAME` checks its snapshots; deploying again replaces the newest",
            ),
        ),
        _ => (Exit::Internal, Some("the log says more; please report it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_names_every_code() {
        for exit in [
            Exit::Function,
            Exit::Usage,
            Exit::Data,
            Exit::NoInput,
            Exit::Unavailable,
            Exit::Internal,
            Exit::Temporary,
            Exit::Protocol,
        ] {
            let line = format!("\n  {:>2}  ", exit as u8);
            assert!(HELP.contains(&line), "{exit:?}");
        }
    }

    #[test]
    fn who_failed_decides_the_code() {
        let exit = |code| Failed::of_code(code, "x.").exit;
        for code in ErrorCode::ALL {
            let status = code.status().as_u16();
            if status == 502 || status == 504 {
                assert_eq!(exit(*code), Exit::Function, "{}", code.as_str());
            }
        }
        assert_eq!(exit(ErrorCode::HostCannot), Exit::Unavailable);
        assert_eq!(exit(ErrorCode::QueueFull), Exit::Temporary);
        assert_eq!(exit(ErrorCode::UnknownFunction), Exit::NoInput);
        assert_eq!(exit(ErrorCode::StartRefused), Exit::Usage);
        assert_eq!(exit(ErrorCode::Unauthenticated), Exit::Usage);
        assert_eq!(exit(ErrorCode::Forbidden), Exit::Usage);
    }

    #[test]
    fn a_hint_stands_on_its_own_line() {
        let failed = Failed::of_code(ErrorCode::QueueFull, "Full.");
        assert_eq!(failed.to_string(), "full\nhint: try again in a moment");
    }
}
