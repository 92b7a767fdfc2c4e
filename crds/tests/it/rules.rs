//! The CEL rules, run as an apiserver would: one good object of each kind, and one field spoiled at a time.

use crds::{CacheServer, RegistryMirror, RepositoryGroup};
use serde_json::{Value, json};

#[expect(clippy::unwrap_in_result, reason = "a test may end so")]
fn mirror(spoil: impl FnOnce(&mut Value)) -> Result<(), String> {
    let mut object = json!({
        "apiVersion": "entrepot.dev/v1alpha1",
        "kind": "RegistryMirror",
        "metadata": {"name": "docker-hub"},
        "spec": {
            "anonymousPull": true,
            "upstream": {"url": "https://registry-1.docker.io", "credentialsSecretRef": {"name": "hub"}},
            "connectors": [
                {"port": 5001, "nodePort": 30501, "tls": {"secretRef": {"name": "tls"}}},
                {"host": "hub.example.com", "tlsSecretRef": {"name": "tls"}},
            ],
        },
    });
    spoil(&mut object);
    let mirror: RegistryMirror = serde_json::from_value(object).unwrap();
    mirror.validate_cel().map_err(|errors| errors.to_string())
}

#[expect(clippy::unwrap_in_result, reason = "a test may end so")]
fn server(spec: Value) -> Result<(), String> {
    let server = CacheServer::new("default", serde_json::from_value(spec).unwrap());
    server.validate_cel().map_err(|errors| errors.to_string())
}

/// A server with one permission, some of whose fields are spoiled.
#[expect(clippy::needless_pass_by_value, reason = "callers write the value in place")]
fn permitted(spoilt: Value) -> Value {
    let mut permission = json!({"users": ["alice"], "repositories": ["team"], "actions": ["Push"]});
    for (field, value) in spoilt.as_object().unwrap() {
        permission[field] = value.clone();
    }
    json!({"auth": {"permissions": [permission]}})
}

/// The good object with one field set.
fn with(pointer: &str, value: Value) -> Result<(), String> {
    mirror(|object| {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        object.pointer_mut(parent).unwrap()[key] = value;
    })
}

#[test]
fn good_objects_are_taken() {
    assert_eq!(mirror(|_| {}), Ok(()));
    assert_eq!(server(json!({})), Ok(()));
    assert_eq!(server(json!({"tls": {"mode": "Secret", "secretRef": {"name": "tls"}}})), Ok(()));
    assert_eq!(with("/spec/upstream/url", json!("http://10.0.0.1:5000/prefix")), Ok(()));
    assert_eq!(with("/spec/upstream/insecureSkipVerify", json!(true)), Ok(()));
    assert_eq!(with("/spec/v1Search", json!(true)), Ok(()));
    assert_eq!(with("/spec/upstream/index", json!({"type": "DockerHub"})), Ok(()));
    assert_eq!(with("/spec/upstream/index", json!({"type": "Custom", "url": "https://a.example.com/x"})), Ok(()));
    assert_eq!(with("/spec/anonymousPull", json!(false)), Ok(()));
    assert_eq!(server(json!({"externalURL": "https://registry.example.com:8443"})), Ok(()));
    assert_eq!(server(json!({"externalURL": "http://[::1]/"})), Ok(()));
    let permission = json!({"users": ["*"], "repositories": ["team-*"], "actions": ["Pull", "Push"]});
    let auth = json!({"htpasswdSecretRef": {"name": "users"}, "serviceAccounts": true, "permissions": [permission]});
    assert_eq!(server(json!({"auth": auth, "trustedProxies": ["10.0.0.0/8"]})), Ok(()));
    assert_eq!(with("/spec/upstream/caBundle", json!("# mine\n-----BEGIN CERTIFICATE-----\n")), Ok(()));
    assert_eq!(with("/spec/upstream/breaker", json!({"minOpen": "5m", "maxOpen": "5m"})), Ok(()));
}

