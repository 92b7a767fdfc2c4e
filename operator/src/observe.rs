//! What running cache servers say: asked on their port 9090, often while something is awaited, seldom otherwise.
//! May import `causes`, `cluster`, `gather` and `repository`. Writes nothing at the apiserver.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde::Deserialize;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};

use crate::{causes::chain, cluster::Cluster, gather::pods, repository::MIRROR};

/// Between two questions while something is awaited.
const EAGER: Duration = Duration::from_millis(500);
/// Between two questions otherwise; also between two checks of an upstream that is bad.
const LAZY: Duration = Duration::from_secs(15);
/// Between two checks of an upstream that is good.
const GOOD: Duration = Duration::from_mins(5);
/// Between two checks of an upstream that the server knows nothing of.
const RETRY: Duration = Duration::from_secs(2);
/// For an answer of `/status`.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);
/// For an answer of `/check`: the server's own limits towards upstreams come first.
const CHECK_TIMEOUT: Duration = Duration::from_secs(30);

/// What a cache server says of itself.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Report {
    /// What is loaded, with its generation.
    pub objects: Vec<Loaded>,
    /// What is not, and why.
    pub mistakes: Vec<Mistake>,
    /// The fingerprint of the main port's leaf.
    pub certificate: Option<String>,
    /// How the upstreams answer.
    pub upstreams: Vec<Upstream>,
    /// How the store is.
    pub store: StoreReport,
    /// Nonces of canaries, with when they were pulled last.
    pub probes: BTreeMap<String, String>,
}

/// An object that is loaded.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Loaded {
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its generation.
    #[serde(default)]
    pub generation: Option<i64>,
}

/// What is wrong with an object, as the server sees it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Mistake {
    /// The object's kind.
    #[serde(default)]
    pub kind: Option<String>,
    /// The object's name.
    #[serde(default)]
    pub name: Option<String>,
    /// The object's generation.
    #[serde(default)]
    pub generation: Option<i64>,
    /// The field.
    #[serde(default)]
    pub field: Option<String>,
    /// What is wrong, and what to do.
    pub message: String,
}

/// How an upstream answers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Upstream {
    /// The repository.
    pub repository: String,
    /// `Unknown`, `Reachable`, `Unreachable` or `Denied`.
    pub state: String,
    /// Why.
    #[serde(default)]
    pub message: Option<String>,
}

/// How the store is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct StoreReport {
    /// What keeps it from taking content.
    pub problem: Option<String>,
}

/// What one server was heard to say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Heard {
    /// Whether it was asked at all since this process began. Until then nothing is known, which is not bad news.
    pub asked: bool,
    /// Its last answer; `None` while its pod does not answer.
    pub report: Option<Report>,
    /// How each upstream answered last, a check or a pull, by repository; none that the server knows nothing of.
    pub upstreams: BTreeMap<String, Upstream>,
}

impl Heard {
    /// Whether the server has loaded this generation of an object.
    #[must_use]
    pub fn has_loaded(&self, kind: &str, name: &str, generation: Option<i64>) -> bool {
        let objects = self.report.iter().flat_map(|report| &report.objects);
        let mut loaded = objects.filter(|object| object.kind == kind && object.name == name);
        loaded.any(|object| object.generation == generation)
    }

    /// Whether the server serves any version of an object.
    #[must_use]
    pub fn serves(&self, kind: &str, name: &str) -> bool {
        self.report.iter().flat_map(|report| &report.objects).any(|object| object.kind == kind && object.name == name)
    }

    /// What the server found wrong with this generation of an object.
    #[must_use]
    pub fn mistake(&self, kind: &str, name: &str, generation: Option<i64>) -> Option<String> {
        let mistakes: Vec<String> = self
            .report
            .iter()
            .flat_map(|report| &report.mistakes)
            .filter(|mistake| mistake.kind.as_deref() == Some(kind) && mistake.name.as_deref() == Some(name))
            .filter(|mistake| mistake.generation.is_none() || mistake.generation == generation)
            .map(|mistake| match mistake.field.as_deref().filter(|field| !field.is_empty()) {
                Some(field) => format!("{field}: {}", mistake.message),
                None => mistake.message.clone(),
            })
            .collect();
        (!mistakes.is_empty()).then(|| mistakes.join("; "))
    }
}

