//! Names in certs.d: which directory the runtime reads for a registry, and which files in it are ours. Pure.

/// The file in a directory that says where the runtime asks.
pub const HOSTS: &str = "hosts.toml";
/// What names of our files and folders begin with while they are being made or removed; nothing looks them up.
pub const TEMPORARY: &str = ".entrepot-";
/// The directory for registries that have none of their own.
pub const DEFAULT: &str = "_default";

/// Directories that the runtime reads for exactly this registry; the first that exists wins.
#[must_use]
pub fn exact(registry: &str) -> Vec<String> {
    match registry.split_once(':') {
        Some((host, port)) => vec![format!("{host}_{port}_"), registry.to_owned()],
        None => vec![registry.to_owned()],
    }
}

/// Directories that the runtime reads for this registry and others, while there is no exact one.
#[must_use]
pub fn shared(registry: &str) -> Vec<String> {
    let host = registry.split_once(':').map(|(host, _)| host.to_owned());
    host.into_iter().chain([DEFAULT.to_owned()]).collect()
}

/// The directory that we make where there is no exact one.
#[must_use]
pub fn preferred(registry: &str) -> String {
    exact(registry).swap_remove(0)
}

/// The name of the file of our certificates with this content: it changes whenever they do, so that no file that is
/// in use is ever changed. No certificate suffix: the runtime would take it for one in a directory without hosts.toml.
#[must_use]
pub fn authority(content: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, content.as_bytes());
    format!("entrepot-{}.pem", hex::encode(&digest.as_ref()[..8]))
}

/// Whether a file in a directory is one of our certificates.
#[must_use]
pub fn is_authority(name: &str) -> bool {
    let middle = name.strip_prefix("entrepot-").and_then(|rest| rest.strip_suffix(".pem"));
    middle.is_some_and(|middle| middle.len() == 16 && middle.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_spelled_in_two_ways_and_the_bare_host_is_shared() {
        assert_eq!(exact("reg.test:5000"), ["reg.test_5000_", "reg.test:5000"]);
        assert_eq!(shared("reg.test:5000"), ["reg.test", "_default"]);
        assert_eq!(exact("docker.io"), ["docker.io"]);
        assert_eq!(shared("docker.io"), ["_default"]);
        assert_eq!(preferred("reg.test:5000"), "reg.test_5000_");
    }

    #[test]
    fn certificates_of_ours_are_known_by_name_and_never_look_like_docker_s() {
        let name = authority("x");
        assert!(is_authority(&name));
        assert!(!is_authority("entrepot-mine.pem") && !is_authority("ca.crt"));
        assert_ne!(name, authority("y"));
    }
}