#[test]
fn illegal_mirrors_are_refused_with_the_right_sentence() {
    for (pointer, value, sentence) in [
        ("/metadata/name", json!("docker.io"), "a repository name must be 1 to 63"),
        ("/metadata/name", json!("a".repeat(64)), "a repository name must be 1 to 63"),
        ("/metadata/name", json!("library"), "must not be named library, token"),
        ("/metadata/name", json!("repository"), "must not be named library, token"),
        ("/spec/anonymousPull", Value::Null, "anonymousPull must be set when credentialsSecretRef is"),
        ("/spec/upstream/url", json!("ftp://example.com"), "url must start with https:// or http://"),
        ("/spec/upstream/url", json!("registry-1.docker.io"), "url must start with https:// or http://"),
        ("/spec/upstream/url", json!("https://me:pw@example.com"), "url must not contain credentials"),
        (
            "/spec/upstream",
            json!({"url": "https://a.example.com", "insecureSkipVerify": true, "caBundle": "-----BEGIN CERTIFICATE-----"}),
            "insecureSkipVerify must not be set together with caBundle",
        ),
        (
            "/spec/upstream",
            json!({"url": "http://a.example.com", "insecureSkipVerify": true}),
            "insecureSkipVerify must only be set with an https:// url",
        ),
        ("/spec/upstream/caBundle", json!("LS0tLS1CRUdJTiBDRVJU"), "caBundle must be certificates in PEM"),
        ("/spec/upstream/proxyURL", json!("socks5://proxy:1080"), "proxyURL must start with http:// or https://"),
        ("/spec/upstream/proxyURL", json!("http://me:pw@proxy:3128"), "proxyURL must not contain credentials"),
        ("/spec/upstream/limits", json!({"connect": "0s"}), "must be longer than 0s"),
        ("/spec/upstream/limits", json!({"header": "0s"}), "must be longer than 0s"),
        ("/spec/upstream/limits", json!({"headerWithCopy": "0ms"}), "must be longer than 0s"),
        ("/spec/upstream/limits", json!({"stall": {"window": "999ms"}}), "limits.stall.window must be at least 1s"),
        ("/spec/upstream/breaker", json!({"minOpen": "0s"}), "breaker.minOpen must be longer than 0s"),
        ("/spec/upstream/breaker", json!({"minOpen": "1h"}), "breaker.minOpen must not be longer than breaker.maxOpen"),
        ("/spec/connectors", json!([{}]), "a connector must have either port or host"),
        ("/spec/connectors", json!([{"port": 1, "host": "a"}]), "a connector must have either port or host"),
        (
            "/spec/connectors",
            json!([{"host": "a", "tls": {"secretRef": {"name": "tls"}}}]),
            "tls must only be set on a connector with a port",
        ),
        (
            "/spec/connectors",
            json!([{"host": "a", "nodePort": 30501}]),
            "nodePort must only be set on a connector with a port",
        ),
        (
            "/spec/connectors",
            json!([{"port": 5001, "tlsSecretRef": {"name": "tls"}}]),
            "tlsSecretRef must only be set on a connector with a host",
        ),
        ("/spec/upstream/index", json!({"type": "Custom"}), "index.url must be set when index.type is Custom"),
        (
            "/spec/upstream/index",
            json!({"type": "Registry", "url": "https://a.example.com"}),
            "index.url must be set when index.type is Custom, and only then",
        ),
        (
            "/spec/upstream/index",
            json!({"type": "Custom", "url": "ftp://a.example.com"}),
            "index.url must start with https:// or http://",
        ),
        (
            "/spec/upstream/index",
            json!({"type": "Custom", "url": "https://me:pw@a.example.com"}),
            "index.url must not contain credentials",
        ),
        (
            "/spec/upstream/index",
            json!({"type": "Custom", "url": "https://a.example.com/v1/search"}),
            "index.url must be what stands in front of /v1/search",
        ),
        ("/metadata/name", json!("probe"), "must not be named library, token"),
        ("/spec/nodes", json!({"fallback": "Never"}), "acknowledgeBootstrapRisk must be true when fallback is Never"),
        ("/spec/nodes", json!({"probe": {"timeout": "0s"}}), "probe.interval and probe.timeout must be longer than 0s"),
    ] {
        let refused = with(pointer, value.clone()).expect_err(&format!("{pointer}: {value}"));
        assert!(refused.contains(sentence), "{pointer}: {value} gave {refused}");
        assert!(!refused.contains("evaluat") && !refused.contains("ompil"), "{refused}");
    }
}