/// What the controllers want to know of a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    /// Whether something is awaited of it.
    pub awaited: bool,
    /// The repositories whose upstreams are checked, with a sign of all that decides how they are asked.
    pub checks: BTreeMap<String, String>,
}

/// What was heard of all servers. Shared.
#[derive(Clone)]
pub struct Observations {
    heard: Arc<Mutex<BTreeMap<String, Heard>>>,
    interests: Arc<Mutex<BTreeMap<String, Interest>>>,
    changes: watch::Sender<u64>,
}

impl Observations {
    /// Nothing heard yet. `changes` is moved whenever something new is.
    #[must_use]
    pub fn new(changes: watch::Sender<u64>) -> Self {
        Self { heard: Arc::default(), interests: Arc::default(), changes }
    }

    /// What a server said last.
    #[must_use]
    pub fn of(&self, server: &str) -> Heard {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).get(server).cloned().unwrap_or_default()
    }

    /// Says what is wanted of a server from now on.
    pub fn want(&self, server: &str, interest: Interest) {
        self.interests.lock().unwrap_or_else(PoisonError::into_inner).insert(server.to_owned(), interest);
    }

    /// Forgets servers that are gone.
    pub fn keep(&self, servers: &BTreeSet<String>) {
        self.interests.lock().unwrap_or_else(PoisonError::into_inner).retain(|name, _| servers.contains(name));
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).retain(|name, _| servers.contains(name));
    }

    fn interests(&self) -> BTreeMap<String, Interest> {
        self.interests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, server: &str, change: impl FnOnce(&mut Heard)) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = heard.entry(server.to_owned()).or_default();
        let before = entry.clone();
        change(entry);
        if *entry != before {
            self.changes.send_modify(|count| *count = count.wrapping_add(1));
        }
    }
}

/// Asks until the process ends.
pub async fn observe(cluster: Cluster, observations: Observations, port: u16) {
    // Cache servers report over plain HTTP; the image has no authorities that a client could find.
    let none: [reqwest::Certificate; 0] = [];
    let built =
        reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).tls_certs_only(none).build();
    let client = match built {
        Ok(client) => client,
        Err(error) => {
            tracing::error!(error = %chain(&error), "no cache server can be asked; report this");
            return;
        }
    };
    let observer = Arc::new(Observer { client, cluster, observations, port, asked: Mutex::default() });
    let mut ticks = interval(EAGER);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        observer.tick();
    }
}

struct Observer {
    client: reqwest::Client,
    cluster: Cluster,
    observations: Observations,
    port: u16,
    asked: Mutex<Asked>,
}

/// When what was asked last, and what is under way.
#[derive(Default)]
struct Asked {
    statuses: HashMap<String, Instant>,
    checks: HashMap<(String, String), (Instant, String)>,
    running: HashSet<(String, String)>,
}

impl Observer {
    fn tick(self: &Arc<Self>) {
        for (server, interest) in self.observations.interests() {
            let Some(origin) = self.origin(&server) else {
                self.observations.change(&server, |heard| (heard.asked, heard.report) = (true, None));
                continue;
            };
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            let pause = if interest.awaited { EAGER } else { LAZY };
            let due = asked.statuses.get(&server).is_none_or(|last| last.elapsed() + EAGER / 2 >= pause);
            if due && asked.running.insert((server.clone(), String::new())) {
                asked.statuses.insert(server.clone(), Instant::now());
                let (observer, server, origin) = (Arc::clone(self), server.clone(), origin.clone());
                tokio::spawn(async move { observer.ask_status(server, &origin).await });
            }
            let heard = self.observations.of(&server);
            for (repository, sign) in interest.checks {
                let key = (server.clone(), repository.clone());
                let pause = match heard.upstreams.get(&repository).map(|upstream| upstream.state.as_str()) {
                    // The server has loaded the mirror anew since it was asked.
                    None => RETRY,
                    Some("Reachable") => GOOD,
                    Some(_) => LAZY,
                };
                let due = asked.checks.get(&key).is_none_or(|(last, of)| *of != sign || last.elapsed() >= pause);
                if due && heard.serves(MIRROR, &repository) && asked.running.insert(key) {
                    let (observer, server, origin) = (Arc::clone(self), server.clone(), origin.clone());
                    tokio::spawn(async move { observer.check(server, &origin, repository, sign).await });
                }
            }
        }
    }

