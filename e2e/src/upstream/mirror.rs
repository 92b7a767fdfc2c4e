//! How a cache server is told about these upstreams: its configuration in YAML, with a tenth of the default limits,
//! so that a case that waits for one of them takes seconds.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use super::{Upstream, sites::HUB, users::User};
use crate::lab::CacheServerSetup;

/// The header limit of a quick mirror.
pub const HEADER: Duration = Duration::from_secs(1);
/// The header limit of a quick mirror where a cached copy could be served.
pub const HEADER_WITH_COPY: Duration = Duration::from_millis(200);
/// The time over which a quick mirror takes the rate of a transfer.
pub const STALL: Duration = Duration::from_secs(3);
/// After this a client that takes nothing is dropped.
pub const WRITE_STALL: Duration = Duration::from_secs(6);
/// After this half a request header is given up.
pub const REQUEST_HEADER: Duration = Duration::from_secs(1);

static NEXT_PORT: AtomicU16 = AtomicU16::new(6100);

/// The configuration of one cache server, under construction.
#[derive(Clone, Debug)]
pub struct Configuration {
    ca: String,
    max_size: Option<String>,
    is_quick: bool,
    mirrors: Vec<Mirror>,
}

/// One mirror of it.
#[derive(Clone, Debug)]
pub struct Mirror {
    name: String,
    host: String,
    registry: Option<String>,
    user: Option<User>,
    freshness: String,
    breaker_failures: u32,
}

impl Mirror {
    /// The mirror of Docker Hub under the name of the default repository.
    #[must_use]
    pub fn hub() -> Self {
        Self::of("docker-hub", HUB)
    }

    /// A mirror by this name of the site with this host name.
    #[must_use]
    pub fn of(name: &str, host: &str) -> Self {
        Self {
            name: name.to_owned(),
            host: host.to_owned(),
            registry: None,
            user: None,
            freshness: "notFound: 6s, denied: 6s, brokenBlob: 3s".to_owned(),
            breaker_failures: 3,
        }
    }

    /// Stands for this registry.
    #[must_use]
    pub fn registry(mut self, registry: &str) -> Self {
        self.registry = Some(registry.to_owned());
        self
    }

    /// Asks the upstream as this user.
    #[must_use]
    pub const fn with_credentials_of(mut self, user: User) -> Self {
        self.user = Some(user);
        self
    }

    /// Asks the upstream about a tag each time.
    #[must_use]
    pub fn always_revalidating(mut self) -> Self {
        self.freshness.push_str(", tags: 0s");
        self
    }

    /// The breaker opens after so many failures.
    #[must_use]
    pub const fn breaker(mut self, failures: u32) -> Self {
        self.breaker_failures = failures;
        self
    }

    fn yaml(&self, ca: &str, is_quick: bool) -> String {
        let mut text = format!(
            "---\napiVersion: entrepot.dev/v1alpha1\nkind: RegistryMirror\nmetadata: {{name: {}}}\nspec:\n  anonymousPull: true\n  upstream:\n    url: https://{}\n",
            self.name, self.host
        );
        if let Some(registry) = &self.registry {
            let _ = writeln!(text, "    registry: {registry}");
        }
        if self.user.is_some() {
            let _ = writeln!(text, "    credentialsSecretRef: {{name: {}}}", self.name);
        }
        if is_quick {
            let _ = write!(
                text,
                "    limits: {{connect: 500ms, header: 1s, headerWithCopy: 200ms, stall: {{window: 3s}}}}\n    breaker: {{failures: {}, minOpen: 1s, maxOpen: 10s}}\n",
                self.breaker_failures
            );
        }
        text.push_str("    caBundle: |\n");
        for line in ca.lines() {
            let _ = writeln!(text, "      {line}");
        }
        if is_quick {
            let _ = writeln!(text, "  freshness: {{{}}}", self.freshness);
        }
        text
    }
}

impl Configuration {
    /// A server with a tenth of the default limits that trusts the upstreams.
    #[must_use]
    pub fn quick(upstream: &Upstream) -> Self {
        Self { ca: upstream.ca_pem().to_owned(), max_size: None, is_quick: true, mirrors: Vec::new() }
    }

    /// A server with the default limits that trusts the upstreams.
    #[must_use]
    pub fn with_defaults(upstream: &Upstream) -> Self {
        Self { is_quick: false, ..Self::quick(upstream) }
    }

    /// With one more mirror.
    #[must_use]
    pub fn mirror(mut self, mirror: Mirror) -> Self {
        self.mirrors.push(mirror);
        self
    }

    /// With a bound on the store.
    #[must_use]
    pub fn max_size(mut self, size: &str) -> Self {
        self.max_size = Some(size.to_owned());
        self
    }

    /// The objects in YAML; the first mirror is the default repository.
    #[must_use]
    pub fn yaml(&self) -> String {
        let mut text =
            "apiVersion: entrepot.dev/v1alpha1\nkind: CacheServer\nmetadata: {name: default}\nspec:\n".to_owned();
        if let Some(mirror) = self.mirrors.first() {
            let _ = writeln!(text, "  defaultRepository: {}", mirror.name);
        }
        if let Some(size) = &self.max_size {
            let _ = writeln!(text, "  maxSize: {size}");
        }
        if self.is_quick {
            text.push_str("  limits: {requestHeader: 1s, writeStall: 6s, drain: 3s}\n");
        }
        for mirror in &self.mirrors {
            text.push_str(&mirror.yaml(&self.ca, self.is_quick));
        }
        text
    }

    /// What starts a server by this name with this configuration, on ports of its own.
    pub fn setup(&self, name: &str) -> CacheServerSetup {
        let port = NEXT_PORT.fetch_add(2, Ordering::Relaxed);
        let mut setup = CacheServerSetup::new(name, port, &self.yaml());
        for mirror in &self.mirrors {
            if let Some(user) = mirror.user {
                setup = setup
                    .secret(&format!("{}_username", mirror.name), user.name)
                    .secret(&format!("{}_password", mirror.name), user.password);
            }
        }
        setup
    }
}
