//! `operator check`: whether everything that was asked for is in force, for `helm test`. Reads only. May import `settings`.

use crds::{CacheServer, HostedRepository, NodeMirror, RegistryMirror, RepositoryGroup, conditions::READY};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Api, Client, Resource, ResourceExt, api::ListParams};
use tokio::time::{Duration, Instant, sleep};

use crate::settings::CheckSettings;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(2);

/// Why the check did not pass.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The apiserver was not to be asked.
    #[error("failed to {action}")]
    Ask {
        /// What was tried.
        action: &'static str,
        /// What went wrong.
        source: Box<kube::Error>,
    },
    /// Something is not as it should be.
    #[error("not everything is Ready after {0}; see the lines above")]
    NotReady(crds::names::Span),
}

/// Waits until every object of our kinds is Ready, and prints those that are not in the end.
pub async fn check(settings: &CheckSettings) -> Result<(), Error> {
    let client = Client::try_default().await.map_err(ask("find the apiserver"))?;
    let deadline = Instant::now() + settings.timeout.get();
    loop {
        let complaints = complaints(&client, settings).await?;
        if complaints.is_empty() {
            println!("everything is Ready");
            return Ok(());
        }
        if Instant::now() >= deadline {
            println!("{}", complaints.join("\n"));
            return Err(Error::NotReady(settings.timeout));
        }
        sleep(LOOK).await;
    }
}

fn ask(action: &'static str) -> impl FnOnce(kube::Error) -> Error {
    move |source| Error::Ask { action, source: Box::new(source) }
}

async fn complaints(client: &Client, settings: &CheckSettings) -> Result<Vec<String>, Error> {
    let every = ListParams::default();
    let servers: Api<CacheServer> = Api::all(client.clone());
    let servers = servers.list(&every).await.map_err(ask("list cacheservers"))?.items;
    let mirrors: Api<RegistryMirror> = Api::all(client.clone());
    let mirrors = mirrors.list(&every).await.map_err(ask("list registrymirrors"))?.items;
    let hosted: Api<HostedRepository> = Api::all(client.clone());
    let hosted = hosted.list(&every).await.map_err(ask("list hostedrepositories"))?.items;
    let groups: Api<RepositoryGroup> = Api::all(client.clone());
    let groups = groups.list(&every).await.map_err(ask("list repositorygroups"))?.items;
    let nodes: Api<NodeMirror> = Api::all(client.clone());
    let nodes = nodes.list(&every).await.map_err(ask("list nodemirrors"))?.items;

    let absent = settings
        .cache_server
        .iter()
        .filter(|name| servers.iter().all(|server| server.name_any() != **name))
        .map(|name| format!("CacheServer {name} is not there; the operator makes it at its start: see its log"));
    let servers = servers.iter().filter_map(|server| {
        let status = server.status.as_ref();
        complaint(
            server,
            status.and_then(|status| status.observed_generation),
            conditions(status.map(|it| &it.conditions)),
        )
    });
    let mirrors = mirrors.iter().filter_map(|mirror| {
        let status = mirror.status.as_ref();
        complaint(
            mirror,
            status.and_then(|status| status.observed_generation),
            conditions(status.map(|it| &it.conditions)),
        )
    });
    let hosted = hosted.iter().filter_map(|hosted| {
        let status = hosted.status.as_ref();
        complaint(
            hosted,
            status.and_then(|status| status.observed_generation),
            conditions(status.map(|it| &it.conditions)),
        )
    });
    let groups = groups.iter().filter_map(|group| {
        let status = group.status.as_ref();
        complaint(
            group,
            status.and_then(|status| status.observed_generation),
            conditions(status.map(|it| &it.conditions)),
        )
    });
    let nodes = nodes.iter().filter_map(|node| {
        let status = node.status.as_ref();
        complaint(
            node,
            status.and_then(|status| status.observed_generation),
            conditions(status.map(|it| &it.conditions)),
        )
    });
    Ok(absent.chain(servers).chain(mirrors).chain(hosted).chain(groups).chain(nodes).collect())
}

fn conditions(listed: Option<&Vec<Condition>>) -> &[Condition] {
    listed.map_or(&[], Vec::as_slice)
}

/// What is not right with an object: nobody has acted on it, or it is not Ready.
fn complaint<K: Resource<DynamicType = ()>>(
    object: &K,
    observed: Option<i64>,
    conditions: &[Condition],
) -> Option<String> {
    let name = format!("{} {}", K::kind(&()), object.name_any());
    if observed != object.meta().generation {
        return Some(format!("{name}: nobody has acted on its generation yet; see the operator's and the agent's log"));
    }
    match conditions.iter().find(|condition| condition.type_ == READY) {
        Some(ready) if ready.status == "True" => None,
        Some(ready) => Some(format!("{name}: {}: {}", ready.reason, ready.message)),
        None => Some(format!("{name}: it has no condition Ready yet")),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use serde_json::json;

    use super::*;

    fn complaint_of(observed: i64, status: &str) -> Option<String> {
        let server: CacheServer = serde_json::from_value(json!({
            "apiVersion": "entrepot.dev/v1alpha1",
            "kind": "CacheServer",
            "metadata": {"name": "default", "generation": 2},
            "spec": {},
            "status": {"observedGeneration": observed, "conditions": [{
                "type": "Ready", "status": status, "reason": "ClaimPending", "message": "make a volume",
                "lastTransitionTime": "2026-11-22T00:00:00Z",
            }]},
        }))
        .unwrap();
        let status = server.status.clone().unwrap_or_default();
        complaint(&server, status.observed_generation, &status.conditions)
    }

    #[test]
    fn only_what_is_ready_for_its_present_generation_passes() {
        assert_eq!(complaint_of(2, "True"), None);
        assert_eq!(complaint_of(2, "False").unwrap(), "CacheServer default: ClaimPending: make a volume");
        assert!(complaint_of(1, "True").unwrap().contains("nobody has acted"));
    }
}
