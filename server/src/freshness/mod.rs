//! How old what this node serves may be, without comparing the clocks of two machines.
//!
//! There is one rule for every copy. A node asks, at its own monotonic time m0, for a
//! position that a quorum of the home has confirmed. Once its copy has that position,
//! what it serves is not older than m0. So the lag may be overstated, never understated;
//! before the first answer it is unknown.
//!
//! A replica of the home's group asks its leader ([`followers`]); a mirror's node asks the
//! home's region ([`mirrors`]), where [`Freshness::answer`] answers. Both are asked more
//! often while somebody reads.
//!
//! Not done here: deciding whether a read may be served (`kv`), copying (`replicate`).

mod followers;
mod mirrors;

use std::sync::Arc;
use std::time::Duration;

use domicile_proto::peer::v1 as peer;

use self::followers::Followers;
use self::mirrors::Mirrors;
use crate::env::Env;
use crate::net::Regions;
use crate::raft::{Group, Groups};
use crate::residency::Gate;

/// How fresh the copies on this node are.
pub struct Freshness {
    followers: Arc<Followers>,
    mirrors: Arc<Mirrors>,
}

impl Freshness {
    /// Knows nothing yet.
    pub fn new(env: Env, gate: Arc<Gate>, groups: Arc<Groups>, regions: Arc<Regions>) -> Self {
        Freshness {
            followers: Followers::new(env.clone(), groups.clone()),
            mirrors: Mirrors::new(env, gate, groups, regions),
        }
    }

    /// Asks for every copy, for as long as the node runs.
    pub async fn follow(self: Arc<Self>) {
        let (followers, mirrors) = (self.followers.clone(), self.mirrors.clone());
        tokio::join!(followers.follow(), mirrors.follow());
    }

    /// An upper bound of how far a copy here is behind its home; `None`: unknown.
    pub fn lag(&self, group: &Group) -> Option<Duration> {
        match group.identity().is_mirror {
            true => self.mirrors.lag(group),
            false => self.followers.lag(group),
        }
    }

    /// Answers another region: the confirmed positions of ranges that are homed here.
    pub async fn answer(&self, probe: peer::Probe) -> peer::ProbeResult {
        self.mirrors.answer(probe).await
    }
}
