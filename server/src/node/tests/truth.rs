//! What is said of the cluster is so, a few seconds later at most.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use domicile_proto::v1;
use domicile_proto::v1::admin_service_client::AdminServiceClient;
use parking_lot::Mutex;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tracing::Dispatch;
use tracing::subscriber::NoSubscriber;

use crate::config::{Log, LogFormat, LogLevel};
use crate::env::Env;
use crate::node::WRITES_SERVICE;
use crate::node::testing::{Which, World, address, region_group};
use crate::raft::Group;
use crate::storage::Room;
use crate::telemetry::log_to;

/// The nodes of a cluster under the demo's policy.
const ALL: [&str; 5] = ["ap/1", "eu/1", "eu/2", "eu/3", "us/1"];

/// The time after which what is said must be so.
const SAID_WITHIN: Duration = Duration::from_secs(5);

/// What a node says of itself and others.
struct Said {
    status: v1::GetClusterStatusResponse,
    serving: bool,
    writing: bool,
    /// The groups by metrics: all, and those with a leader.
    groups: (usize, usize),
}

impl Said {
    async fn by(world: &World, name: &str) -> Said {
        let channel = world.channel(name).await;
        let mut admin = AdminServiceClient::new(channel.clone());
        let status = admin
            .get_cluster_status(v1::GetClusterStatusRequest {})
            .await;
        let is_serving = async |service: &str| {
            let request = HealthCheckRequest {
                service: service.into(),
            };
            let told = HealthClient::new(channel.clone()).check(request).await;
            told.expect("told").into_inner().status == 1
        };
        let text = world.metrics[name].encode();
        let mut of_groups = text.lines();
        let of_groups = of_groups.by_ref();
        let gauges: Vec<bool> = of_groups
            .filter_map(|line| line.strip_prefix("domicile_raft_has_leader{"))
            .map(|line| line.ends_with(" 1"))
            .collect();
        Said {
            status: status.expect("told").into_inner(),
            serving: is_serving("domicile.v1.KvService").await,
            writing: is_serving(WRITES_SERVICE).await,
            groups: (gauges.len(), gauges.iter().filter(|led| **led).count()),
        }
    }

    fn node(&self, name: &str) -> &v1::NodeStatus {
        let mut nodes = self.status.nodes.iter();
        let node = nodes.find(|node| format!("{}/{}", node.region, node.node) == name);
        node.expect("it is named")
    }

    /// All is well.
    fn is_well(&self) -> bool {
        self.status.health() == v1::Health::Degraded && self.serving && self.writing
            || self.status.health() == v1::Health::Ok
    }

    /// The groups of the region, and the tags homed in it, are down.
    fn is_down(&self) -> bool {
        let local = self.status.groups.iter().filter(|g| g.kind != "control");
        self.status.health() == v1::Health::Down
            && local.clone().count() > 0
            && local
                .clone()
                .all(|g| g.leader.is_none() && g.health() == v1::Health::Down)
            && !self.serving
            && !self.writing
            && self.groups.1 == 0
            && self.status.nodes.iter().all(|node| node.leads == 0)
    }
}

async fn ready() -> World {
    let world = World::start(&ALL).await;
    world.init("eu/1", &ALL).await.expect("formed");
    world.until_ready().await;
    tokio::time::sleep(SAID_WITHIN).await;
    let said = Said::by(&world, "eu/1").await;
    assert!(said.is_well(), "{:#?}", said.status);
    assert_eq!(said.groups.0, said.groups.1, "{:#?}", said.status);
    assert!(
        said.status.nodes.iter().all(|node| node.reachable
            && node.unreached_ms == 0
            && node.disk() == v1::DiskState::Ok)
    );
    world
}

#[tokio::test(start_paused = true)]
async fn nobody_leads_without_a_quorum_and_everything_says_so() {
    let world = ready().await;
    // All that is left of them believe of somebody that he leads.
    for name in ALL {
        world.cut(name, true);
    }
    tokio::time::sleep(SAID_WITHIN).await;
    for name in ["eu/1", "eu/2", "eu/3"] {
        let said = Said::by(&world, name).await;
        assert!(said.is_down(), "{name}: {:#?}", said.status);
        let gone = said.status.nodes.iter().filter(|node| !node.reachable);
        let gone: Vec<u64> = gone.map(|node| node.unreached_ms).collect();
        assert_eq!(gone.len(), ALL.len() - 1);
        assert!(gone.iter().all(|ms| (3000..=6000).contains(ms)), "{gone:?}");
    }
    for name in ALL {
        world.cut(name, false);
    }
    tokio::time::sleep(SAID_WITHIN * 3).await;
    let said = Said::by(&world, "eu/1").await;
    assert!(
        said.is_well() && said.groups.0 == said.groups.1,
        "{:#?}",
        said.status
    );
}

