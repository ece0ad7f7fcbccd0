//! `api/` says what the code does: routes, error codes and schemas, in both directions.

use std::collections::BTreeSet;

use dormouse_pool::{FunctionConfig, Start};
use dormouse_server::{Access, ErrorCode, ROUTES, Scope, Verb};
use serde_json::{Value, json};

const OPENAPI: &str = include_str!("../../../api/openapi.yaml");
const ERRORS: &str = include_str!("../../../api/errors.md");
/// The OpenAPI Initiative's schema of OpenAPI 3.1 documents (Apache-2.0), 2022-10-07.
const OPENAPI_SCHEMA: &str = include_str!("openapi-3.1.schema.json");

/// The methods that OpenAPI 3.1 has words for.
const METHODS: [&str; 8] = [
    "get", "put", "post", "delete", "options", "head", "patch", "trace",
];

fn openapi() -> Value {
    serde_saphyr::from_str(OPENAPI).expect("openapi.yaml is YAML")
}

#[test]
fn the_document_is_valid_openapi() {
    let schema = serde_json::from_str(OPENAPI_SCHEMA).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<_> = validator
        .iter_errors(&openapi())
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{errors:#?}");
}

/// A path as OpenAPI writes it.
fn in_document(path: &str) -> String {
    path.replace("{*", "{")
}

fn methods(verb: Verb) -> &'static [&'static str] {
    match verb {
        Verb::Get => &["get"],
        Verb::Put => &["put"],
        Verb::Post => &["post"],
        Verb::Delete => &["delete"],
        Verb::Any => &METHODS,
    }
}

#[test]
fn the_document_has_the_routers_routes_and_no_others() {
    let mut routed = BTreeSet::new();
    for route in ROUTES {
        let path = in_document(route.path);
        let methods = methods(route.verb).iter();
        routed.extend(methods.map(|method| (path.clone(), (*method).to_owned())));
    }
    let mut documented = BTreeSet::new();
    for (path, item) in openapi()["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            if METHODS.contains(&method.as_str()) {
                documented.insert((path.clone(), method.clone()));
            }
        }
    }
    assert_eq!(documented, routed);
}

#[test]
fn every_operation_names_the_scope_that_its_route_needs() {
    let document = openapi();
    assert_eq!(document["security"], json!([{ "token": ["admin"] }]));
    for route in ROUTES {
        let item = &document["paths"][in_document(route.path)];
        for method in methods(route.verb) {
            let (operation, name) = (&item[method], format!("{method} {}", route.path));
            let needed = match route.access {
                Access::Open => json!([]),
                Access::Needs(scope) => json!([{ "token": [scope.as_str()] }]),
            };
            assert_eq!(operation["security"], needed, "{name}");
            for (status, response) in [("401", "Unauthenticated"), ("403", "Refused")] {
                let told = operation["responses"].get(status);
                let expected = json!({ "$ref": format!("#/components/responses/{response}") });
                let expected = (route.access != Access::Open).then_some(&expected);
                assert_eq!(told, expected, "{name} {status}");
            }
        }
    }
    // Nobody but load balancers is let in without a token.
    let open = ROUTES.iter().filter(|route| route.access == Access::Open);
    let open: Vec<_> = open.map(|route| route.path).collect();
    assert_eq!(open, ["/livez", "/readyz"]);
    let invoked = ROUTES
        .iter()
        .filter(|r| r.access == Access::Needs(Scope::Invoke));
    assert!(invoked.into_iter().all(|r| r.path.contains("/invoke")));
}

#[test]
fn every_reference_leads_somewhere_and_everything_is_referred_to() {
    fn collect(value: &Value, references: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(target)) = map.get("$ref") {
                    references.insert(target.clone());
                }
                map.values().for_each(|value| collect(value, references));
            }
            Value::Array(list) => list.iter().for_each(|value| collect(value, references)),
            _ => {}
        }
    }
    let document = openapi();
    let mut references = BTreeSet::new();
    collect(&document, &mut references);
    let mut components = BTreeSet::new();
    for (kind, named) in document["components"].as_object().unwrap() {
        // Referred to by name, in `security`.
        if kind == "securitySchemes" {
            continue;
        }
        for name in named.as_object().unwrap().keys() {
            components.insert(format!("#/components/{kind}/{name}"));
        }
    }
    assert_eq!(references, components);
}

