//! What other nodes ask of this one, and what it asks of them, besides the
//! streams.
//!
//! Whoever asks is a [`Peer`]: nothing else gets in. What is asked and answered
//! passes the gates as everything between nodes does; it is of no record.

use std::sync::Arc;

use domicile_proto::peer::v1 as peer;

use crate::error::{Error, Reason, Result};
use crate::net::{Peer, Peers};
use crate::placement::Placement;
use crate::raft::NodeId;
use crate::residency::{Carries, Cleared, Untrusted};
use crate::state::Subject;
use crate::storage::CONTROL_GROUP;

/// What a replica is placed by says nothing of a record.
const ABOUT: Subject = Subject::Control;

impl Placement {
    /// A peer takes this node into a new cluster, step by step. Answers whether
    /// this node has applied the first entries of its groups.
    pub async fn form(
        self: &Arc<Self>,
        peer: &Peer,
        request: Untrusted<peer::FormRequest>,
    ) -> Result<Cleared<peer::FormResponse>> {
        let request = self.opened(peer, request)?;
        let new = request.catalog.as_ref();
        if new.is_some_and(|new| new.cluster != peer.cluster()) {
            return Err(of_another());
        }
        let formed = self.form_here(request).await?;
        self.cleared(peer, formed)
    }

    /// A peer has this node start a replica that joins an existing group, or
    /// only say which one is here. It goes on when the peer goes away: half of
    /// it would leave the group closed.
    ///
    /// Whoever is not known to be a node does not get in:
    ///
    /// ```compile_fail,E0308
    /// use std::sync::Arc;
    ///
    /// use domicile_proto::peer::v1::PlaceRequest;
    /// use domicile_server::net::Caller;
    /// use domicile_server::placement::Placement;
    /// use domicile_server::residency::Untrusted;
    ///
    /// async fn barge_in(placement: &Arc<Placement>, request: Untrusted<PlaceRequest>) {
    ///     let placed = placement.place(&Caller::default(), request).await;
    /// }
    /// ```
    pub async fn place(
        self: &Arc<Self>,
        peer: &Peer,
        request: Untrusted<peer::PlaceRequest>,
    ) -> Result<Cleared<peer::PlaceResponse>> {
        let mut request = self.opened(peer, request)?;
        if self.speaker.cluster().is_some() {
            self.speaker.is_of_cluster(peer)?;
        }
        if request.replica != 0 && request.cluster != peer.cluster() {
            return Err(of_another());
        }
        self.may_place(peer, &mut request)?;
        let this = self.clone();
        let placing = async move { this.place_here(request).await };
        let placed = self.env.to_its_end(placing).await;
        let placed = placed.unwrap_or_else(|| Err(Error::internal("the placement did not end")))?;
        self.cleared(peer, placed)
    }

    /// A peer has this node put a new replica into a group that it leads.
    pub async fn replace_member(
        &self,
        peer: &Peer,
        request: Untrusted<peer::ReplaceMemberRequest>,
    ) -> Result<Cleared<peer::ReplaceMemberResponse>> {
        let request = self.opened(peer, request)?;
        self.speaker.is_of_cluster(peer)?;
        self.replace_member_here(request).await?;
        self.cleared(peer, peer::ReplaceMemberResponse {})
    }

    /// Refuses a replica that a node of another region wants here, but for one of
    /// the control group; and takes no word of another region for where the nodes
    /// of this one are: what they say to each other stays among them.
    fn may_place(&self, peer: &Peer, request: &mut peer::PlaceRequest) -> Result<()> {
        let own = self.speaker.region();
        if peer.region() == own || request.replica == 0 {
            return Ok(());
        }
        let group = request.group.as_ref().map_or(0, |group| group.group);
        if group != CONTROL_GROUP.0 || !request.nodes.is_empty() {
            return Err(Error::new(
                Reason::ResidencyViolation,
                format!("replicas of {own} are placed by its own nodes"),
            ));
        }
        request
            .regions
            .retain(|region| region.region != own.as_str());
        Ok(())
    }

    fn opened<T: Carries>(&self, peer: &Peer, request: Untrusted<T>) -> Result<T> {
        self.gate.ingress(peer.region(), &ABOUT, request)
    }

    fn cleared<T: Carries>(&self, peer: &Peer, answer: T) -> Result<Cleared<T>> {
        self.gate.egress(peer.region(), &ABOUT, answer)
    }

    /// Takes a node at `host:port` into a new cluster, step by step.
    pub(super) async fn ask_to_form(
        &self,
        peers: &Peers,
        address: &str,
        request: peer::FormRequest,
    ) -> Result<peer::FormResponse> {
        let cleared = self.gate.egress(peers.region(), &ABOUT, request)?;
        let formed = peers.form(address, cleared).await?;
        self.gate.ingress(peers.region(), &ABOUT, formed)
    }

    /// Has a node at `host:port` start a replica, or asks which one of the
    /// group is there.
    pub(super) async fn ask_to_place(
        &self,
        peers: &Peers,
        address: &str,
        request: peer::PlaceRequest,
    ) -> Result<peer::PlaceResponse> {
        let cleared = self.gate.egress(peers.region(), &ABOUT, request)?;
        let placed = peers.place(address, cleared).await?;
        self.gate.ingress(peers.region(), &ABOUT, placed)
    }

    /// Has the leader, which is `node` at `host:port`, exchange a member of its
    /// group.
    pub(super) async fn ask_to_replace(
        &self,
        peers: &Peers,
        leader: (NodeId, &str),
        request: peer::ReplaceMemberRequest,
    ) -> Result<()> {
        let cleared = self.gate.egress(peers.region(), &ABOUT, request)?;
        let replaced = peers.replace_member(leader, cleared).await?;
        self.gate
            .ingress(peers.region(), &ABOUT, replaced)
            .map(drop)
    }
}

fn of_another() -> Error {
    Error::invalid("the request is about another cluster than that of the node that sends it")
}
