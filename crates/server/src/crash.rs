//! What a problem document says of a guest that crashed.

use dormouse_pool::Crash;
use serde::{Serialize, Serializer};

/// Members of a problem document, beside those that every problem has.
#[derive(Serialize)]
pub(crate) struct CrashMembers<'a> {
    /// The word for the kind of crash.
    crash: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    symbol: Option<&'a str>,
    #[serde(serialize_with = "hexadecimal")]
    registers: &'a [(&'static str, u64)],
}

impl<'a> From<&'a Crash> for CrashMembers<'a> {
    fn from(crash: &'a Crash) -> Self {
        Self {
            crash: crash.kind.as_str(),
            symbol: crash.symbol.as_deref(),
            registers: &crash.registers,
        }
    }
}

/// As text: a number of JSON need not hold 64 bits.
fn hexadecimal<S: Serializer>(
    registers: &&[(&'static str, u64)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let texts = registers
        .iter()
        .map(|(name, value)| (name, format!("{value:#x}")));
    serializer.collect_map(texts)
}

/// A crash for tests.
#[cfg(test)]
pub(crate) fn example() -> dormouse_pool::Failure {
    let crash = Crash {
        kind: dormouse_pool::CrashKind::TripleFault,
        reason: "triple fault at 0x401000 (main+0x5)".to_owned(),
        registers: vec![("rip", 0x40_1000), ("cr2", u64::MAX)],
        symbol: Some("main+0x5".to_owned()),
    };
    dormouse_pool::Failure::Crashed {
        crash: Box::new(crash),
    }
}

#[cfg(test)]
mod tests {
    use dormouse_pool::{Error, Failure};
    use serde_json::{Value, json};

    use super::*;
    use crate::ApiError;

    fn document(error: &ApiError) -> Value {
        serde_json::from_slice(&error.document("id")).unwrap()
    }

    #[test]
    fn a_crash_is_told_with_place_registers_and_console() {
        let init = Error::Init {
            failure: example(),
            console: "last words".to_owned(),
        };
        let crashes = [
            ApiError::from_failure(&example(), "last words"),
            ApiError::from(init),
        ];
        for error in &crashes {
            let document = document(error);
            assert_eq!(document["crash"], "triple-fault");
            assert_eq!(document["symbol"], "main+0x5");
            let registers = json!({ "rip": "0x401000", "cr2": "0xffffffffffffffff" });
            assert_eq!(document["registers"], registers);
            assert_eq!(document["console"], "last words");
        }
        let exit = ApiError::from_failure(&Failure::Exited { code: 1 }, "last words");
        let document = document(&exit);
        assert_eq!(document["console"], "last words");
        for member in ["crash", "symbol", "registers"] {
            assert!(document.get(member).is_none(), "{member}");
        }
    }
}
