//! Every generated file is what the types say. A test that finds a difference writes the file and fails: commit it.

use std::{
    fs,
    path::{Path, PathBuf},
};

const HEADER: &str = "# Generated from crds/src by `cargo test -p crds`; never edited.\n";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Plural and YAML of every kind, without header.
fn documents() -> Vec<(String, String)> {
    crds::all()
        .into_iter()
        .map(|kind| (kind.spec.names.plural.clone(), serde_saphyr::to_string(&kind).unwrap()))
        .collect()
}

/// The template that installs one kind if `crds.enabled`, and leaves it behind on uninstall if `crds.keep`.
fn template(yaml: &str) -> String {
    let (head, tail) = yaml.split_once("\nmetadata:\n").unwrap();
    assert!(!yaml.contains("{{"), "helm would read a description as a template");
    format!(
        "{HEADER}{{{{- if .Values.crds.enabled }}}}\n{head}\nmetadata:\n  {{{{- if .Values.crds.keep }}}}\n  annotations:\n    \
         helm.sh/resource-policy: keep\n  {{{{- end }}}}\n{tail}{{{{- end }}}}\n"
    )
}

/// The one helper of every generated file.
#[expect(clippy::unwrap_in_result, reason = "a test may end so")]
fn ensure(path: &Path, expected: &str) -> Result<(), String> {
    if fs::read_to_string(path).is_ok_and(|found| found == expected) {
        return Ok(());
    }
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, expected).unwrap();
    Err(path.file_name().unwrap().to_string_lossy().into_owned())
}

#[test]
fn yaml_and_chart_are_what_the_types_say() {
    let stale: Vec<String> = documents()
        .iter()
        .flat_map(|(plural, yaml)| {
            let file = format!("{plural}.yaml");
            [
                ensure(&root().join("crds/yaml").join(&file), &format!("{HEADER}{yaml}")),
                ensure(&root().join("charts/entrepot/templates/crds").join(&file), &template(yaml)),
            ]
        })
        .filter_map(Result::err)
        .collect();
    assert!(stale.is_empty(), "written anew, commit them: {stale:?} in crds/yaml and charts/entrepot/templates/crds");
}

#[test]
fn the_yaml_inside_the_program_is_complete() {
    let files: Vec<String> = documents().into_iter().map(|(plural, _)| format!("{plural}.yaml")).collect();
    assert_eq!(crds::YAML.map(|(file, _)| file).to_vec(), files);
    for (file, text) in crds::YAML {
        assert!(text.contains("kind: CustomResourceDefinition"), "{file}");
    }
}
