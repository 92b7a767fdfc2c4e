//! The canary image: an index, and for each processor a manifest, a config and one layer. Made once, always the same bytes.
//! Pure. May import `program` and `oci`.

use std::{io, sync::LazyLock};

use bytes::Bytes;
use serde_json::{Value, json};

use super::program::{Processor, elf};
use crate::oci::{Algorithm, Digest, Tag};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Where the program lies in the image.
const PROGRAM: &str = "exit";

/// The longest nonce.
const LONGEST_NONCE: usize = 64;

/// A piece of the image.
#[derive(Clone, Debug)]
pub struct Content {
    /// What it is.
    pub media_type: &'static str,
    /// Its digest.
    pub digest: Digest,
    /// Its bytes.
    pub bytes: Bytes,
}

impl Content {
    fn new(media_type: &'static str, bytes: Vec<u8>) -> Self {
        Self { media_type, digest: Digest::of(Algorithm::Sha256, &bytes), bytes: bytes.into() }
    }

    fn of_json(media_type: &'static str, value: &Value) -> Self {
        Self::new(media_type, value.to_string().into_bytes())
    }

    fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest.as_str(), "size": self.bytes.len()})
    }
}

/// The canary image.
#[derive(Debug)]
pub struct Image {
    index: Content,
    manifests: Vec<Content>,
    blobs: Vec<Content>,
}

/// The image, made when it is first asked for.
pub static CANARY: LazyLock<Image> = LazyLock::new(Image::make);

impl Image {
    fn make() -> Self {
        let (mut manifests, mut blobs, mut entries) = (Vec::new(), Vec::new(), Vec::new());
        for processor in Processor::ALL {
            let layer = Content::new(LAYER, layer(processor));
            let config = Content::of_json(
                CONFIG,
                &json!({
                    "architecture": processor.as_str(),
                    "os": "linux",
                    "config": {"Entrypoint": [format!("/{PROGRAM}")], "User": "65532:65532", "WorkingDir": "/"},
                    "rootfs": {"type": "layers", "diff_ids": [layer.digest.as_str()]},
                }),
            );
            let manifest = Content::of_json(
                MANIFEST,
                &json!({
                    "schemaVersion": 2,
                    "mediaType": MANIFEST,
                    "config": config.descriptor(),
                    "layers": [layer.descriptor()],
                }),
            );
            let mut entry = manifest.descriptor();
            entry["platform"] = json!({"architecture": processor.as_str(), "os": "linux"});
            entries.push(entry);
            manifests.push(manifest);
            blobs.extend([config, layer]);
        }
        let index = Content::of_json(INDEX, &json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}));
        Self { index, manifests, blobs }
    }

    /// What every tag stands for.
    #[must_use]
    pub const fn index(&self) -> &Content {
        &self.index
    }

    /// The index or a manifest of one processor.
    #[must_use]
    pub fn manifest(&self, digest: &Digest) -> Option<&Content> {
        std::iter::once(&self.index).chain(&self.manifests).find(|content| content.digest == *digest)
    }

    /// A config or a layer.
    #[must_use]
    pub fn blob(&self, digest: &Digest) -> Option<&Content> {
        self.blobs.iter().find(|content| content.digest == *digest)
    }
}

/// Whether a tag is one of the canary's: 1 to 64 of `a-z` and `0-9`.
#[must_use]
pub fn is_nonce(tag: &Tag) -> bool {
    let tag = tag.as_str();
    tag.len() <= LONGEST_NONCE && tag.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

/// A tar archive with the program alone.
fn layer(processor: Processor) -> Vec<u8> {
    let program = elf(processor);
    let archived = || -> io::Result<Vec<u8>> {
        let mut header = tar::Header::new_ustar();
        header.set_path(PROGRAM)?;
        header.set_size(program.len() as u64);
        header.set_mode(0o755);
        header.set_cksum();
        let mut archive = tar::Builder::new(Vec::new());
        archive.append(&header, program.as_slice())?;
        archive.into_inner()
    };
    // Writing to memory does not fail, and the path is short.
    archived().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use std::{io::Read, os::unix::fs::PermissionsExt, process::Command};

    use super::*;
    use crate::oci::Manifest;

    fn json(content: &Content) -> Value {
        serde_json::from_slice(&content.bytes).unwrap()
    }

    fn digest(value: &Value) -> Digest {
        value["digest"].as_str().unwrap().parse().unwrap()
    }

    /// The program of a processor, found as a runtime finds it: from the index down, by digest.
    fn program(processor: Processor) -> Vec<u8> {
        let index = json(CANARY.index());
        let entries = index["manifests"].as_array().unwrap();
        let entry = entries.iter().find(|entry| entry["platform"]["architecture"] == processor.as_str()).unwrap();
        let manifest = CANARY.manifest(&digest(entry)).unwrap();
        assert_eq!(entry["size"], manifest.bytes.len());
        let manifest = json(manifest);
        let config = json(CANARY.blob(&digest(&manifest["config"])).unwrap());
        let layer = CANARY.blob(&digest(&manifest["layers"][0])).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], layer.digest.as_str());
        assert_eq!(config["config"]["Entrypoint"][0], "/exit");
        assert_eq!(config["architecture"], processor.as_str());
        let mut archive = tar::Archive::new(layer.bytes.as_ref());
        let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
        assert_eq!((entry.path().unwrap().to_str().unwrap(), entry.header().mode().unwrap()), ("exit", 0o755));
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn everything_in_it_hashes_to_its_digest_and_parses() {
        for content in CANARY.manifests.iter().chain(&CANARY.blobs).chain([&CANARY.index]) {
            assert_eq!(content.digest, Digest::of(Algorithm::Sha256, &content.bytes));
        }
        assert!(CANARY.manifests.iter().chain([&CANARY.index]).all(|content| Manifest::parse(&content.bytes).is_ok()));
    }

    #[test]
    fn the_program_of_this_machine_exits_with_0() {
        let here = if cfg!(target_arch = "aarch64") { Processor::Arm64 } else { Processor::Amd64 };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("exit");
        std::fs::write(&path, program(here)).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let status = Command::new(&path).env_clear().status().unwrap();
        assert_eq!(status.code(), Some(0), "{status}");
    }

    #[test]
    fn both_programs_are_of_their_machine() {
        for (processor, machine) in [(Processor::Amd64, 62), (Processor::Arm64, 183)] {
            let program = program(processor);
            assert_eq!((&program[..4], program[18], program.len() < 256), (b"\x7fELF".as_slice(), machine, true));
        }
    }

    #[test]
    fn a_nonce_is_short_and_plain() {
        for (text, good) in [("a", true), ("0z9", true), ("A", false), ("a-b", false), ("a.b", false)] {
            assert_eq!(is_nonce(&text.parse().unwrap()), good, "{text}");
        }
        assert!(is_nonce(&"x".repeat(64).parse().unwrap()) && !is_nonce(&"x".repeat(65).parse().unwrap()));
    }
}
