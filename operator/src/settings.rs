//! What the operator is told by its environment, as the chart sets it. May import nothing of ours.

use std::net::SocketAddr;

use clap::Args;

/// Settings of `operator run`.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// The namespace of the operator, its cache servers and their Secrets.
    #[arg(long, env = "ENTREPOT_NAMESPACE", default_value = "entrepot-system")]
    pub namespace: String,
    /// The namespace of the agents and of the pods that verify nodes.
    #[arg(long, env = "ENTREPOT_NODE_NAMESPACE", default_value = "entrepot-node")]
    pub node_namespace: String,
    /// The image of cache servers that do not name one.
    #[arg(long, env = "ENTREPOT_CACHE_SERVER_IMAGE")]
    pub cache_server_image: String,
    /// When nodes pull that image: `Always`, `IfNotPresent` or `Never`. Unset: as Kubernetes chooses.
    #[arg(long, env = "ENTREPOT_CACHE_SERVER_IMAGE_PULL_POLICY")]
    pub cache_server_image_pull_policy: Option<String>,
    /// Secrets with which nodes pull that image.
    #[arg(long, env = "ENTREPOT_IMAGE_PULL_SECRETS", value_delimiter = ',')]
    pub image_pull_secrets: Vec<String>,
    /// A `ConfigMap` with a `CacheServer` under `cacheserver.yaml`, made once at start.
    #[arg(long, env = "ENTREPOT_DEFAULT_CACHE_SERVER")]
    pub default_cache_server: Option<String>,
    /// Where `/livez`, `/readyz` and `/metrics` are.
    #[arg(long, env = "ENTREPOT_METRICS", default_value = "0.0.0.0:9090")]
    pub metrics: SocketAddr,
    /// How this process calls itself in the leader Lease. Default: the pod's name; outside of a pod a name of its own.
    #[arg(long, env = "ENTREPOT_IDENTITY")]
    pub identity: Option<String>,
    /// The port on which cache servers report. Theirs is 9090; another one is of use in tests only.
    #[arg(long, env = "ENTREPOT_STATUS_PORT", default_value_t = 9090, hide = true)]
    pub status_port: u16,
}

/// Settings of `operator release-nodes`.
#[derive(Args, Clone, Debug)]
pub struct ReleaseSettings {
    /// The namespace of the operator.
    #[arg(long, env = "ENTREPOT_NAMESPACE", default_value = "entrepot-system")]
    pub namespace: String,
    /// The namespace of the agents.
    #[arg(long, env = "ENTREPOT_NODE_NAMESPACE", default_value = "entrepot-node")]
    pub node_namespace: String,
    /// The operator's Deployment, which is scaled to zero first.
    #[arg(long, env = "ENTREPOT_OPERATOR_DEPLOYMENT", default_value = "entrepot-operator")]
    pub deployment: String,
    /// For how many seconds the nodes' agents are waited for.
    #[arg(long, default_value_t = 300)]
    pub wait_seconds: u64,
}

/// Settings of `operator check`.
#[derive(Args, Clone, Debug)]
pub struct CheckSettings {
    /// For how long what is not Ready yet is waited for: `2m`.
    #[arg(long, default_value = "2m")]
    pub timeout: crds::names::Span,
    /// A `CacheServer` that must be there.
    #[arg(long)]
    pub cache_server: Option<String>,
}
