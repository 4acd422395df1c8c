//! What is looked at from time to time: gauges, and what an operator is to hear
//! of in the log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use domicile_proto::address::RegionName;

use crate::env::Env;
use crate::net::{Reach, Regions, Speaker};
use crate::policy::InForce;
use crate::raft::{Groups, NodeId, ReplicaId};
use crate::state::Subject;
use crate::storage::{Disk, GroupId};
use crate::telemetry::{self, Metrics};

/// How often they are looked at: more often than anyone scrapes them.
const STEP: Duration = Duration::from_secs(1);

/// How long the room on the disk is left alone after it was looked after.
const TEND_STEP: Duration = Duration::from_millis(20);

/// A node that is not reached is told of after this time: longer than it takes to
/// start again.
const UNREACHED_MIN: Duration = Duration::from_secs(5);

/// How often it is told of again.
const UNREACHED_AGAIN: Duration = Duration::from_secs(600);

/// A disk that has not ended a write for this long is told of.
const SILENT_MIN: Duration = Duration::from_secs(2);

/// A replica's gauges and who led it when it was last looked at.
struct Seen {
    gauges: telemetry::Group,
    leader: Option<ReplicaId>,
}

/// What was told of another node.
#[derive(Debug, Default, PartialEq)]
struct Told {
    /// For how long it had not been reached when that was told; `None`: it is.
    unreached: Option<Duration>,
    /// The address that it says it has, where the cluster knows another.
    says: Option<String>,
}

/// What is to be told of another node.
#[derive(Debug, PartialEq)]
enum News {
    /// It is not reached.
    Unreached(Duration),
    /// It is reached again.
    Back(Duration),
    /// It is at an address that the cluster does not know.
    Moved(String),
}

impl Told {
    /// What is new, and told from here on.
    fn news(&mut self, reach: &Reach, says: Option<String>) -> Vec<News> {
        let mut news = Vec::new();
        match (reach.unreached, self.unreached) {
            (Some(now), None) if now >= UNREACHED_MIN => {
                news.push(News::Unreached(now));
                self.unreached = Some(now);
            }
            (Some(now), Some(told)) if now >= told + UNREACHED_AGAIN => {
                news.push(News::Unreached(now));
                self.unreached = Some(now);
            }
            (None, Some(told)) => {
                news.push(News::Back(told));
                self.unreached = None;
            }
            _ => {}
        }
        if says != self.says {
            news.extend(says.clone().map(News::Moved));
            self.says = says;
        }
        news
    }
}

/// What is looked at.
pub(super) struct Observer {
    pub(super) env: Env,
    pub(super) metrics: Metrics,
    pub(super) disk: Arc<Disk>,
    pub(super) groups: Arc<Groups>,
    pub(super) regions: Arc<Regions>,
    pub(super) policy: Arc<InForce>,
    pub(super) speaker: Speaker,
}

impl Observer {
    /// Keeps the gauges of disk, replicas and connections, and tells in the log
    /// what an operator should know. Runs for as long as the node.
    pub(super) async fn follow(self) {
        let mut seen = BTreeMap::new();
        let mut told = BTreeMap::new();
        let mut silent_told = false;
        loop {
            observe_disk(&self.metrics, &self.disk);
            self.tell_of_disk(&mut silent_told);
            if let Some(ahead_ms) = self.env.wall_ahead_ms() {
                self.metrics.set_clock_ahead(ahead_ms);
                // Looked at here too: what is written seldom looks itself.
                self.env.common_wall_ms();
            }
            self.observe_groups(&mut seen);
            self.observe_nodes(&mut told);
            tokio::time::sleep(STEP).await;
        }
    }

    fn observe_groups(&self, seen: &mut BTreeMap<GroupId, Seen>) {
        let open = self.groups.all();
        seen.retain(|id, _| open.iter().any(|g| g.identity().group == *id));
        for group in open {
            let identity = group.identity();
            let seen = seen.entry(identity.group).or_insert_with(|| Seen {
                gauges: self.metrics.group(identity.group.0, &identity.tag),
                leader: None,
            });
            let confirmed = group.confirmed_leader().is_some();
            seen.gauges.set_has_leader(confirmed);
            let (applied, last) = group.indexes();
            seen.gauges.set_indexes(applied.0, last.0);
            let leader = group.leader().map(|leader| leader.replica);
            if leader.is_some() && leader != seen.leader {
                seen.gauges.observe_leader_change();
                seen.leader = leader;
            }
        }
    }

    fn observe_nodes(&self, told: &mut BTreeMap<(RegionName, u64), Told>) {
        let Some(atlas) = self.policy.atlas() else {
            return;
        };
        for region in &atlas.control.regions {
            let Ok(name) = RegionName::new(&region.region) else {
                continue;
            };
            for node in &region.nodes {
                let id = NodeId(node.node);
                let is_this = name == *self.speaker.region() && id == self.speaker.node();
                let Some(reach) = self.regions.reach(&name, id) else {
                    continue;
                };
                let says = match is_this {
                    true => Some(self.speaker.address().to_owned()),
                    false => self.regions.of(&name).and_then(|of| of.calls_from(id)),
                };
                let says = says.filter(|says| *says != node.address);
                if !is_this {
                    let reached = reach.unreached.is_none();
                    self.metrics
                        .set_peer_connected(&region.region, node.node, reached);
                }
                let told = told.entry((name.clone(), node.node)).or_default();
                for news in told.news(&reach, says) {
                    self.tell(&name, id, &node.address, &reach, news);
                }
            }
        }
    }

