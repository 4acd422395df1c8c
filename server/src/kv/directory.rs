//! Who is admitted, decided from the tag and the caller's region alone, and where
//! each key of the tag goes then.

use std::collections::BTreeSet;
use std::ops::Deref;
use std::sync::Arc;

use domicile_proto::address::{RegionName, Tag};
use domicile_proto::disk::v1 as disk;
use domicile_proto::peer::v1 as peer;
use domicile_proto::policy::{Denial, Isolation, Verdict};

use crate::error::{Error, Reason, Result};
use crate::policy::{Atlas, InForce, RegionCatalog, TagPlace};
use crate::raft::{Group, Groups};
use crate::residency::Gate;
use crate::seeded::{self, Bug};
use crate::storage::{GroupId, Span};

/// A request for a tag that was admitted.
pub struct Admitted {
    /// The policy that admitted it. Whatever else is decided about the request is
    /// decided by it, not by what may have come into force since; the gates alone
    /// look at the newest.
    pub atlas: Arc<Atlas>,
    /// The region of the caller.
    pub caller: RegionName,
    /// The tag.
    pub tag: Tag,
    /// The region that accepts its writes.
    pub home: RegionName,
    /// The epoch of the home.
    pub epoch: u64,
    place: Arc<TagPlace>,
    region: Arc<RegionCatalog>,
    /// The replicas of this node.
    groups: Arc<Groups>,
    /// Whether this is a node of the home.
    is_home: bool,
    /// Whether mirrors of the tag go on serving while the policy lease has lapsed.
    serves_isolated: bool,
}

/// Where what is asked of one range of a tag goes.
#[derive(Clone)]
pub struct Route {
    admitted: Arc<Admitted>,
    /// The range: the group of its records, at the home and at every mirror; `None`:
    /// only the home knows which it is.
    pub range: Option<GroupId>,
    /// Its keys.
    pub span: Span,
    /// What of it is on this node.
    pub here: LocalCopy,
}

impl Deref for Route {
    type Target = Admitted;

    fn deref(&self) -> &Admitted {
        &self.admitted
    }
}

/// What of a range is on this node.
#[derive(Clone)]
pub enum LocalCopy {
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

impl Admitted {
    /// Where a key goes.
    pub fn of_key(self: &Arc<Self>, key: &[u8]) -> Route {
        let mut spans = self.spans();
        let found = spans.find(|(_, span)| span.covers(key));
        self.route(found.expect("the ranges of a tag have every key"))
    }

    /// Where the ranges go that have keys from `start` to before `end`, in their
    /// order: at least one. An empty end is the tag's.
    pub fn of_span(self: &Arc<Self>, start: &[u8], end: &[u8]) -> Vec<Route> {
        let behind = self.spans().skip_while(|(_, span)| !span.covers(start));
        let within = behind
            .enumerate()
            .take_while(|(at, (_, span))| *at == 0 || end.is_empty() || span.start() < end);
        within.map(|(_, found)| self.route(found)).collect()
    }

    /// Where a range goes; `None`: it is not known here.
    pub(super) fn of_range(self: &Arc<Self>, range: GroupId) -> Option<Route> {
        let found = self.spans().find(|(known, _)| *known == Some(range));
        found.map(|found| self.route(found))
    }

    /// The ranges of the tag.
    pub(super) fn ranges(&self) -> impl Iterator<Item = GroupId> {
        self.place.ranges.iter().map(|range| range.group)
    }

    /// The ranges of the tag as far as this region knows them, by key. A region that
    /// does not hold the tag knows of no boundary.
    fn spans(&self) -> impl Iterator<Item = (Option<GroupId>, Span)> {
        let (only, several) = match &self.place.ranges[..] {
            [only] => (Some((Some(only.group), Span::default())), Vec::new()),
            several => (None, self.region.spans(several)),
        };
        only.into_iter().chain(several)
    }

    /// For whom a request is passed on.
    pub(super) fn on_behalf(&self) -> peer::OnBehalf {
        peer::OnBehalf {
            region: self.caller.to_string(),
            ..peer::OnBehalf::default()
        }
    }

    fn route(self: &Arc<Self>, (range, span): (Option<GroupId>, Span)) -> Route {
        let here = match range.and_then(|range| self.groups.get(range)) {
            Some(group) if self.is_home => LocalCopy::Home(group),
            Some(group) => LocalCopy::Mirror {
                group,
                serves_isolated: self.serves_isolated,
            },
            None => LocalCopy::Nothing,
        };
        Route {
            admitted: self.clone(),
            range,
            span,
            here,
        }
    }
}

impl Route {
    /// The replica of the range's group on this node.
    pub fn group(&self) -> Option<&Arc<Group>> {
        match &self.here {
            LocalCopy::Home(group) | LocalCopy::Mirror { group, .. } => Some(group),
            LocalCopy::Nothing => None,
        }
    }

    /// Whether its tag has other ranges.
    pub(super) fn is_split(&self) -> bool {
        self.place.ranges.len() > 1
    }

