//! The configuration of a cache server with repositories of all kinds, as its objects, and the users that it knows.

use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::lab::CacheServerSetup;
use crate::upstream::Upstream;
use crate::upstream::users::User;

/// The Secret with the passwords of users.
const USERS: &str = "users";
/// The cheapest that bcrypt has: a guess costs nothing in a test.
const COST: u32 = 4;

/// Beside the ports of quick configurations.
static NEXT_PORT: AtomicU16 = AtomicU16::new(7000);

/// A configuration under construction. JSON is YAML.
#[derive(Debug, Clone)]
pub struct Objects {
    server: Value,
    others: Vec<Value>,
    secrets: Vec<(String, String)>,
    ca: String,
}

impl Objects {
    /// A server that trusts the upstreams; without logins, repositories or a default.
    #[must_use]
    pub fn new(upstream: &Upstream) -> Self {
        Self { server: json!({}), others: Vec::new(), secrets: Vec::new(), ca: upstream.ca_pem().to_owned() }
    }

    /// With users, each with a password, and what they may do.
    pub fn users(mut self, users: &[(String, String)], permissions: Value) -> Result<Self> {
        let lines = users.iter().map(|(user, password)| {
            let hash = bcrypt::hash(password, COST).with_context(|| format!("cannot hash the password of {user}"))?;
            Ok(format!("{user}:{hash}\n"))
        });
        self.secrets.push((format!("{USERS}_htpasswd"), lines.collect::<Result<Vec<_>>>()?.concat()));
        self.server["auth"]["htpasswdSecretRef"]["name"] = json!(USERS);
        self.server["auth"]["permissions"] = permissions;
        Ok(self)
    }

    /// With a field of the server.
    #[must_use]
    pub fn server(mut self, field: &str, value: Value) -> Self {
        self.server[field] = value;
        self
    }

    /// With a file of a Secret: `<secret>_<key>`.
    #[must_use]
    pub fn secret(mut self, file: &str, content: &str) -> Self {
        self.secrets.push((file.to_owned(), content.to_owned()));
        self
    }

    /// With a hosted repository.
    #[must_use]
    pub fn hosted(self, name: &str, spec: Value) -> Self {
        self.object("HostedRepository", name, spec)
    }

    /// With a group.
    #[must_use]
    pub fn group(self, name: &str, members: &[&str], mut spec: Value) -> Self {
        spec["members"] = json!(members);
        self.object("RepositoryGroup", name, spec)
    }

    /// With a mirror of the site with this host name, asked as `user`.
    #[must_use]
    pub fn mirror(mut self, name: &str, host: &str, user: Option<User>, mut spec: Value) -> Self {
        spec["upstream"]["url"] = json!(format!("https://{host}"));
        spec["upstream"]["caBundle"] = json!(self.ca);
        if let Some(user) = user {
            spec["upstream"]["credentialsSecretRef"] = json!({ "name": name });
            self =
                self.secret(&format!("{name}_username"), user.name).secret(&format!("{name}_password"), user.password);
        }
        self.object("RegistryMirror", name, spec)
    }

    fn object(mut self, kind: &str, name: &str, spec: Value) -> Self {
        self.others.push(object(kind, name, spec));
        self
    }

    /// The objects as a file.
    #[must_use]
    pub fn yaml(&self) -> String {
        let server = object("CacheServer", "default", self.server.clone());
        let texts: Vec<String> = std::iter::once(&server).chain(&self.others).map(Value::to_string).collect();
        texts.join("\n---\n")
    }

    /// What starts a server by this name with these objects, on ports of its own.
    #[must_use]
    pub fn setup(&self, name: &str) -> CacheServerSetup {
        let port = NEXT_PORT.fetch_add(2, Ordering::Relaxed);
        let setup = CacheServerSetup::new(name, port, &self.yaml());
        self.secrets.iter().fold(setup, |setup, (file, content)| setup.secret(file, content))
    }
}

fn object(kind: &str, name: &str, spec: Value) -> Value {
    let mut object = json!({ "apiVersion": "entrepot.dev/v1alpha1", "kind": kind, "metadata": { "name": name } });
    object["spec"] = spec;
    object
}

/// The password of a user of ours.
#[must_use]
pub fn password(user: &str) -> String {
    format!("canary-{user}-4e1b")
}

/// Users by their names.
#[must_use]
pub fn users(names: &[&str]) -> Vec<(String, String)> {
    names.iter().map(|name| ((*name).to_owned(), password(name))).collect()
}
