//! What the apiserver holds, as far as the operator watches it: one reflector per kind. Reads only. May import `settings` and `causes`.

use std::{fmt::Debug, hash::Hash};

use crds::{CacheServer, HostedRepository, NodeMirror, RegistryMirror, RepositoryGroup};
use futures_util::StreamExt;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Node, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{
        WatchStreamExt,
        reflector::{self, ObjectRef, Store, store::WriterDropped},
        watcher,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::watch;

use crate::{causes::chain, settings::Settings};

/// The label by which our pods are told from others.
const OURS: &str = "app.kubernetes.io/managed-by=entrepot-operator";

/// A kind that can be watched.
pub trait Kind:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize + Send + Sync + 'static
{
}

impl<K> Kind for K where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize + Send + Sync + 'static
{
}

/// All that is watched. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    /// Mirrors.
    pub mirrors: Store<RegistryMirror>,
    /// Hosted repositories.
    pub hosted: Store<HostedRepository>,
    /// Groups.
    pub groups: Store<RepositoryGroup>,
    /// Cache servers.
    pub servers: Store<CacheServer>,
    /// What nodes' agents shall write, and did.
    pub node_mirrors: Store<NodeMirror>,
    /// Nodes.
    pub nodes: Store<Node>,
    /// Secrets of the release namespace.
    pub secrets: Store<Secret>,
    /// Config maps of the release namespace.
    pub config_maps: Store<ConfigMap>,
    /// Our Deployments.
    pub deployments: Store<Deployment>,
    /// The pods of cache servers.
    pub pods: Store<Pod>,
    /// Our Services.
    pub services: Store<Service>,
    /// Claims of the release namespace.
    pub claims: Store<PersistentVolumeClaim>,
    /// Our service accounts.
    pub service_accounts: Store<ServiceAccount>,
    /// The pods that verify nodes.
    pub canaries: Store<Pod>,
    changes: watch::Receiver<u64>,
}

impl Cluster {
    /// Begins to watch. The counter of `changes` moves after each event that a store took in.
    #[must_use]
    pub fn watch(client: &Client, settings: &Settings, changes: &watch::Sender<u64>) -> Self {
        let system = &settings.namespace;
        let everything = watcher::Config::default;
        let ours = || watcher::Config::default().labels(OURS);
        let c = client;
        Self {
            mirrors: follow(Api::all(c.clone()), everything(), changes),
            hosted: follow(Api::all(c.clone()), everything(), changes),
            groups: follow(Api::all(c.clone()), everything(), changes),
            servers: follow(Api::all(c.clone()), everything(), changes),
            node_mirrors: follow(Api::all(c.clone()), everything(), changes),
            nodes: follow(Api::all(c.clone()), everything(), changes),
            secrets: follow(Api::namespaced(c.clone(), system), everything(), changes),
            config_maps: follow(Api::namespaced(c.clone(), system), everything(), changes),
            deployments: follow(Api::namespaced(c.clone(), system), ours(), changes),
            pods: follow(Api::namespaced(c.clone(), system), ours(), changes),
            services: follow(Api::namespaced(c.clone(), system), ours(), changes),
            claims: follow(Api::namespaced(c.clone(), system), everything(), changes),
            service_accounts: follow(Api::namespaced(c.clone(), system), ours(), changes),
            canaries: follow(Api::namespaced(c.clone(), &settings.node_namespace), ours(), changes),
            changes: changes.subscribe(),
        }
    }

    /// Resolves when every store holds its first full list.
    pub async fn ready(&self) -> Result<(), WriterDropped> {
        self.mirrors.wait_until_ready().await?;
        self.hosted.wait_until_ready().await?;
        self.groups.wait_until_ready().await?;
        self.servers.wait_until_ready().await?;
        self.node_mirrors.wait_until_ready().await?;
        self.nodes.wait_until_ready().await?;
        self.secrets.wait_until_ready().await?;
        self.config_maps.wait_until_ready().await?;
        self.deployments.wait_until_ready().await?;
        self.pods.wait_until_ready().await?;
        self.services.wait_until_ready().await?;
        self.claims.wait_until_ready().await?;
        self.service_accounts.wait_until_ready().await?;
        self.canaries.wait_until_ready().await
    }

    /// A receiver that is told of each change.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }
}

/// An object of the release namespace by its name.
#[must_use]
pub fn named<K>(store: &Store<K>, namespace: &str, name: &str) -> Option<std::sync::Arc<K>>
where
    K: Kind,
{
    store.get(&ObjectRef::new(name).within(namespace))
}

/// An object without a namespace by its name.
#[must_use]
pub fn global<K: Kind>(store: &Store<K>, name: &str) -> Option<std::sync::Arc<K>> {
    store.get(&ObjectRef::new(name))
}

fn follow<K>(api: Api<K>, config: watcher::Config, changes: &watch::Sender<u64>) -> Store<K>
where
    K: Kind,
    K::DynamicType: Hash + Eq,
{
    let (store, writer) = reflector::store();
    let changes = changes.clone();
    let events = watcher(api, config).default_backoff().modify(|object: &mut K| {
        object.managed_fields_mut().clear();
    });
    tokio::spawn(async move {
        let mut events = std::pin::pin!(reflector::reflector(writer, events));
        while let Some(event) = events.next().await {
            if let Err(error) = event {
                // The watch is begun again by itself; what is held meanwhile may be old, never wrong.
                tracing::warn!(kind = %K::kind(&()), error = %chain(&error), "watch broke off, begins again");
            }
            changes.send_modify(|count| *count = count.wrapping_add(1));
        }
    });
    store
}
