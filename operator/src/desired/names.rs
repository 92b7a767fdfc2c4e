//! What the objects of a cache server are called. May import nothing of ours.

/// The name of all objects of a cache server.
#[must_use]
pub fn objects(server: &str) -> String {
    format!("cache-{server}")
}

/// The Secret with the keys of a cache server's own authority. It is never mounted.
#[must_use]
pub fn authority(server: &str) -> String {
    format!("cache-{server}-ca")
}

/// The name under which the managed certificate stands in the owned Secret.
pub const MANAGED_TLS: &str = "managed-tls";
/// The key of the configuration in the `ConfigMap`.
pub const CONFIG_KEY: &str = "entrepot.yaml";
/// The key of who signs tokens of service accounts, beside the configuration.
pub const ISSUER_KEY: &str = "service-account-issuer.json";
/// The finalizer of all that shows in nodes' files.
pub const FINALIZER: &str = "entrepot.dev/node-files";
/// On a `CacheServer`: another value makes a new authority. On the Secret of the authority: the value that was heeded.
pub const ROTATE: &str = "entrepot.dev/rotate-ca";
/// On a `CacheServer` with hosted repositories: its own name confirms that it may be deleted.
pub const CONFIRM_DELETE: &str = "entrepot.dev/confirm-delete";
/// On a pod: a sign of the configuration; writing it makes the kubelet refresh what is mounted at once.
pub const CONFIG_SIGN: &str = "entrepot.dev/config";
/// The registry of the pull by which nodes are verified; nobody but the cache answers for it.
pub const CANARY_REGISTRY: &str = "probe.entrepot.invalid";
/// On a canary pod: what it pulls.
pub const NONCE: &str = "entrepot.dev/nonce";

/// The key of the owned Secret that holds a key of a Secret.
#[must_use]
pub fn flat_key(secret: &str, key: &str) -> String {
    format!("{secret}_{key}")
}

/// The pod that verifies a node: node names may be longer than a pod's.
#[must_use]
pub fn canary(node: &str) -> String {
    format!("canary-{}", crate::sign::hash(&serde_json::json!(node)))
}
