//! Runs the scripts of `node/tests/scripts`: what whole clusters do, told by what an
//! operator and clients see, and by what each node holds.
//!
//! A prefix such as `eu/1:` says at which node something is asked. Time is paused and
//! goes on only while something is waited for. Versions are called `v1`, `v2` and so on,
//! in the order in which a script sees them first.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use domicile_proto::address::RegionName;
use domicile_proto::disk::v1 as disk;
use domicile_proto::policy::DEMO;
use domicile_proto::v1;
use domicile_proto::v1::kv_service_client::KvServiceClient;
use goldenscript::Context;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use v1::session_operation::Operation;
use v1::session_result::Result as Answer;

use super::{Session, TWO_REGIONS};
use crate::error::{Error, Reason};
use crate::node::Node;
use crate::node::testing::{Which, World, address, region_group};
use crate::raft::{Group, NodeId};
use crate::state::Subject;
use crate::state::testing::run_scripts;
use crate::storage::{CONTROL_GROUP, Limit, keys};

/// The tag of what is written and read, unless a script says another one.
const TAG: &str = "eu-only";

/// How long a command may take.
const COMMAND: Duration = Duration::from_secs(120);

/// What went wrong in a script.
type Failure = Box<dyn std::error::Error>;

#[test]
fn the_scripts_of_formation_are_so() {
    run_scripts("node/tests/scripts/formation", Script::new);
}

#[test]
fn the_scripts_of_replacement_are_so() {
    run_scripts("node/tests/scripts/replacement", Script::new);
}

#[test]
fn the_scripts_of_retries_are_so() {
    run_scripts("node/tests/scripts/retries", Script::new);
}

/// What a script can say.
#[derive(goldenscript::Command)]
enum Command {
    /// Starts nodes with the disks that they have; a new node has an empty one.
    Start(Vec<String>),
    /// Stops nodes.
    Stop(Vec<String>),
    /// Gives nodes that do not run empty disks.
    Wipe(Vec<String>),
    /// Has the packets between a node and the others vanish.
    Cut { node: String },
    /// Lets them pass again.
    Heal { node: String },
    /// Has a node form a cluster of nodes.
    Init {
        #[arg(key)]
        name: Option<String>,
        #[arg(key)]
        policy: Option<String>,
        #[arg(key, optional)]
        remembered_clients: u64,
        #[arg(key, optional)]
        remembered_outcomes: u64,
        #[arg(many)]
        nodes: Vec<String>,
    },
    /// Waits until nodes serve their tags, reach each other and agree on who leads;
    /// unless it is said, all that run.
    Wait {
        #[arg(many, optional)]
        nodes: Vec<String>,
    },
    /// Waits until the mirrors of `global` on nodes are open and have a record.
    Mirrored { key: String, nodes: Vec<String> },
    /// Lets a node lead a group of its region.
    Lead { node: String, group: Option<String> },
    /// What each node that runs holds.
    Nodes {
        #[arg(many, optional)]
        nodes: Vec<String>,
    },
    /// Who is in the groups of a region, and with which replicas.
    Members { region: String },
    /// Puts a row of a record onto the disk of a node, past its group.
    Plant {
        node: String,
        #[arg(key)]
        tag: String,
        #[arg(key)]
        key: String,
    },
    /// Has the leader of its region replace a node that lost its disk.
    Replace { node: String },
    /// Forms a region that lost its stores anew.
    Rebuild { region: String },
    /// Makes a mirror anew.
    Refill {
        region: String,
        #[arg(key)]
        tag: String,
    },
    /// Registers a client.
    Register {
        client: String,
        #[arg(key)]
        tag: Option<String>,
    },
    /// Names a client that was never registered.
    Pretend { client: String },
    /// Puts records. With `[lost]` behind it the answer does not reach the client.
    Put {
        #[arg(key)]
        tag: Option<String>,
        #[arg(key)]
        id: Option<WriteId>,
        #[arg(key, optional)]
        below: u64,
        #[arg(key = "if")]
        condition: Option<String>,
        #[arg(key, many)]
        records: Vec<(String, String)>,
    },
    /// Deletes a record.
    Delete {
        key: String,
        #[arg(key)]
        tag: Option<String>,
        #[arg(key)]
        id: Option<WriteId>,
        #[arg(key, optional)]
        below: u64,
    },
    /// Reads a record, strongly unless it is said.
    Get {
        key: String,
        #[arg(key)]
        tag: Option<String>,
        #[arg(key, optional)]
        local: bool,
    },
}

