//! The door for administrators: a Unix socket whose peer is checked, or over TLS a token: the one of the first start, or
//! a service account's that the API server vouches for. There is no other way in.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use attestation::kubernetes::{ApiServer, Review};
use model::{Code, Failure, Secret};
use tokio::net::UnixListener;
use tonic::metadata::MetadataMap;
use tonic::transport::server::UdsConnectInfo;

/// What somebody may do at the door; each may also do what stands before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Look.
    Viewer,
    /// Everything.
    Administrator,
}

/// An administrator, as audit names one: `unix:UID`, `token:admin`, or `serviceaccount:NAMESPACE/NAME` with the token's id
/// behind it where the API server gives one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Author(pub String);

/// How administrators prove themselves.
pub struct Door {
    token: Secret,
    uids: Vec<u32>,
    accounts: Accounts,
}

/// Service accounts whose tokens open the door; of the cluster in which the control plane runs.
#[derive(Debug)]
pub struct Accounts {
    audience: String,
    roles: BTreeMap<(String, String), Role>,
}

impl Accounts {
    /// None yet; their tokens must be for this audience.
    #[must_use]
    pub fn new(audience: &str) -> Self {
        Self { audience: audience.to_owned(), roles: BTreeMap::new() }
    }

    /// One more, `NAMESPACE/NAME`.
    ///
    /// # Errors
    /// If it is not written so.
    pub fn add(&mut self, account: &str, role: Role) -> anyhow::Result<()> {
        let (namespace, name) = account
            .split_once('/')
            .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty() && !name.contains('/'))
            .with_context(|| format!("`{account}` is not NAMESPACE/NAME"))?;
        self.roles.insert((namespace.to_owned(), name.to_owned()), role);
        Ok(())
    }

    /// Who a review says that it is, and what that one may do.
    fn judge(&self, review: &Review) -> Result<(Author, Role), Failure> {
        let refused = |detail: String| Failure::new(Code::NotAuthorised, detail);
        // Evidence is of pods; who administers asks for a token that is bound to none.
        if review.pod_uid.is_some() {
            return Err(refused(
                "the token is a pod's: ask for one with `countersign --kubernetes`".to_owned(),
            ));
        }
        let Some((namespace, name)) = review.service_account() else {
            return Err(refused("the token is no service account's".to_owned()));
        };
        let Some(role) = self.roles.get(&(namespace.to_owned(), name.to_owned())) else {
            let detail = format!("the service account {namespace}/{name} is not an administrator's");
            return Err(refused(detail));
        };
        let id = review.credential_id.as_ref().map(|id| format!(" {id}")).unwrap_or_default();
        Ok((Author(format!("serviceaccount:{namespace}/{name}{id}")), *role))
    }
}

impl Door {
    /// Reads the token, or makes it with its file at the first start. On the socket, root and this program's own user
    /// are let in; by their tokens, these service accounts.
    ///
    /// # Errors
    /// If the file can't be read or written.
    pub fn open(token_file: &Path, accounts: Accounts) -> anyhow::Result<Self> {
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
        Ok(Self { token, uids: vec![0, rustix::process::geteuid().as_raw()], accounts })
    }

    /// Who sent a request, if they may do what it needs.
    ///
    /// # Errors
    /// [`Code::NotAuthorised`] for everybody who has no proof, or whose role is less than that;
    /// [`Code::IssuerUnreachable`] if the API server can't be asked about a token.
    pub async fn author<T>(&self, request: &tonic::Request<T>, needs: Role) -> Result<Author, Failure> {
        if let Some(peer) = request.extensions().get::<UdsConnectInfo>() {
            let uid = peer.peer_cred.map(|credentials| credentials.uid());
            return match uid.filter(|uid| self.uids.contains(uid)) {
                Some(uid) => Ok(Author(format!("unix:{uid}"))),
                None => Err(Failure::new(Code::NotAuthorised, "this user is not an administrator")),
            };
        }
        let token = bearer(request.metadata());
        // In constant time: how much of a guess is right must not show.
        if aws_lc_rs::constant_time::verify_slices_are_equal(token.expose(), self.token.expose()).is_ok() {
            return Ok(Author("token:admin".to_owned()));
        }
        let (author, role) = self.by_account(&token).await?;
        if role < needs {
            let detail = format!("{} may look, and change nothing", author.0);
            return Err(Failure::new(Code::NotAuthorised, detail));
        }
        Ok(author)
    }

