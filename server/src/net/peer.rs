//! Who is at the other end of a connection.

use bytes::Bytes;
use domicile_proto::address::RegionName;
use domicile_proto::peer::v1 as peer;

use super::{Caller, Speaker};
use crate::error::{Error, Reason, Result};
use crate::raft::NodeId;

/// Another node, as it is known by its connection. What only nodes may ask for
/// takes one, so that a caller of whom nothing is known does not get there.
///
/// It is made in one place, for [`Speaker::check`] and [`Speaker::introduced`]:
/// of the hello, and of the certificate that must say the same; without TLS, of the
/// hello on a connection that did not leave this machine.
///
/// ```compile_fail,E0451
/// use domicile_server::net::Peer;
/// use domicile_server::raft::NodeId;
///
/// fn forge(region: domicile_proto::address::RegionName, cluster: bytes::Bytes) -> Peer {
///     Peer { region, node: NodeId(1), cluster }
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    region: RegionName,
    node: NodeId,
    cluster: Bytes,
}

impl Peer {
    /// Its region.
    pub fn region(&self) -> &RegionName {
        &self.region
    }

    /// Its number.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Its cluster.
    pub fn cluster(&self) -> &Bytes {
        &self.cluster
    }
}

/// Who called, and what is said back at first.
pub struct Introduced {
    /// The caller.
    pub peer: Peer,
    /// The furthest that this node has seen of the caller's store.
    pub seen: Option<peer::StoreStamp>,
}

impl Speaker {
    /// Checks that a caller means this node of this cluster, and says who it
    /// is. If it has seen a later state of this node's store, this node answers
    /// nothing any more and ends.
    pub fn check(&self, caller: &Caller, hello: Option<&peer::Hello>) -> Result<Introduced> {
        let (peer, hello) = identified(caller, hello)?;
        self.is_of_cluster(&peer)?;
        self.is_meant(hello)?;
        self.knows_level(hello)?;
        let seen = self.hear(&peer, hello)?;
        Ok(Introduced { peer, seen })
    }

    /// The same where a node is told of a cluster that it does not belong to
    /// yet: another cluster's is let in, too, and whoever serves it compares.
    pub fn introduced(&self, caller: &Caller, hello: Option<&peer::Hello>) -> Result<Introduced> {
        let (peer, hello) = identified(caller, hello)?;
        self.is_meant(hello)?;
        let seen = match self.cluster().as_ref() == Some(peer.cluster()) {
            true => self.hear(&peer, hello)?,
            false => None,
        };
        Ok(Introduced { peer, seen })
    }

    /// Refuses a node whose build does not know what the cluster writes.
    fn knows_level(&self, hello: &peer::Hello) -> Result<()> {
        let level = self.level();
        if hello.level >= level {
            return Ok(());
        }
        Err(Error::new(
            Reason::UpgradeNeeded,
            format!(
                "the cluster is at feature level {level}, and node {}/{} knows levels up to {}; \
                 upgrade that node",
                hello.region, hello.node, hello.level
            ),
        ))
    }

    /// Refuses who means another node.
    fn is_meant(&self, hello: &peer::Hello) -> Result<()> {
        if hello.to_region == self.region().as_str() && hello.to == self.node().0 {
            return Ok(());
        }
        Err(Error::new(
            Reason::UnknownNode,
            format!(
                "this is node {}, not {}/{}; check the addresses",
                self.name(),
                hello.to_region,
                hello.to
            ),
        ))
    }

    /// Refuses a node of another cluster than this one's.
    pub fn is_of_cluster(&self, peer: &Peer) -> Result<()> {
        let own = self.cluster();
        if own.as_ref() == Some(peer.cluster()) {
            return Ok(());
        }
        if own.is_none() {
            return Err(Error::new(
                Reason::NotFormed,
                format!(
                    "node {} is empty; if it lost its disk, run `domicile node replace` for it",
                    self.name()
                ),
            ));
        }
        Err(Error::new(
            Reason::WrongCluster,
            format!(
                "node {}/{} belongs to another cluster than {}; check its addresses",
                peer.region,
                peer.node,
                self.name()
            ),
        ))
    }

