//! The objects of a cache server as whole files: what is applied can be read, and no change of it goes unseen.

use std::{fs, path::Path};

use crds::CacheServer;
use operator::desired::{
    canary, claim, deployment, secret,
    service::{self, Port},
    service_account,
};
use serde_json::{Value, json};

/// Rewrites the file if it differs, and fails then: look at the difference, and commit it if it is meant.
fn is_golden(name: &str, objects: &[Value]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/golden").join(name);
    let mut text = String::new();
    for object in objects {
        let body = serde_saphyr::to_string(object).expect("should be YAML");
        text.extend(["---\n", body.trim_end(), "\n"]);
    }
    let held = fs::read_to_string(&path).unwrap_or_default();
    if held != text {
        fs::write(&path, text).expect("should be writable");
        assert!(held.is_empty(), "{} was rewritten; is the difference meant?", path.display());
    }
}

fn server(spec: &Value) -> CacheServer {
    let object = json!({"apiVersion": "entrepot.dev/v1alpha1", "kind": "CacheServer",
        "metadata": {"name": "default", "uid": "0b0e"}, "spec": spec});
    serde_json::from_value(object).expect("should be a CacheServer")
}

fn objects(server: &CacheServer, pull_secrets: &[String]) -> Vec<Value> {
    let namespace = "entrepot-system";
    let image =
        deployment::Image { reference: "entrepot/cache-server:0.1.0", pull_policy: Some("IfNotPresent"), pull_secrets };
    let mut objects = vec![
        service_account::service_account(server, namespace),
        service::service(server, namespace, &[Port { port: 5001, node_port: Some(30501) }]),
        deployment::deployment(server, namespace, image),
        secret::mounted(server, namespace, &[].into()),
        secret::authority(server, namespace, &[].into(), Some("1")),
    ];
    objects.extend(claim::claim(server, namespace, None));
    objects
}

#[test]
fn a_server_with_defaults_has_these_objects() {
    is_golden("defaults.yaml", &objects(&server(&json!({})), &[]));
}

#[test]
fn every_field_of_a_server_reaches_its_objects() {
    let spec = json!({
        "image": "registry.lan/cache-server:1",
        "storage": {"emptyDir": {"sizeLimit": "5Gi"}},
        "service": {"type": "NodePort", "nodePort": 30500, "annotations": {"lb.example.com/x": "y"}},
        "resources": {"limits": {"memory": "2Gi"}},
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "k", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}},
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}],
        "priorityClassName": "high",
        "podTemplate": {"labels": {"team": "a", "app.kubernetes.io/name": "other"}, "annotations": {"n": "v"}},
        "limits": {"drain": "1m"},
    });
    is_golden("everything.yaml", &objects(&server(&spec), &["pull".to_owned()]));
}

#[test]
fn a_canary_is_a_restricted_pod_that_goes_with_its_node() {
    let live = json!({"apiVersion": "entrepot.dev/v1alpha1", "kind": "NodeMirror",
        "metadata": {"name": "node-a", "uid": "0b0f"},
        "spec": {"entries": [], "canary": {"registry": "probe.entrepot.invalid", "url": "https://10.96.0.7:5000/repository/probe", "nonce": "abc"}}});
    let live: crds::NodeMirror = serde_json::from_value(live).expect("should be a NodeMirror");
    let wanted = live.spec.canary.clone().expect("should have a canary");
    is_golden("canary.yaml", &[canary::pod(&live, &wanted, "entrepot-node")]);
}
