//! What a `CacheServer` refers to, and what there is of it already. Reads only.
//! May import `cluster`, `repository` and `desired::names`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crds::{CacheServer, NodeMirror};
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
    repository::{Holders, Repository, holders},
};

/// All that bears on one cache server.
#[derive(Clone, Debug)]
pub struct Gathered {
    /// The server itself.
    pub server: Arc<CacheServer>,
    /// The repositories that name it, by name.
    pub repositories: Vec<Repository>,
    /// Who has each name, those of other servers too.
    pub holders: Holders,
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
    let mut all = repositories(cluster);
    let holders = holders(&all, &recorded(cluster));
    all.retain(|repository| repository.server() == name);
    let claim_name = claim::claim_name(server).unwrap_or_else(|| objects.clone());
    Gathered {
        server: Arc::clone(server),
        repositories: all,
        holders,
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

/// The repositories of all kinds and servers, by name and kind.
#[must_use]
pub fn repositories(cluster: &Cluster) -> Vec<Repository> {
    let mirrors = cluster.mirrors.state().into_iter().map(Repository::Mirror);
    let hosted = cluster.hosted.state().into_iter().map(Repository::Hosted);
    let groups = cluster.groups.state().into_iter().map(Repository::Group);
    let mut all: Vec<Repository> = mirrors.chain(hosted).chain(groups).collect();
    all.sort_by_key(|repository| (repository.name(), repository.kind()));
    all
}

/// Who has each name.
#[must_use]
pub fn name_holders(cluster: &Cluster) -> Holders {
    holders(&repositories(cluster), &recorded(cluster))
}

/// The uids of the repositories that any server's status says it serves.
fn recorded(cluster: &Cluster) -> BTreeSet<String> {
    let servers = cluster.servers.state();
    let statuses = servers.iter().filter_map(|server| server.status.as_ref());
    statuses.flat_map(|status| &status.repositories).map(|served| served.uid.clone()).collect()
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
