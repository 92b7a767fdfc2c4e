//! `CacheServer`: the process that serves repositories. May import `names`.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::names::{ByteSize, SecretRef, Span};

/// The process that serves repositories: one store, one main port, and what holds for all of its repositories.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "entrepot.dev",
    version = "v1alpha1",
    kind = "CacheServer",
    plural = "cacheservers",
    singular = "cacheserver",
    shortname = "cserver",
    category = "entrepot",
    doc = "The process that serves repositories.",
    cel
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!has(self.limits) || [self.limits.requestHeader, self.limits.idle, self.limits.writeStall].all(limit, duration(limit) > duration('0s'))")
        .message("limits.requestHeader, limits.idle and limits.writeStall must be longer than 0s"),
)]
pub struct CacheServerSpec {
    /// The most that all stored content may take. Cleaning begins at 85 % of it and ends at 75 %. Unset: 80 % of the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_size: Option<ByteSize>,

    /// The certificate of the main port.
    #[serde(default)]
    pub tls: ServerTls,

    /// The repository that answers `/v2/<name>/` when nothing else in the request says which. Unset: the only one, if there is one only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub default_repository: Option<String>,

    /// Time limits towards clients.
    #[serde(default)]
    pub limits: ClientLimits,
}

/// The certificate of the main port.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("(has(self.mode) && self.mode == 'Secret') == has(self.secretRef)")
        .message("secretRef must be set when mode is Secret, and only then"),
)]
pub struct ServerTls {
    /// Where the certificate comes from.
    #[serde(default)]
    pub mode: TlsMode,
    /// With mode `Secret`: the Secret with `tls.crt` and `tls.key`. Read again when it changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
}

/// Where a certificate comes from.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TlsMode {
    /// From a Secret.
    Secret,
    /// Nowhere: plain HTTP.
    #[default]
    Disabled,
}

/// Time limits towards clients. There is never a total limit on a body.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ClientLimits {
    /// For a request's header to arrive whole, from its first byte.
    pub request_header: Span,
    /// For how long a connection without a request is kept.
    pub idle: Span,
    /// A client that takes nothing of its answer for this long is dropped.
    pub write_stall: Span,
    /// For how long running transfers may go on after SIGTERM.
    pub drain: Span,
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self {
            request_header: Span::secs(10),
            idle: Span::secs(120),
            write_stall: Span::secs(60),
            drain: Span::secs(30),
        }
    }
}
