//! A repository of any kind: what mirrors, hosted repositories and groups have in common. Pure. May import nothing of ours.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use crds::{HostedRepository, RegistryMirror, RepositoryGroup, nodes::NodesSpec, repository::Connector};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use kube::Resource;
use serde_json::{Value, json};

/// The kind of mirrors.
pub const MIRROR: &str = "RegistryMirror";
/// The kind of hosted repositories.
pub const HOSTED: &str = "HostedRepository";
/// The kind of groups.
pub const GROUP: &str = "RepositoryGroup";
/// The kinds of repositories, whose names are one namespace.
pub const KINDS: [&str; 3] = [MIRROR, HOSTED, GROUP];

/// A repository. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Repository {
    /// It proxies an upstream.
    Mirror(Arc<RegistryMirror>),
    /// It takes pushes.
    Hosted(Arc<HostedRepository>),
    /// It joins others.
    Group(Arc<RepositoryGroup>),
}

/// Who has each name.
pub type Holders = BTreeMap<String, Repository>;

impl Repository {
    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Mirror(_) => MIRROR,
            Self::Hosted(_) => HOSTED,
            Self::Group(_) => GROUP,
        }
    }

    /// Its metadata.
    #[must_use]
    pub fn meta(&self) -> &ObjectMeta {
        match self {
            Self::Mirror(it) => it.meta(),
            Self::Hosted(it) => it.meta(),
            Self::Group(it) => it.meta(),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> String {
        self.meta().name.clone().unwrap_or_default()
    }

    /// What tells its object from every other one, before and after it.
    #[must_use]
    pub fn uid(&self) -> String {
        self.meta().uid.clone().unwrap_or_default()
    }

    /// What tells it from those of other kinds too: `RegistryMirror/docker-hub`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.kind(), self.name())
    }

    /// By which of two is older: creation, then name and kind.
    #[must_use]
    pub fn age(&self) -> (Option<Timestamp>, String, &'static str) {
        (self.meta().creation_timestamp.as_ref().map(|time| time.0), self.name(), self.kind())
    }

    /// Whether it is being deleted.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.meta().deletion_timestamp.is_some()
    }

    /// Whether a controller holds its deletion up by this finalizer.
    #[must_use]
    pub fn has_finalizer(&self, finalizer: &str) -> bool {
        self.meta().finalizers.iter().flatten().any(|held| held == finalizer)
    }

    /// The server that it names.
    #[must_use]
    pub fn server(&self) -> &str {
        match self {
            Self::Mirror(it) => &it.spec.server,
            Self::Hosted(it) => &it.spec.server,
            Self::Group(it) => &it.spec.server,
        }
    }

    /// Its own ways in.
    #[must_use]
    pub fn connectors(&self) -> &[Connector] {
        match self {
            Self::Mirror(it) => &it.spec.connectors,
            Self::Hosted(it) => &it.spec.connectors,
            Self::Group(it) => &it.spec.connectors,
        }
    }

    /// What it wants of nodes.
    #[must_use]
    pub fn nodes(&self) -> Option<&NodesSpec> {
        match self {
            Self::Mirror(it) => it.spec.nodes.as_ref(),
            Self::Hosted(_) => None,
            Self::Group(it) => it.spec.nodes.as_ref(),
        }
    }

    /// Whether it serves.
    #[must_use]
    pub fn is_online(&self) -> bool {
        match self {
            Self::Mirror(it) => it.spec.online,
            Self::Hosted(it) => it.spec.online,
            Self::Group(it) => it.spec.online,
        }
    }

    /// Whether nobody has to log in for a pull.
    #[must_use]
    pub fn is_anonymous(&self) -> bool {
        match self {
            Self::Mirror(it) => it.spec.anonymous_pull.unwrap_or(true),
            Self::Hosted(it) => it.spec.anonymous_pull,
            Self::Group(it) => it.spec.anonymous_pull,
        }
    }

    /// Whether it answers for a registry within a group.
    #[must_use]
    pub fn stands_for(&self, registry: &str) -> bool {
        match self {
            Self::Mirror(it) => self::registry(it).as_deref() == Some(registry),
            Self::Hosted(it) => it.spec.serves_for.iter().any(|served| served == registry),
            Self::Group(_) => false,
        }
    }

    /// Its spec, as it is written.
    #[must_use]
    pub fn spec(&self) -> Value {
        match self {
            Self::Mirror(it) => json!(it.spec),
            Self::Hosted(it) => json!(it.spec),
            Self::Group(it) => json!(it.spec),
        }
    }

    /// Its status, as it was written last.
    #[must_use]
    pub fn status(&self) -> Value {
        match self {
            Self::Mirror(it) => json!(it.status.clone().unwrap_or_default()),
            Self::Hosted(it) => json!(it.status.clone().unwrap_or_default()),
            Self::Group(it) => json!(it.status.clone().unwrap_or_default()),
        }
    }

    /// The conditions that were written last.
    #[must_use]
    pub fn conditions(&self) -> &[Condition] {
        let held = match self {
            Self::Mirror(it) => it.status.as_ref().map(|status| &status.conditions),
            Self::Hosted(it) => it.status.as_ref().map(|status| &status.conditions),
            Self::Group(it) => it.status.as_ref().map(|status| &status.conditions),
        };
        held.map_or(&[], Vec::as_slice)
    }

    /// The generation that its status speaks of.
    #[must_use]
    pub fn observed_generation(&self) -> Option<i64> {
        match self {
            Self::Mirror(it) => it.status.as_ref()?.observed_generation,
            Self::Hosted(it) => it.status.as_ref()?.observed_generation,
            Self::Group(it) => it.status.as_ref()?.observed_generation,
        }
    }

    /// Whether both are the same object.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.key() == other.key() && self.uid() == other.uid()
    }

    /// The repositories behind it that hold content: itself, or of a group those of its members that are there, with the
    /// members of nested groups in their place. A ring adds nothing when it comes round, and members of another server none.
    #[must_use]
    pub fn leaves(&self, holders: &Holders) -> Vec<Self> {
        self.behind(holders, &|_| true).into_iter().filter(|it| !matches!(it, Self::Group(_))).collect()
    }

    /// The group in it that hides some of these leaves from those who do not log in: every way to them leads through a group that
    /// is not for everyone, and this one is on one of them.
    #[must_use]
    pub fn hidden_by(&self, holders: &Holders, leaf: impl Fn(&Self) -> bool) -> Option<Self> {
        let open: BTreeSet<String> = self.behind(holders, &Self::is_anonymous).iter().map(Self::name).collect();
        let is_hidden = |it: &Self| leaf(it) && !open.contains(&it.name());
        let closed = |it: &Self| matches!(it, Self::Group(_)) && !it.is_anonymous();
        let inner = self.behind(holders, &|_| true).into_iter().filter(|it| it.name() != self.name() && closed(it));
        inner.into_iter().find(|group| group.leaves(holders).iter().any(is_hidden))
    }

    /// Itself and what is behind it, each once, through those nested groups that `passes` lets through.
    fn behind(&self, holders: &Holders, passes: &dyn Fn(&Self) -> bool) -> Vec<Self> {
        fn walk(
            from: &Repository,
            holders: &Holders,
            passes: &dyn Fn(&Repository) -> bool,
            seen: &mut BTreeSet<String>,
            found: &mut Vec<Repository>,
        ) {
            found.push(from.clone());
            let Repository::Group(group) = from else { return };
            for member in &group.spec.members {
                let next = holders.get(member).filter(|next| next.server() == from.server());
                let next = next.filter(|next| !matches!(next, Repository::Group(_)) || passes(next));
                if let Some(next) = next.filter(|_| seen.insert(member.clone())) {
                    walk(next, holders, passes, seen, found);
                }
            }
        }
        let mut found = Vec::new();
        walk(self, holders, passes, &mut BTreeSet::from([self.name()]), &mut found);
        found
    }
}

