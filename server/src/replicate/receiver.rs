//! Takes what a home ships and puts it into the mirror's own log.
//!
//! What comes in has passed the ingress gate. Here it must come from the tag's
//! home, under an epoch and a policy that this node knows; whether it belongs
//! behind the mirror's cursor is decided when it is applied.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use disk::command::Command;
use domicile_proto::address::RegionName;
use domicile_proto::disk::v1 as disk;
use domicile_proto::limits::BATCH_BYTES_MAX;
use domicile_proto::peer::v1 as peer;
use domicile_proto::whole::{self, Unreadable};
use parking_lot::Mutex;
use peer::ship::Cargo;
use peer::ship_result::Result as Shown;
use prost::Message;
use tokio::sync::{mpsc, oneshot};

use crate::env::{Env, Task};
use crate::error::{Error, Reason, Result};
use crate::raft::{Copied, Group, Groups};
use crate::residency::Gate;
use crate::seal::{self, TagKeys};
use crate::state::{DIGEST_BYTES, Position, ledger};
use crate::storage::GroupId;

/// The batches of one mirror that may wait here; a sender has fewer on their
/// way.
const WAITING_MAX: usize = 64;

/// The bytes of a batch when it is unpacked: the largest record above a full
/// batch, and room for names and numbers.
const UNPACKED_BYTES_MAX: usize = 2 * BATCH_BYTES_MAX;

/// Takes what homes ship to the mirrors of this node.
pub struct Receiver {
    env: Env,
    /// The node's name, as `region/node`.
    name: String,
    gate: Arc<Gate>,
    groups: Arc<Groups>,
    queues: Mutex<BTreeMap<GroupId, Queue>>,
}

/// What waits for one mirror's log.
struct Queue {
    jobs: mpsc::Sender<Job>,
    _task: Task,
}

struct Job {
    group: Arc<Group>,
    /// `None`: only ask how far the mirror is.
    command: Option<Command>,
    /// Hears that its turn has come.
    turn: oneshot::Sender<Result<Turn>>,
}

/// What is awaited of a job when its turn has come.
enum Turn {
    /// That its command is applied.
    Copied(Copied),
    /// How far the mirror is, once what came before is applied.
    Asks(Arc<Group>),
}

impl Receiver {
    /// Takes nothing yet.
    pub fn new(env: Env, name: String, gate: Arc<Gate>, groups: Arc<Groups>) -> Self {
        Receiver {
            env,
            name,
            gate,
            groups,
            queues: Mutex::default(),
        }
    }

    /// Takes what a node of region `from` shipped to a range. What is taken one
    /// after the other goes into the log in that order. What comes of it is to be
    /// awaited; `None`: nothing will, for this node is closing.
    pub fn take(
        &self,
        from: &RegionName,
        range: GroupId,
        ship: peer::Ship,
    ) -> impl Future<Output = Option<Result<peer::ShipResult>>> + Send + use<> {
        let queued = self.queue(from, range, ship);
        async move {
            let turn = match queued {
                Ok(turn) => turn.await.ok()?,
                Err(refused) => return Some(refused),
            };
            let shown = match turn {
                Ok(Turn::Copied(copied)) => copied.applied().await.map(shown),
                Ok(Turn::Asks(group)) => ask(&group).await,
                Err(error) => Err(error),
            };
            Some(Ok(shown.unwrap_or_else(|error| refusal(error.message))))
        }
    }

    /// Queues what was shipped. Answers where its turn is awaited, or else what is
    /// answered at once.
    fn queue(
        &self,
        from: &RegionName,
        range: GroupId,
        ship: peer::Ship,
    ) -> Result<oneshot::Receiver<Result<Turn>>, Result<peer::ShipResult>> {
        let (group, command) = self.check(from, range, ship).map_err(|shown| {
            Ok(peer::ShipResult {
                result: Some(shown),
            })
        })?;
        // Also of who only asks: what is not asked for is not noted at the home.
        self.admit(&group).map_err(Err)?;
        let (turn, waiting) = oneshot::channel();
        let job = Job {
            group,
            command,
            turn,
        };
        let mut queues = self.queues.lock();
        let queue = queues
            .entry(job.group.identity().group)
            .or_insert_with(|| self.open_queue());
        match queue.jobs.try_send(job) {
            Ok(()) => Ok(waiting),
            Err(_) => Err(Ok(refusal("too many batches wait here".into()))),
        }
    }

