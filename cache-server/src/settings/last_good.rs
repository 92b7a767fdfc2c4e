//! What stays in force of an earlier configuration when objects of the next one have mistakes. Pure.
//! May import `objects`, the settings themselves and `access`.

use std::sync::Arc;

use super::{
    ConnectorSettings, MainPort, ObjectName, RepositoryFacts, Settings,
    objects::{GROUP, HOSTED, MIRROR, SERVER},
};
use crate::access::Auth;

/// The kinds of objects.
const KINDS: [&str; 4] = [MIRROR, HOSTED, GROUP, SERVER];

/// `fresh` with the last good version of each object that has a mistake in it. `named` are the objects of the configuration,
/// the wrong ones too; where something in it could not be read at all, any object may be there still, and one of an unknown kind
/// may be any of its name.
///
/// A last good version takes nothing from an object that is good now: where the two claim the same, it goes.
pub(super) fn complete(mut fresh: Settings, named: &[ObjectName], previous: &Settings) -> Settings {
    let hidden = fresh.mistakes.hide_objects();
    for object in &previous.objects {
        let is_named = named.iter().any(|name| name.is_same(object));
        let is_fresh = fresh.objects.iter().any(|loaded| loaded.is_same(object));
        let is_miscalled = || named.iter().any(|name| name.name == object.name && !KINDS.contains(&name.kind.as_str()));
        if is_fresh || !(is_named || hidden || is_miscalled()) {
            continue;
        }
        let stays = match object.kind.as_str() {
            SERVER => keep_server(&mut fresh, is_named, previous),
            MIRROR | HOSTED | GROUP => keep_repository(&mut fresh, object, previous),
            _ => false,
        };
        if stays {
            fresh.objects.push(object.clone());
        }
    }
    fresh.sort();
    fresh
}

/// A new certificate counts although something else of its object is wrong: else the old one would run out meanwhile. So do
/// users and the issuer's keys, as far as they can be read: who was taken away must not stay, nor who was added wait. Permissions are
/// those of before.
fn keep_server(fresh: &mut Settings, is_named: bool, previous: &Settings) -> bool {
    if fresh.objects.iter().any(|object| object.kind == SERVER) {
        return false;
    }
    let wrong = std::mem::replace(&mut fresh.server, previous.server.clone());
    if is_named {
        if wrong.main_port != MainPort::Closed {
            fresh.server.main_port = wrong.main_port;
        }
        let last = &previous.server.auth;
        fresh.server.auth = Arc::new(Auth {
            users: wrong.auth.users.clone().or_else(|| last.users.clone()),
            issuer: wrong.auth.issuer.clone().or_else(|| last.issuer.clone()),
            permissions: last.permissions.clone(),
        });
    }
    true
}

fn keep_repository(fresh: &mut Settings, object: &ObjectName, previous: &Settings) -> bool {
    let is_it = |facts: &RepositoryFacts<'_>| facts.kind == object.kind && facts.name.as_str() == object.name;
    let Some(facts) = previous.repositories().find(is_it) else { return false };
    let mirror = previous.mirrors.iter().find(|mirror| mirror.name == *facts.name && facts.kind == MIRROR);
    let registry_taken = mirror.is_some_and(|last| fresh.mirrors.iter().any(|mirror| mirror.registry == last.registry));
    if registry_taken || fresh.repositories().any(|other| clash(&facts, &other)) {
        return false;
    }
    let hosted = previous.hosted.iter().find(|hosted| hosted.name == *facts.name && facts.kind == HOSTED);
    let group = previous.groups.iter().find(|group| group.name == *facts.name && facts.kind == GROUP);
    fresh.mirrors.extend(mirror.cloned());
    fresh.hosted.extend(hosted.cloned());
    fresh.groups.extend(group.cloned());
    true
}

