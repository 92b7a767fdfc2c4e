//! Where settings come from: files, and a sign that tells when one changed. The only I/O of `settings`.
//! May import `objects`, `check`, `last_good` and `mistake`.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    Settings,
    check::settings,
    last_good::complete,
    mistake::{Mistakes, ObjectName},
    objects::{ISSUER, Objects},
    secrets::{SecretBytes, Secrets},
};
use crate::oci::{Algorithm, Digest, Hasher};

/// What a server does that is told nothing.
const BUILT_IN: &str = "
apiVersion: entrepot.dev/v1alpha1
kind: CacheServer
metadata: {name: default}
spec: {defaultRepository: docker-hub}
---
apiVersion: entrepot.dev/v1alpha1
kind: RegistryMirror
metadata: {name: docker-hub}
spec: {upstream: {registry: docker.io, url: 'https://registry-1.docker.io'}}
";

/// Where settings come from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// A file, or a folder whose `*.yaml`, `*.yml` and `*.json` are read in the order of their names. `None`: one mirror of
    /// Docker Hub.
    pub config: Option<PathBuf>,
    /// The folder of Secrets: files `<secret>_<key>`.
    pub secrets: Option<PathBuf>,
    /// The port that the server listens on, which no connector may have.
    pub main_port: Option<u16>,
}

/// Settings with the sign of the files that they were made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// Equal to a later [`Sources::fingerprint`] as long as no file changed.
    pub fingerprint: Fingerprint,
}

/// A sign of all files at a time: their names and contents, or why they could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint(Digest);

impl Settings {
    /// Reads everything and checks everything. The mistakes are all there are, unless one hides others in the same object.
    pub fn load(sources: &Sources) -> Result<Loaded, Mistakes> {
        let (settings, _, fingerprint) = read(sources);
        if settings.mistakes.as_slice().is_empty() {
            Ok(Loaded { settings, fingerprint })
        } else {
            Err(settings.mistakes)
        }
    }

    /// Reads everything and takes what is good. An object with a mistake is left out, and its version in `previous` stays, if it
    /// has one; nothing is so wrong that there are no settings.
    #[must_use]
    pub fn load_good(sources: &Sources, previous: Option<&Self>) -> Loaded {
        let (fresh, named, fingerprint) = read(sources);
        let settings = match previous {
            Some(previous) => complete(fresh, &named, previous),
            None => fresh,
        };
        Loaded { settings, fingerprint }
    }
}

/// What is good, the objects that were named, and the sign of the files.
fn read(sources: &Sources) -> (Settings, Vec<ObjectName>, Fingerprint) {
    let files = Files::read(sources);
    let fingerprint = files.fingerprint();
    let mut mistakes = Mistakes::default();
    let mut objects = Objects::default();
    for (file, content) in files.config {
        match content {
            Ok(bytes) => objects.read(&file, &bytes, &mut mistakes),
            Err(error) => {
                mistakes.note_file(file, format!("failed to read it: {error}; check the path and its permissions"));
            }
        }
    }
    match files.issuer {
        Some(Ok(bytes)) => objects.issuer = Some(String::from_utf8_lossy(&bytes).into_owned()),
        Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => {
            mistakes.note_file(ISSUER, format!("failed to read it: {error}; check the path and its permissions"));
        }
        _ => {}
    }
    let secrets = readable(files.secrets, &mut mistakes);
    let settings = settings(&objects, &secrets, sources.main_port, mistakes);
    (settings, objects.named, fingerprint)
}

impl Sources {
    /// The sign of the files as they are now. Costs reading them; Kubernetes swaps a symlink, so times and sizes say nothing.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Files::read(self).fingerprint()
    }
}

type Content = io::Result<Vec<u8>>;

/// All input, read once, so that settings and fingerprint speak of the same bytes.
struct Files {
    config: Vec<(String, Content)>,
    /// Only in a folder.
    issuer: Option<Content>,
    secrets: Option<Vec<(String, Content)>>,
}

impl Files {
    fn read(sources: &Sources) -> Self {
        let config = match &sources.config {
            None => vec![("built-in configuration".to_owned(), Ok(BUILT_IN.as_bytes().to_vec()))],
            Some(path) if path.is_dir() => folder(path, |name| {
                let extension = Path::new(name).extension();
                name != ISSUER && extension.is_some_and(|it| it == "yaml" || it == "yml" || it == "json")
            })
            .into_iter()
            .map(|(name, content)| (path.join(name).display().to_string(), content))
            .collect(),
            Some(path) => vec![(path.display().to_string(), fs::read(path))],
        };
        let folder_of_objects = sources.config.as_deref().filter(|path| path.is_dir());
        let issuer = folder_of_objects.map(|path| fs::read(path.join(ISSUER)));
        Self { config, issuer, secrets: sources.secrets.as_deref().map(|path| folder(path, |name| name.contains('_'))) }
    }

    fn fingerprint(&self) -> Fingerprint {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        let mut field = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_be_bytes());
            hasher.update(bytes);
        };
        let issuer = self.issuer.iter().map(|content| (ISSUER, content));
        let files = self.config.iter().chain(self.secrets.iter().flatten());
        for (name, content) in files.map(|(name, content)| (name.as_str(), content)).chain(issuer) {
            field(name.as_bytes());
            match content {
                Ok(bytes) => field(bytes),
                Err(error) => field(error.to_string().as_bytes()),
            }
        }
        Fingerprint(hasher.finish())
    }
}