    /// The request that was admitted.
    pub(super) fn admitted(&self) -> &Arc<Admitted> {
        &self.admitted
    }

    /// The regions that mirror the range.
    pub(super) fn mirrors(&self) -> BTreeSet<&RegionName> {
        match self.range.and_then(|range| self.place.range(range)) {
            Some(range) => range.mirrors.keys().collect(),
            None => self.place.mirrors(),
        }
    }
}

/// Who is sent where. Nobody waits for it.
pub struct Directory {
    own: RegionName,
    policy: Arc<InForce>,
    groups: Arc<Groups>,
    /// Whether callers prove who they are, at whatever address they call.
    is_identified: bool,
}

impl Directory {
    /// Of a node with these gates and replicas.
    pub fn new(gate: &Gate, groups: Arc<Groups>) -> Self {
        Directory {
            own: gate.region().clone(),
            policy: gate.policy().clone(),
            groups,
            is_identified: false,
        }
    }

    /// The same, where callers prove who they are.
    #[must_use]
    pub fn identified(mut self, is: bool) -> Self {
        self.is_identified = is;
        self
    }

    /// Refuses a caller. One who may call for the tag elsewhere is told where.
    fn refusal(&self, atlas: &Atlas, tag: &Tag, caller: &RegionName, denial: Denial) -> Error {
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
            .filter_map(|node| self.address_for(node, &home, caller))
            .collect();
        match endpoints[..] {
            [] => error,
            _ => error.fact("endpoints", endpoints.join(",")),
        }
    }

    /// Where callers of a region reach a node of another as what they are; `None`:
    /// nowhere. Without certificates they would pass for callers of the node's own
    /// region at the address for those.
    fn address_for<'n>(
        &self,
        node: &'n disk::Node,
        region: &RegionName,
        caller: &RegionName,
    ) -> Option<&'n str> {
        let theirs = node.callers.iter().find(|c| c.region == caller.as_str());
        match theirs {
            Some(theirs) => Some(&theirs.address),
            None => (self.is_identified || region == caller).then_some(&*node.address),
        }
    }

    /// What is known of policy, regions and tags.
    pub fn atlas(&self) -> Option<Arc<Atlas>> {
        self.policy.atlas()
    }

    /// Admits a request of a caller. Nothing of the answer depends on any key.
    pub fn admit(&self, tag: &str, caller: &RegionName) -> Result<Arc<Admitted>> {
        let atlas = self.formed()?;
        let place = atlas.place(tag).ok_or_else(|| unknown(tag))?;
        let unchecked = seeded::is_on(Bug::AccessUnchecked);
        if !unchecked
            && let Verdict::Denied(denial) = atlas.may_serve(&place.tag, &self.own, caller)
        {
            return Err(self.refusal(&atlas, &place.tag, caller, denial));
        }
        self.holds_lease_for(caller, &place.home.region)?;
        Ok(self.admitted(&atlas, place, caller))
    }

    /// Whether callers of a region may be served by what is known of the policy.
    pub fn holds_lease_for(&self, caller: &RegionName, home: &RegionName) -> Result<()> {
        if *caller == self.own {
            return Ok(());
        }
        // A tightening that was not heard of may have forbidden it.
        let held = self.policy.lease().hold();
        held.map_err(|lapsed| lapsed.fact("home", home))
    }

    /// Admits what a node of region `from` passed on to the home for a caller: that
    /// node has admitted the caller by what it knew, and this one judges again. The
    /// node itself must be one that may handle the tag.
    pub fn admit_at_home(
        &self,
        tag: &str,
        from: &RegionName,
        caller: Option<&peer::OnBehalf>,
    ) -> Result<Arc<Admitted>> {
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
            return Err(self.refusal(&atlas, &place.tag, &caller, denial));
        }
        let admitted = self.admitted(&atlas, place, &caller);
        match admitted.is_home {
            true => Ok(admitted),
            false => Err(Error::new(
                Reason::WrongHome,
                format!("the home of {} is {}", admitted.tag, admitted.home),
            )),
        }
    }

    /// What is known now of policy, regions and tags. A request asks once.
    fn formed(&self) -> Result<Arc<Atlas>> {
        self.policy.atlas().ok_or_else(Error::not_formed)
    }

    fn admitted(
        &self,
        atlas: &Arc<Atlas>,
        place: &Arc<TagPlace>,
        caller: &RegionName,
    ) -> Arc<Admitted> {
        let rules = atlas.policy.tag(&place.tag);
        Arc::new(Admitted {
            atlas: atlas.clone(),
            caller: caller.clone(),
            tag: place.tag.clone(),
            home: place.home.region.clone(),
            epoch: place.home.epoch,
            place: place.clone(),
            region: self.policy.region(),
            groups: self.groups.clone(),
            is_home: place.home.region == self.own,
            serves_isolated: rules.is_some_and(|r| r.on_isolation == Isolation::Serve),
        })
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
