//! What a certificate says of itself, before anybody believes it.
//!
//! Not done here: whether it is true (`verify`).

use std::fmt;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use super::refusal::{Refusal, Refused};
use super::spiffe::{ClusterName, SpiffeId};
use super::verify::{check_authority, one_uri};
use crate::address::RegionName;

/// What a certificate says of itself. To be shown, and to be compared: only
/// [`Bundles::verify`](super::Bundles::verify) tells whether it is true.
#[derive(Clone, Debug)]
pub struct Claims {
    /// Whose certificate it says that it is.
    pub subject: Subject,
    /// Its serial number, in hex.
    pub serial: String,
    /// From when on it is valid, in seconds since 1970.
    pub not_before: u64,
    /// Until when it is valid, in seconds since 1970.
    pub not_after: u64,
    /// The SHA-256 of its bytes, by which people compare certificates.
    pub fingerprint: [u8; 32],
    /// Its public key, as it stands in it.
    public_key: Vec<u8>,
}

/// Whose a certificate is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A workload's.
    Workload(SpiffeId),
    /// That of a region's authority.
    Authority(RegionName, ClusterName),
}

impl Claims {
    /// Reads a certificate of a workload or of an authority, which names whose it is by
    /// one URI.
    pub fn read(der: &CertificateDer<'_>) -> Result<Self, Refused> {
        let malformed = |what: &str| Refused::new(Refusal::Malformed, what);
        let (_, certificate) = X509Certificate::from_der(der)
            .map_err(|_| malformed("the certificate cannot be read"))?;
        let constraints = certificate
            .basic_constraints()
            .map_err(|_| malformed("its basic constraints cannot be read"))?;
        let uri = one_uri(&certificate)?;
        let subject = match constraints.is_some_and(|of| of.value.ca) {
            true => {
                check_authority(der)?;
                authority_named(&uri)?
            }
            false => Subject::Workload(uri.parse().map_err(|error| {
                Refused::new(Refusal::Id, format!("its name is no id: {error}"))
            })?),
        };
        let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
        let validity = certificate.validity();
        Ok(Claims {
            subject,
            serial: certificate.raw_serial_as_string().replace(':', ""),
            not_before: seconds(validity.not_before.timestamp()),
            not_after: seconds(validity.not_after.timestamp()),
            fingerprint: Sha256::digest(der).into(),
            public_key: certificate.public_key().raw.to_vec(),
        })
    }

    /// Whether a key, as PEM, is the certificate's. An error if it cannot be read.
    pub fn is_key(&self, pem: &[u8]) -> Result<bool, Refused> {
        let unread = || Refused::new(Refusal::Malformed, "the key's PEM cannot be read");
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(|_| unread())?;
        let key = default_provider().key_provider.load_private_key(key);
        let public = key.map_err(|_| unread())?;
        let public = public.public_key().ok_or_else(unread)?;
        Ok(*public == *self.public_key)
    }
}

/// The authority that a URI names: `spiffe://REGION.CLUSTER`.
fn authority_named(uri: &str) -> Result<Subject, Refused> {
    let named = || {
        let domain = uri.strip_prefix("spiffe://")?;
        let (region, cluster) = domain.split_once('.')?;
        let region = RegionName::new(region).ok()?;
        let cluster = ClusterName::new(cluster).ok()?;
        Some(Subject::Authority(region, cluster))
    };
    named().ok_or_else(|| {
        Refused::new(
            Refusal::Id,
            "an authority's certificate is named spiffe://REGION.CLUSTER; this one is not",
        )
    })
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Workload(id) => id.fmt(f),
            Subject::Authority(region, cluster) => {
                write!(f, "spiffe://{}.{cluster}", region.as_str())
            }
        }
    }
}
