//! Writing records.
//!
//! A write is checked ([`check`]) and goes to the tag's home: into the log here, if this
//! node leads the group, or else once over to its leader or its region ([`forward`]),
//! where it is taken ([`forwarded`]); [`codec`] says how it passes between them. One that
//! is to wait for mirrors is answered when they have it ([`acknowledge`]).
//!
//! Not done here: stamping, sealing and agreement (`raft`), retries (the client's: it
//! alone knows whether an answer was lost).

mod acknowledge;
mod check;
mod codec;
mod forward;
mod forwarded;

use std::sync::Arc;

use bytes::Bytes;
use disk::operation::Change;
use domicile_proto::address::RegionName;
use domicile_proto::disk::v1 as disk;
use domicile_proto::peer::v1 as peer;
use tracing::instrument;

pub use self::check::{
    check_key, delete, delete_response, put, put_response, register, register_response,
};
use self::forward::Target;
pub use self::forwarded::Forwarded;
use crate::error::{Error, Reason, Result};
use crate::kv::directory::{Admitted, LocalCopy, Route};
use crate::kv::failure::elsewhere;
use crate::kv::store::Store;
use crate::kv::tokens;
use crate::raft::{Answer, Group, ReplicaId, Reply, Write};
use crate::replicate::Wanted;
use crate::state::Outcome;
use crate::storage::GroupId;

impl Store {
    /// Writes, and waits for what comes of it, with a token that covers it.
    pub async fn write(self: &Arc<Self>, route: &Route, write: Write) -> Result<Answer> {
        let (reply, answer) = Reply::awaited();
        self.write_each(route, vec![(write, reply)]);
        let mut answer = answer.await?;
        // What writes no record has none: no read could wait for it.
        if answer.token.is_empty() && matches!(answer.outcome, Outcome::Written { .. }) {
            answer.token = tokens::covering(route, answer.index);
        }
        Ok(answer)
    }

    /// Writes to a range; who registers does so with every range of the tag. Each
    /// write is answered through its own reply, without a token where this node can
    /// make one: those that are answered together have one together.
    pub fn write_each(self: &Arc<Self>, route: &Route, mut writes: Vec<(Write, Reply)>) {
        if route.is_split() {
            let registers = |(write, _): &mut (Write, Reply)| {
                matches!(write.operation.change, Some(Change::Register(_)))
            };
            for registering in writes.extract_if(.., registers) {
                self.register(route.admitted(), registering);
            }
        }
        self.write_to(route, writes);
    }

    #[instrument(level = "debug", skip_all, fields(tag = %route.tag, writes = writes.len()))]
    fn write_to(&self, route: &Route, writes: Vec<(Write, Reply)>) {
        if writes.is_empty() {
            return;
        }
        let LocalCopy::Home(group) = &route.here else {
            return self.write_at_home(route, admissible(route, writes));
        };
        let leader = group.leader().filter(|l| l.replica != group.replica());
        match leader {
            Some(leader) if !group.leads() => {
                let target = Target {
                    peers: self.regions.own(),
                    node: leader.node,
                    replica: leader.replica,
                    group: group.identity().group,
                    route,
                };
                forward::writes(&self.env, &self.gate, &target, admissible(route, writes));
            }
            // Its own proposer says why it cannot.
            _ => self.propose(route, group, writes),
        }
    }

    /// Registers a client with every range of a tag: the first one gives it its id,
    /// which the others take over. The home does it: it knows them.
    fn register(self: &Arc<Self>, admitted: &Arc<Admitted>, (write, reply): (Write, Reply)) {
        let routes = admitted.of_span(&[], &[]);
        let first = &routes[0];
        if !matches!(first.here, LocalCopy::Home(_)) {
            return self.write_to(first, vec![(write, reply)]);
        }
        let store = self.clone();
        self.env.spawn_brief(async move {
            reply.send(store.register_with_all(&routes).await);
        });
    }

    async fn register_with_all(&self, routes: &[Route]) -> Result<Answer> {
        let mut given: Option<Answer> = None;
        for route in routes {
            let client = match given.as_ref().map(|answer| &answer.outcome) {
                Some(Outcome::Registered { client }) => Bytes::copy_from_slice(client),
                _ => Bytes::new(),
            };
            let register = Change::Register(disk::Register {
                client,
                ..disk::Register::default()
            });
            let answer = self.write_alone(route, register).await?;
            given.get_or_insert(answer);
        }
        given.ok_or_else(|| Error::internal("a tag has no range"))
    }

