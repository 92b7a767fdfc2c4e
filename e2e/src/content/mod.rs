//! The images that the upstream serves: real ones, made from Debian packages without an engine, and kept between runs.

pub mod one_file;
mod rootfs;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use flate2::Compression;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

use crate::command::run;
use crate::install::unpacked::machine_mirror;
use crate::package::layout::{Layer, Layout, TAG};

/// Changes when a recipe changes; what older recipes made is removed.
const RECIPE: &str = "2";
/// How many layers `library/sixty` has.
const SMALL_LAYERS: u32 = 60;
/// The size of the one layer of `library/big`.
const BIG_BYTES: u64 = 1 << 30;
/// Real files compress well enough at a low level, and images are made often.
const QUICK: Compression = Compression::new(1);

/// An image of the upstream.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its name there: `library/nginx`; its tag is `latest`.
    pub name: String,
    /// The OCI layout that holds it.
    pub layout: PathBuf,
}

impl Image {
    /// As a user of Docker Hub writes it.
    #[must_use]
    pub fn reference(&self) -> String {
        format!("docker.io/{}:{TAG}", self.name)
    }

    /// Pushes it, with every platform, to a registry at `HOST:PORT` that speaks plain HTTP.
    pub fn push(&self, endpoint: &str) -> Result<()> {
        let from = format!("oci:{}:{TAG}", self.layout.display());
        let to = format!("docker://{endpoint}/{}:{TAG}", self.name);
        run("skopeo", ["--insecure-policy", "copy", "--all", "--quiet", "--dest-tls-verify=false", &from, &to])
    }

    /// Where its index or manifest is, and its digest.
    pub fn root(&self) -> Result<(PathBuf, String)> {
        let index = document_at(&self.layout.join("index.json"))?;
        let digest = index["manifests"][0]["digest"].as_str().context("an empty layout")?;
        Ok((self.blob(digest), digest.to_owned()))
    }

    /// Where a blob is.
    #[must_use]
    pub fn blob(&self, digest: &str) -> PathBuf {
        self.layout.join("blobs").join(digest.replace(':', "/"))
    }

    /// The blobs (configs and layers) that a client of this machine's platform pulls: digest and size.
    pub fn blobs(&self) -> Result<Vec<(String, u64)>> {
        let index = document_at(&self.layout.join("index.json"))?;
        let mut manifest = self.document(&index["manifests"][0]["digest"])?;
        // An index lists this machine's platform first.
        if manifest["manifests"].is_array() {
            manifest = self.document(&manifest["manifests"][0]["digest"])?;
        }
        let Some(layers) = manifest["layers"].as_array() else {
            bail!("the manifest of {} lists no layers", self.name);
        };
        std::iter::once(&manifest["config"])
            .chain(layers)
            .map(|blob| match (blob["digest"].as_str(), blob["size"].as_u64()) {
                (Some(digest), Some(size)) => Ok((digest.to_owned(), size)),
                _ => bail!("the manifest of {} has a descriptor without digest or size", self.name),
            })
            .collect()
    }

    fn document(&self, digest: &Value) -> Result<Value> {
        document_at(&self.blob(digest.as_str().unwrap_or_default()))
    }
}

fn document_at(path: &Path) -> Result<Value> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", path.display()))
}

/// The images of a run.
#[derive(Debug, Clone)]
pub struct Images {
    /// nginx on Debian, behind an index of two platforms.
    pub nginx: Image,
    /// `MariaDB` on Debian, under the name that users know.
    pub mysql: Image,
    /// 60 small layers.
    pub sixty: Image,
    /// One layer of 1 GiB that does not compress.
    pub big: Image,
}