    /// One line for a node, however many groups it has.
    fn tell(&self, region: &RegionName, id: NodeId, address: &str, reach: &Reach, news: News) {
        let node = format!("{region}/{id}");
        match news {
            News::Unreached(of) => tracing::warn!(
                node,
                address,
                for_s = of.as_secs(),
                groups = self.shared_with(region, id),
                why = reach.why,
                "a node is not reached, which has a replica of so many groups of this one"
            ),
            News::Back(of) => {
                tracing::info!(node, told_after_s = of.as_secs(), "a node is reached again");
            }
            News::Moved(says) => tracing::warn!(
                node,
                at = says,
                known_at = address,
                "a node runs at an address that the cluster does not know, so that others do not \
                 reach it; start it at the known one, or run `domicile node move {node}={says}` \
                 against nodes of the cluster"
            ),
        }
    }

    /// How many groups of this node have a replica on another.
    fn shared_with(&self, region: &RegionName, id: NodeId) -> usize {
        let groups = self.groups.all();
        let shared = groups.iter().filter(|group| {
            let members = group.status().members;
            members.iter().any(|member| match group.identity().subject {
                Subject::Control => self.regions.resolve(member.node) == Some((region.clone(), id)),
                _ => region == self.speaker.region() && member.node == id,
            })
        });
        shared.count()
    }

    fn tell_of_disk(&self, told: &mut bool) {
        let silent = self.disk.silent_for();
        let is_silent = silent >= SILENT_MIN;
        match (*told, is_silent) {
            (false, true) => tracing::warn!(
                for_ms = silent.as_millis() as u64,
                "the disk does not end a write; nothing is durable on this node meanwhile"
            ),
            (true, false) => tracing::info!("the disk ends writes again"),
            _ => {}
        }
        *told = is_silent;
    }
}

/// Has the room on the disk looked after. Runs for as long as the node.
pub(super) async fn tend(disk: Arc<Disk>) {
    let mut said = false;
    loop {
        // One that does not answer would only take a thread with it.
        let tended = match disk.answers() {
            Ok(()) => disk.blocking(Disk::tend).await,
            Err(_) => Ok(()),
        };
        match tended {
            Err(error) if !said => {
                tracing::warn!(%error, "the room on the disk is not looked after");
                said = true;
            }
            Err(_) => {}
            Ok(()) => said = false,
        }
        // What cannot be done is wanted again at once.
        tokio::time::sleep(TEND_STEP).await;
        tokio::select! {
            () = tokio::time::sleep(STEP) => {}
            () = disk.wants_tending() => {}
        }
    }
}

fn observe_disk(metrics: &Metrics, disk: &Disk) {
    match disk.free() {
        Ok(Some(free)) => {
            metrics.set_disk_free(free.bytes);
            if let Some(inodes) = free.inodes {
                metrics.set_disk_free_inodes(inodes);
            }
        }
        Ok(None) => {}
        // Whoever looks after the room says so, once.
        Err(error) => tracing::debug!(%error, "the free space is not known"),
    }
    metrics.set_disk_state(disk.disk_full().unwrap_or(true), disk.silent_for());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::DiskOptions;

    #[test]
    fn the_free_space_of_the_disk_is_a_metric() {
        let directory = tempfile::tempdir().unwrap();
        let mut options = DiskOptions::new("eu", 1, Arc::new(|| Duration::ZERO));
        options.ballast_bytes = 0;
        let disk = Disk::open(directory.path(), options).unwrap();
        let metrics = Metrics::new();
        observe_disk(&metrics, &disk);
        let text = metrics.encode();
        let mut lines = text.lines();
        let bytes = lines.find_map(|l| l.strip_prefix("domicile_disk_free_bytes{} "));
        let bytes = bytes.expect("is exported");
        assert!(bytes.parse::<u64>().unwrap() > 0);
    }

    /// A node that stays away is told of once in ten minutes, not each time that
    /// it is looked for.
    #[test]
    fn a_node_is_told_of_when_that_changes() {
        let away = |seconds| Reach {
            unreached: Some(Duration::from_secs(seconds)),
            ..Reach::default()
        };
        let mut told = Told::default();
        let lines: Vec<_> = (0..1300)
            .flat_map(|second| told.news(&away(second), None))
            .collect();
        let unreached = |s| News::Unreached(Duration::from_secs(s));
        assert_eq!(lines, [unreached(5), unreached(605), unreached(1205)]);
        assert_eq!(
            told.news(&Reach::default(), None),
            [News::Back(Duration::from_secs(1205))]
        );
        let moved = || Some("127.0.0.1:9".to_owned());
        assert_eq!(
            told.news(&Reach::default(), moved()),
            [News::Moved("127.0.0.1:9".into())]
        );
        assert_eq!(told.news(&Reach::default(), moved()), []);
        assert_eq!(told.news(&away(2), None), []);
    }
}
