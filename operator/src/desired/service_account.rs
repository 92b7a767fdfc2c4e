//! The service account of a cache server: it has no rights, and no token is mounted. May import `labels`.

use crds::CacheServer;
use serde_json::{Value, json};

use super::labels;

/// The service account.
#[must_use]
pub fn service_account(server: &CacheServer, namespace: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": labels::usual(server, namespace),
        "automountServiceAccountToken": false,
    })
}
