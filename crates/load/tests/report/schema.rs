//! What record.schema.json says, and what the types write.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::sample;

fn schema() -> Value {
    serde_json::from_str(dormouse_load::RECORD_SCHEMA).expect("JSON")
}

fn full() -> Value {
    serde_json::to_value(sample::record()).expect("a record in JSON")
}

/// What a part of the schema refers to.
fn resolved<'a>(schema: &'a Value, part: &'a Value) -> &'a Value {
    let Some(reference) = part["$ref"].as_str() else {
        return part;
    };
    let pointer = reference.strip_prefix('#').expect("a local reference");
    schema.pointer(pointer).expect("what it refers to")
}

fn members(object: &Value) -> BTreeSet<&str> {
    let object = object.as_object().expect("an object");
    object.keys().map(String::as_str).collect()
}

/// Walks a value and its schema side by side, and calls for each object with fixed members.
fn walk(
    schema: &Value,
    part: &Value,
    value: &Value,
    path: &str,
    seen: &mut dyn FnMut(&str, &Value),
) {
    let part = resolved(schema, part);
    match value {
        Value::Object(object) => {
            let is_map = part["additionalProperties"].is_object();
            if !is_map {
                assert_eq!(part["additionalProperties"], false, "{path}");
                assert_eq!(members(&part["properties"]), members(value), "{path}");
                let required = part["required"].as_array().expect("what is required");
                let required: BTreeSet<_> = required.iter().filter_map(Value::as_str).collect();
                assert_eq!(required, members(value), "{path}");
                seen(path, value);
            }
            for (name, inner) in object {
                let below = if is_map {
                    &part["additionalProperties"]
                } else {
                    &part["properties"][name]
                };
                let name = name.replace('~', "~0").replace('/', "~1");
                walk(schema, below, inner, &format!("{path}/{name}"), seen);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                walk(
                    schema,
                    &part["items"],
                    item,
                    &format!("{path}/{index}"),
                    seen,
                );
            }
        }
        _ => {}
    }
}

#[test]
fn a_record_with_everything_in_it_is_valid() {
    let validator = jsonschema::validator_for(&schema()).expect("a schema");
    let errors: Vec<String> = validator
        .iter_errors(&full())
        .map(|error| error.to_string())
        .collect();
    assert!(errors.is_empty(), "{errors:#?}");
}

#[test]
fn a_run_without_any_answer_is_valid() {
    let mut record = sample::record();
    record.runs = vec![sample::nothing()];
    let validator = jsonschema::validator_for(&schema()).expect("a schema");
    assert!(validator.is_valid(&serde_json::to_value(record).unwrap()));
}

#[test]
fn the_schema_has_the_members_that_are_written_and_no_others() {
    let (schema, record) = (schema(), full());
    let mut objects = 0;
    walk(&schema, &schema, &record, "", &mut |_, _| objects += 1);
    assert!(objects > 100, "{objects}");
}

#[test]
fn every_member_is_needed_and_none_may_be_added() {
    let schema = schema();
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    // One of each kind is enough: the first run's first parts.
    let mut record = sample::record();
    record.runs.swap(0, 1);
    record.runs.truncate(1);
    let run = &mut record.runs[0];
    run.slices.truncate(1);
    run.breakdown.truncate(1);
    run.breakdown[0].parts.truncate(1);
    let record = serde_json::to_value(record).unwrap();
    assert!(validator.is_valid(&record));
    let mut objects = Vec::new();
    walk(&schema, &schema, &record, "", &mut |path, _| {
        objects.push(path.to_owned())
    });
    for path in &objects {
        let names: Vec<String> = members(record.pointer(path).unwrap())
            .into_iter()
            .map(str::to_owned)
            .collect();
        for name in names {
            let mut without = record.clone();
            without
                .pointer_mut(path)
                .unwrap()
                .as_object_mut()
                .unwrap()
                .remove(&name);
            assert!(!validator.is_valid(&without), "without {path}/{name}");
        }
        let mut with = record.clone();
        with.pointer_mut(path).unwrap()["more"] = json!(1);
        assert!(!validator.is_valid(&with), "with more in {path}");
    }
    assert!(objects.len() > 15, "{objects:?}");
}

#[test]
fn everything_is_described() {
    fn check(part: &Value, path: &str) {
        let Some(properties) = part["properties"].as_object() else {
            return;
        };
        assert!(part["description"].is_string(), "{path}");
        for (name, member) in properties {
            let is_described = member["description"].is_string() || member["$ref"].is_string();
            assert!(is_described, "{path}/{name}");
        }
    }
    let schema = schema();
    check(&schema, "the record");
    for (name, part) in schema["$defs"].as_object().expect("definitions") {
        check(part, name);
    }
}