/// The id of a write, `CLIENT/SEQUENCE`.
#[derive(Clone)]
struct WriteId(String, u64);

impl FromStr for WriteId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (client, sequence) = text.split_once('/').ok_or("an id is CLIENT/SEQUENCE")?;
        let sequence = sequence.parse().map_err(|error| format!("{error}"))?;
        Ok(WriteId(client.to_owned(), sequence))
    }
}

/// A cluster and its clients, and what drives them.
struct Script {
    cluster: Cluster,
    runtime: Runtime,
}

/// A cluster and its clients.
struct Cluster {
    world: World,
    clients: BTreeMap<String, Bytes>,
    versions: BTreeMap<u64, String>,
}

impl Script {
    fn new() -> Self {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().start_paused(true).build();
        let runtime = runtime.expect("a runtime");
        let cluster = Cluster {
            world: runtime.block_on(async { World::seeded(7) }),
            clients: BTreeMap::new(),
            versions: BTreeMap::new(),
        };
        Script { cluster, runtime }
    }
}

impl goldenscript::Runner for Script {
    type Command = Command;

    fn run(&mut self, command: &Command, context: &Context) -> Result<String, Failure> {
        let at = context.prefix.clone().unwrap_or_default();
        let told = self.cluster.tell(&at, command);
        let told = async { tokio::time::timeout(COMMAND, told).await };
        let told = self.runtime.block_on(told).map_err(|_| "not in time")?;
        match context.tags.contains("lost") {
            true => told.map(|_| "the answer is lost\n".into()),
            false => told,
        }
    }
}

impl Cluster {
    /// Does what it is told. `at`: the node that is asked.
    async fn tell(&mut self, at: &str, command: &Command) -> Result<String, Failure> {
        match command {
            Command::Start(names) => {
                for name in names {
                    self.world.restart(name).await;
                }
            }
            Command::Stop(names) => {
                for name in names {
                    self.world.stop(name).await;
                }
            }
            Command::Wipe(names) => names.iter().for_each(|name| self.world.wipe(name)),
            Command::Cut { node } => self.world.cut(node, true),
            Command::Heal { node } => self.world.cut(node, false),
            Command::Wait { nodes } => {
                let is_settled = |world: &World| is_settled(world, nodes);
                self.world.until("they are settled", is_settled).await;
            }
            Command::Mirrored { key, nodes } => {
                for name in nodes {
                    let has_it = |world: &World| world.mirrors(name, key);
                    self.world.until("the mirror has it", has_it).await;
                }
            }
            Command::Lead { node, group } => match group.as_deref() {
                Some("control") => self.world.lead_control(node).await,
                group => {
                    self.world
                        .lead(node, which(group.unwrap_or("region"))?)
                        .await
                }
            },
            Command::Plant { node, tag, key } => self.world.plant(node, tag, key),
            Command::Pretend { client } => {
                let id = Bytes::from_static(&[0xff; 16]);
                self.clients.insert(client.clone(), id);
            }
            Command::Nodes { nodes } => return Ok(self.holdings(nodes)),
            Command::Members { region } => return Ok(self.members(region)),
            Command::Init { .. }
            | Command::Replace { .. }
            | Command::Rebuild { .. }
            | Command::Refill { .. } => return Ok(self.operate(at, command).await),
            _ => return self.call(at, command).await,
        }
        Ok(String::new())
    }

