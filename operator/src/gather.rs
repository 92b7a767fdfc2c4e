//! What a `CacheServer` refers to, and what there is of it already. Reads only. May import `cluster` and `desired::names`.

use std::{collections::BTreeMap, sync::Arc};

use crds::{CacheServer, NodeMirror, RegistryMirror};
use k8s_openapi::{
    ByteString,
    api::{
        apps::v1::Deployment,
        core::v1::{ConfigMap, Node, PersistentVolumeClaim, Pod, Secret, Service},
    },
};
use kube::ResourceExt;

use crate::{
    cluster::{Cluster, named},
    desired::{claim, names},
};

/// All that bears on one cache server.
#[derive(Clone, Debug)]
pub struct Gathered {
    /// The server itself.
    pub server: Arc<CacheServer>,
    /// The mirrors that name it, by name.
    pub mirrors: Vec<Arc<RegistryMirror>>,
    /// All Secrets of the namespace, by name.
    pub secrets: BTreeMap<String, Arc<Secret>>,
    /// The configuration as it was written last.
    pub config_map: Option<Arc<ConfigMap>>,
    /// The Deployment.
    pub deployment: Option<Arc<Deployment>>,
    /// The Service.
    pub service: Option<Arc<Service>>,
    /// The claim that is mounted.
    pub claim: Option<Arc<PersistentVolumeClaim>>,
    /// Its pods.
    pub pods: Vec<Arc<Pod>>,
    /// What all nodes shall write, and did.
    pub node_mirrors: Vec<Arc<NodeMirror>>,
    /// All nodes.
    pub nodes: Vec<Arc<Node>>,
}

impl Gathered {
    /// The data of a Secret; empty if there is no such Secret.
    #[must_use]
    pub fn data(&self, secret: &str) -> BTreeMap<String, ByteString> {
        self.secrets.get(secret).and_then(|secret| secret.data.clone()).unwrap_or_default()
    }

    /// The data of the mounted Secret as it was written last.
    #[must_use]
    pub fn mounted(&self) -> BTreeMap<String, ByteString> {
        self.data(&names::objects(&self.server.name_any()))
    }
}

/// Collects it from the stores.
#[must_use]
pub fn gather(cluster: &Cluster, namespace: &str, server: &Arc<CacheServer>) -> Gathered {
    let name = server.name_any();
    let objects = names::objects(&name);
    let mut mirrors = cluster.mirrors.state_filter(|mirror| mirror.spec.server == name);
    mirrors.sort_by_key(|mirror| mirror.name_any());
    let claim_name = claim::claim_name(server).unwrap_or_else(|| objects.clone());
    Gathered {
        server: Arc::clone(server),
        mirrors,
        secrets: cluster.secrets.state().into_iter().map(|secret| (secret.name_any(), secret)).collect(),
        config_map: named(&cluster.config_maps, namespace, &objects),
        deployment: named(&cluster.deployments, namespace, &objects),
        service: named(&cluster.services, namespace, &objects),
        claim: named(&cluster.claims, namespace, &claim_name),
        pods: pods(cluster, &name),
        node_mirrors: by_name(cluster.node_mirrors.state()),
        nodes: by_name(cluster.nodes.state()),
    }
}

/// The pods of a cache server that are not on their way out, by name.
#[must_use]
pub fn pods(cluster: &Cluster, server: &str) -> Vec<Arc<Pod>> {
    by_name(cluster.pods.state_filter(|pod| {
        pod.labels().get("app.kubernetes.io/instance").map(String::as_str) == Some(server)
            && pod.labels().get("app.kubernetes.io/name").map(String::as_str) == Some("cache-server")
            && pod.metadata.deletion_timestamp.is_none()
    }))
}

fn by_name<K: ResourceExt>(mut objects: Vec<Arc<K>>) -> Vec<Arc<K>> {
    objects.sort_by_key(|object| object.name_any());
    objects
}
