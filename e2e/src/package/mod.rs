//! Our own images, made without an engine: a static program in an otherwise empty image, the same bytes every time.

pub mod archive;
pub mod digest;
pub mod layout;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use flate2::Compression;
use serde_json::json;

use crate::command::run;
use layout::{Descriptor, Layout, TAG};

/// No image of ours is larger.
pub const MAX_BYTES: u64 = 20_000_000;
/// The user and group that our programs run as.
const NOBODY: u64 = 65_532;

/// An image of ours: one program.
#[derive(Debug, Clone, Copy)]
pub struct Product {
    /// The program's name, also the image's.
    pub name: &'static str,
    /// The arguments that make it serve in a container.
    arguments: &'static [&'static str],
    /// The port that it serves, if it serves one.
    port: Option<&'static str>,
    /// The folder that it keeps data in, if it keeps any.
    data: Option<&'static str>,
}

/// Every image of ours.
pub const PRODUCTS: [Product; 2] = [
    Product {
        name: "cache-server",
        arguments: &["--listen", "0.0.0.0:5000", "--data", "/data"],
        port: Some("5000/tcp"),
        data: Some("/data"),
    },
    Product { name: "operator", arguments: &[], port: None, data: None },
];

/// What keeps a pod's namespaces alive in the tests' cluster; it is not shipped.
pub const PAUSE: Product = Product { name: "pause", arguments: &[], port: None, data: None };

/// Where `cargo e2e images build` writes the layouts: beside the programs.
pub fn output_folder() -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    Ok(own.with_file_name("images"))
}

/// Writes a layout of every image into `folder`.
pub fn build_all(folder: &Path) -> Result<()> {
    for product in PRODUCTS {
        let layout = folder.join(product.name);
        let image = build(&product, &beside_this_program(product.name)?, &layout)?;
        let size = size_of(&layout)?;
        println!("{} {} ({size} bytes) in {}", product.name, image.digest(), layout.display());
    }
    Ok(())
}

/// Pushes the layouts in `folder` to `registry`, which may end in a path.
pub fn push_all(folder: &Path, registry: &str) -> Result<()> {
    for product in PRODUCTS {
        let from = format!("oci:{}:{TAG}", folder.join(product.name).display());
        let version = env!("CARGO_PKG_VERSION");
        let to = format!("docker://{registry}/{}:{version}", product.name);
        run("skopeo", ["--insecure-policy", "copy", &from, &to])
            .context("log in with `skopeo login` first if the registry asks for it")?;
        println!("pushed {to}");
    }
    Ok(())
}

/// Writes the image of `product` with this `program` as a layout; an older one in its place goes.
pub fn build(product: &Product, program: &Path, folder: &Path) -> Result<Descriptor> {
    let bytes = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let layout = Layout::create(folder)?;
    let layer = layout.add_layer(Compression::best(), |out| write_rootfs(out, product, &bytes))?;
    let mut config = json!({
        "User": format!("{NOBODY}:{NOBODY}"),
        "Entrypoint": [format!("/{}", product.name)],
        "Cmd": product.arguments,
        "WorkingDir": "/",
    });
    if let Some(port) = product.port {
        config["ExposedPorts"] = json!({ port: {} });
    }
    if let Some(data) = product.data {
        config["Volumes"] = json!({ data: {} });
    }
    let image = layout.add_image(architecture(), &config, &[layer])?;
    layout.finish(&image)?;
    Ok(image)
}

/// The bytes of all blobs of a layout.
pub fn size_of(layout: &Path) -> Result<u64> {
    let blobs = layout.join("blobs/sha256");
    fs::read_dir(&blobs)
        .with_context(|| format!("cannot list {}", blobs.display()))?
        .map(|entry| Ok(entry?.metadata()?.len()))
        .sum()
}

/// A program that cargo built into the folder of this one.
pub fn beside_this_program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    let program = own.with_file_name(name);
    ensure!(program.is_file(), "{} is not there; `cargo build --release -p {name}` makes it", program.display());
    Ok(program)
}

/// The program, its data folder if it has one, and a place for temporary files; nothing else.
fn write_rootfs(out: &mut dyn Write, product: &Product, program: &[u8]) -> Result<()> {
    let mut tar = tar::Builder::new(out);
    let data = product.data.map(|data| (data, 0o755, NOBODY, &[][..]));
    let entries = [(product.name, 0o755, 0, program)].into_iter().chain(data).chain([("tmp", 0o1777, 0, &[][..])]);
    for (path, mode, owner, content) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(if content.is_empty() { tar::EntryType::Directory } else { tar::EntryType::Regular });
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path.trim_start_matches('/'), content)
            .with_context(|| format!("cannot add {path} to the image"))?;
    }
    tar.into_inner().map(drop).context("cannot end the layer")
}

/// This machine's architecture as OCI names it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
