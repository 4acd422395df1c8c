//! Where a request goes, decided from its tag and its caller's region alone.

use std::sync::Arc;

use arc_swap::ArcSwap;
use domicile_proto::address::{RegionName, Tag};
use domicile_proto::internal::v1 as wire;
use domicile_proto::policy::{Denial, Isolation, Verdict};

use crate::error::{Error, Reason, Result};
use crate::kv::store::elsewhere;
use crate::raft::{Group, Groups};
use crate::residency::{Atlas, Gate, TagPlace};
use crate::seeded::{self, Bug};
use crate::storage::GroupId;

/// Where a request for a tag goes.
#[derive(Clone)]
pub struct Route {
    /// The policy that admitted the request. Whatever else is decided about the
    /// request is decided by it, not by what may have come into force since; the
    /// gates alone look at the newest.
    pub atlas: Arc<Atlas>,
    /// The region of the caller.
    pub caller: RegionName,
    /// The tag.
    pub tag: Tag,
    /// The region that accepts its writes.
    pub home: RegionName,
    /// The epoch of the home.
    pub epoch: u64,
    /// The group of its records, at the home and at every mirror.
    pub range: GroupId,
    /// What of the tag is on this node.
    pub here: Here,
}

/// What of a tag is on this node.
#[derive(Clone)]
pub enum Here {
    /// A replica of the home's group.
    Home(Arc<Group>),
    /// A replica of a mirror's group.
    Mirror {
        /// The replica.
        group: Arc<Group>,
        /// Whether it goes on serving while the policy lease has lapsed.
        serves_isolated: bool,
    },
    /// Nothing: requests are passed on to the home.
    Nothing,
}

impl Route {
    /// For whom a request is passed on.
    pub(super) fn on_behalf(&self) -> wire::OnBehalf {
        wire::OnBehalf {
            region: self.caller.to_string(),
            ..wire::OnBehalf::default()
        }
    }

    /// The replica of the tag's group on this node.
    pub fn group(&self) -> Option<&Arc<Group>> {
        match &self.here {
            Here::Home(group) | Here::Mirror { group, .. } => Some(group),
            Here::Nothing => None,
        }
    }
}

/// What this node knows of its region, and who is sent where. Readers never
/// wait.
pub struct Directory {
    gate: Arc<Gate>,
    groups: Arc<Groups>,
    catalog: ArcSwap<wire::Catalog>,
}

impl Directory {
    /// Knows nothing yet.
    pub fn new(gate: Arc<Gate>, groups: Arc<Groups>) -> Self {
        Directory {
            gate,
            groups,
            catalog: ArcSwap::default(),
        }
    }

    /// Takes over a newer catalog of the region.
    pub fn update(&self, catalog: wire::Catalog) {
        self.catalog.store(Arc::new(catalog));
    }

    /// The catalog of the region; the empty one: not formed yet.
    pub fn catalog(&self) -> Arc<wire::Catalog> {
        self.catalog.load_full()
    }

    /// What is known of policy, regions and tags.
    pub fn atlas(&self) -> Option<Arc<Atlas>> {
        self.gate.atlas()
    }

    /// Admits a request of a caller and says where it goes. Nothing of the
    /// answer depends on any key.
    pub fn route(&self, tag: &str, caller: &RegionName) -> Result<Route> {
        let atlas = self.formed()?;
        let place = atlas.place(tag).ok_or_else(|| unknown(tag))?;
        let region = self.gate.region();
        let unchecked = seeded::is_on(Bug::AccessUnchecked);
        if !unchecked && let Verdict::Denied(denial) = atlas.may_serve(&place.tag, region, caller) {
            return Err(refusal(&atlas, &place.tag, caller, denial));
        }
        self.holds_lease_for(caller, &place.home.region)?;
        Ok(self.route_by(&atlas, place, caller))
    }

    /// Whether callers of a region may be served by what is known of the policy.
    pub fn holds_lease_for(&self, caller: &RegionName, home: &RegionName) -> Result<()> {
        if caller == self.gate.region() {
            return Ok(());
        }
        // A tightening that was not heard of may have forbidden it.
        let held = self.gate.hold_lease();
        held.map_err(|lapsed| lapsed.fact("home", home))
    }

