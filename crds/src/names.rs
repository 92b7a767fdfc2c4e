//! The words a spec is made of: types that cannot hold a wrong value. May import nothing of ours.

use std::{fmt, str::FromStr, sync::Arc};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// First path segments that mean something else, so that no repository may take them.
pub const RESERVED_REPOSITORY_NAMES: [&str; 7] = ["library", "token", "v1", "v2", "api", "repository", "probe"];

/// How the name of a Secret is written.
pub const SECRET_NAME_PATTERN: &str = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$";

/// How a host name without port is written, lower case.
pub const HOST_PATTERN: &str = "^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$";

/// How a registry is written as images name it: a host name, and a port if it is not the usual one.
pub const REGISTRY_PATTERN: &str = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?(:[0-9]{1,5})?$";

/// How a pattern of repository names is written.
pub const REPOSITORY_GLOB_PATTERN: &str = "^[a-z0-9*-]+$";

/// Whether a text matches [`REPOSITORY_GLOB_PATTERN`].
#[must_use]
pub fn is_repository_glob(text: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-*".contains(&byte);
    !text.is_empty() && text.bytes().all(known)
}

/// Whether a text matches [`SECRET_NAME_PATTERN`] and has at most 253 characters.
#[must_use]
pub fn is_secret_name(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    let edge = |char: char| char.is_ascii_lowercase() || char.is_ascii_digit();
    text.len() <= 253 && text.bytes().all(inner) && text.starts_with(edge) && text.ends_with(edge)
}

/// Whether a text matches [`HOST_PATTERN`].
#[must_use]
pub fn is_host(text: &str) -> bool {
    // Names of Secrets and of hosts are DNS subdomains both.
    is_secret_name(text)
}

/// Whether a text matches [`REGISTRY_PATTERN`] and its port is a number up to 65535.
#[must_use]
pub fn is_registry(text: &str) -> bool {
    match text.split_once(':') {
        Some((host, port)) => is_host(host) && port.len() <= 5 && !port.starts_with('+') && port.parse::<u16>().is_ok(),
        None => is_host(text),
    }
}

/// The unique name of a repository.
///
/// Invariants: a DNS label (RFC 1123: 1 to 63 of `a-z`, `0-9`, `-`, neither first nor last a `-`), hence without dots,
/// because a first path segment with a dot is a registry; and not one of [`RESERVED_REPOSITORY_NAMES`]. Cloning counts a
/// reference.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RepositoryName(Arc<str>);

/// Why a text is no [`RepositoryName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RepositoryNameError {
    /// Not a DNS label.
    #[error(
        "a repository name must be 1 to 63 of a-z, 0-9 and '-', starting and ending with a letter or digit, got {0:?}"
    )]
    NotALabel(String),
    /// One of [`RESERVED_REPOSITORY_NAMES`].
    #[error("a repository must not be named {0:?}: that path means something else; choose another name")]
    Reserved(String),
}

impl RepositoryName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RepositoryName {
    type Err = RepositoryNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let label =
            (1..=63).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-');
        if !label {
            return Err(RepositoryNameError::NotALabel(text.to_owned()));
        }
        if RESERVED_REPOSITORY_NAMES.contains(&text) {
            return Err(RepositoryNameError::Reserved(text.to_owned()));
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for RepositoryName {
    type Error = RepositoryNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<RepositoryName> for String {
    fn from(name: RepositoryName) -> Self {
        name.as_str().to_owned()
    }
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::borrow::Borrow<str> for RepositoryName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// A number of bytes, written as a Kubernetes quantity: a whole number with an optional suffix `k M G T P` (powers of
/// 1000) or `Ki Mi Gi Ti Pi` (powers of 1024).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ByteSize(u64);

/// Why a text is no [`ByteSize`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a size must be a whole number of bytes with an optional suffix k, M, G, T, P, Ki, Mi, Gi, Ti or Pi, got {0:?}"
)]
pub struct ByteSizeError(String);

/// Suffixes with their factors; the longer ones of equal end first.
const SIZE_SUFFIXES: [(&str, u64); 10] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
];

impl ByteSize {
    /// How a size is written.
    pub const PATTERN: &str = "^[0-9]+([kMGTP]|[KMGTP]i)?$";

    /// A size of so many bytes.
    #[must_use]
    pub const fn bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The number of bytes.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = ByteSizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || ByteSizeError(text.to_owned());
        let (digits, factor) = SIZE_SUFFIXES
            .iter()
            .find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, *factor)))
            .unwrap_or((text, 1));
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(refuse());
        }
        let number: u64 = digits.parse().map_err(|_| refuse())?;
        number.checked_mul(factor).map(Self).ok_or_else(refuse)
    }
}

impl TryFrom<String> for ByteSize {
    type Error = ByteSizeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ByteSize> for String {
    fn from(size: ByteSize) -> Self {
        size.to_string()
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binary =
            SIZE_SUFFIXES[..5].iter().rev().find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor));
        match binary {
            Some((suffix, factor)) => write!(formatter, "{}{suffix}", self.0 / factor),
            None => write!(formatter, "{}", self.0),
        }
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 20,
            "pattern": Self::PATTERN,
        })
    }
}

/// A length of time, written as Kubernetes writes it (`500ms`, `90s`, `1h30m`); never negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(std::time::Duration);

/// Why a text is no [`Span`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a length of time must be written like 500ms, 90s or 1h30m and not be negative, got {0:?}")]
pub struct SpanError(String);

impl Span {
    /// How a length of time is written.
    pub const PATTERN: &str = r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$";

    /// So many milliseconds.
    #[must_use]
    pub const fn millis(millis: u64) -> Self {
        Self(std::time::Duration::from_millis(millis))
    }

    /// So many seconds.
    #[must_use]
    pub const fn secs(secs: u64) -> Self {
        Self(std::time::Duration::from_secs(secs))
    }

    /// The same as the standard library's type.
    #[must_use]
    pub const fn get(self) -> std::time::Duration {
        self.0
    }
}

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || SpanError(text.to_owned());
        let parsed = kube::core::Duration::from_str(text).map_err(|_| refuse())?;
        if parsed.is_negative() {
            return Err(refuse());
        }
        Ok(Self(parsed.into()))
    }
}

impl TryFrom<String> for Span {
    type Error = SpanError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}

impl fmt::Display for Span {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        match millis {
            0 => formatter.write_str("0s"),
            _ if millis.is_multiple_of(3_600_000) => write!(formatter, "{}h", millis / 3_600_000),
            _ if millis.is_multiple_of(60_000) => write!(formatter, "{}m", millis / 60_000),
            _ if millis.is_multiple_of(1_000) => write!(formatter, "{}s", millis / 1_000),
            _ => write!(formatter, "{millis}ms"),
        }
    }
}

impl JsonSchema for Span {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Span".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 32,
            "pattern": Self::PATTERN,
        })
    }
}

/// The name of a Secret in the same namespace (in a file-based set-up: the prefix of files `<secret>_<key>`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretRef {
    /// The name of the Secret, as in `metadata.name`.
    #[schemars(length(min = 1, max = 253), regex(pattern = SECRET_NAME_PATTERN))]
    pub name: String,
}
