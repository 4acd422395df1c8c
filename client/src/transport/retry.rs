//! The only retry policy: what may be sent again, when, and what to say when
//! it may not.
//!
//! Reads are sent again always. Writes are sent again with the same request
//! id, by which the server answers with the outcome of the first attempt. A
//! write without one is sent again only while it has reached no server. A
//! write that is applied, but not yet where it should be before it counts, is
//! sent again to wait on. One deadline covers all attempts.
//!
//! Not done here: choosing the endpoint (`routes`), and the one redirect to the
//! tag's home (`target`).

use std::time::Duration;

use domicile_proto::reason::Reason;

use crate::env::{self, Instant};
use crate::error::{Error, Refusal};
use crate::transport::backoff::Backoff;
use crate::transport::fault::Fault;

/// How long a write is tried while nodes say that their disk is full: a leader
/// whose disk fills hands over within a second to one that has room.
const FULL_TRIED_FOR: Duration = Duration::from_secs(2);

/// The pause in between.
const FULL_PAUSE: Duration = Duration::from_millis(200);

/// What makes sending an operation twice harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Safety {
    /// It changes nothing.
    Read,
    /// It changes something once, by its request id.
    Deduplicated,
    /// Nothing does.
    Once,
}

/// The attempts of one operation that failed so far.
#[derive(Debug)]
pub(crate) struct Attempts {
    safety: Safety,
    deadline: Instant,
    /// Whether a level that is not met may be met later.
    waits: bool,
    backoff: Backoff,
    /// Whether an attempt without an answer may have been applied.
    maybe_applied: bool,
    /// What a node answered that sends the caller to another one, or why there is no
    /// connection to it that another one may take.
    elsewhere: Option<Refusal>,
    /// What a node answered last that could do nothing then.
    again: Option<Refusal>,
    /// What a node answered that has applied the write.
    applied: Option<Refusal>,
    /// When a full disk is the answer.
    full_until: Option<Instant>,
}

/// What to do about a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Advice {
    /// Nothing was applied; it may pass here.
    Again,
    /// Nothing was applied; another node may do it.
    Elsewhere,
    /// It may have been applied; the request id makes asking again safe.
    AskAgain,
    /// It is applied; asking again waits on for what it is to wait for.
    WaitOn,
    /// Nothing was applied; another node may lead soon that has room.
    Full,
    /// It stays so.
    Final,
}

fn advice(refusal: &Refusal) -> Advice {
    match refusal.reason() {
        Some(Reason::NoQuorum | Reason::Overloaded | Reason::ShuttingDown | Reason::Deadline) => {
            Advice::Again
        }
        Some(
            Reason::Backfilling
            | Reason::StalenessNotMet
            | Reason::NotHeldHere
            | Reason::WrongHome
            | Reason::NotFormed
            | Reason::UnknownGroup,
        ) => Advice::Elsewhere,
        // The node that was asked lives, and one behind it did not answer: it says when
        // to ask again where that is safe.
        Some(Reason::Unreachable) if refusal.retry_after().is_some() => Advice::Again,
        Some(Reason::WriteOutcomeUnknown) => Advice::AskAgain,
        Some(Reason::DiskFull) => Advice::Full,
        Some(Reason::AckNotReached) => Advice::WaitOn,
        None if refusal.is_of_no_node() => Advice::Elsewhere,
        _ => Advice::Final,
    }
}

/// Whether an answer of this reason tells what came of earlier attempts. The
/// server looks for the request id before it judges a condition.
fn settles(refusal: &Refusal) -> bool {
    matches!(
        refusal.reason(),
        Some(
            Reason::ConditionFailed
                | Reason::RequestForgotten
                | Reason::RequestIdReused
                | Reason::RequestIdUnknown
                | Reason::InvalidArgument
        )
    )
}

impl Attempts {
    /// Before the first attempt.
    pub(crate) fn new(safety: Safety, deadline: Instant) -> Self {
        Attempts {
            safety,
            deadline,
            waits: false,
            backoff: Backoff::new(),
            maybe_applied: false,
            elsewhere: None,
            again: None,
            applied: None,
            full_until: None,
        }
    }

    /// Says whether an earlier operation may have applied the write already.
    pub(crate) fn after_another(mut self, again: bool) -> Self {
        self.maybe_applied = again;
        self
    }

