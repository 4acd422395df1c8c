//! Following the catalog: what is meant to be here, is made to be here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use domicile_proto::internal::v1 as wire;
use domicile_proto::policy::Policy;
use wire::catalog_change::Change;

use super::{Placement, REGION_GROUP};
use crate::error::{Error, Reason, Result};
use crate::kv::Placed;
use crate::raft::ReplicaId;
use crate::storage::GroupId;

/// How often the catalog is looked at besides when it changes: what could not
/// be done is tried again.
const RECONCILE_STEP: Duration = Duration::from_millis(500);

/// What this room reads of a policy.
pub(super) struct PolicyFacts {
    /// The version.
    pub(super) version: u64,
    /// The digest of its canonical form.
    pub(super) digest: String,
    /// Every tag with its home region.
    pub(super) homes: BTreeMap<String, String>,
}

/// Reads a policy document. A field that is not enforced yet is refused.
pub(super) fn read_policy(text: &str) -> Result<PolicyFacts> {
    let invalid = |message: String| Error::new(Reason::PolicyInvalid, message);
    let policy = Policy::parse(text).map_err(|e| invalid(e.to_string()))?;
    if let Some(first) = policy.unenforced().first() {
        return Err(invalid(format!(
            "{first}; this release does not enforce it, so it is refused and not ignored"
        )));
    }
    Ok(PolicyFacts {
        version: policy.version().get(),
        digest: policy.digest().to_string(),
        homes: policy
            .tags()
            .iter()
            .map(|(tag, rules)| (tag.to_string(), rules.home.to_string()))
            .collect(),
    })
}

impl Placement {
    /// Runs for as long as the node does.
    pub(super) async fn follow(self: Arc<Self>) {
        loop {
            if let Err(error) = self.reconcile().await {
                tracing::warn!(%error, "placement not finished; trying again");
            }
            let changed = async {
                match self.region_group() {
                    Ok(region) => {
                        let mut progress = region.watch_progress();
                        progress.mark_unchanged();
                        // An error means that the group closes; the step ends
                        // the wait then.
                        if progress.changed().await.is_err() {
                            std::future::pending::<()>().await;
                        }
                    }
                    Err(_) => std::future::pending().await,
                }
            };
            // Whichever comes first; running again is cheap and harmless.
            drop(tokio::time::timeout(RECONCILE_STEP, changed).await);
        }
    }

    /// Takes over the catalog that is applied here: addresses, fence, routes.
    pub(super) fn adopt(&self) -> Result<()> {
        let Some(catalog) = self.catalog()? else {
            return Ok(());
        };
        if self.directory.placed().catalog == catalog {
            return Ok(());
        }
        self.peers.learn(&catalog.nodes);
        let policy = read_policy(&catalog.policy)?;
        let groups = catalog
            .groups
            .iter()
            .filter(|g| !g.tag.is_empty())
            .map(|g| (g.tag.clone(), GroupId(g.group)))
            .collect();
        self.fence.send_replace(wire::Fence {
            policy_version: policy.version,
            auth_revision: 0,
            home_epoch: 1,
        });
        self.directory.update(Placed {
            catalog,
            policy_version: policy.version,
            policy_digest: policy.digest,
            homes: policy.homes,
            groups,
        });
        Ok(())
    }

    async fn reconcile(&self) -> Result<()> {
        self.adopt()?;
        let placed = self.directory.placed();
        let catalog = &placed.catalog;
        if catalog.cluster.is_empty() {
            return Ok(());
        }
        let node = self.speaker.node().0;
        for group in &catalog.groups {
            let Some(here) = group.replicas.iter().find(|m| m.node == node) else {
                continue;
            };
            match self.groups.get(GroupId(group.group)) {
                Some(open) if open.replica() != ReplicaId(here.replica) => {
                    tracing::warn!(
                        group = group.group,
                        "this node's replica was replaced; it is not used any more"
                    );
                }
                Some(_) => {}
                // Formed without this node's data: it joins when it is told
                // to, under a new replica id, and never initialises.
                None if group.formed => {}
                None => self.found(catalog, group, here).await?,
            }
            if !group.formed {
                self.initialize(group).await?;
            }
        }
        Ok(())
    }

    /// Anchors and opens a replica of a group that is being formed.
    async fn found(
        &self,
        catalog: &wire::Catalog,
        group: &wire::Group,
        here: &wire::Member,
    ) -> Result<()> {
        let replica = wire::AnchoredReplica {
            group: group.group,
            tag: group.tag.clone(),
            incarnation: group.incarnation,
            replica: here.replica,
            peers: catalog.nodes.clone(),
            founders: group.replicas.clone(),
            ..wire::AnchoredReplica::default()
        };
        self.anchor(&catalog.cluster, replica.clone())?;
        self.open(&replica).await.map(|_| ())
    }

    /// Initialises a group that is not formed: its first member's node begins,
    /// and the region group's leader notes the first commit.
    async fn initialize(&self, group: &wire::Group) -> Result<()> {
        let Some(open) = self.groups.get(GroupId(group.group)) else {
            return Ok(());
        };
        let first = group.replicas.first().map(|m| m.replica);
        if first == Some(open.replica().0) && open.identity().group != REGION_GROUP {
            open.initialize(&group.replicas).await?;
        }
        let region = self.region_group()?;
        if region.leads() && open.progress().index.0 > 0 && open.leader().is_some() {
            region
                .propose_catalog(Change::GroupFormed(group.group))
                .await?;
        }
        Ok(())
    }
}
