//! Secrets: a flat folder of files `<secret>_<key>`, and what is made of them. May import `credentials` and
//! `access`.

use std::{collections::BTreeMap, fmt, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde::Deserialize;

use super::hosts::RegistryName;
use crate::{
    access::htpasswd::{HtpasswdError, Users},
    credentials::{Credentials, Secret},
};

/// A certificate with its key.
///
/// Invariants: at least one certificate, the first one the own; the key is usable and belongs to it.
#[derive(Clone, PartialEq, Eq)]
pub struct CertifiedKeyPem {
    chain: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
}

impl CertifiedKeyPem {
    /// Reads `tls.crt` and `tls.key`.
    pub fn parse(certificates: &[u8], key: &[u8]) -> Result<Self, SecretError> {
        let chain = certificates_of(certificates)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(SecretError::KeyPem)?;
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        rustls::sign::CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider)
            .map_err(SecretError::KeyPair)?;
        Ok(Self { chain, key: Arc::new(key) })
    }

    /// The own certificate, then those that lead to its root.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The key, as a copy, since rustls wants to own it.
    #[must_use]
    pub fn key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }
}

impl fmt::Debug for CertifiedKeyPem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "CertifiedKeyPem({} certificates, …)", self.chain.len())
    }
}

/// Why a Secret does not give what it is named for. No variant carries secret bytes.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// A Secret is named, but there is no folder.
    #[error("names the Secret {0:?}, but no folder of Secrets was given; start with --secrets DIR")]
    NoFolder(String),
    /// A key is missing.
    #[error("the Secret {secret:?} must have {wanted}; add {files} to the folder of Secrets")]
    Missing {
        /// The Secret.
        secret: String,
        /// The keys that were looked for.
        wanted: &'static str,
        /// The files that they are.
        files: String,
    },
    /// Bytes where text is needed.
    #[error("the file {0} must be UTF-8 text")]
    NotText(String),
    /// Nothing in it.
    #[error("the file {0} must not be empty")]
    Empty(String),
    /// `.dockerconfigjson` is no such document.
    #[error("the file {file} must be JSON with `auths`, as `docker login` writes it (line {line}, column {column})")]
    DockerConfig {
        /// The file.
        file: String,
        /// Where the parser stopped.
        line: usize,
        /// Where the parser stopped.
        column: usize,
    },
    /// `.dockerconfigjson` knows other registries only.
    #[error("the file {file} must have an entry for {registry}; it has entries for {found}")]
    NoEntry {
        /// The file.
        file: String,
        /// The registry that was looked for.
        registry: String,
        /// The registries in it.
        found: String,
    },
    /// An entry that `docker login` made with a token of its own.
    #[error(
        "the entry for {host} in {file} has an identitytoken or registrytoken, which is not supported; put a user name and a password or access token there"
    )]
    TokenLogin {
        /// The file.
        file: String,
        /// The entry.
        host: String,
    },
    /// Neither `auth` nor `username` and `password`, or an `auth` that is no base64 of `user:password`.
    #[error("the entry for {host} in {file} must have `auth` (base64 of user:password) or `username` and `password`")]
    NoLogin {
        /// The file.
        file: String,
        /// The entry.
        host: String,
    },
    /// A file of users with a mistake.
    #[error("the file {file} must be one of users")]
    Users {
        /// The file.
        file: String,
        /// The mistake.
        source: HtpasswdError,
    },
    /// No certificates.
    #[error("the certificates must be PEM")]
    CertificatePem(#[source] rustls::pki_types::pem::Error),
    /// An empty PEM text.
    #[error("there must be at least one certificate (BEGIN CERTIFICATE)")]
    NoCertificate,
    /// A certificate that cannot be trusted as an authority.
    #[error("certificate {number} cannot be read as an authority")]
    NoAuthority {
        /// Which one, from 1.
        number: usize,
        /// What is wrong with it.
        source: rustls::Error,
    },
    /// No key.
    #[error("tls.key must hold one unencrypted private key in PEM")]
    KeyPem(#[source] rustls::pki_types::pem::Error),
    /// Key and certificate do not belong together, or are unusable.
    #[error("tls.key must be a usable key and belong to the first certificate of tls.crt")]
    KeyPair(#[source] rustls::Error),
}

/// Certificates that are trusted as authorities.
pub(super) fn authorities_of(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, SecretError> {
    let certificates = certificates_of(pem)?;
    let mut roots = rustls::RootCertStore::empty();
    for (index, certificate) in certificates.iter().enumerate() {
        roots.add(certificate.clone()).map_err(|source| SecretError::NoAuthority { number: index + 1, source })?;
    }
    Ok(certificates)
}

fn certificates_of(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, SecretError> {
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(SecretError::CertificatePem)?;
    if certificates.is_empty() { Err(SecretError::NoCertificate) } else { Ok(certificates) }
}

/// The files of the folder of Secrets, by name; `None` if no folder was given.
#[derive(Debug, Default)]
pub(super) struct Secrets(pub(super) Option<BTreeMap<String, SecretBytes>>);

/// The bytes of a file that must not be printed.
pub(super) struct SecretBytes(pub(super) Vec<u8>);

impl fmt::Debug for SecretBytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("…")
    }
}

impl Secrets {
    /// `tls.crt` and `tls.key` of a Secret.
    pub(super) fn certified_key(&self, secret: &str) -> Result<CertifiedKeyPem, SecretError> {
        let (Some(certificates), Some(key)) = (self.bytes(secret, "tls.crt")?, self.bytes(secret, "tls.key")?) else {
            return Err(SecretError::Missing {
                secret: secret.to_owned(),
                wanted: "the keys tls.crt and tls.key",
                files: format!("{secret}_tls.crt and {secret}_tls.key"),
            });
        };
        CertifiedKeyPem::parse(certificates, key)
    }

    /// The credentials of a Secret for one of `hosts` (the registry and the host of its upstream).
    pub(super) fn credentials(&self, secret: &str, hosts: &[RegistryName]) -> Result<Credentials, SecretError> {
        if let Some(config) = self.bytes(secret, ".dockerconfigjson")? {
            return docker_login(&format!("{secret}_.dockerconfigjson"), config, hosts);
        }
        let (Some(username), Some(password)) = (self.text(secret, "username")?, self.text(secret, "password")?) else {
            return Err(SecretError::Missing {
                secret: secret.to_owned(),
                wanted: "the keys username and password, or the key .dockerconfigjson",
                files: format!("{secret}_username and {secret}_password, or {secret}_.dockerconfigjson,"),
            });
        };
        Ok(Credentials { username: username.to_owned(), password: Secret::new(password) })
    }

    /// The users of a Secret, from its key `htpasswd` or, as kubernetes.io/ingress-nginx has it, `auth`.
    pub(super) fn users(&self, secret: &str) -> Result<Users, SecretError> {
        for key in ["htpasswd", "auth"] {
            if let Some(text) = self.text(secret, key)? {
                return Users::parse(text)
                    .map_err(|source| SecretError::Users { file: format!("{secret}_{key}"), source });
            }
        }
        Err(SecretError::Missing {
            secret: secret.to_owned(),
            wanted: "the key htpasswd or auth",
            files: format!("{secret}_htpasswd or {secret}_auth"),
        })
    }

    fn bytes(&self, secret: &str, key: &str) -> Result<Option<&[u8]>, SecretError> {
        let files = self.0.as_ref().ok_or_else(|| SecretError::NoFolder(secret.to_owned()))?;
        Ok(files.get(&format!("{secret}_{key}")).map(|bytes| bytes.0.as_slice()))
    }

    /// A file as text, without the line end that editors put behind it.
    fn text(&self, secret: &str, key: &str) -> Result<Option<&str>, SecretError> {
        let Some(bytes) = self.bytes(secret, key)? else { return Ok(None) };
        let file = || format!("{secret}_{key}");
        let text = std::str::from_utf8(bytes).map_err(|_| SecretError::NotText(file()))?;
        let text = text.strip_suffix('\n').unwrap_or(text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        if text.is_empty() { Err(SecretError::Empty(file())) } else { Ok(Some(text)) }
    }
}

#[derive(Deserialize)]
struct DockerConfig {
    auths: BTreeMap<String, DockerAuth>,
}

#[derive(Deserialize)]
struct DockerAuth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

/// Finds the entry for a registry as `docker` and the kubelet do: keys may be URLs (`https://index.docker.io/v1/`).
fn docker_login(file: &str, config: &[u8], hosts: &[RegistryName]) -> Result<Credentials, SecretError> {
    // The parser's own message may quote the document, so only the position is told.
    let config: DockerConfig = serde_json::from_slice(config).map_err(|error| SecretError::DockerConfig {
        file: file.to_owned(),
        line: error.line(),
        column: error.column(),
    })?;
    let entry =
        hosts.iter().find_map(|host| config.auths.iter().find(|(key, _)| registry_of_key(key).as_ref() == Some(host)));
    let Some((host, entry)) = entry else {
        return Err(SecretError::NoEntry {
            file: file.to_owned(),
            registry: hosts.first().map(ToString::to_string).unwrap_or_default(),
            found: if config.auths.is_empty() {
                "nothing".to_owned()
            } else {
                config.auths.into_keys().collect::<Vec<_>>().join(", ")
            },
        });
    };
    let set = |field: &Option<String>| field.as_ref().filter(|text| !text.is_empty()).cloned();
    if set(&entry.identitytoken).is_some() || set(&entry.registrytoken).is_some() {
        return Err(SecretError::TokenLogin { file: file.to_owned(), host: host.clone() });
    }
    if let (Some(username), Some(password)) = (set(&entry.username), set(&entry.password)) {
        return Ok(Credentials { username, password: Secret::new(&password) });
    }
    let decoded = set(&entry.auth)
        .and_then(|auth| STANDARD.decode(auth.trim()).ok())
        .and_then(|bytes| String::from_utf8(bytes).ok());
    match decoded.as_deref().and_then(|pair| pair.split_once(':')) {
        Some((username, password)) if !username.is_empty() && !password.is_empty() => {
            Ok(Credentials { username: username.to_owned(), password: Secret::new(password) })
        }
        _ => Err(SecretError::NoLogin { file: file.to_owned(), host: host.clone() }),
    }
}

fn registry_of_key(key: &str) -> Option<RegistryName> {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    bare.split('/').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use serde_json::{Value, json};

    use super::*;

    fn secrets(files: &[(&str, &str)]) -> Secrets {
        Secrets(Some(
            files.iter().map(|(name, text)| ((*name).to_owned(), SecretBytes(text.as_bytes().to_vec()))).collect(),
        ))
    }

    #[expect(clippy::unwrap_in_result, reason = "a test may end so")]
    fn login(auths: &Value, registry: &str) -> Result<Credentials, SecretError> {
        let config = json!({"auths": auths}).to_string();
        secrets(&[("s_.dockerconfigjson", &config)]).credentials("s", &[registry.parse().expect("a registry")])
    }

    #[test]
    fn a_user_and_a_password_lose_their_line_end() {
        let found = secrets(&[("s_username", "me\n"), ("s_password", " pass word\r\n")]).credentials("s", &[]).unwrap();
        assert_eq!((found.username.as_str(), found.password.expose()), ("me", " pass word"));
    }

    #[test]
    fn nothing_secret_is_printed() {
        let credentials = Credentials { username: "me".into(), password: Secret::new("hunter2") };
        let files = secrets(&[("s_password", "hunter2")]);
        assert!(!format!("{credentials:?} {files:?}").contains("hunter2"));
    }

    #[test]
    fn a_docker_config_is_searched_by_host() {
        let entry = json!({"auth": STANDARD.encode("me:a:b")});
        for (key, registry) in [
            ("https://index.docker.io/v1/", "docker.io"),
            ("docker.io", "docker.io"),
            ("ghcr.io", "ghcr.io"),
            ("https://registry.example.com:5000/v2/", "registry.example.com:5000"),
        ] {
            let found = login(&json!({"other.example.com": {"auth": "eA=="}, key: entry}), registry).unwrap();
            assert_eq!((found.username.as_str(), found.password.expose()), ("me", "a:b"), "{key}");
        }
        let found =
            login(&json!({"ghcr.io": {"username": "me", "password": "p", "auth": "broken"}}), "ghcr.io").unwrap();
        assert_eq!(found.password.expose(), "p");
    }

    #[test]
    fn what_a_docker_config_cannot_give_is_said() {
        for (auths, words) in [
            (json!({}), "it has entries for nothing"),
            (json!({"quay.io": {}}), "must have an entry for ghcr.io; it has entries for quay.io"),
            (json!({"ghcr.io": {"identitytoken": "x"}}), "identitytoken"),
            (json!({"ghcr.io": {}}), "must have `auth`"),
            (json!({"ghcr.io": {"auth": "!"}}), "must have `auth`"),
            (json!({"ghcr.io": {"auth": STANDARD.encode("nocolon")}}), "must have `auth`"),
            (json!([]), "must be JSON with `auths`"),
        ] {
            let message = login(&auths, "ghcr.io").unwrap_err().to_string();
            assert!(message.contains(words), "{message}");
        }
    }

    #[test]
    fn missing_files_are_named() {
        for (secrets, words) in [
            (Secrets(None), "--secrets"),
            (secrets(&[]), "add s_username and s_password, or s_.dockerconfigjson,"),
            (secrets(&[("s_username", "me")]), "add s_username and s_password"),
            (secrets(&[("s_username", "\n"), ("s_password", "x")]), "s_username must not be empty"),
        ] {
            let message = secrets.credentials("s", &[]).unwrap_err().to_string();
            assert!(message.contains(words), "{message}");
        }
        let message = secrets(&[("s_tls.crt", "x")]).certified_key("s").unwrap_err().to_string();
        assert!(message.contains("s_tls.key"), "{message}");
    }

    #[test]
    fn a_key_must_belong_to_its_certificate() {
        let one = rcgen::generate_simple_self_signed(["a.example.com".to_owned()]).unwrap();
        let two = rcgen::generate_simple_self_signed(["b.example.com".to_owned()]).unwrap();
        let (certificate, key) = (one.cert.pem(), one.signing_key.serialize_pem());
        let pair = CertifiedKeyPem::parse(certificate.as_bytes(), key.as_bytes()).unwrap();
        assert_eq!(pair.chain().len(), 1);
        assert_eq!(format!("{pair:?}"), "CertifiedKeyPem(1 certificates, …)");
        let parse = |certificate: &str, key: &str| CertifiedKeyPem::parse(certificate.as_bytes(), key.as_bytes());
        assert!(matches!(parse(&certificate, &two.signing_key.serialize_pem()), Err(SecretError::KeyPair(_))));
        assert!(matches!(parse(&certificate, ""), Err(SecretError::KeyPem(_))));
        assert!(matches!(parse("", &key), Err(SecretError::NoCertificate)));
        assert!(matches!(
            parse("-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n", &key),
            Err(SecretError::CertificatePem(_))
        ));
        assert_eq!(authorities_of(certificate.repeat(2).as_bytes()).unwrap().len(), 2);
        assert!(authorities_of(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").is_err());
    }
}
