//! A workload's own certificate with its key.

use std::fmt;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::sign::CertifiedKey;

use super::bundles::Bundles;
use super::refusal::{Refusal, Refused};
use super::spiffe::SpiffeId;
use super::verify::{Identity, Use};

/// A workload's own certificate with its key, and the roots it goes by.
///
/// The certificate was verified as others will verify it, and the key is its own.
#[derive(Clone)]
pub struct Credentials {
    identity: Identity,
    key: Arc<CertifiedKey>,
    bundles: Arc<Bundles>,
}

impl Credentials {
    /// Reads a chain, the leaf first, and its key, both as PEM. An error if they do not
    /// belong together, or the chain would not be taken now by who has these bundles.
    pub fn from_pem(
        chain: &[u8],
        key: &[u8],
        bundles: Arc<Bundles>,
        now: UnixTime,
    ) -> Result<Self, Refused> {
        let malformed = |what: &str| Refused::new(Refusal::Malformed, what);
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|_| malformed("the certificate's PEM cannot be read"))?;
        // What the library makes of the file is wiped when it is dropped.
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|_| malformed("the key's PEM cannot be read"))?;
        let identity = bundles.verify(&chain, now, Use::Client)?;
        let key = CertifiedKey::from_der(chain, key, &default_provider()).map_err(|error| {
            let what = match error {
                rustls::Error::InconsistentKeys(_) => {
                    "the key is not the certificate's; was one of the files replaced alone?"
                }
                _ => "the key is of a kind that is not known",
            };
            malformed(what)
        })?;
        // The library takes a key whose public half it cannot make, too.
        key.keys_match()
            .map_err(|_| malformed("nobody can tell whether the key is the certificate's"))?;
        Ok(Credentials {
            identity,
            key: Arc::new(key),
            bundles,
        })
    }

    /// Who this workload is.
    pub fn id(&self) -> &SpiffeId {
        self.identity.id()
    }

    /// This workload, as others see it.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The roots that it goes by.
    pub fn bundles(&self) -> &Arc<Bundles> {
        &self.bundles
    }

    pub(super) fn key(&self) -> &Arc<CertifiedKey> {
        &self.key
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.identity.fmt(f)
    }
}
