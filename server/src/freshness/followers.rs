//! The replicas of home groups: one that does not lead asks its leader.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::env::{Env, Instant};
use crate::raft::{Group, Groups};
use crate::seeded::{self, Bug};
use crate::state::Subject;
use crate::storage::GroupId;

/// How often the leader is asked while local reads are served.
const PROBE_BUSY: Duration = Duration::from_millis(200);

/// How often it is asked while none are, so that the first has an answer: of a
/// node with many groups less often, for each question costs the leader a round.
const PROBE_IDLE: Duration = Duration::from_secs(2);
const PROBE_IDLE_EACH: Duration = Duration::from_millis(40);

/// How long an answer and its apply may take.
const PROBE_WAIT: Duration = Duration::from_secs(2);

/// How fresh this node's replicas of home groups are.
pub(super) struct Followers {
    env: Env,
    groups: Arc<Groups>,
    fresh_at: Mutex<BTreeMap<GroupId, Instant>>,
    /// The groups whose age was asked for since the last look.
    asked: Mutex<BTreeSet<GroupId>>,
}

impl Followers {
    /// Knows nothing yet.
    pub(super) fn new(env: Env, groups: Arc<Groups>) -> Arc<Self> {
        Arc::new(Followers {
            env,
            groups,
            fresh_at: Mutex::default(),
            asked: Mutex::default(),
        })
    }

    /// Asks for every replica that does not lead, for as long as the node runs.
    pub(super) async fn follow(self: Arc<Self>) {
        let mut waited = Duration::MAX;
        loop {
            let asked = std::mem::take(&mut *self.asked.lock());
            let followed = self.followed(&asked);
            let idle = PROBE_IDLE.max(PROBE_IDLE_EACH * followed.len() as u32);
            let all = waited >= idle;
            for group in followed {
                if all || asked.contains(&group.identity().group) {
                    let this = self.clone();
                    self.env.spawn_brief(async move {
                        this.probe(&group).await;
                    });
                }
            }
            waited = match all {
                true => PROBE_BUSY,
                false => waited.saturating_add(PROBE_BUSY),
            };
            tokio::time::sleep(PROBE_BUSY).await;
        }
    }

    /// The replicas of home groups that are led elsewhere.
    fn followed(&self, asked: &BTreeSet<GroupId>) -> Vec<Arc<Group>> {
        let groups = self.groups.all().into_iter();
        let followed = groups.filter(|group| {
            let identity = group.identity();
            // A leader looks at itself: what it was behind by then counts.
            if group.leads() && asked.contains(&identity.group) {
                group.quorum_age();
            }
            identity.subject != Subject::Control && !identity.is_mirror && !group.leads()
        });
        followed.collect()
    }

    /// An upper bound of how far behind a replica is; `None`: unknown.
    pub(super) fn lag(&self, group: &Group) -> Option<Duration> {
        self.asked.lock().insert(group.identity().group);
        if seeded::is_on(Bug::LagZero) {
            return Some(Duration::ZERO);
        }
        group.quorum_age().or_else(|| {
            let fresh_at = *self.fresh_at.lock().get(&group.identity().group)?;
            self.env.age(fresh_at)
        })
    }

    async fn probe(&self, group: &Group) {
        let asked_at = self.env.now();
        let probe = async {
            group.read_barrier().await.ok()?;
            Some(())
        };
        if let Ok(Some(())) = tokio::time::timeout(PROBE_WAIT, probe).await {
            let asked_at = match seeded::is_on(Bug::LagFromAnswer) {
                true => self.env.now(),
                false => asked_at,
            };
            let mut fresh_at = self.fresh_at.lock();
            let at = fresh_at.entry(group.identity().group).or_insert(asked_at);
            *at = (*at).max(asked_at);
        }
    }
}
