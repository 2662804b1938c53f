//! Opening and making the file.

use super::tables;
use crate::StoreError;
use redb::{Database, DatabaseError, ReadableDatabase as _, StorageError};
use std::{
    fs::{self, File, OpenOptions},
    io::ErrorKind,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The format that this version reads and writes.
const FORMAT: u64 = 1;

/// Between the name of a file that is being made and its maker's process id.
const DRAFT: &str = ".new-";

/// The database in a file, made if there is none, and the store's revision.
pub(super) fn open(path: &Path, cache: usize) -> Result<(Database, u64), StoreError> {
    let exists = path.try_exists().map_err(|e| cannot_open(path, e))?;
    if !exists {
        make(path)?;
    }
    let mut builder = Database::builder();
    builder.set_cache_size(cache).set_check_integrity_on_open(true);
    let db = builder.open(path).map_err(|e| refused(path, e))?;
    let (format, revision) = read(&db).map_err(|e| not_a_store(path, e.to_string()))?;
    if format != FORMAT {
        return Err(StoreError::Format { path: path.to_owned(), found: format, known: FORMAT });
    }
    remove_drafts(path);
    Ok((db, revision))
}

/// Removes what makers that were killed left behind. One that still runs no longer needs its draft.
fn remove_drafts(path: &Path) {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return };
    let prefix = format!("{}{DRAFT}", name.to_string_lossy());
    let entries = fs::read_dir(if directory.as_os_str().is_empty() { Path::new(".") } else { directory });
    for entry in entries.into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Makes the file under another name first, so that a crash on the way leaves no half of one.
fn make(path: &Path) -> Result<(), StoreError> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!("{DRAFT}{}", std::process::id()));
    let draft = PathBuf::from(draft);
    let _ = fs::remove_file(&draft);
    let io = |e| cannot_open(path, e);
    // What the site keeps secret is for the controller's user alone.
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft).map_err(io)?;
    let made = fill(&draft).map_err(|e| not_a_store(&draft, e.to_string()));
    // A link does not replace a file that another process has made meanwhile.
    let linked = made.and_then(|()| match fs::hard_link(&draft, path) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists && !path.exists() => Err(io(e)),
        Ok(()) | Err(_) => Ok(()),
    });
    let _ = fs::remove_file(&draft);
    linked?;
    let directory = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory).and_then(|d| d.sync_all()).map_err(io)
}

fn fill(path: &Path) -> Result<(), redb::Error> {
    let db = Database::builder().create(path)?;
    let write = db.begin_write()?;
    {
        let mut meta = write.open_table(tables::META)?;
        meta.insert(tables::FORMAT, FORMAT)?;
        meta.insert(tables::REVISION, 1)?;
        meta.insert(tables::OLDEST, 1)?;
        write.open_table(tables::PAIRS)?;
        write.open_table(tables::HISTORY)?;
    }
    write.commit()?;
    Ok(())
}

/// Format and revision; also sees that all tables are there and of the right types.
fn read(db: &Database) -> Result<(u64, u64), redb::Error> {
    let read = db.begin_read()?;
    let meta = read.open_table(tables::META)?;
    read.open_table(tables::PAIRS)?;
    read.open_table(tables::HISTORY)?;
    Ok((tables::number(&meta, tables::FORMAT)?, tables::number(&meta, tables::REVISION)?))
}

fn refused(path: &Path, error: DatabaseError) -> StoreError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { path: path.to_owned() },
        DatabaseError::Storage(StorageError::Io(e)) if !foreign(e.kind()) => cannot_open(path, e),
        other => not_a_store(path, other.to_string()),
    }
}

/// Errors of redb about what it read, not about reading.
const fn foreign(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::InvalidData | ErrorKind::UnexpectedEof)
}

fn cannot_open(path: &Path, source: std::io::Error) -> StoreError {
    StoreError::Open { path: path.to_owned(), source: Arc::new(source) }
}

fn not_a_store(path: &Path, reason: String) -> StoreError {
    StoreError::NotAStore { path: path.to_owned(), reason }
}
