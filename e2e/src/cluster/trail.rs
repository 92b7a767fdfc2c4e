//! The audit log from a moment on, and what of it our own programs did. The log may be of several files: the apiserver
//! renames one that has become large.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Cluster;
use super::bearer;
use super::inventory::{NODE, SYSTEM};

/// A moment: so many bytes had been written.
#[derive(Clone, Copy, Debug)]
pub struct Mark(u64);

/// The beginning of the run.
pub const BEGINNING: Mark = Mark(0);

/// Now.
pub fn mark(cluster: &Cluster) -> Result<Mark> {
    let lengths = files(cluster)?.into_iter().map(|path| Ok(fs::metadata(&path)?.len()));
    Ok(Mark(lengths.sum::<Result<u64>>()?))
}

/// What was logged since then.
pub fn since(cluster: &Cluster, Mark(mut skip): Mark) -> Result<Vec<Value>> {
    let mut events = Vec::new();
    for path in files(cluster)? {
        let length = fs::metadata(&path)?.len();
        if skip < length {
            read(&path, skip, &mut events).with_context(|| format!("cannot read {}", path.display()))?;
        }
        skip = skip.saturating_sub(length);
    }
    Ok(events)
}

/// The log's files, the oldest first.
fn files(cluster: &Cluster) -> Result<Vec<PathBuf>> {
    let folder = cluster.folder();
    let mut older = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Names of renamed files end in the time.
        if name.starts_with("audit-") && name.ends_with(".log") {
            older.push(path);
        }
    }
    older.sort();
    older.push(folder.join("audit.log"));
    Ok(older)
}

fn read(path: &PathBuf, skip: u64, events: &mut Vec<Value>) -> Result<()> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(skip))?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    // The last line may still be on its way.
    let whole = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
    for line in whole.lines() {
        events.push(serde_json::from_str(line).context("the audit log has a line that is not JSON")?);
    }
    Ok(())
}

/// The account of ours that asked, as `NAMESPACE/NAME`; nothing for other users, and for what a case asked with a token.
#[must_use]
pub fn account(event: &Value) -> Option<String> {
    let user = event["user"]["username"].as_str()?.strip_prefix("system:serviceaccount:")?;
    let (namespace, name) = user.split_once(':')?;
    let by_a_case = event["userAgent"].as_str().is_some_and(|agent| agent.starts_with(bearer::USER_AGENT));
    ([SYSTEM, NODE].contains(&namespace) && !by_a_case).then(|| format!("{namespace}/{name}"))
}

/// `GROUP/RESOURCE[/SUBRESOURCE]`; the core group is empty.
#[must_use]
pub fn resource(event: &Value) -> String {
    let text = |field: &str| event["objectRef"][field].as_str().unwrap_or_default();
    let resource = format!("{}/{}", text("apiGroup"), text("resource"));
    match text("subresource") {
        "" => resource,
        subresource => format!("{resource}/{subresource}"),
    }
}

/// The verbs that the request took: server-side apply of an object that was not there needs leave to create it too.
#[must_use]
pub fn verbs(event: &Value) -> Vec<&str> {
    let verb = event["verb"].as_str().unwrap_or_default();
    if verb == "patch" && event["responseStatus"]["code"] == 201 { vec![verb, "create"] } else { vec![verb] }
}

/// Whether the request asked for a change of something other than a Lease: those are renewed for as long as a program runs.
#[must_use]
pub fn is_write(event: &Value) -> bool {
    let verb = event["verb"].as_str().unwrap_or_default();
    ["create", "update", "patch", "delete", "deletecollection"].contains(&verb)
        && event["objectRef"]["resource"] != "leases"
}

/// How often each object was created and deleted by `account`. Pods that verify nodes have names of their own each time:
/// they are counted together. Events are no part of it.
#[must_use]
pub fn creates_and_deletes(events: &[Value], by: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for event in events.iter().filter(|event| account(event).as_deref() == Some(by) && succeeded(event)) {
        let resource = resource(event);
        if !is_write(event) || resource == "events.k8s.io/events" {
            continue;
        }
        let text = |field: &str| event["objectRef"][field].as_str().unwrap_or_default();
        let name = if resource == "/pods" { "*" } else { text("name") };
        for verb in verbs(event).into_iter().filter(|verb| ["create", "delete"].contains(verb)) {
            *counts.entry(format!("{verb} {resource} {}/{name}", text("namespace"))).or_insert(0) += 1;
        }
    }
    counts
}

fn succeeded(event: &Value) -> bool {
    event["responseStatus"]["code"].as_u64().is_some_and(|code| (200..300).contains(&code))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(verb: &str, resource: &str, name: &str, code: u16) -> Value {
        json!({
            "verb": verb,
            "user": {"username": "system:serviceaccount:entrepot-system:entrepot-operator"},
            "userAgent": "operator/0.1",
            "objectRef": {"apiGroup": "", "resource": resource, "namespace": "entrepot-system", "name": name},
            "responseStatus": {"code": code},
        })
    }

    #[test]
    fn an_apply_that_made_the_object_counts_as_a_creation() {
        let events = [
            event("patch", "configmaps", "a", 201),
            event("patch", "configmaps", "a", 200),
            event("delete", "configmaps", "a", 404),
            event("delete", "pods", "canary-1", 200),
            event("delete", "pods", "canary-2", 200),
            event("create", "leases", "entrepot-operator", 201),
        ];
        let counts = creates_and_deletes(&events, "entrepot-system/entrepot-operator");
        let expected =
            [("create /configmaps entrepot-system/a".to_owned(), 1), ("delete /pods entrepot-system/*".to_owned(), 2)];
        assert_eq!(counts, expected.into());
        assert!(creates_and_deletes(&events, "entrepot-node/entrepot-node").is_empty());
    }

    #[test]
    fn what_a_case_asked_is_not_ours() {
        let mut asked = event("get", "secrets", "a", 403);
        assert_eq!(account(&asked).as_deref(), Some("entrepot-system/entrepot-operator"));
        asked["userAgent"] = bearer::USER_AGENT.into();
        assert_eq!(account(&asked), None);
    }
}
