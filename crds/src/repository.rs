//! What the kinds of repositories have in common. May import `names`.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::names::{ByteSize, HOST_PATTERN, SecretRef, Span};

/// How a pattern of tags is written: the characters of a tag, and `*`.
pub const TAG_GLOB_PATTERN: &str = "^[A-Za-z0-9_.*-]+$";

/// How a pattern of image names is written: the characters of an image name, and `*`.
pub const IMAGE_GLOB_PATTERN: &str = "^[a-z0-9._/*-]+$";

/// Whether a text matches [`TAG_GLOB_PATTERN`].
#[must_use]
pub fn is_tag_glob(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.*-".contains(&byte))
}

/// Whether a text matches [`IMAGE_GLOB_PATTERN`].
#[must_use]
pub fn is_image_glob(text: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._/*-".contains(&byte);
    !text.is_empty() && text.bytes().all(known)
}

/// What a repository keeps. What was used least recently goes first.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Retention {
    /// The most that this repository's content may take, blobs shared with other repositories counted in full. Unset: the server's `maxSize` alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_size: Option<ByteSize>,
    /// Content that nobody asked for during this time is dropped. Unset: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unused_for: Option<Span>,
}

/// A way in to one repository: a port of its own or a host name.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("has(self.port) != has(self.host)").message("a connector must have either port or host"),
    validation = Rule::new("!has(self.tls) || has(self.port)").message("tls must only be set on a connector with a port"),
    validation = Rule::new("!has(self.nodePort) || has(self.port)").message("nodePort must only be set on a connector with a port"),
    validation = Rule::new("!has(self.tlsSecretRef) || has(self.host)")
        .message("tlsSecretRef must only be set on a connector with a host; the certificate of a port is tls.secretRef"),
)]
pub struct Connector {
    /// A TCP port of the cache server; the whole path of a request is the image name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// A host name (without port) by which clients call the server's main port; the whole path is the image name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = HOST_PATTERN))]
    pub host: Option<String>,
    /// The certificate for this port. Unset: plain HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ConnectorTls>,
    /// The port that every node opens for `port`, where `service.type` of the `CacheServer` is `NodePort` or `LoadBalancer`. Unset: one of Kubernetes' choice. Only in a cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub node_port: Option<u16>,
    /// Secret with `tls.crt` and `tls.key`: the certificate for clients that call the main port by this host name. Several hosts may share one, as with a wildcard certificate. Unset: the main port's own certificate. Read again when it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_secret_ref: Option<SecretRef>,
}

/// The certificate of a port.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConnectorTls {
    /// Secret with `tls.crt` and `tls.key`. Read again when it changes.
    pub secret_ref: SecretRef,
}

/// The `CacheServer` that serves a repository which names none.
pub(crate) fn default_server() -> String {
    "default".to_owned()
}

/// What is so unless it is said otherwise.
pub(crate) const fn yes() -> bool {
    true
}