    /// An error when the mirror can take nothing: which node says so, and why.
    fn admit(&self, group: &Group) -> Result<()> {
        group.admit_write().map_err(|mut error| {
            error.message = format!("{} at {}: {}", error.reason, self.name, error.message);
            error
        })
    }

    fn open_queue(&self) -> Queue {
        let (jobs, rx) = mpsc::channel(WAITING_MAX);
        Queue {
            jobs,
            _task: self.env.spawn("receiver", propose(rx)),
        }
    }

    fn check(
        &self,
        from: &RegionName,
        range: GroupId,
        ship: peer::Ship,
    ) -> Result<(Arc<Group>, Option<Command>), Shown> {
        let refused = |why: &str| Shown::Refused(why.into());
        let atlas = self
            .gate
            .policy()
            .atlas()
            .ok_or_else(|| refused("this node knows no policy yet"))?;
        if ship.policy_version > atlas.version() {
            return Err(Shown::PolicyBehind(atlas.version()));
        }
        let place = atlas
            .place(&ship.tag)
            .ok_or_else(|| refused("the policy does not know the tag"))?;
        let range = place
            .range(range)
            .ok_or_else(|| refused("the tag has no such range"))?;
        if place.home.region != *from || place.home.epoch != ship.epoch {
            return Err(refused("the sender is not the tag's home"));
        }
        if !range.mirrors.contains_key(self.gate.region()) {
            return Err(refused("the range has no mirror in this region"));
        }
        let Some(group) = self.groups.get(range.group) else {
            return Err(Shown::Leader(0));
        };
        if !group.leads() {
            let leader = group.leader().filter(|l| l.replica != group.replica());
            return Err(Shown::Leader(leader.map_or(0, |l| l.node.0)));
        }
        let command = match ship.cargo {
            Some(Cargo::Ask(_)) => None,
            Some(Cargo::Copy(packed)) => {
                let copy: disk::Copy = unpack(&packed).map_err(bad)?;
                check_digest(&copy.records, &ship.digest).map_err(bad)?;
                check_sender(from, &copy.from).map_err(bad)?;
                check_entries(&copy).map_err(bad)?;
                check_span(&group, &copy.records).map_err(bad)?;
                check_outcomes(&copy.outcomes).map_err(bad)?;
                Some(Command::Copy(copy))
            }
            Some(Cargo::BeginBackfill(begin)) => Some(Command::BeginBackfill(begin)),
            Some(Cargo::Backfill(packed)) => {
                let page: disk::Backfill = unpack(&packed).map_err(bad)?;
                check_digest(&page.records, &ship.digest).map_err(bad)?;
                check_sender(from, &page.from).map_err(bad)?;
                check_outcomes(&page.outcomes).map_err(bad)?;
                check_span(&group, &page.records).map_err(bad)?;
                Some(Command::Backfill(page))
            }
            Some(Cargo::EndBackfill(end)) => Some(Command::EndBackfill(end)),
            Some(Cargo::TagKeys(copy)) => {
                check_keys(&copy).map_err(bad)?;
                Some(Command::CopyTagKeys(copy))
            }
            None => return Err(refused("what was shipped is not known here")),
        };
        Ok((group, command))
    }
}

/// Whether a batch names the region that it comes from: the ledger will.
fn check_sender(from: &RegionName, named: &str) -> Result<()> {
    match from.as_str() == named {
        true => Ok(()),
        false => Err(Error::invalid("a batch names another sender")),
    }
}

/// Whether records are those that the sender told its gate and this one of.
fn check_digest(records: &[disk::CopiedRecord], told: &Bytes) -> Result<()> {
    match ledger::digest(records) == *told {
        true => Ok(()),
        false => Err(Error::invalid("a batch is not what its digest says")),
    }
}

