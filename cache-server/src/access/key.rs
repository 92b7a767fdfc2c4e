//! The key that signs tokens: a file in the data folder, so that tokens outlive the process. Does I/O. May import nothing of
//! ours.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

/// The name of the file.
const FILE: &str = "token-key";

/// The key of the data folder; made if there is none, or none that can be used. Never fails: a key that cannot be kept lasts as
/// long as the process, and then clients fetch other tokens.
#[must_use]
pub fn token_key(data: &Path) -> [u8; 32] {
    let path = data.join(FILE);
    match read(&path) {
        Ok(key) => return key,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the key of tokens cannot be used; another one is made, and clients fetch new tokens");
        }
    }
    let key: [u8; 32] = rand::random();
    if let Err(error) = write(data, &path, &key) {
        tracing::error!(path = %path.display(), %error, "the key of tokens cannot be kept; it lasts until the server ends");
    }
    key
}

fn read(path: &Path) -> io::Result<[u8; 32]> {
    let file = File::open(path)?;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        return Err(io::Error::other("others may read it"));
    }
    let mut content = Vec::new();
    file.take(33).read_to_end(&mut content)?;
    content.try_into().map_err(|_| io::Error::other("it does not have 32 bytes"))
}

/// There whole or not at all, also after a power cut.
fn write(data: &Path, path: &Path, key: &[u8; 32]) -> io::Result<()> {
    let new = data.join(format!("{FILE}.new"));
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(key)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    File::open(data)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use std::fs::{self, Permissions};

    use super::*;

    #[test]
    fn a_key_is_made_once_and_belongs_to_the_owner() {
        let data = tempfile::tempdir().unwrap();
        let key = token_key(data.path());
        assert_eq!(token_key(data.path()), key);
        let mode = fs::metadata(data.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_ne!(token_key(tempfile::tempdir().unwrap().path()), key);
    }

    #[test]
    fn a_damaged_key_is_made_anew() {
        let data = tempfile::tempdir().unwrap();
        let path = data.path().join(FILE);
        let key = token_key(data.path());
        for content in [&b""[..], &[1; 31], &[1; 33]] {
            fs::write(&path, content).unwrap();
            let made = token_key(data.path());
            assert!(made != key && token_key(data.path()) == made);
        }
        let before = token_key(data.path());
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert_ne!(token_key(data.path()), before, "a key that others may have read is no secret");
        fs::write(data.path().join("token-key.new"), b"left by a crash").unwrap();
        fs::remove_file(&path).unwrap();
        let made = token_key(data.path());
        assert_eq!(token_key(data.path()), made);
    }

    #[test]
    fn without_a_place_a_key_lasts_as_long_as_the_process() {
        let key = token_key(Path::new("/nonexistent/data"));
        assert_ne!(key, [0; 32]);
    }
}
