//! Certificates of the demo: an authority in each region, for development alone.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use domicile_proto::address::RegionName;
use domicile_proto::identity::mint::{Authority, Minted};
use domicile_proto::identity::{ClusterName, Files, SpiffeId, Workload};

use super::name::Name;
use crate::env::{Env, Task};

/// The name of the cluster in its ids: nodes with such certificates serve on this machine
/// alone.
const CLUSTER: &str = "dev.demo";

/// Who types at the prompt, in each region.
const CALLER: &str = "demo";

/// How long a certificate is valid, and how often it is made anew, in seconds.
const VALID_S: u64 = 24 * 3600;
const RENEWED_S: u64 = VALID_S / 3;

/// How long an authority is valid, in seconds: longer than a demo runs.
const AUTHORITY_VALID_S: u64 = 30 * VALID_S;

/// The certificates of the nodes and of who calls them, in a directory.
pub(super) struct Certificates {
    env: Env,
    directory: PathBuf,
    cluster: ClusterName,
    authorities: Vec<Authority>,
    nodes: Vec<Name>,
}

impl Certificates {
    /// Makes all of them anew.
    pub(super) fn make(
        env: Env,
        directory: PathBuf,
        regions: &[RegionName],
        nodes: Vec<Name>,
    ) -> Result<Arc<Self>> {
        let cluster = ClusterName::new(CLUSTER)?;
        let now = env.wall_ms() / 1000;
        let authorities = regions
            .iter()
            .map(|region| Authority::new(region, &cluster, now, AUTHORITY_VALID_S))
            .collect::<Result<_, _>>()?;
        let certificates = Certificates {
            env,
            directory,
            cluster,
            authorities,
            nodes,
        };
        certificates.issue()?;
        Ok(Arc::new(certificates))
    }

    /// Makes those of nodes and callers anew before they end, for as long as the task is
    /// kept.
    pub(super) fn keep(self: &Arc<Self>) -> Task {
        let this = self.clone();
        self.env.spawn("certificates", async move {
            loop {
                tokio::time::sleep(Duration::from_secs(RENEWED_S)).await;
                if let Err(error) = this.issue() {
                    tracing::error!(%error, "the certificates of the demo were not renewed");
                }
            }
        })
    }

    /// The directory of a node's certificate.
    pub(super) fn of_node(&self, name: &Name) -> PathBuf {
        self.directory
            .join(format!("{}-{}", name.region, name.node))
    }

    /// The directory of the certificate of who calls from a region.
    pub(super) fn of_callers(&self, region: &RegionName) -> PathBuf {
        self.directory.join(format!("{region}-callers"))
    }

    /// Who may ask for what operators ask: who types at the prompt, wherever he is.
    pub(super) fn operators(&self) -> Vec<SpiffeId> {
        let regions = self.authorities.iter().map(Authority::region);
        regions
            .filter_map(|region| SpiffeId::service(region, &self.cluster, CALLER).ok())
            .collect()
    }

    fn issue(&self) -> Result<()> {
        for name in &self.nodes {
            let workload = Workload::Node(name.node);
            self.write(&self.of_node(name), &name.region, &workload)?;
        }
        for authority in &self.authorities {
            let region = authority.region();
            let workload = Workload::Service(CALLER.into());
            self.write(&self.of_callers(region), region, &workload)?;
        }
        Ok(())
    }

    /// Writes the certificate of a workload with its key and the roots of all regions.
    fn write(&self, directory: &Path, region: &RegionName, workload: &Workload) -> Result<()> {
        let mut authorities = self.authorities.iter();
        let authority = authorities.find(|authority| authority.region() == region);
        let authority = authority.ok_or_else(|| anyhow!("{region} has no authority"))?;
        let now = self.env.wall_ms() / 1000;
        let Minted { chain, key } = authority.issue(workload, now, VALID_S)?;
        let bundles = directory.join(Files::BUNDLES);
        fs::create_dir_all(&bundles).context("there is no directory for certificates")?;
        for authority in &self.authorities {
            let name = format!("{}{}", authority.region(), Files::BUNDLE_SUFFIX);
            fs::write(bundles.join(name), authority.certificate())?;
        }
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(directory.join(Files::KEY))?;
        file.write_all(key.as_bytes())?;
        fs::write(directory.join(Files::CERTIFICATE), chain)?;
        Ok(())
    }
}