/// Whether a batch has whole entries of the home in their order, behind `prev`
/// and up to `last`: what is applied is not judged again.
fn check_entries(copy: &disk::Copy) -> Result<()> {
    let mut at = Position::from_wire(copy.prev);
    let begins = copy.records.first();
    if begins.is_some_and(|first| Position::from_wire(first.position).sub != 0) {
        return Err(Error::invalid("a batch begins within an entry"));
    }
    for copied in &copy.records {
        let position = Position::from_wire(copied.position);
        let first = Position { sub: 0, ..position };
        let goes_on =
            position.sub > 0 && position.sub - 1 == at.sub && first == Position { sub: 0, ..at };
        if position <= at || !(position.sub == 0 || goes_on) {
            return Err(Error::invalid(
                "the changes of a batch are not in their order",
            ));
        }
        at = position;
    }
    if at > Position::from_wire(copy.last) {
        return Err(Error::invalid("a batch has changes behind its end"));
    }
    Ok(())
}

/// Whether records are of the mirror's range: what is applied is not judged again.
fn check_span(group: &Group, records: &[disk::CopiedRecord]) -> Result<()> {
    let span = &group.identity().span;
    match records.iter().all(|copied| span.covers(&copied.key)) {
        true => Ok(()),
        false => Err(Error::invalid("a batch has records of another range")),
    }
}

/// Whether the keys of a tag are known here whole: what is applied is not judged
/// again.
fn check_keys(copy: &disk::CopyTagKeys) -> Result<()> {
    let keys = copy.keys.clone().unwrap_or_default();
    let mut counted = (1..).zip(&keys.keys);
    let counted = counted.all(|(number, key)| seal::number(key.id) == number);
    if keys.keys.is_empty() || !counted || TagKeys::from_wire(&keys).is_err() {
        return Err(Error::invalid("the keys of the tag are not known here"));
    }
    Ok(())
}

/// Whether outcomes are in the order of their entries and known here whole.
fn check_outcomes(outcomes: &[disk::CopiedOutcomes]) -> Result<()> {
    let mut at = Position::default();
    for copied in outcomes {
        let entry = Position::from_wire(copied.position);
        let rows = copied.row.iter().flat_map(|row| &row.outcomes);
        let known = |outcome: &disk::StoredOutcome| {
            let digest = if outcome.sequence == 0 {
                0
            } else {
                DIGEST_BYTES
            };
            outcome.client.len() == 16 && outcome.digest.len() == digest
        };
        if entry <= at || entry.sub != 0 || copied.row.is_none() || !rows.into_iter().all(known) {
            return Err(Error::invalid("the outcomes of a batch are not known here"));
        }
        at = entry;
    }
    Ok(())
}

fn bad(error: Error) -> Shown {
    Shown::Refused(error.message)
}

fn refusal(why: String) -> peer::ShipResult {
    peer::ShipResult {
        result: Some(Shown::Refused(why)),
    }
}

/// Puts jobs into the log in their order. Who waits for one goes on waiting until it
/// is applied, and does not hold up the next.
async fn propose(mut jobs: mpsc::Receiver<Job>) {
    while let Some(job) = jobs.recv().await {
        let turn = match job.command {
            None => Ok(Turn::Asks(job.group)),
            Some(command) => {
                let copied = job.group.propose_copied(command).await;
                copied.map(Turn::Copied)
            }
        };
        // The connection may have gone; then nobody waits.
        drop(job.turn.send(turn));
    }
}

/// How far the mirror is, once this leader has applied what came before it.
async fn ask(group: &Group) -> Result<peer::ShipResult> {
    let progress = group.read_barrier().await?;
    let mirror = progress.mirror.unwrap_or_default();
    Ok(shown(disk::MirrorState {
        open: mirror.open,
        cursor: mirror.cursor.to_wire(),
        attempt: mirror.attempt,
        pages: mirror.pages,
        incarnation: group.identity().incarnation,
        history_floor: mirror.history_floor,
        tag_key: progress.tag_key,
        changed_version: progress.changed_version,
    }))
}