/// The policy of so many tags, all homed and stored in `eu`.
pub(super) fn policy_of(tags: usize) -> String {
    let head = "schema = \"domicile.policy/v1\"\nversion = 1\n\
                [regions.eu]\njurisdiction = \"DE\"\n";
    let tag = |at| format!("[tags.t{at}]\nhome = \"eu\"\nstore = [\"eu\"]\n");
    head.to_owned() + &(0..tags).map(tag).collect::<String>()
}

/// What a node sends while nothing is asked of it does not grow with its groups:
/// the heartbeats of all of them to a node share its frames.
#[tokio::test(start_paused = true)]
async fn idle_groups_share_the_frames_of_their_heartbeats() {
    const IDLE: Duration = Duration::from_secs(5);
    let all = ["eu/1", "eu/2", "eu/3"];
    let world = World::start(&all).await;
    let formed = world.init_as("eu/1", &all, "test", &policy_of(40)).await;
    formed.expect("formed");
    world.until_ready().await;
    tokio::time::sleep(SAID_WITHIN).await;
    let frames = || world.frames();
    let before = frames();
    tokio::time::sleep(IDLE).await;
    let sent = frames() - before;
    // 40 groups beat 200 times a second; six connections carry 20 frames a second
    // each at most.
    let most = 6 * 20 * IDLE.as_secs();
    assert!(sent <= most, "{sent} frames in {IDLE:?}, not {most}");
    assert!(sent >= IDLE.as_secs(), "{sent} frames in {IDLE:?}");
}

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Has every subscriber be asked about a line's place in the code. With no more than one
/// in the process only that of the thread that comes by first is: what another test says
/// first, on a thread without one, would never be written anywhere.
fn ask_every_subscriber() {
    static ANOTHER: OnceLock<Dispatch> = OnceLock::new();
    ANOTHER.get_or_init(|| Dispatch::new(NoSubscriber::default()));
}

/// All nodes of this test write to one log, so that each writes less.
#[tokio::test(start_paused = true)]
async fn a_dead_peer_costs_a_few_lines_a_minute() {
    ask_every_subscriber();
    let world = ready().await;
    let env = Env::real();
    let began = env.now();
    let clock = Arc::new(move || env.now().duration_since(began));
    let log = Log {
        level: LogLevel::Info,
        format: LogFormat::Text,
    };
    let written = Written::default();
    let writer = written.clone();
    let (subscriber, logging) = log_to(&log, false, move || writer.clone(), clock);
    let _guard = tracing::subscriber::set_default(subscriber);
    world.cut("eu/3", true);
    for minute in 0..2 {
        tokio::time::sleep(Duration::from_secs(60)).await;
        // Another thread writes the lines, by a clock of its own.
        logging.flush(Duration::from_secs(30));
        let text = String::from_utf8(std::mem::take(&mut *written.0.lock())).expect("text");
        let lines: Vec<&str> = text.lines().collect();
        // It also ends connections, and is told of, in the first.
        let most = [40, 10][minute];
        assert!(lines.len() <= most, "{} lines: {lines:#?}", lines.len());
        let told = text.matches("a node is not reached").count();
        assert_eq!(told > 0, minute == 0, "{lines:#?}");
    }
}

/// Where the leader is the one that is left, and where it is not.
#[tokio::test(start_paused = true)]
async fn one_of_three_that_is_left_says_that_nobody_leads() {
    let region: Which = |node| node.groups().get(crate::storage::REGION_GROUP);
    for left in [true, false] {
        let world = ready().await;
        let leader = world.leader("eu", region).expect("one leads");
        let survivor = ["eu/1", "eu/2", "eu/3"]
            .into_iter()
            .find(|name| (leader == *name) == left)
            .expect("there is one");
        for name in ["eu/1", "eu/2", "eu/3"] {
            world.cut(name, name != survivor);
        }
        tokio::time::sleep(SAID_WITHIN).await;
        let said = Said::by(&world, survivor).await;
        let region = said.status.groups.iter().find(|g| g.kind == "region");
        let region = region.expect("it is told of");
        assert_eq!(region.leader, None, "{:#?}", said.status);
        assert_eq!(region.health(), v1::Health::Down);
        assert_eq!(said.status.health(), v1::Health::Down);
        assert!(!said.serving && !said.writing);
    }
}