    async fn by_account(&self, token: &Secret) -> Result<(Author, Role), Failure> {
        // Nothing else than a JWT is shown to the API server: it is not for guessing at.
        let is_jwt = token.expose().iter().filter(|byte| **byte == b'.').count() == 2;
        if self.accounts.roles.is_empty() || !is_jwt {
            return Err(Failure::new(Code::NotAuthorised, "the administrator's token is missing or wrong"));
        }
        let review = ApiServer::of_this_cluster()?.review(token, &self.accounts.audience).await;
        let review = review.map_err(|failure| match failure.code {
            Code::EvidenceInvalid => Failure::new(Code::NotAuthorised, failure.detail),
            _ => failure,
        })?;
        self.accounts.judge(&review)
    }
}

fn bearer(metadata: &MetadataMap) -> Secret {
    let given = metadata.get("authorization").map(|value| value.as_bytes());
    Secret::new(given.and_then(|value| value.strip_prefix(b"Bearer ")).unwrap_or_default().to_vec())
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

    fn nobody() -> Accounts {
        Accounts::new("countersign-administration")
    }

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
        let mut door = Door::open(&directory.path().join("token"), nobody()).unwrap();
        let own = rustix::process::geteuid().as_raw();
        assert_eq!(
            door.author(&by_socket(), Role::Administrator).await.unwrap(),
            Author(format!("unix:{own}"))
        );
        // The mode of the socket lets nobody else come this far; if somebody did, the kernel's word on the peer counts.
        door.uids = vec![own + 1];
        assert_eq!(door.author(&by_socket(), Role::Viewer).await.unwrap_err().code, Code::NotAuthorised);
        // A token does not help on the socket: its peer is known.
        let mut request = by_socket();
        let token = String::from_utf8(door.token.expose().to_vec()).unwrap();
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        assert_eq!(door.author(&request, Role::Viewer).await.unwrap_err().code, Code::NotAuthorised);
        // Elsewhere it does.
        *request.extensions_mut() = tonic::Extensions::default();
        assert_eq!(
            door.author(&request, Role::Administrator).await.unwrap(),
            Author("token:admin".to_owned())
        );
        request.metadata_mut().insert("authorization", format!("Bearer {}", "0".repeat(64)).parse().unwrap());
        assert_eq!(door.author(&request, Role::Viewer).await.unwrap_err().code, Code::NotAuthorised);
    }

    #[test]
    fn a_service_account_is_what_the_settings_say() {
        let mut accounts = Accounts::new("countersign-administration");
        accounts.add("countersign-system/countersign-viewer", Role::Viewer).unwrap();
        accounts.add("countersign-system/countersign-admin", Role::Administrator).unwrap();
        for wrong in ["countersign-admin", "/admin", "a/", "a/b/c"] {
            assert!(accounts.add(wrong, Role::Viewer).is_err(), "{wrong}");
        }
        let review = |username: &str| Review {
            username: username.to_owned(),
            pod_uid: None,
            credential_id: Some("JTI=1".to_owned()),
        };
        let admin = review("system:serviceaccount:countersign-system:countersign-admin");
        let author = Author("serviceaccount:countersign-system/countersign-admin JTI=1".to_owned());
        assert_eq!(accounts.judge(&admin).unwrap(), (author, Role::Administrator));
        let viewer = review("system:serviceaccount:countersign-system:countersign-viewer");
        assert_eq!(accounts.judge(&viewer).unwrap().1, Role::Viewer);
        // Of a pod; of another namespace; of a user.
        for refused in [
            Review { pod_uid: Some("u-1".to_owned()), ..admin },
            review("system:serviceaccount:payments:countersign-admin"),
            review("countersign-admin"),
        ] {
            assert_eq!(accounts.judge(&refused).unwrap_err().code, Code::NotAuthorised, "{refused:?}");
        }
    }

    #[test]
    fn token_and_socket_are_for_their_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let token = directory.path().join("token");
        drop(Door::open(&token, nobody()).unwrap());
        assert_eq!(mode(&token), 0o600);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        let socket = directory.path().join("control.sock");
        let _listener = listen(&socket).unwrap();
        assert_eq!(mode(&socket), 0o600);
    }
}
