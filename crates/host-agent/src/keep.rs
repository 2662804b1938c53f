//! Files that are replaced as a whole, so that nobody ever sees half of one.

use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
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

/// A list that is kept as JSON over the agent's restarts, and over a power cut.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kept<T> {
    path: PathBuf,
    /// What it is a list of, in plain words.
    what: &'static str,
    list: T,
}

impl<T: Serialize + DeserializeOwned + Default> Kept<T> {
    /// What an earlier run kept; what cannot be read is told and forgotten.
    pub(crate) fn load(path: PathBuf, what: &'static str) -> Self {
        let list = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::from),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(T::default()),
            Err(cause) => Err(cause),
        };
        let list = list.unwrap_or_else(|cause| {
            tracing::warn!(path = %path.display(), what, %cause, "a list cannot be read: it is begun anew");
            T::default()
        });
        Self { path, what, list }
    }

    pub(crate) const fn list(&self) -> &T {
        &self.list
    }

    /// Changes the list; it is on disk when this returns, if `change` says that it did anything. A failure is told.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut T) -> bool) {
        if !change(&mut self.list) {
            return;
        }
        let bytes = serde_json::to_vec_pretty(&self.list).map_err(io::Error::from);
        if let Err(cause) = bytes.and_then(|bytes| replace(&self.path, &bytes, true)) {
            let (path, what) = (self.path.display(), self.what);
            tracing::error!(%path, what, %cause, "a list cannot be kept on disk: a restart will not know of this change");
        }
    }
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

    #[test]
    fn a_list_outlives_its_owner_and_one_that_is_not_understood_is_begun_anew() {
        let dir = std::env::temp_dir().join(format!("tenet-kept-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("list.json");
        let load = || Kept::<Vec<u32>>::load(path.clone(), "numbers");
        let mut list = load();
        list.change(|l| {
            l.push(7);
            false
        });
        assert!((list.list() == &[7]) && load().list().is_empty(), "nothing that is to be kept");
        list.change(|l| {
            l.push(8);
            true
        });
        assert_eq!(load().list(), &[7, 8]);
        fs::write(&path, "nonsense").unwrap();
        assert!(load().list().is_empty());
        fs::remove_dir_all(&dir).unwrap();
    }
}
