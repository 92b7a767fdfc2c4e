//! A real Kubernetes on two nodes, in namespaces without an uplink: every default path on a node is the node's own, and
//! whatever a pod or a node asks beyond the cluster meets the upstream of the laboratory or nobody.
//!
//! In reading order: [`authority`] (who is who), [`control_plane`], [`ground`] and [`runtime`] (what a node stands on),
//! [`node`], [`client`] (kubectl and helm), [`demonstration`] (what is shown first).

pub mod authority;
pub mod bearer;
pub mod client;
pub mod control_plane;
pub mod crash_proxy;
pub mod demonstration;
pub mod ground;
pub mod inventory;
pub mod node;
pub mod runtime;
pub mod trail;

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::{Value, json};

pub use client::Client;
pub use node::Node;

use self::authority::{Authority, MASTERS};
use self::control_plane::{ControlPlane, Setup};
use self::ground::Plan;
use self::runtime::{Own, PAUSE};
use crate::engine::Major;
use crate::lab::enter::{self, Layout};
use crate::lab::{CACHE, Node as Place, cgroups};
use crate::package::{self, PRODUCTS, Product, archive};
use crate::suite::World;

/// Where the apiserver listens.
pub const API_PORT: u16 = 6443;
/// The addresses of all pods.
pub const PODS: &str = "10.244.0.0/16";
/// The addresses of Services.
pub const SERVICES: &str = "10.96.0.0/16";
/// Where the nodes are on the bridge.
const PLACES: [Place; 2] = [
    Place { name: "node1", address: Ipv4Addr::new(198, 51, 100, 21) },
    Place { name: "node2", address: Ipv4Addr::new(198, 51, 100, 22) },
];
/// The nodes: one with each containerd.
pub const NODES: [Plan; 2] =
    [Plan { place: PLACES[0], major: Major::One, number: 1 }, Plan { place: PLACES[1], major: Major::Two, number: 2 }];
/// What the namespaces are made into before a cluster starts in them.
pub const LAYOUT: Layout = Layout { nodes: &PLACES, resolver: CACHE, private: &["/opt", "/var/lib", "/var/log"] };
/// The name of the `StorageClass`; each node has one volume of it.
pub const STORAGE_CLASS: &str = "local";

/// How long the nodes may take to be ready.
const READY_LIMIT: Duration = Duration::from_mins(2);
/// How often a wait looks again.
const POLL: Duration = Duration::from_millis(200);
/// Registry and folder of our own images in the cluster: what `package` calls `NAME` is `OWN/NAME:VERSION`.
pub const OWN: &str = "entrepot.test/entrepot";

/// A running cluster. Dropping it kills its programs; its pods go with the namespaces.
#[derive(Debug)]
pub struct Cluster {
    folder: PathBuf,
    authority: Authority,
    client: Client,
    control_plane: ControlPlane,
    nodes: Vec<Node>,
}

/// What every case in the cluster may use.
#[derive(Debug)]
pub struct ClusterWorld {
    /// The upstream, the images, the laboratory.
    pub world: World,
    /// The cluster.
    pub cluster: Cluster,
}

impl Cluster {
    /// Starts everything and waits until both nodes are ready.
    pub async fn start(world: &World) -> Result<Self> {
        let World { lab, programs, upstream, .. } = world;
        let folder = lab.dir("cluster")?;
        let authority = Authority::new()?;
        let setup = Setup { lab, programs, folder: &folder, authority: &authority };
        let client = administrator(setup)?;
        let own = own_images(world)?;

        let group = cgroups::of_run(enter::runner_of(lab.work())?);
        let start = |plan: Plan| Node::start(setup, plan, group.join(plan.place.name), upstream.ca_file(), &own);
        let nodes = futures_util::future::try_join_all(NODES.map(start));
        let (control_plane, mut nodes) = tokio::try_join!(ControlPlane::start(setup, &client), nodes)?;
        nodes.iter_mut().try_for_each(|node| node.join(setup))?;
        let cluster = Self { control_plane, nodes, client, folder: folder.clone(), authority };
        cluster.apply(&storage().to_string()).await?;
        cluster.until("both nodes are ready", READY_LIMIT, async || cluster.is_ready().await).await?;
        Ok(cluster)
    }

