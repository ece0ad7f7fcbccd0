//! A token that a user gave us to send along.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use dormouse_server::Token;

use crate::exit::{Exit, Failed};

/// A token takes less, and whatever is longer is something else.
const MAX_FILE_BYTES: u64 = 4096;

/// What was given as a token. Parsing it is left for later, since whoever parses the command line
/// quotes what is wrong there.
#[derive(Clone)]
pub(crate) struct Given(OsString);

impl Given {
    /// What the variable has; nothing where it is empty.
    pub(crate) fn from_environment() -> Option<Self> {
        let text = std::env::var_os("DORMOUSE_TOKEN")?;
        (!text.is_empty()).then_some(Self(text))
    }

    /// Reads a file that has a token and nothing else but space around it.
    pub(crate) fn read(file: &Path) -> Result<Self, Failed> {
        let mut text = String::new();
        let read = File::open(file)
            .and_then(|opened| opened.take(MAX_FILE_BYTES).read_to_string(&mut text));
        match read {
            Ok(_) => Ok(Self(text.trim().into())),
            Err(error) => {
                let exit = match error.kind() {
                    io::ErrorKind::NotFound => Exit::NoInput,
                    io::ErrorKind::InvalidData => Exit::Data,
                    _ => Exit::Unavailable,
                };
                let message = format!("cannot read a token from {}: {error}", file.display());
                let hint = "the file has to have what `dormouse token create` printed";
                Err(Failed::new(exit, message).hint(hint))
            }
        }
    }

    /// The token.
    ///
    /// # Errors
    /// Where it is none; the error does not show it.
    pub(crate) fn token(&self) -> Result<Token, Failed> {
        let text = self.0.to_str().unwrap_or_default();
        text.parse().map_err(|error: dormouse_server::NotAToken| {
            Failed::new(Exit::Usage, error.to_string())
                .hint("`dormouse token create`, where the server runs, prints one")
        })
    }
}

impl From<OsString> for Given {
    fn from(text: OsString) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Given(not shown)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_is_not_shown() {
        let given = Given::from(OsString::from("dmt_secret"));
        let failed = given.token().unwrap_err();
        assert_eq!(failed.exit, Exit::Usage);
        assert!(!format!("{failed} {failed:?} {given:?}").contains("secret"));
    }

    #[test]
    fn a_file_has_a_token_and_space_around_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        assert_eq!(Given::read(&file).unwrap_err().exit, Exit::NoInput);
        let token = format!("dmt_{}", "A".repeat(43));
        std::fs::write(&file, format!("\n{token}\r\n")).unwrap();
        let read = Given::read(&file).unwrap().token().unwrap();
        assert_eq!(read.reveal(), token);
        std::fs::write(&file, format!("{token}\n{token}")).unwrap();
        assert!(Given::read(&file).unwrap().token().is_err());
        std::fs::write(&file, b"\xff").unwrap();
        assert_eq!(Given::read(&file).unwrap_err().exit, Exit::Data);
    }
}
