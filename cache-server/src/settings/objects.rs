//! From bytes to objects: YAML documents, their kinds and their schemas. May import `mistake`, `schema` and `crds`.

use std::sync::LazyLock;

use crds::{
    CacheServer, CacheServerSpec, HostedRepository, HostedRepositorySpec, RegistryMirror, RegistryMirrorSpec,
    RepositoryGroup, RepositoryGroupSpec, repository::Connector,
};
use kube::{
    CustomResourceExt, Resource,
    core::cel::{ValidationError, ValidationErrors},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{
    mistake::{Mistakes, ObjectName, Place, chain},
    schema::breaches,
};

/// The kind of mirrors.
pub(super) const MIRROR: &str = "RegistryMirror";
/// The kind of hosted repositories.
pub(super) const HOSTED: &str = "HostedRepository";
/// The kind of groups.
pub(super) const GROUP: &str = "RepositoryGroup";
/// The file beside the objects that says who signs tokens of service accounts.
pub(super) const ISSUER: &str = "service-account-issuer.json";
/// The kinds of repositories, whose names are one namespace.
pub(super) const REPOSITORIES: [&str; 3] = [MIRROR, HOSTED, GROUP];
/// The kind of the server.
pub(super) const SERVER: &str = "CacheServer";

/// An object that keeps its schema and its CEL rules.
#[derive(Debug)]
pub(super) struct Object<S> {
    pub(super) place: Place,
    pub(super) name: String,
    pub(super) spec: S,
    /// Whether the field `server` was written, not defaulted.
    pub(super) names_server: bool,
}

/// The objects of a configuration, in the order in which they stand.
#[derive(Debug, Default)]
pub(super) struct Objects {
    pub(super) mirrors: Vec<Object<RegistryMirrorSpec>>,
    pub(super) hosted: Vec<Object<HostedRepositorySpec>>,
    pub(super) groups: Vec<Object<RepositoryGroupSpec>>,
    pub(super) servers: Vec<Object<CacheServerSpec>>,
    /// All that have a kind and a name, those too that were left out.
    pub(super) named: Vec<ObjectName>,
    /// What the operator writes beside the objects: who signs tokens of service accounts.
    pub(super) issuer: Option<String>,
}

/// What every repository says of itself, whatever its kind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Repository<'a> {
    pub(super) place: &'a Place,
    pub(super) kind: &'static str,
    pub(super) name: &'a str,
    /// The server that it names; nothing where the field was not written.
    pub(super) server: Option<&'a str>,
    pub(super) connectors: &'a [Connector],
}

impl<S> Object<S> {
    fn repository<'a>(&'a self, kind: &'static str, server: &'a str, connectors: &'a [Connector]) -> Repository<'a> {
        Repository {
            place: &self.place,
            kind,
            name: &self.name,
            server: self.names_server.then_some(server),
            connectors,
        }
    }
}

impl Objects {
    /// The repositories of all kinds.
    pub(super) fn repositories(&self) -> impl Iterator<Item = Repository<'_>> {
        let mirrors = self.mirrors.iter().map(|it| it.repository(MIRROR, &it.spec.server, &it.spec.connectors));
        let hosted = self.hosted.iter().map(|it| it.repository(HOSTED, &it.spec.server, &it.spec.connectors));
        let groups = self.groups.iter().map(|it| it.repository(GROUP, &it.spec.server, &it.spec.connectors));
        mirrors.chain(hosted).chain(groups)
    }

    /// Reads the documents of one file. Wrong objects are left out and noted.
    pub(super) fn read(&mut self, file: &str, bytes: &[u8], mistakes: &mut Mistakes) {
        let documents: Vec<Value> = match serde_saphyr::from_slice_multiple(bytes) {
            Ok(documents) => documents,
            Err(error) => return mistakes.note_file(file, format!("must be YAML: {}", chain(&error))),
        };
        for (index, document) in documents.into_iter().enumerate() {
            let place = Place { file: file.to_owned(), document: Some(index + 1), object: None };
            self.object(place, document, mistakes);
        }
    }

    fn object(&mut self, mut place: Place, document: Value, mistakes: &mut Mistakes) {
        let version = document["apiVersion"].as_str().unwrap_or_default();
        let kind = document["kind"].as_str().unwrap_or_default();
        if !document.is_object() || kind.is_empty() {
            return mistakes.note(&place, "", "must be an object with apiVersion, kind, metadata and spec");
        }
        let name = document["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let generation = document["metadata"]["generation"].as_i64();
        let object = ObjectName { kind: kind.to_owned(), name: name.clone(), generation };
        place.object = Some(object.clone());
        if !name.is_empty() {
            self.named.push(object);
        }
        let expected = RegistryMirror::api_version(&());
        if version != expected {
            return mistakes.note(&place, "apiVersion", format!("must be {expected}, got {version:?}"));
        }
        if name.is_empty() {
            return mistakes.note(&place, "metadata.name", "must be set");
        }
        match kind {
            MIRROR => {
                let checked =
                    check(place, name, document, &MIRROR_SCHEMA, mistakes, |name, spec: &RegistryMirrorSpec| {
                        RegistryMirror::new(name, spec.clone()).validate_cel().err().map(ValidationErrors::into_vec)
                    });
                self.mirrors.extend(checked);
            }
            HOSTED => {
                let checked =
                    check(place, name, document, &HOSTED_SCHEMA, mistakes, |name, spec: &HostedRepositorySpec| {
                        HostedRepository::new(name, spec.clone()).validate_cel().err().map(ValidationErrors::into_vec)
                    });
                self.hosted.extend(checked);
            }
            GROUP => {
                let checked =
                    check(place, name, document, &GROUP_SCHEMA, mistakes, |name, spec: &RepositoryGroupSpec| {
                        RepositoryGroup::new(name, spec.clone()).validate_cel().err().map(ValidationErrors::into_vec)
                    });
                self.groups.extend(checked);
            }
            SERVER => {
                let checked = check(place, name, document, &SERVER_SCHEMA, mistakes, |name, spec: &CacheServerSpec| {
                    CacheServer::new(name, spec.clone()).validate_cel().err().map(ValidationErrors::into_vec)
                });
                self.servers.extend(checked);
            }
            other => {
                let known = format!("must be {} or {SERVER}, got {other:?}", REPOSITORIES.join(", "));
                mistakes.note(&place, "kind", known);
            }
        }
    }
}

