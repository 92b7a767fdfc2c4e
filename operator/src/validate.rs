//! Which mirrors of a server can be served as they are written. Pure, and the only step that judges: every failure that
//! takes more than one object to see lives here, one variant each. May import `gather` and `desired::{config_map, names}`.

use std::collections::{BTreeMap, BTreeSet};

use crds::{RegistryMirror, cache_server::RegistryHolder, cache_server::TlsMode, names::SecretRef};
use k8s_openapi::ByteString;
use kube::ResourceExt;
use serde_json::Value;

use crate::{
    desired::{
        config_map::{documents, mirror_document},
        names,
        service::PORT,
    },
    gather::Gathered,
};

/// The port on which a cache server reports.
const STATUS_PORT: u16 = 9090;

/// What is wrong with an object, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The Secret is not there.
    #[error(
        "{field} names the Secret {secret:?}, which is not in the namespace {namespace}; create it there with {wanted}"
    )]
    SecretNotFound {
        /// Where the spec names it.
        field: String,
        /// The Secret.
        secret: String,
        /// Where it must be.
        namespace: String,
        /// The keys it must have.
        wanted: &'static str,
    },
    /// The Secret lacks a key.
    #[error(
        "{field} names the Secret {secret:?}, which has no key {missing:?}; it must have {wanted} (it has {found})"
    )]
    SecretKeyMissing {
        /// Where the spec names it.
        field: String,
        /// The Secret.
        secret: String,
        /// The key.
        missing: String,
        /// The keys it must have.
        wanted: &'static str,
        /// The keys it has.
        found: String,
    },
    /// A value of the Secret cannot be what its key says.
    #[error("{field} names the Secret {secret:?}, whose key {key:?} {must}")]
    SecretMalformed {
        /// Where the spec names it.
        field: String,
        /// The Secret.
        secret: String,
        /// The key.
        key: String,
        /// What it must be.
        must: &'static str,
    },
    /// A Secret has the name of ours.
    #[error(
        "{field} must not name a Secret {0:?}: the managed certificate stands there; rename the Secret",
        names::MANAGED_TLS
    )]
    SecretReserved {
        /// Where the spec names it.
        field: String,
    },
    /// The URL cannot be read.
    #[error("spec.upstream.url must be a URL with a host, got {url:?}")]
    UrlMalformed {
        /// What was written.
        url: String,
    },
    /// Two mirrors of one server stand for one registry.
    #[error(
        "{registry} is already what the mirror {holder} stands for on this cache server; set upstream.registry to another name, or delete one of the two"
    )]
    RegistryTaken {
        /// The registry.
        registry: String,
        /// Who has it.
        holder: String,
    },
    /// Two mirrors of one server have one connector.
    #[error("spec.connectors[{index}]: {connector} is taken by {holder}; choose another one")]
    ConnectorTaken {
        /// Which connector.
        index: usize,
        /// The port or host.
        connector: String,
        /// Who has it.
        holder: String,
    },
}

impl Problem {
    /// The reason in a condition.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::SecretNotFound { .. } => "SecretNotFound",
            Self::SecretKeyMissing { .. } => "SecretKeyMissing",
            Self::SecretMalformed { .. } => "SecretMalformed",
            Self::SecretReserved { .. } => "SecretReserved",
            Self::UrlMalformed { .. } => "UrlMalformed",
            Self::RegistryTaken { .. } => "RegistryTaken",
            Self::ConnectorTaken { .. } => "ConnectorTaken",
        }
    }
}

/// How a mirror fared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is served as it is written.
    Good,
    /// It is not, and its last good version is.
    Kept(Problem),
    /// It is not served at all.
    Refused(Problem),
}

/// What may be served.
#[derive(Clone, Debug, PartialEq)]
pub struct Valid {
    /// The mirrors that go into the configuration, by name.
    pub documents: Vec<Value>,
    /// Which repository each registry leads to.
    pub holders: Vec<RegistryHolder>,
    /// Flat keys of the referenced Secrets.
    pub secrets: BTreeMap<String, ByteString>,
    /// Port connectors of the mirrors, in order.
    pub ports: Vec<u16>,
    /// How each mirror fared, by name.
    pub verdicts: BTreeMap<String, Verdict>,
    /// What is wrong with the server's own Secret.
    pub server: Verdict,
}

