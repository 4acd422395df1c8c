//! The authority of a region, as it lies in a directory.
//!
//! ```text
//! ca.crt, ca.key    what makes certificates
//! bundles/eu.pem    the roots of its own region, and those of each other one
//! next/             ca.crt and ca.key of the one that is to follow
//! previous/         ca.crt and ca.key of the one before, until it is left
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use domicile_proto::address::RegionName;
use domicile_proto::identity::mint::Authority;
use domicile_proto::identity::{Bundles, Claims, ClusterName, Files, Subject};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;

use super::disk;
use crate::failure::Failure;

/// Where PEM begins and ends a certificate.
const PEM_BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const PEM_END: &str = "-----END CERTIFICATE-----";

/// The directory of a region's authority, or of one that is to follow or was before.
#[derive(Clone, Debug)]
pub(super) struct Directory(PathBuf);

impl Directory {
    /// The directory at a path.
    pub(super) fn new(path: impl Into<PathBuf>) -> Self {
        Directory(path.into())
    }

    /// The path.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// The authority's certificate.
    pub(super) fn certificate(&self) -> PathBuf {
        self.0.join("ca.crt")
    }

    /// The authority's key.
    pub(super) fn key(&self) -> PathBuf {
        self.0.join("ca.key")
    }

    /// The authority that is to follow.
    pub(super) fn next(&self) -> Self {
        Directory(self.0.join("next"))
    }

    /// The authority before.
    pub(super) fn previous(&self) -> Self {
        Directory(self.0.join("previous"))
    }

    /// The directory of bundles.
    pub(super) fn bundles(&self) -> PathBuf {
        self.0.join(Files::BUNDLES)
    }

    /// The bundle of a region.
    pub(super) fn bundle(&self, region: &RegionName) -> PathBuf {
        bundle(&self.0, region)
    }

    /// The region of the authority, as its certificate says.
    pub(super) fn region(&self) -> Result<RegionName, Failure> {
        let path = self.certificate();
        let wrong =
            |what: &dyn std::fmt::Display| Failure::local(format!("{}: {what}", path.display()));
        let pem = disk::read(&path)?.ok_or_else(|| missing(&path))?;
        let der = CertificateDer::from_pem_slice(&pem).map_err(|_| wrong(&"it is no PEM"))?;
        match Claims::read(&der).map_err(|error| wrong(&error))?.subject {
            Subject::Authority(region, _) => Ok(region),
            Subject::Workload(id) => Err(wrong(&format!("{id} is no authority"))),
        }
    }

    /// Reads the authority.
    pub(super) fn load(&self) -> Result<Authority, Failure> {
        let (certificate, key) = (self.certificate(), self.key());
        let pem = disk::read(&certificate)?.ok_or_else(|| missing(&certificate))?;
        let secret = disk::read_secret(&key)?.ok_or_else(|| missing(&key))?;
        let not_text = |path: &Path| Failure::local(format!("{} is no PEM", path.display()));
        let pem = std::str::from_utf8(&pem).map_err(|_| not_text(&certificate))?;
        let secret = std::str::from_utf8(&secret).map_err(|_| not_text(&key))?;
        Authority::from_pem(pem, secret).map_err(|error| {
            let place = self.0.display();
            let hint = match self.next().path().is_dir() && self.previous().path().is_dir() {
                true => "; a switch was cut off: run `domicile cert rotate --switch` again",
                false => "",
            };
            Failure::local(format!("the authority in {place}: {error}{hint}"))
        })
    }

    /// The bundles of all regions that are known, and that they fit together.
    pub(super) fn known(&self, cluster: &ClusterName) -> Result<Known, Failure> {
        known(&self.0, cluster)
    }
}

fn missing(path: &Path) -> Failure {
    Failure::local(format!(
        "there is no {}: give the directory that `domicile cert ca` made",
        path.display()
    ))
}

/// The bundles in a directory.
pub(super) struct Known {
    /// What is in each file, by region.
    pub(super) files: BTreeMap<RegionName, Vec<u8>>,
    /// The roots.
    pub(super) bundles: Bundles,
}

/// The bundle of a region in a directory of a workload or an authority.
pub(super) fn bundle(directory: &Path, region: &RegionName) -> PathBuf {
    let name = format!("{}{}", region.as_str(), Files::BUNDLE_SUFFIX);
    directory.join(Files::BUNDLES).join(name)
}

/// The files of bundles in a directory of a workload or an authority, in order; none if
/// there is no such directory.
pub(super) fn bundle_names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory.join(Files::BUNDLES));
    let entries = entries.into_iter().flatten().filter_map(Result::ok);
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<_> = names
        .filter(|name| name.ends_with(Files::BUNDLE_SUFFIX) && !name.starts_with('.'))
        .collect();
    names.sort();
    names
}

/// The bundles in a directory of a workload or an authority.
pub(super) fn known(directory: &Path, cluster: &ClusterName) -> Result<Known, Failure> {
    let path = directory.join(Files::BUNDLES);
    let mut files = BTreeMap::new();
    let mut bundles = Bundles::new(cluster.clone());
    for name in bundle_names(directory) {
        let region = name.trim_end_matches(Files::BUNDLE_SUFFIX);
        let place = path.join(&name);
        let wrong =
            |error: &dyn std::fmt::Display| Failure::local(format!("{}: {error}", place.display()));
        let region = RegionName::new(region).map_err(|error| wrong(&error))?;
        let pem = disk::read(&place)?.unwrap_or_default();
        bundles
            .add(region.clone(), &pem)
            .map_err(|error| wrong(&error))?;
        files.insert(region, pem);
    }
    Ok(Known { files, bundles })
}

/// The certificates in PEM, each as it stands there.
pub(super) fn blocks(pem: &str) -> Vec<&str> {
    let mut blocks = Vec::new();
    let mut rest = pem;
    while let Some(begin) = rest.find(PEM_BEGIN) {
        rest = &rest[begin..];
        let Some(end) = rest.find(PEM_END) else {
            break;
        };
        let (block, after) = rest.split_at(end + PEM_END.len());
        blocks.push(block);
        rest = after;
    }
    blocks
}
