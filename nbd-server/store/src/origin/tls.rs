//! TLS towards origins: whose certificates are believed, and what is said of one that is not.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{CertificateError, ClientConfig, RootCertStore};
use rustls_platform_verifier::Verifier;

/// Why a server is not believed to be who it says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadCertificate {
    /// Nobody whom this host believes has signed it.
    #[error("it is signed by an authority that is not trusted here")]
    UnknownIssuer,
    /// Its time is over.
    #[error("it has expired")]
    Expired,
    /// Its time has not come.
    #[error("it is not valid yet")]
    NotYet,
    /// It is for other hosts.
    #[error("it is not for this host's name")]
    Name,
    /// Anything else, in the words of rustls.
    #[error("{0}")]
    Other(String),
}

impl BadCertificate {
    /// What can be done about it.
    pub(crate) const fn hint(&self) -> &'static str {
        match self {
            Self::UnknownIssuer => "if the authority is your own, name the file with its certificate: --ca-file FILE",
            Self::Expired | Self::NotYet => "check this host's clock; if it is right, tell who runs the server",
            Self::Name => "check the link for typing errors; if it is right, tell who runs the server",
            Self::Other(_) => "tell who runs the server",
        }
    }

    /// Finds it among the causes of a failed request.
    pub(super) fn behind(error: &(dyn StdError + 'static)) -> Option<Self> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(rustls::Error::InvalidCertificate(error)) = error.downcast_ref() {
                return Some(Self::from(error));
            }
            // The source of an I/O error is that of what it wraps, which would be passed over.
            let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            cause = wrapped.map(|error| error as &(dyn StdError + 'static)).or_else(|| error.source());
        }
        None
    }
}

impl From<&CertificateError> for BadCertificate {
    fn from(error: &CertificateError) -> Self {
        match error {
            CertificateError::UnknownIssuer => Self::UnknownIssuer,
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Self::NotYet,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => Self::Name,
            other => Self::Other(other.to_string()),
        }
    }
}

/// Believes the system's authorities and these. HTTP/1.1 alone is spoken, so no protocol is offered by ALPN.
pub(super) fn client_config(authorities: &[CertificateDer<'static>]) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Verifier::new_with_extra_roots(authorities.iter().cloned(), Arc::clone(&provider))?;
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth())
}

/// The certificates of authorities in a PEM file, or what is wrong with it.
pub(super) fn parse_authorities(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, &'static str> {
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.map_err(|_| "it is no PEM file")?;
    if certificates.is_empty() {
        return Err("it has no certificate");
    }
    let mut roots = RootCertStore::empty();
    for certificate in &certificates {
        roots.add(certificate.clone()).map_err(|_| "it has a certificate that cannot be read")?;
    }
    Ok(certificates)
}
