//! What programs that stand in for another one have in common: a listener that speaks TLS.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// Where a stand-in listens, and what it shows.
#[derive(Debug, clap::Args)]
pub struct Listening {
    /// Where it is found.
    #[arg(long)]
    listen: SocketAddr,
    /// Its certificate (PEM).
    #[arg(long)]
    certificate: PathBuf,
    /// Its key (PEM).
    #[arg(long)]
    key: PathBuf,
}

impl Listening {
    /// Listens, and speaks TLS with these protocols.
    ///
    /// # Errors
    /// If a file can't be read, or the address is not free.
    pub async fn start(&self, protocols: &[&[u8]]) -> anyhow::Result<(TcpListener, TlsAcceptor)> {
        let certificates = service::roots::from_file(&self.certificate)?;
        let key = service::roots::key_from_file(&self.key)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(certificates, key)?;
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Ok((TcpListener::bind(self.listen).await?, TlsAcceptor::from(Arc::new(config))))
    }
}