    /// Writes what changes no record, and waits for what comes of it.
    pub(in crate::kv) async fn write_alone(&self, route: &Route, change: Change) -> Result<Answer> {
        let (reply, answer) = Reply::awaited();
        self.write_to(route, vec![(Write::of_no_record(change), reply)]);
        answer.await
    }

    /// Passes writes on to the home's region.
    fn write_at_home(&self, route: &Route, writes: Vec<(Write, Reply)>) {
        if route.home == *self.gate.region() {
            return refuse(writes, &elsewhere());
        }
        let Some((peers, node)) = self.node_of(&route.home, 0) else {
            return refuse(writes, &self.unreachable(&route.home));
        };
        let target = Target {
            peers: &peers,
            node,
            replica: ReplicaId(0),
            group: GroupId(0),
            route,
        };
        forward::writes(&self.env, &self.gate, &target, writes);
    }

    /// Proposes writes here, at the leader. One without room refuses them;
    /// followers pass writes on whether they have room or not.
    fn propose(&self, route: &Route, group: &Arc<Group>, writes: Vec<(Write, Reply)>) {
        let room = group.admit_write();
        let mirrored = |wanted: Option<Wanted>, reply| match wanted {
            // One that is refused waits for no mirror.
            Some(wanted) if room.is_ok() => {
                let (shipped, home) = (&self.shipped, &route.home);
                acknowledge::waiting(&self.env, shipped, home, group, wanted, reply)
            }
            _ => reply,
        };
        let writes = judged(route, writes, mirrored);
        match room {
            Ok(()) => group.propose(writes),
            Err(error) => refuse(writes, &error),
        }
    }

    /// Takes writes that a node of region `from` passed on: to the leader here,
    /// named by its replica, or to this region as the tag's home. They are taken when
    /// this returns; what comes of all of them is to be awaited.
    pub fn take_forwarded(
        self: &Arc<Self>,
        from: &RegionName,
        forwarded: Forwarded,
    ) -> Result<impl Future<Output = peer::ForwardResult> + Send + use<>> {
        let Forwarded {
            group,
            replica,
            forward,
        } = forwarded;
        let caller = forward.caller.as_ref();
        let admitted = self.directory.admit_at_home(&forward.tag, from, caller)?;
        let led = match replica {
            ReplicaId(0) => None,
            replica => Some(self.led(&admitted, from, group, replica)?),
        };
        let meant = led.as_ref().map(|(route, _)| route.clone());
        let mut taken = forwarded::taken(&admitted, meant, forward.writes);
        for (route, writes) in &mut taken.ranges {
            let writes = std::mem::take(writes);
            match &led {
                Some((_, group)) => self.propose(route, group, writes),
                None => self.write_each(route, writes),
            }
        }
        Ok(taken.result())
    }

    /// The range that is led by a replica of this node, and its group. Only a node of
    /// this region may know.
    fn led(
        &self,
        admitted: &Arc<Admitted>,
        from: &RegionName,
        range: GroupId,
        replica: ReplicaId,
    ) -> Result<(Route, Arc<Group>)> {
        let led = admitted
            .of_range(range)
            .filter(|_| *from == *self.gate.region());
        let led = led.and_then(|route| Some((route.group()?.clone(), route)));
        match led {
            Some((group, route)) if group.replica() == replica && group.leads() => {
                Ok((route, group))
            }
            _ => Err(Error::new(
                Reason::NoQuorum,
                "this replica does not lead the group",
            )),
        }
    }
}

/// The writes that may be passed on. Their home judges them again: it may know of
/// another policy.
fn admissible(route: &Route, writes: Vec<(Write, Reply)>) -> Vec<(Write, Reply)> {
    judged(route, writes, |_, reply| reply)
}

/// Leaves out, and answers, the writes that wait for what can never be, before
/// anything is written. The others are answered as `waiting` says for what they wait
/// for.
fn judged(
    route: &Route,
    writes: Vec<(Write, Reply)>,
    mut waiting: impl FnMut(Option<Wanted>, Reply) -> Reply,
) -> Vec<(Write, Reply)> {
    let waits = |(write, _): &(Write, Reply)| write.acknowledgement.is_some();
    if !writes.iter().any(waits) {
        return writes;
    }
    let mut judged = Vec::with_capacity(writes.len());
    for (write, reply) in writes {
        match acknowledge::wanted(route, write.acknowledgement.as_ref()) {
            Ok(wanted) => judged.push((write, waiting(wanted, reply))),
            Err(error) => reply.send(Err(error)),
        }
    }
    judged
}

fn refuse(writes: Vec<(Write, Reply)>, error: &Error) {
    for (_, reply) in writes {
        reply.send(Err(error.again()));
    }
}
