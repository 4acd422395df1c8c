//! What writes have in common: a condition, a request id, one outcome.

use std::time::Duration;

use domicile_proto::address::Version;
use domicile_proto::reason::Reason;
use domicile_proto::v1;
use domicile_proto::v1::condition::Condition;
use domicile_proto::v1::session_operation::Operation;

use crate::env;
use crate::error::{Cause, Error};
use crate::operation::register::register;
use crate::request_id::RequestId;
use crate::transport::reply::Reply;
use crate::transport::request::Open;
use crate::transport::retry::Safety;
use crate::transport::target::{Failed, Plan, Target};

/// How long a node may take to tell how far a write got that waits for other
/// regions: its patience with them, and a round trip round the world.
const ACKNOWLEDGED_IN: Duration = Duration::from_secs(2);

/// How to write, as a builder collects it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    condition: Option<Condition>,
    identity: Identity,
    acknowledge: Acknowledge,
    pub(crate) timeout: Option<Duration>,
}

/// When a write counts as done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Acknowledge {
    /// When a quorum of the tag's home has it on disk.
    #[default]
    Home,
    /// When this many mirror regions have it, too.
    Mirrors(u32),
    /// When these regions have it, too.
    Regions(Vec<String>),
}

/// Which request id a write carries.
#[derive(Clone, Copy, Debug, Default)]
enum Identity {
    /// A new one.
    #[default]
    New,
    /// That of an earlier attempt.
    Again(RequestId),
    /// None.
    AtMostOnce,
}

impl Options {
    pub(crate) fn set_if_absent(&mut self) {
        self.condition = Some(Condition::IfAbsent(true));
    }

    pub(crate) fn set_if_version(&mut self, version: Version) {
        self.condition = Some(Condition::IfVersion(version.get()));
    }

    pub(crate) fn set_request_id(&mut self, id: RequestId) {
        self.identity = Identity::Again(id);
    }

    pub(crate) fn set_at_most_once(&mut self) {
        self.identity = Identity::AtMostOnce;
    }

    pub(crate) fn set_acknowledge(&mut self, acknowledge: Acknowledge) {
        self.acknowledge = acknowledge;
    }

    /// When it counts as done, for the wire.
    pub(crate) fn acknowledgement(&self) -> Option<v1::Acknowledgement> {
        use v1::acknowledgement::Acknowledgement as Wire;
        let acknowledgement = match &self.acknowledge {
            Acknowledge::Home => return None,
            Acknowledge::Mirrors(count) => Wire::Mirrors(*count),
            Acknowledge::Regions(regions) => Wire::Regions(v1::RegionSet {
                regions: regions.clone(),
            }),
        };
        Some(v1::Acknowledgement {
            acknowledgement: Some(acknowledgement),
        })
    }

    /// The condition for the wire.
    pub(crate) fn condition(&self) -> Option<v1::Condition> {
        self.condition.map(|condition| v1::Condition {
            condition: Some(condition),
        })
    }

    /// Sends a write; `operation` is given its request id.
    pub(crate) async fn send(
        &self,
        target: &Target,
        operation: impl Fn(Option<v1::RequestId>) -> Operation,
    ) -> Result<Reply, Error> {
        match self.identity {
            Identity::AtMostOnce => {
                let plan = self.plan(Safety::Once, self.timeout);
                target.call(operation(None), plan).await
            }
            Identity::Again(id) => {
                let open = target.registration().reopen(id);
                let sent = self.send_as(target, open, &operation, self.timeout);
                sent.await.map_err(|failed| failed.error)
            }
            Identity::New => self.send_anew(target, &operation).await,
        }
    }

    /// Sends a write under an id of this client. One that the home has forgotten
    /// is replaced: nothing was applied under it, unless an earlier attempt got
    /// no answer.
    async fn send_anew(
        &self,
        target: &Target,
        operation: &impl Fn(Option<v1::RequestId>) -> Operation,
    ) -> Result<Reply, Error> {
        let deadline = env::after(self.timeout.unwrap_or(target.timeout()));
        let registration = target.registration();
        let mut replaced = false;
        loop {
            let ask = async {
                let left = deadline.saturating_duration_since(env::now());
                register(target, left).await
            };
            let late = || Error::Deadline(Cause::new("no answer came in time"));
            let requests = registration.requests(deadline, ask, late).await?;
            let left = deadline.saturating_duration_since(env::now());
            let failed = match self
                .send_as(target, requests.open(), operation, Some(left))
                .await
            {
                Ok(reply) => return Ok(reply),
                Err(failed) => failed,
            };
            let is_unknown = matches!(
                failed.error.reason(),
                Some(Reason::RequestForgotten | Reason::RequestIdUnknown)
            );
            if is_unknown {
                registration.end(&requests);
            }
            if !is_unknown || failed.maybe_applied || replaced {
                return Err(failed.error);
            }
            replaced = true;
        }
    }

    /// Sends a write under an id.
    async fn send_as(
        &self,
        target: &Target,
        open: Open,
        operation: &impl Fn(Option<v1::RequestId>) -> Operation,
        timeout: Option<Duration>,
    ) -> Result<Reply, Failed> {
        let operation = operation(Some(open.to_proto()));
        let plan = self.plan(Safety::Deduplicated, timeout);
        let mut result = target.attempt(operation, plan).await;
        let failed = result.as_mut().err();
        match failed.and_then(|failed| failed.error.request_id_mut()) {
            Some(request_id) => {
                *request_id = Some(open.id());
                open.unanswered();
            }
            None => open.answered(),
        }
        result
    }

    fn plan(&self, safety: Safety, timeout: Option<Duration>) -> Plan {
        Plan {
            safety,
            wants_leader: true,
            timeout,
            attempt_min: match (safety, &self.acknowledge) {
                (Safety::Once, _) => Duration::MAX,
                (_, Acknowledge::Home) => Duration::ZERO,
                (_, Acknowledge::Mirrors(_) | Acknowledge::Regions(_)) => ACKNOWLEDGED_IN,
            },
            again: matches!(self.identity, Identity::Again(_)),
            waits: false,
        }
    }
}

/// The methods that the builders of writes share.
macro_rules! writing {
    () => {
        /// Sends the write of an earlier attempt again, of which the outcome
        /// is unknown or the acknowledgement was not reached. Everything else
        /// must be as it was.
        pub fn request_id(mut self, id: crate::request_id::RequestId) -> Self {
            self.options.set_request_id(id);
            self
        }

        /// Sends no request id, and never sends the write again once it may
        /// have reached a server.
        pub fn at_most_once(mut self) -> Self {
            self.options.set_at_most_once();
            self
        }

        /// The time for all attempts, instead of the client's.
        pub fn timeout(mut self, timeout: std::time::Duration) -> Self {
            self.options.timeout = Some(timeout);
            self
        }

        /// When the write counts as done. Default: when a quorum of the tag's
        /// home has it on disk.
        pub fn acknowledge(mut self, acknowledge: crate::operation::write::Acknowledge) -> Self {
            self.options.set_acknowledge(acknowledge);
            self
        }

        /// Writes only if the record exists with this version.
        pub fn if_version(mut self, version: domicile_proto::address::Version) -> Self {
            self.options.set_if_version(version);
            self
        }
    };
}
pub(crate) use writing;
