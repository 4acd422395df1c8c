//! What the TLS library asks for, made of [`Credentials`].
//!
//! TLS 1.3 alone, HTTP/2 alone, both ends with a certificate. No session is resumed: what
//! was verified once is verified again on each connection, so a certificate that has
//! expired, lost its root or was denied opens none.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, CommonState, DigitallySignedStruct, DistinguishedName, Error,
    OtherError, ServerConfig, SignatureScheme,
};

use super::bundles::Bundles;
use super::credentials::Credentials;
use super::refusal::{Refusal, Refused};
use super::spiffe::{SpiffeId, Workload};
use super::verify::{Identity, Use};
use crate::address::RegionName;

/// The one protocol that is spoken over TLS.
const HTTP_2: &[u8] = b"h2";

/// Who must be at the other end of a connection that is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// This node and no other.
    Node(RegionName, u64),
    /// Any node of the cluster.
    AnyNode,
}

impl Expected {
    fn check(&self, id: &SpiffeId) -> Result<(), Refused> {
        let is_it = match (self, &id.workload) {
            (Expected::Node(region, number), Workload::Node(node)) => {
                *region == id.region && number == node
            }
            (Expected::AnyNode, Workload::Node(_)) => true,
            (_, Workload::Service(_)) => false,
        };
        match is_it {
            true => Ok(()),
            false => Err(Refused::new(
                Refusal::OtherWorkload,
                format!("{id} answers, not {self}; check the address"),
            )),
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expected::Node(region, node) => write!(f, "node {}/{node}", region.as_str()),
            Expected::AnyNode => f.write_str("a node"),
        }
    }
}

/// How a node answers.
pub fn server_config(credentials: &Credentials) -> Arc<ServerConfig> {
    let verifier = Arc::new(Verifier::new(credentials.bundles().clone(), None));
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider speaks TLS 1.3")
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(Own(credentials.key().clone())));
    config.alpn_protocols = vec![HTTP_2.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Arc::new(config)
}

/// How a workload calls a node.
pub fn client_config(credentials: &Credentials, expected: Expected) -> Arc<ClientConfig> {
    let verifier = Verifier::new(credentials.bundles().clone(), Some(expected));
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider speaks TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(Own(credentials.key().clone())));
    config.alpn_protocols = vec![HTTP_2.to_vec()];
    config.resumption = Resumption::disabled();
    // Whom it calls is nobody else's business, and no node has a name of its own.
    config.enable_sni = false;
    Arc::new(config)
}

/// The name under which the TLS library is told to call a node: ids are compared instead.
pub fn server_name() -> ServerName<'static> {
    ServerName::try_from("node.domicile.invalid").expect("a name of the domain name system")
}

/// Who is at the other end of a connection once it is made. An error if it does not speak
/// HTTP/2: the library lets in who says nothing of what it speaks.
pub fn identity_of(
    bundles: &Bundles,
    connection: &CommonState,
    used: Use,
) -> Result<Identity, Refused> {
    if connection.alpn_protocol() != Some(HTTP_2) {
        return Err(Refused::new(
            Refusal::Malformed,
            "it does not say that it speaks HTTP/2; call with a gRPC client",
        ));
    }
    let chain = connection.peer_certificates().unwrap_or_default();
    bundles.verify(chain, UnixTime::now(), used)
}

/// Why a handshake failed, where a certificate was refused here.
pub fn refused<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e Refused> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(refused) = error.downcast_ref::<Refused>() {
            return Some(refused);
        }
        if let Some(Error::InvalidCertificate(CertificateError::Other(OtherError(inner)))) =
            error.downcast_ref::<Error>()
        {
            return inner.downcast_ref::<Refused>();
        }
        let inner = error
            .downcast_ref::<std::io::Error>()
            .and_then(|io| io.get_ref());
        next = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// Its own certificate, whoever asks.
#[derive(Debug)]
struct Own(Arc<CertifiedKey>);

impl ResolvesServerCert for Own {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

impl ResolvesClientCert for Own {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Verifies who is at the other end.
#[derive(Debug)]
struct Verifier {
    bundles: Arc<Bundles>,
    /// Who must answer; `None`: it is called, and verifies the caller.
    expected: Option<Expected>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn new(bundles: Arc<Bundles>, expected: Option<Expected>) -> Self {
        Verifier {
            bundles,
            expected,
            algorithms: default_provider().signature_verification_algorithms,
        }
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
        used: Use,
    ) -> Result<(), Error> {
        let mut chain = vec![leaf.clone()];
        chain.extend_from_slice(between);
        let verified = self.bundles.verify(&chain, now, used);
        let checked = verified.and_then(|identity| match &self.expected {
            Some(expected) => expected.check(identity.id()),
            None => Ok(()),
        });
        checked.map_err(|refused| {
            let other = CertificateError::Other(OtherError(Arc::new(refused)));
            Error::InvalidCertificate(other)
        })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(leaf, between, now, Use::Server)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(leaf, between, now, Use::Client)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
