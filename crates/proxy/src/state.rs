//! The instance's directory: what must survive a restart of the proxy and end with the instance.
//!
//! In it: the instance's CA, the channel's key, the last slice, the control plane's roots. Nobody but the proxy may
//! read it; in a pod it is a memory-backed volume that no other container mounts.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rustix::fs::FlockOperation;

/// The directory, held by one proxy.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Opens the directory, or makes it.
    ///
    /// # Errors
    /// If others could read it, if it belongs to somebody else, or if another proxy holds it.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let describe = || format!("state directory {}", path.display());
        DirBuilder::new().recursive(true).mode(0o700).create(path).with_context(describe)?;
        let metadata = std::fs::metadata(path).with_context(describe)?;
        let own = rustix::process::geteuid().as_raw();
        if metadata.uid() != own {
            bail!("{} belongs to UID {}, not to this proxy's UID {own}", describe(), metadata.uid());
        }
        if metadata.mode() & 0o077 != 0 {
            bail!("{} can be read by others (mode {:o}): chmod 700", describe(), metadata.mode() & 0o777);
        }
        let lock = File::create(path.join("lock")).with_context(describe)?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .with_context(|| format!("{} is held by another proxy", describe()))?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Reads a file of the directory; `None` if there is none.
    ///
    /// # Errors
    /// If it is there and can't be read.
    pub fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match std::fs::read(self.path.join(name)) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes a file of the directory, in one step.
    ///
    /// # Errors
    /// If the directory is full or can't be written to.
    pub fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        service::files::write_atomically(&self.path.join(name), content, 0o600)
    }

    /// Removes a file of the directory.
    ///
    /// # Errors
    /// If it is there and can't be removed.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match std::fs::remove_file(self.path.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn only_one_proxy_and_nobody_else() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("state");
        let state = StateDir::open(&path).unwrap();
        state.write("a", b"1").unwrap();
        assert_eq!(state.read("a").unwrap().as_deref(), Some(&b"1"[..]));
        assert_eq!(state.read("b").unwrap(), None);
        let second = StateDir::open(&path).unwrap_err();
        assert!(format!("{second:#}").contains("another proxy"), "{second:#}");
        drop(state);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let open = StateDir::open(&path).unwrap_err();
        assert!(format!("{open:#}").contains("chmod 700"), "{open:#}");
    }
}