#[tokio::test(start_paused = true)]
async fn disks_without_room_are_told_of() {
    let world = ready().await;
    world.fill("eu/2", Room::Low);
    tokio::time::sleep(SAID_WITHIN).await;
    for name in ["eu/1", "eu/2"] {
        let said = Said::by(&world, name).await;
        assert_eq!(said.node("eu/2").disk(), v1::DiskState::Full);
        assert_eq!(said.node("eu/1").disk(), v1::DiskState::Ok);
        assert_eq!(said.status.health(), v1::Health::Degraded);
        assert!(said.serving && said.writing);
    }
    world.fill("eu/1", Room::Low);
    world.fill("eu/3", Room::Low);
    tokio::time::sleep(SAID_WITHIN).await;
    let said = Said::by(&world, "eu/1").await;
    // Reads go on.
    assert!(said.serving && !said.writing);
    let tags = said.status.groups.iter().filter(|g| g.role == "home");
    assert!(tags.clone().count() > 0);
    for group in tags {
        assert_eq!(group.health(), v1::Health::Down, "{group:#?}");
        assert!(group.leader.is_some());
    }
}

/// A firewall between nodes may let only one side open connections.
#[tokio::test(start_paused = true)]
async fn a_node_that_reaches_nobody_and_is_reached_says_what_is_so() {
    let world = ready().await;
    world.unhear("eu/1");
    tokio::time::sleep(SAID_WITHIN).await;
    let said = Said::by(&world, "eu/1").await;
    let group = |kind| said.status.groups.iter().find(move |g| g.kind == kind);
    let region = group("region").expect("it is told of");
    assert!(
        region.leader.is_some_and(|leader| leader != 1),
        "{region:#?}"
    );
    // It hears from the leader, which a quorum has confirmed.
    assert_eq!(region.health(), v1::Health::Degraded, "{region:#?}");
    assert_eq!(said.status.health(), v1::Health::Degraded);
    let leader = format!("eu/{}", region.leader.unwrap_or_default());
    let why = &said.node(&leader).unreached_why;
    assert!(why.contains("it reaches this node"), "{:#?}", said.status);
    let said = Said::by(&world, &leader).await;
    assert!(said.node("eu/1").reachable && said.is_well());
}

/// The same firewall the other way round: its leader goes on over its own connections,
/// and nobody gets a write to it.
#[tokio::test(start_paused = true)]
async fn a_leader_that_nobody_reaches_lets_another_one_lead() {
    let world = ready().await;
    // It stops to speak as their leader; that another one is nobody can tell it.
    let led = |name: &str| {
        let groups = world.nodes[name].groups.all();
        let is_led = |group: &&Arc<Group>| {
            let leader = group.confirmed_leader();
            leader.is_some_and(|leader| leader.replica == group.replica())
        };
        groups.iter().filter(is_led).count()
    };
    world.lead("eu/1", region_group).await;
    tokio::time::sleep(SAID_WITHIN).await;
    assert!(led("eu/1") > 0);
    world.shut("eu/1");
    world.until("it leads nothing", |_| led("eu/1") == 0).await;
    tokio::time::sleep(SAID_WITHIN).await;
    assert_eq!(led("eu/1"), 0, "it leads again");
    let said = Said::by(&world, "eu/2").await;
    assert!(!said.node("eu/1").reachable);
    assert!(said.serving && said.writing, "{:#?}", said.status);
    for group in said.status.groups.iter().filter(|g| g.kind != "control") {
        assert!(group.leader.is_some_and(|leader| leader != 1), "{group:#?}");
    }
    // It does not go on believing that it leads, which would keep it from all else.
    let groups = world.nodes["eu/1"].groups.all();
    assert!(groups.iter().all(|group| !group.is_elected()));
}

/// The same firewall at all the others: no other node could lead.
#[tokio::test(start_paused = true)]
async fn a_leader_that_nobody_could_take_over_from_goes_on() {
    let world = ready().await;
    let leads = |name: &str| {
        let groups = world.nodes[name].groups.all();
        groups.iter().filter(|group| group.leads()).count()
    };
    let kept: Which = |node| node.groups().by_tag("eu-only");
    world.lead("eu/1", kept).await;
    world.unhear("eu/2");
    world.unhear("eu/3");
    tokio::time::sleep(SAID_WITHIN).await;
    let before = leads("eu/1");
    assert!(before > 0);
    for round in 0..12 {
        tokio::time::sleep(SAID_WITHIN).await;
        assert!(leads("eu/1") >= before, "round {round}");
        world
            .put("eu/1", "eu-only", &format!("k{round}"), "1")
            .await;
    }
}

/// A node whose store came up elsewhere is reached by nobody, though it reaches
/// everybody itself.
#[tokio::test(start_paused = true)]
async fn a_node_at_another_address_is_told_of_by_all() {
    let mut world = ready().await;
    world.stop("eu/2").await;
    world.restart_at("eu/2", "eu-9:7400").await;
    tokio::time::sleep(SAID_WITHIN * 2).await;
    for name in ["eu/1", "eu/3"] {
        let said = Said::by(&world, name).await;
        let node = said.node("eu/2");
        assert!(!node.reachable, "{node:#?}");
        assert_eq!(node.address, address("eu/2"));
        assert_eq!(node.says_address, "eu-9:7400");
    }
}