/// The schema of `spec` in a CRD.
fn spec_schema<K: CustomResourceExt>() -> Value {
    let mut crd = serde_json::to_value(K::crd()).unwrap_or_default();
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"].take()
}

static MIRROR_SCHEMA: LazyLock<Value> = LazyLock::new(spec_schema::<RegistryMirror>);
static HOSTED_SCHEMA: LazyLock<Value> = LazyLock::new(spec_schema::<HostedRepository>);
static GROUP_SCHEMA: LazyLock<Value> = LazyLock::new(spec_schema::<RepositoryGroup>);
static SERVER_SCHEMA: LazyLock<Value> = LazyLock::new(spec_schema::<CacheServer>);

/// Schema, then types, then CEL: each only if the one before found nothing, since it would report the same again.
fn check<S: DeserializeOwned>(
    place: Place,
    name: String,
    mut document: Value,
    schema: &Value,
    mistakes: &mut Mistakes,
    cel: impl Fn(&str, &S) -> Option<Vec<ValidationError>>,
) -> Option<Object<S>> {
    let mut good = true;
    for field in document.as_object()?.keys() {
        if !["apiVersion", "kind", "metadata", "spec", "status"].contains(&field.as_str()) {
            mistakes.note(&place, field, "unknown field; known here are apiVersion, kind, metadata and spec");
            good = false;
        }
    }
    let mut spec = match document["spec"].take() {
        Value::Null => json!({}),
        spec => spec,
    };
    let names_server = spec.get("server").is_some();
    for (field, message) in take_cluster_fields(&mut spec, place.object.as_ref()) {
        mistakes.note(&place, &field, message);
        good = false;
    }
    for breach in breaches(&spec, schema, "spec") {
        mistakes.note(&place, &breach.field, breach.message);
        good = false;
    }
    if !good {
        return None;
    }
    let spec: S = mistakes.keep(&place, "spec", serde_json::from_value(spec))?;
    let broken = cel(&name, &spec).unwrap_or_default();
    for rule in &broken {
        mistakes.note(&place, rule.field_path.trim_start_matches('.'), &rule.message);
    }
    broken.is_empty().then_some(Object { place, name, spec, names_server })
}

/// Takes out what the schema knows and only the operator can do: each field, and what to do about it.
fn take_cluster_fields(spec: &mut Value, object: Option<&ObjectName>) -> Vec<(String, String)> {
    let Some(fields) = spec.as_object_mut() else { return Vec::new() };
    let (wrong, operator): (&[&str], _) = match object.map(|object| object.kind.as_str()) {
        Some(SERVER) => (&CacheServerSpec::WORKLOAD_FIELDS, "runs the Deployment"),
        Some(MIRROR | GROUP) => (&["nodes"], "writes the files of the nodes"),
        _ => return Vec::new(),
    };
    let taken = wrong.iter().filter(|field| fields.remove(**field).is_some());
    let mut found: Vec<_> = taken
        .map(|field| {
            let message = format!("field {field} only works in a cluster, where the operator {operator}; remove it");
            (format!("spec.{field}"), message)
        })
        .collect();
    if let Some(tls) = fields.get_mut("tls").and_then(Value::as_object_mut)
        && tls.get("mode").is_some_and(|mode| mode == "Managed")
    {
        tls.remove("mode");
        let message =
            "Managed only works in a cluster, where the operator has an authority of its own; use Secret or Disabled";
        found.push(("spec.tls.mode".to_owned(), message.to_owned()));
    }
    found
}
