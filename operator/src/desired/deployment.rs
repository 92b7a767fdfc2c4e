//! The Deployment of a cache server. Its pod template depends on the `CacheServer` alone, so that no change of a mirror
//! restarts a pod. May import `labels`, `names` and `claim`.

use crds::CacheServer;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{claim, labels, names, service::PORT};

/// The user and group of the cache server.
const USER: u32 = 65532;
/// What remains of the grace period after running transfers had their time.
const GRACE_SECONDS: u64 = 10;

/// The image of servers that name none, and how nodes come by images.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// Its reference.
    pub reference: &'a str,
    /// When nodes pull it; `None`: as Kubernetes chooses.
    pub pull_policy: Option<&'a str>,
    /// The Secrets with which nodes pull any image of a cache server.
    pub pull_secrets: &'a [String],
}

/// The Deployment.
#[must_use]
pub fn deployment(server: &CacheServer, namespace: &str, image: Image<'_>) -> Value {
    // Two pods must never write to one volume.
    let strategy = match claim::claim_name(server) {
        Some(_) => json!({"type": "Recreate"}),
        None => json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}),
    };
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": labels::usual(server, namespace),
        "spec": {
            "replicas": 1,
            "strategy": strategy,
            "selector": {"matchLabels": labels::selector(&server.name_any())},
            "template": {
                "metadata": pod_metadata(server),
                "spec": pod(server, image),
            },
        },
    })
}

fn pod_metadata(server: &CacheServer) -> Value {
    let template = server.spec.pod_template.clone().unwrap_or_default();
    let mut labels = json!(template.labels);
    let ours = labels::of(&server.name_any());
    for (key, value) in ours.as_object().into_iter().flatten() {
        labels[key] = value.clone();
    }
    json!({"labels": labels, "annotations": template.annotations})
}

fn pod(server: &CacheServer, image: Image<'_>) -> Value {
    let spec = &server.spec;
    let mut pod = json!({
        "serviceAccountName": names::objects(&server.name_any()),
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": spec.limits.drain.get().as_secs() + GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container(server, image)],
        "volumes": volumes(server),
    });
    let secrets: Vec<Value> =
        image.pull_secrets.iter().filter(|name| !name.is_empty()).map(|name| json!({"name": name})).collect();
    for (field, value) in [
        ("imagePullSecrets", json!(secrets)),
        ("nodeSelector", json!(spec.node_selector)),
        ("tolerations", json!(spec.tolerations)),
        ("affinity", json!(spec.affinity)),
        ("topologySpreadConstraints", json!(spec.topology_spread_constraints)),
        ("priorityClassName", json!(spec.priority_class_name)),
    ] {
        let empty = value.is_null() || value == json!([]) || value == json!({});
        if !empty {
            pod[field] = value;
        }
    }
    pod
}

fn container(server: &CacheServer, image: Image<'_>) -> Value {
    let resources = server.spec.resources.as_ref().map_or_else(
        || json!({"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}}),
        |resources| json!(resources),
    );
    let probe = |path: &str, period: u32, failures: u32| {
        json!({
            "httpGet": {"path": path, "port": "metrics"},
            "periodSeconds": period,
            "timeoutSeconds": 1,
            "failureThreshold": failures,
        })
    };
    // The policy speaks of the default image.
    let policy = image.pull_policy.filter(|_| server.spec.image.is_none());
    let container = json!({
        "name": "cache-server",
        "image": server.spec.image.as_deref().unwrap_or(image.reference),
        "args": [
            "--config", "/etc/entrepot/config",
            "--secrets", "/etc/entrepot/secrets",
            "--data", "/data",
            "--listen", format!("0.0.0.0:{PORT}"),
            "--metrics", "0.0.0.0:9090",
            "--keep-going",
        ],
        "ports": [
            {"name": "registry", "containerPort": PORT, "protocol": "TCP"},
            {"name": "metrics", "containerPort": 9090, "protocol": "TCP"},
        ],
        // A former server may have to drain before this one has its data.
        "startupProbe": probe("/livez", 1, 100),
        // A server that does not even answer this does not drain either.
        "livenessProbe": with(probe("/livez", 5, 3), "terminationGracePeriodSeconds", json!(1)),
        "readinessProbe": probe("/readyz", 2, 2),
        "resources": resources,
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "runAsNonRoot": true,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "config", "mountPath": "/etc/entrepot/config", "readOnly": true},
            {"name": "secrets", "mountPath": "/etc/entrepot/secrets", "readOnly": true},
            {"name": "data", "mountPath": "/data"},
        ],
    });
    match policy {
        Some(policy) => with(container, "imagePullPolicy", json!(policy)),
        None => container,
    }
}

fn with(mut object: Value, field: &str, value: Value) -> Value {
    object[field] = value;
    object
}

fn volumes(server: &CacheServer) -> Value {
    let name = names::objects(&server.name_any());
    let data = if let Some(claim) = claim::claim_name(server) {
        json!({"name": "data", "persistentVolumeClaim": {"claimName": claim}})
    } else {
        let limit = server.spec.storage.as_ref().and_then(|storage| storage.empty_dir.as_ref()?.size_limit);
        let empty_dir = limit.map_or_else(|| json!({}), |limit| json!({"sizeLimit": limit}));
        json!({"name": "data", "emptyDir": empty_dir})
    };
    json!([
        {"name": "config", "configMap": {"name": name}},
        // Group-readable: the server runs as a user of its own.
        {"name": "secrets", "secret": {"secretName": name, "defaultMode": 0o440}},
        data,
    ])
}