/// As messages name it: `RegistryMirror docker-hub`.
impl fmt::Display for Repository {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.kind(), self.name())
    }
}

/// Who has each name: who is `recorded` by uid as served, then the oldest.
#[must_use]
pub fn holders(all: &[Repository], recorded: &BTreeSet<String>) -> Holders {
    let mut sorted: Vec<&Repository> = all.iter().collect();
    sorted.sort_by_key(|repository| (!recorded.contains(&repository.uid()), repository.age()));
    let mut holders = Holders::new();
    for repository in sorted {
        holders.entry(repository.name()).or_insert_with(|| repository.clone());
    }
    holders
}

/// The registry that a mirror stands for; `None` if its URL cannot be read.
#[must_use]
pub fn registry(mirror: &RegistryMirror) -> Option<String> {
    registry_from(mirror.spec.upstream.registry.as_deref(), &mirror.spec.upstream.url)
}

/// The registry that is written, or else the one behind a URL.
#[must_use]
pub fn registry_from(written: Option<&str>, url: &str) -> Option<String> {
    if let Some(written) = written {
        return Some(written.to_owned());
    }
    let url = url::Url::parse(url).ok()?;
    let host = url.host_str().filter(|host| !host.is_empty())?;
    Some(match (host, url.port()) {
        ("registry-1.docker.io" | "index.docker.io", None) => "docker.io".to_owned(),
        (host, Some(port)) => format!("{host}:{port}"),
        (host, None) => host.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).expect("should be an object of its kind")
    }

    fn object(kind: &str, name: &str, created: &str, spec: &Value) -> Value {
        json!({"apiVersion": "entrepot.dev/v1alpha1", "kind": kind, "spec": spec,
            "metadata": {"name": name, "uid": format!("{kind}-{name}"), "creationTimestamp": created}})
    }

    fn hosted(name: &str, created: &str) -> Repository {
        Repository::Hosted(Arc::new(read(object(HOSTED, name, created, &json!({})))))
    }

    fn group(name: &str, created: &str, members: &[&str]) -> Repository {
        Repository::Group(Arc::new(read(object(GROUP, name, created, &json!({"members": members})))))
    }

    const EARLY: &str = "2026-01-01T00:00:00Z";
    const LATE: &str = "2026-01-01T00:00:01Z";

    #[test]
    fn a_name_is_the_recorded_ones_and_else_the_oldest_ones() {
        let all = [group("a", LATE, &["b"]), hosted("a", EARLY)];
        assert_eq!(holders(&all, &BTreeSet::new())["a"].kind(), HOSTED);
        let recorded = BTreeSet::from(["RepositoryGroup-a".to_owned()]);
        assert_eq!(holders(&all, &recorded)["a"].kind(), GROUP);
    }

    #[test]
    fn the_leaves_of_nested_groups_are_found_once_and_a_ring_ends() {
        let all = [
            hosted("x", EARLY),
            hosted("y", EARLY),
            group("inner", EARLY, &["y", "outer", "x"]),
            group("outer", EARLY, &["x", "inner", "gone"]),
        ];
        let holders = holders(&all, &BTreeSet::new());
        let names: Vec<String> = holders["outer"].leaves(&holders).iter().map(Repository::name).collect();
        assert_eq!(names, ["x", "y"]);
    }

    #[test]
    fn a_registry_comes_from_the_url_as_images_name_it() {
        for (url, expected) in [
            ("https://registry-1.docker.io", "docker.io"),
            ("https://quay.io/", "quay.io"),
            ("http://registry.lan:5000", "registry.lan:5000"),
            ("https://ghcr.io:443", "ghcr.io"),
        ] {
            assert_eq!(registry_from(None, url).as_deref(), Some(expected));
        }
    }
}
