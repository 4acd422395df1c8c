//! A client's certificate, and the connections that are made with it.
//!
//! Each connection reads the certificate anew, so a renewed one counts from the next
//! connection on. A connection counts as made only once the node has said something over
//! it: in TLS 1.3 a caller has ended the handshake before the node has looked at the
//! caller's certificate. So where a certificate is refused, nothing was sent.
//!
//! Not done here: what a certificate must be to be taken (`domicile_proto::identity`).

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use domicile_proto::identity::tls::{self, Expected};
use domicile_proto::identity::{Credentials, Files, Use};
use tokio::io::AsyncBufReadExt as _;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::UnixTime;
use tokio_rustls::rustls::{AlertDescription, Error};

use crate::transport::dial::Socket;

/// After how long files that do not fit together are read again: whoever replaces them
/// is likely to be done.
const READ_AGAIN: Duration = Duration::from_millis(20);

/// The certificate of a client, its key and the roots of the regions, in a directory:
///
/// ```text
/// tls.crt        the certificate, then what leads from it to a root
/// tls.key        its key
/// bundles/       a file for each region, with the region's roots
///   eu.pem
/// ```
///
/// The files may be replaced while the client runs: each new connection reads them. While
/// they cannot be used, as when one is half written, those that were read last go on.
#[derive(Clone)]
pub struct Tls {
    directory: Arc<Path>,
    /// What was read last and could be used.
    last: Arc<ArcSwapOption<Credentials>>,
}

impl Tls {
    /// The files of a directory. They are read once the client connects.
    pub fn from_directory(directory: impl Into<PathBuf>) -> Self {
        Tls {
            directory: directory.into().into(),
            last: Arc::default(),
        }
    }

    /// What is in the directory now, or else what was there when it could last be used.
    pub(crate) async fn credentials(&self) -> Result<Arc<Credentials>, Failed> {
        let error = match self.read().await {
            Ok(read) => return Ok(read),
            Err(error) => error,
        };
        if let Some(last) = self.last.load_full() {
            return Ok(last);
        }
        tokio::time::sleep(READ_AGAIN).await;
        self.read().await.map_err(|_| error)
    }

    async fn read(&self) -> Result<Arc<Credentials>, Failed> {
        let directory = self.directory.clone();
        let read = tokio::task::spawn_blocking(move || credentials_in(&directory)).await;
        let read = read.map_err(|_| Failed::Unread("the client is being closed".to_owned()))?;
        let read = Arc::new(read?);
        self.last.store(Some(read.clone()));
        Ok(read)
    }

    /// Makes a connection of a socket to a node, whoever it is.
    pub(crate) async fn secure(
        &self,
        socket: Box<dyn Socket>,
        address: &str,
    ) -> io::Result<Box<dyn Socket>> {
        let credentials = self.credentials().await?;
        let config = tls::client_config(&credentials, Expected::AnyNode);
        let connecting = TlsConnector::from(config).connect(tls::server_name(), socket);
        let failed = |error: io::Error| Failed::of(address, &error);
        let mut stream = connecting.await.map_err(failed)?;
        let (_, connection) = stream.get_ref();
        tls::identity_of(credentials.bundles(), connection, Use::Server)
            .map_err(|refused| Failed::refused_here(address, &refused))?;
        // A node says first what it can take, and that only to whom it has verified.
        if stream.fill_buf().await.map_err(failed)?.is_empty() {
            return Err(Failed::ended().into());
        }
        Ok(Box::new(stream))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tls").field(&self.directory).finish()
    }
}

/// The credentials in a directory.
fn credentials_in(directory: &Path) -> Result<Credentials, Failed> {
    let unread = |path: &Path, error: io::Error| {
        Failed::Unread(format!("cannot read {}: {error}", path.display()))
    };
    let file = |name: &str| {
        let path = directory.join(name);
        std::fs::read(&path).map_err(|error| unread(&path, error))
    };
    let names = |name: &str| {
        let path = directory.join(name);
        let entries = std::fs::read_dir(&path).and_then(|entries| {
            entries
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect()
        });
        entries.map_err(|error| unread(&path, error))
    };
    let files = Files::read(file, names)?;
    files.credentials(UnixTime::now()).map_err(|refused| {
        let directory = directory.display();
        Failed::Rejected(format!("the certificate in {directory}: {refused}"))
    })
}

/// Why there is no connection over TLS.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Failed {
    /// One end does not take the other's certificate, or the client not its own.
    #[error("{0}")]
    Rejected(String),
    /// The client's own files cannot be read.
    #[error("{0}")]
    Unread(String),
    /// The other end does not speak TLS as a node does, or not at all, or stopped.
    #[error("{0}")]
    Handshake(String),
}

impl Failed {
    /// The node speaks TLS, and the client does not.
    pub(crate) fn without_tls() -> Self {
        let advice = "the node speaks TLS: give the program --tls-dir, or the library \
                      `Builder::tls`";
        Failed::Handshake(advice.to_owned())
    }

    fn refused_here(address: &str, refused: &impl fmt::Display) -> Self {
        Failed::Rejected(format!(
            "the certificate of the node at {address} is not taken: {refused}"
        ))
    }

    fn ended() -> Self {
        let why = "the node ended the connection before it said anything: it has stopped, or \
                   did not take this client's certificate, of which its log tells";
        Failed::Handshake(why.to_owned())
    }

    /// What an error of a handshake, or of the first read after it, comes from.
    fn of(address: &str, error: &io::Error) -> Self {
        if let Some(refused) = tls::refused(error) {
            return Failed::refused_here(address, refused);
        }
        match error.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(Error::AlertReceived(alert)) if is_of_certificate(*alert) => {
                Failed::Rejected(format!(
                    "the node at {address} refused this client's certificate ({}); see the \
                     node's log",
                    alert_name(*alert)
                ))
            }
            Some(Error::AlertReceived(alert)) => Failed::Handshake(format!(
                "the node ended the TLS handshake ({})",
                alert_name(*alert)
            )),
            Some(Error::InvalidMessage(_)) => Failed::Handshake(
                "what answers there does not speak TLS: it is a node without certificates, or \
                 no node"
                    .to_owned(),
            ),
            Some(other) => Failed::Handshake(format!("no TLS handshake was made: {other}")),
            None => Failed::ended(),
        }
    }
}

impl From<Failed> for io::Error {
    fn from(failed: Failed) -> Self {
        io::Error::other(failed)
    }
}

/// Whether the other end says by this that it does not take a certificate.
fn is_of_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRequired
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
    )
}

/// The name of an alert as RFC 8446 writes it: `certificate_expired`.
fn alert_name(alert: AlertDescription) -> String {
    let mut name = String::new();
    let mut after_small = false;
    for c in format!("{alert:?}").chars() {
        if c.is_ascii_uppercase() && after_small {
            name.push('_');
        }
        after_small = c.is_ascii_lowercase();
        name.push(c.to_ascii_lowercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alerts_are_named_as_in_the_rfc() {
        for (alert, name) in [
            (AlertDescription::CertificateExpired, "certificate_expired"),
            (AlertDescription::UnknownCA, "unknown_ca"),
            (AlertDescription::AccessDenied, "access_denied"),
        ] {
            assert_eq!(alert_name(alert), name);
        }
    }
}
