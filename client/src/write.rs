//! What writes have in common: a condition, a request id, one outcome.

use std::time::Duration;

use domicile_proto::address::Version;
use domicile_proto::v1;
use domicile_proto::v1::condition::Condition;
use domicile_proto::v1::session_operation::Operation;

use crate::client::Plan;
use crate::connection::Reply;
use crate::error::Error;
use crate::request::RequestId;
use crate::retry::Safety;
use crate::tag::TagHandle;

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
        handle: &TagHandle,
        operation: impl FnOnce(Option<v1::RequestId>) -> Operation,
    ) -> Result<Reply, Error> {
        let plan = |safety| Plan {
            safety,
            wants_leader: true,
            timeout: self.timeout,
            attempt_min: match (safety, &self.acknowledge) {
                (Safety::Once, _) => Duration::MAX,
                (_, Acknowledge::Home) => Duration::ZERO,
                (_, Acknowledge::Mirrors(_) | Acknowledge::Regions(_)) => ACKNOWLEDGED_IN,
            },
            again: matches!(self.identity, Identity::Again(_)),
            waits: false,
        };
        let (client, route) = (&handle.client, &handle.route);
        let open = match self.identity {
            Identity::New => client.requests().open(),
            Identity::Again(id) => client.requests().reopen(id),
            Identity::AtMostOnce => {
                return client
                    .call(route, operation(None), plan(Safety::Once))
                    .await;
            }
        };
        let operation = operation(Some(open.to_proto()));
        let mut result = client
            .call(route, operation, plan(Safety::Deduplicated))
            .await;
        match result.as_mut().err().and_then(Error::request_id_mut) {
            Some(request_id) => {
                *request_id = Some(open.id());
                open.unanswered();
            }
            None => open.answered(),
        }
        result
    }
}

/// The methods that the builders of writes share.
macro_rules! writing {
    () => {
        /// Sends the write of an earlier attempt again, of which the outcome
        /// is unknown or the acknowledgement was not reached. Everything else
        /// must be as it was.
        pub fn request_id(mut self, id: crate::request::RequestId) -> Self {
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
        pub fn acknowledge(mut self, acknowledge: crate::write::Acknowledge) -> Self {
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

/// The way from a builder to its future.
macro_rules! into_future {
    ($builder:ty => $output:ty) => {
        impl IntoFuture for $builder {
            type Output = Result<$output, crate::error::Error>;
            type IntoFuture = futures::future::BoxFuture<'static, Self::Output>;

            fn into_future(self) -> Self::IntoFuture {
                Box::pin(self.send())
            }
        }
    };
}
pub(crate) use into_future;
