//! Keeps the policy lease.

use std::sync::Arc;
use std::time::Duration;

use crate::env::Env;
use crate::error::Result;
use crate::placement::Placement;
use crate::policy::{InForce, LEASE};
use crate::raft::Groups;
use crate::storage::CONTROL_GROUP;

/// How often the lease is renewed; a few renewals may be lost.
const RENEW_STEP: Duration = Duration::from_secs(7);

/// How often it is looked whether the lease has lapsed in between.
const LOOK_STEP: Duration = Duration::from_secs(1);

/// How soon a renewal that failed is tried again.
const RETRY_STEP: Duration = Duration::from_millis(300);

/// How long one confirmation may take.
const CONFIRM_WAIT: Duration = Duration::from_secs(4);

impl Placement {
    /// Keeps the policy lease for as long as the node runs.
    pub async fn keep_lease(self: Arc<Self>) {
        let (policy, groups) = (self.gate.policy().clone(), self.groups.clone());
        keep(self.env.clone(), policy, groups, || self.adopt()).await;
    }
}

/// Asks the control group's leader again and again whether anything newer is in
/// force. The lease counts from each question: once this node has applied and
/// adopted what was in force then, it acts on nothing older. `adopt` takes over what is
/// applied here.
async fn keep(env: Env, policy: Arc<InForce>, groups: Arc<Groups>, adopt: impl Fn() -> Result<()>) {
    const { assert!(RENEW_STEP.as_secs() * 3 < LEASE.as_secs()) };
    loop {
        let asked = env.now();
        let confirmed = match groups.get(CONTROL_GROUP) {
            Some(control) => {
                let barrier = tokio::time::timeout(CONFIRM_WAIT, control.read_barrier()).await;
                matches!(barrier, Ok(Ok(_)))
            }
            None => false,
        };
        // Applied is not enough: the gates decide by what was adopted.
        if confirmed && adopted(&adopt) && policy.atlas().is_some() {
            policy.lease().confirm(asked);
            // A machine that slept renews at once.
            let mut waited = Duration::ZERO;
            loop {
                tokio::time::sleep(LOOK_STEP).await;
                waited += LOOK_STEP;
                if waited >= RENEW_STEP || policy.lease().left().is_zero() {
                    break;
                }
            }
        } else {
            tokio::time::sleep(env.jitter(RETRY_STEP)).await;
        }
    }
}

fn adopted(adopt: &impl Fn() -> Result<()>) -> bool {
    let adopted = adopt();
    if let Err(error) = &adopted {
        tracing::debug!(%error, "the policy was not adopted; trying again");
    }
    adopted.is_ok()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use super::*;
    use crate::env::Clocks;
    use crate::error::Error;
    use crate::raft::testing::Alone;
    use crate::residency::Gate;
    use crate::state::testing::identity;

    #[tokio::test(start_paused = true)]
    async fn the_lease_runs_once_the_gates_have_what_was_confirmed() {
        let node = Alone::new("eu");
        node.lead(identity(CONTROL_GROUP.0, "", "eu")).await;
        node.adopt_demo();
        let asked = Arc::new(AtomicU64::new(0));
        let ran_before = Arc::new(AtomicBool::new(false));
        let adopt = {
            let (gate, asked, ran_before) = (node.gate.clone(), asked.clone(), ran_before.clone());
            move || {
                let runs = !gate.policy().lease().left().is_zero();
                ran_before.fetch_or(runs, Ordering::Relaxed);
                match asked.fetch_add(1, Ordering::Relaxed) {
                    0..3 => Err(Error::internal("not yet")),
                    _ => Ok(()),
                }
            }
        };
        let keeping = keep(
            node.env.clone(),
            node.gate.policy().clone(),
            node.groups.clone(),
            adopt,
        );
        let _keeping = node.env.spawn("lease", keeping);
        tokio::time::sleep(RETRY_STEP * 10).await;
        assert!(asked.load(Ordering::Relaxed) > 3);
        assert!(!ran_before.load(Ordering::Relaxed));
        assert!(node.gate.policy().lease().left() > LEASE - CONFIRM_WAIT);
    }

    #[tokio::test(start_paused = true)]
    async fn the_lease_is_kept_while_the_control_group_answers_and_no_longer() {
        let node = Alone::new("eu");
        let group = node.lead(identity(CONTROL_GROUP.0, "", "eu")).await;
        node.adopt_demo();
        let (env, policy) = (node.env.clone(), node.gate.policy().clone());
        let keeping = keep(env, policy, node.groups.clone(), || Ok(()));
        let _keeping = node.env.spawn("lease", keeping);
        for _ in 0..10 {
            tokio::time::sleep(LEASE / 3).await;
            assert!(!node.gate.policy().lease().left().is_zero());
        }
        group.shutdown().await;
        tokio::time::sleep(LEASE).await;
        assert!(node.gate.policy().lease().left().is_zero());
    }

    /// A wall clock that runs away lets the lease lapse at once, each time; the
    /// control group is asked no more often for that.
    #[tokio::test(start_paused = true)]
    async fn a_lease_that_lapses_at_once_is_not_renewed_without_a_pause() {
        let mut node = Alone::new("eu");
        let looks = Arc::new(AtomicU64::new(0));
        let counted = looks.clone();
        node.env = Env::with_clocks(move || Clocks {
            wall: Duration::from_secs(10 * counted.fetch_add(1, Ordering::Relaxed)),
            ..Clocks::default()
        });
        node.gate = Gate::new(node.gate.region().clone(), InForce::new(node.env.clone()));
        node.lead(identity(CONTROL_GROUP.0, "", "eu")).await;
        node.adopt_demo();
        let asked = Arc::new(AtomicU64::new(0));
        let adopt = {
            let asked = asked.clone();
            move || {
                asked.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        };
        let keeping = keep(
            node.env.clone(),
            node.gate.policy().clone(),
            node.groups.clone(),
            adopt,
        );
        let ended = tokio::time::timeout(Duration::from_secs(20), node.env.scoped(keeping)).await;
        assert!(ended.is_err(), "it keeps it for ever");
        assert!(asked.load(Ordering::Relaxed) <= 21, "{asked:?}");
    }
}