    /// Does what an operator asks for.
    async fn operate(&mut self, at: &str, command: &Command) -> String {
        let world = &self.world;
        match command {
            Command::Init {
                name,
                policy,
                remembered_clients,
                remembered_outcomes,
                nodes,
            } => {
                let policy = match policy.as_deref() {
                    Some("two-regions") => TWO_REGIONS,
                    _ => DEMO,
                };
                let request = v1::InitClusterRequest {
                    name: name.clone().unwrap_or_else(|| "test".into()),
                    nodes: nodes.iter().map(|name| node_address(name)).collect(),
                    policy: policy.into(),
                    remembered_clients: *remembered_clients,
                    remembered_outcomes: *remembered_outcomes,
                };
                let formed = world.nodes[at].init(request).await;
                formed.map_or_else(refused, |()| "formed\n".into())
            }
            Command::Replace { node } => {
                let (region, number) = node.split_once('/').expect("REGION/N");
                let number = number.parse().expect("a number");
                // The region may not have noted yet that its groups are formed, or
                // that another node leads it.
                let replaced = loop {
                    match world.leader(region, region_group) {
                        None => {}
                        Some(_) => match world.replace(region, number).await {
                            Err(error) if error.reason == Reason::NoQuorum => {}
                            replaced => break replaced,
                        },
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                };
                replaced.map_or_else(refused, |replaced| {
                    let unchanged = yes(replaced.unchanged);
                    format!(
                        "replaced replicas={} unchanged={unchanged}\n",
                        replaced.replicas
                    )
                })
            }
            Command::Rebuild { region } => {
                let rebuilt = world.rebuild(region).await;
                rebuilt.map_or_else(refused, |rebuilt| {
                    format!(
                        "rebuilt nodes={} incarnation={} unchanged={} mirrors={}\n",
                        rebuilt.nodes,
                        rebuilt.incarnation,
                        yes(rebuilt.is_unchanged),
                        rebuilt.mirrors.join(",")
                    )
                })
            }
            Command::Refill { region, tag } => {
                let refilled = world.refill(tag, region).await;
                refilled.map_or_else(refused, |incarnation| {
                    format!("refilled incarnation={incarnation}\n")
                })
            }
            _ => panic!("no operator asks for it"),
        }
    }

    /// Does what a client asks a node for, by a session.
    async fn call(&mut self, at: &str, command: &Command) -> Result<String, Failure> {
        let (tag, operations) = self.operations(command)?;
        let tag = tag.as_deref().unwrap_or(TAG);
        let mut said = String::new();
        for operation in operations {
            let answer = self.ask(at, tag, operation).await?;
            said.push_str(&self.answered(command, answer));
        }
        Ok(said)
    }

    /// The operations of a command, and their tag.
    fn operations<'c>(
        &self,
        command: &'c Command,
    ) -> Result<(&'c Option<String>, Vec<Operation>), Failure> {
        Ok(match command {
            Command::Register { tag, .. } => {
                (tag, vec![Operation::Register(v1::RegisterRequest {})])
            }
            Command::Put {
                tag,
                id,
                below,
                condition,
                records,
            } => {
                let mut puts = Vec::new();
                for (key, value) in records {
                    puts.push(Operation::Put(v1::PutRequest {
                        key: key.clone().into(),
                        value: value.clone().into(),
                        request_id: self.request_id(id, *below)?,
                        condition: self.condition(condition)?,
                        ..v1::PutRequest::default()
                    }));
                }
                (tag, puts)
            }
            Command::Delete {
                key,
                tag,
                id,
                below,
            } => {
                let delete = v1::DeleteRequest {
                    key: key.clone().into(),
                    request_id: self.request_id(id, *below)?,
                    ..v1::DeleteRequest::default()
                };
                (tag, vec![Operation::Delete(delete)])
            }
            Command::Get { key, tag, local } => {
                let level = match local {
                    true => v1::Level::Local,
                    false => v1::Level::Strong,
                };
                (tag, vec![super::get(key, level)])
            }
            _ => panic!("no client asks for it"),
        })
    }

    /// Asks a node for one operation, in a session of its own.
    async fn ask(&self, at: &str, tag: &str, operation: Operation) -> Result<Answer, Failure> {
        let (requests, rx) = mpsc::unbounded_channel();
        let mut node = KvServiceClient::new(self.world.channel(at).await);
        let opened = node.session(UnboundedReceiverStream::new(rx)).await?;
        let mut session = Session {
            requests,
            answers: opened.into_inner(),
        };
        session.send(tag, vec![operation]);
        let result = session.results(1).await.pop().and_then(|one| one.result);
        Ok(result.ok_or("a result says nothing")?)
    }

