//! Files that are replaced as a whole, so that nobody ever sees half of one.

use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

/// Replaces a file that only its owner can read; the open file, to be written on. `durable`: it also outlives a power
/// cut.
pub(crate) fn replace(path: &Path, bytes: &[u8], durable: bool) -> io::Result<File> {
    let temporary = path.with_extension("new");
    // A left-over may have another mode.
    let _ = fs::remove_file(&temporary);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    if durable {
        file.sync_all()?;
    }
    fs::rename(&temporary, path)?;
    Ok(file)
}

/// What was kept as JSON; the default where nothing was.
pub(crate) fn load<T: DeserializeOwned + Default>(path: &Path) -> io::Result<T> {
    match fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(T::default()),
        Err(cause) => Err(cause),
    }
}

/// Keeps something as JSON that outlives a power cut.
pub(crate) fn save<T: Serialize>(path: &Path, what: &T) -> io::Result<()> {
    replace(path, &serde_json::to_vec_pretty(what)?, true).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_file_is_replaced_whatever_was_left_behind_and_stays_private() {
        let dir = std::env::temp_dir().join(format!("tenet-keep-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("key.json");
        for left in [&path, &path.with_extension("new")] {
            fs::write(left, "older and longer").unwrap();
            fs::set_permissions(left, fs::Permissions::from_mode(0o644)).unwrap();
        }
        let mut file = replace(&path, b"new", true).unwrap();
        file.write_all(b"er").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"newer");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!path.with_extension("new").exists());
        assert!(replace(&dir.join("missing/x"), b"", false).is_err());
        fs::remove_dir_all(&dir).unwrap();
    }
}