    /// Where the newest pod of a server reports.
    fn origin(&self, server: &str) -> Option<String> {
        let pods = pods(&self.cluster, server);
        let newest = pods
            .iter()
            .filter_map(|pod| Some((pod, address(pod)?)))
            .max_by_key(|(pod, _)| pod.creation_timestamp().map(|time| time.0))?;
        let host = if newest.1.contains(':') { format!("[{}]", newest.1) } else { newest.1 };
        Some(format!("http://{host}:{}", self.port))
    }

    async fn ask_status(&self, server: String, origin: &str) {
        let asked = self.client.get(format!("{origin}/status")).timeout(STATUS_TIMEOUT).send();
        let report: Option<Report> = match asked.await.and_then(reqwest::Response::error_for_status) {
            Ok(answer) => match answer.bytes().await {
                Ok(bytes) => serde_json::from_slice(&bytes)
                    .inspect_err(|error| tracing::warn!(server, %error, "a cache server's status cannot be read"))
                    .ok(),
                Err(_) => None,
            },
            Err(error) => {
                tracing::debug!(server, error = %chain(&error), "a cache server does not answer");
                None
            }
        };
        self.observations.change(&server, |heard| {
            if let Some(report) = &report {
                // Pulls tell as much as checks do, and the server knows to which version of a mirror its word belongs.
                let known = report.upstreams.iter().filter(|upstream| upstream.state != "Unknown");
                heard.upstreams = known.map(|upstream| (upstream.repository.clone(), upstream.clone())).collect();
            }
            (heard.asked, heard.report) = (true, report);
        });
        self.ended(server, String::new());
    }

    async fn check(&self, server: String, origin: &str, repository: String, sign: String) {
        let asked = self.client.post(format!("{origin}/check/{repository}")).timeout(CHECK_TIMEOUT).send();
        let answer = match asked.await.and_then(reqwest::Response::error_for_status) {
            Ok(answer) => answer.bytes().await.ok(),
            Err(_) => None,
        };
        let upstream: Option<Upstream> = answer.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        if let Some(upstream) = upstream {
            self.observations.change(&server, |heard| {
                heard.upstreams.insert(repository.clone(), upstream);
            });
        }
        let key = (server.clone(), repository.clone());
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).checks.insert(key, (Instant::now(), sign));
        self.ended(server, repository);
    }

    fn ended(&self, server: String, repository: String) {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).running.remove(&(server, repository));
    }
}

fn address(pod: &Pod) -> Option<String> {
    pod.status.as_ref()?.pod_ip.clone().filter(|address| !address.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_as_the_cache_server_writes_it() {
        let text = r#"{"objects":[{"kind":"RegistryMirror","name":"hub","generation":3}],
            "mistakes":[{"kind":"RegistryMirror","name":"x","generation":2,"field":"spec.a","message":"must be b"}],
            "certificate":null,"upstreams":[{"repository":"hub","state":"Unreachable","message":"m","since":"2026-01-01T00:00:00Z"}],
            "store":{"usedBytes":1,"limitBytes":2,"problem":"full"},"probes":{"n":"2026-01-01T00:00:00Z"}}"#;
        let report: Report = serde_json::from_str(text).expect("should be a report");
        let heard = Heard { asked: true, report: Some(report), upstreams: BTreeMap::new() };
        assert!(heard.has_loaded("RegistryMirror", "hub", Some(3)));
        assert!(!heard.has_loaded("RegistryMirror", "hub", Some(4)));
        assert_eq!(heard.mistake("RegistryMirror", "x", Some(2)).as_deref(), Some("spec.a: must be b"));
        assert_eq!(heard.mistake("RegistryMirror", "x", Some(3)), None);
    }
}