    /// What a client hears.
    fn answered(&mut self, command: &Command, answer: Answer) -> String {
        match (answer, command) {
            (Answer::Register(registered), Command::Register { client, .. }) => {
                let id = registered.client;
                let mut known = self.clients.values();
                assert!(known.all(|known| *known != id), "two clients have one id");
                assert_eq!(id.len(), 16);
                self.clients.insert(client.clone(), id);
                format!("registered {client}\n")
            }
            (Answer::Put(put), _) => format!("written version={}\n", self.version(put.version)),
            (Answer::Delete(deleted), _) => {
                let version = self.version(deleted.version);
                let existed = yes(deleted.existed);
                format!("deleted version={version} existed={existed}\n")
            }
            (Answer::Get(got), Command::Get { key, .. }) => match got.record {
                Some(record) => {
                    let value = String::from_utf8_lossy(&record.value).into_owned();
                    format!("{key}={value} version={}\n", self.version(record.version))
                }
                None => format!("{key}=none\n"),
            },
            (Answer::Failure(failure), _) => {
                let current = failure.metadata.get("current_version");
                let current = current.map(|version| version.parse().expect("a number"));
                let current = current.map(|version| format!(" current={}", self.version(version)));
                let current = current.unwrap_or_default();
                format!("refused reason={}{current}\n", failure.reason)
            }
            (other, _) => panic!("{other:?}"),
        }
    }

    fn request_id(
        &self,
        id: &Option<WriteId>,
        below: u64,
    ) -> Result<Option<v1::RequestId>, Failure> {
        let Some(WriteId(client, sequence)) = id else {
            return Ok(None);
        };
        let client = self.clients.get(client);
        Ok(Some(v1::RequestId {
            client: client.ok_or("no client is called so")?.clone(),
            sequence: *sequence,
            acked_below: below,
        }))
    }

    /// A condition: `absent`, or what the version is called.
    fn condition(&self, condition: &Option<String>) -> Result<Option<v1::Condition>, Failure> {
        use v1::condition::Condition;
        let condition = match condition.as_deref() {
            None => return Ok(None),
            Some("absent") => Condition::IfAbsent(true),
            Some(name) => {
                let mut versions = self.versions.iter();
                let version = versions.find(|(_, known)| *known == name);
                Condition::IfVersion(*version.ok_or("no version is called so")?.0)
            }
        };
        Ok(Some(v1::Condition {
            condition: Some(condition),
        }))
    }

    /// What a version is called.
    fn version(&mut self, version: u64) -> String {
        let next = format!("v{}", self.versions.len() + 1);
        self.versions.entry(version).or_insert(next).clone()
    }

    /// What nodes hold: a line for each group.
    fn holdings(&self, names: &[String]) -> String {
        let mut said = String::new();
        for (name, node) in &self.world.nodes {
            if !names.is_empty() && !names.contains(name) {
                continue;
            }
            let groups = node.groups().all();
            if groups.is_empty() {
                let anchored = node.disk.anchor.get().replicas.len();
                writeln!(said, "{name} nothing anchored={anchored}").expect("it is text");
            }
            for group in groups {
                let holds = holding(node, &group);
                writeln!(said, "{name} {holds}").expect("it is text");
            }
            let leaving = node.disk.anchor.get().removed.len();
            if leaving > 0 {
                writeln!(said, "{name} leaving={leaving}").expect("it is text");
            }
            if node.is_outdated() {
                writeln!(said, "{name} outdated").expect("it is text");
            }
        }
        said
    }

    /// The members of the groups of a region, and of the control group, as those that
    /// lead them see them.
    fn members(&self, region: &str) -> String {
        let mut said = BTreeMap::new();
        for node in self.world.nodes.values() {
            for group in node.groups().all() {
                let id = group.identity().group;
                let is_here = group.identity().region.as_str() == region || id == CONTROL_GROUP;
                if is_here && group.leads() {
                    let mut members: Vec<_> = group
                        .status()
                        .members
                        .iter()
                        .map(|member| {
                            let (of, number) = match id {
                                CONTROL_GROUP => node.regions.resolve(member.node).expect("known"),
                                _ => (group.identity().region.clone(), member.node),
                            };
                            let learner = if member.voter { "" } else { "(learner)" };
                            format!("{of}/{number}={}{learner}", replica(member.replica.0))
                        })
                        .collect();
                    members.sort();
                    said.insert(id, format!("{} {}\n", called(&group), members.join(" ")));
                }
            }
        }
        said.into_values().collect()
    }
}

