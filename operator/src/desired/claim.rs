//! The claim of a cache server's volume: it outlives the server unless `onDelete: Delete`. May import `labels` and `names`.

use crds::{
    CacheServer,
    cache_server::{OnDelete, VolumeSpec},
    names::ByteSize,
};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{labels, names};

/// The size of a claim that does not say one.
const DEFAULT_SIZE: ByteSize = ByteSize::bytes(50 << 30);

/// The volume that a server asks for; `None` over an emptyDir.
#[must_use]
pub fn volume(server: &CacheServer) -> Option<VolumeSpec> {
    match &server.spec.storage {
        None => Some(VolumeSpec::default()),
        Some(storage) => storage.volume.clone(),
    }
}

/// The name of the claim that is mounted; `None` over an emptyDir.
#[must_use]
pub fn claim_name(server: &CacheServer) -> Option<String> {
    volume(server).map(|volume| volume.existing_claim.unwrap_or_else(|| names::objects(&server.name_any())))
}

/// The claim to make; `None` over an emptyDir or a claim that someone else made.
///
/// It never asks for less than the live claim does, nor for another class: neither can be changed in place.
#[must_use]
pub fn claim(server: &CacheServer, namespace: &str, live: Option<&PersistentVolumeClaim>) -> Option<Value> {
    let volume = volume(server).filter(|volume| volume.existing_claim.is_none())?;
    let name = names::objects(&server.name_any());
    let metadata = match volume.on_delete {
        OnDelete::Retain => labels::kept(server, namespace, &name),
        OnDelete::Delete => labels::owned(server, namespace, &name),
    };
    let wanted = volume.size.unwrap_or(DEFAULT_SIZE);
    let held = live.and_then(requested);
    let size = match &held {
        Some(held) if held.parse::<ByteSize>().is_ok_and(|held| held > wanted) => held.clone(),
        _ => wanted.to_string(),
    };
    let mut spec = json!({
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": size}},
    });
    // A live claim's class is what it is, whether we named it or the cluster's default did.
    let class = match live {
        Some(live) => live.spec.as_ref().and_then(|spec| spec.storage_class_name.clone()),
        None => volume.storage_class_name,
    };
    if let Some(class) = class {
        spec["storageClassName"] = json!(class);
    }
    Some(json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}))
}

fn requested(claim: &PersistentVolumeClaim) -> Option<String> {
    let requests = claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?;
    Some(requests.get("storage")?.0.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(volume: &Value) -> CacheServer {
        let spec = json!({"storage": {"volume": volume}});
        CacheServer::new("default", serde_json::from_value(spec).unwrap_or_default())
    }

    fn live(size: &str) -> PersistentVolumeClaim {
        let spec = json!({"resources": {"requests": {"storage": size}}, "storageClassName": "fast"});
        serde_json::from_value(json!({"spec": spec})).unwrap_or_default()
    }

    #[test]
    fn a_claim_grows_and_never_shrinks() {
        for (wanted, held, expected) in [("10Gi", "5Gi", "10Gi"), ("5Gi", "10Gi", "10Gi"), ("5Gi", "5Gi", "5Gi")] {
            let claim = claim(&server(&json!({"size": wanted})), "ns", Some(&live(held))).unwrap_or_default();
            assert_eq!(claim["spec"]["resources"]["requests"]["storage"], expected);
            assert_eq!(claim["spec"]["storageClassName"], "fast");
        }
    }

    #[test]
    fn a_claim_has_an_owner_only_if_it_may_be_deleted() {
        for (volume, owned) in [(json!({}), false), (json!({"onDelete": "Delete"}), true)] {
            let claim = claim(&server(&volume), "ns", None).unwrap_or_default();
            assert_eq!(claim["metadata"].get("ownerReferences").is_some(), owned);
        }
    }

    #[test]
    fn a_claim_of_someone_else_is_mounted_and_not_made() {
        let server = server(&json!({"existingClaim": "mine"}));
        assert_eq!(claim(&server, "ns", None), None);
        assert_eq!(claim_name(&server).as_deref(), Some("mine"));
    }
}
