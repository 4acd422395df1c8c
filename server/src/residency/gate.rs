//! The gates and what passes them.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use domicile_proto::address::{RegionName, Tag};
use domicile_proto::policy::{Kind, Verdict};
use parking_lot::Mutex;

use super::carried::{Carried, Carries, Content, Of, carried, evidence};
use crate::env::Instant;
use crate::error::{Error, Reason, Result};
use crate::policy::{Atlas, End, InForce, lapsed};
use crate::seeded::{self, Bug};
use crate::state::Subject;
use crate::storage::{CONTROL_GROUP, FIRST_RANGE, REGION_GROUP};

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
    /// When it may leave no more: when the lease has lapsed that ran when it was
    /// cleared, for no renewal of it says that the message may go.
    end: Option<End>,
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
        self.end.map(|end| end.at())
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
    region: RegionName,
    policy: Arc<InForce>,
    refusals: Mutex<Refusals>,
}

impl Gate {
    /// The gates of a node of a region, by what is in force there. While no policy is
    /// known no record passes.
    pub fn new(region: RegionName, policy: Arc<InForce>) -> Arc<Self> {
        Arc::new(Gate {
            region,
            policy,
            refusals: Mutex::default(),
        })
    }

    /// The region of this node.
    pub fn region(&self) -> &RegionName {
        &self.region
    }

    /// What they decide by.
    pub fn policy(&self) -> &Arc<InForce> {
        &self.policy
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
        let left = |end| self.policy.lease().until(end);
        if cleared.end.is_some_and(|end| left(end).is_zero()) {
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
        let atlas = self.policy.look();
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
            true => Some(self.policy.lease().running()?),
            false => None,
        };
        let atlas = self.policy.look();
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