/// Whether nodes serve their tags, reach each other and agree on who leads.
fn is_settled(world: &World, names: &[String]) -> bool {
    let nodes = world.nodes.iter();
    let nodes = nodes.filter(|(name, _)| names.is_empty() || names.contains(name));
    let nodes: Vec<_> = nodes.collect();
    let mut leaders = BTreeMap::new();
    nodes.iter().all(|(name, node)| {
        let reaches = nodes
            .iter()
            .filter(|(other, _)| other != name)
            .all(|(other, _)| {
                let (region, number) = other.split_once('/').expect("REGION/N");
                let region = RegionName::new(region).expect("a name");
                let number = NodeId(number.parse().expect("a number"));
                node.regions.is_connected(&region, number)
            });
        let agrees = node.groups().all().iter().all(|group| {
            let identity = group.identity();
            let region = match identity.subject {
                Subject::Control => String::new(),
                _ => identity.region.to_string(),
            };
            let leader = group.leader();
            let first = leaders.entry((region, identity.group)).or_insert(leader);
            leader.is_some() && *first == leader
        });
        node.is_ready() && reaches && agrees
    })
}

/// What a replica on a node is, and which records are on its disk.
fn holding(node: &Node, group: &Group) -> String {
    let identity = group.identity();
    let members = group.status().members;
    let own = members
        .iter()
        .find(|member| member.replica == group.replica());
    let votes = own.map_or("none", |own| if own.voter { "yes" } else { "no" });
    let mut said = format!(
        "{} replica={} votes={votes}",
        called(group),
        replica(group.replica().0)
    );
    if identity.is_mirror {
        let mirror = group.progress().mirror.unwrap_or_default();
        let (incarnation, open) = (identity.incarnation, yes(mirror.open));
        said.push_str(&format!(" mirror incarnation={incarnation} open={open}"));
    }
    if !identity.tag.is_empty() {
        said.push_str(&format!(" records={}", records(node, &identity.tag)));
    }
    said
}

/// The keys of the records of a tag that are on the disk of a node.
fn records(node: &Node, tag: &str) -> String {
    let limit = Limit {
        rows_max: 1000,
        bytes_max: usize::MAX,
    };
    let rows = node.disk.state.scan(&keys::records(tag, b"", None), limit);
    let rows = rows.expect("read").into_iter();
    let keys = rows.filter_map(|row| {
        let stored: disk::StoredRecord = row.open().expect("sound");
        let (_, key) = keys::parse_record(&row.key).expect("sound");
        let key = String::from_utf8_lossy(key).into_owned();
        // What is planted has no version.
        (stored.value.is_some() || stored.version == 0).then_some(key)
    });
    let keys: Vec<_> = keys.collect();
    match keys.is_empty() {
        true => "none".into(),
        false => keys.join(","),
    }
}

/// What a group is called: its tag, if it has one.
fn called(group: &Group) -> String {
    match &group.identity().subject {
        Subject::Control => "control".into(),
        Subject::Region => "region".into(),
        Subject::Tag(tag) => tag.to_string(),
    }
}

/// A replica's id: the incarnation of its region, above the first, stands before it.
fn replica(id: u64) -> String {
    match id >> 32 {
        0 => id.to_string(),
        above => format!("{}.{}", above, id & u64::from(u32::MAX)),
    }
}

/// The group that a script means.
fn which(group: &str) -> Result<Which, Failure> {
    Ok(match group {
        "region" => region_group,
        "eu-only" => |node| node.groups.by_tag("eu-only"),
        "global" => |node| node.groups.by_tag("global"),
        _ => return Err(format!("no group is called {group}").into()),
    })
}

fn node_address(name: &str) -> v1::NodeAddress {
    let (region, node) = name.split_once('/').expect("REGION/N");
    v1::NodeAddress {
        node: node.parse().expect("a number"),
        region: region.into(),
        address: address(name),
        callers: Vec::new(),
    }
}

fn refused(error: Error) -> String {
    format!("refused reason={}\n", error.reason)
}

fn yes(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}