fn clash(one: &RepositoryFacts<'_>, other: &RepositoryFacts<'_>) -> bool {
    let same_way = |one: &ConnectorSettings, other: &ConnectorSettings| match (one, other) {
        (ConnectorSettings::Port { port: one, .. }, ConnectorSettings::Port { port: other, .. }) => one == other,
        (ConnectorSettings::Host { host: one, .. }, ConnectorSettings::Host { host: other, .. }) => one == other,
        _ => false,
    };
    one.name == other.name || one.connectors.iter().any(|way| other.connectors.iter().any(|taken| same_way(way, taken)))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use std::{fs, path::Path};

    use super::*;
    use crate::settings::Sources;

    /// A folder of configuration and one of Secrets, read with everything good kept.
    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir(root.path().join("secrets")).unwrap();
            Self(root)
        }

        fn path(&self) -> &Path {
            self.0.path()
        }

        fn sources(&self) -> Sources {
            let secrets = Some(self.path().join("secrets"));
            Sources { config: Some(self.path().join("config.yaml")), secrets, main_port: Some(5000) }
        }

        fn secret(&self, file: &str, text: &str) {
            fs::write(self.path().join("secrets").join(file), text).unwrap();
        }

        fn load(&self, objects: &[&str], previous: Option<&Settings>) -> Settings {
            let text: Vec<_> = objects.iter().map(|object| format!("---\n{object}\n")).collect();
            fs::write(self.path().join("config.yaml"), text.concat()).unwrap();
            Settings::load_good(&self.sources(), previous).settings
        }
    }

    fn object(kind: &str, name: &str, generation: i64, spec: &str) -> String {
        format!(
            "{{apiVersion: entrepot.dev/v1alpha1, kind: {kind}, metadata: {{name: {name}, generation: {generation}}}, spec: {{{spec}}}}}"
        )
    }

    fn mirror(name: &str, generation: i64, more: &str) -> String {
        object("RegistryMirror", name, generation, &format!("upstream: {{url: 'https://{name}.example.com'}}{more}"))
    }

    /// What is in force, with generations.
    fn loaded(settings: &Settings) -> Vec<String> {
        let mut objects: Vec<_> = settings
            .objects
            .iter()
            .map(|object| format!("{} {}", object.name, object.generation.unwrap_or_default()))
            .collect();
        objects.sort();
        assert_eq!(
            settings.mirrors.len() + usize::from(settings.objects.iter().any(|object| object.kind == "CacheServer")),
            objects.len()
        );
        objects
    }

    fn wrong(settings: &Settings) -> Vec<String> {
        let mistakes = settings.mistakes.as_slice().iter();
        mistakes
            .map(|mistake| {
                format!(
                    "{:?} {}",
                    mistake.place.object.as_ref().map(|object| (&object.name, object.generation)),
                    mistake.field
                )
            })
            .collect()
    }

    #[test]
    fn an_object_with_a_mistake_leaves_the_others_alone() {
        let folder = Folder::new();
        let (good, bad) = (mirror("a", 1, ""), mirror("b", 7, ", oops: 1"));
        let settings = folder.load(&[&bad, &good], None);
        assert_eq!(loaded(&settings), ["a 1"]);
        assert_eq!(wrong(&settings), ["Some((\"b\", Some(7))) spec.oops"]);
    }

    #[test]
    fn the_last_good_version_stays_and_goes_with_its_object() {
        let folder = Folder::new();
        let (a, b) = (mirror("a", 1, ""), mirror("b", 1, ", online: false"));
        let first = folder.load(&[&a, &b], None);
        let second = folder.load(&[&mirror("a", 2, ""), &mirror("b", 2, ", online: maybe")], Some(&first));
        assert_eq!(loaded(&second), ["a 2", "b 1"]);
        assert!(!second.mirrors[1].online);
        // It is kept over any number of mistakes, and mended by the next good version.
        let third = folder.load(&[&a, &mirror("b", 3, ", oops: 1")], Some(&second));
        assert_eq!(loaded(&third), ["a 1", "b 1"]);
        assert_eq!(loaded(&folder.load(&[&a, &mirror("b", 4, "")], Some(&third))), ["a 1", "b 4"]);
        assert_eq!(loaded(&folder.load(&[&a], Some(&third))), ["a 1"], "removed is removed");
    }

    #[test]
    fn a_file_that_cannot_be_read_keeps_everything() {
        let folder = Folder::new();
        let first = folder.load(&[&mirror("a", 1, ""), &object("CacheServer", "s", 1, "maxSize: 1Gi")], None);
        let second = folder.load(&["spec: ["], Some(&first));
        assert_eq!((&second.mirrors, &second.server), (&first.mirrors, &first.server));
        assert_eq!(loaded(&second), loaded(&first));
        assert_eq!(second.mistakes.as_slice().len(), 1);
        assert_eq!(folder.load(&["spec: ["], None).mirrors, []);
    }

    #[test]
    fn a_secret_that_goes_missing_takes_no_mirror_away() {
        let folder = Folder::new();
        folder.secret("team_.dockerconfigjson", r#"{"auths": {"a.example.com": {"username": "me", "password": "x"}}}"#);
        let a = object(
            "RegistryMirror",
            "a",
            1,
            "anonymousPull: true, upstream: {url: 'https://a.example.com', credentialsSecretRef: {name: team}}",
        );
        let first = folder.load(&[&a], None);
        assert_eq!(first.mirrors[0].upstream.credentials.as_ref().unwrap().username, "me");
        fs::remove_file(folder.path().join("secrets/team_.dockerconfigjson")).unwrap();
        let second = folder.load(&[&a], Some(&first));
        assert_eq!(second.mirrors, first.mirrors);
        assert_eq!(wrong(&second), ["Some((\"a\", Some(1))) spec.upstream.credentialsSecretRef"]);
        assert_eq!(loaded(&folder.load(&[&a], None)), Vec::<String>::new());
    }

    #[test]
    fn of_two_that_claim_the_same_the_later_is_left_out() {
        let folder = Folder::new();
        let same_port =
            [mirror("a", 1, ", connectors: [{port: 5001}]"), mirror("b", 1, ", connectors: [{port: 5001}]")];
        assert_eq!(loaded(&folder.load(&[&same_port[1], &same_port[0]], None)), ["b 1"]);
        let same_registry = ["a", "b"].map(|name| {
            object(
                "RegistryMirror",
                name,
                1,
                &format!("upstream: {{url: 'https://{name}.example.com', registry: r.example.com}}"),
            )
        });
        assert_eq!(loaded(&folder.load(&[&same_registry[0], &same_registry[1]], None)), ["a 1"]);
        let junk = object(
            "RegistryMirror",
            "c",
            1,
            "upstream: {url: 'https://c.example.com', caBundle: \"-----BEGIN CERTIFICATE-----\\n!!\"}",
        );
        assert_eq!(loaded(&folder.load(&[&junk, &same_registry[1]], None)), ["b 1"]);
    }

    #[test]
    fn a_last_good_version_takes_nothing_from_a_good_one() {
        let folder = Folder::new();
        let first = folder.load(&[&mirror("a", 1, ", connectors: [{host: x}]")], None);
        let second =
            folder.load(&[&mirror("a", 2, ", oops: 1"), &mirror("b", 1, ", connectors: [{host: x}]")], Some(&first));
        assert_eq!(loaded(&second), ["b 1"]);
    }

    #[test]
    fn a_wrong_mirror_does_not_make_its_server_wrong() {
        let folder = Folder::new();
        let server = object("CacheServer", "s", 1, "defaultRepository: b");
        let settings = folder.load(&[&server, &mirror("a", 1, ""), &mirror("b", 1, ", oops: 1")], None);
        assert_eq!(loaded(&settings), ["a 1", "s 1"]);
        assert_eq!(settings.server.default_repository.unwrap().as_str(), "b", "a is not to answer in its place");
    }

    #[test]
    fn a_wrong_server_keeps_its_permissions_and_knows_the_users_of_now() {
        let folder = Folder::new();
        let hash = |user: &str| format!("{user}:{}\n", bcrypt::hash("x", 4).unwrap());
        let server = |more: &str, repositories: &str, users: &str| {
            let permission = format!("{{users: ['*'], repositories: ['{repositories}'], actions: [Pull]}}");
            let auth = format!("auth: {{htpasswdSecretRef: {{name: {users}}}, permissions: [{permission}]}}");
            object("CacheServer", "s", 1, &format!("{auth}{more}"))
        };
        let users = |settings: &Settings| {
            let users = settings.server.auth.users.as_ref();
            ["alice", "bob"].map(|name| users.is_some_and(|users| users.contains(name)))
        };
        folder.secret("users_htpasswd", &hash("alice"));
        let first = folder.load(&[&server("", "team", "users")], None);
        assert_eq!(users(&first), [true, false]);
        for wrong in [
            server(", maxSize: plenty", "*", "users"),
            server(", defaultRepository: nobody", "*", "users"),
            server("", "*", "gone"),
            object("CacheServer", "s", 1, "oops: 1"),
            "{apiVersion: entrepot.dev/v1alpha1, kind: CacheServr, metadata: {name: s}}".to_owned(),
            "{apiVersion: entrepot.dev/v1, kind: CacheServer, metadata: {name: s}}".to_owned(),
            "spec: [".to_owned(),
        ] {
            let second = folder.load(&[&wrong], Some(&first));
            assert_eq!(second.server.main_port, MainPort::Plain, "{wrong}");
            assert_eq!(second.server.auth, first.server.auth, "{wrong}");
            assert!(!second.mistakes.as_slice().is_empty(), "{wrong}");
        }
        folder.secret("users_htpasswd", &hash("bob"));
        let second = folder.load(&[&server(", defaultRepository: nobody", "*", "users")], Some(&first));
        assert_eq!(users(&second), [false, true]);
        assert_eq!(second.server.auth.permissions, first.server.auth.permissions);
        // What cannot be read is as it was.
        folder.secret("users_htpasswd", "nonsense");
        let third = folder.load(&[&server("", "*", "users")], Some(&second));
        assert_eq!(third.server.auth, second.server.auth);
        // Without a version that was good, permissions let nobody do more than logins allow, and there are none.
        assert_eq!(users(&folder.load(&[&server("", "*", "users")], None)), [false, false]);
    }

    #[test]
    fn a_server_never_falls_back_to_plain_http() {
        let folder = Folder::new();
        let tls = object("CacheServer", "s", 1, "tls: {mode: Secret, secretRef: {name: managed-tls}}");
        assert_eq!(folder.load(&[&tls], None).server.main_port, MainPort::Closed);
        assert_eq!(folder.load(&[&object("CacheServer", "s", 1, "oops: 1")], None).server.main_port, MainPort::Closed);

        let write = || {
            let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
            folder.secret("managed-tls_tls.crt", &made.cert.pem());
            folder.secret("managed-tls_tls.key", &made.signing_key.serialize_pem());
        };
        write();
        let first = folder.load(&[&tls], None);
        assert!(matches!(first.server.main_port, MainPort::Tls(_)));
        folder.secret("managed-tls_tls.key", "junk");
        let second = folder.load(&[&tls], Some(&first));
        assert_eq!(second.server, first.server);
        write();
        let wrong_default = tls.replace("tls:", "defaultRepository: nobody, tls:");
        for miscalled in [tls.replace("CacheServer", "CacheServr"), tls.replace("v1alpha1", "v1")] {
            assert_eq!(folder.load(&[&miscalled], Some(&second)).server, second.server, "{miscalled}");
        }
        let third = folder.load(&[&wrong_default], Some(&second));
        assert_eq!(third.server.default_repository, None);
        assert_ne!(third.server.main_port, second.server.main_port, "a renewed certificate is taken all the same");
    }
}
