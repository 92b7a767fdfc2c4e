//! containerd as a node's administrator configures it, and its images.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::engine::Major;

/// What keeps a pod's namespaces alive.
pub const PAUSE: &str = "entrepot.test/pause:1";
/// containerd's default configuration file.
pub const CONFIG: &str = "/etc/containerd/config.toml";
/// The folder of `hosts.toml` files that [`configuration`] names by default.
pub const CERTS_D: &str = "/etc/containerd/certs.d";

/// A `config.toml`; `config_path` is what it says about folders of `hosts.toml` files (nothing is containerd's default).
#[must_use]
pub fn configuration(major: Major, pod_network: &Path, config_path: Option<&str>) -> String {
    let pod_network = pod_network.display();
    let images = match major {
        Major::One => "io.containerd.grpc.v1.cri",
        Major::Two => "io.containerd.cri.v1.images",
    };
    let registry = config_path
        .map_or_else(String::new, |path| format!("[plugins.\"{images}\".registry]\nconfig_path = \"{path}\"\n"));
    match major {
        Major::One => format!(
            "version = 2
[plugins.\"{images}\"]
sandbox_image = \"{PAUSE}\"
image_pull_progress_timeout = \"30s\"
restrict_oom_score_adj = true
[plugins.\"{images}\".cni]
bin_dir = \"{pod_network}\"
{registry}"
        ),
        Major::Two => format!(
            "version = 3
[plugins.\"{images}\"]
image_pull_progress_timeout = \"30s\"
[plugins.\"{images}\".pinned_images]
sandbox = \"{PAUSE}\"
[plugins.\"io.containerd.cri.v1.runtime\"]
restrict_oom_score_adj = true
[plugins.\"io.containerd.cri.v1.runtime\".cni]
bin_dirs = [\"{pod_network}\"]
{registry}"
        ),
    }
}

/// Names of images as the CRI lists them, and a file to import each from.
#[derive(Debug, Clone)]
pub struct Own {
    /// `registry/name:tag`.
    pub reference: String,
    /// The archive.
    pub archive: PathBuf,
}

/// Reads what our CRI client lists: the names of images, without ids and digests.
pub(super) fn names(listing: &str) -> Result<Vec<String>> {
    let names: Vec<String> =
        listing.lines().filter(|line| !line.starts_with("sha256:") && !line.contains('@')).map(str::to_owned).collect();
    if names.is_empty() {
        bail!("the runtime has no image at all, not even the pause image:\n{listing}");
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_read_for_names_alone() {
        let listing = "sha256:11\nentrepot.test/pause:1\nentrepot.test/pause@sha256:22\n";
        assert_eq!(names(listing).ok(), Some(vec![PAUSE.to_owned()]));
        assert!(names("").is_err());
    }

    #[test]
    fn no_config_path_is_no_line_about_it() {
        for major in [Major::One, Major::Two] {
            let stock = configuration(major, Path::new("/cni"), None);
            assert!(!stock.contains("config_path"), "{stock}");
            let ours = configuration(major, Path::new("/cni"), Some(CERTS_D));
            assert!(ours.ends_with("config_path = \"/etc/containerd/certs.d\"\n"), "{ours}");
        }
    }
}
