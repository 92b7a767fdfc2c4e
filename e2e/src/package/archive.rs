//! A layout as one file with a name in it, which containerd imports.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Writes the layout in `folder` to the file `target`, for import as `reference` (`registry/name:tag`).
pub fn write(folder: &Path, reference: &str, target: &Path) -> Result<()> {
    let file = File::create(target).with_context(|| format!("cannot write {}", target.display()))?;
    let mut tar = tar::Builder::new(BufWriter::new(file));
    for name in ["oci-layout", "blobs"] {
        let path = folder.join(name);
        let added =
            if path.is_dir() { tar.append_dir_all(name, &path) } else { tar.append_path_with_name(&path, name) };
        added.with_context(|| format!("cannot pack {}", path.display()))?;
    }
    let index = serde_json::to_vec(&named(folder, reference)?)?;
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(index.len() as u64);
    tar.append_data(&mut header, "index.json", index.as_slice()).context("cannot pack an index")?;
    tar.into_inner()
        .and_then(|file| file.into_inner().map_err(std::io::IntoInnerError::into_error))
        .map(drop)
        .with_context(|| format!("cannot write {}", target.display()))
}

/// The index of a layout, its image under this name.
fn named(folder: &Path, reference: &str) -> Result<Value> {
    let path = folder.join("index.json");
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut index: Value = serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", path.display()))?;
    index["manifests"][0]["annotations"] = json!({ "io.containerd.image.name": reference });
    Ok(index)
}