impl Valid {
    /// The names of the repositories that are served.
    #[must_use]
    pub fn served(&self) -> Vec<String> {
        self.documents.iter().filter_map(|document| document["metadata"]["name"].as_str().map(str::to_owned)).collect()
    }
}

/// Judges each mirror on its own: a bad one never disturbs another. `leaving` are mirrors that are done with.
#[must_use]
pub fn validate(gathered: &Gathered, namespace: &str, leaving: &BTreeSet<String>) -> Valid {
    let held = &gathered.server.status.clone().unwrap_or_default().registries;
    let before = previous_documents(gathered);
    let mounted = gathered.mounted();
    let mut claims = Claims::default();
    let mut valid = Valid {
        documents: Vec::new(),
        holders: Vec::new(),
        secrets: BTreeMap::new(),
        ports: Vec::new(),
        verdicts: BTreeMap::new(),
        server: Verdict::Good,
    };
    let judge = Judge { gathered, namespace };
    valid.server = judge.server(&mounted, &mut valid.secrets);
    for mirror in in_order(gathered, held, leaving) {
        let name = mirror.name_any();
        let (document, secrets, verdict) = match judge.mirror(mirror, &claims) {
            Ok(secrets) => (Some(mirror_document(mirror)), secrets, Verdict::Good),
            Err(problem) => match last_good(mirror, &before, held, &claims) {
                Some(document) => {
                    let secrets = kept_secrets(document, &mounted);
                    (Some(document.clone()), secrets, Verdict::Kept(problem))
                }
                None => (None, BTreeMap::new(), Verdict::Refused(problem)),
            },
        };
        if let Some(document) = document {
            claims.take(&document);
            let registry = registry_of_document(&document).unwrap_or_default();
            valid.holders.push(RegistryHolder {
                registry,
                repository: name.clone(),
                uid: mirror.uid().unwrap_or_default(),
            });
            valid.documents.push(document);
            valid.secrets.extend(secrets);
        }
        valid.verdicts.insert(name, verdict);
    }
    valid.documents.sort_by_key(|document| document["metadata"]["name"].to_string());
    valid.holders.sort_by(|one, other| one.registry.cmp(&other.registry));
    valid.ports = claims.ports.keys().copied().collect();
    valid
}

/// Holders of a registry first, then the older ones: who has something keeps it.
fn in_order<'a>(
    gathered: &'a Gathered,
    held: &[RegistryHolder],
    leaving: &BTreeSet<String>,
) -> Vec<&'a RegistryMirror> {
    let mut mirrors: Vec<&RegistryMirror> = gathered.mirrors.iter().map(AsRef::as_ref).collect();
    mirrors.retain(|mirror| !leaving.contains(&mirror.name_any()));
    mirrors.sort_by_key(|mirror| {
        let holds = held.iter().any(|holder| Some(&holder.uid) == mirror.uid().as_ref());
        (!holds, mirror.creation_timestamp().map(|time| time.0), mirror.name_any())
    });
    mirrors
}

fn previous_documents(gathered: &Gathered) -> BTreeMap<String, Value> {
    let data = gathered.config_map.as_ref().and_then(|config_map| config_map.data.as_ref());
    let text = data.and_then(|data| data.get(names::CONFIG_KEY)).map_or("", String::as_str);
    documents(text)
        .into_iter()
        .filter(|document| document["kind"] == "RegistryMirror")
        .filter_map(|document| Some((document["metadata"]["name"].as_str()?.to_owned(), document)))
        .collect()
}

/// The version of a mirror that is served so far, if that was this very object and nobody else has what it needs.
fn last_good<'a>(
    mirror: &RegistryMirror,
    before: &'a BTreeMap<String, Value>,
    held: &[RegistryHolder],
    claims: &Claims,
) -> Option<&'a Value> {
    let name = mirror.name_any();
    held.iter().find(|holder| holder.repository == name && Some(&holder.uid) == mirror.uid().as_ref())?;
    before.get(&name).filter(|document| claims.conflict(document).is_none())
}

