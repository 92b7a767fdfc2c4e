//! The only writer of objects: server-side apply with one field manager, and nothing at all when nothing differs.
//! May import `cluster`, `metrics` and `sign`.
//!
//! Each write is waited for until the store has it, so that no later decision rests on what was before it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions},
    runtime::reflector::{ObjectRef, Store},
};
use serde_json::{Value, json};
use tokio::{sync::watch, time::timeout};

use crate::{cluster::Kind, metrics::Metrics, sign::hash};

/// The one field manager of the operator.
pub const FIELD_MANAGER: &str = "entrepot-operator";
/// A sign of what was applied last, so that a field we gave up is seen to be gone.
pub const APPLIED: &str = "entrepot.dev/applied";
/// How long a write may take to come back by the watch.
const SEEN_WITHIN: Duration = Duration::from_secs(5);

/// Why an object could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The apiserver refused or could not be reached.
    #[error("failed to {verb} {kind} {name}")]
    Write {
        /// What was tried.
        verb: &'static str,
        /// The object's kind.
        kind: String,
        /// The object's name.
        name: String,
        /// What the apiserver said.
        source: kube::Error,
    },
    /// The object is on its way out; it is made anew when it is gone.
    #[error("{kind} {name} is being deleted; waiting until it is gone")]
    Leaving {
        /// The object's kind.
        kind: String,
        /// The object's name.
        name: String,
    },
}

impl Error {
    /// Whether the apiserver found the object itself wrong, so that only a change of the spec helps.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Write { source: kube::Error::Api(status), .. } if status.code == 422)
    }
}

/// Writes objects. Shared by all controllers.
pub struct Writer {
    client: Client,
    changes: watch::Receiver<u64>,
    metrics: Arc<Metrics>,
    /// What was applied to which version: fields that the apiserver spells otherwise do not look changed forever.
    applied: Mutex<HashMap<String, (String, String)>>,
}

impl Writer {
    /// A writer that waits for its writes by `changes`.
    #[must_use]
    pub fn new(client: Client, changes: watch::Receiver<u64>, metrics: Arc<Metrics>) -> Self {
        Self { client, changes, metrics, applied: Mutex::default() }
    }

    /// Brings an object in line with `desired`, which is the full intent. Returns whether it wrote.
    pub async fn apply<K: Kind>(&self, store: &Store<K>, desired: &Value) -> Result<bool, Error> {
        let (name, namespace) = identity(desired);
        let live = store.get(&reference(&name, namespace.as_deref()));
        if live.as_ref().is_some_and(|live| live.meta().deletion_timestamp.is_some()) {
            return Err(Error::Leaving { kind: K::kind(&()).into_owned(), name });
        }
        let sign = hash(desired);
        let mut object = desired.clone();
        object["metadata"]["annotations"][APPLIED] = json!(sign);
        let key = format!("{}/{}/{name}", K::kind(&()), namespace.as_deref().unwrap_or_default());
        if let Some(live) = &live
            && self.in_line(&key, live.as_ref(), &object, &sign)
        {
            return Ok(false);
        }
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let written = self
            .api::<K>(namespace.as_deref())
            .patch(&name, &params, &Patch::Apply(&object))
            .await
            .map_err(|source| failed::<K>("apply", &name, source))?;
        self.remember(key, sign, &written);
        self.seen(store, &written, "applied").await;
        Ok(true)
    }

