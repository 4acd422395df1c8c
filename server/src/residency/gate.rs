//! The gates and what passes them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use domicile_proto::address::{RegionName, Tag};
use domicile_proto::policy::{Kind, Verdict};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::atlas::Atlas;
use super::carried::{Carried, Carries, Content, Of, carried, evidence};
use crate::env::{Env, Instant};
use crate::error::{Error, Reason, Result};
use crate::seeded::{self, Bug};
use crate::state::Subject;
use crate::storage::{CONTROL_GROUP, FIRST_RANGE, REGION_GROUP};

/// How long a confirmation of the control group's leader allows traffic
/// between regions.
pub const LEASE: Duration = Duration::from_secs(30);

/// Whether a message may be about a subject: what is of a tag is judged by that
/// tag's rules and no other's.
fn fits(subject: &Subject, of: Of<'_>) -> bool {
    match (of, subject) {
        (Of::Tag(named), Subject::Tag(tag)) => named == tag.as_str(),
        (Of::Tag(_), Subject::Control | Subject::Region) => false,
        (Of::Group(group), Subject::Control) => group == CONTROL_GROUP,
        (Of::Group(group), Subject::Region) => group == REGION_GROUP,
        (Of::Group(group), Subject::Tag(_)) => group.0 >= FIRST_RANGE,
        (Of::NoTag, subject) => *subject == Subject::Control,
        (Of::Exchange, _) => true,
    }
}

/// A message that the egress gate has let pass, to one region and for a while.
/// Nothing else is sent; [`Gate::frame`] gives it to the wire.
///
/// Only the gate makes one:
///
/// ```compile_fail,E0451
/// use domicile_proto::address::RegionName;
/// use domicile_server::residency::Cleared;
/// use domicile_server::state::Subject;
///
/// fn forge(to: RegionName) -> Cleared<()> {
///     Cleared { message: (), to, subject: Subject::Control, policy_version: 1, end: None }
/// }
/// ```
#[derive(Debug)]
pub struct Cleared<T> {
    message: T,
    to: RegionName,
    subject: Subject,
    policy_version: u64,
    end: Option<End>,
}

/// When a cleared message may leave no more: when the lease has lapsed that ran
/// when it was cleared, for no renewal of it says that the message may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    /// From when the lease ran.
    confirmed_at: Instant,
}

impl<T> Cleared<T> {
    /// Looks at the message.
    pub fn message(&self) -> &T {
        &self.message
    }

    /// The region that it may go to, and no other.
    pub fn to(&self) -> &RegionName {
        &self.to
    }

    /// The policy version that was in force when it was judged; 0: it is about
    /// no tag, or no policy is known.
    pub fn policy_version(&self) -> u64 {
        self.policy_version
    }

    /// When it may leave no more; `None`: it does not cross a border, or bears
    /// nothing of a record.
    pub fn end(&self) -> Option<Instant> {
        self.end.map(|end| end.confirmed_at + LEASE)
    }
}

/// A message as it was received. Only the ingress gate opens it:
///
/// ```compile_fail,E0616
/// let received = domicile_server::residency::Untrusted::received(1);
/// let opened = received.message;
/// ```
#[derive(Debug)]
pub struct Untrusted<T> {
    message: T,
}

impl<T> Untrusted<T> {
    /// What came in from another node.
    pub fn received(message: T) -> Self {
        Untrusted { message }
    }

    /// Reads what says to whom the message goes, before it is opened.
    pub fn addressed<R>(&self, read: impl FnOnce(&T) -> R) -> R {
        read(&self.message)
    }
}

/// Which gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Out of this node.
    Egress,
    /// Into this node.
    Ingress,
}

/// Why messages were refused.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cause {
    /// Which gate.
    pub side: Side,
    /// The region at the other end.
    pub region: RegionName,
    /// The tag; empty: the message was about none.
    pub tag: String,
    /// The stable reason.
    pub reason: &'static str,
}

/// What is kept of refused messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// How many there were.
    pub count: u64,
    /// A hash over what tells the last one from others and is no part of a record.
    pub digest: Bytes,
}

/// Refused messages by cause.
pub type Refusals = BTreeMap<Cause, Evidence>;

/// The most causes that are told apart; a peer could otherwise make up tags
/// until memory ends.
const CAUSES_MAX: usize = 1000;

/// Both gates of a node.
pub struct Gate {
    env: Env,
    region: RegionName,
    atlas: ArcSwapOption<Atlas>,
    changed: watch::Sender<u64>,
    /// When the question was asked that was confirmed last.
    lease_from: Mutex<Option<Instant>>,
    refusals: Mutex<Refusals>,
}