fn kept_secrets(document: &Value, mounted: &BTreeMap<String, ByteString>) -> BTreeMap<String, ByteString> {
    let spec = &document["spec"];
    let connectors =
        spec["connectors"].as_array().into_iter().flatten().map(|connector| &connector["tls"]["secretRef"]);
    let references = [&spec["upstream"]["credentialsSecretRef"], &spec["upstream"]["clientCertificateSecretRef"]];
    let secrets: Vec<&str> =
        references.into_iter().chain(connectors).filter_map(|reference| reference["name"].as_str()).collect();
    let is_of = |key: &str| secrets.iter().any(|secret| key.starts_with(&names::flat_key(secret, "")));
    mounted.iter().filter(|(key, _)| is_of(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// The registry that a mirror stands for; `None` if its URL cannot be read.
#[must_use]
pub fn registry(mirror: &RegistryMirror) -> Option<String> {
    registry_from(mirror.spec.upstream.registry.as_deref(), &mirror.spec.upstream.url)
}

fn registry_of_document(document: &Value) -> Option<String> {
    let upstream = &document["spec"]["upstream"];
    registry_from(upstream["registry"].as_str(), upstream["url"].as_str()?)
}

fn registry_from(written: Option<&str>, url: &str) -> Option<String> {
    if let Some(written) = written {
        return Some(written.to_owned());
    }
    let url = url::Url::parse(url).ok()?;
    let host = url.host_str().filter(|host| !host.is_empty())?;
    Some(match (host, url.port()) {
        ("registry-1.docker.io" | "index.docker.io", None) => "docker.io".to_owned(),
        (host, Some(port)) => format!("{host}:{port}"),
        (host, None) => host.to_owned(),
    })
}

/// What there can be one of only, with who has it.
#[derive(Default)]
struct Claims {
    registries: BTreeMap<String, String>,
    ports: BTreeMap<u16, String>,
    hosts: BTreeMap<String, String>,
}

impl Claims {
    fn conflict(&self, document: &Value) -> Option<Problem> {
        let registry = registry_of_document(document)?;
        if let Some(holder) = self.registries.get(&registry) {
            return Some(Problem::RegistryTaken { registry, holder: holder.clone() });
        }
        let mut own = BTreeSet::new();
        for (index, connector) in document["spec"]["connectors"].as_array().into_iter().flatten().enumerate() {
            let (text, holder) = match (port_of(connector), connector["host"].as_str()) {
                (Some(PORT), _) => (format!("port {PORT}"), Some("the main port of the cache server".to_owned())),
                (Some(STATUS_PORT), _) => {
                    (format!("port {STATUS_PORT}"), Some("the port on which the cache server reports".to_owned()))
                }
                (Some(port), _) => {
                    (format!("port {port}"), self.ports.get(&port).map(|name| format!("the mirror {name}")))
                }
                (None, Some(host)) => {
                    (format!("host {host}"), self.hosts.get(host).map(|name| format!("the mirror {name}")))
                }
                (None, None) => continue,
            };
            let twice = (!own.insert(text.clone())).then(|| "another connector of this mirror".to_owned());
            if let Some(holder) = holder.or(twice) {
                return Some(Problem::ConnectorTaken { index, connector: text, holder });
            }
        }
        None
    }

    fn take(&mut self, document: &Value) {
        let name = document["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if let Some(registry) = registry_of_document(document) {
            self.registries.insert(registry, name.clone());
        }
        for connector in document["spec"]["connectors"].as_array().into_iter().flatten() {
            if let Some(port) = port_of(connector) {
                self.ports.insert(port, name.clone());
            } else if let Some(host) = connector["host"].as_str() {
                self.hosts.insert(host.to_owned(), name.clone());
            }
        }
    }
}

fn port_of(connector: &Value) -> Option<u16> {
    connector["port"].as_u64().and_then(|port| u16::try_from(port).ok())
}

struct Judge<'a> {
    gathered: &'a Gathered,
    namespace: &'a str,
}

const CREDENTIALS: &str = "username and password, or .dockerconfigjson";
const CERTIFICATE: &str = "tls.crt and tls.key";

impl Judge<'_> {
    /// The Secret of the server's own certificate. What is missing is kept as it was mounted last.
    fn server(&self, mounted: &BTreeMap<String, ByteString>, secrets: &mut BTreeMap<String, ByteString>) -> Verdict {
        let tls = &self.gathered.server.spec.tls;
        let Some(reference) = tls.secret_ref.as_ref().filter(|_| tls.mode == Some(TlsMode::Secret)) else {
            return Verdict::Good;
        };
        match self.certificate("spec.tls.secretRef", reference) {
            Ok(found) => {
                secrets.extend(found);
                Verdict::Good
            }
            Err(problem) => {
                let prefix = names::flat_key(&reference.name, "tls.");
                let kept: Vec<_> = mounted.iter().filter(|(key, _)| key.starts_with(&prefix)).collect();
                if kept.len() < 2 {
                    return Verdict::Refused(problem);
                }
                secrets.extend(kept.into_iter().map(|(key, value)| (key.clone(), value.clone())));
                Verdict::Kept(problem)
            }
        }
    }

    fn mirror(&self, mirror: &RegistryMirror, claims: &Claims) -> Result<BTreeMap<String, ByteString>, Problem> {
        let upstream = &mirror.spec.upstream;
        if registry(mirror).is_none() {
            return Err(Problem::UrlMalformed { url: upstream.url.clone() });
        }
        if let Some(problem) = claims.conflict(&mirror_document(mirror)) {
            return Err(problem);
        }
        let mut secrets = BTreeMap::new();
        if let Some(reference) = &upstream.credentials_secret_ref {
            secrets.extend(self.credentials("spec.upstream.credentialsSecretRef", reference)?);
        }
        if let Some(reference) = &upstream.client_certificate_secret_ref {
            secrets.extend(self.certificate("spec.upstream.clientCertificateSecretRef", reference)?);
        }
        for (index, connector) in mirror.spec.connectors.iter().enumerate() {
            if let Some(tls) = &connector.tls {
                let field = format!("spec.connectors[{index}].tls.secretRef");
                secrets.extend(self.certificate(&field, &tls.secret_ref)?);
            }
        }
        Ok(secrets)
    }

    fn credentials(&self, field: &str, reference: &SecretRef) -> Result<BTreeMap<String, ByteString>, Problem> {
        let data = self.data(field, reference, CREDENTIALS)?;
        if let Some(config) = data.get(".dockerconfigjson") {
            let parsed: Option<Value> = serde_json::from_slice(&config.0).ok();
            if !parsed.is_some_and(|config| config["auths"].is_object()) {
                return Err(Problem::SecretMalformed {
                    field: field.to_owned(),
                    secret: reference.name.clone(),
                    key: ".dockerconfigjson".to_owned(),
                    must: "must be JSON with `auths`, as `docker login` writes it",
                });
            }
            return Ok(flat(reference, &data, &[".dockerconfigjson"]));
        }
        Self::with_keys(field, reference, &data, ["username", "password"], CREDENTIALS)
    }

    fn certificate(&self, field: &str, reference: &SecretRef) -> Result<BTreeMap<String, ByteString>, Problem> {
        let data = self.data(field, reference, CERTIFICATE)?;
        Self::with_keys(field, reference, &data, ["tls.crt", "tls.key"], CERTIFICATE)
    }

    fn data(
        &self,
        field: &str,
        reference: &SecretRef,
        wanted: &'static str,
    ) -> Result<BTreeMap<String, ByteString>, Problem> {
        if reference.name == names::MANAGED_TLS {
            return Err(Problem::SecretReserved { field: field.to_owned() });
        }
        let secret = self.gathered.secrets.get(&reference.name).ok_or_else(|| Problem::SecretNotFound {
            field: field.to_owned(),
            secret: reference.name.clone(),
            namespace: self.namespace.to_owned(),
            wanted,
        })?;
        Ok(secret.data.clone().unwrap_or_default())
    }

    fn with_keys(
        field: &str,
        reference: &SecretRef,
        data: &BTreeMap<String, ByteString>,
        keys: [&str; 2],
        wanted: &'static str,
    ) -> Result<BTreeMap<String, ByteString>, Problem> {
        if let Some(missing) = keys.iter().find(|key| !data.contains_key(**key)) {
            let found: Vec<&str> = data.keys().map(String::as_str).collect();
            let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
            return Err(Problem::SecretKeyMissing {
                field: field.to_owned(),
                secret: reference.name.clone(),
                missing: (*missing).to_owned(),
                wanted,
                found,
            });
        }
        if let Some(empty) = keys.iter().find(|key| data.get(**key).is_some_and(|value| value.0.is_empty())) {
            return Err(Problem::SecretMalformed {
                field: field.to_owned(),
                secret: reference.name.clone(),
                key: (*empty).to_owned(),
                must: "must not be empty",
            });
        }
        Ok(flat(reference, data, &keys))
    }
}

fn flat(reference: &SecretRef, data: &BTreeMap<String, ByteString>, keys: &[&str]) -> BTreeMap<String, ByteString> {
    let present = keys.iter().filter_map(|key| Some((names::flat_key(&reference.name, key), data.get(*key)?.clone())));
    present.collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crds::CacheServer;
    use serde_json::json;

    use super::*;
    use crate::desired::config_map::config_map;

    fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).expect("should be an object of its kind")
    }

    #[expect(clippy::needless_pass_by_value, reason = "callers write the value in place")]
    fn mirror(name: &str, spec: Value) -> Arc<RegistryMirror> {
        Arc::new(read(json!({"apiVersion": "entrepot.dev/v1alpha1", "kind": "RegistryMirror",
            "metadata": {"name": name, "uid": format!("uid-{name}"), "generation": 2}, "spec": spec})))
    }

    fn plain(name: &str) -> Arc<RegistryMirror> {
        mirror(name, json!({"upstream": {"url": format!("https://{name}.example.com")}}))
    }

    fn with_secret(name: &str) -> Arc<RegistryMirror> {
        let upstream = json!({"url": format!("https://{name}.example.com"), "credentialsSecretRef": {"name": "s"}});
        mirror(name, json!({"upstream": upstream, "anonymousPull": true}))
    }

    fn gathered(mirrors: &[Arc<RegistryMirror>]) -> Gathered {
        Gathered {
            server: Arc::new(CacheServer::new("default", crds::CacheServerSpec::default())),
            mirrors: mirrors.to_vec(),
            secrets: BTreeMap::new(),
            config_map: None,
            deployment: None,
            service: None,
            claim: None,
            pods: Vec::new(),
            node_mirrors: Vec::new(),
            nodes: Vec::new(),
        }
    }

    fn secret(gathered: &mut Gathered, name: &str, keys: &[(&str, &str)]) {
        let data: BTreeMap<_, _> =
            keys.iter().map(|(key, text)| ((*key).to_owned(), ByteString(text.as_bytes().to_vec()))).collect();
        let secret = k8s_openapi::api::core::v1::Secret { data: Some(data), ..Default::default() };
        gathered.secrets.insert(name.to_owned(), Arc::new(secret));
    }

    fn judged(gathered: &Gathered) -> Valid {
        validate(gathered, "entrepot-system", &BTreeSet::new())
    }

    #[test]
    fn a_bad_mirror_is_left_out_and_the_others_are_served() {
        let found = judged(&gathered(&[plain("a"), with_secret("b"), plain("c")]));
        assert_eq!(found.served(), ["a", "c"]);
        let Verdict::Refused(problem) = &found.verdicts["b"] else { unreachable!("should be refused") };
        assert_eq!(problem.reason(), "SecretNotFound");
        assert_eq!(
            problem.to_string(),
            "spec.upstream.credentialsSecretRef names the Secret \"s\", which is not in the namespace entrepot-system; create it there with username and password, or .dockerconfigjson"
        );
    }

    #[test]
    fn the_missing_key_of_a_secret_is_named() {
        for (keys, expected) in [
            (
                vec![("username", "u")],
                "has no key \"password\"; it must have username and password, or .dockerconfigjson (it has username)",
            ),
            (vec![("token", "u")], "has no key \"username\""),
            (vec![("username", "u"), ("password", "")], "whose key \"password\" must not be empty"),
            (vec![(".dockerconfigjson", "{}")], "must be JSON with `auths`"),
        ] {
            let mut gathered = gathered(&[with_secret("b")]);
            secret(&mut gathered, "s", &keys);
            let Verdict::Refused(problem) = judged(&gathered).verdicts["b"].clone() else { unreachable!("{expected}") };
            assert!(problem.to_string().contains(expected), "{problem}");
        }
    }

    #[test]
    fn referenced_keys_are_copied_flat_and_no_others() {
        let mut gathered = gathered(&[with_secret("b")]);
        secret(&mut gathered, "s", &[("username", "u"), ("password", "p"), ("other", "x")]);
        assert_eq!(judged(&gathered).secrets.keys().collect::<Vec<_>>(), ["s_password", "s_username"]);
    }

    #[test]
    fn the_recorded_holder_keeps_a_registry_against_an_older_mirror() {
        let same = |name: &str| mirror(name, json!({"upstream": {"url": "https://r.example.com"}}));
        let mut gathered = gathered(&[same("a"), same("b")]);
        let taken = |found: &Valid, name: &str| match &found.verdicts[name] {
            Verdict::Refused(problem) => problem.to_string(),
            other => format!("{other:?}"),
        };
        assert!(taken(&judged(&gathered), "b").contains("already what the mirror a stands for"));
        let mut server = CacheServer::new("default", crds::CacheServerSpec::default());
        server.status =
            Some(read(json!({"registries": [{"registry": "r.example.com", "repository": "b", "uid": "uid-b"}]})));
        gathered.server = Arc::new(server);
        let found = judged(&gathered);
        assert!(taken(&found, "a").contains("already what the mirror b stands for"));
        assert_eq!(found.holders[0].repository, "b");
    }

    #[test]
    fn ports_and_hosts_belong_to_one_mirror() {
        for (connector, expected) in [
            (json!({"port": 5001}), "spec.connectors[0]: port 5001 is taken by the mirror a"),
            (json!({"host": "x.lan"}), "host x.lan is taken by the mirror a"),
            (json!({"port": 5000}), "port 5000 is taken by the main port"),
            (json!({"port": 9090}), "port 9090 is taken by the port on which"),
        ] {
            let spec = |name: &str, connector: &Value| {
                let url = format!("https://{name}.example.com");
                mirror(name, json!({"upstream": {"url": url}, "connectors": [connector]}))
            };
            let first =
                if connector["port"] == 5000 || connector["port"] == 9090 { plain("a") } else { spec("a", &connector) };
            let found = judged(&gathered(&[first, spec("b", &connector)]));
            let Verdict::Refused(problem) = &found.verdicts["b"] else { unreachable!("{expected}") };
            assert!(problem.to_string().contains(expected), "{problem}");
            assert_eq!(found.verdicts["a"], Verdict::Good);
        }
    }

    #[test]
    fn the_last_good_version_stays_with_its_secret() {
        let mut good = gathered(&[with_secret("b")]);
        secret(&mut good, "s", &[("username", "u"), ("password", "p")]);
        let first = judged(&good);
        let mut server = CacheServer::new("default", crds::CacheServerSpec::default());
        server.status = Some(read(json!({"registries": first.holders})));
        let mut bad = gathered(&[with_secret("b")]);
        bad.config_map = Some(Arc::new(read(config_map(&server, "entrepot-system", &first.documents))));
        bad.server = Arc::new(server);
        secret(&mut bad, "cache-default", &[("s_username", "u"), ("s_password", "p"), ("t_username", "x")]);
        let found = judged(&bad);
        assert!(matches!(&found.verdicts["b"], Verdict::Kept(Problem::SecretNotFound { .. })));
        assert_eq!((found.documents, found.secrets), (first.documents, first.secrets));
    }

    #[test]
    fn a_registry_comes_from_the_url_as_images_name_it() {
        for (url, expected) in [
            ("https://registry-1.docker.io", "docker.io"),
            ("https://quay.io/", "quay.io"),
            ("http://registry.lan:5000", "registry.lan:5000"),
            ("https://ghcr.io:443", "ghcr.io"),
        ] {
            assert_eq!(registry_from(None, url).as_deref(), Some(expected));
        }
    }
}
