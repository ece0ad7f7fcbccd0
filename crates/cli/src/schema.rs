//! `dormouse schema`: the shape of what commands print with `--format json`.

use anyhow::{Context, Result};
use clap::Args;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde_json::{Value, json};

use crate::doctor;
use crate::exit::{Exit, Failed};
use crate::output;
use crate::snapshot;
use crate::token;

/// What is deployed is described where the HTTP API is.
const API: &str = include_str!("../../../api/openapi.yaml");

const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";

/// Where a command's schema comes from.
enum Source {
    /// A schema of this name in the API's document.
    Api(&'static str),
    /// A list of these.
    ApiList(&'static str),
    /// The types that are printed.
    Types(fn() -> Schema),
    /// A file of its own.
    File(&'static str),
    /// One of these, as the command's options say.
    AnyOf(&'static [Source]),
}

use Source::{AnyOf, Api, ApiList, File, Types};

/// Every command that prints JSON.
const COMMANDS: &[(&str, Source)] = &[
    (
        "bench compare",
        Types(types::<dormouse_load::compare::Comparison>),
    ),
    ("bench engine", Types(types::<dormouse_benches::Record>)),
    ("bench load", File(dormouse_load::RECORD_SCHEMA)),
    ("bench report", File(dormouse_load::RECORD_SCHEMA)),
    (
        "bench sizes",
        Types(types::<dormouse_benches::sizes::Sizes>),
    ),
    ("deploy", Api("Deployed")),
    ("doctor", Types(types::<doctor::Findings>)),
    ("snapshot create", AnyOf(&[Api("Deployed"), Api("Warmed")])),
    (
        "snapshot diff",
        Types(types::<dormouse_explain::Difference>),
    ),
    ("snapshot export", Types(types::<snapshot::ExportReport>)),
    ("snapshot flatten", Types(types::<snapshot::Flattened>)),
    ("snapshot gc", Types(types::<snapshot::Collected>)),
    ("snapshot import", Types(types::<snapshot::ImportReport>)),
    (
        "snapshot inspect",
        // On a store, and from a server.
        AnyOf(&[
            Types(types::<dormouse_explain::Explanation>),
            Api("FunctionInfo"),
        ]),
    ),
    (
        "snapshot ls",
        AnyOf(&[
            ApiList("FunctionInfo"),
            Types(types::<Vec<snapshot::HistoryRow>>),
        ]),
    ),
    ("snapshot rm", Types(types::<snapshot::Gone>)),
    ("snapshot tag", Types(types::<snapshot::Tagged>)),
    ("snapshot tune", Types(types::<dormouse_pool::Tuned>)),
    ("snapshot verify", Types(types::<snapshot::Verification>)),
    ("token create", Types(types::<token::Created>)),
    ("token ls", Types(types::<Vec<token::TokenRow>>)),
    ("token rm", Types(types::<token::Removed>)),
];

/// Prints the JSON Schema (draft 2020-12) of what a command prints with `--format json`
#[derive(Debug, Args)]
pub(crate) struct SchemaArgs {
    /// The command, for example `snapshot inspect`; without one, all commands that print JSON are
    /// listed
    command: Vec<String>,
}

/// Runs the command.
pub(crate) fn schema(args: &SchemaArgs) -> Result<()> {
    if args.command.is_empty() {
        return output::text(&(names().join("\n") + "\n"));
    }
    let name = args.command.join(" ");
    let found = COMMANDS.iter().find(|(command, _)| *command == name);
    let Some((_, source)) = found else {
        let message = format!("`dormouse {name}` is no command that prints JSON");
        let hint = format!("these are: {}", names().join(", "));
        return Err(Failed::new(Exit::Usage, message).hint(hint).into());
    };
    output::json(&source.schema()?)
}

fn names() -> Vec<&'static str> {
    COMMANDS.iter().map(|(command, _)| *command).collect()
}

impl Source {
    fn schema(&self) -> Result<Value> {
        let mut schema = self.part()?;
        schema["$schema"] = DRAFT.into();
        if self.refers_to_api() {
            let document: Value = serde_saphyr::from_str(API)
                .context("the API's document of this build is no YAML")?;
            schema["components"] = json!({ "schemas": document["components"]["schemas"] });
        }
        Ok(schema)
    }

    /// The schema as it may stand in another one.
    fn part(&self) -> Result<Value> {
        let reference = |name: &str| json!({ "$ref": format!("#/components/schemas/{name}") });
        match self {
            Api(name) => Ok(reference(name)),
            ApiList(name) => Ok(json!({ "type": "array", "items": reference(name) })),
            Types(schema) => Ok(schema().to_value()),
            File(text) => serde_json::from_str(text).context("a schema of this build is no JSON"),
            AnyOf(sources) => {
                let parts = sources.iter().map(Self::part).collect::<Result<Vec<_>>>()?;
                Ok(json!({ "anyOf": parts }))
            }
        }
    }

    fn refers_to_api(&self) -> bool {
        match self {
            Api(_) | ApiList(_) => true,
            Types(_) | File(_) => false,
            AnyOf(sources) => sources.iter().any(Self::refers_to_api),
        }
    }
}

/// The schema of a type, without references into itself, so that it may be a part of another.
fn types<T: JsonSchema>() -> Schema {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    settings.into_generator().into_root_schema_for::<T>()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::Cli;

    /// The commands below `command` that have `--format json`.
    fn print_json(command: &clap::Command, path: &str, found: &mut Vec<String>) {
        let formats = command
            .get_arguments()
            .find(|argument| argument.get_id() == "format");
        let values = formats
            .map(clap::Arg::get_possible_values)
            .unwrap_or_default();
        if values.iter().any(|value| value.get_name() == "json") {
            found.push(path.trim_start().to_owned());
        }
        for below in command.get_subcommands() {
            print_json(below, &format!("{path} {}", below.get_name()), found);
        }
    }

    #[test]
    fn every_command_that_prints_json_has_a_schema() {
        let mut found = Vec::new();
        print_json(&Cli::command(), "", &mut found);
        found.sort_unstable();
        assert_eq!(found, names());
    }

    #[test]
    fn every_schema_is_one() {
        for (command, source) in COMMANDS {
            let schema = source.schema().unwrap();
            jsonschema::meta::validate(&schema)
                .unwrap_or_else(|error| panic!("{command}: {error}"));
            jsonschema::validator_for(&schema).unwrap_or_else(|error| panic!("{command}: {error}"));
        }
    }
}
