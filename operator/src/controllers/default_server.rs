//! The `CacheServer` that comes with the installation: made once, never again after someone deleted it.
//! May import `apply`, `cluster`, `desired::names`.

use kube::ResourceExt;
use serde_json::{Value, json};

use super::Context;
use crate::{
    apply,
    cluster::{global, named},
};

/// On the `ConfigMap` of the default server: the server that was made of it.
const CREATED: &str = "entrepot.dev/created";
/// The key with the object.
const KEY: &str = "cacheserver.yaml";

/// Makes it, if it was not made before.
pub async fn ensure(context: &Context) -> Result<(), apply::Error> {
    let Some(name) = context.settings.default_cache_server.as_deref().filter(|name| !name.is_empty()) else {
        return Ok(());
    };
    let Some(config_map) = named(&context.cluster.config_maps, &context.settings.namespace, name) else {
        tracing::warn!(name, "the ConfigMap of the default CacheServer is not there; none is made");
        return Ok(());
    };
    if config_map.annotations().contains_key(CREATED) {
        return Ok(());
    }
    let text = config_map.data.as_ref().and_then(|data| data.get(KEY)).map_or("", String::as_str);
    let server: Value = match serde_saphyr::from_str(text) {
        Ok(server) => server,
        Err(error) => {
            tracing::warn!(name, key = KEY, %error, "the default CacheServer cannot be read; none is made");
            return Ok(());
        }
    };
    let created = server["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    if global(&context.cluster.servers, &created).is_none() {
        context.writer.create(&context.cluster.servers, &server).await?;
    }
    let annotations = json!({"annotations": {CREATED: created}});
    context.writer.patch_metadata(&context.cluster.config_maps, config_map.as_ref(), annotations).await
}