impl Images {
    /// The images in the cache folder `cache`, which [`make`] put there.
    #[must_use]
    pub fn in_cache(cache: &Path) -> Self {
        let image = |name: &str| Image { name: format!("library/{name}"), layout: folder(cache).join(name) };
        Self { nginx: image("nginx"), mysql: image("mysql"), sixty: image("sixty"), big: image("big") }
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> [&Image; 4] {
        [&self.nginx, &self.mysql, &self.sixty, &self.big]
    }
}

fn folder(cache: &Path) -> PathBuf {
    cache.join("images").join(RECIPE)
}

/// Makes the images that are not in the cache folder.
pub fn make(cache: &Path) -> Result<Images> {
    let target = folder(cache);
    if !target.is_dir() {
        let parent = cache.join("images");
        remove(&parent)?;
        fs::create_dir_all(&parent).with_context(|| format!("cannot make {}", parent.display()))?;
        let fresh = tempfile::tempdir_in(&parent).context("cannot make a folder for images")?;
        make_debian(&fresh.path().join("roots"), fresh.path())?;
        make_layers(&fresh.path().join("sixty"), SMALL_LAYERS, 8_192)?;
        make_big(&fresh.path().join("big"))?;
        remove(&fresh.path().join("roots"))?;
        fs::rename(fresh.path(), &target).with_context(|| format!("cannot make {}", target.display()))?;
    }
    Ok(Images::in_cache(cache))
}

/// nginx and mysql: layers of their own on one Debian.
fn make_debian(roots: &Path, target: &Path) -> Result<()> {
    fs::create_dir_all(roots).with_context(|| format!("cannot make {}", roots.display()))?;
    let base = roots.join("base");
    rootfs::debootstrap(&machine_mirror()?, &base)?;
    make_nginx(&base, roots, &target.join("nginx"))?;
    make_mysql(&base, roots, &target.join("mysql"))
}

fn make_nginx(base: &Path, roots: &Path, target: &Path) -> Result<()> {
    let layout = Layout::create(target)?;
    let mut layers = debian_layers(&layout, base, &roots.join("nginx"), &["nginx-light"])?;
    layers.push(file_layer(&layout, "var/www/html/index.html", 0o644, b"nginx, pulled through Entrepot\n")?);
    let config = json!({ "Cmd": ["nginx", "-g", "daemon off;"], "ExposedPorts": { "80/tcp": {} } });
    let ours = layout.add_image("amd64", &config, &layers)?;
    let other = file_layer(&layout, "README", 0o644, b"stands for another platform\n")?;
    let other = layout.add_image("arm64", &json!({ "Cmd": ["/README"] }), &[other])?;
    layout.finish(&layout.add_index(&[("amd64", ours), ("arm64", other)])?)
}

fn make_mysql(base: &Path, roots: &Path, target: &Path) -> Result<()> {
    let layout = Layout::create(target)?;
    let mut layers = debian_layers(&layout, base, &roots.join("mysql"), &["mariadb-server"])?;
    // The service would make the folder of the default places.
    let open = b"[mariadbd]\nbind-address = 0.0.0.0\nsocket = /tmp/mysqld.sock\npid-file = /tmp/mysqld.pid\n";
    layers.push(file_layer(&layout, "etc/mysql/mariadb.conf.d/99-open.cnf", 0o644, open)?);
    let config = json!({ "Cmd": ["mariadbd", "--user=mysql"], "ExposedPorts": { "3306/tcp": {} } });
    layout.finish(&layout.add_image("amd64", &config, &layers)?)
}

/// Debian, then what the packages add to it.
fn debian_layers(layout: &Layout, base: &Path, root: &Path, packages: &[&str]) -> Result<Vec<Layer>> {
    let copied = rootfs::with_packages(base, root, packages)?;
    let layers = vec![
        layout.add_layer(QUICK, |out| rootfs::pack(base, None, out))?,
        layout.add_layer(QUICK, |out| rootfs::pack(root, Some(copied), out))?,
    ];
    remove(root)?;
    Ok(layers)
}

/// Makes an image of so many layers, with one file of so many bytes each.
pub fn make_layers(target: &Path, count: u32, bytes: usize) -> Result<()> {
    let layout = Layout::create(target)?;
    let layers = (0..count)
        .map(|number| {
            let mut content = vec![0; bytes];
            StdRng::seed_from_u64(u64::from(number)).fill_bytes(&mut content);
            file_layer(&layout, &format!("layers/{number:02}"), 0o644, &content)
        })
        .collect::<Result<Vec<_>>>()?;
    layout.finish(&layout.add_image("amd64", &json!({ "Cmd": ["/layers/00"] }), &layers)?)
}

fn make_big(target: &Path) -> Result<()> {
    let layout = Layout::create(target)?;
    let layer = layout.add_layer(Compression::none(), |out| {
        let mut tar = tar::Builder::new(out);
        let noise = std::io::Read::take(Noise(StdRng::seed_from_u64(1)), BIG_BYTES);
        tar.append_data(&mut header(BIG_BYTES, 0o644), "big", noise)?;
        tar.into_inner().map(drop).context("cannot end a layer")
    })?;
    layout.finish(&layout.add_image("amd64", &json!({ "Cmd": ["/big"] }), &[layer])?)
}

/// A layer of one file.
pub fn file_layer(layout: &Layout, path: &str, mode: u32, content: &[u8]) -> Result<Layer> {
    layout.add_layer(QUICK, |out: &mut dyn Write| {
        let mut tar = tar::Builder::new(out);
        tar.append_data(&mut header(content.len() as u64, mode), path, content)?;
        tar.into_inner().map(drop).context("cannot end a layer")
    })
}

fn header(size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(0);
    header
}

/// Bytes without end, from a seed.
struct Noise(StdRng);

impl std::io::Read for Noise {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.fill_bytes(buffer);
        Ok(buffer.len())
    }
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}