impl Gate {
    /// The gates of a node that knows no policy yet: no record passes. The
    /// lease begins expired.
    pub fn new(env: Env, region: RegionName) -> Arc<Self> {
        Arc::new(Gate {
            env,
            region,
            atlas: ArcSwapOption::empty(),
            changed: watch::channel(0).0,
            lease_from: Mutex::new(None),
            refusals: Mutex::default(),
        })
    }

    /// The region of this node.
    pub fn region(&self) -> &RegionName {
        &self.region
    }

    /// What is known of policy, regions and tags; `None`: no cluster yet.
    pub fn atlas(&self) -> Option<Arc<Atlas>> {
        self.atlas.load_full()
    }

    /// Takes over a newer state of the control group.
    pub fn adopt(&self, atlas: Atlas) {
        let version = atlas.version();
        self.atlas.store(Some(Arc::new(atlas)));
        self.changed.send_replace(version);
    }

    /// Follows the policy version that is in force here.
    pub fn watch_version(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Notes that the control group's leader confirmed, to a question asked at
    /// `asked`, that nothing newer than what is applied here was in force. The
    /// lease counts from the question. It lapses when this machine sleeps.
    pub fn confirm_lease(&self, asked: Instant) {
        let mut lease = self.lease_from.lock();
        *lease = Some(lease.map_or(asked, |known| known.max(asked)));
    }

    /// How long the lease still runs; zero: it has lapsed.
    pub fn lease_left(&self) -> Duration {
        self.lease().map_or(Duration::ZERO, |end| self.left(end))
    }

    /// The end of the lease as it runs now; `None`: it never ran.
    fn lease(&self) -> Option<End> {
        let confirmed_at = (*self.lease_from.lock())?;
        Some(End { confirmed_at })
    }

    /// How long it is until then. What this machine slept through is over.
    fn left(&self, end: End) -> Duration {
        let age = self.env.age(end.confirmed_at);
        age.map_or(Duration::ZERO, |age| LEASE.saturating_sub(age))
    }

    /// Refuses, while the lease has lapsed, what comes from another region or
    /// goes there.
    pub fn hold_lease(&self) -> Result<()> {
        self.running_lease().map(drop)
    }

    fn running_lease(&self) -> Result<End> {
        let running = self.lease().filter(|end| !self.left(*end).is_zero());
        running.ok_or_else(lapsed)
    }

    /// Lets a message out to a node of region `to`, or refuses it.
    pub fn egress<T: Carries>(
        &self,
        to: &RegionName,
        subject: &Subject,
        mut message: T,
    ) -> Result<Cleared<T>> {
        let passed = match seeded::is_on(Bug::LyingSender) {
            true => Ok(self.unjudged()),
            false => self.pass(to, to, subject, &carried(message.crossing())),
        };
        match passed {
            Ok(Passed {
                policy_version,
                end,
            }) => {
                message.passed_by(policy_version);
                Ok(Cleared {
                    message,
                    to: to.clone(),
                    subject: subject.clone(),
                    policy_version,
                    end,
                })
            }
            Err(refused) => {
                self.note(Side::Egress, to, subject, refused.reason, &message);
                Err(refused)
            }
        }
    }

    /// Gives a cleared message to the wire of a connection to region `peer`, or
    /// drops it: it may have waited while the policy changed or the lease
    /// lapsed. Nothing waits behind this but for the socket.
    pub fn frame<T: Carries>(&self, cleared: Cleared<T>, peer: &RegionName) -> Result<T> {
        match self.leave(&cleared, peer) {
            Ok(()) => Ok(cleared.message),
            Err(refused) => {
                let (subject, message) = (&cleared.subject, &cleared.message);
                self.note(Side::Egress, peer, subject, refused.reason, message);
                Err(refused)
            }
        }
    }

    /// Whether a cleared message may still leave.
    fn leave<T: Carries>(&self, cleared: &Cleared<T>, peer: &RegionName) -> Result<()> {
        if seeded::is_on(Bug::LyingSender) {
            return Ok(());
        }
        let Cleared {
            message,
            to,
            subject,
            ..
        } = cleared;
        if peer != to {
            return Err(Error::new(
                Reason::ResidencyViolation,
                format!("a message for {to} stood before a connection to {peer}"),
            ));
        }
        if cleared.end.is_some_and(|end| self.left(end).is_zero()) {
            return Err(lapsed());
        }
        self.pass(to, to, subject, &carried(message.crossing()))
            .map(drop)
    }

    /// Whether records of a tag may go to a region now: for who would else prepare
    /// what the gate refuses. What passes is judged again.
    pub fn allows(&self, to: &RegionName, tag: &Tag) -> Result<()> {
        if seeded::is_on(Bug::LyingSender) {
            return Ok(());
        }
        let carried = Carried {
            content: Content::Kept(&[Kind::Key, Kind::Value, Kind::Tombstone, Kind::LogEntry]),
            of: Of::Tag(tag.as_str()),
        };
        self.pass(to, to, &Subject::Tag(tag.clone()), &carried)
            .map(drop)
    }

    /// Lets a message in that a node of region `from` sent, or refuses it.
    pub fn ingress<T: Carries>(
        &self,
        from: &RegionName,
        subject: &Subject,
        untrusted: Untrusted<T>,
    ) -> Result<T> {
        let message = untrusted.message;
        match self.pass(from, &self.region, subject, &carried(message.crossing())) {
            Ok(_) => Ok(message),
            Err(refused) => {
                self.note(Side::Ingress, from, subject, refused.reason, &message);
                Err(refused)
            }
        }
    }

    /// What the gates refused since the node started, by cause.
    pub fn refusals(&self) -> Refusals {
        self.refusals.lock().clone()
    }

    /// Keeps evidence of a refusal: that it was, and a digest of what it was.
    fn note<T: Carries>(
        &self,
        side: Side,
        other: &RegionName,
        subject: &Subject,
        reason: Reason,
        message: &T,
    ) {
        let tag = match subject {
            Subject::Tag(tag) => tag.to_string(),
            Subject::Control | Subject::Region => String::new(),
        };
        let cause = Cause {
            side,
            region: other.clone(),
            tag,
            reason: reason.name(),
        };
        let digest = evidence(message.crossing());
        let mut refusals = self.refusals.lock();
        if refusals.len() >= CAUSES_MAX && !refusals.contains_key(&cause) {
            return;
        }
        let evidence = refusals.entry(cause).or_default();
        evidence.count += 1;
        evidence.digest = digest;
    }

    /// What bears nothing of a record passes under any policy.
    fn unjudged(&self) -> Passed {
        let atlas = self.atlas.load();
        Passed {
            policy_version: atlas.as_ref().map_or(0, |atlas| atlas.version()),
            end: None,
        }
    }

    /// Whether what is about `subject` may come to be in region `receiver`,
    /// over the border to region `other` if that is not this one. Answers by what
    /// it was found.
    fn pass(
        &self,
        other: &RegionName,
        receiver: &RegionName,
        subject: &Subject,
        carried: &Carried<'_>,
    ) -> Result<Passed> {
        if !fits(subject, carried.of) {
            return Err(Error::new(
                Reason::ResidencyViolation,
                "the message is of another tag or group than it was passed for",
            ));
        }
        let crosses = *other != self.region;
        let tag = match subject {
            Subject::Control => return Ok(Passed::default()),
            Subject::Region if crosses => {
                return Err(Error::new(
                    Reason::ResidencyViolation,
                    "what a region group says stays in its region",
                ));
            }
            Subject::Region => return Ok(Passed::default()),
            Subject::Tag(tag) => tag,
        };
        if carried.content == Content::Nothing || seeded::is_on(Bug::AccessUnchecked) {
            return Ok(self.unjudged());
        }
        let end = match crosses {
            true => Some(self.running_lease()?),
            false => None,
        };
        let atlas = self.atlas.load();
        let Some(atlas) = &*atlas else {
            return Err(Error::new(
                Reason::NotFormed,
                "this node knows no policy yet, so no record passes",
            ));
        };
        match carried.content {
            Content::Nothing => {}
            Content::Handled if atlas.may_handle(tag, receiver) => {}
            Content::Handled => {
                return Err(violation(tag, receiver, "is not in the tag's `serve`"));
            }
            Content::Kept(kinds) => may_keep(atlas, tag, receiver, kinds)?,
        }
        Ok(Passed {
            policy_version: atlas.version(),
            end,
        })
    }
}

/// By what a message was found to pass.
#[derive(Default)]
struct Passed {
    /// The policy version that was in force; 0: none is known, or it is about no
    /// tag.
    policy_version: u64,
    /// Until when; `None`: it needs no lease.
    end: Option<End>,
}

/// Whether a region may hold all of these kinds of bytes of a tag.
fn may_keep(atlas: &Atlas, tag: &Tag, receiver: &RegionName, kinds: &[Kind]) -> Result<()> {
    for kind in kinds {
        if let Verdict::Denied(denial) = atlas.may_hold(tag, receiver, *kind) {
            return Err(Error::new(
                denial.reason(),
                format!("no {kind} of {tag} may exist in {receiver}: {denial}"),
            )
            .fact("tag", tag)
            .fact("region", receiver));
        }
    }
    Ok(())
}

fn violation(tag: &Tag, region: &RegionName, why: &str) -> Error {
    Error::new(
        Reason::ResidencyViolation,
        format!("nothing of {tag} may be handled in {region}: the region {why}"),
    )
    .fact("tag", tag)
    .fact("region", region)
}

fn lapsed() -> Error {
    Error::new(
        Reason::NoQuorum,
        "the policy lease has lapsed, so nothing moves between regions; it returns when this \
         node reaches the control group's leader",
    )
    .retry_after(Duration::from_millis(500))
}