#[test]
fn illegal_servers_are_refused_with_the_right_sentence() {
    for (spec, sentence) in [
        (json!({"tls": {"mode": "Secret"}}), "secretRef must be set when mode is Secret, and only then"),
        (json!({"tls": {"secretRef": {"name": "tls"}}}), "secretRef must be set when mode is Secret, and only then"),
        (
            json!({"tls": {"mode": "Disabled", "secretRef": {"name": "tls"}}}),
            "secretRef must be set when mode is Secret",
        ),
        (
            json!({"limits": {"requestHeader": "0s"}}),
            "limits.requestHeader, limits.idle and limits.writeStall must be longer",
        ),
        (json!({"limits": {"idle": "0s"}}), "must be longer than 0s"),
        (json!({"storage": {}}), "storage must have either volume or emptyDir"),
        (json!({"storage": {"volume": {}, "emptyDir": {}}}), "storage must have either volume or emptyDir"),
        (
            json!({"storage": {"volume": {"existingClaim": "mine", "size": "1Gi"}}}),
            "must not be set together with existingClaim",
        ),
        (
            json!({"service": {"nodePort": 30500}}),
            "service.nodePort must only be set with type NodePort or LoadBalancer",
        ),
        (json!({"limits": {"writeStall": "0h"}}), "must be longer than 0s"),
        (json!({"externalURL": "registry.example.com"}), "externalURL must be http:// or https://, a host"),
        (json!({"externalURL": "https://me:pw@registry.example.com"}), "externalURL must be http:// or https://"),
        (json!({"externalURL": "https://registry.example.com/hub"}), "externalURL must be http:// or https://"),
        (json!({"externalURL": "https://registry.example.com?x"}), "externalURL must be http:// or https://"),
        (permitted(json!({"users": []})), "users, repositories, images and actions must each name something"),
        (permitted(json!({"repositories": []})), "must each name something"),
        (permitted(json!({"images": []})), "must each name something"),
        (permitted(json!({"actions": []})), "must each name something"),
    ] {
        let refused = server(spec.clone()).expect_err(&spec.to_string());
        assert!(refused.contains(sentence), "{spec} gave {refused}");
    }
    assert_eq!(server(json!({"limits": {"drain": "0s"}})), Ok(()));
}

#[test]
fn nodes_of_a_group_need_registries() {
    let group = |nodes: Value| {
        let spec = json!({"members": ["a"], "nodes": nodes});
        let group = RepositoryGroup::new("all", serde_json::from_value(spec).unwrap());
        group.validate_cel().map_err(|errors| errors.to_string())
    };
    assert_eq!(group(json!({"registries": ["docker.io"]})), Ok(()));
    for nodes in [json!({}), json!({"registries": []})] {
        let refused = group(nodes).unwrap_err();
        assert!(refused.contains("nodes.registries must name the registries"), "{refused}");
    }
}

#[test]
fn unknown_fields_are_refused() {
    for spec in [json!({"replicas": 2}), json!({"limits": {"total": "5m"}}), json!({"tls": {"secret": "x"}})] {
        assert!(serde_json::from_value::<crds::CacheServerSpec>(spec.clone()).is_err(), "{spec}");
    }
}
