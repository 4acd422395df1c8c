//! An authority of a region, for clusters that have none of their own: it makes
//! certificates of the region's nodes and services.
//!
//! Keys are ECDSA on P-256, which every TLS library knows. Serial numbers are drawn from
//! the keys, so that no two certificates have the same.

use std::fmt;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::claims::{Claims, Subject};
use super::spiffe::{ClusterName, SpiffeId, Workload};
use crate::address::RegionName;

/// For how long a certificate is valid before it is made: clocks differ.
const BACKDATED_S: u64 = 300;

/// A certificate with its key, as PEM.
pub struct Minted {
    /// The certificate, and what leads from it to the root.
    pub chain: String,
    /// The key, in PKCS #8. It is wiped when it is dropped.
    pub key: Zeroizing<String>,
}

/// The authority of a region.
pub struct Authority {
    region: RegionName,
    cluster: ClusterName,
    certificate: String,
    key: KeyPair,
}

impl Authority {
    /// A new one, from a time in seconds since 1970 and for as many seconds.
    pub fn new(
        region: &RegionName,
        cluster: &ClusterName,
        now: u64,
        valid: u64,
    ) -> Result<Self, Unminted> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let domain = format!("{}.{cluster}", region.as_str());
        let mut params = dated(now, valid)?;
        // The time keeps apart the names of an authority and of the one that follows it.
        let name = format!("{domain} authority {now}");
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = vec![uri(&format!("spiffe://{domain}"))?];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?.pem();
        Ok(Authority {
            region: region.clone(),
            cluster: cluster.clone(),
            certificate,
            key,
        })
    }

    /// The one whose certificate and key are given as PEM.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, Unminted> {
        let key = KeyPair::from_pem(key)?;
        let der = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|_| Unminted("the authority's certificate cannot be read".into()))?;
        let claims = Claims::read(&der).map_err(|error| Unminted(error.message))?;
        let Subject::Authority(region, cluster) = claims.subject.clone() else {
            return Err(Unminted("the certificate is not an authority's".into()));
        };
        if claims.is_key(Zeroizing::new(key.serialize_pem()).as_bytes()) != Ok(true) {
            return Err(Unminted("the key is not the authority's".into()));
        }
        Ok(Authority {
            region,
            cluster,
            certificate: certificate.to_owned(),
            key,
        })
    }

    /// Whose authority it is.
    pub fn region(&self) -> &RegionName {
        &self.region
    }

    /// Of which cluster.
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// Its certificate as PEM: the root of its region.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Its key as PEM.
    pub fn key(&self) -> Zeroizing<String> {
        Zeroizing::new(self.key.serialize_pem())
    }

    /// Makes a certificate for a workload of its region, from a time in seconds since
    /// 1970 and for as many seconds. Nodes are called and call; services only call.
    pub fn issue(&self, workload: &Workload, now: u64, valid: u64) -> Result<Minted, Unminted> {
        let id = SpiffeId {
            region: self.region.clone(),
            cluster: self.cluster.clone(),
            workload: workload.clone(),
        };
        let mut params = dated(now, valid)?;
        params
            .distinguished_name
            .push(DnType::CommonName, workload.to_string());
        params.subject_alt_names = vec![uri(&id.to_string())?];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match workload {
            Workload::Node(_) => vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
            Workload::Service(_) => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        self.sign(&params)
    }

    /// Signs whatever is asked for, right or wrong.
    pub(super) fn sign(&self, params: &CertificateParams) -> Result<Minted, Unminted> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let issuer = Issuer::from_ca_cert_pem(&self.certificate, &self.key)?;
        let chain = params.signed_by(&key, &issuer)?.pem();
        Ok(Minted {
            chain,
            key: Zeroizing::new(key.serialize_pem()),
        })
    }
}

/// What is valid from just before a time.
pub(super) fn dated(now: u64, valid: u64) -> Result<CertificateParams, Unminted> {
    let at = |seconds: u64| {
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        OffsetDateTime::from_unix_timestamp(seconds)
            .map_err(|_| Unminted("the time is beyond what a certificate can say".into()))
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = at(now.saturating_sub(BACKDATED_S))?;
    params.not_after = at(now.saturating_add(valid))?;
    Ok(params)
}

/// A URI among a certificate's names.
pub(super) fn uri(text: &str) -> Result<SanType, Unminted> {
    Ok(SanType::URI(text.try_into()?))
}

/// A certificate was not made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unminted(String);

impl fmt::Display for Unminted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unminted {}

impl From<rcgen::Error> for Unminted {
    fn from(error: rcgen::Error) -> Self {
        Unminted(format!("the certificate could not be made: {error}"))
    }
}