    /// Hears what a node says of its store and of this one's. Answers the
    /// furthest that was seen of its store before: it says no more than that.
    fn hear(&self, peer: &Peer, hello: &peer::Hello) -> Result<Option<peer::StoreStamp>> {
        let by = format!("{}/{}", peer.region, peer.node);
        self.told(&by, &hello.seen, hello.replica)?;
        Ok(hello.store.as_ref().and_then(|stamp| {
            let known = self.seen(&peer.region, peer.node);
            let before = known.of(stamp);
            known.note(stamp);
            before
        }))
    }
}

/// Who calls, as the connection and its hello tell. The only place where a
/// [`Peer`] is made.
fn identified<'h>(
    caller: &Caller,
    hello: Option<&'h peer::Hello>,
) -> Result<(Peer, &'h peer::Hello)> {
    if caller.identity.is_none() && !caller.on_loopback {
        return Err(Error::new(
            Reason::GrantDenied,
            "nothing proves which node calls; nodes without certificates reach each other over \
             loopback addresses alone",
        ));
    }
    let Some(hello) = hello else {
        return Err(Error::invalid("what a node asks for begins with a hello"));
    };
    let region = RegionName::new(&hello.region)
        .map_err(|e| Error::invalid(format!("the region of a caller: {e}")))?;
    if let Some(identity) = &caller.identity {
        let id = identity.id();
        if id.region != region || id.node_number() != Some(hello.node) {
            return Err(Error::new(
                Reason::GrantDenied,
                format!(
                    "the certificate is of {id}, and the caller says that it is node {region}/{}",
                    hello.node
                ),
            ));
        }
    }
    let peer = Peer {
        region,
        node: NodeId(hello.node),
        cluster: hello.cluster.clone(),
    };
    Ok((peer, hello))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEAR: Caller = Caller {
        identity: None,
        region: None,
        on_loopback: true,
        address: None,
    };

    fn speaker(region: &str, node: u64, cluster: Option<u8>) -> Speaker {
        let region = RegionName::new(region).expect("a name");
        let speaker = Speaker::new(region, NodeId(node));
        if let Some(cluster) = cluster {
            speaker.join(vec![cluster; 16].into()).expect("its first");
        }
        speaker
    }

    /// What `eu/1` says to node `us/2` as one of a cluster.
    fn hello(cluster: u8) -> peer::Hello {
        let us = RegionName::new("us").expect("a name");
        let hello = speaker("eu", 1, Some(cluster)).hello(&us, NodeId(2));
        hello.expect("it has a cluster")
    }

    fn reason(introduced: Result<Introduced>) -> Reason {
        introduced
            .map(|known| known.peer)
            .expect_err("refused")
            .reason
    }

    #[test]
    fn a_peer_is_who_says_so_on_this_machine_and_means_this_node() {
        let this = speaker("us", 2, Some(7));
        let known = this.check(&NEAR, Some(&hello(7))).expect("a peer").peer;
        assert_eq!((known.region().as_str(), known.node()), ("eu", NodeId(1)));
        assert_eq!(known.cluster()[..], [7; 16]);
        let far = Caller::default();
        let elsewhere = speaker("us", 3, Some(7));
        type Door = fn(&Speaker, &Caller, Option<&peer::Hello>) -> Result<Introduced>;
        for door in [Speaker::check as Door, Speaker::introduced] {
            let hello = hello(7);
            assert_eq!(reason(door(&this, &far, Some(&hello))), Reason::GrantDenied);
            assert_eq!(reason(door(&this, &NEAR, None)), Reason::InvalidArgument);
            let meant = door(&elsewhere, &NEAR, Some(&hello));
            assert_eq!(reason(meant), Reason::UnknownNode);
        }
    }

    #[test]
    fn only_what_takes_a_node_into_a_cluster_lets_another_cluster_in() {
        let empty = (speaker("us", 2, None), Reason::NotFormed);
        let elsewhere = (speaker("us", 2, Some(8)), Reason::WrongCluster);
        for (this, why) in [empty, elsewhere] {
            let other = hello(7);
            let refused = this.check(&NEAR, Some(&other));
            assert_eq!(reason(refused), why);
            let peer = this.introduced(&NEAR, Some(&other)).expect("a peer").peer;
            let refused = this.is_of_cluster(&peer).expect_err("of another");
            assert_eq!(refused.reason, why);
        }
    }
}
