//! What a workload's certificate, key and bundles look like in a directory.
//!
//! ```text
//! tls.crt        the certificate, then what leads from it to a root
//! tls.key        its key
//! bundles/       a file for each region, with the region's roots
//!   eu.pem
//!   us.pem
//! ```
//!
//! The first two are named as secrets of Kubernetes name them.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, UnixTime, pem::PemObject as _};
use zeroize::Zeroizing;

use super::bundles::Bundles;
use super::credentials::Credentials;
use super::refusal::{Refusal, Refused};
use super::verify::id_in;
use crate::address::RegionName;

/// The contents of such a directory, each file whole.
#[derive(Clone, PartialEq, Eq)]
pub struct Files {
    /// `tls.crt`.
    pub certificate: Vec<u8>,
    /// `tls.key`.
    pub key: Zeroizing<Vec<u8>>,
    /// What is in `bundles/`, by the name of the file.
    pub bundles: BTreeMap<String, Vec<u8>>,
}

impl Files {
    /// The name of the certificate's file.
    pub const CERTIFICATE: &str = "tls.crt";

    /// The name of the key's file.
    pub const KEY: &str = "tls.key";

    /// The name of the directory of bundles.
    pub const BUNDLES: &str = "bundles";

    /// How the name of a bundle's file ends, behind its region.
    pub const BUNDLE_SUFFIX: &str = ".pem";

    /// Reads the files with a function that reads one, and one that names those in a
    /// directory. What is hidden is left out: secrets of Kubernetes have such links.
    pub fn read<E>(
        mut file: impl FnMut(&str) -> Result<Vec<u8>, E>,
        names: impl FnOnce(&str) -> Result<Vec<String>, E>,
    ) -> Result<Self, E> {
        let certificate = file(Self::CERTIFICATE)?;
        let key = Zeroizing::new(file(Self::KEY)?);
        let mut bundles = BTreeMap::new();
        for name in names(Self::BUNDLES)? {
            if name.ends_with(Self::BUNDLE_SUFFIX) && !name.starts_with('.') {
                let bundle = file(&format!("{}/{name}", Self::BUNDLES))?;
                bundles.insert(name, bundle);
            }
        }
        Ok(Files {
            certificate,
            key,
            bundles,
        })
    }

    /// Makes credentials of them, as they count now.
    pub fn credentials(&self, now: UnixTime) -> Result<Credentials, Refused> {
        let malformed = |what: String| Refused::new(Refusal::Malformed, what);
        let leaf = CertificateDer::from_pem_slice(&self.certificate)
            .map_err(|_| malformed(format!("{} holds no certificate", Self::CERTIFICATE)))?;
        let id = id_in(&leaf)?;
        let mut bundles = Bundles::new(id.cluster);
        for (name, pem) in &self.bundles {
            let region = name.strip_suffix(Self::BUNDLE_SUFFIX);
            let region = region.and_then(|region| RegionName::new(region).ok());
            let region = region.ok_or_else(|| {
                malformed(format!(
                    "{}/{name} names no region; a bundle is called REGION{}",
                    Self::BUNDLES,
                    Self::BUNDLE_SUFFIX
                ))
            })?;
            bundles.add(region, pem)?;
        }
        Credentials::from_pem(&self.certificate, &self.key, Arc::new(bundles), now)
    }
}
