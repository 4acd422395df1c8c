//! What is in force at this node.

use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use domicile_proto::disk::v1 as disk;
use tokio::sync::watch;

use super::atlas::Atlas;
use super::lease::Lease;
use super::region::RegionCatalog;
use crate::env::Env;
use crate::error::Result;

/// What is in force at this node. Readers never wait.
pub struct InForce {
    atlas: ArcSwapOption<Atlas>,
    adopted: watch::Sender<u64>,
    region: ArcSwap<RegionCatalog>,
    lease: Lease,
}

impl InForce {
    /// Nothing is known yet, and the lease has lapsed.
    pub fn new(env: Env) -> Arc<Self> {
        Arc::new(InForce {
            atlas: ArcSwapOption::empty(),
            adopted: watch::channel(0).0,
            region: ArcSwap::default(),
            lease: Lease::lapsed(env),
        })
    }

    /// What is known of policy, regions and tags; `None`: no cluster yet.
    pub fn atlas(&self) -> Option<Arc<Atlas>> {
        self.atlas.load_full()
    }

    /// The same without a share of it, for a moment.
    pub(crate) fn look(&self) -> arc_swap::Guard<Option<Arc<Atlas>>> {
        self.atlas.load()
    }

    /// Takes over a newer state of the control group.
    pub fn adopt(&self, atlas: Atlas) {
        let version = atlas.version();
        self.atlas.store(Some(Arc::new(atlas)));
        self.adopted.send_replace(version);
    }

    /// Tells the policy version whenever a state of the control group was adopted, also
    /// one of the same version.
    pub fn watch_version(&self) -> watch::Receiver<u64> {
        self.adopted.subscribe()
    }

    /// What is known of this node's region; the empty one: not formed yet.
    pub fn region(&self) -> Arc<RegionCatalog> {
        self.region.load_full()
    }

    /// Takes over a newer state of the region group.
    pub fn adopt_region(&self, catalog: disk::Catalog) -> Result<()> {
        self.region.store(Arc::new(RegionCatalog::new(catalog)?));
        Ok(())
    }

    /// Until when this node may act by it towards other regions.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }
}
