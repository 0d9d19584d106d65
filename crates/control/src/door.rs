//! The door for administrators: a Unix socket whose peer is checked, or a token over TLS. There is no third way in.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use model::{Code, Failure, Secret};
use tokio::net::UnixListener;
use tonic::metadata::MetadataMap;
use tonic::transport::server::UdsConnectInfo;

/// An administrator, as audit names one: `unix:UID` or `token:admin`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Author(pub String);

/// How administrators prove themselves.
pub struct Door {
    token: Secret,
    uids: Vec<u32>,
}

impl Door {
    /// Reads the token, or makes it with its file at the first start. On the socket, root and this program's own user
    /// are let in.
    ///
    /// # Errors
    /// If the file can't be read or written.
    pub fn open(token_file: &Path) -> anyhow::Result<Self> {
        let describe = || format!("administrator's token {}", token_file.display());
        let token = match std::fs::read(token_file) {
            Ok(token) => Secret::new(token.trim_ascii().to_vec()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let bytes: [u8; 32] = rand::random();
                let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                service::files::write_atomically(token_file, token.as_bytes(), 0o600)
                    .with_context(describe)?;
                Secret::new(token.into_bytes())
            }
            Err(error) => return Err(error).with_context(describe),
        };
        anyhow::ensure!(token.len() >= 32, "{} is too short: it must have 32 characters", describe());
        Ok(Self { token, uids: vec![0, rustix::process::geteuid().as_raw()] })
    }

    /// Who sent a request.
    ///
    /// # Errors
    /// [`Code::NotAuthorised`] for everybody who has neither proof.
    pub fn author<T>(&self, request: &tonic::Request<T>) -> Result<Author, Failure> {
        if let Some(peer) = request.extensions().get::<UdsConnectInfo>() {
            let uid = peer.peer_cred.map(|credentials| credentials.uid());
            return match uid.filter(|uid| self.uids.contains(uid)) {
                Some(uid) => Ok(Author(format!("unix:{uid}"))),
                None => Err(Failure::new(Code::NotAuthorised, "this user is not an administrator")),
            };
        }
        self.by_token(request.metadata())
    }

    fn by_token(&self, metadata: &MetadataMap) -> Result<Author, Failure> {
        let given = metadata.get("authorization").map(|value| value.as_bytes());
        let token = given.and_then(|value| value.strip_prefix(b"Bearer ")).unwrap_or_default();
        // In constant time: how much of a guess is right must not show.
        match aws_lc_rs::constant_time::verify_slices_are_equal(token, self.token.expose()) {
            Ok(()) => Ok(Author("token:admin".to_owned())),
            Err(_) => Err(Failure::new(Code::NotAuthorised, "the administrator's token is missing or wrong")),
        }
    }
}

/// Listens on the socket: 0600, in place of one that an earlier run left behind.
///
/// # Errors
/// If the socket is in use or its directory can't be written to.
pub fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let describe = || format!("socket {}", path.display());
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).with_context(describe)?;
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        anyhow::bail!("{} is in use by another control plane", describe());
    }
    let _ = std::fs::remove_file(path);
    // The mask is the process's; nothing else makes files at this moment of the start.
    let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(mask);
    let listener = listener.with_context(describe)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).with_context(describe)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;

    /// A request by the socket, from this process.
    fn by_socket() -> tonic::Request<()> {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut request = tonic::Request::new(());
        request.extensions_mut().insert(UdsConnectInfo { peer_addr: None, peer_cred: ours.peer_cred().ok() });
        request
    }

    #[tokio::test]
    async fn the_socket_s_peer_must_be_root_or_our_own_user() {
        let directory = tempfile::tempdir().unwrap();
        let mut door = Door::open(&directory.path().join("token")).unwrap();
        let own = rustix::process::geteuid().as_raw();
        assert_eq!(door.author(&by_socket()).unwrap(), Author(format!("unix:{own}")));
        // The mode of the socket lets nobody else come this far; if somebody did, the kernel's word on the peer counts.
        door.uids = vec![own + 1];
        assert_eq!(door.author(&by_socket()).unwrap_err().code, Code::NotAuthorised);
        // A token does not help on the socket: its peer is known.
        let mut request = by_socket();
        let token = String::from_utf8(door.token.expose().to_vec()).unwrap();
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        assert_eq!(door.author(&request).unwrap_err().code, Code::NotAuthorised);
        // Elsewhere it does.
        *request.extensions_mut() = tonic::Extensions::default();
        assert_eq!(door.author(&request).unwrap(), Author("token:admin".to_owned()));
        request.metadata_mut().insert("authorization", format!("Bearer {}", "0".repeat(64)).parse().unwrap());
        assert_eq!(door.author(&request).unwrap_err().code, Code::NotAuthorised);
    }

    #[test]
    fn token_and_socket_are_for_their_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let token = directory.path().join("token");
        drop(Door::open(&token).unwrap());
        assert_eq!(mode(&token), 0o600);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        let socket = directory.path().join("control.sock");
        let _listener = listen(&socket).unwrap();
        assert_eq!(mode(&socket), 0o600);
    }
}