/// The wanted files of a folder, sorted by name. Hidden names are left out (Kubernetes keeps `..data` there), and so are folders.
/// A folder that cannot be read counts as one unreadable file.
fn folder(path: &Path, wanted: impl Fn(&str) -> bool) -> Vec<(String, Content)> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) => return vec![(path.display().to_string(), Err(error))],
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.') && wanted(name) && !path.join(name).is_dir())
        .collect();
    names.sort_unstable();
    names.into_iter().map(|name| (name.clone(), fs::read(path.join(name)))).collect()
}

fn readable(secrets: Option<Vec<(String, Content)>>, mistakes: &mut Mistakes) -> Secrets {
    Secrets(secrets.map(|files| {
        let mut good = BTreeMap::new();
        for (name, content) in files {
            match content {
                Ok(bytes) => drop(good.insert(name, SecretBytes(bytes))),
                Err(error) => mistakes.note_file(
                    name,
                    format!(
                        "failed to read it from the folder of Secrets: {error}; check the path and its permissions"
                    ),
                ),
            }
        }
        good
    }))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use std::os::unix::fs::symlink;

    use super::*;

    const MIRROR: &str = "{apiVersion: entrepot.dev/v1alpha1, kind: RegistryMirror, metadata: {name: NAME}, spec: {upstream: {url: 'https://NAME.example.com'}}}";

    fn mirror(name: &str) -> String {
        MIRROR.replace("NAME", name)
    }

    fn names(sources: &Sources) -> Vec<String> {
        Settings::load(sources).unwrap().settings.mirrors.iter().map(|mirror| mirror.name.to_string()).collect()
    }

    #[test]
    fn told_nothing_it_mirrors_docker_hub() {
        let settings = Settings::load(&Sources::default()).unwrap().settings;
        assert_eq!(settings.mirrors.len(), 1);
        assert_eq!(settings.mirrors[0].registry.as_str(), "docker.io");
        assert_eq!(settings.mirrors[0].upstream.url.as_str(), "https://registry-1.docker.io/");
        assert_eq!(settings.server.default_repository.unwrap().as_str(), "docker-hub");
    }

    #[test]
    fn a_folder_is_read_as_kubernetes_mounts_it() {
        let root = tempfile::tempdir().unwrap();
        let version = root.path().join("..2026");
        fs::create_dir(&version).unwrap();
        symlink("..2026", root.path().join("..data")).unwrap();
        for (file, text) in [
            ("b.yaml", format!("---\n{}\n---\n---\n{}\n", mirror("b"), mirror("c"))),
            ("a.json", mirror("a").replace('\'', "\"")),
            ("d.yml", mirror("d")),
            ("notes.txt", "not: [yaml".to_owned()),
        ] {
            fs::write(version.join(file), text).unwrap();
            symlink(Path::new("..data").join(file), root.path().join(file)).unwrap();
        }
        fs::create_dir(root.path().join("folder.yaml")).unwrap();
        let sources = Sources { config: Some(root.path().to_owned()), ..Sources::default() };
        assert_eq!(names(&sources), ["a", "b", "c", "d"]);

        let before = Settings::load(&sources).unwrap().fingerprint;
        assert_eq!(before, sources.fingerprint());
        fs::write(version.join("d.yml"), mirror("e")).unwrap();
        assert_ne!(before, sources.fingerprint());
    }

    #[test]
    fn the_issuer_of_service_accounts_stands_beside_the_objects() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("a.yaml"), mirror("a")).unwrap();
        let server = "{apiVersion: entrepot.dev/v1alpha1, kind: CacheServer, metadata: {name: default}, spec: {auth: {serviceAccounts: true}}}";
        fs::write(root.path().join("server.yaml"), server).unwrap();
        let sources = Sources { config: Some(root.path().to_owned()), ..Sources::default() };
        let refused = Settings::load(&sources).unwrap_err().to_string();
        assert!(refused.contains("spec.auth.serviceAccounts: only works in a cluster"), "{refused}");
        let before = sources.fingerprint();
        fs::write(root.path().join(ISSUER), "{}").unwrap();
        assert_ne!(before, sources.fingerprint());
        let refused = Settings::load(&sources).unwrap_err().to_string();
        assert!(refused.contains("spec.auth.serviceAccounts: must be JSON with issuer and jwks"), "{refused}");
        let jwk = r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;
        let text = format!(r#"{{"issuer": "https://kubernetes.default.svc", "jwks": {{"keys": [{jwk}]}}}}"#);
        fs::write(root.path().join(ISSUER), text).unwrap();
        assert!(Settings::load(&sources).unwrap().settings.server.auth.issuer.is_some());
    }

    #[test]
    fn a_changed_secret_changes_the_fingerprint() {
        let root = tempfile::tempdir().unwrap();
        let sources = Sources { secrets: Some(root.path().to_owned()), ..Sources::default() };
        let before = sources.fingerprint();
        fs::write(root.path().join("s_password"), "x").unwrap();
        let between = sources.fingerprint();
        fs::write(root.path().join("s_password"), "y").unwrap();
        assert!(before != between && between != sources.fingerprint());
    }

    #[test]
    fn what_cannot_be_read_is_a_mistake() {
        let sources = Sources {
            config: Some("/nonexistent/config.yaml".into()),
            secrets: Some("/nonexistent/secrets".into()),
            ..Sources::default()
        };
        let text = Settings::load(&sources).unwrap_err().to_string();
        assert!(text.contains("/nonexistent/config.yaml: failed to read it"), "{text}");
        assert!(text.contains("/nonexistent/secrets: failed to read it"), "{text}");
    }
}
