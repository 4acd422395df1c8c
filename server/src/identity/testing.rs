//! Authorities and certificates for tests.

use std::path::Path;
use std::sync::Arc;

use domicile_proto::address::RegionName;
use domicile_proto::identity::mint::{Authority, Minted};
use domicile_proto::identity::{
    Bundles, ClusterName, Credentials, Files, Identity, SpiffeId, Workload,
};
use rustls::pki_types::UnixTime;

/// How long what is made here is valid, in seconds.
const VALID_S: u64 = 3600;

/// The cluster of tests.
pub(crate) fn cluster() -> ClusterName {
    ClusterName::new("dev.test").expect("a name")
}

fn now() -> u64 {
    UnixTime::now().as_secs()
}

/// The authority of a region.
pub(crate) fn authority(region: &str) -> Authority {
    let region = RegionName::new(region).expect("a name");
    Authority::new(&region, &cluster(), now(), VALID_S).expect("an authority")
}

/// A certificate of a workload, valid for an hour.
pub(crate) fn issue(authority: &Authority, workload: &Workload) -> Minted {
    let minted = authority.issue(workload, now(), VALID_S);
    minted.expect("a certificate")
}

/// Writes a directory of a certificate with the bundles of some regions.
pub(crate) fn write(directory: &Path, minted: &Minted, authorities: &[&Authority]) {
    let bundles = directory.join(Files::BUNDLES);
    std::fs::create_dir_all(&bundles).expect("a directory");
    for authority in authorities {
        let name = format!("{}{}", authority.region(), Files::BUNDLE_SUFFIX);
        std::fs::write(bundles.join(name), authority.certificate()).expect("written");
    }
    write_pair(directory, minted);
}

/// Writes a certificate and its key.
pub(crate) fn write_pair(directory: &Path, minted: &Minted) {
    use std::os::unix::fs::PermissionsExt as _;
    let key = directory.join(Files::KEY);
    std::fs::write(&key, minted.key.as_bytes()).expect("written");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).expect("its mode");
    std::fs::write(directory.join(Files::CERTIFICATE), &minted.chain).expect("written");
}

/// A workload as one that is verified.
pub(crate) fn identity(id: &SpiffeId) -> Identity {
    let authority = authority(id.region.as_str());
    let minted = issue(&authority, &id.workload);
    let mut bundles = Bundles::new(cluster());
    let root = authority.certificate().as_bytes();
    bundles.add(id.region.clone(), root).expect("a root");
    let bundles = Arc::new(bundles);
    let (chain, key) = (minted.chain.as_bytes(), minted.key.as_bytes());
    let credentials = Credentials::from_pem(chain, key, bundles, UnixTime::now());
    credentials.expect("its own").identity().clone()
}
