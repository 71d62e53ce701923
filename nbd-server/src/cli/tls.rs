//! The options by which a server speaks TLS on TCP.

use std::path::PathBuf;

use crate::{Error, Listener, Tls};

#[derive(Debug, clap::Args)]
pub(super) struct TlsArgs {
    /// Speak TLS, and nothing but TLS, with the certificate in FILE (PEM; others of its chain may follow it).
    #[arg(long, value_name = "FILE", requires_all = ["listen", "tls_key"], conflicts_with = "socket")]
    tls_cert: Option<PathBuf>,
    /// The certificate's key (PEM), which not every user may read.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Let in only clients with a certificate of an authority in FILE (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_ca: Option<PathBuf>,
}

impl TlsArgs {
    /// Listens on a TCP address as the options say.
    pub(super) async fn listen(&self, address: &str) -> Result<Listener, Error> {
        let listener = match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => {
                Listener::tls(address, Tls::load(certificate, key, self.tls_ca.as_deref())?).await?
            }
            _ => Listener::tcp(address).await?,
        };
        let is_open = listener.tcp_address().is_some_and(|address| !address.ip().is_loopback());
        match listener.tls_in_use() {
            None if is_open => tracing::warn!(
                "whoever reaches this address can read the disks: there is no encryption and no password (--tls-cert, --tls-ca)"
            ),
            Some(tls) if is_open && !tls.asks_clients() => tracing::warn!(
                "whoever reaches this address can read the disks: clients are asked for no certificate (--tls-ca)"
            ),
            _ => {}
        }
        Ok(listener)
    }
}