    /// Writes our part of an object's status as the full intent, if `live` differs from it. Returns whether it wrote.
    pub async fn apply_status<K: Kind>(
        &self,
        store: &Store<K>,
        live: &K,
        status: &Value,
        held: &Value,
    ) -> Result<bool, Error> {
        if status == held {
            return Ok(false);
        }
        let name = live.name_any();
        // With the uid an object that is gone meanwhile is not made anew.
        let patch = json!({
            "apiVersion": K::api_version(&()),
            "kind": K::kind(&()),
            "metadata": {"name": name, "uid": live.uid()},
            "status": status,
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let api = self.api::<K>(live.namespace().as_deref());
        let patch = Patch::Apply(&patch);
        let written = api
            .patch_status(&name, &params, &patch)
            .await
            .map_err(|source| failed::<K>("write the status of", &name, source))?;
        self.seen(store, &written, "status").await;
        Ok(true)
    }

    /// Changes a few fields of an object's metadata, only if it is still the version that was judged.
    pub async fn patch_metadata<K: Kind>(&self, store: &Store<K>, live: &K, metadata: Value) -> Result<(), Error> {
        let name = live.name_any();
        let mut metadata = metadata;
        metadata["resourceVersion"] = json!(live.resource_version());
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let api = self.api::<K>(live.namespace().as_deref());
        let patch = Patch::Merge(json!({"metadata": metadata}));
        match api.patch(&name, &params, &patch).await {
            Ok(written) => self.seen(store, &written, "metadata").await,
            // Gone, or changed since: the change that comes by the watch is judged anew.
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => {}
            Err(source) => return Err(failed::<K>("change", &name, source)),
        }
        Ok(())
    }

    /// Makes an object that is not there; one that came meanwhile stays as it is.
    pub async fn create<K: Kind>(&self, store: &Store<K>, desired: &Value) -> Result<(), Error> {
        let (name, namespace) = identity(desired);
        let refused = |source| failed::<K>("create", &name, source);
        let object: DynamicObject =
            serde_json::from_value(desired.clone()).map_err(|source| refused(kube::Error::SerdeError(source)))?;
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        match self.api::<K>(namespace.as_deref()).create(&params, &object).await {
            Ok(written) => self.seen(store, &written, "created").await,
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(source) => return Err(refused(source)),
        }
        Ok(())
    }

    /// Deletes exactly this version of an object; one that changed meanwhile stays.
    pub async fn delete<K: Kind>(&self, store: &Store<K>, live: &K) -> Result<(), Error> {
        let name = live.name_any();
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: live.uid(), resource_version: live.resource_version() }),
            ..DeleteParams::background()
        };
        match self.api::<K>(live.namespace().as_deref()).delete(&name, &params).await {
            Ok(_) => {
                self.metrics.wrote();
                tracing::info!(kind = %K::kind(&()), name, "deleted");
                let gone = |live_now: Option<Arc<K>>| {
                    live_now.is_none_or(|now| now.uid() != live.uid() || now.meta().deletion_timestamp.is_some())
                };
                let reference = reference(&name, live.namespace().as_deref());
                self.until(|| gone(store.get(&reference))).await;
            }
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => {}
            Err(source) => return Err(failed::<K>("delete", &name, source)),
        }
        Ok(())
    }

    fn api<K: Kind>(&self, namespace: Option<&str>) -> Api<DynamicObject> {
        let resource = ApiResource::from_gvk_with_plural(
            &kube::api::GroupVersionKind::gvk(&K::group(&()), &K::version(&()), &K::kind(&())),
            &K::plural(&()),
        );
        match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        }
    }

    fn in_line<K: Kind>(&self, key: &str, live: &K, object: &Value, sign: &str) -> bool {
        if live.annotations().get(APPLIED).map(String::as_str) != Some(sign) {
            return false;
        }
        let applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        let ours = applied.get(key).is_some_and(|(last, version)| {
            last == sign && Some(version.as_str()) == live.resource_version().as_deref()
        });
        ours || covers::<K>(live, object)
    }

    fn remember(&self, key: String, sign: String, written: &DynamicObject) {
        let version = written.resource_version().unwrap_or_default();
        self.applied.lock().unwrap_or_else(PoisonError::into_inner).insert(key, (sign, version));
    }

    async fn seen<K: Kind>(&self, store: &Store<K>, written: &DynamicObject, what: &'static str) {
        self.metrics.wrote();
        tracing::info!(kind = %K::kind(&()), name = %written.name_any(), what, "wrote");
        let reference = reference(&written.name_any(), written.namespace().as_deref());
        let version = number(written.resource_version().as_deref());
        self.until(|| {
            store.get(&reference).is_some_and(|live| {
                live.uid() == written.uid() && number(live.resource_version().as_deref()) >= version
            })
        })
        .await;
    }

    async fn until(&self, mut seen: impl FnMut() -> bool) {
        let mut changes = self.changes.clone();
        let wait = async {
            while !seen() {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        if timeout(SEEN_WITHIN, wait).await.is_err() {
            tracing::warn!("own write did not come back by the watch within 5 s; going on");
        }
    }
}

/// Whether all that `wanted` says is so in the live object.
fn covers<K: Kind>(live: &K, wanted: &Value) -> bool {
    let Ok(live) = serde_json::to_value(live) else { return false };
    let parts = wanted.as_object().into_iter().flatten();
    parts
        .filter(|(key, _)| !["apiVersion", "kind"].contains(&key.as_str()))
        .all(|(key, part)| contains(&live[key], part))
}

/// Whether `wanted` is part of `live`: fields that someone else added do not matter, entries of a list do.
#[must_use]
pub fn contains(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => {
            wanted.iter().all(|(key, wanted)| contains(live.get(key).unwrap_or(&Value::Null), wanted))
        }
        (Value::Array(live), Value::Array(wanted)) => {
            live.len() == wanted.len() && live.iter().zip(wanted).all(|(live, wanted)| contains(live, wanted))
        }
        // The apiserver drops what is empty.
        (Value::Null, Value::Object(wanted)) => wanted.values().all(|wanted| contains(&Value::Null, wanted)),
        (Value::Null, Value::Array(wanted)) => wanted.is_empty(),
        _ => live == wanted,
    }
}

fn identity(desired: &Value) -> (String, Option<String>) {
    let text = |field: &str| desired["metadata"][field].as_str().map(str::to_owned);
    (text("name").unwrap_or_default(), text("namespace"))
}

fn reference<K: Kind>(name: &str, namespace: Option<&str>) -> ObjectRef<K> {
    let reference = ObjectRef::new(name);
    match namespace {
        Some(namespace) => reference.within(namespace),
        None => reference,
    }
}

/// Resource versions of one kind can be compared as numbers (KEP-5504).
fn number(version: Option<&str>) -> u64 {
    version.and_then(|text| text.parse().ok()).unwrap_or_default()
}

fn failed<K: Kind>(verb: &'static str, name: &str, source: kube::Error) -> Error {
    Error::Write { verb, kind: K::kind(&()).into_owned(), name: name.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_add_is_no_difference_and_what_they_change_is() {
        let live = json!({"a": 1, "b": {"c": [1, {"x": 1, "y": 2}]}, "added": true});
        for (wanted, same) in [
            (json!({"a": 1}), true),
            (json!({"b": {"c": [1, {"x": 1}]}}), true),
            (json!({"empty": {}, "none": [], "deep": {"empty": {}}}), true),
            (json!({"a": 2}), false),
            (json!({"b": {"c": [1]}}), false),
            (json!({"missing": "x"}), false),
        ] {
            assert_eq!(contains(&live, &wanted), same, "{wanted}");
        }
    }
}