    /// Says whether a level that is not met may be met later.
    pub(crate) fn waiting(mut self, waits: bool) -> Self {
        self.waits = waits;
        self
    }

    /// Whether an attempt without an answer may have been applied.
    pub(crate) fn maybe_applied(&self) -> bool {
        self.maybe_applied
    }

    /// An attempt failed: how long to wait before the next, or why there is
    /// none. `others` says that an endpoint has not been tried since the last
    /// pause.
    pub(crate) fn failed(&mut self, fault: Fault, others: bool) -> Result<Duration, Error> {
        let mut retry_after = None;
        match &fault {
            Fault::Refused(refusal) => match self.advice(refusal) {
                Advice::Final => return Err(self.give_up(fault)),
                Advice::Elsewhere if !others => return Err(self.give_up(fault)),
                Advice::AskAgain => {
                    self.maybe_applied = true;
                    if self.safety == Safety::Once {
                        return Err(self.give_up(fault));
                    }
                }
                Advice::WaitOn => {
                    self.applied = Some(refusal.clone());
                    if self.safety == Safety::Once {
                        return Err(self.give_up(fault));
                    }
                }
                Advice::Full => {
                    let until = self.full_until.get_or_insert(env::after(FULL_TRIED_FOR));
                    if env::now() >= *until {
                        return Err(self.give_up(fault));
                    }
                    retry_after = Some(FULL_PAUSE);
                }
                Advice::Again => {
                    retry_after = refusal.retry_after();
                    self.again = Some(refusal.clone());
                }
                Advice::Elsewhere => {
                    retry_after = refusal.retry_after();
                    self.elsewhere = Some(refusal.clone());
                }
            },
            // It stays so, unless somebody who answers could do it later.
            Fault::Rejected(_) if !others && self.again.is_none() => {
                return Err(self.give_up(fault));
            }
            Fault::Rejected(refusal) => {
                self.elsewhere = Some(refusal.clone());
            }
            Fault::Lost { sent, .. } => {
                self.maybe_applied |= *sent;
                if *sent && self.safety == Safety::Once {
                    return Err(self.give_up(fault));
                }
                // Every node that answers says the same; one that cannot be
                // reached would say nothing else and must not hide it.
                if let Some(refusal) = self.elsewhere.take_if(|_| !sent && !others) {
                    return Err(self.give_up(Fault::Refused(refusal)));
                }
            }
        }
        let pause = self.next_pause(others, retry_after);
        if env::now() + pause >= self.deadline {
            // One that could not be reached must not hide what another one said.
            let said = self.again.take_if(|_| fault.is_unsent());
            return Err(self.give_up(said.map_or(fault, Fault::Refused)));
        }
        Ok(pause)
    }

    fn advice(&self, refusal: &Refusal) -> Advice {
        match refusal.reason() {
            Some(Reason::StalenessNotMet | Reason::Backfilling) if self.waits => Advice::Again,
            _ => advice(refusal),
        }
    }

    fn next_pause(&mut self, others: bool, advised: Option<Duration>) -> Duration {
        // A node that asks for a delay speaks for itself, not for the others.
        if others {
            return Duration::ZERO;
        }
        self.backoff.pause().max(advised.unwrap_or_default())
    }