#[test]
fn operation_ids_are_unique() {
    let document = openapi();
    let mut seen = BTreeSet::new();
    for item in document["paths"].as_object().unwrap().values() {
        for (method, operation) in item.as_object().unwrap() {
            if METHODS.contains(&method.as_str()) {
                let id = operation["operationId"].as_str().expect("an operationId");
                assert!(seen.insert(id.to_owned()), "{id} twice");
            }
        }
    }
}

/// The schema `name` as a document of its own, with the others beside it.
fn schema(name: &str) -> jsonschema::Validator {
    let document = openapi();
    jsonschema::validator_for(&json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$ref": format!("#/components/schemas/{name}"),
        "components": document["components"],
    }))
    .unwrap()
}

#[track_caller]
fn assert_fits(schema: &jsonschema::Validator, value: &Value, name: &str) {
    if let Err(error) = schema.validate(value) {
        panic!("{name}: {error}");
    }
}

#[test]
fn examples_fit_their_schemas() {
    let document = openapi();
    for name in ["FunctionInfo", "FunctionList", "Deployed", "Warmed"] {
        let example = &document["components"]["examples"][name]["value"];
        assert_fits(&schema(name), example, name);
    }
    let problem = schema("Problem");
    for (name, response) in document["components"]["responses"].as_object().unwrap() {
        let content = &response["content"]["application/problem+json"];
        if let Some(example) = content.get("example") {
            assert_fits(&problem, example, name);
        }
    }
    for (name, parameter) in document["components"]["parameters"].as_object().unwrap() {
        let (schema, example) = match parameter.get("content") {
            Some(content) => {
                let json = &content["application/json"];
                (&json["schema"], json.get("example"))
            }
            None => (&parameter["schema"], parameter.get("example")),
        };
        let Some(example) = example else { continue };
        let whole = json!({ "allOf": [schema], "components": document["components"] });
        let validator = jsonschema::validator_for(&whole).unwrap();
        assert_fits(&validator, example, name);
    }
}

#[test]
fn a_functions_config_is_what_the_schema_says() {
    let config = json!(FunctionConfig {
        env: vec![("A".into(), "1".into())],
        ..FunctionConfig::default()
    });
    assert_fits(&schema("FunctionConfig"), &config, "FunctionConfig");
    let defaults = json!(FunctionConfig::default());
    let document = openapi();
    let properties = document["components"]["schemas"]["FunctionConfig"]["properties"]
        .as_object()
        .unwrap();
    assert_eq!(
        properties.keys().collect::<BTreeSet<_>>(),
        defaults.as_object().unwrap().keys().collect()
    );
    for (name, property) in properties {
        assert_eq!(property["default"], defaults[name], "{name}");
    }
}

#[test]
fn the_error_codes_are_the_same_in_code_document_and_list() {
    let in_code: Vec<_> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
    let document = openapi();
    let in_document: Vec<_> = document["components"]["schemas"]["ErrorCode"]["enum"]
        .as_array()
        .unwrap()
        .iter()
        .map(|code| code.as_str().unwrap())
        .collect();
    assert_eq!(in_document, in_code);

    let rows: BTreeSet<(String, u16)> = ERRORS
        .lines()
        .filter(|line| line.starts_with("| <a id="))
        .map(|line| {
            let cells: Vec<_> = line.split('|').map(str::trim).collect();
            let code = cells[1].split('`').nth(1).unwrap();
            assert!(cells[1].contains(&format!("id=\"{code}\"")), "{line}");
            (code.to_owned(), cells[2].parse().unwrap())
        })
        .collect();
    let expected = ErrorCode::ALL
        .iter()
        .map(|code| (code.as_str().to_owned(), code.status().as_u16()))
        .collect();
    assert_eq!(rows, expected);
}

#[test]
fn the_ways_to_start_are_the_same_in_code_and_document() {
    let in_code: Vec<_> = Start::ALL.iter().map(|start| start.as_str()).collect();
    assert_eq!(
        openapi()["components"]["schemas"]["Start"]["enum"],
        json!(in_code)
    );
}

#[test]
fn every_status_of_a_code_is_documented_where_it_can_come_from() {
    let document = openapi();
    let paths = &document["paths"];
    let invocation = &paths["/v1/functions/{name}/invoke"]["post"];
    let removal = &paths["/v1/functions/{name}"]["delete"];
    for code in ErrorCode::ALL {
        let operation = match code {
            // 405 comes from no route that is in the document.
            ErrorCode::MethodNotAllowed => continue,
            ErrorCode::HasLayers => removal,
            _ => invocation,
        };
        let responses = operation["responses"].as_object().unwrap();
        let status = code.status().as_u16().to_string();
        assert!(responses.contains_key(&status), "{}", code.as_str());
    }
}