    /// Where a request goes that a node of region `from` passed on to the home for
    /// a caller: that node has admitted the caller by what it knew, and this one
    /// judges again. The node itself must be one that may handle the tag.
    pub fn route_home(
        &self,
        tag: &str,
        from: &RegionName,
        caller: Option<&wire::OnBehalf>,
    ) -> Result<Route> {
        let region = caller.map_or("", |caller| &caller.region);
        let caller = RegionName::new(region).map_err(|e| {
            Error::invalid(format!("the region of a caller that was passed on: {e}"))
        })?;
        let atlas = self.formed()?;
        let place = atlas.place(tag).ok_or_else(|| unknown(tag))?;
        let unchecked = seeded::is_on(Bug::AccessUnchecked);
        if !unchecked && !atlas.may_handle(&place.tag, from) {
            return Err(Error::new(
                Reason::ResidencyViolation,
                format!("no node of {from} may serve {}", place.tag),
            ));
        }
        if !unchecked && let Verdict::Denied(denial) = atlas.may_serve(&place.tag, from, &caller) {
            return Err(refusal(&atlas, &place.tag, &caller, denial));
        }
        let route = self.route_by(&atlas, place, &caller);
        match route.here {
            Here::Home(_) => Ok(route),
            // A node that was replaced does not have its group yet; another one has.
            Here::Nothing if route.home == *self.gate.region() => Err(elsewhere()),
            _ => Err(Error::new(
                Reason::WrongHome,
                format!("the home of {} is {}", route.tag, route.home),
            )),
        }
    }

    /// What is known now of policy, regions and tags. A request asks once.
    fn formed(&self) -> Result<Arc<Atlas>> {
        self.gate.atlas().ok_or_else(|| {
            Error::new(
                Reason::NotFormed,
                "this node belongs to no cluster yet; run `domicile cluster init`",
            )
        })
    }

    fn route_by(&self, atlas: &Arc<Atlas>, place: &TagPlace, caller: &RegionName) -> Route {
        let here = match self.groups.get(place.group) {
            Some(group) if place.home.region == *self.gate.region() => Here::Home(group),
            Some(group) => Here::Mirror {
                group,
                serves_isolated: atlas
                    .policy
                    .tag(&place.tag)
                    .is_some_and(|rules| rules.on_isolation == Isolation::Serve),
            },
            None => Here::Nothing,
        };
        Route {
            atlas: atlas.clone(),
            caller: caller.clone(),
            tag: place.tag.clone(),
            home: place.home.region.clone(),
            epoch: place.home.epoch,
            range: place.group,
            here,
        }
    }
}

fn unknown(tag: &str) -> Error {
    if tag.is_empty() {
        return Error::invalid(format!(
            "the request names no residency tag; set the metadata `{}`",
            domicile_proto::TAG_METADATA
        ));
    }
    Error::new(
        Reason::UnknownTag,
        "the policy does not know the tag; see `domicile policy show`",
    )
}

/// Refuses a caller. One who may call for the tag elsewhere is told where.
fn refusal(atlas: &Atlas, tag: &Tag, caller: &RegionName, denial: Denial) -> Error {
    let home = match atlas.place(tag.as_str()) {
        Some(place) => place.home.region.clone(),
        None => return unknown(tag.as_str()),
    };
    let reason = denial.reason();
    if reason != Reason::NotHeldHere {
        return Error::new(
            reason,
            format!("callers of {caller} may not call for {tag}: {denial}"),
        )
        .fact("tag", tag)
        .fact("caller_region", caller);
    }
    let error = Error::new(
        Reason::NotHeldHere,
        format!("no node of this region may serve {tag}; its home is {home}"),
    )
    .fact("tag", tag)
    .fact("home", &home);
    if !atlas.may_access(tag, caller).is_allowed() {
        return error;
    }
    let nodes = atlas.nodes(home.as_str()).iter();
    let endpoints: Vec<&str> = nodes
        .filter_map(|node| address_for(node, &home, caller))
        .collect();
    match endpoints[..] {
        [] => error,
        _ => error.fact("endpoints", endpoints.join(",")),
    }
}

/// Where callers of a region reach a node of another as what they are; `None`:
/// nowhere. At the address for callers of the node's own region they would pass
/// for such.
fn address_for<'n>(
    node: &'n wire::Node,
    region: &RegionName,
    caller: &RegionName,
) -> Option<&'n str> {
    if region == caller {
        return Some(&node.address);
    }
    let theirs = node.callers.iter().find(|c| c.region == caller.as_str());
    theirs.map(|theirs| theirs.address.as_str())
}
