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
