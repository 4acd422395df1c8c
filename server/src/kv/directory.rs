//! What this node knows of its region: which tags it serves, through which
//! group, on which nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use domicile_proto::internal::v1 as wire;

use crate::error::{Error, Reason, Result};
use crate::raft::{Group, Groups, NodeId};
use crate::storage::GroupId;

/// The tags and groups of the region, as of the newest catalog applied here.
#[derive(Clone, Debug, Default)]
pub struct Placed {
    /// The catalog.
    pub catalog: wire::Catalog,
    /// The policy version in force; 0: none yet.
    pub policy_version: u64,
    /// The digest of the policy's canonical form.
    pub policy_digest: String,
    /// Every tag of the policy, with its home region.
    pub homes: BTreeMap<String, String>,
    /// The group of each tag homed here.
    pub groups: BTreeMap<String, GroupId>,
}

/// Where requests for a tag go.
#[derive(Clone)]
pub enum Route {
    /// A replica of the tag's group is here.
    Here(Arc<Group>),
    /// The group is on other nodes of this region.
    There(GroupId, BTreeSet<NodeId>),
}

/// What this node knows of its region. Readers never wait.
pub struct Directory {
    placed: ArcSwap<Placed>,
    groups: Arc<Groups>,
}

impl Directory {
    /// Knows nothing yet.
    pub fn new(groups: Arc<Groups>) -> Self {
        Directory {
            placed: ArcSwap::default(),
            groups,
        }
    }

    /// Takes over a newer catalog.
    pub fn update(&self, placed: Placed) {
        self.placed.store(Arc::new(placed));
    }

    /// What is known.
    pub fn placed(&self) -> Arc<Placed> {
        self.placed.load_full()
    }

    /// The key of the MAC on read positions; `None`: not formed yet.
    pub fn token_key(&self) -> Option<Bytes> {
        let placed = self.placed.load();
        let key = &placed.catalog.token_key;
        (!key.is_empty()).then(|| key.clone())
    }

    /// Admits a request and says where it goes, from its tag alone: nothing of
    /// the answer depends on any key.
    pub fn route(&self, tag: &str) -> Result<Route> {
        let placed = self.placed.load();
        let Some(group) = placed.groups.get(tag) else {
            return Err(refusal(&placed, tag));
        };
        if let Some(group) = self.groups.get(*group) {
            return Ok(Route::Here(group));
        }
        let nodes = placed
            .catalog
            .groups
            .iter()
            .filter(|g| g.group == group.0)
            .flat_map(|g| &g.replicas)
            .map(|r| NodeId(r.node))
            .collect();
        Ok(Route::There(*group, nodes))
    }
}

fn refusal(placed: &Placed, tag: &str) -> Error {
    if placed.catalog.cluster.is_empty() {
        return Error::new(
            Reason::NotFormed,
            "this node belongs to no cluster yet; run `domicile cluster init`",
        );
    }
    match placed.homes.get(tag) {
        Some(home) => Error::new(
            Reason::NotHeldHere,
            format!("this region does not serve the tag; send the request to its home {home}"),
        )
        .fact("home", home),
        None if tag.is_empty() => Error::invalid(format!(
            "the request names no residency tag; set the metadata `{}`",
            domicile_proto::TAG_METADATA
        )),
        None => Error::new(
            Reason::UnknownTag,
            "the policy does not know the tag; see `domicile policy show`",
        ),
    }
}
