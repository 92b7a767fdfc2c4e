//! The schemas: every field is explained, and everything has a bound, so that an apiserver can estimate what a rule costs.

use serde_json::Value;

fn schemas() -> Vec<(String, Value)> {
    crds::all()
        .into_iter()
        .map(|kind| {
            let name = kind.spec.names.kind.clone();
            let kind = serde_json::to_value(kind).unwrap();
            (name, kind["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone())
        })
        .collect()
}

/// Calls `visit` with every field below `schema` and its path.
fn each_field(schema: &Value, path: &str, visit: &mut impl FnMut(&str, &Value)) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        visit(&path, field);
        each_field(field, &path, visit);
    }
    if schema["items"].is_object() {
        let path = format!("{path}[]");
        visit(&path, &schema["items"]);
        each_field(&schema["items"], &path, visit);
    }
}

#[test]
fn every_field_is_explained() {
    for (kind, schema) in schemas() {
        assert!(schema["description"].as_str().is_some_and(|text| text.len() > 20), "{kind}");
        each_field(&schema, &kind, &mut |path, field| {
            // Entries of a list of strings are explained by the list.
            let explained = field["description"].as_str().is_some_and(|text| text.trim().len() > 10);
            assert!(explained || path.ends_with("[]"), "{path} has no description");
        });
    }
}

#[test]
fn every_text_list_and_number_is_bounded() {
    for (kind, schema) in schemas() {
        each_field(&schema["properties"]["spec"], &kind, &mut |path, field| {
            let bounded = match field["type"].as_str().unwrap_or_default() {
                "string" => field["maxLength"].is_u64() || field["enum"].is_array(),
                "array" => field["maxItems"].is_u64(),
                "integer" => field["maximum"].is_number() && field["minimum"].is_number(),
                _ => true,
            };
            assert!(bounded, "{path} has no bound: {field}");
        });
    }
}

#[test]
fn kinds_belong_to_the_cluster() {
    for kind in crds::all() {
        assert_eq!((kind.spec.group.as_str(), kind.spec.scope.as_str()), ("entrepot.dev", "Cluster"));
    }
}
