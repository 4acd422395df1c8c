//! The end of operations whose deadline has come.

use std::sync::Arc;

use crate::env;
use crate::transport::fault::Fault;
use crate::transport::session::shared::Shared;

/// Answers operations whose deadline has come. One timer serves them all:
/// most are answered long before, and a timer each would cost more than the
/// operation.
pub(super) async fn expire(shared: Arc<Shared>) {
    loop {
        let earliest = shared.state.lock().earliest;
        match earliest {
            None => shared.earlier.notified().await,
            Some(at) => tokio::select! {
                () = tokio::time::sleep_until(at) => {}
                () = shared.earlier.notified() => {}
            },
        }
        let now = env::now();
        let slots = {
            let mut state = shared.state.lock();
            if state.earliest.is_none_or(|at| at > now) {
                continue;
            }
            let slots = state.remove_if(|slot| slot.deadline <= now);
            let open = state.slots.iter().flatten();
            state.earliest = open.map(|(_, slot)| slot.deadline).min();
            slots
        };
        shared.fail(slots, Fault::late);
    }
}