    /// The error of an operation that is not sent again.
    fn give_up(&self, fault: Fault) -> Error {
        // No later failure takes that back.
        if let Some(applied) = &self.applied {
            return applied.clone().into();
        }
        let settled = matches!(&fault, Fault::Refused(refusal) if settles(refusal));
        if self.safety != Safety::Read && self.maybe_applied && !settled {
            return Error::OutcomeUnknown {
                request_id: None,
                cause: fault.cause(),
            };
        }
        match fault {
            Fault::Refused(refusal) | Fault::Rejected(refusal) => refusal.into(),
            Fault::Lost {
                late: true, cause, ..
            } => Error::Deadline(cause),
            Fault::Lost { cause, .. } => Error::Unreachable(cause),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Cause;
    use crate::transport::backoff::{PAUSE_FIRST, PAUSE_MAX};
    use domicile_proto::v1;

    fn refused(reason: Reason) -> Fault {
        Fault::Refused(Refusal::from(v1::Failure {
            reason: reason.name().into(),
            ..v1::Failure::default()
        }))
    }

    fn lost(sent: bool) -> Fault {
        Fault::lost(sent, Cause::new("connection reset"))
    }

    fn attempts(safety: Safety) -> Attempts {
        Attempts::new(safety, env::now() + Duration::from_secs(60))
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_write_is_sent_again_only_with_an_id() {
        assert!(attempts(Safety::Read).failed(lost(true), false).is_ok());
        assert!(
            attempts(Safety::Deduplicated)
                .failed(lost(true), false)
                .is_ok()
        );
        let error = attempts(Safety::Once).failed(lost(true), true);
        assert!(matches!(
            error,
            Err(Error::OutcomeUnknown {
                request_id: None,
                ..
            })
        ));
        assert!(attempts(Safety::Once).failed(lost(false), false).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_cannot_be_reached_hides_no_refusal() {
        let mut read = attempts(Safety::Read);
        read.failed(refused(Reason::NotHeldHere), true).expect("on");
        let error = read.failed(lost(false), false).expect_err("told");
        assert_eq!(error.reason(), Some(Reason::NotHeldHere));
        // Nobody has answered: somebody may.
        let mut read = attempts(Safety::Read);
        read.failed(lost(false), true).expect("on");
        assert!(read.failed(lost(false), false).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_certificate_is_told_unless_another_node_may_do_it() {
        let rejected = || {
            let refusal = v1::Failure {
                reason: Reason::IdentityRejected.name().into(),
                ..v1::Failure::default()
            };
            Fault::Rejected(Refusal::from(refusal))
        };
        for others_first in [vec![], vec![rejected()], vec![lost(false)]] {
            let mut write = attempts(Safety::Once);
            for fault in others_first {
                write.failed(fault, true).expect("on");
            }
            let error = write.failed(rejected(), false).expect_err("told");
            assert!(matches!(error, Error::Denied(_)), "{error:?}");
        }
        // One that cannot be reached does not hide it.
        let mut write = attempts(Safety::Once);
        write.failed(rejected(), true).expect("on");
        let error = write.failed(lost(false), false).expect_err("told");
        assert_eq!(error.reason(), Some(Reason::IdentityRejected));
        // Another node takes the certificate, and may have a leader soon.
        let mut write = attempts(Safety::Once);
        write.failed(refused(Reason::NoQuorum), true).expect("on");
        write.failed(rejected(), false).expect("again");
        // What was sent before is not settled by it.
        let mut write = attempts(Safety::Deduplicated);
        write.failed(lost(true), true).expect("on");
        let error = write.failed(rejected(), false).expect_err("told");
        assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error:?}");
    }

    /// A node that lives could not reach another one.
    #[tokio::test(start_paused = true)]
    async fn a_node_that_another_one_did_not_reach_is_tried_again_where_that_is_advised() {
        let unreached = |retry_after_ms| {
            Fault::Refused(Refusal::from(v1::Failure {
                reason: Reason::Unreachable.name().into(),
                message: "127.0.0.1:1 did not answer".into(),
                retry_after_ms,
                ..v1::Failure::default()
            }))
        };
        let error = attempts(Safety::Once).failed(unreached(0), false);
        let error = error.expect_err("it stays so");
        assert_eq!(error.reason(), Some(Reason::Unreachable));
        let mut repair = Attempts::new(Safety::Once, env::after(Duration::from_secs(15)));
        let pause = repair.failed(unreached(500), false).expect("again");
        assert!(pause >= Duration::from_millis(500));
        tokio::time::sleep(Duration::from_secs(15)).await;
        let error = repair.failed(unreached(500), false).expect_err("over");
        assert_eq!(error.reason(), Some(Reason::Unreachable));
        assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    }

    /// Two of three are dead, and the last one that was asked is.
    #[tokio::test(start_paused = true)]
    async fn at_the_deadline_it_is_said_what_a_node_answered() {
        let mut read = Attempts::new(Safety::Read, env::after(Duration::from_secs(1)));
        read.failed(refused(Reason::NoQuorum), true).expect("on");
        read.failed(lost(false), false).expect("again");
        tokio::time::sleep(Duration::from_secs(1)).await;
        let error = read.failed(lost(false), true).expect_err("over");
        assert_eq!(error.reason(), Some(Reason::NoQuorum));
    }

    #[tokio::test(start_paused = true)]
    async fn an_earlier_lost_attempt_keeps_the_outcome_unknown() {
        let mut write = attempts(Safety::Deduplicated);
        write.failed(lost(true), false).expect("again");
        let error = write.failed(refused(Reason::GrantDenied), false);
        assert!(matches!(error, Err(Error::OutcomeUnknown { .. })));

        let mut write = attempts(Safety::Deduplicated);
        write.failed(lost(true), false).expect("again");
        let error = write.failed(refused(Reason::ConditionFailed), false);
        assert!(matches!(error, Err(Error::ConditionFailed(_))));

        let mut write = attempts(Safety::Deduplicated);
        let error = write.failed(refused(Reason::GrantDenied), false);
        assert!(matches!(error, Err(Error::Denied(_))));
    }

    /// Under an id that the home never gave nothing can have been applied.
    #[tokio::test(start_paused = true)]
    async fn an_id_that_is_not_known_tells_what_came_of_its_write() {
        for reason in [Reason::RequestIdUnknown, Reason::RequestIdReused] {
            let mut write = attempts(Safety::Deduplicated).after_another(true);
            let error = write.failed(refused(reason), false).expect_err("told");
            assert_eq!(error.reason(), Some(reason));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_is_applied_is_waited_for_and_stays_applied() {
        let mut write = attempts(Safety::Deduplicated);
        let pause = write.failed(refused(Reason::AckNotReached), false);
        assert!(pause.expect("again") <= PAUSE_FIRST);
        // Whatever comes of asking again.
        for fault in [lost(true), refused(Reason::NoQuorum)] {
            write.failed(fault, false).expect("again");
        }
        let error = write.failed(refused(Reason::RequestForgotten), false);
        assert!(matches!(error, Err(Error::AckNotReached { .. })));

        let error = attempts(Safety::Once).failed(refused(Reason::AckNotReached), false);
        assert!(matches!(error, Err(Error::AckNotReached { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_last_until_the_deadline_and_pauses_bound_their_rate() {
        let (began, wait) = (env::now(), Duration::from_secs(600));
        let mut read = Attempts::new(Safety::Read, began + wait);
        let mut count = 0;
        while let Ok(pause) = read.failed(refused(Reason::NoQuorum), false) {
            assert!(pause <= PAUSE_MAX);
            tokio::time::sleep(pause).await;
            count += 1;
        }
        assert!(env::now() + PAUSE_MAX >= began + wait);
        assert!(count < 10_000, "{count}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_level_that_is_waited_for_is_asked_for_again() {
        for reason in [Reason::StalenessNotMet, Reason::Backfilling] {
            let mut read = attempts(Safety::Read);
            read.failed(refused(reason), false).expect_err("it fails");
            let mut read = attempts(Safety::Read).waiting(true);
            read.failed(refused(reason), false).expect("it waits");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_an_earlier_operation_may_have_applied_stays_unknown() {
        for fault in [refused(Reason::GrantDenied), lost(false)] {
            let mut write = Attempts::new(Safety::Deduplicated, env::now()).after_another(true);
            let error = write.failed(fault, false);
            assert!(
                matches!(error, Err(Error::OutcomeUnknown { .. })),
                "{error:?}"
            );
        }
        let mut write = attempts(Safety::Deduplicated).after_another(true);
        let error = write.failed(refused(Reason::ConditionFailed), false);
        assert!(matches!(error, Err(Error::ConditionFailed(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_beyond_the_deadline_is_not_begun() {
        let mut read = Attempts::new(Safety::Read, env::now() + Duration::from_millis(1));
        let error = read.failed(lost(true), false);
        assert!(matches!(error, Err(Error::Unreachable(_))));
        let mut read = Attempts::new(Safety::Read, env::now());
        assert!(matches!(
            read.failed(Fault::late(true), true),
            Err(Error::Deadline(_))
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn the_delay_of_an_overloaded_node_is_kept_unless_another_is_free() {
        let overloaded = || {
            Fault::Refused(Refusal::from(v1::Failure {
                reason: Reason::Overloaded.name().into(),
                retry_after_ms: 3_000,
                ..v1::Failure::default()
            }))
        };
        let pause = attempts(Safety::Once).failed(overloaded(), false);
        assert_eq!(pause.expect("again"), Duration::from_secs(3));
        let pause = attempts(Safety::Once).failed(overloaded(), true);
        assert_eq!(pause.expect("again"), Duration::ZERO);
    }
}
