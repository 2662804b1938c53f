//! How the socket comes to be: root's alone from its first moment.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::Path,
    time::Duration,
};
use tokio::net::{UnixListener, UnixStream};

/// An agent that does not take a connection within this time hangs, but is there.
const TRY: Duration = Duration::from_secs(1);

/// Listens at a path, unless another agent does.
pub(super) async fn listen(path: &Path) -> io::Result<UnixListener> {
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent)?;
    if taken(path).await? {
        let text = "another agent listens there: name another socket with --socket, or `none`";
        return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
    }
    // A socket is born with the umask's mode and can be connected to at once: in a folder that nobody else enters, that
    // does no harm.
    let cradle = parent.join(format!(".new-{}", std::process::id()));
    remove(&cradle)?;
    fs::DirBuilder::new().mode(0o700).create(&cradle)?;
    let made = make(&cradle, path);
    remove(&cradle)?;
    made
}

fn make(cradle: &Path, path: &Path) -> io::Result<UnixListener> {
    let new = cradle.join("s");
    let listener = UnixListener::bind(&new)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
    fs::rename(&new, path)?;
    Ok(listener)
}

fn remove(cradle: &Path) -> io::Result<()> {
    match fs::remove_dir_all(cradle) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Whether somebody listens there. One that hangs does, too: its queue is full, or it takes no connection.
async fn taken(path: &Path) -> io::Result<bool> {
    match tokio::time::timeout(TRY, UnixStream::connect(path)).await {
        Ok(Ok(_)) | Err(_) => Ok(true),
        Ok(Err(e)) => match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Ok(false),
            io::ErrorKind::WouldBlock => Ok(true),
            _ => Err(e),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_its_owners_alone_and_stays_with_an_agent_that_hangs() {
        let dir = std::env::temp_dir().join(format!("tenet-listen-{}", std::process::id()));
        let path = dir.join("agent.sock");
        let listener = listen(&path).await.unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "nothing else is left there");
        // It accepts nothing, until its queue is full.
        let mut waiting = Vec::new();
        while let Ok(one) = UnixStream::connect(&path).await {
            waiting.push(one);
        }
        let taken = tokio::time::timeout(10 * TRY, listen(&path)).await.unwrap().unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        drop((listener, waiting));
        // What a dead one left behind is no hindrance.
        listen(&path).await.unwrap();
        fs::remove_dir_all(&dir).unwrap();
    }
}
