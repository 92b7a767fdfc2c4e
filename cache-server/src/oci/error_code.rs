//! The error codes of the distribution spec ("Error Codes"), their statuses and their JSON. May import nothing of ours.

use std::fmt;

use http::StatusCode;
use serde_json::{Value, json};

/// A code that clients know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The repository does not have the blob.
    BlobUnknown,
    /// An upload failed and cannot be resumed.
    BlobUploadInvalid,
    /// There is no such upload.
    BlobUploadUnknown,
    /// No digest, or content that does not hash to it.
    DigestInvalid,
    /// A pushed manifest names a blob that is not there.
    ManifestBlobUnknown,
    /// A manifest that breaks the rules.
    ManifestInvalid,
    /// The repository does not have the manifest.
    ManifestUnknown,
    /// No image name.
    NameInvalid,
    /// No repository, or no such image in it.
    NameUnknown,
    /// The `n` of a listing is no number. (An extension, as Distribution names it.)
    PaginationNumberInvalid,
    /// There is no such byte. (An extension, as Distribution names it.)
    RangeInvalid,
    /// A length that does not match the content.
    SizeInvalid,
    /// Credentials are needed.
    Unauthorized,
    /// The credentials do not allow it.
    Denied,
    /// The operation is not offered.
    Unsupported,
    /// What was sent cannot be kept: there is no space. (An extension.)
    InsufficientStorage,
    /// Too many requests.
    TooManyRequests,
    /// Nobody can be asked at the moment. (An extension, as Distribution names it.)
    Unavailable,
    /// Something failed here. (An extension, as Distribution names it.)
    Unknown,
}

impl ErrorCode {
    /// Every code.
    pub const ALL: [Self; 19] = [
        Self::BlobUnknown,
        Self::BlobUploadInvalid,
        Self::BlobUploadUnknown,
        Self::DigestInvalid,
        Self::ManifestBlobUnknown,
        Self::ManifestInvalid,
        Self::ManifestUnknown,
        Self::NameInvalid,
        Self::NameUnknown,
        Self::PaginationNumberInvalid,
        Self::RangeInvalid,
        Self::SizeInvalid,
        Self::Unauthorized,
        Self::Denied,
        Self::Unsupported,
        Self::InsufficientStorage,
        Self::TooManyRequests,
        Self::Unavailable,
        Self::Unknown,
    ];

    /// The code as the spec writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BlobUnknown => "BLOB_UNKNOWN",
            Self::BlobUploadInvalid => "BLOB_UPLOAD_INVALID",
            Self::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Self::DigestInvalid => "DIGEST_INVALID",
            Self::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            Self::ManifestInvalid => "MANIFEST_INVALID",
            Self::ManifestUnknown => "MANIFEST_UNKNOWN",
            Self::NameInvalid => "NAME_INVALID",
            Self::NameUnknown => "NAME_UNKNOWN",
            Self::PaginationNumberInvalid => "PAGINATION_NUMBER_INVALID",
            Self::RangeInvalid => "RANGE_INVALID",
            Self::SizeInvalid => "SIZE_INVALID",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::Denied => "DENIED",
            Self::Unsupported => "UNSUPPORTED",
            Self::InsufficientStorage => "INSUFFICIENT_STORAGE",
            Self::TooManyRequests => "TOOMANYREQUESTS",
            Self::Unavailable => "UNAVAILABLE",
            Self::Unknown => "UNKNOWN",
        }
    }

    /// The status under which it is answered unless the case calls for another one.
    #[must_use]
    pub const fn status(self) -> StatusCode {
        match self {
            Self::BlobUploadInvalid
            | Self::DigestInvalid
            | Self::ManifestInvalid
            | Self::NameInvalid
            | Self::PaginationNumberInvalid
            | Self::SizeInvalid => StatusCode::BAD_REQUEST,
            Self::BlobUnknown
            | Self::BlobUploadUnknown
            | Self::ManifestBlobUnknown
            | Self::ManifestUnknown
            | Self::NameUnknown => StatusCode::NOT_FOUND,
            Self::RangeInvalid => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Denied => StatusCode::FORBIDDEN,
            Self::Unsupported => StatusCode::METHOD_NOT_ALLOWED,
            Self::InsufficientStorage => StatusCode::INSUFFICIENT_STORAGE,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The body of the answer, `application/json`: `{"errors":[{code, message, detail}]}`. A null `detail` is left out.
    #[must_use]
    pub fn body(self, message: &str, detail: Value) -> Vec<u8> {
        let mut error = json!({"code": self.as_str(), "message": message});
        if !detail.is_null() {
            error["detail"] = detail;
        }
        json!({"errors": [error]}).to_string().into_bytes()
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_upper_case_and_mean_an_error() {
        for code in ErrorCode::ALL {
            assert!(code.as_str().bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_'), "{code}");
            assert!(code.status().is_client_error() || code.status().is_server_error(), "{code}");
        }
    }

    #[test]
    fn the_body_is_what_the_spec_shows() {
        assert_eq!(
            ErrorCode::NameUnknown.body("no \"such\" image", json!({"ways": 3})),
            br#"{"errors":[{"code":"NAME_UNKNOWN","detail":{"ways":3},"message":"no \"such\" image"}]}"#
        );
        assert_eq!(ErrorCode::Denied.body("x", Value::Null), br#"{"errors":[{"code":"DENIED","message":"x"}]}"#);
    }
}
