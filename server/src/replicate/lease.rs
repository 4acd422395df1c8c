//! Keeps the policy lease of the gates.

use std::sync::Arc;
use std::time::Duration;

use crate::env::Env;
use crate::raft::Groups;
use crate::residency::{Gate, LEASE};
use crate::storage::CONTROL_GROUP;

/// How often the lease is renewed; a few renewals may be lost.
const RENEW_STEP: Duration = Duration::from_secs(7);

/// How soon a renewal that failed is tried again.
const RETRY_STEP: Duration = Duration::from_millis(300);

/// How long one confirmation may take.
const CONFIRM_WAIT: Duration = Duration::from_secs(4);

/// Asks the control group's leader again and again whether anything newer is in
/// force. The lease counts from each question: once this node has applied what
/// was in force then, it acted on nothing older.
pub async fn keep_lease(env: Env, gate: Arc<Gate>, groups: Arc<Groups>) {
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
        let known = gate.atlas().is_some();
        if confirmed && known {
            gate.confirm_lease(asked);
            tokio::time::sleep(RENEW_STEP).await;
        } else {
            tokio::time::sleep(env.jitter(RETRY_STEP)).await;
        }
    }
}
