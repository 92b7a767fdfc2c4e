//! A `CacheServer` and its repositories → Deployment, Service, `ConfigMap`, Secrets, claim. May import every step.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crds::{
    CacheServer, CacheServerStatus,
    cache_server::{ServiceType, TlsMode},
    conditions,
};
use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Service};
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{Context, is_long_ago, set_finalizer, shown_on};
use crate::{
    apply::{self, Writer},
    authority::{self, Authority, Pair, text},
    causes::chain,
    cluster::Cluster,
    desired::{
        claim, config_map, deployment, names,
        node_entries::{Endpoint, all_trust},
        secret,
        service::{self, Port},
        service_account,
        tls::Seen,
    },
    gather::{Gathered, gather, name_holders, repositories},
    issuer,
    observe::{Heard, Interest},
    repository::{HOSTED, KINDS, MIRROR, Repository},
    sign::hash,
    status::{self, Fact, conditions_of},
    validate::{Valid, Verdict, validate},
};

/// Why a server's objects are not as they should be.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// An object could not be written.
    #[error(transparent)]
    Apply(#[from] apply::Error),
    /// A certificate could not be made.
    #[error(transparent)]
    Certificate(#[from] authority::Error),
    /// A port of nodes cannot be had. All else is in line.
    #[error("a nodePort of a connector is refused; choose another one")]
    NodePorts(#[source] apply::Error),
    /// It is not known who signs tokens of service accounts. All else is in line.
    #[error("tokens of service accounts may be refused")]
    Issuer(#[source] issuer::Error),
}

/// Brings a server's objects in line and says how it is.
pub async fn reconcile(
    context: &Context,
    server: &Arc<CacheServer>,
    leaving: &BTreeSet<String>,
) -> Result<(), apply::Error> {
    if server.metadata.deletion_timestamp.is_some() {
        return release(context, server).await;
    }
    if set_finalizer(context, &context.cluster.servers, server.as_ref(), true).await? {
        return Ok(());
    }
    let outcome = converge(context, server, leaving).await;
    write_status(context, server, leaving, outcome.as_ref().err()).await?;
    match outcome {
        // An issuer that is not known was told of already, and is asked for again.
        Ok(()) | Err(Error::Issuer(_)) => Ok(()),
        Err(Error::Apply(error)) => Err(error),
        Err(Error::Certificate(error)) => {
            tracing::warn!(server = server.name_any(), error = %chain(&error), "failed to make a certificate");
            Ok(())
        }
        // Which connectors there are is not this object's to say: it is tried again whatever its version.
        Err(Error::NodePorts(error)) => {
            tracing::warn!(server = server.name_any(), error = %chain(&error), "failed to give connectors their nodePorts");
            Ok(())
        }
    }
}

/// A server that is being deleted stays until no node pulls through it; the garbage collector does the rest.
async fn release(context: &Context, server: &CacheServer) -> Result<(), apply::Error> {
    let name = server.name_any();
    let mut own = repositories(&context.cluster);
    own.retain(|repository| repository.server() == name);
    let hosted: Vec<String> = own.iter().filter(|it| it.kind() == HOSTED).map(Repository::name).collect();
    if !hosted.is_empty() && server.annotations().get(names::CONFIRM_DELETE) != Some(&name) {
        return ask_to_confirm(context, server, &hosted).await;
    }
    let holders = name_holders(&context.cluster);
    let waited_for_long = is_long_ago(server.metadata.deletion_timestamp.as_ref());
    // A repository that stays is withdrawn since its server is, so that is what is waited for.
    let held = own.iter().any(|repository| {
        let remains = shown_on(context, repository, &holders);
        !remains.reachable.is_empty() || (!remains.unreachable.is_empty() && !waited_for_long)
    });
    if !held {
        set_finalizer(context, &context.cluster.servers, server, false).await?;
    }
    Ok(())
}

/// Says that a deletion waits because people push to this server: that cannot be seen from its own object.
async fn ask_to_confirm(context: &Context, server: &CacheServer, hosted: &[String]) -> Result<(), apply::Error> {
    let name = server.name_any();
    let message = format!(
        "the deletion waits, since what was pushed to {} would not be served any more; confirm it with `kubectl annotate cacheserver {name} {}={name}`, or first delete or move these HostedRepositories",
        hosted.join(", "),
        names::CONFIRM_DELETE,
    );
    let held = server.status.clone().unwrap_or_default();
    let ready = Fact::no(conditions::READY, "HoldsHostedContent", message);
    let new = conditions_of(&held.conditions, vec![ready], server.metadata.generation, Timestamp::now());
    let others = held.conditions.iter().filter(|condition| condition.type_ != conditions::READY).cloned();
    let status = CacheServerStatus { conditions: new.iter().cloned().chain(others).collect(), ..held.clone() };
    let told = status::transitions(&held.conditions, &new).into_iter().cloned().collect();
    if context.writer.apply_status(&context.cluster.servers, server, &json!(status), &json!(held)).await? {
        context.tell(server, told).await;
    }
    Ok(())
}

async fn converge(context: &Context, server: &Arc<CacheServer>, leaving: &BTreeSet<String>) -> Result<(), Error> {
    let (cluster, writer, settings) = (&context.cluster, &context.writer, &context.settings);
    let namespace = &settings.namespace;
    let first = gather(cluster, namespace, server);
    let valid = validate(&first, namespace, leaving);
    if matches!(valid.server, Verdict::Refused(_)) {
        // Without its certificate the server would serve plain HTTP; what runs stays as it is.
        return Ok(());
    }
    writer.apply(&cluster.service_accounts, &service_account::service_account(server, namespace)).await?;
    let refused = apply_service(context, server, &first, &valid.ports).await?;
    if let Some(claim) = claim::claim(server, namespace, first.claim.as_deref()) {
        writer.apply(&cluster.claims, &claim).await?;
    }
    // The Service has its address now, which the certificate is for.
    let gathered = gather(cluster, namespace, server);
    let heard = context.observations.of(&server.name_any());
    let mut mounted = valid.secrets.clone();
    mounted.extend(managed_tls(context, &gathered, &valid, &heard).await?);
    writer.apply(&cluster.secrets, &secret::mounted(server, namespace, &mounted)).await?;
    let documents = documents(server, &valid);
    let issuer = issuer(context, &gathered).await;
    let text = issuer.as_ref().map_or_else(|(text, _)| text.as_deref(), |text| text.as_deref());
    writer.apply(&cluster.config_maps, &config_map::config_map(server, namespace, &documents, text)).await?;
    let image = deployment::Image {
        reference: &settings.cache_server_image,
        pull_policy: settings.cache_server_image_pull_policy.as_deref(),
        pull_secrets: &settings.image_pull_secrets,
    };
    let wanted = deployment::deployment(server, namespace, image);
    writer.apply(&cluster.deployments, &wanted).await?;
    let sign = hash(&json!([documents, mounted, text]));
    refresh_pods(cluster, writer, &gathered, &sign).await?;
    context.observations.want(&server.name_any(), interest(context, &gathered, &valid, &heard, &mounted));
    if let Some(refused) = refused {
        return Err(Error::NodePorts(refused));
    }
    issuer.map(|_| ()).map_err(|(_, error)| Error::Issuer(error))
}

/// Who signs tokens of service accounts, for a server that takes them; on failure with what the server was told before.
async fn issuer(context: &Context, gathered: &Gathered) -> Result<Option<String>, (Option<String>, issuer::Error)> {
    if !gathered.server.spec.auth.as_ref().is_some_and(|auth| auth.service_accounts) {
        return Ok(None);
    }
    let before = || gathered.config_map.as_ref()?.data.as_ref()?.get(names::ISSUER_KEY).cloned();
    context.issuer.text().await.map(Some).map_err(|error| (before(), error))
}

/// Writes the Service. A port of nodes that a connector asks for and the cluster refuses (it is outside of its range, or
/// someone else's) keeps nothing but itself from being served. Returns that refusal.
async fn apply_service(
    context: &Context,
    server: &CacheServer,
    first: &Gathered,
    ports: &[Port],
) -> Result<Option<apply::Error>, apply::Error> {
    let (services, namespace) = (&context.cluster.services, &context.settings.namespace);
    let whole = context.writer.apply(services, &service::service(server, namespace, ports)).await;
    let refused = match whole {
        Err(error) if error.is_refusal() && ports.iter().any(|port| port.node_port.is_some()) => error,
        other => return other.map(|_| None),
    };
    let live = first.service.as_ref().and_then(|service| service.spec.as_ref()?.ports.clone()).unwrap_or_default();
    let has = |port: &Port| {
        let in_force = live.iter().find(|live| live.port == i32::from(port.port)).and_then(|live| live.node_port);
        port.node_port.is_some_and(|wanted| in_force == Some(i32::from(wanted)))
    };
    let kept: Vec<Port> =
        ports.iter().map(|port| Port { node_port: port.node_port.filter(|_| has(port)), ..*port }).collect();
    context.writer.apply(services, &service::service(server, namespace, &kept)).await?;
    Ok(Some(refused))
}

fn documents(server: &CacheServer, valid: &Valid) -> Vec<Value> {
    let mut documents = vec![config_map::server_document(server, &valid.served())];
    documents.extend(valid.documents.iter().cloned());
    documents
}

/// The managed certificate, as keys of the mounted Secret; takes the next step of a rotation.
async fn managed_tls(
    context: &Context,
    gathered: &Gathered,
    valid: &Valid,
    heard: &Heard,
) -> Result<BTreeMap<String, ByteString>, Error> {
    let (server, cluster, namespace) = (&gathered.server, &context.cluster, &context.settings.namespace);
    let name = server.name_any();
    let kept = gathered.secrets.get(&names::authority(&name));
    if tls_mode(server) != TlsMode::Managed {
        if let Some(kept) = kept {
            context.writer.delete(&cluster.secrets, kept.as_ref()).await?;
        }
        return Ok(BTreeMap::new());
    }
    let heeded = kept.and_then(|kept| kept.annotations().get(names::ROTATE).cloned());
    let mut own = Authority::read(&gathered.data(&names::authority(&name)), heeded);
    let mounted = gathered.mounted();
    let key = |suffix: &str| names::flat_key(names::MANAGED_TLS, suffix);
    let held = text(&mounted, &key("tls.crt"))
        .zip(text(&mounted, &key("tls.key")))
        .map(|(certificate, key)| Pair { certificate, key });
    let shown = heard.report.as_ref().and_then(|report| report.certificate.as_deref());
    let now = Timestamp::now();
    let seen = Seen {
        now,
        wish: server.annotations().get(names::ROTATE).map(String::as_str),
        nodes_trust_all: endpoint(gathered).is_some_and(|endpoint| nodes_trust(gathered, &endpoint)),
        leaf_is_loaded: own.shows(held.as_ref(), shown),
    };
    own.step(&name, &seen)?;
    // The keys are written before anything that they sign.
    let wanted = secret::authority(server, namespace, &own.data(), own.heeded());
    context.writer.apply(&cluster.secrets, &wanted).await?;
    let leaf = own.leaf(held, &certificate_names(gathered, valid, namespace), now)?;
    let put = |suffix: &str, text: String| (key(suffix), ByteString(text.into_bytes()));
    Ok(leaf.map(|leaf| [put("tls.crt", leaf.certificate), put("tls.key", leaf.key)].into()).unwrap_or_default())
}

fn nodes_trust(gathered: &Gathered, endpoint: &Endpoint) -> bool {
    let node_mirrors: Vec<_> = gathered.node_mirrors.iter().map(AsRef::as_ref).collect();
    let nodes: Vec<_> = gathered.nodes.iter().map(AsRef::as_ref).collect();
    all_trust(endpoint, &node_mirrors, &nodes)
}

/// Where certificates of a server come from.
fn tls_mode(server: &CacheServer) -> TlsMode {
    server.spec.tls.mode.unwrap_or(TlsMode::Managed)
}

/// Where nodes reach a server; `None` while that is not known.
#[must_use]
pub fn endpoint(gathered: &Gathered) -> Option<Endpoint> {
    let server = &gathered.server;
    let address = cluster_ips(gathered.service.as_deref()?).into_iter().next()?;
    let host = if address.contains(':') { format!("[{address}]") } else { address };
    let (scheme, ca_bundle) = match tls_mode(server) {
        TlsMode::Disabled => ("http", None),
        TlsMode::Managed => {
            let data = gathered.data(&names::authority(&server.name_any()));
            ("https", Some(Authority::read(&data, None).bundle()?))
        }
        TlsMode::Secret => {
            let secret = server.spec.tls.secret_ref.as_ref()?;
            ("https", text(&gathered.data(&secret.name), "ca.crt"))
        }
    };
    Some(Endpoint { origin: format!("{scheme}://{host}:{}", service::PORT), ca_bundle })
}

fn cluster_ips(service: &Service) -> Vec<String> {
    let spec = service.spec.clone().unwrap_or_default();
    let all = spec.cluster_ips.unwrap_or_default().into_iter().chain(spec.cluster_ip);
    let mut found: Vec<String> = Vec::new();
    for address in all.filter(|address| address.parse::<std::net::IpAddr>().is_ok()) {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

/// Every name and address by which clients call the main port.
fn certificate_names(gathered: &Gathered, valid: &Valid, namespace: &str) -> BTreeSet<String> {
    let name = names::objects(&gathered.server.name_any());
    let mut found: BTreeSet<String> = [
        name.clone(),
        format!("{name}.{namespace}"),
        format!("{name}.{namespace}.svc"),
        format!("{name}.{namespace}.svc.cluster.local"),
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
    ]
    .into();
    if let Some(service) = &gathered.service {
        found.extend(cluster_ips(service));
        let balancer = service.status.iter().filter_map(|status| status.load_balancer.as_ref()?.ingress.as_ref());
        found.extend(balancer.flatten().flat_map(|ingress| ingress.ip.iter().chain(&ingress.hostname)).cloned());
    }
    let wanted = gathered.server.spec.service.clone().unwrap_or_default();
    if wanted.type_ != ServiceType::ClusterIP {
        let addresses = gathered.nodes.iter().filter_map(|node| node.status.as_ref()?.addresses.as_ref()).flatten();
        found.extend(addresses.filter(|address| address.type_ == "InternalIP").map(|address| address.address.clone()));
    }
    let external = gathered.server.spec.external_url.as_ref().and_then(|url| url::Url::parse(url).ok());
    found.extend(external.as_ref().and_then(url::Url::host_str).map(|host| host.trim_matches(['[', ']']).to_owned()));
    let connectors = valid.documents.iter().filter_map(|document| document["spec"]["connectors"].as_array()).flatten();
    found.extend(connectors.filter_map(|connector| connector["host"].as_str().map(str::to_owned)));
    found
}

/// A changed annotation makes the kubelet refresh what a pod has mounted at once, not within a minute.
async fn refresh_pods(cluster: &Cluster, writer: &Writer, gathered: &Gathered, sign: &str) -> Result<(), apply::Error> {
    for pod in &gathered.pods {
        if pod.annotations().get(names::CONFIG_SIGN).map(String::as_str) != Some(sign) {
            let annotations = json!({"annotations": {names::CONFIG_SIGN: sign}});
            writer.patch_metadata(&cluster.pods, pod.as_ref(), annotations).await?;
        }
    }
    Ok(())
}

/// What is to be heard of the server from now on.
fn interest(
    context: &Context,
    gathered: &Gathered,
    valid: &Valid,
    heard: &Heard,
    mounted: &BTreeMap<String, ByteString>,
) -> Interest {
    let open = |kind: &str, name: &str, generation: Option<i64>| {
        !heard.has_loaded(kind, name, generation) && heard.mistake(kind, name, generation).is_none()
    };
    let server = &gathered.server;
    let loading = open("CacheServer", &server.name_any(), server.metadata.generation)
        || valid.documents.iter().any(|document| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let (kind, metadata) = (text(&document["kind"]), &document["metadata"]);
            open(&kind, &text(&metadata["name"]), metadata["generation"].as_i64())
        });
    let leaf = text(mounted, &names::flat_key(names::MANAGED_TLS, "tls.crt")).and_then(|pem| authority::facts(&pem));
    let shown = heard.report.as_ref().and_then(|report| report.certificate.clone());
    let certifying = leaf.is_some_and(|leaf| shown != Some(leaf.fingerprint));
    // A repository that left must be seen to be gone before its name is free.
    let is_served =
        |kind: &str, name: &str| valid.repositories.iter().any(|served| served.kind == kind && served.name == name);
    let dropping = heard
        .report
        .iter()
        .flat_map(|report| &report.objects)
        .any(|object| KINDS.contains(&object.kind.as_str()) && !is_served(&object.kind, &object.name));
    let proving = !context.cluster.canaries.is_empty();
    let mirrors = valid.documents.iter().filter(|document| document["kind"] == MIRROR);
    let checks = mirrors.filter(|document| document["spec"]["online"] != json!(false)).map(|document| {
        let name = document["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        (name, hash(&json!([document["spec"]["upstream"], valid.secrets])))
    });
    Interest { awaited: loading || certifying || dropping || proving, checks: checks.collect() }
}

async fn write_status(
    context: &Context,
    server: &Arc<CacheServer>,
    leaving: &BTreeSet<String>,
    error: Option<&Error>,
) -> Result<(), apply::Error> {
    let cluster = &context.cluster;
    // What was written just now is in the stores.
    let gathered = gather(cluster, &context.settings.namespace, server);
    let valid = validate(&gathered, &context.settings.namespace, leaving);
    let heard = context.observations.of(&server.name_any());
    let held = server.status.clone().unwrap_or_default();
    if !heard.asked && error.is_none() && held.observed_generation == server.metadata.generation {
        return Ok(());
    }
    let failure = error.map(|error| {
        let reason = match error {
            Error::Apply(error) if error.is_refusal() => "Refused",
            Error::Apply(_) => "ApplyFailed",
            Error::Certificate(_) => "CertificateFailed",
            Error::NodePorts(_) => "NodePortRefused",
            Error::Issuer(_) => "IssuerUnknown",
        };
        (reason, chain(error))
    });
    let status = status::server(&gathered, &valid, &heard, endpoint(&gathered).as_ref(), failure, Timestamp::now());
    let transitions = status::transitions(&held.conditions, &status.conditions).into_iter().cloned().collect();
    if context.writer.apply_status(&cluster.servers, server.as_ref(), &json!(status), &json!(held)).await? {
        context.tell(server.as_ref(), transitions).await;
    }
    Ok(())
}