    /// Asks as the administrator.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The nodes, in the order of [`NODES`].
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node by this name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|node| node.name() == name).with_context(|| format!("there is no node {name:?}"))
    }

    /// Whether an address is a node's own; the runtimes ask from those.
    #[must_use]
    pub fn is_node(&self, address: IpAddr) -> bool {
        self.nodes.iter().any(|node| address == node.address())
    }

    /// The folder with the cluster's files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Runs `kubectl`; see [`Client::kubectl`].
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.client.kubectl(arguments).await
    }

    /// Runs `helm`; see [`Client::helm`].
    pub async fn helm(&self, arguments: &[&str]) -> Result<String> {
        self.client.helm(arguments).await
    }

    /// GETs from the apiserver without the detour of a program: `/api/v1/nodes/node1`.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.client.get(path).await
    }

    /// `kubectl apply` of objects in YAML or JSON.
    pub async fn apply(&self, objects: &str) -> Result<String> {
        self.client.kubectl_with_input(&["apply", "-f", "-"], objects).await
    }

    /// The apiserver's audit log so far, one event each; every request is in it, without bodies.
    pub fn audit(&self) -> Result<Vec<Value>> {
        let path = self.control_plane.audit();
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        // The last line may still be on its way.
        let whole = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
        whole
            .lines()
            .map(|line| serde_json::from_str(line).context("the audit log has a line that is not JSON"))
            .collect()
    }

    /// A kubeconfig for a client of this user and group at `url`; group `system:masters` may do everything.
    pub fn kubeconfig(&self, url: &str, user: &str, group: &str) -> Result<String> {
        Ok(self.authority.kubeconfig(url, &self.authority.client(user, group)?))
    }

    /// The pods of a namespace that have these labels (`app=nginx`), as the apiserver tells them.
    pub async fn pods(&self, namespace: &str, labels: &str) -> Result<Vec<Value>> {
        // As kubectl would write it in a query.
        let labels = labels.replace('=', "%3D").replace(',', "%2C").replace('/', "%2F");
        let mut list = self.get(&format!("/api/v1/namespaces/{namespace}/pods?labelSelector={labels}")).await?;
        serde_json::from_value(list["items"].take()).context("a list of pods without items")
    }

    /// Sends a signal to the processes of a pod, whose containers must run.
    pub fn signal_pod(&self, pod: &Value, signal: Signal) -> Result<()> {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let node = self.node(pod["spec"]["nodeName"].as_str().unwrap_or_default())?;
        for container in pod["status"]["containerStatuses"].as_array().into_iter().flatten() {
            let id = container["containerID"].as_str().with_context(|| format!("{name} has not started"))?;
            node.signal_container(id, signal).with_context(|| name.to_owned())?;
        }
        Ok(())
    }

    /// Waits until `ready` says so; an error of it counts as "not yet". What is told at the end of the patience is the
    /// last error and the state of the cluster.
    pub async fn until<F>(&self, what: &str, limit: Duration, mut ready: F) -> Result<()>
    where
        F: AsyncFnMut() -> Result<bool>,
    {
        let deadline = Instant::now() + limit;
        loop {
            let last = match ready().await {
                Ok(true) => return Ok(()),
                Ok(false) => String::new(),
                Err(error) => format!("\n{error:#}"),
            };
            if Instant::now() >= deadline {
                bail!("waited {limit:?} in vain until {what}{last}\n{}", self.state().await);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// What an administrator would look at first, for beside a failure.
    pub async fn state(&self) -> String {
        let logs = "logs --all-containers --prefix --tail=40 --selector=app.kubernetes.io/part-of=entrepot";
        let questions = [
            "get nodes,pods --all-namespaces --output=wide".to_owned(),
            "get rmir,hrepo,rgroup,cserver,nmir --output=wide".to_owned(),
            "get events --all-namespaces --sort-by=.lastTimestamp".to_owned(),
            format!("{logs} --namespace=entrepot-system"),
            format!("{logs} --namespace=entrepot-node"),
        ];
        let mut text = String::new();
        for question in questions {
            let words: Vec<&str> = question.split(' ').collect();
            let answer = self.kubectl(&words).await.unwrap_or_else(|error| format!("{error:#}"));
            text = text + "$ kubectl " + &question + "\n" + &last_lines(&answer, 40) + "\n";
        }
        text
    }

    /// Whether pods can be made and run.
    async fn is_ready(&self) -> Result<bool> {
        let list = self.get("/api/v1/nodes").await?;
        let ready = list["items"].as_array().into_iter().flatten().filter(|node| is_true(node, "Ready")).count();
        // Without it no pod is admitted, and a controller makes it.
        self.get("/api/v1/namespaces/default/serviceaccounts/default").await?;
        Ok(ready == NODES.len())
    }
}

/// Whether an object has a condition of this type with the status `True`.
#[must_use]
pub fn is_true(object: &Value, condition: &str) -> bool {
    object["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|found| found["type"] == condition && found["status"] == "True")
}

/// The reference under which an image of ours is in the cluster.
#[must_use]
pub fn own_reference(name: &str) -> String {
    format!("{OWN}/{name}:{}", env!("CARGO_PKG_VERSION"))
}

fn administrator(setup: Setup<'_>) -> Result<Client> {
    let pair = setup.authority.client("administrator", MASTERS)?;
    let kubeconfig = setup.kubeconfig("administrator.kubeconfig", "administrator", MASTERS)?;
    let home = setup.lab.dir("home")?;
    Client::new(setup.programs.kubernetes(), &kubeconfig, &home, setup.authority, &pair)
}

/// Packs the programs that cargo built, and `pause`.
fn own_images(world: &World) -> Result<Vec<Own>> {
    let folder = world.lab.dir("own-images")?;
    let mut own = vec![pack(&package::PAUSE, &world.programs.pause(), PAUSE.to_owned(), &folder)?];
    for product in &PRODUCTS {
        let program = package::beside_this_program(product.name)?;
        own.push(pack(product, &program, own_reference(product.name), &folder)?);
    }
    Ok(own)
}

fn pack(product: &Product, program: &Path, reference: String, folder: &Path) -> Result<Own> {
    let layout = folder.join(product.name);
    package::build(product, program, &layout)?;
    let archive = folder.join(format!("{}.tar", product.name));
    archive::write(&layout, &reference, &archive)?;
    Ok(Own { reference, archive })
}

/// A `StorageClass` without a provisioner, and a volume of it on each node.
fn storage() -> Value {
    let class = json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": STORAGE_CLASS,
            "annotations": { "storageclass.kubernetes.io/is-default-class": "true" },
        },
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
    });
    let volumes = NODES.iter().map(|plan| {
        let name = plan.place.name;
        json!({
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": { "name": format!("local-{name}") },
            "spec": {
                "capacity": { "storage": "100Gi" },
                "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": STORAGE_CLASS,
                "local": { "path": ground::VOLUME },
                "nodeAffinity": { "required": { "nodeSelectorTerms": [{
                    "matchExpressions": [{ "key": "kubernetes.io/hostname", "operator": "In", "values": [name] }],
                }] } },
            },
        })
    });
    let items: Vec<Value> = std::iter::once(class).chain(volumes).collect();
    json!({ "apiVersion": "v1", "kind": "List", "items": items })
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