fn shown(state: disk::MirrorState) -> peer::ShipResult {
    peer::ShipResult {
        result: Some(Shown::State(state)),
    }
}

/// Unpacks a message that was compressed behind its length.
fn unpack<M: Message + Default>(packed: &Bytes) -> Result<M> {
    let damaged = |_| Error::invalid("a batch cannot be unpacked");
    let (size, block) = lz4_flex::block::uncompressed_size(packed).map_err(damaged)?;
    if size > UNPACKED_BYTES_MAX {
        return Err(Error::invalid("a batch is larger than any home sends"));
    }
    let bytes: Bytes = lz4_flex::decompress(block, size).map_err(damaged)?.into();
    whole::decode(bytes).map_err(|unreadable| match unreadable {
        Unreadable::Malformed => Error::invalid("a batch does not decode"),
        Unreadable::Unknown => Error::new(
            Reason::UpgradeNeeded,
            "a batch of the home has what this build does not know; upgrade this node",
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::testing::Alone;
    use crate::state::testing::{demo, identity};

    /// What a node of `region` answers to a node of its tag's home that asks
    /// how far the mirror of `global` is.
    async fn asked_in(region: &str) -> Shown {
        let node = Alone::new(region);
        node.adopt_demo();
        let tags = demo().tags;
        let global = tags.iter().find(|t| t.tag == "global").expect("a tag");
        let is_mirror = global.home != region;
        node.lead(identity(global.ranges[0].range, "global", region).as_mirror(is_mirror))
            .await;
        let (env, gate) = (node.env.clone(), node.gate.clone());
        let receiver = Receiver::new(env, format!("{region}/1"), gate, node.groups.clone());
        let ship = peer::Ship {
            tag: "global".into(),
            epoch: 1,
            policy_version: 1,
            cargo: Some(Cargo::Ask(peer::ShipAsk {})),
            digest: Bytes::new(),
        };
        let home = RegionName::new(&global.home).expect("a name");
        let range = GroupId(global.ranges[0].range);
        let shown = node.env.scoped(receiver.take(&home, range, ship)).await;
        let shown = shown.expect("answered").expect("taken");
        shown.result.expect("an answer")
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_region_with_a_mirror_takes_what_is_shipped() {
        assert!(matches!(asked_in("us").await, Shown::State(_)));
        let at_home = asked_in("eu").await;
        assert!(matches!(at_home, Shown::Refused(_)), "{at_home:?}");
    }

    fn record(index: u64, sub: u32) -> disk::CopiedRecord {
        disk::CopiedRecord {
            key: Bytes::from_static(b"a"),
            version: index,
            position: Position {
                epoch: 1,
                index: crate::storage::Index(index),
                sub,
            }
            .to_wire(),
            ..disk::CopiedRecord::default()
        }
    }

    /// What passes here is in the log of every replica: it must be applied.
    #[test]
    fn a_batch_has_whole_entries_of_its_sender() {
        let copy =
            |prev: Option<disk::CopiedRecord>, records: Vec<disk::CopiedRecord>| disk::Copy {
                prev: prev.and_then(|prev| prev.position),
                last: records.last().and_then(|last| last.position),
                records,
                ..disk::Copy::default()
            };
        let whole = copy(Some(record(5, 0)), vec![record(6, 0), record(6, 1)]);
        assert!(check_entries(&whole).is_ok());
        for torn in [
            // It goes on within the entry that the mirror has.
            copy(Some(record(5, 0)), vec![record(5, 1)]),
            copy(None, vec![record(6, 1)]),
            copy(None, vec![record(6, 0), record(6, 2)]),
            copy(Some(record(7, 0)), vec![record(6, 0)]),
        ] {
            assert!(check_entries(&torn).is_err(), "{torn:?}");
        }
        let eu = RegionName::new("eu").expect("a name");
        assert!(check_sender(&eu, "eu").is_ok());
        assert!(check_sender(&eu, "us").is_err());
        let records = [record(6, 0)];
        assert!(check_digest(&records, &ledger::digest(&records)).is_ok());
        assert!(check_digest(&[record(6, 1)], &ledger::digest(&records)).is_err());
    }
}
