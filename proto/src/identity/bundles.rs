//! The roots of every region.

use std::collections::BTreeMap;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::anchor_from_trusted_cert;

use super::refusal::{Refusal, Refused};
use super::spiffe::ClusterName;
use super::verify::check_authority;
use crate::address::RegionName;

/// The most roots of a region: the one in use, the next, and some that are being left.
const ROOTS_MAX: usize = 16;

/// The roots of the authorities of a cluster's regions.
///
/// While an authority is replaced its region has two: both count.
#[derive(Clone, Debug)]
pub struct Bundles {
    cluster: ClusterName,
    roots: BTreeMap<RegionName, Vec<Root>>,
}

/// A root, and until when it counts, in seconds since 1970: the library does not look.
#[derive(Clone, Debug)]
struct Root {
    anchor: TrustAnchor<'static>,
    not_after: u64,
}

impl Bundles {
    /// None yet, for a cluster.
    pub fn new(cluster: ClusterName) -> Self {
        Bundles {
            cluster,
            roots: BTreeMap::new(),
        }
    }

    /// Adds the roots of a region, as PEM. An error if there is none, one is no
    /// authority, or another region has one of them: what it makes could be of either.
    pub fn add(&mut self, region: RegionName, pem: &[u8]) -> Result<(), Refused> {
        let malformed = |what: &str| Refused::new(Refusal::Malformed, format!("{region}: {what}"));
        let mut roots = Vec::new();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|_| malformed("the PEM cannot be read"))?;
            let not_after = check_authority(&certificate)?;
            let anchor = anchor_from_trusted_cert(&certificate)
                .map_err(|_| malformed("a root cannot be read"))?
                .to_owned();
            roots.push(Root { anchor, not_after });
        }
        if roots.is_empty() || roots.len() > ROOTS_MAX {
            return Err(malformed("a region has 1 to 16 roots"));
        }
        let shared = |root: &Root| {
            let key = &root.anchor.subject_public_key_info;
            let others = self.roots.iter().filter(|(name, _)| **name != region);
            let mut others = others.flat_map(|(_, roots)| roots);
            others.any(|other| other.anchor.subject_public_key_info == *key)
        };
        if roots.iter().any(shared) {
            return Err(malformed(
                "another region has one of its roots; each region needs an authority of its own",
            ));
        }
        self.roots.insert(region, roots);
        Ok(())
    }

    /// The cluster.
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// The regions that have roots here.
    pub fn regions(&self) -> impl Iterator<Item = &RegionName> {
        self.roots.keys()
    }

    /// The roots of a region that count at a time; `None`: it is not known.
    pub(super) fn roots(&self, region: &RegionName, now: UnixTime) -> Option<Vec<TrustAnchor<'_>>> {
        let roots = self.roots.get(region)?.iter();
        let valid = roots.filter(|root| now.as_secs() <= root.not_after);
        Some(valid.map(|root| root.anchor.clone()).collect())
    }
}
