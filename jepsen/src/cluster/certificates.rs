//! Certificates of a cluster under test: each region has an authority of its own.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use domicile_proto::address::RegionName;
use domicile_proto::identity::mint::{Authority, Minted};
use domicile_proto::identity::{ClusterName, Files, SpiffeId, Workload};
use domicile_server::env::Env;

/// The name of clusters under test in their ids.
const CLUSTER: &str = "dev.test";

/// Who calls, as a client and as an operator.
const CALLER: &str = "test";

/// How long certificates are valid, in seconds: longer than any run.
const VALID_S: u64 = 24 * 3600;

/// Where the certificates of a cluster are.
#[derive(Clone, Debug)]
pub struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    /// Makes those of the nodes of a region, from 1, and of who calls them.
    pub fn make(folder: &Path, region: &str, nodes: usize) -> Result<Self> {
        let certificates = Certificates {
            folder: folder.join("certificates"),
        };
        let region = RegionName::new(region)?;
        let now = Env::real().wall_ms() / 1000;
        let authority = Authority::new(&region, &ClusterName::new(CLUSTER)?, now, VALID_S)?;
        for number in 1..=nodes {
            let minted = authority.issue(&Workload::Node(number as u64), now, VALID_S)?;
            let directory = certificates.of_node(region.as_str(), number);
            write(&directory, &authority, &minted)?;
        }
        let caller = Workload::Service(CALLER.into());
        let minted = authority.issue(&caller, now, VALID_S)?;
        write(&certificates.of_callers(), &authority, &minted)?;
        Ok(certificates)
    }

    /// The directory of a node's certificate.
    pub fn of_node(&self, region: &str, number: usize) -> PathBuf {
        self.folder.join(format!("{region}-{number}"))
    }

    /// The directory of the certificate of who calls.
    pub fn of_callers(&self) -> PathBuf {
        self.folder.join("callers")
    }

    /// The id of who calls from a region, who is its nodes' operator, too.
    pub fn operator(region: &str) -> Result<SpiffeId> {
        let (region, cluster) = (RegionName::new(region)?, ClusterName::new(CLUSTER)?);
        Ok(SpiffeId::service(&region, &cluster, CALLER)?)
    }
}

fn write(directory: &Path, authority: &Authority, minted: &Minted) -> Result<()> {
    let bundles = directory.join(Files::BUNDLES);
    fs::create_dir_all(&bundles).context("no directory for certificates")?;
    let bundle = format!("{}{}", authority.region(), Files::BUNDLE_SUFFIX);
    fs::write(bundles.join(bundle), authority.certificate())?;
    let mut key = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(directory.join(Files::KEY))?;
    key.write_all(minted.key.as_bytes())?;
    fs::write(directory.join(Files::CERTIFICATE), &minted.chain)?;
    Ok(())
}
