//! What the leader of a group does besides leading it.
//!
//! Rooms above say what that is, by a [`Duty`]. Every replica has a supervisor. It begins
//! the duties once its replica is elected, and ends them once that does not lead any more.
//! One that is elected again begins them anew: what it knew may be of before.
//!
//! Not done here: anything that depends on how far a duty is. One that cannot go on, as
//! without a quorum or beside a disk that hangs, waits and tries again by itself.

use std::sync::Arc;

use futures::future::BoxFuture;
use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::metrics::RaftServerMetrics;

use super::group::Group;
use super::types::Types;
use crate::env::{Env, Task};

/// Something that a node does for each group that it leads, for as long as it leads.
pub trait Duty: Send + Sync {
    /// How its tasks are called.
    fn name(&self) -> &'static str;

    /// Does it for a group that this node leads from now on. It is dropped when the node
    /// does not lead the group any more, and may end before, if nothing is left to do in
    /// this term.
    fn lead(self: Arc<Self>, group: Arc<Group>) -> BoxFuture<'static, ()>;
}

/// What is done for every group that is led here.
#[derive(Clone)]
pub(super) struct Duties {
    env: Env,
    all: Arc<[Arc<dyn Duty>]>,
}

impl Duties {
    /// These.
    pub(super) fn new(env: Env, all: Vec<Arc<dyn Duty>>) -> Self {
        let all = all.into();
        Duties { env, all }
    }

    /// Supervises a replica until that has stopped or the task is dropped.
    pub(super) fn supervise(&self, group: Arc<Group>) -> Task {
        let duties = self.clone();
        self.env.spawn("duties", async move {
            // They change seldom: with votes, leaders and members.
            let mut changes = group.raft().server_metrics();
            let mut done: Option<(u64, Vec<Task>)> = None;
            loop {
                let led = led_in(&group, &changes.borrow_watched());
                if done.as_ref().map(|(term, _)| *term) != led {
                    // Two that do the same would undo each other's work.
                    for task in done.take().into_iter().flat_map(|(_, tasks)| tasks) {
                        task.end().await;
                    }
                    if let Some(term) = led {
                        known(&group, term).await;
                        done = Some((term, duties.begin(&group)));
                    }
                }
                if changes.changed().await.is_err() {
                    return;
                }
            }
        })
    }

    fn begin(&self, group: &Arc<Group>) -> Vec<Task> {
        let begin = |duty: &Arc<dyn Duty>| {
            let led = duty.clone().lead(group.clone());
            self.env.spawn(duty.name(), led)
        };
        self.all.iter().map(begin).collect()
    }
}

/// In which term a replica was elected and leads; `None`: it does not.
fn led_in(group: &Group, now: &RaftServerMetrics<Types>) -> Option<u64> {
    let leader = now.vote.leader_id;
    // Neither one that was taken out of its group, nor one that led when it was stopped:
    // what they voted last says that they lead, until they hear of another one.
    let leads = now.vote.committed
        && leader.node_id == group.replica()
        && now.state == ServerState::Leader
        && leader.term > group.opened_in;
    leads.then_some(leader.term)
}

/// Waits until the replica says of itself that it is in a term, which it does a little
/// later.
async fn known(group: &Group, term: u64) {
    let mut metrics = group.raft().metrics();
    while metrics.borrow_watched().current_term < term {
        if metrics.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use parking_lot::Mutex;

    use super::*;
    use crate::raft::Groups;
    use crate::raft::hand_over::step_down;
    use crate::raft::testing::{Alone, put};
    use crate::state::testing::identity;

    /// Notes in which terms it was begun and ended.
    #[derive(Default)]
    struct Noted(Mutex<Vec<(&'static str, u64)>>);

    struct Ending(Arc<Noted>, u64);

    impl Drop for Ending {
        fn drop(&mut self) {
            self.0.0.lock().push(("ended", self.1));
        }
    }

    impl Duty for Noted {
        fn name(&self) -> &'static str {
            "noted"
        }

        fn lead(self: Arc<Self>, group: Arc<Group>) -> BoxFuture<'static, ()> {
            let term = group.term();
            self.0.lock().push(("begun", term));
            let ending = Ending(self, term);
            Box::pin(async move {
                let _ending = ending;
                std::future::pending().await
            })
        }
    }

    impl Noted {
        async fn takes(&self) -> Vec<(&'static str, u64)> {
            tokio::time::sleep(Duration::from_millis(20)).await;
            std::mem::take(&mut self.0.lock())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn duties_are_done_for_a_group_while_it_is_led_here() {
        let mut node = Alone::new("eu");
        let noted = Arc::new(Noted::default());
        node.groups = Arc::new(Groups::new(node.env.clone(), vec![noted.clone()]));
        let group = node.open(identity(18, "global", "eu")).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(noted.takes().await, [], "nobody leads");

        node.form(&group).await;
        let first = group.term();
        assert_eq!(noted.takes().await, [("begun", first)]);
        put(&group, "a", "one").await;
        assert_eq!(noted.takes().await, [], "it leads on");

        // Alone it is elected again at once.
        step_down(group.raft(), first).await.expect("it runs");
        tokio::time::sleep(Duration::from_secs(10)).await;
        node.form(&group).await;
        let next = group.term();
        assert!(next > first);
        assert_eq!(noted.takes().await, [("ended", first), ("begun", next)]);

        node.groups.remove(group.identity().group).expect("here");
        assert_eq!(noted.takes().await, [("ended", next)]);
    }

    /// Its vote says that it leads, as it did when it was stopped.
    #[tokio::test(start_paused = true)]
    async fn a_replica_that_is_opened_again_has_no_duties_before_it_is_elected() {
        let mut node = Alone::new("eu");
        let group = node.lead(identity(18, "global", "eu")).await;
        let before = group.term();
        node.groups.remove(group.identity().group);
        group.shutdown().await;
        drop(group);
        let noted = Arc::new(Noted::default());
        node.groups = Arc::new(Groups::new(node.env.clone(), vec![noted.clone()]));
        let group = node.lead(identity(18, "global", "eu")).await;
        let term = group.term();
        assert!(term > before);
        assert_eq!(noted.takes().await, [("begun", term)]);
    }

    #[tokio::test(start_paused = true)]
    async fn duties_end_with_the_replica() {
        let mut node = Alone::new("eu");
        let noted = Arc::new(Noted::default());
        node.groups = Arc::new(Groups::new(node.env.clone(), vec![noted.clone()]));
        let group = node.lead(identity(18, "global", "eu")).await;
        let term = group.term();
        assert_eq!(noted.takes().await, [("begun", term)]);
        group.shutdown().await;
        assert_eq!(noted.takes().await, [("ended", term)]);
    }
}
